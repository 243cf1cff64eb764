/** The gate before every route: who calls, may they, and is there a body that the route could take?
 *
 *  All of it happens on the headers; a request that fails here has cost no memory. Default deny: an endpoint without a rule
 *  below does not compile, and a route outside the table is refused.
 */
import type { FastifyReply, FastifyRequest } from 'fastify'
import { assertNever } from '../core/assert.js'
import { hasCode, RoostError } from '../core/errors.js'
import { parseSessionId, type SessionId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { RepositoryHost } from '../repo/repository-host-contract.js'
import type { Repository } from '../repo/repository.js'
import { authenticate, type FailureBrake } from './authenticate.js'
import { ALL_REPOSITORIES, forbidden, hasAnyScope, requireAdministrator, requirePeer, requireScope, requireSource } from './authorize.js'
import type { Endpoint } from './endpoints.js'
import { requireContentLength } from './raw-body.js'
import type { RequestLifetimes } from './request-lifetimes.js'
import type { Principal, TokenStore } from './token-store.js'

type SessionRow = Awaited<ReturnType<Repository['requireSession']>>

/** What the gate learned of a request; routes read it instead of headers. */
export interface Passage {
  readonly endpoint: Endpoint | undefined
  /** Aborts when the client goes away. */
  readonly signal: AbortSignal
  principal?: Principal
  repository?: Repository
  session?: SessionRow
  /** Declared and within the route's limit; 0 without a body. */
  bodyBytes: number
}
declare module 'fastify' {
  interface FastifyRequest { passage: Passage }
  interface FastifyContextConfig { endpoint?: Endpoint }
}

export interface GateDeps {
  readonly host: RepositoryHost
  readonly tokens: TokenStore
  readonly brake: FailureBrake
  readonly lifetimes: RequestLifetimes
  readonly isDraining: () => boolean
}

export function createGate(deps: GateDeps) {
  return async (request: FastifyRequest, reply: FastifyReply): Promise<void> => {
    const endpoint = request.routeOptions.config.endpoint
    const signal = deps.lifetimes.begin(reply.raw)
    const passage: Passage = { endpoint, signal, bodyBytes: 0 }
    request.passage = passage
    reply.header('x-request-id', request.id)
    if (deps.isDraining()) reply.header('connection', 'close')
    if (endpoint === undefined) {
      if (request.is404) return
      throw new RoostError('AUTH_FORBIDDEN', 'This route is not served.')
    }
    if (endpoint.beginsWork === true && deps.isDraining())
      throw new RoostError('SERVER_DRAINING', 'The server is shutting down.')
    await admitCaller(deps, endpoint, request, passage)
    passage.bodyBytes = checkBodyHeaders(endpoint, request)
  }
}

async function admitCaller(deps: GateDeps, endpoint: Endpoint, request: FastifyRequest, passage: Passage): Promise<void> {
  if (endpoint.access === 'public') return
  const { authorization } = request.headers
  const principal = authenticate(deps.tokens, deps.brake, { authorization, address: request.ip })
  passage.principal = principal
  const { repository: name, session } = request.params as { repository?: string; session?: string }
  switch (endpoint.access) {
    case 'authenticated': return
    case 'server-admin': requireAdministrator(principal, ALL_REPOSITORIES); return
    case 'granted':
    case 'session':
    case 'push-session':
    case 'commit-session':
      if (!hasAnyScope(principal, name!)) throw forbidden(['read', 'push'])
      break
    case 'open-session':
    case 'list-snapshots': requireScope(principal, name!, ['read', 'push']); break
    case 'forget': requireScope(principal, name!, ['delete', 'admin']); break
    case 'delete-snapshot': requireScope(principal, name!, ['delete']); break
    case 'server-admin-of-repository': requireAdministrator(principal, ALL_REPOSITORIES); break
    case 'repository-admin': requireAdministrator(principal, name!); break
    case 'replicate':
    case 'peer-session': requirePeer(principal, name!); break
    default: assertNever(endpoint.access)
  }
  passage.repository = deps.host.get(name!)
  if (endpoint.access === 'session' || endpoint.access === 'push-session' || endpoint.access === 'peer-session')
    passage.session = await requireOwnSession(passage.repository, parseSessionId(session!), principal, endpoint.access)
  if (endpoint.access === 'commit-session') {
    const found = await ownOrCommitted(passage.repository, parseSessionId(session!), principal)
    if (found !== undefined) passage.session = found
  }
}

/** A commit whose answer was lost is told again after its session ended: whoever may push to the snapshot's source may hear the answer.
 *  Undefined: the session has committed. */
async function ownOrCommitted(repository: Repository, sessionId: SessionId, principal: Principal): Promise<SessionRow | undefined> {
  try {
    return await requireOwnSession(repository, sessionId, principal, 'push-session')
  } catch (error) {
    const source = hasCode(error, 'SESSION_LOST') ? await repository.committedSource(sessionId) : undefined
    if (source === undefined) throw error
    requireSource(principal, repository.name, ['push'], source)
    return undefined
  }
}

async function requireOwnSession(repository: Repository, sessionId: SessionId, principal: Principal,
  access: 'session' | 'push-session' | 'peer-session'): Promise<SessionRow> {
  const session = await repository.requireSession(sessionId)
  if (session.tokenId !== principal.tokenId) throw new RoostError('AUTH_FORBIDDEN', 'The session belongs to another token.')
  if (access === 'push-session' && session.kind !== 'push') throw new RoostError('AUTH_FORBIDDEN', 'This session only reads.')
  return session
}

/** The declared length of a body that this endpoint takes. Endpoints without one tolerate a small JSON body and ignore it. */
function checkBodyHeaders(endpoint: Endpoint, request: FastifyRequest): number {
  const { headers } = request
  const announced = headers['transfer-encoding'] !== undefined || (headers['content-length'] ?? '0') !== '0'
  if (endpoint.octets === undefined && endpoint.json === undefined && !announced) return 0
  const octets = endpoint.octets
  const expected = octets?.media ?? 'application/json'
  const media = (headers['content-type'] ?? '').toLowerCase()
  const matches = octets === undefined ? /^application\/json(\s*;.*)?$/.test(media) : media === expected
  if (!matches) throw new RoostError('MEDIA_TYPE_UNSUPPORTED', `The body's media type must be ${expected}.`, { expected })
  const bytes = requireContentLength(headers, octets?.bytesMax ?? LIMITS.jsonBytesMax)
  if (octets !== undefined && bytes % octets.unitBytes !== 0)
    throw new RoostError('REQUEST_MALFORMED', `The body must be whole units of ${octets.unitBytes} bytes.`, { unitBytes: octets.unitBytes })
  return bytes
}

// What the gate has proved, for routes. Each is set before any route of its access runs.
export function principalOf(request: FastifyRequest): Principal { return required(request.passage.principal, 'principal') }
export function repositoryOf(request: FastifyRequest): Repository { return required(request.passage.repository, 'repository') }
export function sessionOf(request: FastifyRequest): SessionRow { return required(request.passage.session, 'session') }
function required<T>(value: T | undefined, name: string): T {
  if (value === undefined) throw new Error(`the gate set no ${name} for this route`)
  return value
}
