/** A repository on another server as a side of a replication. It proves with every session that it is the one that was named. */
import type { IncomingMessage } from 'node:http'
import { decodeGroupBody, decodeGroupHeader, encodeGroup, GROUP_CODECS, GROUP_HEADER_BYTES, groupBodyBytes, type ChunkGroup } from '../core/chunk-groups.js'
import type { Clock } from '../core/clock.js'
import { hasCode, isAbort, RoostError } from '../core/errors.js'
import { CHUNK_ID_BYTES, parseSessionId, type SessionId, type SnapshotId } from '../core/ids.js'
import type { SignedSnapshot } from '../core/messages.js'
import type { OutlinePage, PeerSessionReply, PeerSessionRequest, ReceiveReply, SnapshotOutline } from '../core/peer-messages.js'
import { CHALLENGE_BYTES, isProvenPeer } from '../core/peer-proof.js'
import type { Random } from '../core/random.js'
import { ClientError } from '../protocol/client-errors.js'
import { MEDIA, ROUTES, routePath } from '../protocol/routes.js'
import type { Transport, TransportRequest } from '../protocol/transport.js'
import type { ReplicationSide, SideRequest, SideSession } from './side.js'

/** Taking a snapshot in waits for packs to be durable. */
const RECEIVE_IDLE_MS = 30 * 60_000
/** Times that a small message is sent again when it, or its answer, was changed on the way. */
const TRIES_MAX = 5
const RETRY_MS = 200
/** What a message that was changed on the way ends in: its sender cannot tell whether it was the network. */
const MAYBE_DAMAGE = ['BODY_TRUNCATED', 'FRAME_MALFORMED', 'REQUEST_MALFORMED', 'ID_MALFORMED', 'SNAPSHOT_CORRUPT', 'PEER_REFUSED', 'MEDIA_TYPE_UNSUPPORTED', 'ROUTE_UNKNOWN'] as const

export interface HttpSideOptions {
  /** Owned: close() closes it. */
  readonly transport: Transport
  readonly repository: string
  /** 64 hex digits: whoever cannot sign with it is refused. */
  readonly verifyKey: string
  readonly clock: Clock
  readonly random: Random
}

export class HttpSide implements ReplicationSide {
  readonly #options: HttpSideOptions
  constructor(options: HttpSideOptions) { this.#options = options }
  get verifyKey(): string { return this.#options.verifyKey }

  async *outlines(signal: AbortSignal): AsyncIterable<SnapshotOutline> {
    for (let after: string | null = ''; after !== null;) {
      const path: string = this.#path(ROUTES.peerSnapshots) + (after === '' ? '' : `?after=${encodeURIComponent(after)}`)
      const page: OutlinePage = await this.#patiently(signal, async () => requirePage(await this.#json<OutlinePage>({ method: 'GET', path, signal })))
      yield* page.snapshots
      after = page.next
    }
  }
  open(request: SideRequest, signal: AbortSignal): Promise<SideSession> {
    return this.#patiently(signal, async () => {
      const challenge = this.#options.random.bytes(CHALLENGE_BYTES).toString('hex')
      const wanted: PeerSessionRequest = { ...request, challenge }
      const reply = await this.#json<PeerSessionReply>({ method: 'POST', path: this.#path(ROUTES.peerSessions), signal }, wanted)
      return { ...reply, sessionId: this.#requireProof(challenge, reply) }
    })
  }
  #requireProof(challenge: string, reply: PeerSessionReply): SessionId {
    const isHex = (value: unknown, digits: number): boolean => typeof value === 'string' && value.length === digits && /^[0-9a-f]*$/.test(value)
    if (!isHex(reply.sessionId, 32) || !isHex(reply.repositoryId, 32) || !isHex(reply.familyId, 32) || typeof reply.proof !== 'string' ||
      !isProvenPeer(challenge, reply, this.verifyKey)) throw new RoostError('PEER_REFUSED',
      'The peer cannot prove that it is the repository that was named: it does not sign with the key that was pinned.', { verifyKey: this.verifyKey })
    return parseSessionId(reply.sessionId)
  }
  async close(session: SessionId): Promise<void> {
    await this.#json({ method: 'DELETE', path: this.#path(ROUTES.session, { session }), signal: AbortSignal.timeout(5_000) })
  }
  async *fetch(session: SessionId, ids: Buffer, signal: AbortSignal): AsyncIterable<ChunkGroup> {
    const stream = await this.#patiently(signal, () => this.#call(() => this.#options.transport.stream(
      { method: 'POST', path: this.#path(ROUTES.peerFetch, { session }), parts: [ids], contentType: MEDIA.ids, accept: MEDIA.groups, signal })))
    yield* readGroups(stream, signal)
  }
  hold(session: SessionId, ids: Buffer, signal: AbortSignal): Promise<Buffer> {
    const bytes = (ids.byteLength / CHUNK_ID_BYTES + 7) >> 3
    return this.#patiently(signal, async () => requireLength(await this.#bytes({ method: 'POST', path: this.#path(ROUTES.peerHold, { session }), parts: [ids],
      contentType: MEDIA.ids, accept: MEDIA.bitmap, signal }, bytes), bytes))
  }
  async inherit(session: SessionId, ids: Buffer, signal: AbortSignal): Promise<void> {
    await this.#patiently(signal, () => this.#json({ method: 'POST', path: this.#path(ROUTES.peerInherit, { session }), parts: [ids], contentType: MEDIA.ids, signal }))
  }
  put(session: SessionId, groups: readonly ChunkGroup[], signal: AbortSignal): Promise<Buffer> {
    const chunks = groups.reduce((sum, { rawBytes }) => sum + rawBytes.length, 0)
    return this.#patiently(signal, async () => requireLength(await this.#bytes({ method: 'POST', path: this.#path(ROUTES.peerGroups, { session }),
      parts: groups.flatMap(encodeGroup), contentType: MEDIA.groups, accept: MEDIA.verdicts, signal }, chunks), chunks))
  }
  receive(session: SessionId, snapshot: SignedSnapshot, signal: AbortSignal): Promise<ReceiveReply> {
    return this.#patiently(signal, () => this.#json<ReceiveReply>({ method: 'POST', path: this.#path(ROUTES.peerReceive, { session }), idleMs: RECEIVE_IDLE_MS, signal }, snapshot))
  }
  async deleteSnapshot(id: SnapshotId, signal: AbortSignal): Promise<void> {
    await this.#json({ method: 'DELETE', path: this.#path(ROUTES.snapshot, { snapshot: id }), signal })
  }

  #path(pattern: string, params: Readonly<Record<string, string>> = {}): string { return routePath(pattern, { repository: this.#options.repository, ...params }) }
  #json<T>(request: TransportRequest, body?: unknown): Promise<T> { return this.#call(() => this.#options.transport.json<T>(request, body)) }
  #bytes(request: TransportRequest, bytesMax: number): Promise<Buffer> { return this.#call(() => this.#options.transport.bytes(request, Math.max(1, bytesMax))) }
  /** What the network does, in the words of jobs. */
  async #call<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (error) {
      throw asPeerError(error)
    }
  }
  async #patiently<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work()
      } catch (error) {
        signal.throwIfAborted()
        if (attempt >= TRIES_MAX || !MAYBE_DAMAGE.some((code) => hasCode(error, code))) throw error
        await this.#options.clock.sleep(RETRY_MS * attempt, signal)
      }
    }
  }
}

/** @returns an error that is a RoostError, or a cancellation */
export function asPeerError(error: unknown): unknown {
  if (error instanceof RoostError || isAbort(error)) return error
  if (error instanceof ClientError) {
    if (error.code === 'REPLY_MALFORMED') return new RoostError('FRAME_MALFORMED', `The peer's reply is malformed: ${error.message}`, {}, { cause: error })
    if (error.code === 'SERVER_UNREACHABLE') return new RoostError('PEER_UNAVAILABLE', `The peer cannot be reached: ${error.message}`, {}, { cause: error })
    return new RoostError('PEER_REFUSED', `The peer is not spoken to: ${error.message}`, {}, { cause: error })
  }
  return error
}
function requirePage(page: OutlinePage): OutlinePage {
  const isWhole = Array.isArray(page?.snapshots) && (page.next === null || typeof page.next === 'string') && page.snapshots.every((one) =>
    typeof one?.id === 'string' && /^[0-9a-f]{64}$/.test(one.id) && typeof one.source === 'string' && typeof one.receivedAtMs === 'number' &&
    Array.isArray(one.tags) && typeof one.bytes === 'number' && (one.parent === null || (typeof one.parent === 'string' && /^[0-9a-f]{64}$/.test(one.parent))))
  if (!isWhole) throw new RoostError('FRAME_MALFORMED', 'The peer\'s list of snapshots is malformed.')
  return page
}
function requireLength(reply: Buffer, bytes: number): Buffer {
  if (reply.byteLength !== bytes) throw new RoostError('FRAME_MALFORMED', `The peer answered ${reply.byteLength} bytes instead of ${bytes}.`)
  return reply
}

async function* readGroups(stream: IncomingMessage, signal: AbortSignal): AsyncGenerator<ChunkGroup, void, undefined> {
  const source = new Pieces(stream, signal)
  try {
    for (;;) {
      const header = decodeGroupHeader(await source.take(GROUP_HEADER_BYTES))
      if (header.codec === GROUP_CODECS.end) return
      yield decodeGroupBody(header, await source.take(groupBodyBytes(header)))
    }
  } finally {
    stream.destroy()
  }
}
/** As many bytes as asked for, in memory of their own. @throws {RoostError} BODY_TRUNCATED */
class Pieces {
  readonly #pieces: AsyncIterator<Buffer>
  #piece: Buffer = Buffer.alloc(0)
  constructor(stream: IncomingMessage, readonly signal: AbortSignal) { this.#pieces = (stream as AsyncIterable<Buffer>)[Symbol.asyncIterator]() }
  async take(bytes: number): Promise<Buffer> {
    const whole = Buffer.allocUnsafeSlow(bytes)
    for (let filled = 0; filled < bytes;) {
      if (this.#piece.byteLength === 0) this.#piece = await this.#next()
      const copied = this.#piece.copy(whole, filled)
      this.#piece = this.#piece.subarray(copied)
      filled += copied
    }
    return whole
  }
  async #next(): Promise<Buffer> {
    try {
      const { done, value } = await this.#pieces.next()
      if (done !== true) return value
    } catch (error) {
      this.signal.throwIfAborted()
      throw new RoostError('BODY_TRUNCATED', 'The peer\'s reply broke off.', {}, { cause: error })
    }
    throw new RoostError('BODY_TRUNCATED', 'The peer\'s reply ended early.')
  }
}
