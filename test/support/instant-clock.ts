/** A clock whose sleeps end at once and move its time on: back-off and rate limits without waiting. */
import type { Clock } from '../../src/core/clock.js'
import type { Random } from '../../src/core/random.js'

export interface InstantClock extends Clock { readonly sleeps: number[] }
/** `longestSleepMs`: sleeps beyond it last until aborted (idle timers that must not fire in a test). */
export function instantClock(longestSleepMs = Infinity): InstantClock {
  let ms = 1_000_000
  const sleeps: number[] = []
  return {
    sleeps,
    now: () => ms,
    monotonicMs: () => ms,
    sleep: async (forMs, signal) => {
      signal?.throwIfAborted()
      if (forMs > longestSleepMs) {
        await new Promise((_resolve, reject) => {
          signal?.addEventListener('abort', () => { reject(signal.reason as Error) }, { once: true })
        })
      }
      sleeps.push(forMs)
      ms += forMs
    },
  }
}
/** No jitter: fractions are always a half. */
export const evenRandom: Random = { bytes: (count) => Buffer.alloc(count, 1), fraction: () => 0.5 }
