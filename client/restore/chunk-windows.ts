/** Fetches chunks for many files at once: gathers what is wanted into windows, reads a few windows at a time, and hands
 *  each chunk to everyone who wants it in the order in which the server finds it in its packs.
 *
 *  Memory: a window is bounded by ids and by plaintext bytes, and so is their number; chunk bytes are not gathered at all,
 *  they are consumed as they arrive.
 */
import { Semaphore } from '../../src/core/concurrency.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, chunkKey, type ChunkId, type ChunkKey } from '../../src/core/ids.js'
import { LIMITS, MiB } from '../../src/core/limits.js'
import { verifiedChunks, type ChunkProblem, type ReadableSession } from '../read-chunks.js'

/** Who wants chunks. Both calls are synchronous: the next chunk waits for them. */
export interface ChunkConsumer {
  takeChunk(bytes: Buffer, offset: number): void
  takeProblem(problem: ChunkProblem, id: Uint8Array, offset: number, bytes: number): void
}

export interface WindowOptions {
  /** Plaintext of one window: large enough that a pack's ranges are read once, small enough to start soon. */
  readonly windowBytesMax: number
  readonly windowIdsMax: number
  readonly windowsInFlightMax: number
}
export const WINDOWS_DEFAULT: WindowOptions = {
  windowBytesMax: 64 * MiB, windowIdsMax: Math.min(2_048, LIMITS.readIdsMax), windowsInFlightMax: 2,
}

/** Requests of one window, as parallel arrays: request i wants chunk `places[i]` at `offsets[i]` of `consumers[i]`;
 *  `nexts[i]` is the next request for the same chunk. */
class ReadWindow {
  readonly #placeOf = new Map<ChunkKey, number>()
  readonly ids: Buffer
  readonly firsts: number[] = []
  readonly lengths: number[] = []
  readonly consumers: ChunkConsumer[] = []
  readonly offsets: number[] = []
  readonly nexts: number[] = []
  bytes = 0
  constructor(readonly idsMax: number) { this.ids = Buffer.allocUnsafeSlow(idsMax * CHUNK_ID_BYTES) }
  get idCount(): number { return this.firsts.length }
  get isEmpty(): boolean { return this.firsts.length === 0 }
  /** Requests cost memory too when one chunk is wanted again and again. */
  isFull(bytesMax: number): boolean {
    return this.firsts.length >= this.idsMax || this.bytes >= bytesMax || this.consumers.length >= 4 * this.idsMax
  }
  add(id: ChunkId, bytes: number, consumer: ChunkConsumer, offset: number): void {
    const key = chunkKey(id)
    const request = this.consumers.length
    this.consumers.push(consumer)
    this.offsets.push(offset)
    const place = this.#placeOf.get(key)
    if (place !== undefined) {
      this.nexts.push(this.firsts[place]!)
      this.firsts[place] = request
      return
    }
    id.copy(this.ids, this.firsts.length * CHUNK_ID_BYTES)
    this.#placeOf.set(key, this.firsts.length)
    this.firsts.push(request)
    this.lengths.push(bytes)
    this.nexts.push(-1)
    this.bytes += bytes
  }
}

export class ChunkWindows {
  #window: ReadWindow
  readonly #slots: Semaphore
  readonly #running = new Set<Promise<void>>()
  #failure: { readonly error: unknown } | undefined

  constructor(readonly session: ReadableSession, readonly signal: AbortSignal, readonly options: WindowOptions = WINDOWS_DEFAULT) {
    this.#window = new ReadWindow(options.windowIdsMax)
    this.#slots = new Semaphore(options.windowsInFlightMax)
  }

  /** Wants chunk `id` for `consumer`. Await the result where it is a promise (back-pressure). */
  want(id: ChunkId, bytes: number, consumer: ChunkConsumer, offset: number): void | Promise<void> {
    this.#window.add(id, bytes, consumer, offset)
    if (this.#window.isFull(this.options.windowBytesMax)) return this.#start()
  }
  /** Reads what is still gathered and waits until every chunk was handed over. @throws what reading, or a consumer, threw */
  async finish(): Promise<void> {
    if (!this.#window.isEmpty) await this.#start()
    await this.settle()
    this.#throwFailure()
  }
  /** Waits until nothing runs any more; for cleaning up after a failure. */
  async settle(): Promise<void> { await Promise.all(this.#running) }

  async #start(): Promise<void> {
    const window = this.#window
    this.#window = new ReadWindow(this.options.windowIdsMax)
    await this.#slots.acquire(1, this.signal)
    if (this.#failure !== undefined) this.#slots.release()
    this.#throwFailure()
    const task: Promise<void> = this.#read(window)
      .catch((error: unknown) => { this.#failure ??= { error } })
      .finally(() => { this.#running.delete(task); this.#slots.release() })
    this.#running.add(task)
  }
  async #read(window: ReadWindow): Promise<void> {
    const ids = window.ids.subarray(0, window.idCount * CHUNK_ID_BYTES)
    for await (const { index, bytes, problem } of verifiedChunks(this.session, ids, CHUNK_KINDS.data, { signal: this.signal, sharesRoom: true })) {
      if (this.#failure !== undefined) return
      for (let request = window.firsts[index]!; request >= 0; request = window.nexts[request]!) {
        const consumer = window.consumers[request]!
        const offset = window.offsets[request]!
        if (bytes !== undefined) consumer.takeChunk(bytes, offset)
        else consumer.takeProblem(problem, ids.subarray(index * CHUNK_ID_BYTES, (index + 1) * CHUNK_ID_BYTES), offset, window.lengths[index]!)
      }
    }
  }
  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure.error
  }
}
