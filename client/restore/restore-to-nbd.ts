/** Writes one image or file of a snapshot into an NBD export: data as data, holes as zeroes, a flush at the end.
 *
 *  One connection, never made anew: what a server acknowledged and did not flush may be lost with it, and nobody could tell. So a broken
 *  connection ends the restore, and the next run writes everything again.
 *  Memory: WRITES_IN_FLIGHT × PIECE_BYTES, and the cache of chunks.
 */
import type { Clock } from '../../src/core/clock.js'
import { Semaphore } from '../../src/core/concurrency.js'
import { describeCause } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { OpenSnapshot } from '../browse/open-snapshot.js'
import type { NbdOrigin } from '../image/open-source.js'
import { NbdLost } from '../nbd/byte-stream.js'
import { ChunkCache } from '../nbd/chunk-cache.js'
import { NbdConnection } from '../nbd/client-connection.js'
import { NbdServerError } from '../nbd/client-reply.js'
import { openLayout } from '../nbd/image-layout.js'
import { ImageReader } from '../nbd/image-reader.js'
import { EXPORT_FLAGS } from '../nbd/protocol.js'
import { readRange } from '../nbd/read-range.js'
import type { Content } from '../tree/entry.js'
import type { RestoreCounters, RestoreEvents } from './restore-report.js'

const STALL_MS = 60_000
const WRITES_IN_FLIGHT = 8
const PIECE_BYTES = 1024 * 1024
/** Zeroing may be writing, at the other end. */
const ZERO_STEP_BYTES = 64 * 1024 * 1024
const BLOCKS_MAX = 256
const CACHE_BYTES = 64 * 1024 * 1024

/** @throws {ClientError} DESTINATION_REFUSED when the export is too small or read-only; NBD_UNREACHABLE, NBD_REFUSED, NBD_BROKEN, NBD_FAILED; damage */
export async function restoreToNbd(target: NbdOrigin, content: Content, open: OpenSnapshot, counters: RestoreCounters, events: RestoreEvents, clock: Clock, signal: AbortSignal): Promise<void> {
  const connection = await opened(NbdConnection.open({ address: target.address, exportName: target.exportName, contexts: [] }, STALL_MS, clock, signal))
  const onAbort = (): void => { connection.close(signal.reason as Error) }
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    const { bytes, flags } = connection.agreement
    if ((flags & EXPORT_FLAGS.readOnly) !== 0) throw new ClientError('DESTINATION_REFUSED', `The export "${target.exportName}" is read-only.`)
    if (bytes < content.bytes) throw new ClientError('DESTINATION_REFUSED', `The export "${target.exportName}" holds ${bytes} bytes; ${content.bytes} are to be restored.`)
    const image = new ImageReader(openLayout(open.nodes, content), new ChunkCache(open.session, CACHE_BYTES, { signal }))
    await new NbdWriter(connection, image, counters, events, signal).run()
    if ((flags & EXPORT_FLAGS.sendFlush) !== 0) await opened(connection.flush())
    counters.files++
  } finally {
    signal.removeEventListener('abort', onAbort)
    connection.close(new NbdLost('The restore is over.'))
  }
}

class NbdWriter {
  readonly #slots = new Semaphore(WRITES_IN_FLIGHT)
  readonly #running = new Set<Promise<void>>()
  #failure: { readonly error: unknown } | undefined
  readonly #pieceBytes: number
  readonly #minimum: number
  constructor(readonly connection: NbdConnection, readonly image: ImageReader, readonly counters: RestoreCounters, readonly events: RestoreEvents, readonly signal: AbortSignal) {
    const { minimum, maximum } = connection.agreement.blockSizes
    this.#minimum = minimum
    this.#pieceBytes = Math.max(minimum, Math.floor(Math.min(PIECE_BYTES, maximum) / minimum) * minimum)
  }
  async run(): Promise<void> {
    try {
      for (let at = 0; at < this.image.bytes;) {
        const blocks = await this.image.allocation(at, this.image.bytes - at, BLOCKS_MAX)
        for (const [i, { bytes, isHole }] of blocks.entries()) {
          const end = at + bytes
          if (!isHole) await this.#data(this.#down(at), this.#up(end))
          else {
            // The blocks of the export that it shares with data are written as data; those that it may share with the next answer, too.
            await this.#zeroes(this.#up(at), end === this.image.bytes ? end : this.#down(end))
            if (i === blocks.length - 1 && end < this.image.bytes) await this.#data(this.#down(end), this.#up(end))
          }
          at = end
        }
      }
    } finally { await Promise.all(this.#running) }
    if (this.#failure !== undefined) throw this.#failure.error
  }
  #down(at: number): number { return at - at % this.#minimum }
  #up(at: number): number { return Math.min(this.image.bytes, Math.ceil(at / this.#minimum) * this.#minimum) }
  async #data(from: number, to: number): Promise<void> {
    for (let at = from; at < to; at += this.#pieceBytes) {
      const bytes = Math.min(this.#pieceBytes, to - at)
      await this.#start(async () => {
        const data = await readRange(this.image, at, bytes)
        await opened(this.connection.write(at, this.#padded(data, at)))
        this.counters.bytes += bytes
      }, bytes)
    }
  }
  async #zeroes(from: number, to: number): Promise<void> {
    if (to <= from) return
    if ((this.connection.agreement.flags & EXPORT_FLAGS.sendWriteZeroes) === 0) {
      for (let at = from; at < to; at += this.#pieceBytes) {
        const bytes = Math.min(this.#pieceBytes, to - at)
        await this.#start(() => opened(this.connection.write(at, this.#padded(Buffer.alloc(bytes), at))), bytes)
      }
      return
    }
    for (let at = from; at < to; at += ZERO_STEP_BYTES) {
      const bytes = Math.min(ZERO_STEP_BYTES, to - at)
      await this.#start(() => opened(this.connection.writeZeroes(at, this.#roundUp(at, bytes))), bytes)
    }
  }
  /** The image may end within a block of the export. */
  #roundUp(at: number, bytes: number): number { return Math.min(Math.ceil(bytes / this.#minimum) * this.#minimum, this.connection.agreement.bytes - at) }
  #padded(data: Buffer, at: number): Buffer {
    const bytes = this.#roundUp(at, data.byteLength)
    return bytes === data.byteLength ? data : Buffer.concat([data], bytes)
  }
  async #start(work: () => Promise<void>, bytes: number): Promise<void> {
    await this.#slots.acquire(1, this.signal)
    if (this.#failure !== undefined) { this.#slots.release(); throw this.#failure.error }
    const task: Promise<void> = work().then(() => {
      this.counters.bytesDone += bytes
      this.events.progress?.(this.counters)
    }, (error: unknown) => { this.#failure ??= { error } }).finally(() => { this.#running.delete(task); this.#slots.release() })
    this.#running.add(task)
  }
}

/** What the server says or does not say, as errors that people are told. */
async function opened<T>(work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (error instanceof NbdServerError) throw new ClientError('NBD_FAILED', `The NBD server cannot write there: ${describeCause(error)}. The export holds a part of the image.`, { cause: error })
    if (error instanceof NbdLost)
      throw new ClientError('NBD_UNREACHABLE', `The connection to the NBD server was lost: ${error.message} The export holds a part of the image; run the restore again.`, { cause: error })
    throw error
  }
}
