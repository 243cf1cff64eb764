/** A repository of this process as a side of a replication. */
import { bytesOfGroup, encodeGroup, type ChunkGroup } from '../core/chunk-groups.js'
import { parseSessionId, type SessionId, type SnapshotId } from '../core/ids.js'
import type { SignedSnapshot } from '../core/messages.js'
import type { ReceiveReply, SnapshotOutline } from '../core/peer-messages.js'
import type { Repository } from '../repo/repository.js'
import type { NearSide, SideRequest, SideSession } from './side.js'

/** Sessions of this process's own belong to no token. */
const OWN_TOKEN = 'replication'

export class LocalSide implements NearSide {
  constructor(readonly repository: Repository) {}
  get verifyKey(): string { return this.repository.info().verifyKey }

  async *outlines(signal: AbortSignal): AsyncIterable<SnapshotOutline> {
    for (let after: string | null | undefined; after !== null;) {
      signal.throwIfAborted()
      const page = await this.repository.peer.outline(after)
      yield* page.snapshots
      after = page.next
    }
  }
  async open(request: SideRequest): Promise<SideSession> {
    const reply = await this.repository.peer.openSession({ ...request, challenge: '' }, { tokenId: OWN_TOKEN })
    return { ...reply, sessionId: parseSessionId(reply.sessionId) }
  }
  close(session: SessionId): Promise<void> { return this.repository.closeSession(session) }
  fetch(session: SessionId, ids: Buffer, signal: AbortSignal): AsyncIterable<ChunkGroup> { return this.repository.peer.fetch(session, ids, signal) }
  hold(session: SessionId, ids: Buffer): Promise<Buffer> { return this.repository.peer.hold(session, ids) }
  inherit(session: SessionId, ids: Buffer, signal: AbortSignal): Promise<void> { return this.repository.peer.inherit(session, ids, signal) }
  async put(session: SessionId, groups: readonly ChunkGroup[], signal: AbortSignal): Promise<Buffer> {
    const bytes = groups.reduce((sum, group) => sum + bytesOfGroup(group), 0)
    const buffer = new SharedArrayBuffer(bytes)
    const body = Buffer.from(buffer)
    let at = 0
    for (const group of groups) for (const piece of encodeGroup(group)) at += piece.copy(body, at)
    return await this.repository.peer.putGroups(session, { buffer, bytes }, signal)
  }
  receive(session: SessionId, snapshot: SignedSnapshot, signal: AbortSignal): Promise<ReceiveReply> { return this.repository.peer.receive(session, snapshot, signal) }
  deleteSnapshot(id: SnapshotId): Promise<void> { return this.repository.deleteSnapshot(id) }
  readNodes(ids: Buffer, signal: AbortSignal): AsyncIterable<{ readonly index: number; readonly bytes: Buffer }> { return this.repository.peer.readNodes(ids, signal) }
}
