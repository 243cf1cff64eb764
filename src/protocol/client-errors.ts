/** Failures that arise on the client's side of the wire. What a server refuses is a RoostError; these have no HTTP meaning.
 *
 *  `decodeWireError` is the one translator from a server's reply to a RoostError.
 */
import { isErrorCode, RoostError, type ErrorCode, type ErrorDetails } from '../core/errors.js'

export type ClientErrorCode =
  | 'SERVER_UNREACHABLE' | 'TLS_REFUSED' | 'PLAIN_HTTP_REFUSED' | 'URL_MALFORMED' | 'REPLY_MALFORMED'
  | 'SOURCE_NOT_REPEATABLE' | 'PUSH_NOT_CONVERGING' | 'TRANSFER_DAMAGED' | 'SCANNER_FAILED' | 'SNAPSHOT_KEY_MISMATCH'
  | 'MACHINE_MALFORMED' | 'IMAGE_UNREADABLE' | 'HOOK_FAILED' | 'QEMU_FAILED' | 'DESTINATION_REFUSED'
  | 'MACHINE_UNREACHABLE' | 'MACHINE_BUSY' | 'MACHINE_UNSUPPORTED' | 'QEMU_REFUSED' | 'FLEECE_FAILED' | 'POINT_IN_TIME_LOST' | 'WATCHDOG_FAILED'
  | 'PROGRAM_MISSING' | 'PROGRAM_FAILED' | 'SOURCE_REFUSED' | 'SOURCE_IN_USE'
  | 'NBD_UNREACHABLE' | 'NBD_REFUSED' | 'NBD_FAILED' | 'NBD_BROKEN'

export class ClientError extends Error {
  override readonly name = 'ClientError'
  constructor(readonly code: ClientErrorCode, message: string, options?: ErrorOptions) { super(message, options) }
}
export function hasClientCode(error: unknown, code: ClientErrorCode): error is ClientError {
  return error instanceof ClientError && error.code === code
}

/** A refusal as the server meant it. An unknown body of a 5xx (a proxy, a server that is going down) is worth waiting for:
 *  SERVER_BUSY. Any other unknown body is REQUEST_MALFORMED, which nobody repeats. `requestId` goes into the details. */
export function decodeWireError(status: number, body: Buffer, requestIdHeader: string | undefined): RoostError {
  const wire = parseObject(body)
  const requestId = typeof wire?.['requestId'] === 'string' ? wire['requestId'] : requestIdHeader
  const trace: ErrorDetails = requestId === undefined ? {} : { requestId }
  if (wire !== undefined && isErrorCode(wire['code'])) {
    const message = typeof wire['message'] === 'string' ? wire['message'] : 'The server gave no reason.'
    return new RoostError(wire['code'], message, { ...safeDetails(wire['details']), ...trace })
  }
  const code: ErrorCode = status >= 500 ? 'SERVER_BUSY' : status === 401 ? 'AUTH_REQUIRED' : status === 403 ? 'AUTH_FORBIDDEN'
    : status === 404 ? 'ROUTE_UNKNOWN' : status === 413 ? 'BODY_TOO_LARGE' : 'REQUEST_MALFORMED'
  return new RoostError(code, `The server answered ${status} without an error that this client knows.`, { status, ...trace })
}
function parseObject(body: Buffer): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(body.toString('utf8'))
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value as Record<string, unknown> : undefined
  } catch {
    return undefined // not JSON: a proxy's page; the status says what there is to say
  }
}
function safeDetails(value: unknown): ErrorDetails {
  if (typeof value !== 'object' || value === null) return {}
  const details: Record<string, string | number | boolean | readonly string[]> = {}
  for (const [name, detail] of Object.entries(value)) {
    if (typeof detail === 'string' || typeof detail === 'number' || typeof detail === 'boolean') details[name] = detail
    else if (Array.isArray(detail) && detail.every((item) => typeof item === 'string')) details[name] = detail as string[]
  }
  return details
}

/** Errors as they cross a thread boundary: structured clone would lose the class. */
export interface PlainError {
  readonly type: 'roost' | 'client' | 'other'; readonly code: string; readonly message: string
  readonly details: ErrorDetails; readonly stack: string; readonly name: string
}
export function flattenError(error: unknown): PlainError {
  if (error instanceof RoostError)
    return { type: 'roost', code: error.code, message: error.message, details: error.details, stack: error.stack ?? '', name: error.name }
  const e = error instanceof Error ? error : new Error('non-error value thrown')
  const code = (e as NodeJS.ErrnoException).code
  return { type: e instanceof ClientError ? 'client' : 'other', code: typeof code === 'string' ? code : '', message: e.message, details: {},
    stack: e.stack ?? '', name: e.name }
}
export function restoreError(plain: PlainError): Error {
  let error: Error
  if (plain.type === 'roost' && isErrorCode(plain.code)) error = new RoostError(plain.code, plain.message, plain.details)
  else if (plain.type === 'client') error = new ClientError(plain.code as ClientErrorCode, plain.message)
  else {
    error = new Error(plain.message)
    error.name = plain.name
    if (plain.code !== '') (error as NodeJS.ErrnoException).code = plain.code
  }
  error.stack = plain.stack
  return error
}
