/** What a repository offers to another one of its family: sending and receiving snapshots. Each method is a use case in a file of its own. */
import { Semaphore } from '../../core/concurrency.js'
import type { ChunkGroup } from '../../core/chunk-groups.js'
import { RoostError } from '../../core/errors.js'
import { parseSessionId, type SessionId } from '../../core/ids.js'
import type { SignedSnapshot, SnapshotPage, SnapshotRecord } from '../../core/messages.js'
import type { FamilyReply, KnownOrigin, Origin, OutlinePage, PeerSessionReply, PeerSessionRequest, ReceiveReply } from '../../core/peer-messages.js'
import type { ChunkPutter } from '../put-chunks.js'
import type { FrameBody, SnapshotQuery } from '../repository.js'
import type { RepositoryParts } from '../repository-parts.js'
import type { Sessions } from '../sessions.js'
import { stateFamily } from './family.js'
import { fetchGroups } from './fetch-groups.js'
import { holdPresent, inheritChildren } from './hold-refs.js'
import { readNodes, type FoundNode } from './read-nodes.js'
import { receiveSnapshot } from './receive-snapshot.js'

export interface PeerRepository {
  /** @throws REQUEST_MALFORMED */
  stateFamily(publicKey: string): Promise<FamilyReply>
  outline(after: string | undefined): Promise<OutlinePage>
  listOrigins(): Promise<KnownOrigin[]>
  /** From here on, snapshots that it signed are taken in. */
  trustOrigin(origin: Origin): Promise<void>
  openSession(request: PeerSessionRequest, caller: { readonly tokenId: string }): Promise<PeerSessionReply>
  /** Chunks of any snapshot. @throws SESSION_LOST; AUTH_FORBIDDEN for a session that does not send */
  fetch(session: SessionId, ids: Buffer, signal: AbortSignal): AsyncIterable<ChunkGroup>
  /** Bitmap of `ids` (32 bytes each), bit set = missing; what is there is pinned. */
  hold(session: SessionId, ids: Buffer): Promise<Buffer>
  /** What these inherited nodes list is inherited, too. */
  inherit(session: SessionId, ids: Buffer, signal: AbortSignal): Promise<void>
  /** One FrameVerdict byte a chunk, in the order of the groups. */
  putGroups(session: SessionId, body: FrameBody, signal: AbortSignal): Promise<Buffer>
  receive(session: SessionId, snapshot: SignedSnapshot, signal: AbortSignal): Promise<ReceiveReply>
  /** For this server's own walks; the order is the packs'. */
  readNodes(ids: Buffer, signal: AbortSignal): AsyncIterable<FoundNode>
}

/** Bodies of groups that unfold at once, all sessions together: the memory that they take is not in their own length. */
const UNFOLDING_MAX = 8
const OUTLINES_PER_PAGE = 1_000

export class LocalPeerRepository implements PeerRepository {
  readonly #unfolding = new Semaphore(UNFOLDING_MAX)
  /** One at a time for each session: the second finds what the first took in. */
  readonly #receiving = new Map<SessionId, Promise<unknown>>()
  constructor(readonly parts: RepositoryParts, readonly sessions: Sessions, readonly putter: ChunkPutter,
    readonly list: (query: SnapshotQuery) => Promise<SnapshotPage>) {}

  stateFamily(publicKey: string): Promise<FamilyReply> { return stateFamily(this.parts, publicKey) }
  async outline(after: string | undefined): Promise<OutlinePage> {
    const { snapshots, next } = await this.list({ limit: OUTLINES_PER_PAGE, ...(after === undefined ? {} : { after }) })
    return { next, snapshots: snapshots.map(({ id, record, signer }) => {
      const { source, receivedAtMs, tags, parent, statistics } = JSON.parse(Buffer.from(record, 'base64').toString('utf8')) as SnapshotRecord
      return { id, source, receivedAtMs, tags, parent, bytes: statistics.bytesSent, ...(signer === undefined ? {} : { signer }) }
    }) }
  }
  listOrigins(): Promise<KnownOrigin[]> { return this.parts.origins.list() }
  trustOrigin(origin: Origin): Promise<void> { return this.parts.origins.trust(origin) }
  openSession(request: PeerSessionRequest, caller: { readonly tokenId: string }): Promise<PeerSessionReply> { return this.sessions.openPeer(request, caller) }

  async *fetch(session: SessionId, ids: Buffer, signal: AbortSignal): AsyncIterable<ChunkGroup> {
    await this.#require(session, 'read')
    yield* fetchGroups(this.parts, ids, signal)
  }
  async hold(session: SessionId, ids: Buffer): Promise<Buffer> {
    await this.#require(session, 'push')
    return await holdPresent(this.parts, session, ids)
  }
  async inherit(session: SessionId, ids: Buffer, signal: AbortSignal): Promise<void> {
    await this.#require(session, 'push')
    await inheritChildren(this.parts, session, ids, signal)
  }
  async putGroups(session: SessionId, body: FrameBody, signal: AbortSignal): Promise<Buffer> {
    await this.#require(session, 'push')
    await this.parts.intake.requireRoom()
    await this.#unfolding.acquire(1, signal)
    try {
      const frames = await this.parts.pool.unfold(new Uint8Array(body.buffer, 0, body.bytes))
      return (await this.putter.put(session, frames)).verdicts
    } finally {
      this.#unfolding.release()
    }
  }
  receive(session: SessionId, snapshot: SignedSnapshot, signal: AbortSignal): Promise<ReceiveReply> {
    const receiving = (this.#receiving.get(session) ?? Promise.resolve()).catch(() => undefined)
      .then(() => receiveSnapshot(this.parts, this.sessions, session, snapshot, signal))
    this.#receiving.set(session, receiving)
    return receiving.finally(() => { if (this.#receiving.get(session) === receiving) this.#receiving.delete(session) })
  }
  readNodes(ids: Buffer, signal: AbortSignal): AsyncIterable<FoundNode> { return readNodes(this.parts, ids, signal) }

  async #require(session: SessionId, kind: 'read' | 'push'): Promise<void> {
    const row = await this.sessions.require(parseSessionId(session))
    if (row.mode !== 'replicate' || row.kind !== kind)
      throw new RoostError('AUTH_FORBIDDEN', kind === 'read' ? 'This session does not send to a peer.' : 'This session does not receive from a peer.')
  }
}
