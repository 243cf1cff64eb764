/** A look at LMDB's file before LMDB maps it: on a file that is not its own, or that was cut short, the native code ends
 *  the process instead of throwing.
 *
 *  A meta page: 18 flags u16 (8 = meta) | 24 magic u32 | 28 version u32 (low 16 bits: 2) | 48 page bytes u32 |
 *  144 last page u64. Meta pages are pages 0 and 1. Source: mdb.c of lmdb 3.5.6 (MDB_meta).
 */
import { closeSync, fstatSync, ftruncateSync, openSync, readSync } from 'node:fs'
import { corrupt } from './checksum.js'

export const INDEX_PAGE_BYTES = 4096
const META_BYTES = 256
const META_FLAG = 8
const MAGIC = 0xbeef_c0de
const DATA_VERSION = 2

/** Empty (new) or plausible when it returns, and as long as its meta pages say: LMDB may leave free pages at the end
 *  unwritten, so a short file is lengthened with zeros. What a cut took is then a zero page, which LMDB refuses as
 *  corrupted; without them it would be a bus error. @throws {RoostError} INDEX_CORRUPT */
export function prepareLmdbFile(file: string): void {
  const fd = openSync(file, 'r+')
  try {
    const { size: fileBytes } = fstatSync(fd)
    if (fileBytes === 0) return
    if (fileBytes < 2 * INDEX_PAGE_BYTES) throw corrupt('The index file is cut short.')
    const pages = 1 + Math.max(lastPageOf(fd, 0), lastPageOf(fd, INDEX_PAGE_BYTES))
    if (fileBytes < pages * INDEX_PAGE_BYTES) ftruncateSync(fd, pages * INDEX_PAGE_BYTES)
  } finally {
    closeSync(fd)
  }
}

function lastPageOf(fd: number, at: number): number {
  const meta = Buffer.alloc(META_BYTES)
  readSync(fd, meta, 0, META_BYTES, at)
  const lastPage = Number(meta.readBigUInt64LE(144))
  const plausible = (meta.readUInt16LE(18) & META_FLAG) !== 0 && meta.readUInt32LE(24) === MAGIC &&
    meta.readUInt16LE(28) === DATA_VERSION && meta.readUInt32LE(48) === INDEX_PAGE_BYTES && lastPage < 2 ** 40
  if (!plausible) throw corrupt('The index file is not an index, or its head is damaged.')
  return lastPage
}

/** How the environment is opened. */
export function environmentOptions(directory: string, mapBytes: number) {
  return {
    path: directory,
    noSubdir: false,
    maxDbs: 32,
    maxReaders: 126,
    // Ample from the start, so that growth hardly ever means a new map.
    mapSize: mapBytes,
    remapChunks: false,
    pageSize: INDEX_PAGE_BYTES,
    // Commit and fsync overlap with the next transaction; a power cut falls back to the last synced one.
    overlappingSync: true,
    noSync: false,
    noMetaSync: false,
    useWritemap: false,
    // Pages are zeroed before use: freed memory of this process, keys among it, must not reach the disk.
    noMemInit: false,
    cache: false,
    compression: false,
    encoding: 'binary' as const,
    keyEncoding: 'binary' as const,
    commitDelay: 0,
    eventTurnBatching: true,
  }
}
