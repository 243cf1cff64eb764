/** The big table: chunk id → where it is. Batches are looked up and inserted in key order, because a B-tree walks sorted
 *  keys about twice as fast as random ones (docs/benchmarks.md), and nothing is allocated per record.
 */
import { assert } from '../core/assert.js'
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, type ChunkKind } from '../core/ids.js'
import type { Locations, PackEntries } from './chunk-index.js'
import { CHUNK_VALUE_BYTES, checkChunkValue, emptyLocations, encodeChunkValue, entryNumberOfValue, kindOfValue,
  packNumberOfValue,
  proofMatches, putLocation } from './entry-codec.js'
import { copyId } from '../core/bytes.js'
import { PositionList, positionOf } from './positions.js'
import { isNodeKind } from './row-codec.js'
import type { Table } from './table.js'

/** An order key holds 32 bits of the id above this many bits of row number. */
const ROW_BITS = 20

/** Row numbers in order of the first four id bytes: near enough to key order for the tree's cache. */
export function rowsInIdOrder(ids: Buffer, stride: number, count: number): Uint32Array {
  assert(count < 2 ** ROW_BITS, 'a batch is far smaller than a million')
  const order = new Float64Array(count)
  for (let row = 0; row < count; row++) order[row] = ids.readUInt32BE(row * stride) * 2 ** ROW_BITS + row
  order.sort()
  const rows = new Uint32Array(count)
  for (let i = 0; i < count; i++) rows[i] = order[i]! % 2 ** ROW_BITS
  return rows
}

export class ChunkTable {
  readonly #table: Table
  /** Their own memory: the native side caches a buffer's address by its ArrayBuffer. */
  readonly #key = Buffer.allocUnsafeSlow(CHUNK_ID_BYTES)
  readonly #value = Buffer.allocUnsafeSlow(CHUNK_VALUE_BYTES)
  constructor(table: Table) { this.#table = table }

  /** The checked value of the id at `idAt`, valid until the next read. @throws {RoostError} INDEX_CORRUPT */
  find(ids: Buffer, idAt: number): Buffer | undefined {
    copyId(ids, idAt, this.#key, 0)
    const value = this.#table.getBinaryFast(this.#key)
    if (value !== undefined) checkChunkValue(value, ids, idAt)
    return value
  }

  locate(ids: Buffer): Locations {
    const count = countOf(ids, CHUNK_ID_BYTES)
    const locations = emptyLocations(count)
    const rows = rowsInIdOrder(ids, CHUNK_ID_BYTES, count)
    for (let i = 0; i < count; i++) {
      const value = this.find(ids, rows[i]! * CHUNK_ID_BYTES)
      if (value !== undefined) putLocation(locations, rows[i]!, value)
    }
    return locations
  }

  /** Which ids are present (bit i of `found`) and their positions, ascending. With a stride of ID_PROOF_BYTES an id
   *  counts as present only with the right proof. */
  present(ids: Buffer, stride: number): { found: Uint8Array; positions: Float64Array } {
    const count = countOf(ids, stride)
    const found = new Uint8Array(Math.ceil(count / 8))
    const positions = new PositionList(count)
    const rows = rowsInIdOrder(ids, stride, count)
    for (let i = 0; i < count; i++) {
      const row = rows[i]!
      const value = this.find(ids, row * stride)
      if (value === undefined) continue
      if (stride === ID_PROOF_BYTES && !proofMatches(value, ids, row * stride + CHUNK_ID_BYTES)) continue
      found[row >>> 3]! |= 1 << (row & 7)
      positions.push(packNumberOfValue(value), entryNumberOfValue(value))
    }
    return { found, positions: positions.sorted() }
  }

  /** Inserts a pack's entries in key order; `onDead` hears of each whose id was live already. Inside a transaction.
   *  @returns how many were added. */
  insert(packNumber: number, kind: ChunkKind, entries: PackEntries, onDead: (entry: number) => void): number {
    const rows = rowsInIdOrder(entries.idProofs, ID_PROOF_BYTES, entries.count)
    let added = 0
    for (let i = 0; i < entries.count; i++) {
      const entry = rows[i]!
      encodeChunkValue(this.#value, packNumber, kind, entries, entry)
      entries.idProofs.copy(this.#key, 0, entry * ID_PROOF_BYTES, entry * ID_PROOF_BYTES + CHUNK_ID_BYTES)
      if (this.#table.putSync(this.#key, this.#value, NO_OVERWRITE)) added++
      else onDead(entry)
    }
    return added
  }

  /** Where the id is, as a position; undefined = nowhere. */
  position(id: Buffer): number | undefined {
    const value = this.find(id, 0)
    return value === undefined ? undefined : positionOf(packNumberOfValue(value), entryNumberOfValue(value))
  }

  /** Whether entry `entry` of the pack is where its id lives. */
  isLiveAt(packNumber: number, entries: PackEntries, entry: number): boolean {
    const value = this.find(entries.idProofs, entry * ID_PROOF_BYTES)
    return value !== undefined && packNumberOfValue(value) === packNumber && entryNumberOfValue(value) === entry
  }
  /** Inside a transaction: the id of that entry is nowhere any more. */
  remove(entries: PackEntries, entry: number): void { this.removeAt(entries.idProofs, entry * ID_PROOF_BYTES) }
  removeAt(ids: Buffer, idAt: number): void {
    copyId(ids, idAt, this.#key, 0)
    this.#table.removeSync(this.#key)
  }
  /** Inside a transaction: the id lives at that entry from now on. */
  replace(packNumber: number, kind: ChunkKind, entries: PackEntries, entry: number): void {
    encodeChunkValue(this.#value, packNumber, kind, entries, entry)
    entries.idProofs.copy(this.#key, 0, entry * ID_PROOF_BYTES, entry * ID_PROOF_BYTES + CHUNK_ID_BYTES)
    this.#table.putSync(this.#key, this.#value)
  }

  /** Removes entries that lie in one of `packs`, among the `limit` keys after `after`. Inside a transaction.
   *  @returns how many of each kind, which of each pack, and where to go on (undefined = that was all). */
  removeOf(packs: ReadonlySet<number>, after: Buffer | undefined, limit: number): { next: Buffer | undefined; data: number; nodes: number; lost: Map<number, Buffer[]> } {
    let next: Buffer | undefined, data = 0, nodes = 0
    const lost = new Map<number, Buffer[]>()
    const range = after === undefined ? { limit } : { start: after, exclusiveStart: true, limit }
    for (const { key, value } of [...this.#table.getRange(range)]) {
      next = key
      const pack = packNumberOfValue(value)
      if (!packs.has(pack)) continue
      if (isNodeKind(kindOfValue(value) as ChunkKind)) nodes++
      else data++
      this.#table.removeSync(key)
      const ids = lost.get(pack)
      if (ids === undefined) lost.set(pack, [Buffer.from(key)])
      else ids.push(Buffer.from(key))
    }
    return { next, data, nodes, lost }
  }

  scan(after: Buffer | undefined, limit: number): { ids: Buffer; locations: Locations } {
    const keys: Buffer[] = []
    const values: Buffer[] = []
    const range = after === undefined ? { limit } : { start: after, exclusiveStart: true, limit }
    for (const { key, value } of this.#table.getRange(range)) {
      checkChunkValue(value, key, 0)
      keys.push(key)
      values.push(value)
    }
    const locations = emptyLocations(keys.length)
    values.forEach((value, row) => putLocation(locations, row, value))
    return { ids: Buffer.concat(keys), locations }
  }
}

const NO_OVERWRITE = { noOverwrite: true } as const

function countOf(ids: Buffer, stride: number): number {
  assert(ids.length % stride === 0, 'a packed batch holds whole records')
  return ids.length / stride
}
