/** Lets at most so many calls be under way on one target; the others wait their turn, abortably.
 *
 *  A stream of `get` holds its slot until it closes, so its reader must not wait for another call on the same store
 *  before finishing it. A listing holds a slot only while it fetches the next entry: its reader may call freely.
 */
import { Semaphore } from '../core/concurrency.js'
import type { Call, ObjectFacts, ObjectStore } from './object-store.js'

export interface BoundedStoreOptions { readonly callsInFlightMax: number }

export function boundedStore(inner: ObjectStore, { callsInFlightMax }: BoundedStoreOptions): ObjectStore {
  const slots = new Semaphore(callsInFlightMax)
  const within = <T>(call: Call | undefined, work: () => Promise<T>): Promise<T> => slots.within(1, call?.signal, work)
  return {
    description: inner.description,
    get remark() { return inner.remark },
    put: (key, body, options) => within(options, () => inner.put(key, body, options)),
    getRange: (key, range, call) => within(call, () => inner.getRange(key, range, call)),
    getRanges: (key, ranges, call) => within(call, () => inner.getRanges(key, ranges, call)),
    get: async (key, call) => {
      await slots.acquire(1, call?.signal)
      let held = true
      const release = (): void => { if (held) { held = false; slots.release() } }
      try {
        const stream = await inner.get(key, call)
        if (stream === undefined || stream.closed) release()
        else stream.once('close', release)
        return stream
      } catch (error) {
        release()
        throw error
      }
    },
    head: (key, call) => within(call, () => inner.head(key, call)),
    async *list(prefix, call): AsyncGenerator<ObjectFacts, void, undefined> {
      const entries = inner.list(prefix, call)[Symbol.asyncIterator]()
      try {
        for (;;) {
          const next = await within(call, () => entries.next())
          if (next.done === true) return
          yield next.value
        }
      } finally { await entries.return?.() }
    },
    delete: (key, call) => within(call, () => inner.delete(key, call)),
    deleteMany: (keys, call) => within(call, () => inner.deleteMany(keys, call)),
    close: () => inner.close(),
  }
}
