/** Places for streamed reads: each holds blocks in memory while its client takes them, so their number is bounded. */
import type { ServerResponse } from 'node:http'
import type { Clock } from '../core/clock.js'
import type { Semaphore } from '../core/concurrency.js'
import { RoostError } from '../core/errors.js'

export const READERS_MAX = 16
const WAITERS_MAX = 64
const WAIT_MS = 5_000

export interface ReaderRequest { readonly clock: Clock; readonly signal: AbortSignal; readonly response: ServerResponse }

/** Takes a place until the response is closed, however it ends.
 *  @throws {RoostError} SERVER_BUSY. Rejects with `signal.reason` when aborted. */
export async function holdReader(readers: Semaphore, request: ReaderRequest): Promise<void> {
  if (readers.waiting >= WAITERS_MAX) throw busy()
  const waiting = new AbortController(), patience = new AbortController()
  const giveUp = (): void => { waiting.abort(request.signal.reason) }
  request.signal.addEventListener('abort', giveUp, { once: true })
  request.clock.sleep(WAIT_MS, patience.signal).then(() => { waiting.abort(busy()) }, () => undefined) // rejected = it got its place
  try {
    await readers.acquire(1, waiting.signal)
  } finally {
    patience.abort()
    request.signal.removeEventListener('abort', giveUp)
  }
  if (request.signal.aborted) {
    readers.release()
    throw request.signal.reason as Error
  }
  request.response.once('close', () => { readers.release() })
}
const busy = (): RoostError => new RoostError('SERVER_BUSY', 'Too many reads are running; try again shortly.')
