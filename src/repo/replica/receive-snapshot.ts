/** Takes in a snapshot that another repository signed: the record stays as it was signed, under its id. Same steps as a commit (W1–W6). */
import { RoostError } from '../../core/errors.js'
import { parseSnapshotId, type SessionId } from '../../core/ids.js'
import { LIMITS } from '../../core/limits.js'
import type { SignedSnapshot, SnapshotRecord } from '../../core/messages.js'
import type { ReceiveReply } from '../../core/peer-messages.js'
import { acknowledge, promiseSnapshot } from '../commit-snapshot.js'
import { tombstoneKey } from '../layout.js'
import type { RepositoryParts } from '../repository-parts.js'
import { parseSnapshotRecord } from './record-shape.js'
import type { Sessions } from '../sessions.js'
import { verifyRecord, type SignedRecord } from '../snapshot-format.js'

/** Repeating it is harmless. @throws {RoostError} SNAPSHOT_CORRUPT; SIGNER_UNKNOWN; REPLICA_CONFLICT, which is reported, too; and what a commit throws */
export async function receiveSnapshot(parts: RepositoryParts, sessions: Sessions, sessionId: SessionId, wire: SignedSnapshot, signal: AbortSignal): Promise<ReceiveReply> {
  const { signed, record } = await requireTrusted(parts, wire)
  const before = await parts.index.getSnapshot(signed.snapshotId)
  if (before !== undefined) {
    if (!before.record.equals(signed.record) || !before.signature.equals(signed.signature)) throw conflict(parts, signed, before.snapshotId)
    return { snapshot: (await acknowledge(parts, before, true, signal)).snapshot, alreadyThere: true }
  }
  const ofSession = await parts.index.findSnapshotOfSession(record.sessionId as SessionId)
  if (ofSession !== undefined && ofSession.source === record.source) throw conflict(parts, signed, ofSession.snapshotId)
  // Put now, it would be deleted again by whoever brings the targets together.
  if (await parts.store.head(tombstoneKey(signed.snapshotId)) !== undefined) throw new RoostError('STORE_UNAVAILABLE',
    'This snapshot was deleted here while a target was away, which has not heard of it yet. It is taken in once it has.', { snapshot: signed.snapshotId })
  const session = await sessions.requirePush(sessionId)
  if (session.mode !== 'replicate' || session.source !== record.source)
    throw new RoostError('AUTH_FORBIDDEN', 'This session was not opened to receive a snapshot of this source.', { source: record.source })
  const reply = await promiseSnapshot(parts, sessions, session, record.root, async () =>
    signed.signer === undefined ? signed : { ...signed, arrivedAtMs: await parts.retention.time.stamp() }, signal)
  return { snapshot: reply.snapshot, alreadyThere: false }
}

async function requireTrusted(parts: RepositoryParts, wire: SignedSnapshot): Promise<{ signed: SignedRecord; record: SnapshotRecord }> {
  const own = parts.keys.signing.publicKey.toString('hex')
  const verifyKey = wire.signer ?? own
  if (wire.record.length > LIMITS.snapshotBytesMax * 4 / 3 + 4)
    throw new RoostError('LIMIT_EXCEEDED', `A snapshot record holds at most ${LIMITS.snapshotBytesMax} bytes.`, { limit: LIMITS.snapshotBytesMax })
  const signed: SignedRecord = { snapshotId: parseSnapshotId(wire.id), record: Buffer.from(wire.record, 'base64'), signature: Buffer.from(wire.signature, 'base64'),
    ...(verifyKey === own ? {} : { signer: verifyKey }) }
  verifyRecord(signed, parts.keys)
  const record = parseSnapshotRecord(signed)
  if (verifyKey !== own) await parts.origins.require({ repositoryId: record.repositoryId, verifyKey })
  else if (record.repositoryId !== parts.repositoryId)
    throw new RoostError('SNAPSHOT_CORRUPT', 'A snapshot names another repository than the one that signed it.', { snapshot: signed.snapshotId })
  return { signed, record }
}

/** Two snapshots where there can be one: a signing key is used by two servers, or is in wrong hands. Neither is overwritten. */
function conflict(parts: RepositoryParts, signed: SignedRecord, other: string): RoostError {
  const error = new RoostError('REPLICA_CONFLICT', 'A snapshot that arrives differs from one that is here, though they come from the same push. Nothing was overwritten.',
    { snapshot: signed.snapshotId, other })
  parts.report({ type: 'conflict', error })
  return error
}
