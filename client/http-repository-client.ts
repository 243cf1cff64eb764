/** RepositoryClient and ServerClient over HTTP (docs/protocol.md): each method is one route.
 *
 *  Requests whose repetition would do something twice (creating, attaching, minting) are marked so; all others may be repeated
 *  by the transport: chunks are idempotent by id, a commit by its session, deletions by being gone.
 */
import type { IncomingMessage } from 'node:http'
import { hasCode, isAbort, RoostError } from '../src/core/errors.js'
import {
  decodeReadFrameHeader, FRAME_VERDICTS, READ_END, READ_FRAME_HEADER_BYTES, READ_STATUS, WIRE_CODECS, type FrameVerdict,
} from '../src/core/frames.js'
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, type SessionId, type SnapshotId } from '../src/core/ids.js'
import { MiB } from '../src/core/limits.js'
import type {
  AddKeySlotRequest, AddTargetRequest, AttachRepositoryRequest, ChangeRepositoryRequest, ChangeTargetRequest,
  CheckOptions, CollectOptions, CommitReply, CommitRequest, CreateRepositoryRequest, CreateTokenReply, CreateTokenRequest, ForgetRequest, JobRunInfo, JobsReply,
  KeySlotInfo, LockSnapshotRequest, MaintenanceEvent, OpenSessionReply, OpenSessionRequest, RepositoryInfo, RepositoryStats, RetentionInfo,
  SetPolicyRequest, SignedSnapshot,
  SnapshotPage, TargetInfo, TargetsReply, TokenInfo,
} from '../src/core/messages.js'
import type { FamilyReply, KnownOrigin, Origin, ReplicaOffer, ReplicationInfo, SetReplicationRequest } from '../src/core/peer-messages.js'
import { zstdDecode } from '../src/core/zstd.js'
import { MEDIA, ROUTES, routePath } from '../src/protocol/routes.js'
import { ClientError } from '../src/protocol/client-errors.js'
import type { Call, PutCall, ReadCall, ReadChunk, AdministeredRepository, ServerClient } from './repository-client.js'
import type { Transport, TransportRequest } from '../src/protocol/transport.js'

/** Commits wait for packs to be durable, checks read whole targets: both may be silent for long. */
const COMMIT_IDLE_MS = 30 * 60_000
const MAINTENANCE_IDLE_MS = 60 * 60_000
const LINE_BYTES_MAX = 1 * MiB
const signalOf = (call: Call | undefined): { signal?: AbortSignal } => call?.signal === undefined ? {} : { signal: call.signal }

export class HttpRepositoryClient implements AdministeredRepository {
  readonly #transport: Transport
  readonly #repository: string
  /** Owns `transport`: close() closes it. */
  constructor(transport: Transport, repository: string) {
    this.#transport = transport
    this.#repository = repository
  }
  #path(pattern: string, params: Readonly<Record<string, string>> = {}): string {
    return routePath(pattern, { repository: this.#repository, ...params })
  }
  #get<T>(pattern: string, params: Readonly<Record<string, string>>, call?: Call): Promise<T> {
    return this.#transport.json<T>({ method: 'GET', path: this.#path(pattern, params), ...signalOf(call) })
  }

  openSession(request: OpenSessionRequest, call?: Call): Promise<OpenSessionReply> {
    return this.#transport.json({ method: 'POST', path: this.#path(ROUTES.sessions), ...signalOf(call) }, request)
  }
  async findMissing(session: SessionId, idProofs: Buffer, call?: Call): Promise<Buffer> {
    const count = idProofs.byteLength / ID_PROOF_BYTES
    const bitmapBytes = Math.ceil(count / 8)
    const bitmap = await this.#transport.bytes({
      method: 'POST', path: this.#path(ROUTES.sessionMissing, { session }), parts: [idProofs], contentType: MEDIA.idProofs,
      accept: MEDIA.bitmap, ...signalOf(call),
    }, Math.max(bitmapBytes, 1))
    if (bitmap.byteLength !== bitmapBytes) throw malformedReply(`the bitmap of ${count} chunks has ${bitmap.byteLength} bytes`)
    return bitmap
  }
  async putChunks(session: SessionId, parts: readonly Uint8Array[], frames: number, call?: PutCall): Promise<FrameVerdict[]> {
    const verdicts = await this.#transport.bytes({
      method: 'POST', path: this.#path(ROUTES.sessionChunks, { session }), parts, contentType: MEDIA.frames,
      accept: MEDIA.verdicts, ...signalOf(call), ...(call?.onSent === undefined ? {} : { onSent: call.onSent }),
    }, frames)
    if (verdicts.byteLength !== frames) throw malformedReply(`${verdicts.byteLength} verdicts came for ${frames} frames`)
    for (const verdict of verdicts)
      if (verdict > FRAME_VERDICTS.retry) throw malformedReply(`verdict ${verdict} is unknown`)
    return [...verdicts] as FrameVerdict[]
  }
  async *readChunks(session: SessionId, ids: Buffer, call?: ReadCall): AsyncIterable<ReadChunk> {
    const stream = await this.#transport.stream({
      method: 'POST', path: this.#path(ROUTES.sessionRead, { session }), parts: [ids], contentType: MEDIA.ids,
      accept: MEDIA.readFrames, ...signalOf(call),
    })
    yield* readFrames(stream, ids.byteLength / CHUNK_ID_BYTES, call?.signal, call?.sharesRoom === true)
  }
  commit(session: SessionId, request: CommitRequest, call?: Call): Promise<CommitReply> {
    return this.#transport.json({
      method: 'POST', path: this.#path(ROUTES.sessionCommit, { session }), idleMs: COMMIT_IDLE_MS, ...signalOf(call),
    }, request)
  }
  async closeSession(session: SessionId, call?: Call): Promise<void> {
    try {
      await this.#transport.json({ method: 'DELETE', path: this.#path(ROUTES.session, { session }), ...signalOf(call) })
    } catch (error) {
      if (!hasCode(error, 'SESSION_LOST')) throw error // lost is closed
    }
  }

  listSnapshots(query: { after?: string; limit?: number; source?: string; tag?: string }, call?: Call): Promise<SnapshotPage> {
    const search = new URLSearchParams()
    for (const [name, value] of Object.entries(query)) if (value !== undefined) search.set(name, String(value))
    const suffix = search.size === 0 ? '' : `?${search.toString()}`
    return this.#transport.json({ method: 'GET', path: this.#path(ROUTES.snapshots) + suffix, ...signalOf(call) })
  }
  getSnapshot(snapshot: SnapshotId, call?: Call): Promise<SignedSnapshot> { return this.#get(ROUTES.snapshot, { snapshot }, call) }
  async deleteSnapshot(snapshot: SnapshotId, call?: Call): Promise<void> {
    await this.#transport.json({ method: 'DELETE', path: this.#path(ROUTES.snapshot, { snapshot }), ...signalOf(call) })
  }
  async protectSnapshot(snapshot: SnapshotId, isProtected: boolean, call?: Call): Promise<void> {
    await this.#transport.json({ method: isProtected ? 'PUT' : 'DELETE', path: this.#path(ROUTES.snapshotProtection, { snapshot }), ...signalOf(call) })
  }
  async lockSnapshot(snapshot: SnapshotId, request: LockSnapshotRequest, call?: Call): Promise<void> {
    await this.#transport.json({ method: 'PUT', path: this.#path(ROUTES.snapshotLock, { snapshot }), ...signalOf(call) }, request)
  }
  retention(call?: Call): Promise<RetentionInfo> { return this.#get(ROUTES.retention, {}, call) }
  setPolicy(request: SetPolicyRequest, call?: Call): Promise<RetentionInfo> {
    return this.#transport.json({ method: 'PUT', path: this.#path(ROUTES.retentionPolicy), ...signalOf(call) }, request)
  }
  forget(request: ForgetRequest, call?: Call): AsyncIterable<MaintenanceEvent> { return this.#maintain(ROUTES.forget, request, call) }
  info(call?: Call): Promise<RepositoryInfo> { return this.#get(ROUTES.repository, {}, call) }
  stats(call?: Call): Promise<RepositoryStats> { return this.#get(ROUTES.stats, {}, call) }
  check(options: CheckOptions, call?: Call): AsyncIterable<MaintenanceEvent> {
    return this.#maintain(ROUTES.check, options, call)
  }
  collect(options: CollectOptions, call?: Call): AsyncIterable<MaintenanceEvent> { return this.#maintain(ROUTES.gc, options, call) }
  rebuild(call?: Call): AsyncIterable<MaintenanceEvent> { return this.#maintain(ROUTES.rebuild, undefined, call) }
  listTargets(call?: Call): Promise<TargetsReply> { return this.#get(ROUTES.targets, {}, call) }
  addTarget(request: AddTargetRequest, call?: Call): Promise<TargetInfo> {
    return this.#transport.json({ method: 'POST', path: this.#path(ROUTES.targets), repeatable: false, ...signalOf(call) }, request)
  }
  changeTarget(target: string, request: ChangeTargetRequest, call?: Call): Promise<TargetInfo> {
    return this.#transport.json({ method: 'PATCH', path: this.#path(ROUTES.target, { target }), ...signalOf(call) }, request)
  }
  async removeTarget(target: string, call?: Call): Promise<void> {
    await this.#transport.json({ method: 'DELETE', path: this.#path(ROUTES.target, { target }), repeatable: false, ...signalOf(call) })
  }
  backfillTarget(target: string, call?: Call): AsyncIterable<MaintenanceEvent> { return this.#maintain(ROUTES.targetBackfill, undefined, call, { target }) }
  drainTarget(target: string, call?: Call): AsyncIterable<MaintenanceEvent> { return this.#maintain(ROUTES.targetDrain, undefined, call, { target }) }
  change(request: ChangeRepositoryRequest, call?: Call): Promise<RepositoryInfo> {
    return this.#transport.json({ method: 'PATCH', path: this.#path(ROUTES.repository), ...signalOf(call) }, request)
  }
  listJobs(call?: Call): Promise<JobsReply> { return this.#get(ROUTES.jobs, {}, call) }
  getJob(job: string, call?: Call): Promise<JobRunInfo> { return this.#get(ROUTES.job, { job }, call) }
  runJob(job: string, call?: Call): Promise<JobRunInfo> {
    return this.#transport.json({ method: 'POST', path: this.#path(ROUTES.jobRun, { job }), repeatable: false, ...signalOf(call) })
  }
  cancelJob(job: string, call?: Call): Promise<JobRunInfo> {
    return this.#transport.json({ method: 'POST', path: this.#path(ROUTES.jobCancel, { job }), idleMs: COMMIT_IDLE_MS, ...signalOf(call) })
  }
  async *watchJob(job: string, call?: Call): AsyncIterable<MaintenanceEvent> {
    yield* readLines<MaintenanceEvent>(await this.#transport.stream({
      method: 'GET', path: this.#path(ROUTES.jobEvents, { job }), accept: MEDIA.progress, idleMs: MAINTENANCE_IDLE_MS, ...signalOf(call) }), call?.signal)
  }
  async *#maintain(pattern: string, body: unknown, call?: Call, params: Readonly<Record<string, string>> = {}): AsyncIterable<MaintenanceEvent> {
    const encoded = body === undefined ? {} : { parts: [Buffer.from(JSON.stringify(body))], contentType: 'application/json' }
    yield* readLines<MaintenanceEvent>(await this.#transport.stream({
      method: 'POST', path: this.#path(pattern, params), ...encoded, accept: MEDIA.progress, idleMs: MAINTENANCE_IDLE_MS,
      repeatable: false, ...signalOf(call),
    }), call?.signal)
  }

  stateFamily(publicKey: string, call?: Call): Promise<FamilyReply> {
    return this.#transport.json({ method: 'POST', path: this.#path(ROUTES.peerFamily), ...signalOf(call) }, { publicKey })
  }
  listOrigins(call?: Call): Promise<KnownOrigin[]> { return this.#get(ROUTES.origins, {}, call) }
  async trustOrigin(origin: Origin, call?: Call): Promise<void> {
    await this.#transport.json({ method: 'POST', path: this.#path(ROUTES.origins), ...signalOf(call) }, origin)
  }
  listReplications(refresh: boolean, call?: Call): Promise<ReplicationInfo[]> {
    return this.#transport.json({ method: 'GET', path: this.#path(ROUTES.replications) + (refresh ? '?refresh=1' : ''), ...signalOf(call) })
  }
  async setReplication(replication: string, request: SetReplicationRequest, call?: Call): Promise<void> {
    await this.#transport.json({ method: 'PUT', path: this.#path(ROUTES.replication, { replication }), ...signalOf(call) }, request)
  }
  async removeReplication(replication: string, call?: Call): Promise<void> {
    await this.#transport.json({ method: 'DELETE', path: this.#path(ROUTES.replication, { replication }), ...signalOf(call) })
  }
  runReplication(replication: string, call?: Call): AsyncIterable<MaintenanceEvent> { return this.#maintain(ROUTES.replicationRun, undefined, call, { replication }) }
  listKeySlots(call?: Call): Promise<KeySlotInfo[]> { return this.#get(ROUTES.keySlots, {}, call) }
  addKeySlot(request: AddKeySlotRequest, call?: Call): Promise<KeySlotInfo> {
    return this.#transport.json({ method: 'POST', path: this.#path(ROUTES.keySlots), repeatable: false, ...signalOf(call) }, request)
  }
  async removeKeySlot(slot: string, call?: Call): Promise<void> {
    await this.#transport.json({ method: 'DELETE', path: this.#path(ROUTES.keySlot, { slot }), ...signalOf(call) })
  }
  rotateKeyfile(call?: Call): Promise<KeySlotInfo> {
    return this.#transport.json({ method: 'POST', path: this.#path(ROUTES.keyRotate), repeatable: false, ...signalOf(call) })
  }
  close(): Promise<void> { this.#transport.close(); return Promise.resolve() }
}

export class HttpServerClient implements ServerClient {
  readonly #transport: Transport
  /** Owns `transport`: close() closes it. */
  constructor(transport: Transport) { this.#transport = transport }
  #create<T>(path: string, body: unknown, call?: Call): Promise<T> {
    const request: TransportRequest = { method: 'POST', path, repeatable: false, ...signalOf(call) }
    return this.#transport.json<T>(request, body)
  }
  listRepositories(call?: Call): Promise<RepositoryInfo[]> {
    return this.#transport.json({ method: 'GET', path: ROUTES.repositories, ...signalOf(call) })
  }
  createRepository(request: CreateRepositoryRequest, call?: Call): Promise<RepositoryInfo> {
    return this.#create(ROUTES.repositories, request, call)
  }
  offerReplica(call?: Call): Promise<ReplicaOffer> { return this.#create(ROUTES.replicaOffers, undefined, call) }
  attachRepository(request: AttachRepositoryRequest, call?: Call): Promise<RepositoryInfo> {
    return this.#transport.json({ method: 'PUT', path: routePath(ROUTES.repository, { repository: request.name }), repeatable: false,
      ...signalOf(call) }, request)
  }
  listTokens(call?: Call): Promise<TokenInfo[]> {
    return this.#transport.json({ method: 'GET', path: ROUTES.tokens, ...signalOf(call) })
  }
  createToken(request: CreateTokenRequest, call?: Call): Promise<CreateTokenReply> { return this.#create(ROUTES.tokens, request, call) }
  async revokeToken(token: string, call?: Call): Promise<void> {
    await this.#transport.json({ method: 'DELETE', path: routePath(ROUTES.token, { token }), ...signalOf(call) })
  }
  close(): Promise<void> { this.#transport.close(); return Promise.resolve() }
}

const malformedReply = (problem: string): ClientError => new ClientError('REPLY_MALFORMED', `The server's reply is malformed: ${problem}.`)

/** Cuts the stream into frames; a payload is copied once at most, into a buffer of its own or, with `sharesRoom`, into one for all. Leaving the loop early ends the request. */
async function* readFrames(stream: IncomingMessage, count: number, signal: AbortSignal | undefined, sharesRoom: boolean): AsyncIterable<ReadChunk> {
  const source = new ByteSource(stream, signal, sharesRoom)
  try {
    for (let seen = 0; ; seen++) {
      const header = decodeReadFrameHeader(await source.take(READ_FRAME_HEADER_BYTES))
      if (header.index === READ_END) {
        if (seen !== count) throw new RoostError('BODY_TRUNCATED', `The reply has ${seen} of ${count} chunks.`)
        return
      }
      if (header.index >= count) throw malformedReply(`it has chunk ${header.index} of ${count}`)
      const payload = await source.take(header.wireBytes)
      yield toReadChunk(header, payload)
    }
  } finally {
    stream.destroy()
  }
}
function toReadChunk(header: ReturnType<typeof decodeReadFrameHeader>, payload: Buffer): ReadChunk {
  const { index, status, codec, rawBytes } = header
  if (status === READ_STATUS.notReadable) return { index, status: 'not-readable', bytes: undefined }
  if (status !== READ_STATUS.ok) return { index, status: 'missing', bytes: undefined }
  const bytes = codec === WIRE_CODECS.zstd ? zstdDecode(payload, rawBytes) : payload.byteLength === rawBytes ? payload : undefined
  if (bytes === undefined) throw malformedReply(`chunk ${index} cannot be decoded`)
  return { index, status: 'ok', bytes }
}

/** Exactly as many bytes as asked for, from a stream of arbitrary pieces. @throws {RoostError} BODY_TRUNCATED */
class ByteSource {
  readonly #pieces: AsyncIterator<Buffer>
  #piece: Buffer = Buffer.alloc(0)
  #room = Buffer.alloc(0)
  constructor(stream: IncomingMessage, readonly signal: AbortSignal | undefined, readonly sharesRoom = false) {
    this.#pieces = (stream as AsyncIterable<Buffer>)[Symbol.asyncIterator]()
  }
  async take(bytes: number): Promise<Buffer> {
    if (this.#piece.byteLength >= bytes) {
      const taken = this.#piece.subarray(0, bytes)
      this.#piece = this.#piece.subarray(bytes)
      // A large payload must not keep its neighbours alive, nor a small one a whole piece for long: readers consume in order.
      return taken
    }
    const whole = this.#wholeOf(bytes)
    let filled = this.#piece.copy(whole)
    this.#piece = this.#piece.subarray(filled)
    while (filled < bytes) {
      this.#piece = await this.#next()
      const copied = this.#piece.copy(whole, filled)
      this.#piece = this.#piece.subarray(copied)
      filled += copied
    }
    return whole
  }
  #wholeOf(bytes: number): Buffer {
    if (!this.sharesRoom) return Buffer.allocUnsafeSlow(bytes)
    if (this.#room.byteLength < bytes) this.#room = Buffer.allocUnsafeSlow(bytes)
    return this.#room.subarray(0, bytes)
  }
  async #next(): Promise<Buffer> {
    try {
      const { done, value } = await this.#pieces.next()
      if (done !== true) return value
    } catch (error) {
      this.signal?.throwIfAborted()
      if (isAbort(error)) throw error
      throw new RoostError('BODY_TRUNCATED', 'The reply broke off.', {}, { cause: error })
    }
    throw new RoostError('BODY_TRUNCATED', 'The reply ended early.')
  }
}

async function* readLines<T>(stream: IncomingMessage, signal: AbortSignal | undefined): AsyncIterable<T> {
  let rest = ''
  const decoder = new TextDecoder()
  try {
    for await (const piece of stream as AsyncIterable<Buffer>) {
      const lines = (rest + decoder.decode(piece, { stream: true })).split('\n')
      rest = lines.pop() ?? ''
      if (rest.length > LINE_BYTES_MAX) throw malformedReply('a line is too long')
      for (const line of lines) if (line !== '') yield JSON.parse(line) as T
    }
    if (rest !== '') yield JSON.parse(rest) as T
  } catch (error) {
    signal?.throwIfAborted()
    if (error instanceof SyntaxError) throw malformedReply('a line is not JSON')
    if (error instanceof Error && 'code' in error && error.code === 'ECONNRESET')
      throw new ClientError('SERVER_UNREACHABLE', 'The connection broke before the work was reported done; it may go on.', { cause: error })
    throw error
  } finally {
    stream.destroy()
  }
}
