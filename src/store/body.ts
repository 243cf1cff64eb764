/** Reads a put's body with its promised length proven, its failures named and its abort prompt: the same for every target. */
import { RoostError } from '../core/errors.js'
import { asBuffer } from '../core/bytes.js'
import type { ObjectKey, ReplayableBody } from './object-store.js'

/** Yields the body's bytes in order; ends only when exactly `body.bytes` have come. The stream is destroyed in any case.
 *
 *  @throws {RoostError} STORE_REFUSED when the body is short, long or fails by itself; its own RoostError untouched;
 *  `signal.reason` when aborted.
 */
export async function* readBody(key: ObjectKey, body: ReplayableBody, signal?: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
  signal?.throwIfAborted()
  let stream
  try { stream = body.open() } catch (error) { throw bodyFailure(key, error, signal) }
  const onAbort = (): void => { stream.destroy(signal!.reason as Error) }
  signal?.addEventListener('abort', onAbort, { once: true })
  let received = 0
  try {
    const parts = stream[Symbol.asyncIterator]()
    for (;;) {
      let next: IteratorResult<Uint8Array>
      try { next = await parts.next() as IteratorResult<Uint8Array> } catch (error) { throw bodyFailure(key, error, signal) }
      signal?.throwIfAborted()
      if (next.done === true) break
      received += next.value.byteLength
      if (received > body.bytes) throw wrongLength(key, body.bytes, `went on past ${body.bytes} bytes`)
      yield asBuffer(next.value)
    }
    if (received !== body.bytes) throw wrongLength(key, body.bytes, `ended after ${received} of ${body.bytes} bytes`)
  } finally {
    signal?.removeEventListener('abort', onAbort)
    stream.on('error', () => undefined) // already thrown above, or nobody wants it: the call has settled
    stream.destroy()
  }
}

function wrongLength(key: ObjectKey, bytes: number, problem: string): RoostError {
  return new RoostError('STORE_REFUSED', `The body of ${key} ${problem}; nothing was stored.`, { key, bytes })
}
function bodyFailure(key: ObjectKey, error: unknown, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted === true) return signal.reason
  if (error instanceof RoostError) return error
  return new RoostError('STORE_REFUSED', `The body of ${key} could not be read; nothing was stored.`, { key }, { cause: error })
}
