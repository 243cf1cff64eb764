/** Events of maintenance that a test lets happen one by one. */
import type { MaintenanceEvent } from '../../src/core/messages.js'

export const DONE: MaintenanceEvent = { type: 'done', problems: 0, counts: {} }
export const progress = (done: number, total = 10): MaintenanceEvent => ({ type: 'progress', phase: 'packs', done, total })

export class SteppedEvents {
  readonly #queue: (MaintenanceEvent | Error)[] = []
  #wake: (() => void)[] = []
  /** Signals of the runs that began. */
  readonly signals: AbortSignal[] = []
  /** Put in the place of `FakeRepository.events`. Every run takes what the test gives; an abort ends it. */
  readonly source = (signal: AbortSignal): AsyncIterable<MaintenanceEvent> => {
    this.signals.push(signal)
    return this.#take(signal)
  }
  give(...events: readonly (MaintenanceEvent | Error)[]): void {
    this.#queue.push(...events)
    for (const wake of this.#wake.splice(0)) wake()
  }
  /** How many nobody has taken yet. */
  get left(): number { return this.#queue.length }
  async *#take(signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
    for (;;) {
      signal.throwIfAborted()
      const next = this.#queue.shift()
      if (next instanceof Error) throw next
      if (next !== undefined) {
        yield next
        if (next.type === 'done') return
        continue
      }
      await new Promise<void>((resolve) => {
        this.#wake.push(resolve)
        signal.addEventListener('abort', () => { resolve() }, { once: true })
      })
    }
  }
}
export const settle = async (): Promise<void> => { for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => { setImmediate(resolve) }) }
