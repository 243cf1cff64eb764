/** Rights that depend on a snapshot's source: a token limited to one source sees, reads and deletes that one only. */
import type { OpenSessionRequest, SignedSnapshot, SnapshotRecord, TokenScope } from '../core/messages.js'
import { parseSnapshotId, type SnapshotId } from '../core/ids.js'
import type { Repository } from '../repo/repository.js'
import { forbidden, isNothing, requireSource, sourcesWithin } from './authorize.js'
import type { Principal } from './token-store.js'

export interface SessionCaller { readonly tokenId: string; readonly sourceLimit?: string }

/** @throws {RoostError} AUTH_FORBIDDEN; SNAPSHOT_UNKNOWN; ID_MALFORMED */
export async function authorizeSession(principal: Principal, repository: Repository, wanted: OpenSessionRequest): Promise<SessionCaller> {
  if (wanted.kind === 'read') {
    const { source } = await getPermittedSnapshot(principal, repository, ['read'], parseSnapshotId(wanted.snapshot))
    return callerOf(principal, repository, ['read'], source)
  }
  requireSource(principal, repository.name, ['push'], wanted.source)
  // A push session may read nodes of its parent, so a parent is read under the same limit as the push.
  if (wanted.parent !== null && wanted.parent !== 'latest')
    await getPermittedSnapshot(principal, repository, ['push'], parseSnapshotId(wanted.parent))
  return callerOf(principal, repository, ['push'], wanted.source)
}

/** The snapshot, when its source is within the token's reach.
 *  @throws {RoostError} AUTH_FORBIDDEN; SNAPSHOT_UNKNOWN */
export async function getPermittedSnapshot(principal: Principal, repository: Repository, scopes: readonly TokenScope[],
  snapshotId: SnapshotId): Promise<{ readonly snapshot: SignedSnapshot; readonly source: string }> {
  if (isNothing(sourcesWithin(principal, repository.name, scopes))) throw forbidden(scopes)
  const snapshot = await repository.getSnapshot(snapshotId)
  const { source } = JSON.parse(Buffer.from(snapshot.record, 'base64').toString('utf8')) as SnapshotRecord
  requireSource(principal, repository.name, scopes, source)
  return { snapshot, source }
}

/** The source that a listing is to be limited to; undefined = all.
 *  @throws {RoostError} AUTH_FORBIDDEN, also when the token reaches several sources and none was named */
export function listedSource(principal: Principal, repository: Repository, wanted: string | undefined): string | undefined {
  const scopes = ['read', 'push'] as const
  if (wanted !== undefined) {
    requireSource(principal, repository.name, scopes, wanted)
    return wanted
  }
  const reach = sourcesWithin(principal, repository.name, scopes)
  if (reach === 'all') return undefined
  if (reach.length !== 1) throw forbidden(scopes)
  return reach[0]
}

function callerOf(principal: Principal, repository: Repository, scopes: readonly TokenScope[], source: string): SessionCaller {
  const limited = sourcesWithin(principal, repository.name, scopes) !== 'all'
  return { tokenId: principal.tokenId, ...(limited ? { sourceLimit: source } : {}) }
}
