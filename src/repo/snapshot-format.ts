/** Snapshot objects: a signed record, sealed for the storage provider's eyes (docs/formats/snapshot-v1.md).
 *
 *  object: magic "ROOSTSN1" 8 | repository id 16 | salt 32 | AES-256-GCM( signature 64 | record )
 *  one that another repository signed: magic "ROOSTSN2" 8 | … | AES-256-GCM( signer's key 32 | arrival u64 | signature 64 | record )
 *  The signature is Ed25519 over "roost snapshot v1\0" ‖ record; the id is BLAKE3-256 of that message ‖ signature, so it names exactly
 *  one signed record wherever it is stored. Clients verify the same signature (client/snapshot-record.ts).
 */
import { ByteReader, ByteWriter } from '../core/bytes.js'
import { RoostError } from '../core/errors.js'
import { digest, keyedDigest } from '../core/hash.js'
import { parseSnapshotId, type RepositoryId, type SessionId, type SnapshotId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { SignedSnapshot, SnapshotRecord } from '../core/messages.js'
import { signDetached, verifyDetached } from '../core/nacl.js'
import type { Random } from '../core/random.js'
import { seal, SEAL_NONCE_BYTES, unseal } from '../core/seal.js'
import type { SnapshotRow } from '../index/chunk-index.js'
import type { RepositoryKeys } from './repository-keys.js'

const MAGIC = Buffer.from('ROOSTSN1', 'latin1')
const REPLICATED_MAGIC = Buffer.from('ROOSTSN2', 'latin1')
const SIGNER_BYTES = 32
const SIGNED_PREFIX = Buffer.from('roost snapshot v1\0', 'utf8')
const SIGNATURE_BYTES = 64
const SALT_BYTES = 32
const HEADER_BYTES = 8 + 16 + SALT_BYTES
/** The salt makes the key fresh, so one nonce is enough. */
const NONCE = Buffer.alloc(SEAL_NONCE_BYTES)

export type SignedRecord = Pick<SnapshotRow, 'snapshotId' | 'record' | 'signature' | 'signer' | 'arrivedAtMs'>

export function signRecord(record: SnapshotRecord, keys: RepositoryKeys): SignedRecord {
  const bytes = Buffer.from(JSON.stringify(record), 'utf8')
  if (bytes.byteLength > LIMITS.snapshotBytesMax)
    throw new RoostError('LIMIT_EXCEEDED', `A snapshot record holds at most ${LIMITS.snapshotBytesMax} bytes.`, { limit: LIMITS.snapshotBytesMax })
  const message = Buffer.concat([SIGNED_PREFIX, bytes])
  const signature = signDetached(message, keys.signing.secretKey)
  return { snapshotId: idOfSigned(message, signature), record: bytes, signature }
}
const idOfSigned = (message: Buffer, signature: Buffer): SnapshotId =>
  parseSnapshotId(digest(Buffer.concat([message, signature])).toString('hex'))

export function encodeSnapshotObject(signed: SignedRecord, repositoryId: RepositoryId, keys: RepositoryKeys, random: Random): Buffer {
  const { signer, arrivedAtMs } = signed
  const header = Buffer.concat([signer === undefined ? MAGIC : REPLICATED_MAGIC, Buffer.from(repositoryId, 'hex'), random.bytes(SALT_BYTES)])
  const origin = signer === undefined ? [] : [new ByteWriter(SIGNER_BYTES + 8).bytes(Buffer.from(signer, 'hex')).u64(arrivedAtMs ?? 0).finish()]
  return Buffer.concat([header, ...seal(keyedDigest(keys.snapshotKey, header), NONCE, header, [...origin, signed.signature, signed.record])])
}

/** Whoever signed a replicated one was trusted when this repository sealed the object: its key is inside.
 *  @throws {RoostError} SNAPSHOT_CORRUPT unless the object is whole, of this repository, rightly signed and named `expected`. */
export function decodeSnapshotObject(bytes: Buffer, expected: SnapshotId, repositoryId: RepositoryId, keys: RepositoryKeys): SignedRecord {
  const corrupt = (problem: string): RoostError =>
    new RoostError('SNAPSHOT_CORRUPT', `A snapshot is damaged: ${problem}.`, { snapshot: expected })
  const reader = new ByteReader(bytes, corrupt)
  const header = reader.bytes(HEADER_BYTES, 'its header')
  const isReplicated = header.subarray(0, 8).equals(REPLICATED_MAGIC)
  if (!isReplicated && !header.subarray(0, 8).equals(MAGIC)) throw corrupt('it has no snapshot header')
  if (header.subarray(8, 24).toString('hex') !== repositoryId) throw corrupt('it belongs to another repository')
  const plain = unseal(keyedDigest(keys.snapshotKey, header), NONCE, header, reader.rest())
  if (plain === undefined) throw corrupt('it fails authentication')
  const content = new ByteReader(plain, corrupt)
  const origin = isReplicated ? { signer: content.bytes(SIGNER_BYTES, 'the key of its signer').toString('hex'), arrivedAtMs: content.u64('its arrival') } : {}
  const signed = { snapshotId: expected, ...origin, signature: content.bytes(SIGNATURE_BYTES, 'its signature'), record: content.rest() }
  verifyRecord(signed, keys)
  return signed
}
/** By its signer's key, or without one by the repository's own. @throws {RoostError} SNAPSHOT_CORRUPT */
export function verifyRecord(signed: SignedRecord, keys: RepositoryKeys): void {
  const message = Buffer.concat([SIGNED_PREFIX, signed.record])
  const key = signed.signer === undefined ? keys.signing.publicKey : Buffer.from(signed.signer, 'hex')
  if (!verifyDetached(message, signed.signature, key) || idOfSigned(message, signed.signature) !== signed.snapshotId)
    throw new RoostError('SNAPSHOT_CORRUPT', 'A snapshot is not rightly signed.', { snapshot: signed.snapshotId })
}
/** The content of a record that verifyRecord or signRecord has seen. */
export const parseRecord = (signed: Pick<SignedRecord, 'record'>): SnapshotRecord => JSON.parse(signed.record.toString('utf8')) as SnapshotRecord

export const toWireSnapshot = (signed: SignedRecord): SignedSnapshot =>
  ({ id: signed.snapshotId, record: signed.record.toString('base64'), signature: signed.signature.toString('base64'),
    ...(signed.signer === undefined ? {} : { signer: signed.signer }) })

/** What the index keeps of a signed snapshot. */
export function toSnapshotRow(signed: SignedRecord): Omit<SnapshotRow, 'sequence'> {
  const { source, receivedAtMs, tags, sessionId } = parseRecord(signed)
  return { ...signed, source, receivedAtMs, tags, ...(signed.signer === undefined ? {} : { originSession: sessionId as SessionId }) }
}
