/** The worked examples of docs/formats: made by the code of today from fixed inputs, and compared byte by byte with what was frozen. */
import { digest, hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, packNumber, parsePackId, parseRepositoryId, type PackId } from '../../src/core/ids.js'
import type { SnapshotRecord } from '../../src/core/messages.js'
import { encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import { zstdEncoder } from '../../src/core/zstd.js'
import { encodeChunkValue, CHUNK_VALUE_BYTES } from '../../src/index/entry-codec.js'
import { encodePackRow, encodePins, pinKey, u32Key } from '../../src/index/row-codec.js'
import { encodePackHeader, encodeTrailer, packSecret, placeEntries, sealBlock } from '../../src/repo/pack-format.js'
import { deriveRepositoryKeys } from '../../src/repo/repository-keys.js'
import { encodeSnapshotObject, signRecord } from '../../src/repo/snapshot-format.js'

/** 00 01 02 … 1f: never a key in use. */
export const MASTER_KEY = Buffer.from(Array.from({ length: 32 }, (_, i) => i))
export const KEYS = deriveRepositoryKeys(MASTER_KEY)
export const REPOSITORY_ID = parseRepositoryId('000102030405060708090a0b0c0d0e0f')
export const CHUNKS = [Buffer.from('hello, '), Buffer.from('roost')]
export const RECORD: SnapshotRecord = {
  format: 1, repositoryId: REPOSITORY_ID, source: 'host-a', mode: 'stdin', parent: null, receivedAtMs: 1_700_000_000_000, sessionId: '00'.repeat(16),
  root: '11'.repeat(32), host: 'a', user: 'root', paths: ['dump.sql'], tags: [], startedAtMs: 1_699_999_999_000,
  statistics: { files: 1, directories: 1, others: 0, sourceBytes: 5, bytesRead: 5, chunksTotal: 2, chunksSent: 2, bytesSent: 99, bytesOnWire: 99,
    errors: 0, durationMs: 7, cpuMs: 3 },
}
/** Another repository, whose snapshot the first one takes in; it is its replica. */
export const ORIGIN_KEYS = deriveRepositoryKeys(Buffer.alloc(32, 0x77))
export const ORIGIN_ID = parseRepositoryId('0f0e0d0c0b0a09080706050403020100')
export const ORIGIN_RECORD: SnapshotRecord = { ...RECORD, repositoryId: ORIGIN_ID }
const fixed = (byte: number) => ({ bytes: (count: number) => Buffer.alloc(count, byte), fraction: () => 0 })
const idProofs = Buffer.concat(CHUNKS.map((chunk) => hashChunk(KEYS.dedupKey, chunk, CHUNK_KINDS.data)))

function examplePack(): { bytes: Buffer; packId: PackId; blockBytes: number } {
  const header = encodePackHeader({ kind: CHUNK_KINDS.data, repositoryId: REPOSITORY_ID, salt: Buffer.alloc(32, 0x5a) })
  const secret = packSecret(KEYS.packKey, header)
  const encoder = zstdEncoder(2)
  const block = Buffer.concat(sealBlock(secret, header.byteLength, CHUNKS, encoder))
  const trailer = encodeTrailer(secret, header.byteLength + block.byteLength, [{ storedBytes: block.byteLength, entryCount: 2 }], idProofs,
    Uint32Array.from(CHUNKS, (chunk) => chunk.byteLength), encoder)
  const bytes = Buffer.concat([header, block, ...trailer])
  return { bytes, packId: parsePackId(digest(bytes).toString('hex')), blockBytes: block.byteLength }
}

/** Name of the fixture → its bytes. Time-independent, random-free. */
export function formatExamples(): ReadonlyMap<string, Buffer> {
  const pack = examplePack()
  const entries = placeEntries([{ storedBytes: pack.blockBytes, entryCount: 2 }], idProofs, Uint32Array.from(CHUNKS, (chunk) => chunk.byteLength))
  const chunkValue = Buffer.alloc(CHUNK_VALUE_BYTES)
  encodeChunkValue(chunkValue, 7, CHUNK_KINDS.data, entries, 1)
  const packRow = encodePackRow(u32Key(7), { packNumber: packNumber(7), packId: pack.packId, kind: CHUNK_KINDS.data, state: 'stored', entryCount: 2,
    storedBytes: pack.bytes.byteLength, rawBytes: 12, heldBy: 0b101 })
  return new Map([
    ['node-v1', encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.data, id: Buffer.alloc(32, 0xaa) }, { kind: CHUNK_KINDS.node, id: Buffer.alloc(32, 0xbb) }],
      Buffer.from('body'))],
    ['pack-v1', pack.bytes],
    ['snapshot-v1', encodeSnapshotObject(signRecord(RECORD, KEYS), REPOSITORY_ID, KEYS, fixed(0x5a))],
    ['snapshot-v2', encodeSnapshotObject({ ...signRecord(ORIGIN_RECORD, ORIGIN_KEYS), signer: ORIGIN_KEYS.signing.publicKey.toString('hex'), arrivedAtMs: 1_700_000_500_000 },
      REPOSITORY_ID, KEYS, fixed(0x5a))],
    ['index-chunk-v1', chunkValue],
    ['index-pack-v1', packRow],
    ['index-pins-v1', encodePins(pinKey(Buffer.alloc(16, 0xcc), 7), { pinned: Uint8Array.of(0b11), inherited: Uint8Array.of(0b10) })],
  ])
}
