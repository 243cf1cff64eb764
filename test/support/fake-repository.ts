/** A Repository and a host that remember what they were asked and answer by script: subjects for tests of the server alone. */
import { randomBytes } from 'node:crypto'
import { RoostError } from '../../src/core/errors.js'
import { parseSessionId, type SessionId, type SnapshotId } from '../../src/core/ids.js'
import { LIMITS } from '../../src/core/limits.js'
import type {
  AddKeySlotRequest, AddTargetRequest, AttachRepositoryRequest, ChangeRepositoryRequest, ChangeTargetRequest, ChunkerParameters, CheckOptions, CollectOptions,
  CommitReply, CommitRequest, CreateRepositoryRequest, ForgetRequest, KeySlotInfo, LockSnapshotRequest, MaintenanceEvent, OpenSessionReply,
  OpenSessionRequest, RepositoryInfo, RepositoryStats, RetentionInfo, SetPolicyRequest, SignedSnapshot, SnapshotPage,
  TargetInfo, TargetsReply, WireLimits,
} from '../../src/core/messages.js'
import type { SessionRow } from '../../src/index/chunk-index.js'
import type { ReplicaOffer } from '../../src/core/peer-messages.js'
import type { PeerRepository } from '../../src/repo/replica/peer-repository.js'
import type { RepositoryHost } from '../../src/repo/repository-host-contract.js'
import type { FrameBody, Repository, SnapshotQuery } from '../../src/repo/repository.js'

const CHUNKER: ChunkerParameters = { gearSeed: '00'.repeat(32), minBytes: 1024, averageBytes: 4096, maxBytes: 16_384, imageChunkBytes: 65_536 }
const WIRE_LIMITS: WireLimits = { chunkBytesMax: LIMITS.chunkBytesMax, nodeBytesMax: LIMITS.nodeBytesMax, bodyBytesMax: LIMITS.bodyBytesMax,
  bodyFramesMax: LIMITS.bodyFramesMax, missingIdsMax: LIMITS.missingIdsMax, readIdsMax: LIMITS.readIdsMax, sessionBodiesInFlightMax: LIMITS.sessionBodiesInFlightMax }
const KEY_SLOT: KeySlotInfo = { slotId: 'slot-1', kind: 'keyfile', label: 'server', createdAtMs: 1 }

export class FakeRepository implements Repository {
  /** What was asked, in order: the method's name and the arguments that matter. */
  readonly calls: { readonly method: string; readonly args: readonly unknown[] }[] = []
  readonly sessions = new Map<string, SessionRow>()
  readonly snapshots = new Map<string, SignedSnapshot>()
  readonly #failures = new Map<string, Error>()
  /** What `putChunks` does with a body; by default it keeps a copy of nothing and gives the memory back. */
  onPutChunks: (body: FrameBody, signal: AbortSignal) => Promise<void> = async () => undefined
  /** What `readChunks` yields. */
  readItems: (signal: AbortSignal) => AsyncIterable<Buffer> = async function* () { yield Buffer.from('frame') }
  events: (signal: AbortSignal) => AsyncIterable<MaintenanceEvent> = async function* () { yield { type: 'done', problems: 0, counts: {} } }
  /** Of another server's family: answers as little as it can. */
  readonly peer: PeerRepository = {
    stateFamily: async (publicKey) => { this.#note('stateFamily', publicKey); return { statement: 'e30=', signature: 'c2ln' } },
    outline: async (after) => { this.#note('outline', after); return { snapshots: [], next: null } },
    listOrigins: async () => { this.#note('listOrigins'); return [] },
    trustOrigin: async (origin) => { this.#note('trustOrigin', origin) },
    openSession: async (request, { tokenId }) => {
      this.#note('openPeerSession', request)
      const sessionId = this.addSession({ tokenId, mode: 'replicate', kind: request.kind === 'send' ? 'read' : 'push' })
      return { sessionId, repositoryId: '11'.repeat(16), verifyKey: '22'.repeat(32), familyId: '33'.repeat(16), proof: 'c2ln', limits: WIRE_LIMITS }
    },
    fetch: async function* () { /* nothing */ },
    hold: async (_session, ids) => { this.#note('hold'); return Buffer.alloc((ids.byteLength / 32 + 7) >> 3) },
    inherit: async () => { this.#note('inherit') },
    putGroups: async () => { this.#note('putGroups'); return Buffer.alloc(1) },
    receive: async (_session, snapshot) => { this.#note('receive', snapshot); return { snapshot, alreadyThere: false } },
    readNodes: async function* () { /* nothing */ },
  }
  constructor(readonly name: string) {}

  failNext(method: string, error: Error): void { this.#failures.set(method, error) }
  callsOf(method: string): readonly (readonly unknown[])[] { return this.calls.filter((call) => call.method === method).map((call) => call.args) }
  addSnapshot(source: string): SignedSnapshot {
    const id = randomBytes(32).toString('hex')
    const snapshot = { id, record: Buffer.from(JSON.stringify({ source })).toString('base64'), signature: 'c2ln' }
    this.snapshots.set(id, snapshot)
    return snapshot
  }
  addSession(session: Partial<SessionRow> & { readonly tokenId: string }): SessionId {
    const sessionId = parseSessionId(randomBytes(16).toString('hex'))
    this.sessions.set(sessionId, { sessionId, kind: 'push', source: 'web', mode: 'files', snapshot: null, openedAtMs: 0, lastUsedAtMs: 0, ...session })
    return sessionId
  }
  #note(method: string, ...args: readonly unknown[]): void {
    this.calls.push({ method, args })
    const failure = this.#failures.get(method)
    this.#failures.delete(method)
    if (failure !== undefined) throw failure
  }

  info(): RepositoryInfo {
    return { name: this.name, repositoryId: '11'.repeat(16), mode: 'server', createdAtMs: 1, targets: ['file:/secret/place'], writePolicy: 'all', durability: 'remote',
      verifyKey: '22'.repeat(32), chunker: CHUNKER, retentionLockMs: 0, state: 'ready' }
  }
  readonly target: TargetInfo = { name: 'main', url: 'file:/secret/place', mode: 'active', uploadBytesPerSecondMax: 0, health: 'healthy', packs: 1, storedBytes: 10,
    lagPacks: 0, lagBytes: 0, damagedPacks: 0 }
  async listTargets(): Promise<TargetsReply> { this.#note('listTargets'); return { targets: [this.target], writePolicy: 'all', durability: 'remote' } }
  async addTarget(request: AddTargetRequest): Promise<TargetInfo> { this.#note('addTarget', request); return { ...this.target, ...request } }
  async changeTarget(name: string, request: ChangeTargetRequest): Promise<TargetInfo> { this.#note('changeTarget', name, request); return this.target }
  async removeTarget(name: string): Promise<void> { this.#note('removeTarget', name) }
  async *backfillTarget(name: string, signal: AbortSignal): AsyncIterable<MaintenanceEvent> { this.#note('backfillTarget', name); yield* this.events(signal) }
  async *drainTarget(name: string, signal: AbortSignal): AsyncIterable<MaintenanceEvent> { this.#note('drainTarget', name); yield* this.events(signal) }
  async change(request: ChangeRepositoryRequest): Promise<RepositoryInfo> { this.#note('change', request); return this.info() }
  async openSession(request: OpenSessionRequest, caller: { readonly tokenId: string; readonly sourceLimit?: string }): Promise<OpenSessionReply> {
    this.#note('openSession', request, caller)
    const sessionId = this.addSession({ tokenId: caller.tokenId, kind: request.kind })
    return {
      sessionId, repositoryId: '11'.repeat(16), dedupKey: '33'.repeat(32), verifyKey: '22'.repeat(32), chunker: CHUNKER,
      limits: WIRE_LIMITS,
      wireCodecs: ['raw', 'zstd'], idleMs: LIMITS.sessionIdleMs,
    }
  }
  async requireSession(sessionId: SessionId): Promise<SessionRow> {
    const session = this.sessions.get(sessionId)
    if (session === undefined) throw new RoostError('SESSION_LOST', 'The session is not open.')
    return session
  }
  async findMissing(sessionId: SessionId, idProofs: Buffer): Promise<Buffer> {
    this.#note('findMissing', sessionId, Buffer.from(idProofs))
    return Buffer.alloc(Math.ceil(idProofs.byteLength / 48 / 8), 0xff)
  }
  async putChunks(sessionId: SessionId, body: FrameBody, signal: AbortSignal): Promise<{ verdicts: Buffer; recycled: SharedArrayBuffer }> {
    this.#note('putChunks', sessionId, body.bytes)
    await this.onPutChunks(body, signal)
    return { verdicts: Buffer.from([0]), recycled: body.buffer }
  }
  async *readChunks(sessionId: SessionId, ids: Buffer, signal: AbortSignal): AsyncIterable<Buffer> {
    this.#note('readChunks', sessionId, Buffer.from(ids))
    yield* this.readItems(signal)
  }
  async committedSource(): Promise<string | undefined> { return undefined }
  async commit(sessionId: SessionId, request: CommitRequest): Promise<CommitReply> {
    this.#note('commit', sessionId, request)
    return { snapshot: this.addSnapshot('web'), alreadyCommitted: false }
  }
  async closeSession(sessionId: SessionId): Promise<void> {
    this.#note('closeSession', sessionId)
    this.sessions.delete(sessionId)
  }
  async listSnapshots(query: SnapshotQuery): Promise<SnapshotPage> {
    this.#note('listSnapshots', query)
    return { snapshots: [...this.snapshots.values()], next: null }
  }
  async getSnapshot(snapshotId: SnapshotId): Promise<SignedSnapshot> {
    const snapshot = this.snapshots.get(snapshotId)
    if (snapshot === undefined) throw new RoostError('SNAPSHOT_UNKNOWN', 'There is no such snapshot.')
    return snapshot
  }
  async deleteSnapshot(snapshotId: SnapshotId): Promise<void> {
    this.#note('deleteSnapshot', snapshotId)
    this.snapshots.delete(snapshotId)
  }
  readonly retentionInfo: RetentionInfo = { lockMs: 0, policy: null, sources: [], protected: [], locks: [] }
  async retention(): Promise<RetentionInfo> { this.#note('retention'); return this.retentionInfo }
  async setPolicy(request: SetPolicyRequest): Promise<RetentionInfo> { this.#note('setPolicy', request); return this.retentionInfo }
  async *forget(request: ForgetRequest, signal: AbortSignal): AsyncIterable<MaintenanceEvent> { this.#note('forget', request); yield* this.events(signal) }
  async protectSnapshot(snapshotId: SnapshotId, isProtected: boolean): Promise<void> { this.#note('protectSnapshot', snapshotId, isProtected) }
  async lockSnapshot(snapshotId: SnapshotId, request: LockSnapshotRequest): Promise<void> { this.#note('lockSnapshot', snapshotId, request) }
  async stats(): Promise<RepositoryStats> {
    this.#note('stats')
    return { snapshots: 1, packs: 0, chunks: 0, dataChunks: 0, nodeChunks: 0, damagedChunks: 0, rawBytes: 0, storedBytes: 0, spoolPacks: 0, spoolBytes: 0, sessionsOpen: 0 }
  }
  async *check(options: CheckOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
    this.#note('check', options)
    yield* this.events(signal)
  }
  async *collect(options: CollectOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
    this.#note('collect', options)
    yield* this.events(signal)
  }
  async *rebuild(signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
    this.#note('rebuild')
    yield* this.events(signal)
  }
  async listKeySlots(): Promise<KeySlotInfo[]> { this.#note('listKeySlots'); return [KEY_SLOT] }
  async addKeySlot(request: AddKeySlotRequest): Promise<KeySlotInfo> {
    this.#note('addKeySlot', request)
    return { ...KEY_SLOT, slotId: 'slot-2', kind: request.kind, label: request.label }
  }
  async removeKeySlot(slotId: string): Promise<void> { this.#note('removeKeySlot', slotId) }
  async rotateKeyfile(): Promise<KeySlotInfo> { this.#note('rotateKeyfile'); return KEY_SLOT }
  async close(): Promise<void> { this.#note('close') }
}

export class FakeHost implements RepositoryHost {
  readonly repositories = new Map<string, FakeRepository>()
  readonly attached: AttachRepositoryRequest[] = []
  isClosed = false
  constructor(...names: readonly string[]) {
    for (const name of names) this.repositories.set(name, new FakeRepository(name))
  }
  list(): Repository[] { return [...this.repositories.values()] }
  get(name: string): FakeRepository {
    const repository = this.repositories.get(name)
    if (repository === undefined) throw new RoostError('REPOSITORY_UNKNOWN', 'There is no such repository.')
    return repository
  }
  async create({ name }: CreateRepositoryRequest): Promise<Repository> {
    if (this.repositories.has(name)) throw new RoostError('REPOSITORY_EXISTS', 'The name is taken.')
    const repository = new FakeRepository(name)
    this.repositories.set(name, repository)
    return repository
  }
  async attach(request: AttachRepositoryRequest): Promise<Repository> {
    this.attached.push(request)
    return this.create({ name: request.name })
  }
  offerReplica(): ReplicaOffer { return { offer: '44'.repeat(16), publicKey: '55'.repeat(32), expiresInMs: 1000 } }
  async close(): Promise<void> { this.isClosed = true }
}
