/** Counts what one target is asked, moves and fails, into a plain object that metrics read. Outermost in the stack: it
 *  sees calls as the repository makes them, after retries. */
import { Transform, pipeline } from 'node:stream'
import { isAbort, isErrno } from '../core/errors.js'
import type { Call, ObjectFacts, ObjectStore } from './object-store.js'

export const STORE_OPERATIONS = ['put', 'getRange', 'getRanges', 'get', 'head', 'list', 'delete', 'deleteMany'] as const
export type StoreOperation = (typeof STORE_OPERATIONS)[number]

export interface StoreCounters {
  readonly calls: Record<StoreOperation, number>
  /** Calls that were rejected, cancelled ones apart. */
  readonly failures: Record<StoreOperation, number>
  cancelled: number
  bytesWritten: number
  bytesRead: number
}

export function createStoreCounters(): StoreCounters {
  const zeros = (): Record<StoreOperation, number> => ({ put: 0, getRange: 0, getRanges: 0, get: 0, head: 0, list: 0, delete: 0, deleteMany: 0 })
  return { calls: zeros(), failures: zeros(), cancelled: 0, bytesWritten: 0, bytesRead: 0 }
}

export function observedStore(inner: ObjectStore, counters: StoreCounters): ObjectStore {
  const fail = (operation: StoreOperation, error: unknown, call: Call | undefined): void => {
    if (call?.signal?.aborted === true || isAbort(error)) counters.cancelled++
    else counters.failures[operation]++
  }
  async function observe<T>(operation: StoreOperation, call: Call | undefined, work: () => Promise<T>): Promise<T> {
    counters.calls[operation]++
    try { return await work() } catch (error) {
      fail(operation, error, call)
      throw error
    }
  }
  return {
    description: inner.description,
    get remark() { return inner.remark },
    put: (key, body, options) => observe('put', options, async () => {
      await inner.put(key, body, options)
      counters.bytesWritten += body.bytes
    }),
    getRange: (key, range, call) => observe('getRange', call, async () => {
      const bytes = await inner.getRange(key, range, call)
      counters.bytesRead += bytes?.byteLength ?? 0
      return bytes
    }),
    getRanges: (key, ranges, call) => observe('getRanges', call, async () => {
      const parts = await inner.getRanges(key, ranges, call)
      for (const part of parts ?? []) counters.bytesRead += part.byteLength
      return parts
    }),
    get: (key, call) => observe('get', call, async () => {
      const stream = await inner.get(key, call)
      if (stream === undefined) return undefined
      const counted = new Transform({
        transform: (part: Buffer, _encoding, done) => {
          counters.bytesRead += part.byteLength
          done(null, part)
        },
      })
      // The source may have ended while its last part waits here.
      const onAbort = (): void => { counted.destroy(call!.signal!.reason as Error) }
      call?.signal?.addEventListener('abort', onAbort, { once: true })
      counted.once('close', () => call?.signal?.removeEventListener('abort', onAbort))
      pipeline(stream, counted, (error) => {
        // A reader that stops early has had what it wanted.
        if (error && !isErrno(error, 'ERR_STREAM_PREMATURE_CLOSE')) fail('get', error, call)
      })
      return counted
    }),
    head: (key, call) => observe('head', call, () => inner.head(key, call)),
    async *list(prefix, call): AsyncGenerator<ObjectFacts, void, undefined> {
      counters.calls.list++
      try { yield* inner.list(prefix, call) } catch (error) {
        fail('list', error, call)
        throw error
      }
    },
    delete: (key, call) => observe('delete', call, () => inner.delete(key, call)),
    deleteMany: (keys, call) => observe('deleteMany', call, () => inner.deleteMany(keys, call)),
    close: () => inner.close(),
  }
}
