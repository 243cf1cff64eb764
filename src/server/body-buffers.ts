/** Memory for request bodies, shared with the threads that verify and seal them.
 *
 *  Shared, not transferred: V8 counts every transfer as fresh external memory and answers with a full collection each 20 MB or
 *  so. One owner at a time all the same: who was given a buffer leaves it alone until it is given back.
 *  Large bodies all get a full-size buffer, of which a few are kept: fresh pages cost more than the copy into them.
 */
import { LIMITS } from '../core/limits.js'

/** From here on a body gets a full-size buffer; below, reuse would waste more than it saves. */
const REUSED_FROM_BYTES = LIMITS.bodyBytesMax / 2
const KEPT_MAX = 4

export class BodyBuffers {
  readonly #kept: SharedArrayBuffer[] = []
  get kept(): number { return this.#kept.length }

  /** What `take(bytes)` really occupies: the number to reserve. */
  capacityFor(bytes: number): number {
    return bytes >= REUSED_FROM_BYTES ? Math.max(bytes, LIMITS.bodyBytesMax) : bytes
  }
  /** At least `bytes` long; its content is arbitrary. The taker owns it. */
  take(bytes: number): SharedArrayBuffer {
    if (bytes < REUSED_FROM_BYTES || bytes > LIMITS.bodyBytesMax) return new SharedArrayBuffer(bytes)
    return this.#kept.pop() ?? new SharedArrayBuffer(LIMITS.bodyBytesMax)
  }
  /** Takes a buffer back. Ones of another length are let go. */
  giveBack(buffer: SharedArrayBuffer): void {
    if (buffer.byteLength === LIMITS.bodyBytesMax && this.#kept.length < KEPT_MAX) this.#kept.push(buffer)
  }
}
