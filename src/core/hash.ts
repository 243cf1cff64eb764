/** BLAKE3: chunk ids with their proofs, subkeys, pack and snapshot names. The only importer of blake3. */
import { createHash, deriveKey as blake3DeriveKey, hash as blake3Hash, keyedHash } from 'blake3'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, type ChunkKind } from './ids.js'
import { assert } from './assert.js'
import { asBuffer } from './bytes.js'
import { loadKeyedBlake3 } from './native-blake3.js'

/** 48 bytes: chunk id (32) then proof (16), one extended keyed BLAKE3 output. Nodes are hashed under a key of their own, so that a file
 *  whose bytes happen to be a node's never shares its id: a chunk has one kind.
 *  Shape: a fresh buffer. `bytes` may be backed by a SharedArrayBuffer (here only: the other functions must not be given one). */
export function hashChunk(dedupKey: Buffer, bytes: Uint8Array, kind: ChunkKind): Buffer {
  const key = kind === CHUNK_KINDS.node ? nodeKeyOf(dedupKey) : dedupKey
  if (direct === undefined) {
    // The package's native module aborts the process when given shared memory.
    const own = bytes.buffer instanceof SharedArrayBuffer ? Buffer.from(bytes) : asBuffer(bytes)
    return asBuffer(keyedHash(key, own, { length: ID_PROOF_BYTES }))
  }
  assert(key.byteLength === 32, 'a BLAKE3 key has 32 bytes')
  const idProof = Buffer.allocUnsafe(ID_PROOF_BYTES)
  direct(key, bytes, idProof)
  return idProof
}
const nodeKeys = new WeakMap<Buffer, Buffer>()
function nodeKeyOf(dedupKey: Buffer): Buffer {
  let key = nodeKeys.get(dedupKey)
  if (key === undefined) nodeKeys.set(dedupKey, key = deriveKey('roost v1 node ids', dedupKey))
  return key
}
const direct = provenDirect()
/** The direct calls, if they are there and give what the package gives. */
function provenDirect(): ReturnType<typeof loadKeyedBlake3> {
  const candidate = loadKeyedBlake3()
  if (candidate === undefined) return undefined
  const key = Buffer.alloc(32, 0x5a), sample = Buffer.alloc(5_000, 'roost'), out = Buffer.alloc(ID_PROOF_BYTES)
  const shared = Buffer.from(new SharedArrayBuffer(sample.byteLength))
  shared.set(sample)
  candidate(key, shared, out)
  return out.equals(asBuffer(keyedHash(key, sample, { length: ID_PROOF_BYTES }))) ? candidate : undefined
}
export const idOf = (idProof: Buffer): Buffer => idProof.subarray(0, CHUNK_ID_BYTES)
export const proofOf = (idProof: Buffer): Buffer => idProof.subarray(CHUNK_ID_BYTES, ID_PROOF_BYTES)

/** A 32-byte subkey. `context` is a constant that names one use ("roost v1 …"); `material` is secret. */
export function deriveKey(context: string, material: Buffer): Buffer {
  return asBuffer(blake3DeriveKey(context, material, { length: 32 }))
}
/** A 32-byte pseudo-random value of a public input under a secret key (per-pack keys from salts). */
export function keyedDigest(key: Buffer, bytes: Uint8Array): Buffer {
  return asBuffer(keyedHash(key, asBuffer(bytes), { length: 32 }))
}
export function digest(bytes: Uint8Array): Buffer {
  return asBuffer(blake3Hash(asBuffer(bytes), { length: 32 }))
}
export interface StreamingDigest { update(bytes: Uint8Array): void; hex(): string }
/** Plain BLAKE3-256 over a stream. `hex()` ends it. */
export function streamingDigest(): StreamingDigest {
  const hasher = createHash()
  return {
    update: (bytes) => { hasher.update(asBuffer(bytes)) },
    hex: () => asBuffer(hasher.digest({ length: 32 } as never) as Buffer).toString('hex'),
  }
}
