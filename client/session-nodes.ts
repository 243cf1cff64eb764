/** Nodes of the snapshot that a session is bound to: requests made at the same time travel together, each node is proved
 *  by its id, and what was read lately is kept, up to a number of bytes.
 */
import { CHUNK_ID_BYTES, CHUNK_KINDS, chunkKey, type ChunkId, type ChunkKey } from '../src/core/ids.js'
import { LIMITS, MiB } from '../src/core/limits.js'
import { chunkError, verifiedChunks, type ReadableSession } from './read-chunks.js'
import type { Call } from './repository-client.js'
import type { NodeSource } from './upload/chunk-sink.js'

const CACHE_BYTES_DEFAULT = 8 * MiB
const READS_IN_FLIGHT_MAX = 2
/** Nodes of one read: small, so that one large directory does not hold up the others. */
const READ_IDS_MAX = 256

interface Waiter { resolve(bytes: Buffer): void; reject(error: unknown): void }

export class SessionNodeSource implements NodeSource {
  /** In order of use, the least recent first. */
  readonly #cache = new Map<ChunkKey, Buffer>()
  #cachedBytes = 0
  readonly #waiting = new Map<ChunkKey, Waiter[]>()
  #queue: ChunkId[] = []
  #readsInFlight = 0

  constructor(readonly session: ReadableSession, readonly call: Call = {}, readonly cacheBytesMax = CACHE_BYTES_DEFAULT) {}

  /** @throws {RoostError} CHUNK_MISSING, CHUNK_CORRUPT or CHUNK_NOT_READABLE, naming the chunk */
  async readNodes(ids: readonly ChunkId[]): Promise<Buffer[]> {
    return await Promise.all(ids.map((id) => this.#read(id)))
  }
  /** Starts reading what will be asked for soon. Failures show when it is asked for. */
  prefetch(ids: readonly ChunkId[]): void {
    for (const id of ids) {
      const key = chunkKey(id)
      if (this.#cache.has(key) || this.#waiting.has(key)) continue
      this.#waiting.set(key, [])
      this.#enqueue(id)
    }
  }

  #read(id: ChunkId): Buffer | Promise<Buffer> {
    const key = chunkKey(id)
    const cached = this.#cache.get(key)
    if (cached !== undefined) {
      this.#cache.delete(key)
      this.#cache.set(key, cached)
      return cached
    }
    return new Promise((resolve, reject) => {
      const waiters = this.#waiting.get(key)
      if (waiters !== undefined) { waiters.push({ resolve, reject }); return }
      this.#waiting.set(key, [{ resolve, reject }])
      this.#enqueue(id)
    })
  }
  #enqueue(id: ChunkId): void {
    this.#queue.push(id)
    if (this.#queue.length === 1) queueMicrotask(() => { this.#pump() }) // whoever asks in this turn comes along
  }
  #pump(): void {
    const idsMax = Math.min(READ_IDS_MAX, LIMITS.readIdsMax)
    while (this.#queue.length > 0 && this.#readsInFlight < READS_IN_FLIGHT_MAX) {
      const batch = this.#queue.slice(0, idsMax)
      this.#queue = this.#queue.slice(idsMax)
      this.#readsInFlight++
      void this.#readBatch(batch).finally(() => { this.#readsInFlight--; this.#pump() })
    }
  }
  /** Never rejects: every waiter of the batch is told. */
  async #readBatch(batch: readonly ChunkId[]): Promise<void> {
    const ids = Buffer.concat(batch, batch.length * CHUNK_ID_BYTES)
    try {
      for await (const { index, bytes, problem } of verifiedChunks(this.session, ids, CHUNK_KINDS.node, this.call)) {
        const key = chunkKey(ids, index * CHUNK_ID_BYTES)
        const waiters = this.#waiting.get(key) ?? []
        this.#waiting.delete(key)
        if (bytes === undefined) {
          const error = chunkError(problem, batch[index]!)
          for (const waiter of waiters) waiter.reject(error)
          continue
        }
        const node = bytes.buffer.byteLength === bytes.byteLength ? bytes : Buffer.from(bytes) // keeps no larger buffer alive
        this.#keep(key, node)
        for (const waiter of waiters) waiter.resolve(node)
      }
    } catch (error) {
      for (const id of batch) {
        const key = chunkKey(id)
        for (const waiter of this.#waiting.get(key) ?? []) waiter.reject(error)
        this.#waiting.delete(key)
      }
    }
  }
  #keep(key: ChunkKey, bytes: Buffer): void {
    this.#cache.set(key, bytes)
    this.#cachedBytes += bytes.byteLength
    for (const [oldest, old] of this.#cache) {
      if (this.#cachedBytes <= this.cacheBytesMax) return
      this.#cache.delete(oldest)
      this.#cachedBytes -= old.byteLength
    }
  }
}
