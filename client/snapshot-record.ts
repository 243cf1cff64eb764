/** Opens signed snapshots: nothing of a record is believed before its signature and its shape are checked. */
import { asBuffer } from '../src/core/bytes.js'
import { RoostError } from '../src/core/errors.js'
import { digest } from '../src/core/hash.js'
import { LIMITS } from '../src/core/limits.js'
import type { SignedSnapshot, SnapshotRecord, SnapshotStatistics } from '../src/core/messages.js'
import { verifyDetached } from '../src/core/nacl.js'
import { ClientError } from '../src/protocol/client-errors.js'

/** Signed together with the record, so that a signature for another purpose cannot pass for a snapshot's. */
export const SNAPSHOT_CONTEXT = Buffer.from('roost snapshot v1\0', 'utf8')

const HEX = /^[0-9a-f]*$/
const STATISTICS: readonly (keyof SnapshotStatistics)[] = [
  'files', 'directories', 'others', 'sourceBytes', 'bytesRead', 'chunksTotal', 'chunksSent', 'bytesSent', 'bytesOnWire', 'errors',
  'durationMs', 'cpuMs',
]

/** The id that a snapshot of these bytes and signature has. */
export function snapshotIdOf(record: Uint8Array, signature: Uint8Array): string {
  return digest(Buffer.concat([SNAPSHOT_CONTEXT, record, signature])).toString('hex')
}

/** `verifyKey`: 64 hex digits, from the session or pinned by the user. @throws {RoostError} SNAPSHOT_CORRUPT */
export function openSignedSnapshot(signed: SignedSnapshot, verifyKey: string): SnapshotRecord {
  if (typeof signed.record !== 'string' || typeof signed.signature !== 'string' || typeof signed.id !== 'string')
    throw corrupt(signed, 'it lacks its record, signature or id')
  if (signed.record.length > LIMITS.snapshotBytesMax * 4 / 3 + 4) throw corrupt(signed, 'its record is too long')
  const record = Buffer.from(signed.record, 'base64')
  const signature = Buffer.from(signed.signature, 'base64')
  if (!verifyDetached(Buffer.concat([SNAPSHOT_CONTEXT, record]), signature, Buffer.from(verifyKey, 'hex')))
    throw corrupt(signed, 'its signature does not fit the key')
  if (snapshotIdOf(record, signature) !== signed.id) throw corrupt(signed, 'its id is not that of its content')
  return requireShape(signed, parse(signed, record))
}
/** By the key of whoever signed it: the repository that answers, or another one that it names. Either must be among the pinned keys, where there are any.
 *  @param own the verify key of the repository that answers. @throws {RoostError} SNAPSHOT_CORRUPT. @throws {ClientError} SNAPSHOT_KEY_MISMATCH */
export function openTrustedSnapshot(signed: SignedSnapshot, own: string, pinned: readonly string[] | undefined): SnapshotRecord {
  const signer = signed.signer ?? own
  if (typeof signer !== 'string' || signer.length !== 64 || !HEX.test(signer)) throw corrupt(signed, 'the key of its signer is malformed')
  if (pinned !== undefined && !pinned.includes(signer))
    throw new ClientError('SNAPSHOT_KEY_MISMATCH', 'The snapshot is signed by a key that is not among those given with --verify-key.')
  return openSignedSnapshot(signed, signer)
}
function parse(signed: SignedSnapshot, record: Buffer): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(asBuffer(record).toString('utf8'))
  } catch (error) {
    throw corrupt(signed, 'its record is not JSON', error)
  }
  if (!isObject(value)) throw corrupt(signed, 'its record is not an object')
  return value
}
/** The signer is the server, which checks what it signs; this guards against its defects and against later formats. */
function requireShape(signed: SignedSnapshot, value: Record<string, unknown>): SnapshotRecord {
  const need = (holds: boolean, field: string): void => {
    if (!holds) throw corrupt(signed, `its field ${field} is not as it must be`)
  }
  const hex = (field: string, digits: number): void => {
    const text = value[field]
    need(typeof text === 'string' && text.length === digits && HEX.test(text), field)
  }
  need(value['format'] === 1, 'format')
  hex('repositoryId', 32)
  hex('sessionId', 32)
  hex('root', 64)
  if (value['parent'] !== null) hex('parent', 64)
  for (const field of ['source', 'host', 'user']) need(typeof value[field] === 'string', field)
  need(value['mode'] === 'files' || value['mode'] === 'image' || value['mode'] === 'stdin', 'mode')
  for (const field of ['paths', 'tags']) need(isStrings(value[field]), field)
  for (const field of ['startedAtMs', 'receivedAtMs']) need(isAmount(value[field]), field)
  const statistics = value['statistics']
  need(isObject(statistics) && STATISTICS.every((name) => isAmount(statistics[name])), 'statistics')
  need(value['description'] === undefined || isObject(value['description']), 'description')
  return value as unknown as SnapshotRecord
}
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
const isStrings = (value: unknown): boolean => Array.isArray(value) && value.every((item) => typeof item === 'string')
const isAmount = (value: unknown): boolean => typeof value === 'number' && Number.isFinite(value) && value >= 0

function corrupt(signed: SignedSnapshot, problem: string, cause?: unknown): RoostError {
  const id = typeof signed.id === 'string' ? signed.id.slice(0, 64) : ''
  return new RoostError('SNAPSHOT_CORRUPT', `Snapshot ${id.slice(0, 12)} cannot be trusted: ${problem}.`, { snapshot: id },
    cause === undefined ? undefined : { cause })
}
