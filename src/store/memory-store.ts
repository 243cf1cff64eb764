/** The reference target: a map. Durable until the process ends; for tests, and as the contract's plainest reading. */
import { Readable } from 'node:stream'
import { assert } from '../core/assert.js'
import { RoostError } from '../core/errors.js'
import { readBody } from './body.js'
import { deleteOneByOne, rangesOneByOne } from './one-by-one.js'
import { requireObjectKey, requirePrefix } from './object-key.js'
import type { ByteRange, Call, ObjectFacts, ObjectKey, ObjectStore, PutOptions, ReplayableBody } from './object-store.js'

export interface MemoryStore extends ObjectStore {
  /** The bytes themselves, for tests that damage or compare them. */
  readonly objects: Map<ObjectKey, Buffer>
}

export function createMemoryStore(description = 'memory:'): MemoryStore {
  const objects = new Map<ObjectKey, Buffer>()
  const find = (key: ObjectKey, call: Call | undefined): Buffer | undefined => {
    requireObjectKey(key)
    call?.signal?.throwIfAborted()
    return objects.get(key)
  }
  /** True when the key is there with as many bytes. */
  const isSettled = (key: ObjectKey, bytes: number): boolean => {
    const existing = objects.get(key)
    if (existing !== undefined && existing.byteLength !== bytes) throw new RoostError('STORE_REFUSED',
      `${key} exists on ${description} with ${existing.byteLength} bytes, not ${bytes}; it was not overwritten.`, { key, bytes })
    return existing !== undefined
  }
  const store: MemoryStore = {
    description,
    objects,
    put: async (key: ObjectKey, body: ReplayableBody, options?: PutOptions) => {
      const replace = options?.replace === true
      find(key, options)
      if (!replace && isSettled(key, body.bytes)) return
      const parts: Buffer[] = []
      for await (const part of readBody(key, body, options?.signal)) parts.push(Buffer.from(part))
      if (replace || !isSettled(key, body.bytes)) objects.set(key, Buffer.concat(parts))
    },
    getRange: async (key: ObjectKey, range: ByteRange, call?: Call) => {
      assert(Number.isSafeInteger(range.offset) && range.offset >= 0 && Number.isSafeInteger(range.bytes) && range.bytes >= 0,
        'a range is two non-negative integers')
      const bytes = find(key, call)
      if (bytes === undefined) return undefined
      if (range.offset + range.bytes > bytes.byteLength) throw new RoostError('OBJECT_TOO_SHORT',
        `${key} has ${bytes.byteLength} bytes; ${range.bytes} at ${range.offset} are not all there.`, { key, bytes: bytes.byteLength })
      return Buffer.from(bytes.subarray(range.offset, range.offset + range.bytes))
    },
    getRanges: (key: ObjectKey, ranges: readonly ByteRange[], call?: Call) => rangesOneByOne(store, key, ranges, call),
    get: async (key: ObjectKey, call?: Call) => {
      const bytes = find(key, call)
      if (bytes === undefined) return undefined
      const stream = Readable.from(bytes.byteLength === 0 ? [] : [Buffer.from(bytes)], { objectMode: false })
      const onAbort = (): void => { stream.destroy(call!.signal!.reason as Error) }
      call?.signal?.addEventListener('abort', onAbort, { once: true })
      return stream.once('close', () => call?.signal?.removeEventListener('abort', onAbort))
    },
    head: async (key: ObjectKey, call?: Call) => {
      const bytes = find(key, call)
      return bytes === undefined ? undefined : { key, bytes: bytes.byteLength }
    },
    async *list(prefix: string, call?: Call): AsyncGenerator<ObjectFacts, void, undefined> {
      requirePrefix(prefix)
      for (const key of [...objects.keys()].filter((name) => name.startsWith(prefix)).sort()) {
        call?.signal?.throwIfAborted()
        const bytes = objects.get(key)
        if (bytes !== undefined) yield { key, bytes: bytes.byteLength }
      }
    },
    delete: async (key: ObjectKey, call?: Call) => {
      find(key, call)
      objects.delete(key)
    },
    deleteMany: (keys: readonly ObjectKey[], call?: Call) => deleteOneByOne(store, keys, call),
    close: async () => { /* Holds nothing open. */ },
  }
  return store
}
