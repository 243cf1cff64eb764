/** What one open repository offers to the server and the command line: each method is a use case in a file of its own. */
import type { SessionId, SnapshotId } from '../core/ids.js'
import type { SessionRow } from '../index/chunk-index.js'
import type {
  AddKeySlotRequest, AddTargetRequest, ChangeRepositoryRequest, ChangeTargetRequest, CheckOptions, CollectOptions, CommitReply, CommitRequest, ForgetRequest,
  KeySlotInfo, LockSnapshotRequest, MaintenanceEvent, OpenSessionReply, OpenSessionRequest, RepositoryInfo, RepositoryStats, RetentionInfo,
  SetPolicyRequest, SignedSnapshot, SnapshotPage, TargetInfo, TargetsReply,
} from '../core/messages.js'

import type { PeerRepository } from './replica/peer-repository.js'

export interface SnapshotQuery {
  /** Opaque `next` of the page before. */
  readonly after?: string
  readonly limit: number
  readonly source?: string
  readonly tag?: string
}
/** A body of chunk frames in memory of its own. Ownership passes to the repository with the call and comes back with
 *  the result (a worker thread has it meanwhile). */
export interface FrameBody { readonly buffer: SharedArrayBuffer; readonly bytes: number }

export interface Repository {
  readonly name: string
  /** For others of its family. */
  readonly peer: PeerRepository
  info(): RepositoryInfo

  /** `sourceLimit`: the only source that the token may use, if it is limited. */
  openSession(request: OpenSessionRequest, caller: { readonly tokenId: string; readonly sourceLimit?: string }): Promise<OpenSessionReply>
  /** @throws SESSION_LOST */
  requireSession(sessionId: SessionId): Promise<SessionRow>
  /** Reply: bitmap, bit set = missing. */
  findMissing(sessionId: SessionId, idProofs: Buffer): Promise<Buffer>
  /** Reply: one FrameVerdict byte per frame, and the buffer back for reuse. */
  putChunks(sessionId: SessionId, body: FrameBody, signal: AbortSignal): Promise<{ verdicts: Buffer; recycled: SharedArrayBuffer }>
  /** Encoded read frames in the order of the packs, ending with the READ_END frame. */
  readChunks(sessionId: SessionId, ids: Buffer, signal: AbortSignal): AsyncIterable<Buffer>
  /** The source of the snapshot that this session, perhaps ended by it, has committed; undefined when it has not. */
  committedSource(sessionId: SessionId): Promise<string | undefined>
  commit(sessionId: SessionId, request: CommitRequest, signal: AbortSignal): Promise<CommitReply>
  closeSession(sessionId: SessionId): Promise<void>

  listSnapshots(query: SnapshotQuery): Promise<SnapshotPage>
  /** @throws SNAPSHOT_UNKNOWN */
  getSnapshot(snapshotId: SnapshotId): Promise<SignedSnapshot>
  /** @throws SNAPSHOT_UNKNOWN; SNAPSHOT_PROTECTED; RETENTION_LOCKED */
  deleteSnapshot(snapshotId: SnapshotId): Promise<void>
  /** Policies, protected and locked snapshots. */
  retention(): Promise<RetentionInfo>
  /** @throws POLICY_KEEPS_NOTHING; REQUEST_MALFORMED */
  setPolicy(request: SetPolicyRequest): Promise<RetentionInfo>
  /** Judges snapshots by the given or the stored policies, and deletes what no rule keeps. @throws POLICY_KEEPS_NOTHING; REPOSITORY_BUSY */
  forget(request: ForgetRequest, signal: AbortSignal): AsyncIterable<MaintenanceEvent>
  /** @throws SNAPSHOT_UNKNOWN */
  protectSnapshot(snapshotId: SnapshotId, isProtected: boolean): Promise<void>
  /** @throws SNAPSHOT_UNKNOWN; RETENTION_LOCKED when it would end a lock sooner */
  lockSnapshot(snapshotId: SnapshotId, request: LockSnapshotRequest): Promise<void>
  stats(): Promise<RepositoryStats>
  check(options: CheckOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent>
  rebuild(signal: AbortSignal): AsyncIterable<MaintenanceEvent>
  /** Removes what nothing needs, while clients push and restore. @throws REPOSITORY_BUSY beside another collection or a rebuild */
  collect(options: CollectOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent>

  listTargets(): Promise<TargetsReply>
  /** Resolves when the target is prepared and written down; its packs come by backfill, which starts by itself.
   *  @throws TARGET_EXISTS; what the target throws */
  addTarget(request: AddTargetRequest): Promise<TargetInfo>
  /** @throws TARGET_UNKNOWN; TARGET_NEEDED when it would leave no active target */
  changeTarget(name: string, request: ChangeTargetRequest): Promise<TargetInfo>
  /** Forgets the target; its objects stay where they are. @throws TARGET_UNKNOWN; TARGET_NEEDED while it holds what too few others hold */
  removeTarget(name: string): Promise<void>
  /** Copies to the target what it lacks; going away does not stop it (it goes on in the background). @throws TARGET_UNKNOWN */
  backfillTarget(name: string, signal: AbortSignal): AsyncIterable<MaintenanceEvent>
  /** Makes the target `draining` and copies what too few others hold. @throws TARGET_UNKNOWN; TARGET_NEEDED */
  drainTarget(name: string, signal: AbortSignal): AsyncIterable<MaintenanceEvent>
  change(request: ChangeRepositoryRequest): Promise<RepositoryInfo>

  listKeySlots(): Promise<KeySlotInfo[]>
  addKeySlot(request: AddKeySlotRequest): Promise<KeySlotInfo>
  /** @throws KEY_SLOT_UNKNOWN; KEY_SLOT_LAST */
  removeKeySlot(slotId: string): Promise<void>
  /** Replaces the server's keyfile and its slot. */
  rotateKeyfile(): Promise<KeySlotInfo>

  /** Seals and uploads what is open, then closes the index. Idempotent. */
  close(): Promise<void>
}
