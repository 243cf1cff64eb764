/** The index port: where is chunk X, what is in pack P, and the small durable state of sessions and snapshots.
 *
 *  A cache plus a journal, rebuildable from packs and snapshots on the targets. Each method is ONE transaction that states
 *  its intent, takes and returns packed batches, and holds nothing open across awaits, so that LMDB (embedded) and an SQL
 *  engine shared by several servers both fit. Contract, proved by test/conformance/chunk-index.ts:
 *   1. A method resolves when its effect is visible to every later call; those marked *durable* also survive a power cut.
 *   2. addPack never replaces an id's existing live location (first writer wins); the loser's entries are simply dead.
 *   3. pinPresent looks and pins in one transaction: no collector can condemn between the two.
 *   4. All writes of a session check, in the same transaction, that the session is open, else SESSION_LOST. (A pack is not
 *     a session's: addPack passes over the pins of sessions that have closed.)
 *   5. Pins are bits: (session, pack number, entry number). `pinned` = proven or pushed in this session;
 *      `inherited` = listed by a node that the session read from its snapshot (implies pinned).
 *   6. A pin on a dead entry (its id is live elsewhere) covers the live entry too, whichever of pin and pack came first.
 */
import type { ChunkKind, PackId, PackNumber, SessionId, SnapshotId } from '../core/ids.js'

/** Struct of arrays; row i answers query i. packNumber 0 = not present. */
export interface Locations {
  readonly count: number
  readonly packNumbers: Uint32Array
  readonly entryNumbers: Uint32Array
  readonly kinds: Uint8Array
  readonly blockOffsets: Uint32Array
  readonly blockStoredBytes: Uint32Array
  readonly offsetsInBlock: Uint32Array
  readonly rawBytes: Uint32Array
}

/** Entries of one pack in entry order. `idProofs` is 48 bytes an entry. Block fields are per entry. */
export interface PackEntries {
  readonly count: number
  readonly idProofs: Buffer
  readonly rawBytes: Uint32Array
  readonly blockOffsets: Uint32Array
  readonly blockStoredBytes: Uint32Array
  readonly offsetsInBlock: Uint32Array
}

/** `spooled`: sealed and fsynced locally, not yet on its targets. `stored`: durable under the repository's write policy. */
export type PackState = 'spooled' | 'stored'
export interface PackRow {
  readonly packNumber: PackNumber; readonly packId: PackId; readonly kind: ChunkKind; readonly state: PackState
  readonly storedBytes: number; readonly rawBytes: number; readonly entryCount: number
  /** Bit s: the target of slot s is known to hold it whole. */
  readonly heldBy: number
}
/** Slots of targets are bits of `heldBy`. */
export const TARGET_SLOTS_MAX = 30

/** What became known about the places of a pack. `stored`: enough targets hold it now, the spool file may go. */
export interface PackPlaces { readonly add?: number; readonly remove?: number; readonly stored?: true }

export interface SessionRow {
  readonly sessionId: SessionId
  readonly kind: 'push' | 'read'
  readonly source: string
  readonly mode: string
  /** The parent (push) or the snapshot being read. */
  readonly snapshot: SnapshotId | null
  readonly tokenId: string
  readonly openedAtMs: number
  readonly lastUsedAtMs: number
}
export interface SnapshotRow {
  /** Order of commit in this index, from 1. */
  readonly sequence: number
  readonly snapshotId: SnapshotId
  readonly source: string
  readonly receivedAtMs: number
  readonly tags: readonly string[]
  /** The exact signed bytes and their signature, so that listings never touch a target. */
  readonly record: Buffer
  readonly signature: Buffer
  /** Of a replicated snapshot: whose key (64 hex digits) signed it, and when it came here. Absent: this repository did. */
  readonly signer?: string
  readonly arrivedAtMs?: number
  /** Of one that came from elsewhere: the push that made it there, found by findSnapshotOfSession like those of here. */
  readonly originSession?: SessionId
}

/** Every pin of one session, or of HELD, on one pack: bit = entry number. */
export interface PackPinned { readonly packNumber: PackNumber; readonly pinned: Uint8Array; readonly inherited: Uint8Array }
/** Where a listing of pins goes on; opaque. */
export type PinCursor = Buffer & { readonly __pinCursor?: never }

/** A pack that left the index and whose objects may still be on targets. */
export interface DoomedPack {
  readonly packId: PackId
  readonly storedBytes: number
  /** Bit s: the target of slot s was not seen without it yet. */
  readonly pending: number
}
/** `needed`: a session or a mark needs an entry; nothing was changed. `gone`: it is not in the index. */
export type CondemnResult = 'condemned' | 'needed' | 'gone'
/** What a collection found reachable in one pack: bit = entry number. */
export interface CondemnRequest {
  readonly epoch: number
  readonly packNumber: PackNumber
  /** All entries of the pack, as its trailer lists them. */
  readonly entries: PackEntries
  readonly marked: Uint8Array
  /** Slots of the targets that may hold the pack. */
  readonly slots: number
}
/** Verified copies of a pack's entries, in packs that are in the index: copy i holds the entries of `packs[i]`. */
export interface MoveRequest extends CondemnRequest { readonly copies: readonly { readonly packNumber: PackNumber; readonly entries: PackEntries }[] }

/** What is known of lost chunks. `generation` advances whenever chunks are lost: what was found whole at the current one is whole as far as is known. */
export interface DamageState { readonly chunks: number; readonly generation: number }
/** A chunk that is whole nowhere. `packNumber`: where it was; 0 = in no pack that the index knows of. */
export interface DamagedChunk { readonly id: Buffer; readonly packNumber: number }
/** `sequence`: order of verifications, from 1. */
export interface VerifiedPack { readonly sequence: number; readonly packNumber: PackNumber; readonly atMs: number }
/** A damaged pack gives way to whole copies of what was still readable in it. `then`: its row stays, with nothing that lives in it (`keep`); is
 *  forgotten, because it is nowhere (`forget`); or its objects are deleted, too (`doom`). */
export interface EvacuateRequest {
  readonly then: 'keep' | 'forget' | 'doom'
  readonly packNumber: PackNumber
  /** Packed ids of all chunks that may live in the pack. */
  readonly ids: Buffer
  readonly copies: readonly { readonly packNumber: PackNumber; readonly entries: PackEntries }[]
  /** With `doom`: slots of the targets that may hold the pack. */
  readonly slots: number
}
/** `needed`: a live entry has no copy; nothing was changed. `collecting`: a collection knows the pack by its positions; ask again after it. */
export type EvacuateResult = 'evacuated' | 'needed' | 'collecting' | 'gone'
/** What the index says of an entry of a pack. `absent`: nothing, though it should. `superseded`: passed over, its id lives (or lived) elsewhere.
 *  `lost`: known as lost with this or another pack. `spare`: passed over, and the id is lost elsewhere: this copy brings it back. `unneeded`: it
 *  was lost, and nothing needs it. */
export const ENTRY_STATES = { absent: 0, differs: 1, live: 2, elsewhere: 3, superseded: 4, lost: 5, spare: 6, unneeded: 7 } as const

/** What a commit may rely on for one reference. */
export const REF_STATES = { missing: 0, wrongKind: 1, unpinned: 2, pinned: 3, inherited: 4 } as const
export type RefState = (typeof REF_STATES)[keyof typeof REF_STATES]

/** Pins to add for entries of a pack in the transaction that adds it: one bitmap (bit = entry number) per session. */
export interface PackPins { readonly sessionId: SessionId; readonly bitmap: Uint8Array }

/** Chunks are live ones; bytes are sums over the pack rows, dead entries included. */
export interface IndexTotals {
  readonly packs: number; readonly chunks: number; readonly dataChunks: number; readonly nodeChunks: number
  readonly rawBytes: number; readonly storedBytes: number; readonly spooledPacks: number; readonly spooledBytes: number
  readonly snapshots: number; readonly sessionsOpen: number
  /** Packs that left the index and are not deleted everywhere yet. */
  readonly doomedPacks: number; readonly doomedBytes: number
  /** Chunks that are whole nowhere. */
  readonly damagedChunks: number
}

export interface ChunkIndex {
  /** True when the last process closed the index; false after a crash: its sessions were dropped at open. */
  readonly openedClean: boolean

  // packs and chunks
  /** Durable. `count` fresh numbers, first one returned; numbers start at 1 and are never handed out twice, crash or not. */
  reservePackNumbers(count: number): Promise<PackNumber>
  /** Durable. Adds the pack and all its entries (entries whose id is already live elsewhere are skipped), and the pins.
   *  Repeating it for the same pack id is harmless and returns the pack number it already has. */
  addPack(pack: PackRow, entries: PackEntries, pins: readonly PackPins[]): Promise<PackNumber>
  /** Durable. @returns the row as it is now; undefined when the pack is not in the index (any more). */
  placePack(packNumber: PackNumber, places: PackPlaces): Promise<PackRow | undefined>
  /** Durable. Clears bits of `heldBy` in every row, and of `pending` in doomed ones: their targets are not this repository's any more. */
  clearHolders(slots: number): Promise<void>
  /** Durable, in many transactions: dying in between and repeating finishes it. Drops packs that are nowhere, and their entries: the
   *  missing-query answers "missing" again, and what lived there is known as damaged. Entries of other packs that had lost to these come back by `reviveEntries`. */
  forgetPacks(packNumbers: readonly PackNumber[]): Promise<void>
  /** Durable. Adds those entries of a pack in the index whose ids are nowhere. A collection that runs is over if there are any: its marks are by
   *  place. @returns how many. */
  reviveEntries(packNumber: PackNumber, entries: PackEntries): Promise<number>
  getPack(packNumber: PackNumber): Promise<PackRow | undefined>
  findPack(packId: PackId): Promise<PackRow | undefined>
  /** Ascending pack number, strictly after `after` (0 = from the start). */
  listPacks(after: number, limit: number): Promise<PackRow[]>
  /** `ids`: packed 32 bytes each. */
  locate(ids: Buffer): Promise<Locations>
  /** Up to `limit` chunk ids in ascending order strictly after `after` (undefined = start), with their locations. */
  scanChunks(after: Buffer | undefined, limit: number): Promise<{ ids: Buffer; locations: Locations }>
  totals(): Promise<IndexTotals>

  // sessions and pins
  /** Durable. */
  openSession(session: SessionRow): Promise<void>
  getSession(sessionId: SessionId): Promise<SessionRow | undefined>
  listSessions(): Promise<SessionRow[]>
  /** Cheap; not durable. @throws SESSION_LOST */
  touchSession(sessionId: SessionId, nowMs: number): Promise<void>
  /** Durable. Drops the session with all its pins; absent is fine. */
  closeSession(sessionId: SessionId): Promise<void>
  /** `idProofs`: 48 bytes each. Bit i of the reply is set when i is present *with this proof* (compared in constant time);
   *  those are pinned. @throws SESSION_LOST */
  pinPresent(sessionId: SessionId, idProofs: Buffer): Promise<Uint8Array>
  /** The same without proofs, for peers that hold every proof there is: `ids` 32 bytes each. @throws SESSION_LOST */
  pinIds(sessionId: SessionId, ids: Buffer): Promise<Uint8Array>
  /** Pins by position: for chunks just placed in a pack that is not added yet. @throws SESSION_LOST */
  pinEntries(sessionId: SessionId, packNumber: PackNumber, bitmap: Uint8Array): Promise<void>
  /** Marks present ones of `ids` (32 bytes each) inherited (and pinned). Bit i of the reply: present. @throws SESSION_LOST */
  inheritRefs(sessionId: SessionId, ids: Buffer): Promise<Uint8Array>
  /** One RefState per reference; `refs` is packed as in node-format (kind u8, id 32). @throws SESSION_LOST */
  inspectRefs(sessionId: SessionId, refs: Buffer): Promise<Uint8Array>

  // snapshots
  /** Durable. Adds the snapshot and closes its push session in one transaction; `sequence` is assigned. With `session`
   *  null (rebuild) no session is checked. Repeating it for the same snapshot id returns the existing row.
   *  @throws SESSION_LOST when the session is gone and the snapshot is not there yet. */
  commitSnapshot(snapshot: Omit<SnapshotRow, 'sequence'>, session: SessionId | null): Promise<SnapshotRow>
  getSnapshot(snapshotId: SnapshotId): Promise<SnapshotRow | undefined>
  /** Newest first, strictly below sequence `before` (undefined = from the newest). */
  listSnapshots(query: { before?: number; limit: number; source?: string; tag?: string }): Promise<SnapshotRow[]>
  /** The snapshot that this (closed) push session made, so that a repeated commit finds it. */
  findSnapshotOfSession(sessionId: SessionId): Promise<SnapshotRow | undefined>
  /** Durable. Absent is fine. While a collection runs, `root` (32 bytes) is held for it: a session may have inherited from it already. */
  deleteSnapshot(snapshotId: SnapshotId, root: Buffer): Promise<void>

  // collection (docs/gc.md)
  /** Durable. Advances the epoch and begins to hold: until the collection ends, pins of sessions that commit and roots of snapshots that are
   *  deleted are kept as pins of HELD. An earlier collection is over with it. Opening an index ends a collection, too. @returns the epoch */
  beginCollection(): Promise<number>
  /** Durable. Forgets what was held. Without effect when another collection has begun. */
  endCollection(epoch: number): Promise<void>
  /** Pins of all sessions, those of HELD last: a session that commits during the listing is found there. */
  listPins(after: PinCursor | undefined, limit: number): Promise<{ readonly pins: readonly PackPinned[]; readonly next: PinCursor | undefined }>
  /** Durable. Takes a pack out of the index and dooms it, unless one of its live entries is marked, or pinned now by anyone.
   *  @throws COLLECTION_STALE when the epoch is not the running collection's */
  condemnPack(request: CondemnRequest): Promise<CondemnResult>
  /** Durable. The same, after switching every live entry that has a copy to it; pins follow. `needed`: one that is marked or pinned has no copy.
   *  @throws COLLECTION_STALE */
  movePack(request: MoveRequest): Promise<CondemnResult>
  /** Ascending pack id, strictly after `after`. */
  listDoomed(after: PackId | undefined, limit: number): Promise<DoomedPack[]>
  isDoomed(packId: PackId): Promise<boolean>
  /** Durable. These targets do not have the pack any more; without any pending, it is forgotten. */
  settleDoomed(packIds: readonly PackId[], slots: number): Promise<void>

  // damage and care (docs/scrub.md)
  /** Durable. These chunks (packed ids) are whole nowhere: one that lives in this pack leaves the index ("missing" to everybody), and every one that
   *  then lives nowhere is known as damaged until a pack brings it again (addPack, reviveEntries). Those that live in another pack are passed over.
   *  @returns how many were not known */
  markDamaged(packNumber: number, ids: Buffer): Promise<number>
  /** Ascending id, strictly after `after`. */
  listDamaged(after: Buffer | undefined, limit: number): Promise<DamagedChunk[]>
  damageState(): Promise<DamageState>
  /** Durable. Nothing that is kept needs a damaged chunk: none of them counts as damaged any more, unless more were lost since that generation. @returns whether it did */
  forgetDamage(generation: number): Promise<boolean>
  /** The snapshot was found whole by a look that began at that generation. */
  noteWhole(snapshotId: SnapshotId, generation: number): Promise<void>
  /** The latest generation at which it was; undefined = it was never looked at. */
  wholeAt(snapshotId: SnapshotId): Promise<number | undefined>
  /** Durable. Switches what lives in a damaged pack to its copies, pins too. */
  evacuatePack(request: EvacuateRequest): Promise<EvacuateResult>
  /** One ENTRY_STATES byte per entry, of one moment. */
  inspectEntries(packNumber: PackNumber, entries: PackEntries): Promise<Uint8Array>
  /** Not durable: what a crash forgets is verified again. Without effect for a pack that is not in the index. */
  noteVerified(packNumber: PackNumber, atMs: number): Promise<void>
  /** Packs that were never verified among the `limit` packs after number `after`, and where to go on (undefined = that was all). */
  listUnverified(after: number, limit: number): Promise<{ readonly packs: readonly PackRow[]; readonly next: number | undefined }>
  /** Least recently verified first, strictly after sequence `after`. */
  listVerified(after: number, limit: number): Promise<VerifiedPack[]>

  // lifetime
  /** Durable. Whether packs and snapshots of the target have been taken in completely (see rebuild). */
  setComplete(complete: boolean): Promise<void>
  isComplete(): Promise<boolean>
  /** Undefined until it was set. */
  lineage(): Promise<IndexLineage | undefined>
  /** Durable. */
  setLineage(lineage: IndexLineage): Promise<void>
  checkpoints(): Promise<CheckpointState>
  /** Durable. */
  setCheckpoints(state: CheckpointState): Promise<void>
  /** Waits until everything visible is durable. */
  flush(): Promise<void>
  /** Flushes and marks the close as clean, unless `clean` is false: the next open is as after a crash. Idempotent. */
  close(clean?: boolean): Promise<void>
}

/** Which line of indexes of the repository this one belongs to, and how far it has come. */
export interface IndexLineage { readonly instance: string; readonly sequence: number }
/** Checkpoints on the targets. Packs come in nearly the order of their numbers: `watermark` is the highest that is in one, `recent` are those shortly below it that are. */
export interface CheckpointState {
  readonly watermark: number; readonly recent: readonly number[]
  readonly checkpoints: readonly { readonly id: string; readonly packs: number; readonly bytes: number }[]
}
/** What an index is bound to; opening one that is bound to another repository is refused with INDEX_CORRUPT. */
export interface IndexIdentity { readonly repositoryId: string; readonly formatVersion: number }
