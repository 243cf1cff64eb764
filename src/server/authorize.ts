/** What a principal may do. Pure, default deny: a right exists only where a grant states it; no scope implies another.
 *
 *  A grant limited to a source counts for that source only, for every scope it has. Answers are the same whether a
 *  repository exists or not, so that a stranger learns no names.
 */
import { RoostError } from '../core/errors.js'
import type { TokenGrant, TokenScope } from '../core/messages.js'
import type { Principal } from './token-store.js'

/** The sources a scope reaches: all of them, or the named ones (none = no right at all). */
export type SourceReach = 'all' | readonly string[]

/** On what a server administrator's grant is written. */
export const ALL_REPOSITORIES = '*'

export function sourcesWithin(principal: Principal, repository: string, scopes: readonly TokenScope[]): SourceReach {
  const grants = grantsOn(principal, repository).filter((grant) => scopes.some((scope) => grant.scopes.includes(scope)))
  if (grants.some((grant) => grant.source === undefined)) return 'all'
  return [...new Set(grants.map((grant) => grant.source!))]
}

export function hasAnyScope(principal: Principal, repository: string): boolean {
  return grantsOn(principal, repository).some((grant) => grant.scopes.length > 0)
}
/** Administration is of a whole repository, or of the server: a grant limited to a source never gives it. */
export function isAdministrator(principal: Principal, repository: string): boolean {
  return sourcesWithin(principal, repository, ['admin']) === 'all'
}

/** Passes when some source could be reached. @throws {RoostError} AUTH_FORBIDDEN */
export function requireScope(principal: Principal, repository: string, scopes: readonly TokenScope[]): void {
  if (isNothing(sourcesWithin(principal, repository, scopes))) throw forbidden(scopes)
}
/** @throws {RoostError} AUTH_FORBIDDEN */
export function requireSource(principal: Principal, repository: string, scopes: readonly TokenScope[], source: string): SourceReach {
  const reach = sourcesWithin(principal, repository, scopes)
  if (reach !== 'all' && !reach.includes(source)) throw forbidden(scopes)
  return reach
}
/** @throws {RoostError} AUTH_FORBIDDEN */
export function requireAdministrator(principal: Principal, repository: string): void {
  if (!isAdministrator(principal, repository)) throw forbidden(['admin'])
}

/** Replicating is a right to the whole repository: a grant limited to a source never gives it. @throws {RoostError} AUTH_FORBIDDEN */
export function requirePeer(principal: Principal, repository: string): void {
  if (sourcesWithin(principal, repository, ['replicate']) !== 'all') throw forbidden(['replicate'])
}

export const isNothing = (reach: SourceReach): boolean => reach !== 'all' && reach.length === 0

export function forbidden(scopes: readonly TokenScope[]): RoostError {
  return new RoostError('AUTH_FORBIDDEN', `This token does not give the right: ${scopes.join(' or ')}.`, { scopes })
}
function grantsOn(principal: Principal, repository: string): readonly TokenGrant[] {
  return principal.grants.filter((grant) => grant.repository === repository || grant.repository === ALL_REPOSITORIES)
}
