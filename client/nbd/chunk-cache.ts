/** Chunks for readers that jump: what was read lately is kept up to a number of bytes, each chunk is fetched once however many wait for it,
 *  and what is asked for goes before what is only read ahead.
 *
 *  Memory: `keptBytesMax`, what is on its way (READS_IN_FLIGHT_MAX × BATCH_BYTES_MAX and a chunk each), read-ahead of half of keptBytesMax at most,
 *  and what those who asked hold: they bound it.
 */
import { CHUNK_ID_BYTES, CHUNK_KINDS, chunkKey, type ChunkId, type ChunkKey } from '../../src/core/ids.js'
import { MiB } from '../../src/core/limits.js'
import { chunkError, verifiedChunks, type ReadableSession } from '../read-chunks.js'
import type { Call } from '../repository-client.js'

/** One block of a pack and its neighbour: large enough that a block is opened for many chunks, small enough to come soon. */
const BATCH_BYTES_MAX = 4 * MiB
const BATCH_IDS_MAX = 256
const READS_IN_FLIGHT_MAX = 4

/** A chunk that was asked for and is not here yet. */
class Coming {
  readonly promise: Promise<Buffer>
  resolve!: (bytes: Buffer) => void
  reject!: (error: unknown) => void
  isStarted = false
  constructor(readonly key: ChunkKey, readonly id: ChunkId, readonly bytes: number, public isAhead: boolean) {
    this.promise = new Promise((resolve, reject) => { this.resolve = resolve; this.reject = reject })
    this.promise.catch(() => undefined) // of chunks that are only read ahead nobody listens
  }
}

export class ChunkCache {
  /** In order of use, the least recent first. */
  readonly #kept = new Map<ChunkKey, Buffer>()
  #keptBytes = 0
  readonly #coming = new Map<ChunkKey, Coming>()
  #wanted: Coming[] = []
  #ahead: Coming[] = []
  #aheadBytes = 0
  #readsInFlight = 0
  #isPumping = false
  /** Chunks that came from the server. */
  fetched = 0

  constructor(readonly session: ReadableSession, readonly keptBytesMax: number, readonly call: Call = {}) {}
  get keptBytes(): number { return this.#keptBytes }

  /** The chunk, proved by its id. `bytes`: how long it should be; the caller compares.
   *  @throws {RoostError} CHUNK_MISSING, CHUNK_CORRUPT or CHUNK_NOT_READABLE, naming the chunk; what the client throws */
  get(id: ChunkId, bytes: number): Buffer | Promise<Buffer> {
    const key = chunkKey(id)
    const kept = this.#kept.get(key)
    if (kept !== undefined) {
      this.#kept.delete(key)
      this.#kept.set(key, kept)
      return kept
    }
    const coming = this.#coming.get(key)
    if (coming === undefined) return this.#enqueue(new Coming(key, id, bytes, false), this.#wanted)
    if (coming.isAhead && !coming.isStarted) {
      coming.isAhead = false
      this.#aheadBytes -= coming.bytes
      this.#wanted.push(coming)
    }
    return coming.promise
  }
  /** Asks for a chunk that will be wanted soon. False: enough is on its way, ask later. */
  readAhead(id: ChunkId, bytes: number): boolean {
    const key = chunkKey(id)
    if (this.#kept.has(key) || this.#coming.has(key)) return true
    if (this.#aheadBytes + bytes > this.keptBytesMax / 2) return false
    this.#aheadBytes += bytes
    void this.#enqueue(new Coming(key, id, bytes, true), this.#ahead)
    return true
  }

  #enqueue(coming: Coming, queue: Coming[]): Promise<Buffer> {
    this.#coming.set(coming.key, coming)
    queue.push(coming)
    if (!this.#isPumping) {
      this.#isPumping = true
      queueMicrotask(() => { this.#isPumping = false; this.#pump() }) // whoever asks in this turn comes along
    }
    return coming.promise
  }
  #pump(): void {
    while (this.#readsInFlight < READS_IN_FLIGHT_MAX) {
      const batch = this.#takeBatch()
      if (batch.length === 0) return
      this.#readsInFlight++
      void this.#read(batch).finally(() => { this.#readsInFlight--; this.#pump() })
    }
  }
  #takeBatch(): Coming[] {
    const batch: Coming[] = []
    let bytes = 0
    const take = (queue: Coming[]): Coming[] => {
      let at = 0
      for (; at < queue.length && batch.length < BATCH_IDS_MAX && bytes < BATCH_BYTES_MAX; at++) {
        const coming = queue[at]!
        if (coming.isStarted || coming.isAhead !== (queue === this.#ahead)) continue // it was wanted meanwhile, and is in the other queue
        coming.isStarted = true
        batch.push(coming)
        bytes += coming.bytes
      }
      return queue.slice(at)
    }
    this.#wanted = take(this.#wanted)
    this.#ahead = take(this.#ahead)
    return batch
  }
  /** Never rejects: every one of the batch is told. */
  async #read(batch: readonly Coming[]): Promise<void> {
    const ids = Buffer.concat(batch.map(({ id }) => id), batch.length * CHUNK_ID_BYTES)
    try {
      for await (const { index, bytes, problem } of verifiedChunks(this.session, ids, CHUNK_KINDS.data, { ...this.call, sharesRoom: true })) {
        const coming = batch[index]!
        this.#settled(coming)
        if (bytes === undefined) { coming.reject(chunkError(problem, coming.id)); continue }
        this.fetched++
        const own = Buffer.allocUnsafeSlow(bytes.byteLength)
        bytes.copy(own)
        this.#keep(coming.key, own)
        coming.resolve(own)
      }
    } catch (error) {
      for (const coming of batch) {
        if (this.#coming.get(coming.key) !== coming) continue
        this.#settled(coming)
        coming.reject(error)
      }
    }
  }
  #settled(coming: Coming): void {
    this.#coming.delete(coming.key)
    if (coming.isAhead) this.#aheadBytes -= coming.bytes
  }
  #keep(key: ChunkKey, bytes: Buffer): void {
    this.#kept.set(key, bytes)
    this.#keptBytes += bytes.byteLength
    for (const [oldest, old] of this.#kept) {
      if (this.#keptBytes <= this.keptBytesMax) return
      this.#kept.delete(oldest)
      this.#keptBytes -= old.byteLength
    }
  }
}
