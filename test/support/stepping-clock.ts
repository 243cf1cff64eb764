/** A wall clock and a stopwatch that tests move apart: `run` moves both, `jump` the wall clock alone. Sleeps never end by themselves. */
import type { Clock } from '../../src/core/clock.js'

export class SteppingClock implements Clock {
  #wallMs: number
  #stopwatchMs = 5_000
  constructor(startMs: number) { this.#wallMs = startMs }
  now(): number { return this.#wallMs }
  monotonicMs(): number { return this.#stopwatchMs }
  sleep(_ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((_resolve, reject) => {
      if (signal?.aborted === true) reject(signal.reason as Error)
      signal?.addEventListener('abort', () => { reject(signal.reason as Error) }, { once: true })
    })
  }
  run(ms: number): void { this.#wallMs += ms; this.#stopwatchMs += ms }
  jump(ms: number): void { this.#wallMs += ms }
}
