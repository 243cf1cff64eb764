/** The one place where errors become HTTP, and where a body that nobody will read is seen off.
 *
 *  Unknown means unknown: 500, no details; the cause is in the log under the request's id.
 */
import { Readable } from 'node:stream'
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import type { Clock } from '../core/clock.js'
import { RoostError, describeCause, isAbort, type ErrorCode } from '../core/errors.js'
import { ALL_REPOSITORIES, isAdministrator } from './authorize.js'
import type { WireError } from '../core/messages.js'

export interface ErrorReply { readonly status: number; readonly body: WireError; readonly retryAfterSeconds?: number }

/** Seconds to wait, where the code means "later"; an error may carry its own in `retryAfterSeconds`. */
const RETRY_AFTER_SECONDS: Partial<Record<ErrorCode, number>> = {
  TOO_MANY_REQUESTS: 1, SERVER_BUSY: 1, SERVER_DRAINING: 5, REPOSITORY_BUSY: 10, NOT_YET_DURABLE: 5, STORE_UNAVAILABLE: 10, STORE_REFUSED: 30, SPOOL_FULL: 10,
}
const RETRY_AFTER_DEFAULT_SECONDS = 5

/** @param toOperator an administrator asks: what the targets say is said on. It names addresses, never secrets. */
export function toErrorReply(error: unknown, requestId: string, toOperator = false): ErrorReply {
  const known = error instanceof RoostError ? error : fromFramework(error)
  const { http, retry, audience } = known.traits
  const shown = audience === 'client' || known.code === 'INTERNAL' || toOperator
  const body: WireError = {
    code: known.code, retry, requestId,
    message: shown ? known.message : 'The repository cannot serve this now; its administrator sees why.',
    details: shown ? known.details : {},
  }
  if (retry !== 'later') return { status: http, body }
  const own = known.details.retryAfterSeconds
  return { status: http, body, retryAfterSeconds: typeof own === 'number' ? own : RETRY_AFTER_SECONDS[known.code] ?? RETRY_AFTER_DEFAULT_SECONDS }
}

/** What the framework itself refuses, in our words. Anything else of anyone's is INTERNAL. */
const FRAMEWORK_CODES: Readonly<Record<string, ErrorCode>> = {
  FST_ERR_VALIDATION: 'REQUEST_MALFORMED',
  FST_ERR_BAD_URL: 'REQUEST_MALFORMED',
  FST_ERR_MAX_PARAM_LENGTH: 'ROUTE_UNKNOWN',
  FST_ERR_CTP_INVALID_JSON_BODY: 'REQUEST_MALFORMED',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'BODY_TRUNCATED',
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'MEDIA_TYPE_UNSUPPORTED',
  FST_ERR_CTP_BODY_TOO_LARGE: 'BODY_TOO_LARGE',
}
function fromFramework(error: unknown): RoostError {
  const code = error instanceof Error ? FRAMEWORK_CODES[(error as FastifyError).code] : undefined
  if (code === undefined) return new RoostError('INTERNAL', 'Internal error.', {}, { cause: error })
  return new RoostError(code, describeRefusal(error as FastifyError), {}, { cause: error })
}
/** Names the place that a schema refuses, never the value that stood there. */
function describeRefusal(error: FastifyError): string {
  const problem = error.validation?.[0]
  if (problem === undefined) return 'The request is malformed.'
  const extra = problem.params.additionalProperty
  const place = `${error.validationContext ?? 'request'}${problem.instancePath}`
  return `The request is malformed: ${place} ${problem.message ?? 'is not valid'}${typeof extra === 'string' ? `: ${extra.slice(0, 64)}` : ''}.`
}

export function createErrorHandler(clock: Clock) {
  return async (error: unknown, request: FastifyRequest, reply: FastifyReply): Promise<unknown> => {
    if (isAbort(error) && reply.raw.destroyed) {
      request.log.debug('the client went away')
      return reply.hijack()
    }
    const { status, body, retryAfterSeconds } = toErrorReply(error, request.id, asksOperator(request))
    const facts = { code: body.code, status, cause: describeCause(error) }
    if (status === 500) request.log.error({ ...facts, err: error }, 'request failed')
    else if (status > 500 && body.code !== 'SERVER_BUSY' && body.code !== 'SERVER_DRAINING') request.log.warn(facts, 'request failed')
    else request.log.debug(facts, 'request refused')
    reply.code(status).type('application/json; charset=utf-8')
    if (retryAfterSeconds !== undefined) reply.header('retry-after', String(retryAfterSeconds))
    if (status === 401) reply.header('www-authenticate', 'Bearer')
    const text = JSON.stringify(body)
    if (!hasUnreadBody(request)) return reply.send(text)
    reply.header('connection', 'close').header('content-length', Buffer.byteLength(text))
    return reply.send(lingeringReply(text, request, clock))
  }
}

function asksOperator(request: FastifyRequest): boolean {
  // A path that the framework refuses never reaches the gate.
  const principal = (request.passage as FastifyRequest['passage'] | undefined)?.principal
  const { repository = ALL_REPOSITORIES } = (request.params ?? {}) as { repository?: string }
  return principal !== undefined && isAdministrator(principal, repository)
}
function hasUnreadBody({ raw }: FastifyRequest): boolean {
  const declared = raw.headers['transfer-encoding'] !== undefined || Number(raw.headers['content-length'] ?? 0) > 0
  return declared && !raw.complete && !raw.readableEnded
}

/** How long a refused body is thrown away before its connection is closed. */
const LINGER_MS = 2_000

/** The reply's bytes at once, its end only when the client stopped sending or had its time. Why: closing a connection with
 *  unread bytes resets it, and the reset overtakes the reply that explains it. */
function lingeringReply(text: string, request: FastifyRequest, clock: Clock): Readable {
  const lingering = new AbortController()
  const reply = new Readable({
    read: () => undefined,
    destroy: (error, done) => { lingering.abort(); done(error) },
  })
  reply.push(text)
  const end = (): void => {
    if (lingering.signal.aborted) return
    lingering.abort()
    reply.push(null)
  }
  clock.sleep(LINGER_MS, lingering.signal).then(end, () => undefined) // rejected = it ended before
  request.raw.once('end', end).once('close', end).on('error', end).resume()
  return reply
}
