/** Request bodies as octets: the declared length is required, bounded, and held to; a body must make progress.
 *
 *  The framework enforces none of this for streams. Each network buffer is copied once, into memory that the body
 *  owns; nothing is concatenated.
 */
import type { Readable } from 'node:stream'
import type { Clock } from '../core/clock.js'
import { RoostError } from '../core/errors.js'
import { KiB } from '../core/limits.js'
import type { IncomingHttpHeaders } from 'node:http'

/** A body slower than this holds memory that others could use. Under pressure (others wait) the bar is higher, so that a
 *  handful of trickling bodies cannot keep everyone out. */
export const PACE = Object.freeze({
  windowMs: 5_000,
  /** Windows over which an unpressed body is judged: also how long it may stand still. */
  windows: 6,
  bytesPerSecondMin: 4 * KiB,
  bytesPerSecondMinPressed: 128 * KiB,
})

export interface Watch { readonly clock: Clock; readonly isPressed: () => boolean; readonly signal: AbortSignal }

/** Why a watch ends. One for all: making an exception for each body costs more than the watch. */
const SETTLED = new Error('the body settled')

/** The declared length. @throws {RoostError} LENGTH_REQUIRED; BODY_TOO_LARGE; MEDIA_TYPE_UNSUPPORTED for encoded bodies */
export function requireContentLength(headers: IncomingHttpHeaders, bytesMax: number): number {
  const declared = headers['content-length']
  if (headers['transfer-encoding'] !== undefined || declared === undefined || !/^\d{1,15}$/.test(declared))
    throw new RoostError('LENGTH_REQUIRED', 'A body needs a Content-Length.')
  if (headers['content-encoding'] !== undefined)
    throw new RoostError('MEDIA_TYPE_UNSUPPORTED', 'Bodies are sent without a Content-Encoding.')
  const bytes = Number(declared)
  if (bytes > bytesMax) throw new RoostError('BODY_TOO_LARGE', `This body may have ${bytesMax} bytes.`, { limit: bytesMax })
  return bytes
}

/** Fills `target` with exactly the body. On failure the source is left unread from there on.
 *  @throws {RoostError} BODY_TRUNCATED; REQUEST_TIMEOUT. Rejects with `signal.reason` when aborted. */
export function receiveBody(source: Readable, target: Uint8Array, watch: Watch): Promise<void> {
  const bytes = target.byteLength
  const { signal } = watch
  return new Promise((resolve, reject) => {
    let received = 0
    const watching = new AbortController()
    const settle = (error?: unknown): void => {
      watching.abort(SETTLED)
      source.off('data', onData).off('end', onEnd).off('close', onCut).off('error', onCut)
      signal.removeEventListener('abort', onAbort)
      // Without a listener a late 'error' (the peer resets) would be fatal to the process.
      source.on('error', () => undefined)
      if (error === undefined) resolve()
      else { source.pause(); reject(error) }
    }
    const onData = (part: Buffer): void => {
      if (part.byteLength > bytes - received) {
        settle(new RoostError('REQUEST_MALFORMED', 'The body is longer than its Content-Length.'))
        return
      }
      target.set(part, received)
      received += part.byteLength
    }
    const onEnd = (): void => { settle(received === bytes ? undefined : truncated(received, bytes)) }
    const onCut = (cause?: unknown): void => { settle(truncated(received, bytes, cause)) }
    const onAbort = (): void => { settle(signal.reason) }
    if (signal.aborted) { onAbort(); return }
    signal.addEventListener('abort', onAbort, { once: true })
    source.on('data', onData).on('end', onEnd).on('close', onCut).on('error', onCut)
    watchPace(() => received, watch, watching.signal).then(settle, () => undefined) // rejected = the body settled first
  })
}

/** Resolves with REQUEST_TIMEOUT when the body is too slow; rejects when `settled` aborts. */
async function watchPace(received: () => number, watch: Watch, settled: AbortSignal): Promise<RoostError> {
  const { windowMs, windows, bytesPerSecondMin, bytesPerSecondMinPressed } = PACE
  const recent: number[] = []
  for (let before = 0; ;) {
    await watch.clock.sleep(windowMs, settled)
    const now = received()
    recent.push(now - before)
    before = now
    if (recent.length > windows) recent.shift()
    const pressed = watch.isPressed() && recent.at(-1)! < bytesPerSecondMinPressed * windowMs / 1000
    const slow = recent.length === windows && recent.reduce((sum, n) => sum + n) < bytesPerSecondMin * windows * windowMs / 1000
    if (pressed || slow) return new RoostError('REQUEST_TIMEOUT', 'The body arrived too slowly.', { receivedBytes: now })
  }
}
function truncated(received: number, expected: number, cause?: unknown): RoostError {
  const options = cause === undefined ? undefined : { cause }
  return new RoostError('BODY_TRUNCATED', `The body ended after ${received} of ${expected} bytes.`, { received, expected }, options)
}
