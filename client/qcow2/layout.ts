/** Where everything of a qcow2 file is (version 3, docs/interop/qcow2.txt of QEMU), for an image that is written once, in one go. Pure.
 *
 *      header | L1 table | room for all L2 tables | data clusters, in the order of the image | refcount blocks | refcount table
 *
 *  The room for L2 tables is as if every stretch of the image had data; those that are not needed stay holes in the file. So the place of a
 *  data cluster follows from how many came before it, nothing must be known beforehand, and chunks can be written in any order.
 */
import { RoostError } from '../../src/core/errors.js'

export const CLUSTER_BITS = 16
export const CLUSTER_BYTES = 1 << CLUSTER_BITS
const ENTRY_BYTES = 8
/** Of an L2 table: 512 MiB of image. */
export const ENTRIES_PER_TABLE = CLUSTER_BYTES / ENTRY_BYTES
export const TABLE_SPAN_BYTES = ENTRIES_PER_TABLE * CLUSTER_BYTES
const REFCOUNT_BITS_LOG2 = 4
const REFCOUNT_BYTES = 2
export const REFCOUNTS_PER_BLOCK = CLUSTER_BYTES / REFCOUNT_BYTES
const HEADER_BYTES = 104
const MAGIC = 0x514649fb
const SECTOR_BYTES = 512
/** QEMU's own bound for L1 tables: 32 MiB. */
const L1_BYTES_MAX = 32 * 1024 * 1024
/** "Refcount is exactly one": the cluster is written in place. */
const COPIED = 1n << 63n

const clustersFor = (bytes: number): number => Math.ceil(bytes / CLUSTER_BYTES)

export interface Qcow2Shape {
  /** What the guest sees: the image's length, up to whole sectors. */
  readonly virtualBytes: number
  readonly tables: number
  readonly l1Cluster: number
  readonly firstTableCluster: number
  readonly firstDataCluster: number
}
/** @throws {RoostError} LIMIT_EXCEEDED beyond 2 PiB */
export function shapeOf(imageBytes: number): Qcow2Shape {
  const virtualBytes = Math.ceil(imageBytes / SECTOR_BYTES) * SECTOR_BYTES
  const tables = Math.ceil(virtualBytes / TABLE_SPAN_BYTES)
  if (tables * ENTRY_BYTES > L1_BYTES_MAX)
    throw new RoostError('LIMIT_EXCEEDED', 'The image is larger than a qcow2 file of this kind can be.', { limit: L1_BYTES_MAX / ENTRY_BYTES * TABLE_SPAN_BYTES })
  const firstTableCluster = 1 + Math.max(1, clustersFor(tables * ENTRY_BYTES))
  return { virtualBytes, tables, l1Cluster: 1, firstTableCluster, firstDataCluster: firstTableCluster + tables }
}
export const tableOffset = (shape: Qcow2Shape, table: number): number => (shape.firstTableCluster + table) * CLUSTER_BYTES
export const dataOffset = (shape: Qcow2Shape, place: number): number => (shape.firstDataCluster + place) * CLUSTER_BYTES

/** An L1 or L2 entry that leads to a cluster of the file. */
export const entryTo = (fileOffset: number): bigint => BigInt(fileOffset) | COPIED

export interface RefcountPlace { readonly blocks: number; readonly firstBlockCluster: number; readonly tableCluster: number; readonly tableClusters: number; readonly endCluster: number }
/** Refcounts of everything up to their own end, after `dataClusters` of data. */
export function placeRefcounts(shape: Qcow2Shape, dataClusters: number): RefcountPlace {
  const firstBlockCluster = shape.firstDataCluster + dataClusters
  for (let blocks = 1; ; blocks++) {
    const tableClusters = clustersFor(blocks * ENTRY_BYTES)
    const endCluster = firstBlockCluster + blocks + tableClusters
    const needed = Math.ceil(endCluster / REFCOUNTS_PER_BLOCK)
    if (needed <= blocks) return { blocks, firstBlockCluster, tableCluster: firstBlockCluster + blocks, tableClusters, endCluster }
    blocks = Math.max(blocks, needed - 1)
  }
}
export function encodeHeader(shape: Qcow2Shape, refcounts: RefcountPlace): Buffer {
  const header = Buffer.alloc(HEADER_BYTES + 8) // with the extension that ends the list of extensions
  header.writeUInt32BE(MAGIC, 0)
  header.writeUInt32BE(3, 4)
  header.writeUInt32BE(CLUSTER_BITS, 20)
  header.writeBigUInt64BE(BigInt(shape.virtualBytes), 24)
  header.writeUInt32BE(shape.tables, 36)
  header.writeBigUInt64BE(BigInt(shape.l1Cluster * CLUSTER_BYTES), 40)
  header.writeBigUInt64BE(BigInt(refcounts.tableCluster * CLUSTER_BYTES), 48)
  header.writeUInt32BE(refcounts.tableClusters, 56)
  header.writeUInt32BE(REFCOUNT_BITS_LOG2, 96)
  header.writeUInt32BE(HEADER_BYTES, 100)
  return header
}
