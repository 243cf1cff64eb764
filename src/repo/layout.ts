/** Names of a repository's objects on its targets. Nothing else builds keys (docs/formats/repository-v1.md). */
import { parsePackId, parseSnapshotId, type PackId, type SnapshotId } from '../core/ids.js'
import type { ObjectKey } from '../store/object-store.js'

export const HEADER_KEY: ObjectKey = 'roost.json'
/** Policies, protected and locked snapshots, the retention lock. */
export const RETENTION_KEY: ObjectKey = 'retention.json'
export const PACK_PREFIX = 'packs/'
export const SNAPSHOT_PREFIX = 'snapshots/'
export const KEY_SLOT_PREFIX = 'keys/'
/** Written again and again while a target takes nothing, to see when it does. */
export const PROBE_KEY: ObjectKey = 'probe'
/** What packs' trailers say, many packs an object: a cache. */
export const CHECKPOINT_PREFIX = 'checkpoints/'
export const checkpointKey = (id: string): ObjectKey => `${CHECKPOINT_PREFIX}${id}`
export function checkpointIdOfKey(key: ObjectKey): string | undefined { return /^checkpoints\/([0-9a-f]{64})$/.exec(key)?.[1] }
/** How far the repository's index has come: tells old copies of it from the present one. */
export const LINEAGE_KEY: ObjectKey = 'lineage.json'
/** Repositories whose snapshots this one takes in. */
export const ORIGIN_PREFIX = 'origins/'
export const originKey = (verifyKey: string): ObjectKey => `${ORIGIN_PREFIX}${verifyKey}`
export function originOfKey(key: ObjectKey): string | undefined { return /^origins\/([0-9a-f]{64})$/.exec(key)?.[1] }
/** Names of deleted snapshots that some target may still hold. */
export const TOMBSTONE_PREFIX = 'tombstones/'

/** Two hex digits of fan-out keep directories of a `file:` target small. */
export const packKey = (id: PackId): ObjectKey => `${PACK_PREFIX}${id.slice(0, 2)}/${id}`
export const snapshotKey = (id: SnapshotId): ObjectKey => `${SNAPSHOT_PREFIX}${id}`
/** `slotId`: 32 lowercase hex digits, proven by the caller. */
export const keySlotKey = (slotId: string): ObjectKey => `${KEY_SLOT_PREFIX}${slotId}`

/** The pack named by a key, or undefined for a foreign object. */
export function packIdOfKey(key: ObjectKey): PackId | undefined {
  const match = /^packs\/([0-9a-f]{2})\/([0-9a-f]{64})$/.exec(key)
  return match !== null && match[2]!.startsWith(match[1]!) ? parsePackId(match[2]!) : undefined
}
export function snapshotIdOfKey(key: ObjectKey): SnapshotId | undefined {
  const match = /^snapshots\/([0-9a-f]{64})$/.exec(key)
  return match === null ? undefined : parseSnapshotId(match[1]!)
}
export const tombstoneKey = (id: SnapshotId): ObjectKey => `${TOMBSTONE_PREFIX}${id}`
export function tombstoneIdOfKey(key: ObjectKey): SnapshotId | undefined {
  const match = /^tombstones\/([0-9a-f]{64})$/.exec(key)
  return match === null ? undefined : parseSnapshotId(match[1]!)
}
/** The slot named by a key, or undefined for a foreign object. */
export function slotIdOfKey(key: ObjectKey): string | undefined {
  return /^keys\/([0-9a-f]{32})$/.exec(key)?.[1]
}
