/** Every expected failure, with its HTTP meaning, in one table (docs/errors.md is proven equal by a test).
 *
 *  Three kinds of error, never mixed: RoostError (operational, catalogued), AssertionError (ours to fix), and
 *  cancellation (`signal.reason`, passed through unwrapped). An unknown error never becomes "absent".
 */

/** What a caller may do: `never` repeat; repeat the `same` request at once or with back-off; repeat `later`
 *  (Retry-After); open a new session and run again (`restart-session`). */
export type RetryAdvice = 'never' | 'same' | 'later' | 'restart-session'
export interface ErrorTraits { readonly http: number; readonly retry: RetryAdvice; readonly audience: 'client' | 'operator' }

export const ERROR_CATALOGUE = {
  ID_MALFORMED: { http: 400, retry: 'never', audience: 'client' },
  REQUEST_MALFORMED: { http: 400, retry: 'never', audience: 'client' },
  FRAME_MALFORMED: { http: 400, retry: 'never', audience: 'client' },
  BODY_TRUNCATED: { http: 400, retry: 'same', audience: 'client' },
  AUTH_REQUIRED: { http: 401, retry: 'never', audience: 'client' },
  AUTH_FORBIDDEN: { http: 403, retry: 'never', audience: 'client' },
  CHUNK_NOT_READABLE: { http: 403, retry: 'never', audience: 'client' },
  ROUTE_UNKNOWN: { http: 404, retry: 'never', audience: 'client' },
  REPOSITORY_UNKNOWN: { http: 404, retry: 'never', audience: 'client' },
  SNAPSHOT_UNKNOWN: { http: 404, retry: 'never', audience: 'client' },
  TARGET_UNKNOWN: { http: 404, retry: 'never', audience: 'client' },
  TOKEN_UNKNOWN: { http: 404, retry: 'never', audience: 'client' },
  KEY_SLOT_UNKNOWN: { http: 404, retry: 'never', audience: 'client' },
  JOB_UNKNOWN: { http: 404, retry: 'never', audience: 'client' },
  REPLICATION_UNKNOWN: { http: 404, retry: 'never', audience: 'client' },
  REQUEST_TIMEOUT: { http: 408, retry: 'same', audience: 'client' },
  REPOSITORY_EXISTS: { http: 409, retry: 'never', audience: 'client' },
  TARGET_EXISTS: { http: 409, retry: 'never', audience: 'client' },
  TARGET_NEEDED: { http: 409, retry: 'never', audience: 'client' },
  COMMIT_INCOMPLETE: { http: 409, retry: 'restart-session', audience: 'client' },
  COMMIT_CONFLICT: { http: 409, retry: 'never', audience: 'client' },
  KEY_SLOT_LAST: { http: 409, retry: 'never', audience: 'client' },
  COLLECTION_STALE: { http: 409, retry: 'never', audience: 'operator' },
  JOB_CANCELLED: { http: 409, retry: 'never', audience: 'client' },
  JOB_NOT_CANCELLABLE: { http: 409, retry: 'never', audience: 'client' },
  SNAPSHOT_PROTECTED: { http: 409, retry: 'never', audience: 'client' },
  RETENTION_LOCKED: { http: 409, retry: 'never', audience: 'client' },
  REPLICA_CONFLICT: { http: 409, retry: 'never', audience: 'client' },
  INDEX_REBUILD_NEEDED: { http: 409, retry: 'never', audience: 'client' },
  REPOSITORY_BUSY: { http: 409, retry: 'later', audience: 'client' },
  SESSION_LOST: { http: 410, retry: 'restart-session', audience: 'client' },
  LENGTH_REQUIRED: { http: 411, retry: 'never', audience: 'client' },
  BODY_TOO_LARGE: { http: 413, retry: 'never', audience: 'client' },
  MEDIA_TYPE_UNSUPPORTED: { http: 415, retry: 'never', audience: 'client' },
  TREE_MALFORMED: { http: 422, retry: 'never', audience: 'client' },
  BOOT_FAILED: { http: 422, retry: 'never', audience: 'operator' },
  POLICY_KEEPS_NOTHING: { http: 422, retry: 'never', audience: 'client' },
  LIMIT_EXCEEDED: { http: 422, retry: 'never', audience: 'client' },
  KEY_UNLOCK_FAILED: { http: 422, retry: 'never', audience: 'client' },
  SIGNER_UNKNOWN: { http: 422, retry: 'never', audience: 'client' },
  TOO_MANY_REQUESTS: { http: 429, retry: 'later', audience: 'client' },
  INTERNAL: { http: 500, retry: 'never', audience: 'operator' },
  CHUNK_MISSING: { http: 500, retry: 'never', audience: 'operator' },
  CHUNK_CORRUPT: { http: 500, retry: 'never', audience: 'operator' },
  OBJECT_TOO_SHORT: { http: 500, retry: 'never', audience: 'operator' },
  PACK_CORRUPT: { http: 500, retry: 'never', audience: 'operator' },
  SNAPSHOT_CORRUPT: { http: 500, retry: 'never', audience: 'operator' },
  REPOSITORY_CORRUPT: { http: 500, retry: 'never', audience: 'operator' },
  INDEX_CORRUPT: { http: 500, retry: 'never', audience: 'operator' },
  PEER_REFUSED: { http: 502, retry: 'never', audience: 'client' },
  SERVER_BUSY: { http: 503, retry: 'later', audience: 'client' },
  SERVER_DRAINING: { http: 503, retry: 'later', audience: 'client' },
  NOT_YET_DURABLE: { http: 503, retry: 'later', audience: 'client' },
  STORE_UNAVAILABLE: { http: 503, retry: 'later', audience: 'operator' },
  STORE_REFUSED: { http: 503, retry: 'later', audience: 'operator' },
  SPOOL_FULL: { http: 503, retry: 'later', audience: 'client' },
  PEER_UNAVAILABLE: { http: 503, retry: 'later', audience: 'client' },
} as const satisfies Record<string, ErrorTraits>

export type ErrorCode = keyof typeof ERROR_CATALOGUE
/** Small, JSON-safe, free of secrets: it goes to the client. */
export type ErrorDetails = Readonly<Record<string, string | number | boolean | readonly string[]>>

export class RoostError extends Error {
  override readonly name = 'RoostError'
  constructor(readonly code: ErrorCode, message: string, readonly details: ErrorDetails = {}, options?: ErrorOptions) {
    super(message, options)
  }
  get traits(): ErrorTraits { return ERROR_CATALOGUE[this.code] }
}

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === 'string' && Object.hasOwn(ERROR_CATALOGUE, value)
}
export function hasCode(error: unknown, code: ErrorCode): error is RoostError {
  return error instanceof RoostError && error.code === code
}
/** True for the errno exceptions of node:fs and node:net, optionally of one code. */
export function isErrno(error: unknown, code?: string): error is NodeJS.ErrnoException {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).code === 'string' &&
    (code === undefined || (error as NodeJS.ErrnoException).code === code)
}
export function isAbort(error: unknown): boolean {
  return error instanceof Error && (error.name === 'AbortError' || error.name === 'TimeoutError')
}
/** One line for logs: the chain of causes, messages only. */
export function describeCause(error: unknown): string {
  const parts: string[] = []
  for (let at: unknown = error, depth = 0; at !== undefined && at !== null && depth < 6; depth++) {
    if (!(at instanceof Error)) { parts.push('non-error value thrown'); break }
    parts.push(at instanceof RoostError ? `${at.code}: ${at.message}` : at.message)
    at = at.cause
  }
  return parts.join(' ← ')
}
