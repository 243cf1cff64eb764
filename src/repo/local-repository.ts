/** The Repository of one process: hands each call to its use case. No algorithm lives here. */
import { MiB } from '../core/limits.js'
import { parseSnapshotId, type SessionId, type SnapshotId } from '../core/ids.js'
import { Mutex } from '../core/concurrency.js'
import { RoostError } from '../core/errors.js'
import type {
  AddKeySlotRequest, AddTargetRequest, ChangeRepositoryRequest, ChangeTargetRequest, CheckOptions, CollectOptions, CommitReply, CommitRequest, ForgetRequest,
  KeySlotInfo, LockSnapshotRequest, MaintenanceEvent, OpenSessionReply, OpenSessionRequest, RepositoryInfo, RepositoryStats, RetentionInfo,
  SetPolicyRequest, SignedSnapshot, SnapshotPage, TargetInfo, TargetsReply,
} from '../core/messages.js'
import type { SessionRow, SnapshotRow } from '../index/chunk-index.js'
import { checkRepository } from './check.js'
import { deleteSnapshot } from './delete-snapshot.js'
import { addTarget, backfillTarget, changeRepository, changeTarget, drainTarget, removeTarget } from './manage-targets.js'
import type { ObjectStore } from '../store/object-store.js'
import type { TargetConfig } from './targets/target-list.js'
import { commitSnapshot } from './commit-snapshot.js'
import { findMissing } from './find-missing.js'
import { addKeySlot, listKeySlots, removeKeySlot, rotateKeyfile } from './manage-keys.js'
import { ChunkPutter } from './put-chunks.js'
import { readChunks } from './read-chunks.js'
import { LocalPeerRepository } from './replica/peer-repository.js'
import { rebuildIndex } from './rebuild.js'
import type { FrameBody, Repository, SnapshotQuery } from './repository.js'
import { applyRetention } from './retention/apply.js'
import { lockSnapshot, protectSnapshot, retentionInfo, setPolicy } from './retention/manage-retention.js'
import { infoOf, type RepositoryParts } from './repository-parts.js'
import { rebuildNeeded, Sessions, unknownSnapshot, type SessionCaller } from './sessions.js'
import { toWireSnapshot } from './snapshot-format.js'

/** Of records in one page of a listing. */
const PAGE_BYTES_MAX = 4 * MiB
const PAGE_STEP = 16

/** src/gc: collectGarbage. */
export type Collector = (parts: RepositoryParts, options: CollectOptions, signal: AbortSignal) => AsyncIterable<MaintenanceEvent>

export class LocalRepository implements Repository {
  readonly peer: LocalPeerRepository
  readonly #parts: RepositoryParts
  readonly #sessions: Sessions
  readonly #putter: ChunkPutter
  readonly #masterKey: Buffer
  readonly #keyfile: string
  /** One at a time: two removals could each leave "the other slot". */
  readonly #keyChanges = new Mutex()
  readonly #targetChanges = new Mutex()
  readonly #stop = new AbortController()
  readonly #openNewTarget: (config: TargetConfig) => Promise<ObjectStore>
  /** One at a time for each session: the second finds what the first committed. */
  readonly #commits = new Map<SessionId, Promise<unknown>>()
  #complete = true
  /** What cannot run beside another such: they change where chunks are. */
  #exclusive: { readonly what: string; step: Promise<unknown> } | undefined
  #closed: Promise<void> | undefined

  constructor(parts: RepositoryParts, masterKey: Buffer, keyfile: string, openNewTarget: (config: TargetConfig) => Promise<ObjectStore>,
    readonly collector?: Collector) {
    this.#openNewTarget = openNewTarget
    this.#parts = parts
    this.#masterKey = masterKey
    this.#keyfile = keyfile
    this.#sessions = new Sessions(parts)
    this.#putter = new ChunkPutter(parts)
    this.peer = new LocalPeerRepository(parts, this.#sessions, this.#putter, (query) => this.listSnapshots(query))
  }
  /** Call once after construction: whether a rebuild is needed is part of `info`. */
  async loadState(): Promise<void> { this.#complete = await this.#parts.index.isComplete() }

  /** An index that is being made anew knows less than the target: "there is none" would be a lie. */
  #requireComplete(): void { if (!this.#complete) throw rebuildNeeded(this.name) }

  get name(): string { return this.#parts.name }
  info(): RepositoryInfo { return infoOf(this.#parts, this.#complete) }

  openSession(request: OpenSessionRequest, caller: SessionCaller): Promise<OpenSessionReply> { return this.#sessions.open(request, caller) }
  requireSession(sessionId: SessionId): Promise<SessionRow> { return this.#sessions.require(sessionId) }
  async findMissing(sessionId: SessionId, idProofs: Buffer): Promise<Buffer> {
    await this.#sessions.requirePush(sessionId)
    return findMissing(this.#parts, sessionId, idProofs)
  }
  async putChunks(sessionId: SessionId, body: FrameBody, signal: AbortSignal): Promise<{ verdicts: Buffer; recycled: SharedArrayBuffer }> {
    signal.throwIfAborted()
    await this.#sessions.requirePush(sessionId)
    return this.#putter.put(sessionId, body)
  }
  async *readChunks(sessionId: SessionId, ids: Buffer, signal: AbortSignal): AsyncIterable<Buffer> {
    yield* readChunks(this.#parts, await this.#sessions.require(sessionId), ids, signal)
  }
  commit(sessionId: SessionId, request: CommitRequest, signal: AbortSignal): Promise<CommitReply> {
    const committing = (this.#commits.get(sessionId) ?? Promise.resolve()).catch(() => undefined)
      .then(() => commitSnapshot(this.#parts, this.#sessions, sessionId, request, signal))
    this.#commits.set(sessionId, committing)
    return committing.finally(() => { if (this.#commits.get(sessionId) === committing) this.#commits.delete(sessionId) })
  }
  async committedSource(sessionId: SessionId): Promise<string | undefined> {
    return (await this.#parts.index.findSnapshotOfSession(sessionId))?.source
  }
  closeSession(sessionId: SessionId): Promise<void> { return this.#sessions.close(sessionId) }

  async listSnapshots(query: SnapshotQuery): Promise<SnapshotPage> {
    this.#requireComplete()
    const before = query.after === undefined ? undefined : Number(query.after)
    if (before !== undefined && !Number.isSafeInteger(before)) throw new RoostError('REQUEST_MALFORMED', 'The page mark is not one that this server gave.')
    const { source, tag } = query
    const rows: SnapshotRow[] = []
    // A record may have a megabyte: a page ends by bytes too, and rows come in few at a time.
    for (let bytes = 0, at = before; rows.length < query.limit && bytes < PAGE_BYTES_MAX;) {
      const asked = Math.min(query.limit - rows.length, PAGE_STEP)
      const step = await this.#parts.index.listSnapshots({ limit: asked, ...(at === undefined ? {} : { before: at }),
        ...(source === undefined ? {} : { source }), ...(tag === undefined ? {} : { tag }) })
      rows.push(...step)
      if (step.length < asked) return { snapshots: await this.#wire(rows), next: null }
      bytes += step.reduce((sum, row) => sum + row.record.byteLength, 0)
      at = step.at(-1)!.sequence
    }
    return { snapshots: await this.#wire(rows), next: String(rows.at(-1)!.sequence) }
  }
  async getSnapshot(snapshotId: SnapshotId): Promise<SignedSnapshot> {
    this.#requireComplete()
    const row = await this.#parts.index.getSnapshot(parseSnapshotId(snapshotId))
    if (row === undefined) throw unknownSnapshot(snapshotId)
    return (await this.#wire([row]))[0]!
  }
  async #wire(rows: readonly SnapshotRow[]): Promise<SignedSnapshot[]> {
    const { spooledSnapshots, retention } = this.#parts
    const holds = await retention.holds()
    return rows.map((row) => {
      const lockedUntilMs = holds?.lockedUntilMs(row)
      return { ...toWireSnapshot(row), ...(spooledSnapshots.has(row.snapshotId) && { inSpool: true as const }),
        ...(holds?.isProtected(row.snapshotId) === true && { protected: true as const }), ...(lockedUntilMs !== undefined && { lockedUntilMs }) }
    })
  }
  deleteSnapshot(snapshotId: SnapshotId): Promise<void> {
    this.#requireComplete()
    return deleteSnapshot(this.#parts, snapshotId)
  }
  retention(): Promise<RetentionInfo> { return retentionInfo(this.#parts) }
  setPolicy(request: SetPolicyRequest): Promise<RetentionInfo> { return setPolicy(this.#parts, request) }
  forget(request: ForgetRequest, signal: AbortSignal): AsyncIterable<MaintenanceEvent> { return applyRetention(this.#parts, request, signal) }
  async protectSnapshot(snapshotId: SnapshotId, isProtected: boolean): Promise<void> {
    this.#requireComplete()
    await protectSnapshot(this.#parts, snapshotId, isProtected)
  }
  async lockSnapshot(snapshotId: SnapshotId, request: LockSnapshotRequest): Promise<void> {
    this.#requireComplete()
    await lockSnapshot(this.#parts, snapshotId, request)
  }
  async stats(): Promise<RepositoryStats> {
    const totals = await this.#parts.index.totals()
    const { snapshots, packs, chunks, dataChunks, nodeChunks, damagedChunks, rawBytes, storedBytes, spooledPacks, spooledBytes, sessionsOpen } = totals
    return { snapshots, packs, chunks, dataChunks, nodeChunks, damagedChunks, rawBytes, storedBytes, spoolPacks: spooledPacks, spoolBytes: spooledBytes, sessionsOpen }
  }
  async *check(options: CheckOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
    this.#requireComplete()
    await this.#parts.intake.flush()
    yield* checkRepository(this.#parts, options, signal)
  }
  async *rebuild(signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
    yield* this.#exclusively('rebuild', rebuildIndex(this.#parts, AbortSignal.any([signal, this.#stop.signal])))
    await this.loadState()
  }
  async *collect(options: CollectOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
    this.#requireComplete()
    if (this.collector === undefined) throw new RoostError('INTERNAL', 'This process was put together without a collector.')
    yield* this.#exclusively('collection', this.collector(this.#parts, options, AbortSignal.any([signal, this.#stop.signal])))
  }
  /** Closing waits for the step that is under way: whoever listens may never ask for the next one. */
  async *#exclusively(what: string, events: AsyncIterable<MaintenanceEvent>): AsyncIterable<MaintenanceEvent> {
    if (this.#exclusive !== undefined)
      throw new RoostError('REPOSITORY_BUSY', `A ${this.#exclusive.what} of this repository is running already.`, { running: this.#exclusive.what })
    const running = this.#exclusive = { what, step: Promise.resolve() as Promise<unknown> }
    const iterator = events[Symbol.asyncIterator]()
    try {
      for (;;) {
        const step = iterator.next()
        running.step = step.catch(() => undefined)
        const { done, value } = await step
        if (done === true) return
        yield value
      }
    } finally {
      running.step = iterator.return?.().catch(() => undefined) ?? running.step
      await running.step
      this.#exclusive = undefined
    }
  }

  listTargets(): Promise<TargetsReply> { return this.#parts.targets.reply() }
  addTarget(request: AddTargetRequest): Promise<TargetInfo> {
    return this.#targetChanges.run(() => addTarget(this.#parts, request, this.#openNewTarget, this.#stop.signal))
  }
  changeTarget(name: string, request: ChangeTargetRequest): Promise<TargetInfo> { return this.#targetChanges.run(() => changeTarget(this.#parts, name, request)) }
  removeTarget(name: string): Promise<void> { return this.#targetChanges.run(() => removeTarget(this.#parts, name)) }
  backfillTarget(name: string, signal: AbortSignal): AsyncIterable<MaintenanceEvent> { return backfillTarget(this.#parts, name, signal) }
  drainTarget(name: string, signal: AbortSignal): AsyncIterable<MaintenanceEvent> { return drainTarget(this.#parts, name, signal) }
  async change(request: ChangeRepositoryRequest): Promise<RepositoryInfo> {
    await this.#targetChanges.run(() => changeRepository(this.#parts, request))
    return this.info()
  }

  listKeySlots(): Promise<KeySlotInfo[]> { return listKeySlots(this.#parts) }
  addKeySlot(request: AddKeySlotRequest): Promise<KeySlotInfo> { return addKeySlot(this.#parts, this.#masterKey, request) }
  removeKeySlot(slotId: string): Promise<void> { return this.#keyChanges.run(() => removeKeySlot(this.#parts, slotId, this.#keyfile)) }
  rotateKeyfile(): Promise<KeySlotInfo> { return this.#keyChanges.run(() => rotateKeyfile(this.#parts, this.#masterKey, this.#keyfile)) }

  close(): Promise<void> {
    return this.#closed ??= this.#close()
  }
  async #close(): Promise<void> {
    const { intake, uploads, catchUp, doomed, mender, judge, checkpoints, spooledSnapshots, snapshotLocks, index, store, pool, repositoryId, commitWaitMs, targets, pending, retention } = this.#parts
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    await this.#exclusive?.step
    await mender.close()
    await judge.close()
    await checkpoints.close()
    await intake.flush()
    // What the targets do not take in time stays in the spool; the next start uploads it.
    const isHopeless = targets.active.every(({ takesPacks }) => !takesPacks)
    await uploads.settled(isHopeless ? 0 : Math.min(commitWaitMs, 10_000)).catch(() => undefined)
    await spooledSnapshots.close()
    await catchUp.close()
    await doomed.close()
    // A commit whose record is on the targets has its row before the index is closed as clean: else nobody would ever look for it.
    await snapshotLocks.close(() => new RoostError('SERVER_DRAINING', 'The server is stopping; ask again.'))
    await uploads.close()
    pool.forget(repositoryId)
    await retention.close()
    await index.close(pending.recovery === undefined)
    await store.close()
  }
}
