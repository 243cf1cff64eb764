/** Time enters the program here and nowhere else, so that tests own it. No safety argument rests on it. */
import { setTimeout as delay } from 'node:timers/promises'

export interface Clock {
  /** Wall time, ms since 1970. */
  now(): number
  /** Milliseconds that never run backwards. */
  monotonicMs(): number
  /** Rejects with `signal.reason` when aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonicMs: () => performance.now(),
  sleep: async (ms, signal) => {
    try {
      await delay(ms, undefined, signal === undefined ? {} : { signal })
    } catch (error) {
      if (signal?.aborted === true) throw signal.reason
      throw error
    }
  },
}

/** For interfaces that want a Date. */
export const dateOf = (ms: number): Date => new Date(ms)
