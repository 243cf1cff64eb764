/** A target in memory that fails as targets do: away, refusing, losing answers, breaking off, and, by damage, forgetting or rotting. */
import type { Readable } from 'node:stream'
import { RoostError } from '../../src/core/errors.js'
import { createMemoryStore, type MemoryStore } from '../../src/store/memory-store.js'
import type { Call, ObjectFacts, ObjectKey, ObjectStore } from '../../src/store/object-store.js'
import { tornStream } from './ports.js'
import type { Life, Scheduler } from './scheduler.js'

export interface FaultRates {
  /** A call fails and nothing happened. */
  readonly before: number
  /** It happened, and the answer is lost. */
  readonly lostAnswer: number
  /** A body, stream or listing breaks in the middle. */
  readonly torn: number
  /** A deletion is refused, as under a retention lock. */
  readonly refusedDelete: number
}
export const NO_FAULTS: FaultRates = { before: 0, lostAnswer: 0, torn: 0, refusedDelete: 0 }

const short = (key: string): string => key.replace(/([0-9a-f]{8})[0-9a-f]{24,56}/g, '$1')

export class SimulatedTarget {
  readonly memory: MemoryStore
  isDown = false
  rates: FaultRates = NO_FAULTS
  constructor(readonly name: string, objects: ReadonlyMap<ObjectKey, Buffer>, readonly scheduler: Scheduler, readonly fired: (fault: string) => void) {
    this.memory = createMemoryStore(`memory:${name}`)
    for (const [key, bytes] of objects) this.memory.objects.set(key, bytes)
  }
  #unavailable(): Error { return new RoostError('STORE_UNAVAILABLE', `The target ${this.name} failed as the simulation told it to.`) }

  /** As one process of the server sees it. */
  storeOf(life: Life): ObjectStore {
    const { memory, scheduler } = this
    const chance = (rate: number): boolean => rate > 0 && scheduler.random.chance(rate)
    const call = <T>(name: string, key: string, isWrite: boolean, options: Call | undefined, work: () => Promise<T>, tear?: () => Promise<T>): Promise<T> =>
      abortable(options?.signal, scheduler.call(life, this.name, `${name} ${short(key)}`, async () => {
        if (this.isDown) { this.fired('target away'); throw this.#unavailable() }
        if (chance(this.rates.before)) { this.fired('call failed'); throw this.#unavailable() }
        if (tear !== undefined && chance(this.rates.torn)) { this.fired(`torn ${name}`); return await tear() }
        const result = await work()
        if (isWrite && chance(this.rates.lostAnswer)) { this.fired(`lost answer of ${name}`); throw this.#unavailable() }
        return result
      }, { isWrite }))
    const remove = async (key: ObjectKey): Promise<void> => {
      if (chance(this.rates.refusedDelete)) {
        this.fired('refused delete')
        throw new RoostError('STORE_REFUSED', `${key} is locked, as the simulation says.`, { key })
      }
      await memory.delete(key)
    }
    const fail = (): Error => this.#unavailable()
    return {
      description: memory.description,
      put: (key, body, options) => call('put', key, true, options, () => memory.put(key, body, options), async () => {
        for await (const part of body.open()) void part // sent, and lost on the way
        throw fail()
      }),
      getRange: (key, range, options) => call('getRange', key, false, options, () => memory.getRange(key, range)),
      getRanges: (key, ranges, options) => call('getRanges', key, false, options, () => memory.getRanges(key, ranges)),
      get: (key, options) => call<Readable | undefined>('get', key, false, options, async () => quiet(await memory.get(key, options)), async () => {
        const bytes = memory.objects.get(key)
        return bytes === undefined ? undefined : tornStream(bytes, fail)
      }),
      head: (key, options) => call('head', key, false, options, () => memory.head(key)),
      list: (prefix, options) => this.#list(prefix, options, call),
      delete: (key, options) => call('delete', key, true, options, () => remove(key)),
      deleteMany: (keys, options) => call('deleteMany', keys[0] ?? '', true, options, async () => { for (const key of keys) await remove(key) }),
      close: async () => { /* the target outlives those who use it */ },
    }
  }
  async *#list(prefix: string, options: Call | undefined,
    call: (name: string, key: string, isWrite: boolean, options: Call | undefined, work: () => Promise<ObjectFacts[]>, tear: () => Promise<ObjectFacts[]>) => Promise<ObjectFacts[]>): AsyncGenerator<ObjectFacts> {
    let isTorn = false
    const all = async (): Promise<ObjectFacts[]> => {
      const facts: ObjectFacts[] = []
      for await (const one of this.memory.list(prefix)) facts.push(one)
      return facts
    }
    const entries = await call('list', prefix, false, options, all, async () => {
      isTorn = true
      const facts = await all()
      return facts.slice(0, facts.length >> 1)
    })
    yield* entries
    if (isTorn) throw this.#unavailable()
  }
}

/** Aborted while its answer waits at a gate, a stream has nobody yet who listens. */
const quiet = (stream: Readable | undefined): Readable | undefined => stream?.on('error', () => undefined)

/** The contract of a store: an aborted call settles at once, whatever becomes of it. */
function abortable<T>(signal: AbortSignal | undefined, running: Promise<T>): Promise<T> {
  if (signal === undefined) return running
  return new Promise<T>((resolve, reject) => {
    const onAbort = (): void => { reject(signal.reason as Error) }
    if (signal.aborted) { onAbort(); running.catch(() => undefined); return }
    signal.addEventListener('abort', onAbort, { once: true })
    running.then((value) => { signal.removeEventListener('abort', onAbort); resolve(value) },
      (error: unknown) => { signal.removeEventListener('abort', onAbort); reject(error as Error) })
  })
}
