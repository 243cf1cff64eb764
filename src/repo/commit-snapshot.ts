/** The commit: from here on a snapshot is promised. Steps W1–W6 of docs/durability.md, in this order. */
import { hasCode, isAbort, RoostError } from '../core/errors.js'
import { CHUNK_KINDS, parseChunkId, type PackNumber, type SessionId, type SnapshotId } from '../core/ids.js'
import type { CommitReply, CommitRequest, SnapshotRecord } from '../core/messages.js'
import { NODE_REF_BYTES, type NodeRefs } from '../core/node-format.js'
import { REF_STATES, type SessionRow, type SnapshotRow } from '../index/chunk-index.js'
import { bytesBody } from '../store/bytes-body.js'
import { lackingOf, readNode } from './care/snapshot-judge.js'
import { snapshotKey, tombstoneKey } from './layout.js'
import type { RepositoryParts } from './repository-parts.js'
import type { Sessions } from './sessions.js'
import { encodeSnapshotObject, parseRecord, signRecord, toSnapshotRow, toWireSnapshot, type SignedRecord } from './snapshot-format.js'
import { PlaceSet, walkTree } from './verify-tree.js'

/** Resolves when the snapshot and everything it needs is durable as the repository's setting says: on enough targets (`remote`), or fsynced in
 *  the spool (`spool`). Repeating it (a lost acknowledgement, or NOT_YET_DURABLE) goes on where it was and answers the same. If it rejects
 *  otherwise, nothing was promised; the session stays open unless SESSION_LOST says otherwise.
 *  @throws {RoostError} NOT_YET_DURABLE; COMMIT_INCOMPLETE; COMMIT_CONFLICT; SESSION_LOST; TREE_MALFORMED; LIMIT_EXCEEDED; STORE_UNAVAILABLE */
export async function commitSnapshot(parts: RepositoryParts, sessions: Sessions, sessionId: SessionId, request: CommitRequest,
  signal: AbortSignal): Promise<CommitReply> {
  const before = await parts.index.findSnapshotOfSession(sessionId)
  if (before !== undefined) {
    if (parseRecord(before).root !== request.root)
      throw new RoostError('COMMIT_CONFLICT', 'This session has committed another tree already.', { snapshot: before.snapshotId })
    return await acknowledge(parts, before, true, signal)
  }
  const session = await sessions.requirePush(sessionId)
  if (session.mode === 'replicate') throw new RoostError('AUTH_FORBIDDEN', 'This session only receives snapshots that another repository signed.')
  // Locks must be able to tell how long ago this was.
  return await promiseSnapshot(parts, sessions, session, request.root, async () =>
    signRecord(recordOf(parts, session, request, await parts.retention.time.stamp()), parts.keys), signal)
}

/** W1–W6 of a tree that the session pushed. @param sign the record, once the tree was found whole */
export async function promiseSnapshot(parts: RepositoryParts, sessions: Sessions, session: SessionRow, root: string, sign: () => Promise<SignedRecord>,
  signal: AbortSignal): Promise<CommitReply> {
  const { sessionId } = session
  await parts.intake.flush() // W1 packs durable in the spool, W2 index entries durable
  const areStored = await waitForTargets(parts, signal) // W3 packs on enough targets
  const { generation, chunks: damagedChunks } = await parts.index.damageState()
  await verifyPushedTree(parts, sessionId, root, signal) // W4
  if (sessions.mayHaveLost(session, generation)) await verifyWholeTree(parts, root, signal)
  const signed = await sign()
  const object = encodeSnapshotObject(signed, parts.repositoryId, parts.keys, parts.random)
  const { isPut, row } = await parts.snapshotLocks.run(signed.snapshotId, async () => {
    const isPut = areStored && await putOnTargets(parts, signed.snapshotId, object, signal) // W5
    if (!isPut) await parts.spooledSnapshots.add(signed.snapshotId, object) // W5 in the spool: it follows its packs by itself
    const row = await parts.index.commitSnapshot(toSnapshotRow(signed), sessionId).catch(async (error: unknown) => { // W6
      if (hasCode(error, 'SESSION_LOST')) await withdraw(parts, signed.snapshotId)
      throw error
    })
    return { isPut, row }
  })
  sessions.forget(sessionId)
  parts.checkpoints.wake()
  if (damagedChunks > 0) await parts.index.noteWhole(row.snapshotId, generation)
  if (isPut) return { snapshot: toWireSnapshot(row), alreadyCommitted: false }
  parts.spooledSnapshots.wake()
  // The deadline has passed already: who asks again waits again.
  if (parts.targets.list.durability === 'remote') throw notYetDurable(parts, row.snapshotId)
  return { snapshot: { ...toWireSnapshot(row), inSpool: true }, alreadyCommitted: false }
}

/** The session was closed between W5 and W6: nothing pins the tree any more, so a start must not find the snapshot and take it in. What cannot be
 *  deleted now hangs on a tombstone like any deleted snapshot's. */
async function withdraw(parts: RepositoryParts, id: SnapshotId): Promise<void> {
  await parts.spooledSnapshots.drop(id)
  await parts.store.put(tombstoneKey(id), bytesBody(Buffer.from(`${id}\n`)))
  await parts.store.delete(snapshotKey(id))
}

/** The answer to a commit that is in the index. */
export async function acknowledge(parts: RepositoryParts, row: SnapshotRow, alreadyCommitted: boolean, signal: AbortSignal): Promise<CommitReply> {
  const { spooledSnapshots, targets, commitWaitMs } = parts
  if (targets.list.durability === 'remote' && !await spooledSnapshots.settled(row.snapshotId, commitWaitMs, signal)) throw notYetDurable(parts, row.snapshotId)
  return { snapshot: { ...toWireSnapshot(row), ...(spooledSnapshots.has(row.snapshotId) ? { inSpool: true as const } : {}) }, alreadyCommitted }
}
function notYetDurable({ uploads, spooledSnapshots }: RepositoryParts, snapshot: SnapshotId): RoostError {
  return new RoostError('NOT_YET_DURABLE', 'Not yet durable: the snapshot is whole and safe in the server\'s spool, but too few of its targets take packs now. Ask again.',
    { snapshot, waitingPacks: uploads.waitingPacks }, { cause: uploads.lastFailure ?? spooledSnapshots.lastFailure })
}

/** Whether the packs are stored. With durability `spool` nobody waits for that. */
async function waitForTargets(parts: RepositoryParts, signal: AbortSignal): Promise<boolean> {
  try {
    await parts.uploads.settled(parts.targets.list.durability === 'remote' ? parts.commitWaitMs : 0, signal)
    return parts.spooledSnapshots.count === 0 // snapshots reach the targets in the order of their commits
  } catch (error) {
    if (isAbort(error) || hasCode(error, 'INDEX_CORRUPT')) throw error
    return false
  }
}
async function putOnTargets(parts: RepositoryParts, id: SnapshotId, object: Buffer, signal: AbortSignal): Promise<boolean> {
  const retainUntilMs = parts.retention.retainUntilMs()
  try {
    await parts.store.put(snapshotKey(id), bytesBody(object), { signal, ...(retainUntilMs && { retainUntilMs }) })
    return true
  } catch (error) {
    // It may have landed, or land yet, here and there: the same bytes follow from the spool. Giving up instead, because the client hung up, would
    // leave a snapshot that nobody knows and nothing pins, for a later start to take in. A server that drains aborts with a reason of its own.
    if (!signal.aborted && !isAbort(error) && !hasCode(error, 'STORE_UNAVAILABLE') && !hasCode(error, 'STORE_REFUSED')) throw error
    return false
  }
}

/** Every reference of the new part must be pinned by this session. What the session inherited from its parent is part of a committed snapshot
 *  and pinned, so its subtree is complete by induction and is not walked. */
async function verifyPushedTree(parts: RepositoryParts, sessionId: SessionId, root: string, signal: AbortSignal): Promise<void> {
  const visit = async (packed: Buffer): Promise<Buffer> => {
    const states = await parts.index.inspectRefs(sessionId, packed)
    const descend: Buffer[] = []
    for (let i = 0; i < states.length; i++) {
      const ref = packed.subarray(i * NODE_REF_BYTES, (i + 1) * NODE_REF_BYTES)
      if (states[i] === REF_STATES.inherited) continue
      if (states[i] !== REF_STATES.pinned) throw incomplete(ref, states[i]!)
      if (ref[0] === CHUNK_KINDS.node) descend.push(ref.subarray(1))
    }
    return Buffer.concat(descend)
  }
  const rootId = parseChunkId(root)
  const rootRef = Buffer.concat([Buffer.from([CHUNK_KINDS.node]), rootId])
  if ((await visit(rootRef)).byteLength === 0) return // the whole tree is the parent's
  await walkTree({ index: parts.index, seen: new PlaceSet(), signal, visit: (refs: NodeRefs) => visit(refs.packed),
    readNode: async (id) => {
      const bytes = await readNode(parts.reader, id, signal)
      if (bytes !== undefined) return bytes
      // Marked before the client asks again, or it would be told "present" once more.
      const { packNumbers } = await parts.index.locate(id)
      if (packNumbers[0] !== 0) await parts.mender.mend(packNumbers[0] as PackNumber, signal)
      throw incomplete(Buffer.concat([Buffer.from([CHUNK_KINDS.node]), id]), REF_STATES.missing)
    } }, rootId)
}
/** Chunks were lost after the session got its parent: what it inherited may lack them now. Its client has them, if it is told. */
async function verifyWholeTree(parts: RepositoryParts, root: string, signal: AbortSignal): Promise<void> {
  const { ids } = await lackingOf(parts, root, signal)
  if (ids.length > 0) throw incomplete(Buffer.concat([Buffer.from([CHUNK_KINDS.data]), ids[0]!]), REF_STATES.missing)
}
function incomplete(ref: Buffer, state: number): RoostError {
  const why = state === REF_STATES.missing ? 'is not in the repository' : state === REF_STATES.wrongKind ? 'is of another kind' : 'was not shown by this session'
  return new RoostError('COMMIT_INCOMPLETE', `The tree is not complete: a chunk that it names ${why}. Run the backup again; what arrived is kept.`,
    { chunk: ref.subarray(1).toString('hex') })
}

function recordOf(parts: RepositoryParts, session: SessionRow, request: CommitRequest, receivedAtMs: number): SnapshotRecord {
  return { format: 1, repositoryId: parts.repositoryId, source: session.source, mode: session.mode as SnapshotRecord['mode'], parent: session.snapshot,
    receivedAtMs, sessionId: session.sessionId, root: request.root, host: request.host, user: request.user, paths: request.paths,
    tags: request.tags, startedAtMs: request.startedAtMs, statistics: request.statistics,
    ...(request.description === undefined ? {} : { description: request.description }) }
}
