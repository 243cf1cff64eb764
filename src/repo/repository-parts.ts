/** The open parts of one repository that its use cases share. Holds them; knows no algorithm. */
import type { Clock } from '../core/clock.js'
import type { RoostError } from '../core/errors.js'
import type { KeyedMutex } from '../core/concurrency.js'
import type { RepositoryId, SnapshotId } from '../core/ids.js'
import type { ChunkerParameters, RepositoryInfo } from '../core/messages.js'
import type { Random } from '../core/random.js'
import type { ChunkIndex } from '../index/chunk-index.js'
import type { FileEffects } from '../store/file-effects.js'
import type { ObjectStore } from '../store/object-store.js'
import type { PackMender } from './care/pack-mender.js'
import type { SnapshotJudge } from './care/snapshot-judge.js'
import type { DoomedPacks } from './doomed-packs.js'
import type { Checkpoints } from './checkpoints/checkpoints.js'
import type { Lineage } from './lineage.js'
import type { PackClaims } from './pack-claims.js'
import type { Origins } from './replica/origins.js'
import type { Retention } from './retention/retention.js'
import type { PackIntake } from './pack-intake.js'
import type { PackReader } from './pack-reader.js'
import type { PackUploads } from './pack-uploads.js'
import type { RepositoryKeys } from './repository-keys.js'
import type { SealPool } from './seal-pool.js'
import type { SpooledSnapshots } from './spooled-snapshots.js'
import type { CatchUp } from './targets/catch-up.js'
import type { TargetList } from './targets/target-list.js'
import type { TargetSet } from './targets/target-set.js'

export interface RepositoryParts {
  readonly name: string
  readonly repositoryId: RepositoryId
  readonly createdAtMs: number
  readonly chunker: ChunkerParameters
  readonly keys: RepositoryKeys
  readonly origins: Origins
  /** This repository's local folder: keyfile, index, spool. */
  readonly directory: string
  readonly spoolDirectory: string
  readonly index: ChunkIndex
  readonly targets: TargetSet
  /** The small objects of all targets as one. */
  readonly store: ObjectStore
  /** The exact bytes of the repository's header. */
  readonly headerBytes: Buffer
  readonly catchUp: CatchUp
  readonly claims: PackClaims
  readonly mender: PackMender
  readonly judge: SnapshotJudge
  readonly lineage: Lineage
  readonly checkpoints: Checkpoints
  readonly doomed: DoomedPacks
  readonly spooledSnapshots: SpooledSnapshots
  readonly retention: Retention
  /** Who writes or deletes the objects of a snapshot, or its row for the sake of its objects: one at a time for each, and what it was decided by
   *  is looked at again inside. Else a copy on its way lands after the deletion. */
  readonly snapshotLocks: KeyedMutex<SnapshotId>
  /** Part of the start-up's recovery that no target could be asked for yet: while it is there, the index is not closed as clean. */
  readonly pending: { recovery: (() => Promise<void>) | undefined }
  readonly pool: SealPool
  readonly uploads: PackUploads
  readonly intake: PackIntake
  readonly reader: PackReader
  readonly clock: Clock
  readonly random: Random
  readonly effects: FileEffects
  /** How long a commit waits for the target before it answers "not yet". */
  readonly commitWaitMs: number
  report(event: RepositoryEvent): void
  /** Writes a changed list of targets down, durably. */
  saveTargets(list: TargetList): Promise<void>
}
/** What operators should hear; the server logs it. */
export type RepositoryEvent =
  | { readonly type: 'damage'; readonly error: RoostError; readonly pack: string }
  | { readonly type: 'deletion-refused'; readonly error: RoostError; readonly pack: string }
  | { readonly type: 'recovered'; readonly counts: Readonly<Record<string, number>> }
  | { readonly type: 'pack-lost'; readonly error: Error }
  /** A snapshot that arrives is not the one that is here (docs/replication.md). */
  | { readonly type: 'conflict'; readonly error: RoostError }
  | { readonly type: 'target'; readonly target: string; readonly health: string; readonly error?: Error }

export function infoOf(parts: RepositoryParts, complete: boolean): RepositoryInfo {
  const { targets, writePolicy, durability } = parts.targets.list
  return { name: parts.name, repositoryId: parts.repositoryId, mode: 'server', createdAtMs: parts.createdAtMs,
    targets: targets.map(({ url }) => url), writePolicy, durability, verifyKey: parts.keys.signing.publicKey.toString('hex'), chunker: parts.chunker,
    retentionLockMs: parts.retention.lockMs, state: complete ? 'ready' : 'rebuild-needed' }
}
