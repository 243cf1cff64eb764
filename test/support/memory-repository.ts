/** A whole repository in memory behind the RepositoryClient port: what client tests push to and restore from.
 *
 *  It enforces what the server enforces: ids verified from bytes, the missing-query answered by id and proof, reads
 *  only of chunks that a node read in the same session lists, and commits only of complete trees. Faults are scripted:
 *  `damage`, `lose`, `failNext`.
 */
import { randomBytes } from 'node:crypto'
import { digest, hashChunk, idOf, proofOf } from '../../src/core/hash.js'
import { RoostError } from '../../src/core/errors.js'
import { FRAME_VERDICTS, WIRE_CODECS, frameId, parseFrames, setBit, type FrameVerdict } from '../../src/core/frames.js'
import {
  CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, chunkKey, chunkKeyToId, parseChunkId, type ChunkId, type ChunkKey, type ChunkKind,
  type SessionId, type SnapshotId,
} from '../../src/core/ids.js'
import { LIMITS, KiB } from '../../src/core/limits.js'
import type {
  ChunkerParameters, CommitReply, CommitRequest, KeySlotInfo, MaintenanceEvent, OpenSessionReply, OpenSessionRequest, RepositoryInfo,
  RepositoryStats, SignedSnapshot, SnapshotPage, SnapshotRecord, SourceMode, WireLimits,
} from '../../src/core/messages.js'
import { signDetached, signingKeysFromSeed } from '../../src/core/nacl.js'
import { decodeNode } from '../../src/core/node-format.js'
import { zstdDecode } from '../../src/core/zstd.js'
import type { Call, ReadChunk, RepositoryClient } from '../../client/repository-client.js'

interface StoredChunk { readonly kind: ChunkKind; bytes: Buffer; readonly proof: Buffer; lost: boolean }
interface Session {
  readonly kind: 'push' | 'read'
  readonly source: string
  readonly mode: SourceMode
  readonly parent: string | null
  /** Proved or pushed. */
  readonly pinned: Set<ChunkKey>
  /** Listed by a node that this session read. */
  readonly inherited: Set<ChunkKey>
  committed?: SignedSnapshot
}
export type RepositoryMethod = 'openSession' | 'findMissing' | 'putChunks' | 'readChunks' | 'commit' | 'getSnapshot' | 'listSnapshots'

export interface MemoryRepositoryOptions {
  readonly chunker?: Partial<ChunkerParameters>
  readonly limits?: Partial<WireLimits>
  /** 'reverse' by default, so that nobody relies on the order of the request. */
  readonly readOrder?: 'requested' | 'reverse'
}

export class MemoryRepository implements RepositoryClient {
  readonly repositoryId = randomBytes(16).toString('hex')
  readonly dedupKey: Buffer = randomBytes(32)
  readonly signingKeys = signingKeysFromSeed(randomBytes(32))
  readonly chunks = new Map<ChunkKey, StoredChunk>()
  readonly snapshots: SignedSnapshot[] = []
  readonly sessions = new Map<string, Session>()
  /** Calls so far, per method; ids asked and frames sent. */
  readonly calls: Record<string, number> = {}
  readonly counts = { idsAsked: 0, framesSent: 0, bytesSent: 0, chunksRead: 0 }
  readonly #faults: { method: RepositoryMethod; error: Error; skip: number }[] = []
  readonly #readOrder: 'requested' | 'reverse'
  readonly #chunker: ChunkerParameters
  readonly #limits: WireLimits

  constructor(options: MemoryRepositoryOptions = {}) {
    this.#readOrder = options.readOrder ?? 'reverse'
    this.#chunker = {
      gearSeed: '42'.repeat(32), minBytes: 16 * KiB, averageBytes: 64 * KiB, maxBytes: 256 * KiB, imageChunkBytes: 64 * KiB, ...options.chunker,
    }
    this.#limits = {
      chunkBytesMax: LIMITS.chunkBytesMax, nodeBytesMax: LIMITS.nodeBytesMax, bodyBytesMax: LIMITS.bodyBytesMax,
      bodyFramesMax: LIMITS.bodyFramesMax, missingIdsMax: LIMITS.missingIdsMax, readIdsMax: LIMITS.readIdsMax,
      sessionBodiesInFlightMax: LIMITS.sessionBodiesInFlightMax, ...options.limits,
    }
  }

  // ---- scripting

  /** Stores a chunk directly, as if it had been pushed. */
  put(bytes: Uint8Array, kind: ChunkKind): ChunkId {
    const idProof = hashChunk(this.dedupKey, bytes, kind)
    const key = chunkKey(idProof)
    if (!this.chunks.has(key)) this.chunks.set(key, { kind, bytes: Buffer.from(bytes), proof: proofOf(idProof), lost: false })
    return chunkKeyToId(key)
  }
  /** A committed snapshot of `root`, without a push: for hand-made trees. */
  addSnapshot(root: ChunkId, fields: Partial<SnapshotRecord> = {}): SignedSnapshot {
    const record: SnapshotRecord = {
      format: 1, repositoryId: this.repositoryId, source: 'test', mode: 'files', parent: null, receivedAtMs: this.snapshots.length + 1,
      sessionId: randomBytes(16).toString('hex'), root: root.toString('hex'), host: 'host', user: 'user', paths: [], tags: [],
      startedAtMs: 0, statistics: NO_STATISTICS, ...fields,
    }
    return this.#sign(record)
  }
  /** Flips one bit of a stored chunk. */
  damage(id: Uint8Array): void {
    const chunk = this.#stored(id)
    chunk.bytes = Buffer.from(chunk.bytes)
    chunk.bytes[chunk.bytes.byteLength >> 1]! ^= 1
  }
  /** The chunk is gone, though snapshots list it. */
  lose(id: Uint8Array): void { this.#stored(id).lost = true }
  /** The `skip + 1`-th next call of `method` fails. */
  failNext(method: RepositoryMethod, error: Error, skip = 0): void { this.#faults.push({ method, error, skip }) }
  /** Every session is forgotten, as after a restart of the server without its index. */
  loseSessions(): void { this.sessions.clear() }
  get faultsPending(): number { return this.#faults.length }

  // ---- RepositoryClient

  async openSession(request: OpenSessionRequest, call?: Call): Promise<OpenSessionReply> {
    this.#enter('openSession', call)
    let snapshot: SignedSnapshot | undefined
    if (request.kind === 'read') snapshot = this.#snapshot(request.snapshot)
    else if (request.parent === 'latest') snapshot = this.snapshots.findLast((one) => recordOf(one).source === request.source)
    else if (request.parent !== null) snapshot = this.#snapshot(request.parent)
    const sessionId = randomBytes(16).toString('hex')
    const session: Session = {
      kind: request.kind, source: request.kind === 'push' ? request.source : '', mode: request.kind === 'push' ? request.mode : 'files',
      parent: snapshot?.id ?? null, pinned: new Set(), inherited: new Set(),
    }
    if (snapshot !== undefined) session.inherited.add(chunkKey(parseChunkId(recordOf(snapshot).root)))
    this.sessions.set(sessionId, session)
    return {
      sessionId, repositoryId: this.repositoryId, dedupKey: this.dedupKey.toString('hex'),
      verifyKey: this.signingKeys.publicKey.toString('hex'), chunker: this.#chunker, limits: this.#limits, wireCodecs: ['raw', 'zstd'],
      idleMs: LIMITS.sessionIdleMs, ...(snapshot === undefined ? {} : { snapshot }),
    }
  }

  async findMissing(sessionId: SessionId, idProofs: Buffer, call?: Call): Promise<Buffer> {
    this.#enter('findMissing', call)
    const session = this.#session(sessionId, 'push')
    const count = idProofs.byteLength / ID_PROOF_BYTES
    if (!Number.isInteger(count)) throw new RoostError('REQUEST_MALFORMED', 'A missing-query holds whole pairs.')
    if (count > this.#limits.missingIdsMax) throw new RoostError('LIMIT_EXCEEDED', 'Too many ids in one missing-query.')
    this.counts.idsAsked += count
    const missing = Buffer.alloc(Math.ceil(count / 8))
    for (let i = 0; i < count; i++) {
      const pair = idProofs.subarray(i * ID_PROOF_BYTES, (i + 1) * ID_PROOF_BYTES)
      const key = chunkKey(pair)
      const chunk = this.chunks.get(key)
      if (chunk !== undefined && !chunk.lost && chunk.proof.equals(proofOf(pair))) session.pinned.add(key)
      else setBit(missing, i)
    }
    return missing
  }

  async putChunks(sessionId: SessionId, parts: readonly Uint8Array[], frames: number, call?: Call): Promise<FrameVerdict[]> {
    this.#enter('putChunks', call)
    const session = this.#session(sessionId, 'push')
    const body = Buffer.concat(parts)
    if (body.byteLength > this.#limits.bodyBytesMax) throw new RoostError('BODY_TOO_LARGE', 'The body is too large.')
    const table = parseFrames(body)
    if (table.count !== frames) throw new RoostError('FRAME_MALFORMED', 'The number of frames differs from the announced one.')
    const verdicts: FrameVerdict[] = []
    this.counts.framesSent += table.count
    this.counts.bytesSent += body.byteLength
    for (let i = 0; i < table.count; i++) {
      const at = table.payloadAt[i]!
      const wire = body.subarray(at, at + table.wireBytes[i]!)
      const bytes = table.codecs[i] === WIRE_CODECS.zstd ? zstdDecode(wire, table.rawBytes[i]!) : wire
      verdicts.push(bytes === undefined ? FRAME_VERDICTS.undecodable : this.#take(session, frameId(table, i), bytes, table.kinds[i] as ChunkKind))
    }
    return verdicts
  }
  #take(session: Session, id: Buffer, bytes: Buffer, kind: ChunkKind): FrameVerdict {
    const idProof = hashChunk(this.dedupKey, bytes, kind)
    if (!idOf(idProof).equals(id)) return FRAME_VERDICTS.digestMismatch
    const key = chunkKey(id)
    session.pinned.add(key)
    const known = this.chunks.get(key)
    if (known !== undefined && !known.lost) return FRAME_VERDICTS.duplicate
    this.chunks.set(key, { kind, bytes: Buffer.from(bytes), proof: proofOf(idProof), lost: false })
    return FRAME_VERDICTS.stored
  }

  async *readChunks(sessionId: SessionId, ids: Buffer, call?: Call): AsyncIterable<ReadChunk> {
    this.#enter('readChunks', call)
    const session = this.#session(sessionId)
    const count = ids.byteLength / CHUNK_ID_BYTES
    if (!Number.isInteger(count)) throw new RoostError('REQUEST_MALFORMED', 'A read request holds whole ids.')
    if (count > this.#limits.readIdsMax) throw new RoostError('LIMIT_EXCEEDED', 'Too many ids in one read request.')
    const readable = Array.from({ length: count }, (_, i) => session.inherited.has(chunkKey(ids, i * CHUNK_ID_BYTES)))
    for (let n = 0; n < count; n++) {
      const index = this.#readOrder === 'reverse' ? count - 1 - n : n
      call?.signal?.throwIfAborted()
      if (n % 64 === 0) await undefined
      yield this.#read(session, index, chunkKey(ids, index * CHUNK_ID_BYTES), readable[index]!)
    }
  }
  #read(session: Session, index: number, key: ChunkKey, readable: boolean): ReadChunk {
    const chunk = this.chunks.get(key)
    if (!readable || (session.kind === 'push' && chunk?.kind === CHUNK_KINDS.data)) return { index, status: 'not-readable', bytes: undefined }
    if (chunk === undefined || chunk.lost) return { index, status: 'missing', bytes: undefined }
    this.counts.chunksRead++
    if (chunk.kind === CHUNK_KINDS.node) this.#inherit(session, chunk.bytes)
    return { index, status: 'ok', bytes: Buffer.from(chunk.bytes) }
  }
  #inherit(session: Session, bytes: Buffer): void {
    let refs
    // A damaged node lists nothing; the reader finds out by its id.
    try { refs = decodeNode(bytes).refs } catch { return }
    for (let i = 0; i < refs.count; i++) session.inherited.add(chunkKey(refs.id(i)))
  }

  async commit(sessionId: SessionId, request: CommitRequest, call?: Call): Promise<CommitReply> {
    this.#enter('commit', call)
    const session = this.#session(sessionId, 'push')
    if (session.committed !== undefined) return { snapshot: session.committed, alreadyCommitted: true }
    this.#requireComplete(session, chunkKey(parseChunkId(request.root)))
    const snapshot = this.#sign({
      ...request, format: 1, repositoryId: this.repositoryId, source: session.source, mode: session.mode, parent: session.parent,
      receivedAtMs: this.snapshots.length + 1, sessionId,
    })
    session.committed = snapshot
    return { snapshot, alreadyCommitted: false }
  }
  #requireComplete(session: Session, root: ChunkKey): void {
    const seen = new Set<ChunkKey>()
    const pending = [root]
    for (let key = pending.pop(); key !== undefined; key = pending.pop()) {
      if (seen.has(key)) continue
      seen.add(key)
      const chunk = this.chunks.get(key)
      if (chunk !== undefined && session.inherited.has(key)) continue
      if (chunk === undefined || chunk.lost || !session.pinned.has(key))
        throw new RoostError('COMMIT_INCOMPLETE', 'The tree lists a chunk that this session neither sent nor proved.')
      if (chunk.kind === CHUNK_KINDS.data) continue
      const { refs } = decodeNode(chunk.bytes)
      for (let i = 0; i < refs.count; i++) pending.push(chunkKey(refs.id(i)))
    }
  }

  async closeSession(sessionId: SessionId): Promise<void> { this.sessions.delete(sessionId) }

  async listSnapshots(query: { after?: string; limit?: number; source?: string; tag?: string }, call?: Call): Promise<SnapshotPage> {
    this.#enter('listSnapshots', call)
    const matching = this.snapshots.filter((one) => {
      const record = recordOf(one)
      return (query.source === undefined || record.source === query.source) && (query.tag === undefined || record.tags.includes(query.tag))
    })
    const from = query.after === undefined ? 0 : Number(query.after)
    const limit = query.limit ?? 100
    return { snapshots: matching.slice(from, from + limit), next: from + limit < matching.length ? String(from + limit) : null }
  }
  async getSnapshot(id: SnapshotId, call?: Call): Promise<SignedSnapshot> {
    this.#enter('getSnapshot', call)
    return this.#snapshot(id)
  }
  async deleteSnapshot(id: SnapshotId): Promise<void> {
    this.snapshots.splice(this.snapshots.indexOf(this.#snapshot(id)), 1)
  }
  async info(): Promise<RepositoryInfo> {
    return {
      name: 'memory', repositoryId: this.repositoryId, mode: 'server', createdAtMs: 0, targets: ['memory:'], writePolicy: 'all', durability: 'remote',
      verifyKey: this.signingKeys.publicKey.toString('hex'), chunker: this.#chunker, retentionLockMs: 0, state: 'ready',
    }
  }
  async stats(): Promise<RepositoryStats> {
    const all = [...this.chunks.values()]
    const dataChunks = all.filter((chunk) => chunk.kind === CHUNK_KINDS.data).length
    const rawBytes = all.reduce((sum, chunk) => sum + chunk.bytes.byteLength, 0)
    return {
      snapshots: this.snapshots.length, packs: 0, chunks: all.length, dataChunks, nodeChunks: all.length - dataChunks, damagedChunks: 0, rawBytes,
      storedBytes: rawBytes, spoolPacks: 0, spoolBytes: 0, sessionsOpen: this.sessions.size,
    }
  }
  async *check(): AsyncIterable<MaintenanceEvent> { yield { type: 'done', problems: 0, counts: {} } }
  async *rebuild(): AsyncIterable<MaintenanceEvent> { yield { type: 'done', problems: 0, counts: {} } }
  async listKeySlots(): Promise<KeySlotInfo[]> { return [] }
  addKeySlot(): Promise<KeySlotInfo> { return unsupported() }
  removeKeySlot(): Promise<void> { return unsupported() }
  rotateKeyfile(): Promise<KeySlotInfo> { return unsupported() }
  async close(): Promise<void> { /* nothing is held */ }

  // ---- parts

  #enter(method: RepositoryMethod, call: Call | undefined): void {
    call?.signal?.throwIfAborted()
    this.calls[method] = (this.calls[method] ?? 0) + 1
    const at = this.#faults.findIndex((fault) => fault.method === method)
    if (at < 0) return
    if (this.#faults[at]!.skip-- > 0) return
    throw this.#faults.splice(at, 1)[0]!.error
  }
  #session(id: string, kind?: 'push'): Session {
    const session = this.sessions.get(id)
    if (session === undefined) throw new RoostError('SESSION_LOST', 'The session is unknown; open a new one.')
    if (kind !== undefined && session.kind !== kind) throw new RoostError('AUTH_FORBIDDEN', 'This session only reads.')
    return session
  }
  #snapshot(id: string): SignedSnapshot {
    const found = this.snapshots.find((one) => one.id === id)
    if (found === undefined) throw new RoostError('SNAPSHOT_UNKNOWN', 'No such snapshot.')
    return found
  }
  #stored(id: Uint8Array): StoredChunk {
    const chunk = this.chunks.get(chunkKey(Buffer.from(id)))
    if (chunk === undefined) throw new Error('the test names a chunk that is not stored')
    return chunk
  }
  #sign(record: SnapshotRecord): SignedSnapshot {
    const bytes = Buffer.from(JSON.stringify(record))
    const message = Buffer.concat([SIGNED_PREFIX, bytes])
    const signature = signDetached(message, this.signingKeys.secretKey)
    const signed = { id: digest(Buffer.concat([message, signature])).toString('hex'), record: bytes.toString('base64'), signature: signature.toString('base64') }
    this.snapshots.push(signed)
    return signed
  }
}

const SIGNED_PREFIX = Buffer.from('roost snapshot v1\0', 'utf8')
export function recordOf(signed: SignedSnapshot): SnapshotRecord {
  return JSON.parse(Buffer.from(signed.record, 'base64').toString()) as SnapshotRecord
}
const unsupported = (): Promise<never> => Promise.reject(new Error('the in-memory repository has no key slots'))
const NO_STATISTICS: SnapshotRecord['statistics'] = {
  files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, chunksTotal: 0, chunksSent: 0, bytesSent: 0, bytesOnWire: 0,
  errors: 0, durationMs: 0, cpuMs: 0,
}
