/** The vocabulary of the API as types: JSON messages that the repository answers, the server carries and clients read. */
import type { ErrorCode, ErrorDetails, RetryAdvice } from './errors.js'
import type { ReplicaRequest } from './peer-messages.js'

export interface WireError {
  readonly code: ErrorCode; readonly message: string; readonly retry: RetryAdvice
  readonly requestId: string; readonly details: ErrorDetails
}

export type SourceMode = 'files' | 'image' | 'stdin'

/** How clients of one repository cut, so that equal data gives equal chunks. Part of the repository, never changed. */
export interface ChunkerParameters {
  /** 64 hex digits; seeds the gear table. */
  readonly gearSeed: string
  readonly minBytes: number
  readonly averageBytes: number
  readonly maxBytes: number
  /** Default for new image sources; an image keeps the size that its parent snapshot used. */
  readonly imageChunkBytes: number
}

export interface WireLimits {
  readonly chunkBytesMax: number; readonly nodeBytesMax: number; readonly bodyBytesMax: number; readonly bodyFramesMax: number
  readonly missingIdsMax: number; readonly readIdsMax: number; readonly sessionBodiesInFlightMax: number
}

export type OpenSessionRequest =
  | { readonly kind: 'push'; readonly source: string; readonly mode: SourceMode
      /** `latest`: the newest snapshot of the same source; null: none; else a snapshot id. */
      readonly parent: string | 'latest' | null }
  | { readonly kind: 'read'; readonly snapshot: string }

export interface OpenSessionReply {
  readonly sessionId: string
  readonly repositoryId: string
  /** 64 hex digits: keys chunk ids and proofs. */
  readonly dedupKey: string
  /** 64 hex digits: Ed25519 public key that verifies snapshots. */
  readonly verifyKey: string
  readonly chunker: ChunkerParameters
  readonly limits: WireLimits
  readonly wireCodecs: readonly ('raw' | 'zstd')[]
  readonly idleMs: number
  /** The parent (push) or the snapshot itself (read); absent when there is none. */
  readonly snapshot?: SignedSnapshot
  /** A parent that is there but not known to be whole: nothing of it may be relied on, so that what it lacks is sent again. */
  readonly withheldParent?: SignedSnapshot
}

/** `record` is the base64 of the exact signed bytes: the JSON of a SnapshotRecord. */
export interface SignedSnapshot {
  readonly id: string; readonly record: string; readonly signature: string
  /** Only in the server's spool so far: losing the server's disk loses it. Absent once it is durable on its targets. */
  readonly inSpool?: true
  /** Never deleted until somebody takes that back. */
  readonly protected?: true
  /** Not deleted before: when the lock ends if the server runs until then. Absent when nothing locks it. */
  readonly lockedUntilMs?: number
  /** 64 hex digits: the key of the repository that signed it, where that is not this one (docs/replication.md). */
  readonly signer?: string
}

export interface SnapshotStatistics {
  readonly files: number; readonly directories: number; readonly others: number
  /** Logical bytes of the source (files' sizes; the image's virtual size). */
  readonly sourceBytes: number
  readonly bytesRead: number
  readonly chunksTotal: number; readonly chunksSent: number
  /** Plaintext bytes of the chunks sent, and bytes on the wire. */
  readonly bytesSent: number; readonly bytesOnWire: number
  readonly errors: number; readonly durationMs: number; readonly cpuMs: number
  /** How long a live machine's file systems or processors stood still for it; absent for everything else. */
  readonly frozenMs?: number
}

/** What the client says of its snapshot at commit. */
export interface CommitRequest {
  /** Chunk id (hex) of the root node. */
  readonly root: string
  readonly host: string
  readonly user: string
  /** For people only, lossy UTF-8; exact names are in the tree. */
  readonly paths: readonly string[]
  readonly tags: readonly string[]
  /** The client's clock, ms; retention uses the server's receivedAtMs. */
  readonly startedAtMs: number
  readonly statistics: SnapshotStatistics
  /** Free-form JSON of the source (chunk size of an image, a machine's description). */
  readonly description?: Readonly<Record<string, unknown>>
}
export interface CommitReply { readonly snapshot: SignedSnapshot; readonly alreadyCommitted: boolean }

/** The signed content of a snapshot. */
export interface SnapshotRecord extends CommitRequest {
  readonly format: 1
  readonly repositoryId: string
  readonly source: string
  readonly mode: SourceMode
  readonly parent: string | null
  /** The server's clock at commit, ms. */
  readonly receivedAtMs: number
  /** The push session that made it: makes a repeated commit answer the same. */
  readonly sessionId: string
}

export interface SnapshotPage { readonly snapshots: readonly SignedSnapshot[]; readonly next: string | null }

export interface RepositoryInfo {
  readonly name: string; readonly repositoryId: string; readonly mode: 'server'; readonly createdAtMs: number
  readonly targets: readonly string[]; readonly writePolicy: WritePolicy; readonly durability: Durability; readonly verifyKey: string; readonly chunker: ChunkerParameters
  /** Every snapshot is kept at least so long; 0 = no lock. */
  readonly retentionLockMs: number
  readonly state: 'ready' | 'rebuild-needed'
}
export interface CreateRepositoryRequest {
  readonly name: string
  readonly target?: string
  readonly durability?: Durability
  readonly chunker?: Partial<Omit<ChunkerParameters, 'gearSeed'>>
  /** Makes it of another repository's family: a replica (docs/replication.md). */
  readonly replica?: ReplicaRequest
}
/** Opens a repository that exists on its target but not on this server. */
export interface AttachRepositoryRequest { readonly name: string; readonly target: string; readonly passphrase?: string; readonly recoverySecretKey?: string }

/** How many targets must hold a pack before it counts as durable: every active one, or a number of them (at least 1). */
export type WritePolicy = 'all' | number
/** When a commit is acknowledged: when its targets hold everything, or when everything is fsynced in the server's spool. */
export type Durability = 'remote' | 'spool'
/** `draining`: still read, no longer written, so that it can be removed. `disabled`: not used at all. */
export const TARGET_MODES = ['active', 'draining', 'disabled'] as const
export type TargetMode = (typeof TARGET_MODES)[number]
export interface TargetInfo {
  readonly name: string
  /** Without credentials, which live outside the repository. */
  readonly url: string
  readonly mode: TargetMode
  /** 0 = no limit. */
  readonly uploadBytesPerSecondMax: number
  /** `unknown` until the first request. `refused` needs a person: credentials, permissions, space. */
  readonly health: 'unknown' | 'healthy' | 'unreachable' | 'refused'
  /** Since when it is unreachable or refused, and why. */
  readonly failingSinceMs?: number
  readonly failure?: string
  /** Something about the place that its administrator should know. */
  readonly remark?: string
  /** Packs and bytes that it holds, and that it lacks of what the repository has. */
  readonly packs: number; readonly storedBytes: number
  readonly lagPacks: number; readonly lagBytes: number
  /** Packs whose copy here was found missing or damaged and is not mended yet. */
  readonly damagedPacks: number
}
export interface TargetsReply { readonly targets: readonly TargetInfo[]; readonly writePolicy: WritePolicy; readonly durability: Durability }
/** Appended to the list: it is read from after those before it. An empty place is prepared; one with another repository is refused. */
export interface AddTargetRequest { readonly name: string; readonly url: string; readonly uploadBytesPerSecondMax?: number }
/** Absent fields stay as they are. `position` 0 is read from first. */
export interface ChangeTargetRequest { readonly mode?: 'active' | 'disabled'; readonly uploadBytesPerSecondMax?: number; readonly position?: number }
/** `retentionLockMs` can only grow. */
export interface ChangeRepositoryRequest { readonly writePolicy?: WritePolicy; readonly durability?: Durability; readonly retentionLockMs?: number }

export const TOKEN_SCOPES = ['push', 'read', 'delete', 'admin', 'replicate'] as const
export type TokenScope = (typeof TOKEN_SCOPES)[number]
export interface TokenGrant {
  /** A repository's name, or `*`. */
  readonly repository: string
  readonly scopes: readonly TokenScope[]
  /** Limits push and read to this source name. */
  readonly source?: string
}
export interface CreateTokenRequest { readonly label: string; readonly grants: readonly TokenGrant[]; readonly expiresAtMs?: number }
export interface TokenInfo { readonly tokenId: string; readonly label: string; readonly grants: readonly TokenGrant[]; readonly createdAtMs: number; readonly expiresAtMs?: number }
/** The only time the secret is shown. */
export interface CreateTokenReply extends TokenInfo { readonly token: string }

export interface CheckOptions {
  /** Share of packs whose every byte is read, 0–100. */
  readonly readDataPercent: number
  /** Writes missing and damaged copies anew from targets that hold them whole. */
  readonly heal?: boolean
  /** False: only looks. Else chunks that are whole nowhere are marked as damaged, and what is readable of their packs moves. */
  readonly mark?: boolean
  /** Of reading packs; absent = no limit. */
  readonly bytesPerSecondMax?: number
  /** No pack is begun after this long. */
  readonly maxDurationMs?: number
}

export interface RepositoryStats {
  readonly snapshots: number; readonly packs: number; readonly chunks: number; readonly dataChunks: number; readonly nodeChunks: number
  /** Chunks that are whole nowhere: the next client that has them brings them again. */
  readonly damagedChunks: number
  /** Plaintext bytes of all chunks, and bytes of packs as stored. */
  readonly rawBytes: number; readonly storedBytes: number
  readonly spoolPacks: number; readonly spoolBytes: number
  readonly sessionsOpen: number
}

export type KeySlotKind = 'keyfile' | 'passphrase' | 'recovery'
export interface KeySlotInfo { readonly slotId: string; readonly kind: KeySlotKind; readonly label: string; readonly createdAtMs: number }
export type AddKeySlotRequest =
  | { readonly kind: 'passphrase'; readonly label: string; readonly passphrase: string }
  | { readonly kind: 'recovery'; readonly label: string; readonly publicKey: string }

export interface CollectOptions {
  /** Marks and plans, and changes nothing. */
  readonly dryRun?: boolean
  /** Packs of which less than this share is needed are written anew, 0–1. Default 0.75. */
  readonly repackBelow?: number
  /** Bytes of packs read for repacking, a second. */
  readonly bytesPerSecondMax?: number
  /** Collects although nodes are damaged everywhere: what only they refer to may go. */
  readonly acceptDamage?: boolean
}

/** Rules of a policy that count snapshots, and those that reach back from the newest one. */
export const RETENTION_COUNTS = ['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const
export const RETENTION_WITHIN = ['within', 'withinHourly', 'withinDaily', 'withinWeekly', 'withinMonthly', 'withinYearly'] as const
/** Which snapshots of a source are kept (docs/retention.md). A count of -1 is all; durations are written `1y6m7d12h`. A snapshot that no rule keeps goes. */
export type RetentionPolicy = { readonly [K in typeof RETENTION_COUNTS[number]]?: number } & { readonly [K in typeof RETENTION_WITHIN[number]]?: string } & {
  /** Keeps snapshots that have all tags of one of the lists. */
  readonly tags?: readonly (readonly string[])[]
  /** False: a rule whose count is not used up does not keep the oldest snapshot besides. Default true. */
  readonly keepOldest?: boolean
  /** IANA name; what an hour, day, week, month and year is. Default UTC. */
  readonly timeZone?: string
}

export interface SourcePolicy { readonly source: string; readonly policy: RetentionPolicy }
export interface RetentionInfo {
  readonly lockMs: number
  /** For sources without one of their own; null = they keep everything. */
  readonly policy: RetentionPolicy | null
  readonly sources: readonly SourcePolicy[]
  readonly protected: readonly string[]
  readonly locks: readonly { readonly snapshot: string; readonly untilMs: number }[]
}
/** Without `source`: the repository's. `null` removes it. */
export interface SetPolicyRequest { readonly source?: string; readonly policy: RetentionPolicy | null }
/** Exactly one of the two. */
export interface LockSnapshotRequest { readonly forMs?: number; readonly untilMs?: number }
export interface ForgetRequest {
  /** Instead of the stored policies. */
  readonly policy?: RetentionPolicy
  /** Only snapshots of this source, or with this tag, are looked at. */
  readonly source?: string; readonly tag?: string
  readonly dryRun?: boolean
  /** Consent to a policy that keeps nothing of a source (its newest snapshot stays all the same). */
  readonly keepNone?: boolean
}

/** Lines of the NDJSON reply of a collection, check, forget, rebuild, backfill or drain; the last is `done` or `failed`. */
export type MaintenanceEvent =
  | { readonly type: 'progress'; readonly phase: string; readonly done: number; readonly total: number }
  | { readonly type: 'problem'; readonly code: ErrorCode; readonly message: string; readonly pack?: string; readonly chunk?: string; readonly snapshot?: string; readonly target?: string;
      /** Of `snapshot`. */
      readonly source?: string; readonly receivedAtMs?: number }
  /** A copy that was missing or damaged was written anew from another target. `object`: a pack, snapshot, key slot or the header. */
  | { readonly type: 'healed'; readonly object: string; readonly target: string; readonly from: string }
  /** What a collection does with a pack, and why. In a dry run: what it would do, for every pack. */
  | { readonly type: 'fate'; readonly pack: string; readonly kind: 'data' | 'node'; readonly fate: 'keep' | 'drop' | 'repack'; readonly reason: string;
      readonly storedBytes: number; readonly liveShare: number }
  /** What retention says of one snapshot, and why. With `keep` false it goes, unless the run is dry. */
  | { readonly type: 'verdict'; readonly snapshot: string; readonly source: string; readonly receivedAtMs: number; readonly tags: readonly string[]
      readonly keep: boolean; readonly reasons: readonly string[] }
  | { readonly type: 'deleted'; readonly snapshot: string }
  /** A pack that was whole nowhere: `lost` chunks of it are marked as damaged and missing from now on, `moved` ones are in new packs. */
  | { readonly type: 'mended'; readonly pack: string; readonly lost: number; readonly moved: number }
  /** A snapshot is whole on the other side now, and listed. */
  | { readonly type: 'replicated'; readonly snapshot: string; readonly source: string; readonly receivedAtMs: number }
  /** What a snapshot lacks, in as many lines as it takes; follows its problem. */
  | { readonly type: 'lacking'; readonly snapshot: string; readonly chunks: readonly string[] }
  | { readonly type: 'done'; readonly problems: number; readonly counts: Readonly<Record<string, number>> }
  | { readonly type: 'failed'; readonly error: WireError }

/** Kinds of maintenance. Each run of one is a job with an id, whether a person asked for it or the schedule. */
export const JOB_KINDS = ['gc', 'forget', 'check', 'rebuild', 'backfill', 'drain', 'replicate', 'boot-test'] as const
export type JobKind = (typeof JOB_KINDS)[number]
/** `interrupted`: the server ended before the run did; the next run does what is left. */
export const JOB_STATES = ['running', 'done', 'failed', 'cancelled', 'interrupted'] as const
export type JobState = (typeof JOB_STATES)[number]
export type JobOptions = Readonly<Record<string, unknown>>
export interface JobRunInfo {
  readonly id: string
  readonly kind: JobKind
  /** The configured job that this is a run of. */
  readonly job?: string
  readonly trigger: 'schedule' | 'hand'
  readonly options: JobOptions
  readonly state: JobState
  readonly startedAtMs: number
  /** Unknown for runs that the server's end interrupted. */
  readonly endedAtMs?: number
  readonly progress?: { readonly phase: string; readonly done: number; readonly total: number }
  /** So far, while it runs. */
  readonly problems: number; readonly healed: number
  /** What the run came to; empty while it runs. */
  readonly counts: Readonly<Record<string, number>>
  /** Why it failed. */
  readonly error?: { readonly code: ErrorCode; readonly message: string }
}
/** A job of the server's configuration, on one repository. */
export interface JobInfo {
  readonly name: string
  readonly kind: JobKind
  readonly cron: string
  readonly timeZone: string
  readonly jitterSeconds: number
  readonly options: JobOptions
  /** Jitter included; in the past while it waits for its turn. Null: not known yet. */
  readonly nextRunAtMs: number | null
  /** The run that it has to wait for, when its time came while the repository was busy. */
  readonly waitingFor?: string
  readonly lastRun?: JobRunInfo
}
/** `runs`: those under way, then those that ended, newest first. */
export interface JobsReply { readonly jobs: readonly JobInfo[]; readonly runs: readonly JobRunInfo[] }
