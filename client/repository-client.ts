/** The client's view of one repository on one server: typed calls over HTTP, nothing of sources or files. */
import type { FrameVerdict } from '../src/core/frames.js'
import type { SessionId, SnapshotId } from '../src/core/ids.js'
import type {
  AddKeySlotRequest, AddTargetRequest, AttachRepositoryRequest, ChangeRepositoryRequest, ChangeTargetRequest, CheckOptions, CollectOptions, CommitReply,
  CommitRequest, CreateRepositoryRequest, CreateTokenReply, CreateTokenRequest, ForgetRequest, JobRunInfo, JobsReply, KeySlotInfo,
  LockSnapshotRequest, MaintenanceEvent, OpenSessionReply, OpenSessionRequest, RepositoryInfo, RepositoryStats, RetentionInfo, SetPolicyRequest,
  SignedSnapshot, SnapshotPage, TargetInfo, TargetsReply, TokenInfo,
} from '../src/core/messages.js'

import type { FamilyReply, KnownOrigin, Origin, ReplicaOffer, ReplicationInfo, SetReplicationRequest } from '../src/core/peer-messages.js'

export interface Call { readonly signal?: AbortSignal }
/** `sharesRoom`: each chunk's bytes are valid until the next one is asked for; no memory is taken for each. */
export interface ReadCall extends Call { readonly sharesRoom?: boolean }
/** `onSent`: the body is on its way whole, the server works on it; once for each attempt. */
export interface PutCall extends Call { readonly onSent?: () => void }

/** A chunk as it arrived; the caller verifies its id (verifiedChunks in client/read-chunks.ts does). `bytes` undefined = the server has it
 *  not, or only damaged. `index` is the place in the request. */
export interface ReadChunk { readonly index: number; readonly status: 'ok' | 'missing' | 'not-readable'; readonly bytes: Buffer | undefined }

export interface RepositoryClient {
  openSession(request: OpenSessionRequest, call?: Call): Promise<OpenSessionReply>
  /** Bitmap, bit set = missing. */
  findMissing(session: SessionId, idProofs: Buffer, call?: Call): Promise<Buffer>
  /** `parts`: frame headers and payloads in order; total bytes known. */
  putChunks(session: SessionId, parts: readonly Uint8Array[], frames: number, call?: PutCall): Promise<FrameVerdict[]>
  /** Chunks in the server's order, each requested index exactly once. @throws BODY_TRUNCATED when the stream was cut. */
  readChunks(session: SessionId, ids: Buffer, call?: ReadCall): AsyncIterable<ReadChunk>
  commit(session: SessionId, request: CommitRequest, call?: Call): Promise<CommitReply>
  closeSession(session: SessionId, call?: Call): Promise<void>
  listSnapshots(query: { after?: string; limit?: number; source?: string; tag?: string }, call?: Call): Promise<SnapshotPage>
  getSnapshot(id: SnapshotId, call?: Call): Promise<SignedSnapshot>
  deleteSnapshot(id: SnapshotId, call?: Call): Promise<void>
  info(call?: Call): Promise<RepositoryInfo>
  stats(call?: Call): Promise<RepositoryStats>
  check(options: CheckOptions, call?: Call): AsyncIterable<MaintenanceEvent>
  rebuild(call?: Call): AsyncIterable<MaintenanceEvent>
  listKeySlots(call?: Call): Promise<KeySlotInfo[]>
  addKeySlot(request: AddKeySlotRequest, call?: Call): Promise<KeySlotInfo>
  removeKeySlot(slotId: string, call?: Call): Promise<void>
  rotateKeyfile(call?: Call): Promise<KeySlotInfo>
  close(): Promise<void>
}
/** What it takes to look into snapshots. */
export type ReadingClient = Pick<RepositoryClient, 'openSession' | 'readChunks' | 'closeSession' | 'listSnapshots'>

/** What an administrator also asks of one repository. */
export interface AdministeredRepository extends RepositoryClient {
  retention(call?: Call): Promise<RetentionInfo>
  setPolicy(request: SetPolicyRequest, call?: Call): Promise<RetentionInfo>
  forget(request: ForgetRequest, call?: Call): AsyncIterable<MaintenanceEvent>
  protectSnapshot(id: SnapshotId, isProtected: boolean, call?: Call): Promise<void>
  lockSnapshot(id: SnapshotId, request: LockSnapshotRequest, call?: Call): Promise<void>
  listTargets(call?: Call): Promise<TargetsReply>
  addTarget(request: AddTargetRequest, call?: Call): Promise<TargetInfo>
  changeTarget(target: string, request: ChangeTargetRequest, call?: Call): Promise<TargetInfo>
  removeTarget(target: string, call?: Call): Promise<void>
  backfillTarget(target: string, call?: Call): AsyncIterable<MaintenanceEvent>
  drainTarget(target: string, call?: Call): AsyncIterable<MaintenanceEvent>
  change(request: ChangeRepositoryRequest, call?: Call): Promise<RepositoryInfo>
  /** Going away ends a dry run, no other. */
  collect(options: CollectOptions, call?: Call): AsyncIterable<MaintenanceEvent>
  listJobs(call?: Call): Promise<JobsReply>
  /** `job`: a run's id, or the name of a configured job for its latest run. */
  getJob(job: string, call?: Call): Promise<JobRunInfo>
  runJob(name: string, call?: Call): Promise<JobRunInfo>
  cancelJob(job: string, call?: Call): Promise<JobRunInfo>
  watchJob(job: string, call?: Call): AsyncIterable<MaintenanceEvent>
  /** For a replica that is to be: needs the scope `replicate`. */
  stateFamily(publicKey: string, call?: Call): Promise<FamilyReply>
  listOrigins(call?: Call): Promise<KnownOrigin[]>
  trustOrigin(origin: Origin, call?: Call): Promise<void>
  /** `refresh`: asks the peers how far they are. */
  listReplications(refresh: boolean, call?: Call): Promise<ReplicationInfo[]>
  setReplication(replication: string, request: SetReplicationRequest, call?: Call): Promise<void>
  removeReplication(replication: string, call?: Call): Promise<void>
  runReplication(replication: string, call?: Call): AsyncIterable<MaintenanceEvent>
}
/** Administration of a server: repositories and tokens. */
export interface ServerClient {
  listRepositories(call?: Call): Promise<RepositoryInfo[]>
  createRepository(request: CreateRepositoryRequest, call?: Call): Promise<RepositoryInfo>
  attachRepository(request: AttachRepositoryRequest, call?: Call): Promise<RepositoryInfo>
  offerReplica(call?: Call): Promise<ReplicaOffer>
  listTokens(call?: Call): Promise<TokenInfo[]>
  createToken(request: CreateTokenRequest, call?: Call): Promise<CreateTokenReply>
  revokeToken(tokenId: string, call?: Call): Promise<void>
  close(): Promise<void>
}
