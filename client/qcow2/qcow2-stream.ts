/** A qcow2 file as a stream, from its first byte to its last, without a copy on disk: what an image service takes.
 *
 *  What is a hole is asked of the tree first; from that everything before the data follows. Memory: a bit for 64 KiB of image and 8 bytes for
 *  512 MiB of it.
 */
import { once } from 'node:events'
import { Writable } from 'node:stream'
import { dumpContent } from '../restore/dump.js'
import { contentExtents } from '../restore/content-extents.js'
import type { OpenSnapshot } from '../browse/open-snapshot.js'
import type { Content } from '../tree/entry.js'
import {
  CLUSTER_BYTES, dataOffset, ENTRIES_PER_TABLE, encodeHeader, entryTo, placeRefcounts, REFCOUNTS_PER_BLOCK, shapeOf, tableOffset,
} from './layout.js'

export interface Qcow2Stream {
  /** Of the file. */
  readonly bytes: number
  /** Resolves when `output` took every byte; does not end it. @throws as dumpContent */
  write(output: Writable, signal: AbortSignal): Promise<void>
}
type Opened = Pick<OpenSnapshot, 'session' | 'nodes'>

/** @throws {RoostError} LIMIT_EXCEEDED beyond 2 PiB; what reading nodes throws */
export async function planQcow2Stream(open: Opened, content: Content): Promise<Qcow2Stream> {
  const shape = shapeOf(content.bytes)
  const used = new ClusterSet(Math.ceil(content.bytes / CLUSTER_BYTES))
  for await (const { offset, bytes, id } of contentExtents(open.nodes, content)) if (id !== undefined && offset + bytes <= content.bytes) used.addBytes(offset, bytes)
  const refcounts = placeRefcounts(shape, used.count)
  const usesTable = (table: number): boolean => used.hasAny(table * ENTRIES_PER_TABLE, (table + 1) * ENTRIES_PER_TABLE)

  function* front(): Generator<Buffer> {
    yield padded(encodeHeader(shape, refcounts))
    const l1 = Buffer.alloc(shape.tables * 8)
    for (let table = 0; table < shape.tables; table++) if (usesTable(table)) l1.writeBigUInt64BE(entryTo(tableOffset(shape, table)), table * 8)
    yield padded(l1, Math.max(1, Math.ceil(l1.byteLength / CLUSTER_BYTES)))
    for (let table = 0, place = 0; table < shape.tables; table++) {
      const entries = Buffer.alloc(CLUSTER_BYTES)
      for (let i = 0; i < ENTRIES_PER_TABLE; i++)
        if (used.has(table * ENTRIES_PER_TABLE + i)) entries.writeBigUInt64BE(entryTo(dataOffset(shape, place++)), i * 8)
      yield entries
    }
  }
  function* back(): Generator<Buffer> {
    const isUsed = (cluster: number): boolean => {
      const table = cluster - shape.firstTableCluster
      return table < 0 || table >= shape.tables || usesTable(table)
    }
    const table = Buffer.alloc(refcounts.tableClusters * CLUSTER_BYTES)
    for (let block = 0; block < refcounts.blocks; block++) {
      const first = block * REFCOUNTS_PER_BLOCK
      const counts = Buffer.alloc(CLUSTER_BYTES)
      for (let cluster = first; cluster < Math.min(first + REFCOUNTS_PER_BLOCK, refcounts.endCluster); cluster++)
        if (isUsed(cluster)) counts.writeUInt16BE(1, (cluster - first) * 2)
      table.writeBigUInt64BE(BigInt((refcounts.firstBlockCluster + block) * CLUSTER_BYTES), block * 8)
      yield counts
    }
    yield table
  }
  return {
    bytes: refcounts.endCluster * CLUSTER_BYTES,
    write: async (output, signal) => {
      for (const part of front()) await give(output, part, signal)
      const clusters = new UsedClusters(output, used)
      await dumpContent(open, content, clusters, signal)
      await new Promise<void>((resolve, reject) => { clusters.once('error', reject).end(resolve) })
      for (const part of back()) await give(output, part, signal)
    },
  }
}

/** Of the bytes of an image, passes on those of clusters that are used, the last one filled up with zeroes. */
class UsedClusters extends Writable {
  #at = 0
  constructor(readonly output: Writable, readonly used: ClusterSet) {
    super({ highWaterMark: CLUSTER_BYTES })
    output.once('error', (error: Error) => { this.destroy(error) })
  }
  override _write(bytes: Buffer, _encoding: string, done: (error?: Error) => void): void {
    let isTaken = true
    for (let from = 0; from < bytes.byteLength;) {
      const isUsed = this.used.has(Math.floor(this.#at / CLUSTER_BYTES))
      let to = from
      do to += Math.min(CLUSTER_BYTES - (this.#at + to - from) % CLUSTER_BYTES, bytes.byteLength - to)
      while (to < bytes.byteLength && this.used.has(Math.floor((this.#at + to - from) / CLUSTER_BYTES)) === isUsed)
      if (isUsed) isTaken = this.output.write(bytes.subarray(from, to))
      this.#at += to - from
      from = to
    }
    if (isTaken) done()
    else this.output.once('drain', done)
  }
  override _final(done: (error?: Error) => void): void {
    const rest = this.#at % CLUSTER_BYTES
    if (rest > 0 && this.used.has(Math.floor(this.#at / CLUSTER_BYTES))) this.output.write(Buffer.alloc(CLUSTER_BYTES - rest))
    done()
  }
}
/** A bit a cluster. */
class ClusterSet {
  count = 0
  readonly #bits: Uint8Array
  constructor(readonly clusters: number) { this.#bits = new Uint8Array(Math.ceil(clusters / 8)) }
  has(cluster: number): boolean { return (this.#bits[Math.floor(cluster / 8)]! >> cluster % 8 & 1) === 1 }
  hasAny(from: number, to: number): boolean {
    for (let at = from; at < Math.min(to, this.clusters);) {
      if (at % 8 === 0 && this.#bits[at / 8] === 0) { at += 8; continue }
      if (this.has(at)) return true
      at++
    }
    return false
  }
  addBytes(offset: number, bytes: number): void {
    for (let at = Math.floor(offset / CLUSTER_BYTES); at * CLUSTER_BYTES < offset + bytes; at++) {
      if (this.has(at)) continue
      this.#bits[Math.floor(at / 8)]! |= 1 << at % 8
      this.count++
    }
  }
}
async function give(output: Writable, bytes: Buffer, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  if (output.errored !== null) throw output.errored
  if (!output.write(bytes)) await once(output, 'drain', { signal })
}
function padded(bytes: Buffer, clusters = 1): Buffer {
  const whole = Buffer.alloc(clusters * CLUSTER_BYTES)
  bytes.copy(whole)
  return whole
}
