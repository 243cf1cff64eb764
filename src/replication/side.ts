/** One of the two repositories of a replication: here, or on another server. The engine knows no other difference than which of them is near. */
import type { ChunkGroup } from '../core/chunk-groups.js'
import type { SessionId, SnapshotId } from '../core/ids.js'
import type { SignedSnapshot } from '../core/messages.js'
import type { Origin, PeerSessionReply, ReceiveReply, SnapshotOutline } from '../core/peer-messages.js'

export type SideSession = Omit<PeerSessionReply, 'proof' | 'sessionId'> & { readonly sessionId: SessionId }
export type SideRequest = { readonly kind: 'send'; readonly snapshot: string } | { readonly kind: 'receive'; readonly source: string; readonly bases: readonly string[]; readonly signer?: Origin }

/** Whoever answers is the repository that was named: a far side proves it with every session.
 *  All methods @throws {RoostError} PEER_UNAVAILABLE; PEER_REFUSED; SESSION_LOST; what the repository throws */
export interface ReplicationSide {
  /** Of the repository's signing key, as it was pinned. */
  readonly verifyKey: string
  /** Newest first. */
  outlines(signal: AbortSignal): AsyncIterable<SnapshotOutline>
  open(request: SideRequest, signal: AbortSignal): Promise<SideSession>
  close(session: SessionId): Promise<void>
  /** Each distinct id once, in any order; a stream that was cut ends in BODY_TRUNCATED. */
  fetch(session: SessionId, ids: Buffer, signal: AbortSignal): AsyncIterable<ChunkGroup>
  /** Bitmap, bit set = missing; what is there stays for the session. */
  hold(session: SessionId, ids: Buffer, signal: AbortSignal): Promise<Buffer>
  inherit(session: SessionId, ids: Buffer, signal: AbortSignal): Promise<void>
  /** One FrameVerdict byte a chunk. */
  put(session: SessionId, groups: readonly ChunkGroup[], signal: AbortSignal): Promise<Buffer>
  receive(session: SessionId, snapshot: SignedSnapshot, signal: AbortSignal): Promise<ReceiveReply>
  deleteSnapshot(id: SnapshotId, signal: AbortSignal): Promise<void>
}
/** The side that is here: it reads nodes without a session, and at no cost of latency. */
export interface NearSide extends ReplicationSide {
  /** Verified; what is not there is left out. */
  readNodes(ids: Buffer, signal: AbortSignal): AsyncIterable<{ readonly index: number; readonly bytes: Buffer }>
}
