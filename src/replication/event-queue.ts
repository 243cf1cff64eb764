/** Events of work that goes on beside whoever tells them. Bounded by the number of snapshots of a run: an event each, and the latest progress. */
export class EventQueue<T extends { readonly type: string }> {
  readonly #events: T[] = []
  #wake: () => void = () => undefined

  push(event: T): void {
    this.#events.push(event)
    this.#wake()
  }
  /** Takes the place of a last event of its type that nobody has taken yet. */
  replace(event: T): void {
    if (this.#events.at(-1)?.type === event.type) this.#events.pop()
    this.push(event)
  }
  /** Until the work has ended and everything was told. @throws what the work throws */
  async *whileRunning(work: Promise<void>): AsyncGenerator<T, void, undefined> {
    let isOver = false
    const ended = work.finally(() => { isOver = true; this.#wake() })
    ended.catch(() => undefined) // awaited below
    try {
      for (;;) {
        const event = this.#events.shift()
        if (event !== undefined) yield event
        else if (isOver) break
        else await new Promise<void>((resolve) => { this.#wake = resolve })
      }
    } finally {
      // Whoever stops listening has ended the work by its signal.
      await ended.catch(() => undefined)
    }
    await ended
  }
}
