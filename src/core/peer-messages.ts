/** What two servers say to each other when one replicates from or to the other (docs/protocol.md §13). */
import type { ChunkerParameters, SignedSnapshot, WireLimits } from './messages.js'

/** A repository whose snapshots are taken in: who it is, and the key (64 hex digits) that verifies what it signs. */
export interface Origin { readonly repositoryId: string; readonly verifyKey: string }
export interface KnownOrigin extends Origin { readonly addedAtMs: number }

/** Made by the server on which a replica is to be; what is sealed for `publicKey` only it can open, and only for a while. */
export interface ReplicaOffer { readonly offer: string; readonly publicKey: string; readonly expiresInMs: number }

export interface FamilyRequest { readonly publicKey: string }
/** `statement`: base64 of the JSON of a FamilyStatement; `signature`: by its `verifyKey`, base64. */
export interface FamilyReply { readonly statement: string; readonly signature: string }
export interface FamilyStatement extends Origin {
  readonly format: 1
  /** For whom it is: an answer to somebody else is of no use. */
  readonly publicKey: string
  readonly familyId: string
  readonly chunker: Omit<ChunkerParameters, 'gearSeed'>
  /** What the origin itself takes in: a replica of a replica has their snapshots, too. */
  readonly origins: readonly Origin[]
  /** The dedup key and the gear seed, sealed to `publicKey`; base64. */
  readonly sealed: string
}
export interface ReplicaRequest extends FamilyReply {
  readonly offer: string
  /** The origin's key as the operator knows it, 64 hex digits: another one is refused. */
  readonly verifyKey: string
}

/** `challenge`: 32 random bytes, hex, which the peer signs to show who it is. */
export type PeerSessionRequest =
  | { readonly kind: 'send'; readonly snapshot: string; readonly challenge: string }
  /** `bases`: snapshots that may be there already; the first that is, and is whole, is the one to build on. `signer`: of the snapshot to come, so that
   *  one that would be refused is refused before anything moves. */
  | { readonly kind: 'receive'; readonly source: string; readonly bases: readonly string[]; readonly signer?: Origin; readonly challenge: string }
export interface PeerSessionReply extends Origin {
  readonly sessionId: string
  readonly familyId: string
  /** Base64: Ed25519 by the repository's signing key (peerProofMessage). */
  readonly proof: string
  readonly limits: WireLimits
  /** Of a session that receives: the base that was taken. */
  readonly base?: SignedSnapshot
  /** Of one that sends: the snapshot, with its signer if that is another repository. */
  readonly snapshot?: SignedSnapshot
}
/** What it takes to choose snapshots. Unproven: the chosen one comes signed. */
export interface SnapshotOutline {
  readonly id: string; readonly source: string; readonly receivedAtMs: number; readonly tags: readonly string[]; readonly parent: string | null
  /** What its client sent for it. */
  readonly bytes: number
  readonly signer?: string
}
/** Newest first. */
export interface OutlinePage { readonly snapshots: readonly SnapshotOutline[]; readonly next: string | null }
export interface ReceiveReply { readonly snapshot: SignedSnapshot; readonly alreadyThere: boolean }

export const REPLICATION_DIRECTIONS = ['pull', 'push'] as const
export type ReplicationDirection = (typeof REPLICATION_DIRECTIONS)[number]
/** Which snapshots are replicated; absent fields choose all. */
export interface ReplicationSelection {
  /** Names of sources, `*` and `?` allowed; one of them must fit. */
  readonly sources?: readonly string[]
  /** Tags of which a snapshot must have one. */
  readonly tags?: readonly string[]
  /** Not those that are older. */
  readonly maxAgeMs?: number
  /** Of each source only so many of the newest. */
  readonly newest?: number
}
export interface ReplicationSettings {
  readonly direction: ReplicationDirection
  /** `http(s)://host:port/NAME` */
  readonly peer: string
  /** The peer's, 64 hex digits: a peer that cannot sign with it is refused. */
  readonly verifyKey: string
  readonly selection: ReplicationSelection
  /** Snapshots that it brought are deleted when they are gone on the other side. */
  readonly mirror: boolean
  /** 0 = no limit. */
  readonly bytesPerSecondMax: number
  readonly allowPlainHttp: boolean
}
/** The token stays on the server; it is never answered. */
export interface SetReplicationRequest extends ReplicationSettings {
  readonly token?: string
  /** PEM. */
  readonly ca?: string
}
/** What was not replicated at `measuredAtMs`. Bytes: what clients sent for these snapshots. */
export interface ReplicationLag {
  readonly measuredAtMs: number
  readonly snapshots: number; readonly bytes: number
  /** When the oldest of them was received. */
  readonly oldestAtMs?: number
}
/** Of the run under way, or the last one. Bytes on the wire are those of chunks; raw ones are of their contents. */
export interface ReplicationProgress {
  readonly snapshotsDone: number; readonly snapshotsTotal: number
  readonly chunks: number; readonly wireBytes: number; readonly rawBytes: number
  readonly snapshot?: string
}
export interface ReplicationInfo extends ReplicationSettings {
  readonly name: string
  /** A run that is under way. */
  readonly job?: string
  readonly progress?: ReplicationProgress
  readonly lag?: ReplicationLag
  readonly lastSuccessAtMs?: number
  readonly lastFailure?: { readonly atMs: number; readonly code: string; readonly message: string }
  /** Snapshots that it brought and that are not gone from where they came. */
  readonly brought: number
}
