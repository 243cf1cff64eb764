/** Pack format v1: pure encoding and decoding (docs/formats/pack-v1.md has the byte tables and a worked example).
 *
 *  header 64 | block … | trailer | footer 32
 *
 *  header  magic "ROOSTPK1" 8 | version u16 | kind u8 | 0 u8 | 0 u32 | repository id 16 | salt 32
 *  block   AES-256-GCM of: codec u8 | rawBytes u32 | payload. Many chunks share a block: they compress better together, and
 *          their lengths are hidden from the storage provider.
 *  trailer AES-256-GCM of: codec u8 | rawBytes u32 | payload; the payload lists blocks and entries.
 *  footer  trailerBytes u32 | blockCount u32 | entryCount u32 | version u16 | 0 u16 | 0 u64 | magic "1KPTSOOR" 8
 *
 *  The key is BLAKE3, keyed with the repository's pack key, of the header: a fresh salt gives a fresh key. Nonces are byte
 *  offsets within the pack plus a label, so none repeats under a key. Header (and, for the trailer, footer) are associated data:
 *  repository, kind and pack cannot be swapped. A chunk id is bound by recomputing it from the plaintext at every read.
 */
import { assert } from '../core/assert.js'
import { ByteReader, ByteWriter } from '../core/bytes.js'
import { GROUP_CODECS } from '../core/chunk-groups.js'
import { RoostError } from '../core/errors.js'
import { hashChunk, keyedDigest } from '../core/hash.js'
import { ID_PROOF_BYTES, isChunkKind, type ChunkKind, type RepositoryId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import { seal, SEAL_NONCE_BYTES, SEAL_TAG_BYTES, unseal } from '../core/seal.js'
import { zstdDecode, type ZstdEncoder } from '../core/zstd.js'
import type { PackEntries } from '../index/chunk-index.js'

export const PACK_HEADER_BYTES = 64
export const PACK_FOOTER_BYTES = 32
export const PACK_SALT_BYTES = 32
const HEADER_MAGIC = Buffer.from('ROOSTPK1', 'latin1')
const FOOTER_MAGIC = Buffer.from('1KPTSOOR', 'latin1')
const VERSION = 1
const SEALED_PREFIX_BYTES = 5
/** What sealing adds to a payload. */
export const SEALED_OVERHEAD_BYTES = SEALED_PREFIX_BYTES + SEAL_TAG_BYTES
const CODECS = { stored: 0, zstd: 1 } as const
/** Compression that saves less than this share is not worth the reader's time. */
const SAVING_MIN = 1 / 64
const LABELS = { block: 0, trailer: 1 } as const
const TRAILER_BLOCK_BYTES = 8
const TRAILER_ENTRY_BYTES = ID_PROOF_BYTES + 4

export interface PackHeader { readonly kind: ChunkKind; readonly repositoryId: RepositoryId; readonly salt: Buffer }

export function encodePackHeader(header: PackHeader): Buffer {
  assert(header.salt.byteLength === PACK_SALT_BYTES, 'a pack salt is 32 bytes')
  const bytes = new ByteWriter(PACK_HEADER_BYTES).bytes(HEADER_MAGIC).u16(VERSION).u8(header.kind).u8(0).u32(0)
    .bytes(Buffer.from(header.repositoryId, 'hex')).bytes(header.salt).finish()
  assert(bytes.byteLength === PACK_HEADER_BYTES, 'a pack header is 64 bytes')
  return bytes
}
/** @throws {RoostError} PACK_CORRUPT */
export function decodePackHeader(bytes: Buffer): PackHeader {
  const reader = new ByteReader(bytes, packCorrupt)
  if (!reader.bytes(8, 'magic').equals(HEADER_MAGIC)) throw packCorrupt('it has no pack header', 0)
  const version = reader.u16('version')
  if (version !== VERSION) throw packCorrupt(`its format version ${version} is unknown`, 8)
  const kind = reader.u8('kind')
  if (!isChunkKind(kind)) throw packCorrupt('its kind is unknown', 10)
  if (reader.u8('reserved') !== 0 || reader.u32('reserved') !== 0) throw packCorrupt('reserved bytes are set', 11)
  const repositoryId = reader.bytes(16, 'repository id').toString('hex') as RepositoryId
  return { kind, repositoryId, salt: Buffer.from(reader.bytes(PACK_SALT_BYTES, 'salt')) }
}

/** The secret of one pack: everything that sealing and opening its parts needs. */
export interface PackSecret { readonly key: Buffer; readonly header: Buffer }
export const packSecret = (packKey: Buffer, header: Buffer): PackSecret => ({ key: keyedDigest(packKey, header), header })

function nonceAt(offset: number, label: number): Buffer {
  const nonce = Buffer.alloc(SEAL_NONCE_BYTES)
  nonce.writeUInt32LE(offset, 0)
  nonce.writeUInt32LE(label, 8)
  return nonce
}

/** Seals `parts` (concatenated, at most 2^32 bytes) for `offset`. Returns ciphertext pieces to be written in order. */
export function sealBlock(secret: PackSecret, offset: number, parts: readonly Uint8Array[], encoder: ZstdEncoder): Buffer[] {
  return sealPart(secret, offset, LABELS.block, secret.header, parts, encoder)
}
function sealPart(secret: PackSecret, offset: number, label: number, associated: Buffer, parts: readonly Uint8Array[],
  encoder: ZstdEncoder): Buffer[] {
  const raw = gather(parts)
  const encoded = encoder.encode(raw)
  const worthIt = encoded.byteLength < raw.byteLength * (1 - SAVING_MIN)
  const prefix = Buffer.alloc(SEALED_PREFIX_BYTES)
  prefix[0] = worthIt ? CODECS.zstd : CODECS.stored
  prefix.writeUInt32LE(raw.byteLength, 1)
  return seal(secret.key, nonceAt(offset, label), associated, [prefix, worthIt ? encoded : raw])
}

/** Where the parts of a block are brought together: one for each thread, because sealing never waits. Fresh memory for each block would
 *  cost more than the copy. */
let gathered = Buffer.alloc(0)
/** The parts as one run of bytes that is not shared with another thread, valid until the next call. */
function gather(parts: readonly Uint8Array[]): Buffer {
  const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0)
  if (gathered.byteLength < bytes) gathered = Buffer.allocUnsafeSlow(bytes)
  let at = 0
  for (const part of parts) {
    gathered.set(part, at)
    at += part.byteLength
  }
  return gathered.subarray(0, bytes)
}

/** The plaintext of a block. @throws {RoostError} PACK_CORRUPT unless every byte is as it was sealed. */
export function openBlock(secret: PackSecret, offset: number, sealed: Buffer): Buffer {
  return openPart(secret, offset, LABELS.block, secret.header, sealed, LIMITS.packBytesMax)
}
/** Where a chunk lies in a block's plaintext. */
export interface BlockPart { readonly offset: number; readonly bytes: number }
/** Those chunks of a block, compressed together: as they lie there when that is all of it, or else anew. The first byte says which codec of
 *  core/chunk-groups.ts it is. @param parts in ascending order, apart from each other. @throws {RoostError} PACK_CORRUPT */
export function regroupBlock(secret: PackSecret, offset: number, sealed: Buffer, parts: readonly BlockPart[], encoder: ZstdEncoder): Buffer {
  const plain = unseal(secret.key, nonceAt(offset, LABELS.block), secret.header, sealed)
  if (plain === undefined) throw packCorrupt('a sealed part fails authentication', offset)
  const reader = new ByteReader(plain, packCorrupt)
  const codec = reader.u8('codec'), rawBytes = reader.u32('raw length', LIMITS.packBytesMax), payload = reader.rest()
  const isWhole = parts.reduce((sum, part) => sum + part.bytes, 0) === rawBytes
  if (isWhole && codec === CODECS.zstd) return Buffer.concat([Buffer.from([GROUP_CODECS.zstd]), payload])
  const raw = codec === CODECS.zstd ? zstdDecode(payload, rawBytes) : payload.byteLength === rawBytes ? payload : undefined
  if (raw === undefined) throw packCorrupt('a sealed part does not decompress', offset)
  if (parts.some((part) => part.offset + part.bytes > rawBytes)) throw packCorrupt('its index names chunks past the end of a block', offset)
  const wanted = gather(parts.map((part) => raw.subarray(part.offset, part.offset + part.bytes)))
  const encoded = isWhole ? wanted : encoder.encode(wanted)
  return encoded.byteLength < wanted.byteLength * (1 - SAVING_MIN) ? Buffer.concat([Buffer.from([GROUP_CODECS.zstd]), encoded]) : Buffer.concat([Buffer.from([GROUP_CODECS.raw]), wanted])
}
function openPart(secret: PackSecret, offset: number, label: number, associated: Buffer, sealed: Buffer, rawMax: number): Buffer {
  const plain = unseal(secret.key, nonceAt(offset, label), associated, sealed)
  if (plain === undefined) throw packCorrupt('a sealed part fails authentication', offset)
  const reader = new ByteReader(plain, packCorrupt)
  const codec = reader.u8('codec')
  const rawBytes = reader.u32('raw length', rawMax)
  const payload = reader.rest()
  if (codec === CODECS.stored && payload.byteLength === rawBytes) return payload
  const raw = codec === CODECS.zstd ? zstdDecode(payload, rawBytes) : undefined
  if (raw === undefined) throw packCorrupt('a sealed part does not decompress', offset)
  return raw
}

export interface PackFooter { readonly trailerBytes: number; readonly blockCount: number; readonly entryCount: number }
function encodeFooter(footer: PackFooter): Buffer {
  return new ByteWriter(PACK_FOOTER_BYTES).u32(footer.trailerBytes).u32(footer.blockCount).u32(footer.entryCount)
    .u16(VERSION).u16(0).u64(0).bytes(FOOTER_MAGIC).finish()
}
/** @throws {RoostError} PACK_CORRUPT */
export function decodePackFooter(bytes: Buffer): PackFooter {
  const reader = new ByteReader(bytes, packCorrupt)
  const trailerBytes = reader.u32('trailer length', LIMITS.packBytesMax)
  const blockCount = reader.u32('block count', LIMITS.packEntriesMax)
  const entryCount = reader.u32('entry count', LIMITS.packEntriesMax)
  if (reader.u16('version') !== VERSION) throw packCorrupt('its footer has an unknown version', 12)
  if (reader.u16('reserved') !== 0 || reader.u64('reserved') !== 0) throw packCorrupt('reserved bytes are set', 14)
  if (!reader.bytes(8, 'magic').equals(FOOTER_MAGIC)) throw packCorrupt('it has no pack footer', 24)
  reader.expectEnd('the footer')
  return { trailerBytes, blockCount, entryCount }
}

export interface PackBlock { readonly storedBytes: number; readonly entryCount: number }
export interface PackTrailer { readonly blocks: readonly PackBlock[]; readonly entries: PackEntries }

/** Trailer and footer for a pack whose blocks end at `offset`. */
export function encodeTrailer(secret: PackSecret, offset: number, blocks: readonly PackBlock[], idProofs: Buffer, rawBytes: Uint32Array,
  encoder: ZstdEncoder): Buffer[] {
  const entryCount = rawBytes.length
  assert(idProofs.byteLength === entryCount * ID_PROOF_BYTES, 'one id and proof per entry')
  const list = new ByteWriter(blocks.length * TRAILER_BLOCK_BYTES + entryCount * TRAILER_ENTRY_BYTES)
  for (const block of blocks) list.u32(block.storedBytes).u32(block.entryCount)
  list.bytes(idProofs)
  for (let i = 0; i < entryCount; i++) list.u32(rawBytes[i]!)
  const plain = list.finish()
  // Sealed twice would be needed to know the length before the footer is bound; the footer's counts are bound, its length is
  // proven by where authentication succeeds.
  const bound = encodeFooter({ trailerBytes: 0, blockCount: blocks.length, entryCount })
  const sealed = sealPart(secret, offset, LABELS.trailer, Buffer.concat([secret.header, bound]), [plain], encoder)
  const trailerBytes = sealed.reduce((sum, piece) => sum + piece.byteLength, 0)
  return [...sealed, encodeFooter({ trailerBytes, blockCount: blocks.length, entryCount })]
}

/** @param sealed the trailer's bytes, starting at `offset` in the pack. @throws {RoostError} PACK_CORRUPT */
export function decodeTrailer(secret: PackSecret, offset: number, sealed: Buffer, footer: PackFooter): PackTrailer {
  const { blockCount, entryCount } = footer
  const bound = encodeFooter({ trailerBytes: 0, blockCount, entryCount })
  const plainBytes = blockCount * TRAILER_BLOCK_BYTES + entryCount * TRAILER_ENTRY_BYTES
  const plain = openPart(secret, offset, LABELS.trailer, Buffer.concat([secret.header, bound]), sealed, plainBytes)
  const reader = new ByteReader(plain, packCorrupt)
  const blocks: PackBlock[] = []
  for (let b = 0; b < blockCount; b++)
    blocks.push({ storedBytes: reader.u32('block length', LIMITS.packBytesMax), entryCount: reader.u32('block entries', entryCount) })
  const idProofs = Buffer.from(reader.bytes(entryCount * ID_PROOF_BYTES, 'ids'))
  const rawBytes = new Uint32Array(entryCount)
  for (let i = 0; i < entryCount; i++) rawBytes[i] = reader.u32('chunk length', LIMITS.chunkBytesMax)
  reader.expectEnd('the trailer')
  const entries = placeEntries(blocks, idProofs, rawBytes)
  if (PACK_HEADER_BYTES + blocks.reduce((sum, block) => sum + block.storedBytes, 0) !== offset)
    throw packCorrupt('its blocks do not add up to where its trailer is', offset)
  return { blocks, entries }
}

/** Blocks lie one after another and so do entries within a block: positions follow from lengths. */
export function placeEntries(blocks: readonly PackBlock[], idProofs: Buffer, rawBytes: Uint32Array): PackEntries {
  const count = rawBytes.length
  const blockOffsets = new Uint32Array(count), blockStoredBytes = new Uint32Array(count), offsetsInBlock = new Uint32Array(count)
  let entry = 0, offset = PACK_HEADER_BYTES
  for (const block of blocks) {
    let within = 0
    for (let i = 0; i < block.entryCount; i++, entry++) {
      if (entry >= count) throw packCorrupt('its blocks name more entries than it has', offset)
      blockOffsets[entry] = offset
      blockStoredBytes[entry] = block.storedBytes
      offsetsInBlock[entry] = within
      within += rawBytes[entry]!
    }
    offset += block.storedBytes
  }
  if (entry !== count) throw packCorrupt('its blocks name fewer entries than it has', offset)
  return { count, idProofs, rawBytes, blockOffsets, blockStoredBytes, offsetsInBlock }
}

/** The chunk at its place in an opened block, its id recomputed. @throws {RoostError} CHUNK_CORRUPT */
export function chunkInBlock(block: Buffer, place: { offset: number; rawBytes: number }, dedupKey: Buffer, kind: ChunkKind, id: Uint8Array): Buffer {
  const bytes = block.subarray(place.offset, place.offset + place.rawBytes)
  if (bytes.byteLength !== place.rawBytes || hashChunk(dedupKey, bytes, kind).compare(id, 0, 32, 0, 32) !== 0)
    throw new RoostError('CHUNK_CORRUPT', 'A chunk does not match its id.', { chunk: Buffer.from(id).toString('hex') })
  return bytes
}

export function packCorrupt(problem: string, offset: number): RoostError {
  return new RoostError('PACK_CORRUPT', `A pack is damaged: ${problem}.`, { offset })
}
