/** Whether chunk bodies are worth compressing for the way. The server compresses for storage anyway, so on a fast link zstd
 *  here only burns the host's CPU; on a slow one it more than halves the time.
 *
 *  `auto` measures plaintext throughput: raw first; if that is slower than zstd can produce, zstd for a while; then the faster
 *  stays. The clock stops when a body is on its way: the server's work is no reason to burn this host's.
 */
import { WIRE_CODECS, type WireCodec } from '../../src/core/frames.js'
import { MiB } from '../../src/core/limits.js'

export type WireMode = 'raw' | 'zstd' | 'auto'

/** A gigabit link: faster, compression gains little that is worth the host's CPU. */
const RAW_ENOUGH_BYTES_PER_SECOND = 100 * MiB
/** So slow that no trial is needed. */
const SURELY_SLOW_BYTES_PER_SECOND = 20 * MiB
const TRIAL_BYTES = 32 * MiB
const TRIAL_MS = 1_000
/** zstd must win by this much, for it costs CPU. */
const GAIN_MIN = 1.15

export class WireChoice {
  #phase: 'decided' | 'raw-trial' | 'zstd-trial'
  #codec: WireCodec
  #bodiesInFlight = 0
  #busySinceMs = 0
  #busyMs = 0
  #bytes = 0
  #rawRate = 0
  /** `limitBytesPerSecond`: what --limit-upload allows, if anything. */
  constructor(mode: WireMode, isZstdAccepted: boolean, limitBytesPerSecond?: number) {
    const isSlow = limitBytesPerSecond !== undefined && limitBytesPerSecond < RAW_ENOUGH_BYTES_PER_SECOND
    this.#codec = isZstdAccepted && (mode === 'zstd' || (mode === 'auto' && isSlow)) ? WIRE_CODECS.zstd : WIRE_CODECS.raw
    this.#phase = isZstdAccepted && mode === 'auto' && !isSlow ? 'raw-trial' : 'decided'
  }
  get codec(): WireCodec { return this.#codec }

  /** A body is being made and sent. */
  begin(nowMs: number): void {
    if (this.#bodiesInFlight++ === 0) this.#busySinceMs = nowMs
  }
  /** It is on its way (or failed: 0 bytes). */
  end(plaintextBytes: number, nowMs: number): void {
    this.#busyMs += nowMs - this.#busySinceMs
    this.#busySinceMs = nowMs
    this.#bodiesInFlight--
    this.#bytes += plaintextBytes
    if (this.#phase === 'decided' || this.#busyMs <= 0 || (this.#bytes < TRIAL_BYTES && this.#busyMs < TRIAL_MS)) return
    const rate = this.#bytes / this.#busyMs * 1000
    this.#busyMs = 0
    this.#bytes = 0
    if (this.#phase === 'raw-trial') this.#judgeRaw(rate)
    else this.#decide(rate > this.#rawRate * GAIN_MIN ? WIRE_CODECS.zstd : WIRE_CODECS.raw)
  }
  #judgeRaw(rate: number): void {
    if (rate >= RAW_ENOUGH_BYTES_PER_SECOND) return this.#decide(WIRE_CODECS.raw)
    if (rate < SURELY_SLOW_BYTES_PER_SECOND) return this.#decide(WIRE_CODECS.zstd)
    this.#rawRate = rate
    this.#codec = WIRE_CODECS.zstd
    this.#phase = 'zstd-trial'
  }
  #decide(codec: WireCodec): void {
    this.#codec = codec
    this.#phase = 'decided'
  }
}
