/** What Swift's answers mean: one sentence and a code for each, with the transaction id that its operators search their logs by. */
import { RoostError } from '../../core/errors.js'
import { parseRetryAfter, type HttpAnswer } from '../../http/http.js'

/** Failure of a request that should have worked. `what` names it: "PUT of packs/ab/…". */
export function swiftError(place: string, what: string, { status, headers }: HttpAnswer): RoostError {
  const transactionId = headers['x-trans-id'] ?? headers['x-openstack-request-id']
  const details = { status, ...(transactionId === undefined ? {} : { transactionId }) }
  const trace = transactionId === undefined ? '' : `, X-Trans-Id ${transactionId}`
  const refused = (advice: string): RoostError => new RoostError('STORE_REFUSED', `${place} refused the ${what} (${status}${trace}): ${advice}.`, details)
  switch (status) {
    case 401: return new RoostError('STORE_UNAVAILABLE',
      `${place} rejects a token that was issued a moment ago (401${trace}): its proxy may not reach the identity service.`, details)
    case 403: return refused('these credentials may not do it; it takes a role that may write to the container')
    case 413: return refused('a quota of the account or container is reached, or the object is larger than the cluster takes')
    case 404: return refused('the container is missing; create it, or correct its name')
    case 405: case 501: return refused('this service does not do that; is it Swift?')
    case 400: case 411: case 412: case 422: return refused('the request does not suit this service; look at its log')
  }
  if (status === 408 || status === 409 || status === 429 || status === 498 || status === 499 || status >= 500) {
    const retryAfterMs = parseRetryAfter(headers['retry-after'], headers['date'])
    const why = status === 429 || status === 498 ? 'it limits the rate of requests' : status === 507 ? 'its disks are full' : 'a part of the cluster may be down'
    return new RoostError('STORE_UNAVAILABLE', `${place} did not do the ${what} (${status}${trace}): ${why}.`, { ...details, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) })
  }
  return refused(status >= 300 && status < 400 ? 'it redirects elsewhere; give the final address' : 'the answer is unexpected')
}

/** Something answered with success that does not speak Swift. */
export function notSwift(place: string, { status, headers }: HttpAnswer): RoostError {
  return new RoostError('STORE_REFUSED',
    `${place}: what answers there (${status}, ${headers['content-type'] ?? 'no type'}) is not Swift; a web proxy or a login page may be in between.`, { status })
}
