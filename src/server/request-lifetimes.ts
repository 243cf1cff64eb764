/** Requests in flight: each has a signal that aborts when its client goes away or the server stops waiting for it. */
import type { ServerResponse } from 'node:http'

export class RequestLifetimes {
  readonly #live = new Set<AbortController>()
  #idleWaiters: (() => void)[] = []
  get count(): number { return this.#live.size }

  /** Counts the request until its response is closed. */
  begin(response: ServerResponse): AbortSignal {
    const lifetime = new AbortController()
    this.#live.add(lifetime)
    response.once('close', () => {
      this.#live.delete(lifetime)
      if (!response.writableFinished) lifetime.abort(new DOMException('The client went away.', 'AbortError'))
      if (this.#live.size === 0) this.#wakeIdle()
    })
    return lifetime.signal
  }
  /** Resolves when no request is in flight. */
  async idle(): Promise<void> {
    if (this.#live.size === 0) return
    await new Promise<void>((resolve) => { this.#idleWaiters.push(resolve) })
  }
  abortAll(reason: Error): void {
    for (const lifetime of this.#live) lifetime.abort(reason)
  }
  #wakeIdle(): void {
    const waiters = this.#idleWaiters
    this.#idleWaiters = []
    for (const wake of waiters) wake()
  }
}
