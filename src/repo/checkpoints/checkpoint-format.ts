/** The checkpoint codec (docs/formats/checkpoint-v1.md): what the trailers of many packs say, in one sealed object. Pure. */
import { ByteReader, ByteWriter } from '../../core/bytes.js'
import { RoostError } from '../../core/errors.js'
import { digest, keyedDigest } from '../../core/hash.js'
import { ID_PROOF_BYTES, isChunkKind, parsePackId, type ChunkKind, type PackId, type RepositoryId } from '../../core/ids.js'
import { LIMITS } from '../../core/limits.js'
import type { Random } from '../../core/random.js'
import { seal, SEAL_NONCE_BYTES, unseal } from '../../core/seal.js'
import type { PackBlock } from '../pack-format.js'

const MAGIC = Buffer.from('ROOSTCP1', 'latin1')
const SALT_BYTES = 32
const HEADER_BYTES = MAGIC.byteLength + 16 + SALT_BYTES
/** The key is of this object alone: one nonce does. */
const NONCE = Buffer.alloc(SEAL_NONCE_BYTES)
const PACK_HEAD_BYTES = 32 + 1 + 4 + 4 + 4
const BLOCK_BYTES = 8
const ENTRY_BYTES = ID_PROOF_BYTES + 4

export interface CheckpointPack {
  readonly packId: PackId
  readonly kind: ChunkKind
  readonly storedBytes: number
  readonly blocks: readonly PackBlock[]
  readonly idProofs: Buffer
  readonly rawBytes: Uint32Array
}
export const packBytesIn = ({ blocks, rawBytes }: Pick<CheckpointPack, 'blocks' | 'rawBytes'>): number =>
  PACK_HEAD_BYTES + blocks.length * BLOCK_BYTES + rawBytes.length * ENTRY_BYTES

/** @returns the object and its name. */
export function encodeCheckpoint(packs: readonly CheckpointPack[], key: Buffer, repositoryId: RepositoryId, random: Random): { id: string; bytes: Buffer } {
  const header = Buffer.concat([MAGIC, Buffer.from(repositoryId, 'hex'), random.bytes(SALT_BYTES)])
  const body = new ByteWriter(4 + packs.reduce((sum, pack) => sum + packBytesIn(pack), 0)).u32(packs.length)
  for (const { packId, kind, storedBytes, blocks, idProofs, rawBytes } of packs) {
    body.bytes(Buffer.from(packId, 'hex')).u8(kind).u32(storedBytes).u32(blocks.length).u32(rawBytes.length)
    for (const block of blocks) body.u32(block.storedBytes).u32(block.entryCount)
    body.bytes(idProofs)
    for (const bytes of rawBytes) body.u32(bytes)
  }
  const bytes = Buffer.concat([header, ...seal(keyedDigest(key, header), NONCE, header, [body.finish()])])
  return { id: digest(bytes).toString('hex'), bytes }
}

/** @throws {RoostError} REPOSITORY_CORRUPT unless it is whole, of this repository, and named `id` */
export function decodeCheckpoint(bytes: Buffer, id: string, key: Buffer, repositoryId: RepositoryId): CheckpointPack[] {
  const corrupt = (problem: string): RoostError => new RoostError('REPOSITORY_CORRUPT', `A checkpoint is damaged: ${problem}.`, { checkpoint: id })
  if (digest(bytes).toString('hex') !== id) throw corrupt('its bytes do not match its name')
  const reader = new ByteReader(bytes, corrupt)
  const header = reader.bytes(HEADER_BYTES, 'its header')
  if (!header.subarray(0, MAGIC.byteLength).equals(MAGIC)) throw corrupt('it has no checkpoint header')
  if (header.subarray(MAGIC.byteLength, MAGIC.byteLength + 16).toString('hex') !== repositoryId) throw corrupt('it belongs to another repository')
  const plain = unseal(keyedDigest(key, header), NONCE, header, reader.rest())
  if (plain === undefined) throw corrupt('it fails authentication')
  const body = new ByteReader(plain, corrupt)
  const packs: CheckpointPack[] = []
  for (let count = body.u32('packs'); count > 0; count--) {
    const packId = parsePackId(body.bytes(32, 'pack id').toString('hex'))
    const kind = body.u8('kind')
    if (!isChunkKind(kind)) throw corrupt('a pack has no kind')
    const storedBytes = body.u32('stored bytes', LIMITS.packBytesMax)
    const blockCount = body.u32('blocks', LIMITS.packEntriesMax), entryCount = body.u32('entries', LIMITS.packEntriesMax)
    const blocks: PackBlock[] = []
    for (let i = 0; i < blockCount; i++) blocks.push({ storedBytes: body.u32('block length', LIMITS.packBytesMax), entryCount: body.u32('block entries', entryCount) })
    const idProofs = Buffer.from(body.bytes(entryCount * ID_PROOF_BYTES, 'ids'))
    const rawBytes = new Uint32Array(entryCount)
    for (let i = 0; i < entryCount; i++) rawBytes[i] = body.u32('chunk length', LIMITS.chunkBytesMax)
    packs.push({ packId, kind, storedBytes, blocks, idProofs, rawBytes })
  }
  body.expectEnd('the checkpoint')
  return packs
}
