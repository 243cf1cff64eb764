/** One snapshot from one side to the other: sessions, walk, chunks, and last the record. Cut anywhere, it begins again and finds what is there. */
import { hasCode, RoostError } from '../core/errors.js'
import { parseChunkId, parseRepositoryId, type SessionId } from '../core/ids.js'
import type { SignedSnapshot, SnapshotRecord } from '../core/messages.js'
import type { SnapshotOutline } from '../core/peer-messages.js'
import type { NearSide, ReplicationSide, SideSession } from './side.js'
import { Transfer, type TransferDeps } from './transfer.js'
import { walkTree } from './walk-tree.js'

/** Passes over one snapshot: each begins with a new session of the sink, because it lost the last one or found the tree incomplete. */
const PASSES_MAX = 8

export type SnapshotDeps = Omit<TransferDeps, 'sending' | 'receiving'> & { readonly near: NearSide }

/** @param bases snapshots that the sink may have already, the most alike first
 *  @returns false when it was there already. @throws {RoostError} what the sides throw */
export async function replicateSnapshot(deps: SnapshotDeps, outline: SnapshotOutline, bases: readonly string[], signal: AbortSignal): Promise<boolean> {
  for (let pass = 1; ; pass++) {
    const before = deps.counts.chunks
    try {
      return await runPass(deps, outline, bases, signal)
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof RoostError) || error.traits.retry !== 'restart-session' || pass >= PASSES_MAX) throw error
      if (deps.counts.chunks > before) pass = 1 // it moves on, though slowly
    }
  }
}

async function runPass(deps: SnapshotDeps, outline: SnapshotOutline, bases: readonly string[], signal: AbortSignal): Promise<boolean> {
  const sending = await SendingSession.open(deps.source, outline.id, signal)
  let receiving: SessionId | undefined
  let transfer: Transfer | undefined
  try {
    const signed = signedBy(sending.snapshot, deps.source)
    const signer = { repositoryId: recordOf(signed).repositoryId, verifyKey: signed.signer! }
    const session = await deps.sink.open({ kind: 'receive', source: outline.source, bases, signer }, signal)
    receiving = session.sessionId
    if (session.familyId !== sending.familyId) throw otherFamily()
    const withSessions = { ...deps, sending, receiving }
    transfer = new Transfer(withSessions, signal)
    await walkTree(withSessions, transfer, rootOf(signed), session.base === undefined ? undefined : rootOf(session.base), signal)
    await transfer.drain()
    const { alreadyThere } = await deps.sink.receive(receiving, signed, signal)
    if (!alreadyThere) receiving = undefined // it ended with what it received
    return !alreadyThere
  } finally {
    await transfer?.stop()
    await sending.close()
    // Closing is a courtesy: an idle session ends by itself.
    if (receiving !== undefined) await deps.sink.close(receiving).catch(() => undefined)
  }
}

/** Whose signature the sink is to check. */
function signedBy(snapshot: SignedSnapshot, source: ReplicationSide): SignedSnapshot {
  const { id, record, signature, signer } = snapshot
  return { id, record, signature, signer: signer ?? source.verifyKey }
}
/** Unproven on the way down; the commit walks the tree of the record that is signed. */
function recordOf({ id, record }: SignedSnapshot): Pick<SnapshotRecord, 'root' | 'repositoryId'> {
  try {
    const { root, repositoryId } = JSON.parse(Buffer.from(record, 'base64').toString('utf8')) as SnapshotRecord
    parseChunkId(root)
    return { root, repositoryId: parseRepositoryId(repositoryId) }
  } catch (error) {
    throw new RoostError('SNAPSHOT_CORRUPT', 'A snapshot arrived damaged.', { snapshot: id }, { cause: error })
  }
}
const rootOf = (snapshot: SignedSnapshot): Buffer => parseChunkId(recordOf(snapshot).root)
export const otherFamily = (): RoostError => new RoostError('PEER_REFUSED',
  'The two repositories are not of one family: their chunks have other names. Make the replica with `roost repo create --replica-of`.')

/** A session of the source that outlives its server: what may be read does not depend on what was read before. */
class SendingSession {
  #reopening: Promise<void> | undefined
  private constructor(readonly side: ReplicationSide, readonly id: string, readonly signal: AbortSignal, private session: SideSession) {}
  static async open(side: ReplicationSide, id: string, signal: AbortSignal): Promise<SendingSession> {
    return new SendingSession(side, id, signal, await side.open({ kind: 'send', snapshot: id }, signal))
  }
  get sessionId(): SessionId { return this.session.sessionId }
  get familyId(): string { return this.session.familyId }
  get snapshot(): SignedSnapshot {
    const { snapshot } = this.session
    if (snapshot?.id !== this.id) throw new RoostError('SNAPSHOT_UNKNOWN', 'The source opened another snapshot than it was asked for.', { snapshot: this.id })
    return snapshot
  }
  async reopen(lost: SessionId): Promise<void> {
    if (lost !== this.sessionId) return
    this.#reopening ??= this.side.open({ kind: 'send', snapshot: this.id }, this.signal).then((session) => { this.session = session })
      .finally(() => { this.#reopening = undefined })
    await this.#reopening
  }
  async close(): Promise<void> { await this.side.close(this.sessionId).catch(() => undefined) }
}
export const isGone = (error: unknown): boolean => hasCode(error, 'SNAPSHOT_UNKNOWN')
