/** A manual clock whose wall time can be set, as operators and NTP do, while the monotonic one runs on. */
import type { Clock } from '../../src/core/clock.js'
import { ManualClock } from './manual-clock.js'

export class JumpingClock implements Clock {
  readonly manual: ManualClock
  #offsetMs = 0
  constructor(startMs: number) { this.manual = new ManualClock(startMs) }
  now(): number { return this.manual.now() + this.#offsetMs }
  monotonicMs(): number { return this.manual.monotonicMs() }
  sleep(ms: number, signal?: AbortSignal): Promise<void> { return this.manual.sleep(ms, signal) }
  jump(ms: number): void { this.#offsetMs += ms }
  advance(ms: number): Promise<void> { return this.manual.advance(ms) }
}
