/** The fixed-width value of one chunk: 44 bytes, little-endian, under the 32-byte chunk id as key.
 *
 *    0 pack number u32 | 4 kind (2 bits) and entry number (30 bits) u32 | 8 block offset u32 | 12 block stored bytes u32
 *   16 offset in block u32 | 20 raw bytes u32 | 24 proof 16 | 40 check u32 over version, id and the 40 bytes before
 *
 *  The check binds the id, so a value under a wrong key is found as surely as a flipped byte. Nothing here allocates:
 *  the index keeps one scratch value and one scratch key, and a lookup of 10 000 ids makes no objects.
 */
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, PROOF_BYTES, isChunkKind, type ChunkKind } from '../core/ids.js'
import type { Locations, PackEntries } from './chunk-index.js'
import { corrupt, finishCheck, mixWord, wordAt } from './checksum.js'

export const CHUNK_VALUE_BYTES = 44
const PROOF_AT = 24
const CHECK_AT = 40
const ENTRY_BITS = 30
const ENTRY_MASK = 2 ** ENTRY_BITS - 1
/** Format version 1; a value of another version fails its check. */
const CHECK_SEED = 0x526f_0001

function checkOf(value: Uint8Array, ids: Uint8Array, idAt: number): number {
  let h = CHECK_SEED
  for (let at = idAt; at < idAt + CHUNK_ID_BYTES; at += 4) h = mixWord(h, wordAt(ids, at))
  for (let at = 0; at < CHECK_AT; at += 4) h = mixWord(h, wordAt(value, at))
  return finishCheck(h)
}

/** Writes entry `entry` of a pack into `value` (44 bytes). */
export function encodeChunkValue(value: Buffer, packNumber: number, kind: ChunkKind, entries: PackEntries,
  entry: number): void {
  const idAt = entry * ID_PROOF_BYTES
  value.writeUInt32LE(packNumber, 0)
  value.writeUInt32LE(kind * 2 ** ENTRY_BITS + entry, 4)
  value.writeUInt32LE(entries.blockOffsets[entry]!, 8)
  value.writeUInt32LE(entries.blockStoredBytes[entry]!, 12)
  value.writeUInt32LE(entries.offsetsInBlock[entry]!, 16)
  value.writeUInt32LE(entries.rawBytes[entry]!, 20)
  entries.idProofs.copy(value, PROOF_AT, idAt + CHUNK_ID_BYTES, idAt + ID_PROOF_BYTES)
  value.writeUInt32LE(checkOf(value, entries.idProofs, idAt), CHECK_AT)
}

/** @throws {RoostError} INDEX_CORRUPT unless `value` is whole and belongs to the id at `idAt`. */
export function checkChunkValue(value: Uint8Array, ids: Uint8Array, idAt: number): void {
  if (value.length !== CHUNK_VALUE_BYTES || (wordAt(value, CHECK_AT) >>> 0) !== checkOf(value, ids, idAt))
    throw corrupt('The entry of a chunk fails its check.')
  if (!isChunkKind(kindOfValue(value)) || packNumberOfValue(value) === 0) throw corrupt('The entry of a chunk has no kind.')
}
/** Whether a checked value of the same id says what the entry says of place and length. */
export function entryMatches(value: Uint8Array, entries: PackEntries, entry: number): boolean {
  return (wordAt(value, 8) >>> 0) === entries.blockOffsets[entry] && (wordAt(value, 12) >>> 0) === entries.blockStoredBytes[entry] &&
    (wordAt(value, 16) >>> 0) === entries.offsetsInBlock[entry] && rawBytesOfValue(value) === entries.rawBytes[entry] &&
    proofMatches(value, entries.idProofs, entry * ID_PROOF_BYTES + CHUNK_ID_BYTES)
}
export const packNumberOfValue = (value: Uint8Array): number => wordAt(value, 0) >>> 0
export const entryNumberOfValue = (value: Uint8Array): number => wordAt(value, 4) & ENTRY_MASK
export const kindOfValue = (value: Uint8Array): number => wordAt(value, 4) >>> ENTRY_BITS
export const rawBytesOfValue = (value: Uint8Array): number => wordAt(value, 20) >>> 0

/** Compares all 16 bytes whatever they are, without a branch on their content: time tells nothing about how far a guess
 *  was right. */
export function proofMatches(value: Uint8Array, idProofs: Uint8Array, proofAt: number): boolean {
  let difference = 0
  for (let i = 0; i < PROOF_BYTES; i += 4) difference |= wordAt(value, PROOF_AT + i) ^ wordAt(idProofs, proofAt + i)
  return difference === 0
}

export function emptyLocations(count: number): Locations {
  return {
    count, packNumbers: new Uint32Array(count), entryNumbers: new Uint32Array(count), kinds: new Uint8Array(count),
    blockOffsets: new Uint32Array(count), blockStoredBytes: new Uint32Array(count),
    offsetsInBlock: new Uint32Array(count), rawBytes: new Uint32Array(count),
  }
}
/** Stores a checked value as row `row`. */
export function putLocation(locations: Locations, row: number, value: Uint8Array): void {
  locations.packNumbers[row] = packNumberOfValue(value)
  locations.entryNumbers[row] = entryNumberOfValue(value)
  locations.kinds[row] = kindOfValue(value)
  locations.blockOffsets[row] = wordAt(value, 8)
  locations.blockStoredBytes[row] = wordAt(value, 12)
  locations.offsetsInBlock[row] = wordAt(value, 16)
  locations.rawBytes[row] = wordAt(value, 20)
}
