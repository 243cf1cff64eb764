/** Memory for request bodies: each in an ArrayBuffer of its own, because a body is transferred to a worker thread.
 *
 *  Never slices of Node's shared pool: transferring one would detach its neighbours. Large bodies all get a full-size
 *  buffer, of which a few are kept: fresh pages cost more than the copy into them.
 */
import { LIMITS } from '../core/limits.js'

/** From here on a body gets a full-size buffer; below, reuse would waste more than it saves. */
const REUSED_FROM_BYTES = LIMITS.bodyBytesMax / 2
const KEPT_MAX = 4

export class BodyBuffers {
  readonly #kept: ArrayBuffer[] = []
  get kept(): number { return this.#kept.length }

  /** What `take(bytes)` really occupies: the number to reserve. */
  capacityFor(bytes: number): number {
    return bytes >= REUSED_FROM_BYTES ? Math.max(bytes, LIMITS.bodyBytesMax) : bytes
  }
  /** At least `bytes` long; its content is arbitrary. The taker owns it. */
  take(bytes: number): ArrayBuffer {
    if (bytes < REUSED_FROM_BYTES || bytes > LIMITS.bodyBytesMax) return new ArrayBuffer(bytes)
    return this.#kept.pop() ?? new ArrayBuffer(LIMITS.bodyBytesMax)
  }
  /** Takes a buffer back. Ones that were transferred away (length 0) or are of another length are let go. */
  giveBack(buffer: ArrayBuffer): void {
    if (buffer.byteLength === LIMITS.bodyBytesMax && this.#kept.length < KEPT_MAX) this.#kept.push(buffer)
  }
}
