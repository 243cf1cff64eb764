/** A target that fails where the script says, and nowhere else; a fault that never fired is a failure of the test. */
import { Readable } from 'node:stream'
import { AssertionError } from 'node:assert'
import { RoostError } from '../../src/core/errors.js'
import type { Call, ObjectStore } from '../../src/store/object-store.js'
import type { StoreOperation } from '../../src/store/observed-store.js'

export interface StoreFault {
  readonly operation: StoreOperation
  /** Which call of that operation, counted from 1. */
  readonly call: number
  /** How many calls from there on. Default 1; Infinity for a target that stays dead. */
  readonly calls?: number
  /** `before`: nothing happens. `after`: it happens, but the acknowledgement is lost. `torn`: a put reads its body and
   *  stores nothing; a stream or a listing breaks after its first part. */
  readonly how: 'before' | 'after' | 'torn'
  /** Default STORE_UNAVAILABLE. */
  readonly error?: () => Error
}
export interface FaultyStore extends ObjectStore {
  /** Calls so far. */
  readonly calls: Readonly<Record<StoreOperation, number>>
  /** While true every call fails with STORE_UNAVAILABLE, script or not. */
  isDown: boolean
  assertAllFired(): void
}

export function faultyStore(inner: ObjectStore, script: readonly StoreFault[] = []): FaultyStore {
  const calls: Record<StoreOperation, number> = { put: 0, getRange: 0, getRanges: 0, get: 0, head: 0, list: 0, delete: 0,
    deleteMany: 0 }
  const fired = new Set<StoreFault>()
  const unavailable = (): Error => new RoostError('STORE_UNAVAILABLE', 'The target failed as the test told it to.')
  function next(operation: StoreOperation): { how: StoreFault['how'] | undefined; fail: () => Error } {
    calls[operation]++
    if (faulty.isDown) return { how: 'before', fail: unavailable }
    const fault = script.find((one) => one.operation === operation && calls[operation] >= one.call &&
      calls[operation] < one.call + (one.calls ?? 1))
    if (fault !== undefined) fired.add(fault)
    return { how: fault?.how, fail: fault?.error ?? unavailable }
  }
  async function run<T>(operation: StoreOperation, call: Call | undefined, work: () => Promise<T>,
    tear: () => Promise<void> = async () => undefined): Promise<T> {
    const { how, fail } = next(operation)
    call?.signal?.throwIfAborted()
    if (how === undefined) return await work()
    if (how === 'torn') await tear()
    if (how === 'after') await work()
    throw fail()
  }
  const faulty: FaultyStore = {
    description: inner.description,
    calls,
    isDown: false,
    assertAllFired: () => {
      const silent = script.filter((fault) => !fired.has(fault)).map((fault) => `${fault.operation} ${fault.call} ${fault.how}`)
      if (silent.length > 0) throw new AssertionError({ message: `these faults never fired: ${silent.join(', ')}` })
    },
    put: (key, body, options) => run('put', options, () => inner.put(key, body, options), async () => {
      for await (const _ of body.open()) { /* sent, and lost on the way */ }
    }),
    getRange: (key, range, call) => run('getRange', call, () => inner.getRange(key, range, call)),
    getRanges: (key, ranges, call) => run('getRanges', call, () => inner.getRanges(key, ranges, call)),
    get: async (key, call) => {
      const { how, fail } = next('get')
      if (how === 'before' || how === 'after') throw fail()
      const stream = await inner.get(key, call)
      return how === undefined || stream === undefined ? stream : Readable.from(tornAfterFirst(stream, fail), { objectMode: false })
    },
    head: (key, call) => run('head', call, () => inner.head(key, call)),
    async *list(prefix, call) {
      const { how, fail } = next('list')
      if (how === 'before') throw fail()
      yield* how === undefined ? inner.list(prefix, call) : tornAfterFirst(inner.list(prefix, call), fail)
    },
    delete: (key, call) => run('delete', call, () => inner.delete(key, call)),
    deleteMany: (keys, call) => run('deleteMany', call, () => inner.deleteMany(keys, call)),
    close: () => inner.close(),
  }
  return faulty
}

async function* tornAfterFirst<T>(items: AsyncIterable<T>, fail: () => Error): AsyncGenerator<T> {
  for await (const item of items) {
    yield item
    break
  }
  throw fail()
}
