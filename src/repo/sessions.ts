/** Opening, touching and closing sessions: the leases under which chunks stay present (docs/protocol.md §3). */
import { RoostError } from '../core/errors.js'
import { parseChunkId, parseSnapshotId, type SessionId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { OpenSessionReply, OpenSessionRequest, WireLimits } from '../core/messages.js'
import type { PeerSessionReply, PeerSessionRequest } from '../core/peer-messages.js'
import { provePeer } from '../core/peer-proof.js'
import type { SessionRow, SnapshotRow } from '../index/chunk-index.js'
import { familyIdOf } from './repository-keys.js'
import type { RepositoryParts } from './repository-parts.js'
import { parseRecord, toWireSnapshot } from './snapshot-format.js'

export interface SessionCaller { readonly tokenId: string; readonly sourceLimit?: string }
/** A session's last use is written at most this often: it serves only the idle sweep. */
const TOUCH_EVERY_MS = 60_000
const SWEEP_EVERY_MS = 5 * 60_000
const WIRE_LIMITS: WireLimits = {
  chunkBytesMax: LIMITS.chunkBytesMax, nodeBytesMax: LIMITS.nodeBytesMax, bodyBytesMax: LIMITS.bodyBytesMax, bodyFramesMax: LIMITS.bodyFramesMax,
  missingIdsMax: LIMITS.missingIdsMax, readIdsMax: LIMITS.readIdsMax, sessionBodiesInFlightMax: LIMITS.sessionBodiesInFlightMax,
}

export class Sessions {
  readonly #parts: RepositoryParts
  readonly #touchedMs = new Map<SessionId, number>()
  /** Damage generation before a session's parent was judged. */
  readonly #generations = new Map<SessionId, number>()
  #sweptMs = -Infinity
  constructor(parts: RepositoryParts) { this.#parts = parts }

  /** @throws {RoostError} INDEX_REBUILD_NEEDED; SNAPSHOT_UNKNOWN; AUTH_FORBIDDEN; TOO_MANY_REQUESTS */
  async open(request: OpenSessionRequest, caller: SessionCaller): Promise<OpenSessionReply> {
    const { keys, chunker, repositoryId, index } = this.#parts
    const { generation } = await this.#begin(caller)
    const wanted = request.kind === 'read' ? await this.#snapshotToRead(request.snapshot, caller) : await this.#parent(request, caller)
    const isWithheld = request.kind === 'push' && wanted !== undefined && !await this.#parts.judge.isKnownWhole(wanted.snapshotId)
    const snapshot = isWithheld ? undefined : wanted
    const source = request.kind === 'push' ? request.source : snapshot!.source
    const { sessionId, inherited } = await this.#add({ kind: request.kind, source, mode: request.kind === 'push' ? request.mode : 'read' }, snapshot, caller, generation)
    if (isWithheld) this.#parts.judge.request(wanted.snapshotId)
    // gc.md: pin, THEN look again. Forgotten before the pin, the root may have lost what is below it to a collection, and would be inherited unread.
    if (inherited && await index.getSnapshot(snapshot!.snapshotId) === undefined) {
      await this.close(sessionId)
      if (request.kind === 'read') throw unknownSnapshot(snapshot!.snapshotId)
      return await this.open(request, caller) // with the parent of now; each turn takes somebody who forgets one
    }
    if (request.kind === 'read' && !inherited) {
      await this.close(sessionId)
      throw rootMissing(snapshot!.snapshotId)
    }
    return { sessionId, repositoryId, dedupKey: keys.dedupKey.toString('hex'), verifyKey: keys.signing.publicKey.toString('hex'),
      chunker, limits: WIRE_LIMITS, wireCodecs: ['raw', 'zstd'], idleMs: LIMITS.sessionIdleMs,
      ...(inherited ? { snapshot: toWireSnapshot(snapshot!) } : {}), ...(isWithheld ? { withheldParent: toWireSnapshot(wanted) } : {}) }
  }
  /** For a peer that replicates: it sends one snapshot's chunks, or receives one. The dedup key is not told.
   *  @throws {RoostError} as open; SIGNER_UNKNOWN */
  async openPeer(request: PeerSessionRequest, caller: SessionCaller): Promise<PeerSessionReply> {
    const { keys, repositoryId, index, origins } = this.#parts
    const { generation } = await this.#begin(caller)
    const isSending = request.kind === 'send'
    if (!isSending && request.signer !== undefined && request.signer.verifyKey !== keys.signing.publicKey.toString('hex')) await origins.require(request.signer)
    const snapshot = isSending ? await this.#snapshotToRead(request.snapshot, caller) : await this.#base(request.bases, request.source)
    const { sessionId, inherited } = await this.#add({ kind: isSending ? 'read' : 'push', source: isSending ? snapshot!.source : request.source, mode: 'replicate' },
      snapshot, caller, generation)
    if (snapshot !== undefined && await index.getSnapshot(snapshot.snapshotId) === undefined) {
      await this.close(sessionId)
      if (isSending) throw unknownSnapshot(snapshot.snapshotId)
      return await this.openPeer(request, caller)
    }
    if (isSending && !inherited) {
      await this.close(sessionId)
      throw rootMissing(snapshot!.snapshotId)
    }
    const proven = { sessionId, repositoryId, familyId: familyIdOf(keys) }
    return { ...proven, verifyKey: keys.signing.publicKey.toString('hex'), limits: WIRE_LIMITS, proof: provePeer(request.challenge, proven, keys.signing.secretKey),
      ...(!inherited ? {} : isSending ? { snapshot: toWireSnapshot(snapshot!) } : { base: toWireSnapshot(snapshot!) }) }
  }
  async #base(ids: readonly string[], source: string): Promise<SnapshotRow | undefined> {
    for (const id of ids) {
      const row = await this.#parts.index.getSnapshot(parseSnapshotId(id))
      if (row === undefined || row.source !== source) continue
      if (await this.#parts.judge.isKnownWhole(row.snapshotId)) return row
      this.#parts.judge.request(row.snapshotId)
    }
    return undefined
  }
  async #begin(caller: SessionCaller): Promise<{ readonly generation: number }> {
    if (!await this.#parts.index.isComplete()) throw rebuildNeeded(this.#parts.name)
    await this.#sweep()
    await this.#requireShare(caller.tokenId)
    return await this.#parts.index.damageState()
  }
  async #add(row: Pick<SessionRow, 'kind' | 'source' | 'mode'>, snapshot: SnapshotRow | undefined, caller: SessionCaller, generation: number):
    Promise<{ sessionId: SessionId; inherited: boolean }> {
    const { index, clock, random } = this.#parts
    const sessionId = random.bytes(16).toString('hex') as SessionId
    const nowMs = clock.now()
    await index.openSession({ sessionId, ...row, snapshot: snapshot?.snapshotId ?? null, tokenId: caller.tokenId, openedAtMs: nowMs, lastUsedAtMs: nowMs })
    this.#touchedMs.set(sessionId, clock.monotonicMs())
    this.#generations.set(sessionId, generation)
    return { sessionId, inherited: snapshot !== undefined && await this.#inheritRoot(sessionId, snapshot) }
  }
  /** Counted only when it may matter. */
  async #requireShare(tokenId: string): Promise<void> {
    const { index } = this.#parts
    const limit = LIMITS.sessionsOfTokenMax
    if ((await index.totals()).sessionsOpen < limit) return
    if ((await index.listSessions()).filter((session) => session.tokenId === tokenId).length >= limit)
      throw new RoostError('TOO_MANY_REQUESTS', `One token has at most ${limit} sessions open. Close some, or wait until idle ones end.`, { limit })
  }
  async #inheritRoot(sessionId: SessionId, snapshot: SnapshotRow): Promise<boolean> {
    const present = await this.#parts.index.inheritRefs(sessionId, parseChunkId(parseRecord(snapshot).root))
    return present[0] === 1
  }
  async #snapshotToRead(text: string, caller: SessionCaller): Promise<SnapshotRow> {
    const snapshot = await this.#parts.index.getSnapshot(parseSnapshotId(text))
    if (snapshot === undefined) throw unknownSnapshot(text)
    if (caller.sourceLimit !== undefined && snapshot.source !== caller.sourceLimit) throw unknownSnapshot(text)
    return snapshot
  }
  /** A parent is of the same source: reading its nodes is what a push-only token may do, and no more. */
  async #parent(request: OpenSessionRequest & { kind: 'push' }, caller: SessionCaller): Promise<SnapshotRow | undefined> {
    if (caller.sourceLimit !== undefined && request.source !== caller.sourceLimit)
      throw new RoostError('AUTH_FORBIDDEN', `This token may push only the source "${caller.sourceLimit}".`, { source: caller.sourceLimit })
    if (request.parent === null) return undefined
    if (request.parent === 'latest') return (await this.#parts.index.listSnapshots({ limit: 1, source: request.source }))[0]
    const parent = await this.#parts.index.getSnapshot(parseSnapshotId(request.parent))
    if (parent === undefined || parent.source !== request.source) throw unknownSnapshot(request.parent)
    return parent
  }

  /** @throws {RoostError} SESSION_LOST */
  async require(sessionId: SessionId): Promise<SessionRow> {
    const { index, clock } = this.#parts
    const session = await index.getSession(sessionId)
    if (session === undefined) throw sessionLost()
    const nowMs = clock.monotonicMs()
    if (nowMs - (this.#touchedMs.get(sessionId) ?? -Infinity) > TOUCH_EVERY_MS) {
      this.#touchedMs.set(sessionId, nowMs)
      await index.touchSession(sessionId, clock.now())
    }
    return session
  }
  async requirePush(sessionId: SessionId): Promise<SessionRow> {
    const session = await this.require(sessionId)
    if (session.kind !== 'push') throw new RoostError('AUTH_FORBIDDEN', 'This session only reads.')
    return session
  }
  async close(sessionId: SessionId): Promise<void> {
    this.forget(sessionId)
    await this.#parts.index.closeSession(sessionId)
  }
  forget(sessionId: SessionId): void {
    this.#touchedMs.delete(sessionId)
    this.#generations.delete(sessionId)
  }
  /** Whether chunks may have been lost since the parent of the session was judged. Nothing is known of sessions of before a restart. */
  mayHaveLost(session: SessionRow, generation: number): boolean {
    return session.snapshot !== null && (this.#generations.get(session.sessionId) ?? 0) !== generation
  }

  /** Closes sessions that nobody used for long. Closing is always safe: a late client is told SESSION_LOST and starts again. */
  async #sweep(): Promise<void> {
    const { index, clock } = this.#parts
    const full = (await index.totals()).sessionsOpen >= LIMITS.sessionsOpenMax
    if (!full && clock.monotonicMs() - this.#sweptMs < SWEEP_EVERY_MS) return
    this.#sweptMs = clock.monotonicMs()
    const oldestMs = clock.now() - LIMITS.sessionIdleMs
    for (const session of await index.listSessions()) if (session.lastUsedAtMs < oldestMs) await this.close(session.sessionId)
    if ((await index.totals()).sessionsOpen >= LIMITS.sessionsOpenMax)
      throw new RoostError('TOO_MANY_REQUESTS', `The repository has ${LIMITS.sessionsOpenMax} open sessions.`, { limit: LIMITS.sessionsOpenMax })
  }
}

export const sessionLost = (): RoostError =>
  new RoostError('SESSION_LOST', 'This session is not open (any more): the server restarted, or it was closed. Open a new one and run again.')
export const unknownSnapshot = (text: string): RoostError =>
  new RoostError('SNAPSHOT_UNKNOWN', 'There is no such snapshot (for this source).', { snapshot: text.slice(0, 64) })
const rootMissing = (snapshot: string): RoostError =>
  new RoostError('CHUNK_MISSING', 'The root of this snapshot is not in the repository; run `roost check`.', { snapshot })
export const rebuildNeeded = (repository: string): RoostError =>
  new RoostError('INDEX_REBUILD_NEEDED', 'The index of this repository is new or incomplete; run `roost rebuild` first.', { repository })
