/** Any bytes of an image or file of a snapshot, in any order, by many readers at once; those that go forwards find the next chunks here already.
 *
 *  Who reads is bounded by the caller, by costOf: a read holds the chunks that it touches until its pieces are let go.
 */
import { RoostError } from '../../src/core/errors.js'
import { KiB, MiB } from '../../src/core/limits.js'
import type { PlacedExtent } from '../tree/content-reader.js'
import type { ChunkCache } from './chunk-cache.js'
import { findInRun, type Layout } from './image-layout.js'

/** A stretch of what was asked for; `data` undefined: zeroes. A view into a chunk that others read too: not to be written to. */
export interface ReadPiece { readonly offset: number; readonly bytes: number; readonly data: Buffer | undefined }
export interface AllocationBlock { readonly bytes: number; readonly isHole: boolean }

/** What NBD serves. */
export interface RandomAccessImage {
  readonly bytes: number
  /** Memory that a read takes at most. */
  costOf(offset: number, bytes: number): number
  /** The bytes asked for, all of them, ascending and without gaps; they are within the image. */
  read(offset: number, bytes: number): Promise<ReadPiece[]>
  /** What is data and what is hole from `offset` on: at least one block, `blocksMax` at most, no further than `bytes`. */
  allocation(offset: number, bytes: number, blocksMax: number): Promise<AllocationBlock[]>
  /** A hint that these bytes will be read. */
  readAhead(offset: number, bytes: number): void
}

const STREAMS_MAX = 16
const WINDOW_BYTES_MIN = 512 * KiB
const WINDOW_BYTES_MAX = 16 * MiB
/** Requests that are made at the same time arrive in any order; who skips more than a little does not read forwards. */
const STREAM_BACK_BYTES = 2 * MiB
const STREAM_SKIP_BYTES = 512 * KiB
/** Nodes that one question about allocation reads. */
const ALLOCATION_NODES_MAX = 64

/** Somebody who reads forwards: where to, how far was read ahead, and how far that may be. */
interface Stream { next: number; aheadTo: number; window: number; isBusy: boolean }

export class ImageReader implements RandomAccessImage {
  readonly bytes: number
  /** In order of use, the least recent first. */
  readonly #streams: Stream[] = []
  constructor(readonly layout: Layout, readonly cache: ChunkCache) { this.bytes = layout.bytes }

  costOf(offset: number, bytes: number): number {
    const { chunkBytesMax } = this.layout
    return Math.ceil((offset % chunkBytesMax + bytes) / chunkBytesMax) * chunkBytesMax
  }
  async read(offset: number, bytes: number): Promise<ReadPiece[]> {
    this.#noteRead(offset, bytes)
    const end = offset + bytes
    const waits: (ReadPiece | Promise<ReadPiece>)[] = []
    try {
      await this.#eachExtent(offset, end, (extent) => {
        const from = Math.max(offset, extent.offset)
        const to = Math.min(end, extent.offset + extent.bytes)
        waits.push(extent.id === undefined ? { offset: from, bytes: to - from, data: undefined } : this.#piece(extent, from, to))
        return true
      })
    } finally {
      await Promise.allSettled(waits) // on failure too: until then chunks come, and whoever counts memory counts them
    }
    return await Promise.all(waits)
  }
  async allocation(offset: number, bytes: number, blocksMax: number): Promise<AllocationBlock[]> {
    const end = offset + bytes
    const blocks: { bytes: number; isHole: boolean }[] = []
    await this.#eachExtent(offset, end, (extent) => {
      const isHole = extent.id === undefined
      const length = Math.min(end, extent.offset + extent.bytes) - Math.max(offset, extent.offset)
      const last = blocks.at(-1)
      if (last?.isHole === isHole) last.bytes += length
      else if (blocks.length === blocksMax) return false
      else blocks.push({ bytes: length, isHole })
      return true
    }, ALLOCATION_NODES_MAX)
    return blocks
  }
  readAhead(offset: number, bytes: number): void {
    const end = Math.min(this.bytes, offset + Math.min(bytes, WINDOW_BYTES_MAX))
    void this.#ask(offset, end).catch(() => undefined) // a hint: whoever reads it is told what is wrong with it
  }

  /** Extents that overlap the bytes from `offset` to `end`, ascending; `take` false ends it. */
  async #eachExtent(offset: number, end: number, take: (extent: PlacedExtent) => boolean, nodesMax = Infinity): Promise<void> {
    for (let at = offset, nodes = 0; at < end && nodes < nodesMax; nodes++) {
      const run = await this.layout.runAt(at)
      const first = findInRun(run, at)
      if (first >= run.length) throw new RoostError('TREE_MALFORMED', 'The content is not as long as its directory says.')
      for (let i = first; i < run.length && at < end; i++) {
        const extent = run[i]!
        if (!take(extent)) return
        at = extent.offset + extent.bytes
      }
    }
  }
  async #piece(extent: PlacedExtent, from: number, to: number): Promise<ReadPiece> {
    const chunk = await this.cache.get(extent.id!, extent.bytes)
    if (chunk.byteLength !== extent.bytes) throw new RoostError('TREE_MALFORMED', 'A chunk is not as long as its file says.')
    return { offset: from, bytes: to - from, data: chunk.subarray(from - extent.offset, to - extent.offset) }
  }

  #noteRead(offset: number, bytes: number): void {
    const place = this.#streams.findIndex(({ next }) => offset >= next - STREAM_BACK_BYTES && offset <= next + STREAM_SKIP_BYTES)
    const stream = place < 0 ? { next: offset + bytes, aheadTo: 0, window: WINDOW_BYTES_MIN, isBusy: false } : this.#streams.splice(place, 1)[0]!
    this.#streams.push(stream)
    if (this.#streams.length > STREAMS_MAX) this.#streams.shift()
    if (place < 0 || offset + bytes <= stream.next) return
    stream.next = offset + bytes
    if (stream.isBusy || stream.aheadTo > stream.next + stream.window / 2) return
    const from = Math.max(stream.aheadTo, stream.next)
    const to = Math.min(this.bytes, stream.next + stream.window)
    stream.window = Math.min(WINDOW_BYTES_MAX, stream.window * 2)
    stream.isBusy = true
    void this.#ask(from, to).then((aheadTo) => { stream.aheadTo = aheadTo }, () => undefined) // a failure shows to whoever reads there
      .finally(() => { stream.isBusy = false })
  }
  /** Reads ahead, and says how far. */
  async #ask(from: number, to: number): Promise<number> {
    let askedTo = from
    await this.#eachExtent(from, to, (extent) => {
      if (extent.id !== undefined && !this.cache.readAhead(extent.id, extent.bytes)) return false
      askedTo = extent.offset + extent.bytes
      return true
    })
    return askedTo
  }
}
