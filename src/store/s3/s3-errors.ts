/** What S3's errors mean: one sentence and a code for each, with the request id that its operators search their logs by. */
import { isErrno, RoostError } from '../../core/errors.js'
import { describe } from '../../http/http.js'

/** What the SDK throws: an Error named by the service's code. */
interface ServiceError extends Error {
  readonly $metadata?: { readonly httpStatusCode?: number; readonly requestId?: string }
  readonly $response?: { readonly statusCode?: number; readonly headers?: Readonly<Record<string, string | undefined>> }
  readonly Region?: string
}
/** An answer in HTML: no S3 service sends one for what was asked. */
export class WebPage extends Error {
  override readonly name = 'WebPage'
  constructor(readonly status: number) { super(`a web page with status ${status}`) }
}
export const nameOf = (error: unknown): string => error instanceof Error ? error.name : ''
export function statusOf(error: unknown): number | undefined {
  const { $metadata, $response } = (error ?? {}) as Partial<ServiceError>
  return $metadata?.httpStatusCode ?? $response?.statusCode
}
/** Other credentials may have been put in place meanwhile. */
export const isCredentialFailure = (error: unknown): boolean =>
  /^(InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|TokenRefreshRequired|AccessDenied)/.test(nameOf(error)) || statusOf(error) === 401

const REFUSALS: Readonly<Record<string, string>> = {
  NoSuchBucket: 'the bucket is missing; create it, or correct its name',
  InvalidBucketName: 'the bucket\'s name is not allowed there; correct it',
  InvalidAccessKeyId: 'it does not know the access key; correct the credentials',
  SignatureDoesNotMatch: 'the secret key does not belong to the access key, or the endpoint or region is not the one signed for; correct them',
  ExpiredToken: 'the credentials have expired; renew them',
  InvalidToken: 'the session token is not valid; renew the credentials',
  RequestTimeTooSkewed: 'this machine\'s clock and the service\'s differ too much; set the clock',
  RequestExpired: 'this machine\'s clock and the service\'s differ too much; set the clock',
  AccessDenied: 'these credentials may not do it; grant them reading, writing, listing and deleting in the bucket',
  QuotaExceeded: 'a quota is reached; raise it or delete something',
  EntityTooLarge: 'the object is larger than the service takes',
  NotImplemented: 'the service does not do that',
  BucketAlreadyExists: 'the bucket belongs to somebody else; choose another name',
  ObjectLockConfigurationNotFoundError: 'the bucket has no object lock; use a bucket made with one, or leave out object-lock',
}
const ELSEWHERE = /^(PermanentRedirect|TemporaryRedirect|Redirect|AuthorizationHeaderMalformed|IllegalLocationConstraintException)$/
const PASSING = new Set(['SlowDown', 'RequestTimeout', 'ServiceUnavailable', 'InternalError', 'OperationAborted', 'ConditionalRequestConflict',
  'TooManyRequests', 'Throttling', 'ThrottlingException', 'BadDigest', 'XAmzContentSHA256Mismatch', 'InvalidDigest'])
const NO_CREDENTIALS = /^(CredentialsProviderError|TokenProviderError|ProviderError)$/

/** `what` names what was asked: "upload of packs/ab/…". Passes on what is a RoostError already. */
export function s3Error(place: string, what: string, error: unknown): RoostError {
  if (error instanceof RoostError) return error
  if (error instanceof WebPage) return webPage(place, what, error)
  const name = nameOf(error), status = statusOf(error)
  if (NO_CREDENTIALS.test(name)) return new RoostError('STORE_REFUSED',
    `There are no credentials for ${place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, or give credentials-file.`, {}, { cause: error })
  if (status === undefined) return withoutAnswer(place, what, error)
  const headers = (error as ServiceError).$response?.headers ?? {}
  const requestId = (error as ServiceError).$metadata?.requestId ?? headers['x-amz-request-id']
  const details = { status, ...(requestId !== undefined && { requestId }) }
  const trace = [`${status}`, ...(name === '' || name === 'Error' ? [] : [name]), ...(requestId === undefined ? [] : [`request ${requestId}`])].join(', ')
  const refused = (why: string): RoostError => new RoostError('STORE_REFUSED', `${place} refused the ${what} (${trace}): ${why}.`, details, { cause: error })

  if (ELSEWHERE.test(name) || (status >= 300 && status < 400)) {
    const region = headers['x-amz-bucket-region'] ?? (error as ServiceError).Region
    return refused(region === undefined ? 'the bucket is in another region or at another endpoint; correct region or endpoint'
      : `the bucket is in the region ${region}; give region=${region}`)
  }
  const known = Object.hasOwn(REFUSALS, name) ? REFUSALS[name] : undefined
  if (known !== undefined) return refused(known)
  if (name === 'InvalidRequest' && /object ?lock/i.test((error as Error).message)) return refused(REFUSALS['ObjectLockConfigurationNotFoundError']!)
  if (PASSING.has(name) || status === 408 || status === 409 || status === 429 || (status >= 500 && status !== 501 && status !== 505)) {
    const seconds = Number(headers['retry-after'] ?? NaN)
    const why = name === 'SlowDown' || status === 429 ? 'it limits the rate of requests'
      : /Digest|Mismatch/.test(name) ? 'the bytes were altered on their way' : 'a part of the service may be down'
    return new RoostError('STORE_UNAVAILABLE', `${place} did not do the ${what} (${trace}): ${why}.`,
      { ...details, ...(seconds >= 0 && { retryAfterMs: seconds * 1000 }) }, { cause: error })
  }
  if (status === 401 || status === 403) return refused(REFUSALS['AccessDenied']!)
  if (status === 501) return refused(REFUSALS['NotImplemented']!)
  if (status < 300) return notS3(place, what, error)
  return refused('the request does not suit this service; is it S3?')
}
function withoutAnswer(place: string, what: string, error: unknown): RoostError {
  if (error instanceof Error && /region is missing/i.test(error.message))
    return new RoostError('STORE_REFUSED', `${place}: no region is known; give region=, or set AWS_REGION.`, {}, { cause: error })
  if (isOfNetwork(error)) return new RoostError('STORE_UNAVAILABLE', `${place} did not do the ${what}: the service ${isTimeout(error) ? 'did not answer in time' : describe(error)}.`,
    {}, { cause: error })
  return notS3(place, what, error)
}
export function notS3(place: string, what: string, cause?: unknown): RoostError {
  return new RoostError('STORE_REFUSED', `${place}: what answers the ${what} there does not speak S3; correct the endpoint, or remove the proxy in between.`,
    {}, { cause })
}
function webPage(place: string, what: string, error: WebPage): RoostError {
  const { status } = error
  if (status >= 500 || status === 429) return new RoostError('STORE_UNAVAILABLE',
    `${place} did not do the ${what}: a proxy in front of it answers ${status}.`, { status }, { cause: error })
  return new RoostError('STORE_REFUSED',
    `${place} answers the ${what} with a web page (${status}) and not as S3 does; correct the endpoint, or remove the proxy or login page in between.`,
    { status }, { cause: error })
}
const isTimeout = (error: unknown): boolean => nameOf(error) === 'TimeoutError' && !isErrno(error)
/** The SDK wraps what sockets report, and names its own deadlines TimeoutError. */
function isOfNetwork(error: unknown): boolean {
  for (let at = error, depth = 0; at instanceof Error && depth < 4; at = at.cause, depth++)
    if (isErrno(at) || at.name === 'TimeoutError' || at.name === 'NetworkingError' || /socket hang up|aborted/i.test(at.message)) return true
  return false
}
