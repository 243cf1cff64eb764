/** Writes one qcow2 file of an image whose extents come in order and whose bytes come in any: sparse, without temporary space.
 *
 *  Memory: one L2 table, the L1 table (8 bytes for 512 MiB of image), one refcount block.
 */
import { fsyncSync, ftruncateSync, writeSync } from 'node:fs'
import { assert } from '../../src/core/assert.js'
import {
  CLUSTER_BYTES, dataOffset, ENTRIES_PER_TABLE, encodeHeader, entryTo, placeRefcounts, REFCOUNTS_PER_BLOCK, shapeOf, tableOffset,
  type Qcow2Shape, type RefcountPlace,
} from './layout.js'

export class Qcow2File {
  readonly #shape: Qcow2Shape
  readonly #l1: Buffer
  #table: Buffer | undefined
  #tableNumber = -1
  /** The next cluster of the image that has no place yet. */
  #nextCluster = 0
  #dataClusters = 0

  /** `fd`: of an empty file, open for writing. */
  constructor(readonly fd: number, imageBytes: number) {
    this.#shape = shapeOf(imageBytes)
    this.#l1 = Buffer.alloc(this.#shape.tables * 8)
  }
  /** Gives the bytes from `offset` on a place, and says where in the file they go: all of them one after the other. Ascending, without overlap. */
  place(offset: number, bytes: number): number {
    const first = Math.floor(offset / CLUSTER_BYTES)
    const last = Math.floor((offset + bytes - 1) / CLUSTER_BYTES)
    assert(bytes > 0 && first >= this.#nextCluster - 1, 'extents come in order')
    for (let cluster = Math.max(first, this.#nextCluster); cluster <= last; cluster++) this.#placeCluster(cluster)
    this.#nextCluster = last + 1
    // The clusters of one extent lie side by side, and `last` was placed last.
    return dataOffset(this.#shape, this.#dataClusters - 1) - (last - first) * CLUSTER_BYTES + offset % CLUSTER_BYTES
  }
  write(bytes: Buffer, fileOffset: number): void {
    for (let done = 0; done < bytes.byteLength;) done += writeSync(this.fd, bytes, done, bytes.byteLength - done, fileOffset + done)
  }
  /** Everything was placed and written: the file becomes a qcow2 file, on stable storage. */
  finish(): void {
    this.#endTable()
    const refcounts = placeRefcounts(this.#shape, this.#dataClusters)
    ftruncateSync(this.fd, refcounts.endCluster * CLUSTER_BYTES)
    this.write(this.#l1, this.#shape.l1Cluster * CLUSTER_BYTES)
    this.#writeRefcounts(refcounts)
    this.write(encodeHeader(this.#shape, refcounts), 0)
    fsyncSync(this.fd)
  }

  #placeCluster(cluster: number): void {
    const table = Math.floor(cluster / ENTRIES_PER_TABLE)
    if (table !== this.#tableNumber) {
      this.#endTable()
      this.#tableNumber = table
      this.#table = Buffer.alloc(CLUSTER_BYTES)
    }
    this.#table!.writeBigUInt64BE(entryTo(dataOffset(this.#shape, this.#dataClusters++)), cluster % ENTRIES_PER_TABLE * 8)
  }
  #endTable(): void {
    if (this.#table === undefined) return
    const at = tableOffset(this.#shape, this.#tableNumber)
    this.write(this.#table, at)
    this.#l1.writeBigUInt64BE(entryTo(at), this.#tableNumber * 8)
    this.#table = undefined
  }
  #writeRefcounts({ blocks, firstBlockCluster, tableCluster, tableClusters, endCluster }: RefcountPlace): void {
    const table = Buffer.alloc(tableClusters * CLUSTER_BYTES)
    for (let block = 0; block < blocks; block++) {
      const first = block * REFCOUNTS_PER_BLOCK
      const counts = Buffer.alloc(CLUSTER_BYTES)
      for (let cluster = first; cluster < Math.min(first + REFCOUNTS_PER_BLOCK, endCluster); cluster++)
        if (this.#isUsed(cluster)) counts.writeUInt16BE(1, (cluster - first) * 2)
      this.write(counts, (firstBlockCluster + block) * CLUSTER_BYTES)
      table.writeBigUInt64BE(BigInt((firstBlockCluster + block) * CLUSTER_BYTES), block * 8)
    }
    this.write(table, tableCluster * CLUSTER_BYTES)
  }
  /** All but the L2 tables that nothing needed. */
  #isUsed(cluster: number): boolean {
    const table = cluster - this.#shape.firstTableCluster
    return table < 0 || table >= this.#shape.tables || this.#l1.readBigUInt64BE(table * 8) !== 0n
  }
}
