/** Bounded concurrency: a byte/slot semaphore, a bounded map, single flight. Every wait can be aborted. */
import { assert } from './assert.js'

/** Counts units (slots or bytes). Waiters are served first come, first served, so a large one cannot starve. */
export class Semaphore {
  #free: number
  readonly #waiters: { units: number; wake: () => void }[] = []
  constructor(readonly capacity: number) { this.#free = capacity }
  get free(): number { return this.#free }
  get waiting(): number { return this.#waiters.length }
  tryAcquire(units = 1): boolean {
    assert(units <= this.capacity, 'one request fits the semaphore')
    if (this.#waiters.length > 0 || units > this.#free) return false
    this.#free -= units
    return true
  }
  /** Rejects with `signal.reason` if aborted while waiting. */
  async acquire(units = 1, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    if (this.tryAcquire(units)) return
    await new Promise<void>((resolve, reject) => {
      const waiter = { units, wake: () => { signal?.removeEventListener('abort', onAbort); resolve() } }
      const onAbort = (): void => {
        const at = this.#waiters.indexOf(waiter)
        if (at < 0) return
        this.#waiters.splice(at, 1)
        this.#serve()
        reject(signal!.reason as Error)
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      this.#waiters.push(waiter)
    })
  }
  release(units = 1): void {
    this.#free += units
    assert(this.#free <= this.capacity, 'nothing is released twice')
    this.#serve()
  }
  #serve(): void {
    while (this.#waiters.length > 0 && this.#waiters[0]!.units <= this.#free) {
      const next = this.#waiters.shift()!
      this.#free -= next.units
      next.wake()
    }
  }
  async within<T>(units: number, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    await this.acquire(units, signal)
    try { return await work() } finally { this.release(units) }
  }
}

/** Runs `work` over items with at most `inFlightMax` at once; the first failure stops new starts and is thrown after
 *  the running ones settle. */
export async function forEachBounded<T>(items: Iterable<T> | AsyncIterable<T>, inFlightMax: number,
  work: (item: T) => Promise<void>): Promise<void> {
  const running = new Set<Promise<void>>()
  let failure: { error: unknown } | undefined
  for await (const item of items) {
    if (failure !== undefined) break
    const task: Promise<void> = work(item).catch((error: unknown) => { failure ??= { error } }).finally(() => running.delete(task))
    running.add(task)
    if (running.size >= inFlightMax) await Promise.race(running)
  }
  await Promise.all(running)
  if (failure !== undefined) throw failure.error
}

/** Runs tasks of one key one after another; those of different keys know nothing of each other. */
export class KeyedMutex<K> {
  readonly #tails = new Map<K, Promise<unknown>>()
  #refusal: (() => Error) | undefined
  run<T>(key: K, work: () => Promise<T>): Promise<T> {
    if (this.#refusal !== undefined) return Promise.reject(this.#refusal())
    const result = (this.#tails.get(key) ?? Promise.resolve()).then(work)
    const tail = result.catch(() => undefined).then(() => { if (this.#tails.get(key) === tail) this.#tails.delete(key) })
    this.#tails.set(key, tail)
    return result
  }
  /** Resolves when nothing runs. What comes later is refused. */
  async close(refuse: () => Error): Promise<void> {
    this.#refusal = refuse
    await Promise.all(this.#tails.values())
  }
}
/** Runs tasks one after another. */
export class Mutex {
  #tail: Promise<unknown> = Promise.resolve()
  run<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(work, work)
    this.#tail = result.catch(() => undefined) // the caller holds `result` and sees the failure there
    return result
  }
}

/** What `work` comes to, or `signal.reason` as soon as it aborts: the work goes on, unheard. */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  let abort = (): void => undefined
  const aborted = new Promise<never>((_resolve, reject) => {
    abort = () => { reject(signal.reason as Error) }
    if (signal.aborted) abort()
    else signal.addEventListener('abort', abort, { once: true })
  })
  try {
    return await Promise.race([aborted, work])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}
