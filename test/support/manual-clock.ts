/** A clock that only tests move: `advance` wakes sleepers in the order of their deadlines. */
import type { Clock } from '../../src/core/clock.js'

interface Sleeper { readonly wakeAtMs: number; readonly wake: () => void }

export class ManualClock implements Clock {
  #nowMs: number
  readonly #sleepers = new Set<Sleeper>()
  readonly #watchers = new Set<() => void>()
  constructor(startMs = 1_700_000_000_000) { this.#nowMs = startMs }
  get sleeping(): number { return this.#sleepers.size }
  now(): number { return this.#nowMs }
  monotonicMs(): number { return this.#nowMs }
  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) { reject(signal.reason as Error); return }
      const onAbort = (): void => { this.#sleepers.delete(sleeper); this.#changed(); reject(signal!.reason as Error) }
      const sleeper: Sleeper = {
        wakeAtMs: this.#nowMs + ms,
        wake: () => { this.#sleepers.delete(sleeper); signal?.removeEventListener('abort', onAbort); resolve() },
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      this.#sleepers.add(sleeper)
      this.#changed()
    })
  }
  /** Resolves once someone sleeps whose deadline is `ms` away or less. */
  async someoneSleeps(ms: number): Promise<void> {
    while (![...this.#sleepers].some((sleeper) => sleeper.wakeAtMs - this.#nowMs <= ms))
      await new Promise<void>((resolve) => { this.#watchers.add(resolve) })
  }
  /** Moves time on, and lets what it woke run. */
  async advance(ms: number): Promise<void> {
    const until = this.#nowMs + ms
    for (;;) {
      const next = [...this.#sleepers].filter((sleeper) => sleeper.wakeAtMs <= until).sort((a, b) => a.wakeAtMs - b.wakeAtMs)[0]
      if (next === undefined) break
      this.#nowMs = next.wakeAtMs
      next.wake()
      await new Promise<void>((resolve) => { setImmediate(resolve) })
    }
    this.#nowMs = until
  }
  #changed(): void {
    for (const wake of this.#watchers) wake()
    this.#watchers.clear()
  }
}
