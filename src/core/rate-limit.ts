/** A token bucket: at most `bytesPerSecond` on average, bursts of at most a quarter of a second. */
import type { Clock } from './clock.js'

export interface RateLimiter {
  readonly bytesPerSecond: number
  /** Largest piece that flows at an even pace; callers cut their writes to it. */
  readonly pieceBytes: number
  /** Resolves when `bytes` may be sent. Callers are served in order. Rejects with `signal.reason`. */
  take(bytes: number, signal?: AbortSignal): Promise<void>
}

export function rateLimiter(bytesPerSecond: number, clock: Clock): RateLimiter {
  const burstBytes = Math.max(1, Math.floor(bytesPerSecond / 4))
  const pieceBytes = Math.max(1, Math.min(64 * 1024, burstBytes))
  /** The moment at which the bucket is full again; each taking moves it on. */
  let fullAtMs = -Infinity
  return {
    bytesPerSecond,
    pieceBytes,
    async take(bytes, signal) {
      signal?.throwIfAborted()
      const nowMs = clock.monotonicMs()
      const fillMs = bytes / bytesPerSecond * 1000
      fullAtMs = Math.max(fullAtMs, nowMs) + fillMs
      const waitMs = fullAtMs - nowMs - burstBytes / bytesPerSecond * 1000
      if (waitMs > 0) await clock.sleep(waitMs, signal)
    },
  }
}
