/** Brings a target's small objects up to date after it was away, new or damaged: header, key slots, retention, deletions, snapshots. */
import { hasCode, RoostError } from '../../core/errors.js'
import { forEachBounded, type KeyedMutex } from '../../core/concurrency.js'
import type { SnapshotId } from '../../core/ids.js'
import { LIMITS } from '../../core/limits.js'
import type { ChunkIndex } from '../../index/chunk-index.js'
import { bytesBody } from '../../store/bytes-body.js'
import type { ObjectKey, ObjectStore } from '../../store/object-store.js'
import { everySnapshot } from '../every-snapshot.js'
import { HEADER_KEY, KEY_SLOT_PREFIX, ORIGIN_PREFIX, originOfKey, slotIdOfKey, SNAPSHOT_PREFIX, snapshotIdOfKey, snapshotKey, TOMBSTONE_PREFIX, tombstoneIdOfKey } from '../layout.js'
import { readRepositoryHeader } from '../repository-header.js'
import type { Lineage } from '../lineage.js'
import type { Retention } from '../retention/retention.js'
import type { Target } from './target.js'
import type { TargetSet } from './target-set.js'

const HEADS_IN_FLIGHT_MAX = 4
const SMALL_OBJECT_BYTES_MAX = LIMITS.snapshotBytesMax + 64 * 1024

export interface MetadataParts {
  readonly targets: TargetSet
  /** All targets as one. */
  readonly store: ObjectStore
  readonly index: ChunkIndex
  readonly repositoryId: string
  /** The exact bytes of the repository's header. */
  readonly headerBytes: Buffer
  readonly retention: Retention
  readonly lineage: Lineage
  readonly snapshotLocks: KeyedMutex<SnapshotId>
  /** A snapshot's object, made anew from its index row; undefined when it is not to be on targets yet, or not there. */
  snapshotObject(id: SnapshotId): Promise<Buffer | undefined>
}

/** @returns how many objects it wrote. @throws {RoostError} STORE_REFUSED when the place holds another repository; what the target throws. */
export async function syncMetadata(parts: MetadataParts, target: Target, signal: AbortSignal): Promise<number> {
  target.isBehind = false // what fails from here on sets it again
  try {
    let written = await syncHeader(parts, target, signal)
    written += await copySmall(parts, target, KEY_SLOT_PREFIX, (key) => slotIdOfKey(key) !== undefined, signal)
    written += await copySmall(parts, target, ORIGIN_PREFIX, (key) => originOfKey(key) !== undefined, signal)
    written += await copySmall(parts, target, TOMBSTONE_PREFIX, (key) => tombstoneIdOfKey(key) !== undefined, signal)
    written += await parts.retention.syncTo(target, signal)
    written += await parts.lineage.syncTo(target, signal)
    await applyTombstones(parts, target, signal)
    if (await parts.index.isComplete()) written += await putSnapshots(parts, target, signal)
    return written
  } catch (error) {
    target.isBehind = true
    throw error
  }
}

async function syncHeader(parts: MetadataParts, target: Target, signal: AbortSignal): Promise<number> {
  try {
    const { header } = await target.use((store) => readRepositoryHeader(store))
    if (header.repositoryId === parts.repositoryId) return 0
    const error = foreign(target)
    target.failed(error)
    throw error
  } catch (error) {
    // Absent: the place was emptied, or is new. Damaged: no other repository's bytes would be unreadable.
    if (!hasCode(error, 'REPOSITORY_UNKNOWN') && !hasCode(error, 'REPOSITORY_CORRUPT')) throw error
    await target.change((store) => store.put(HEADER_KEY, bytesBody(parts.headerBytes), { signal, replace: true }))
    return 1
  }
}
const foreign = (target: Target): RoostError => new RoostError('STORE_REFUSED',
  `The target ${target.name} (${target.config.url}) holds another repository; correct its address, or empty the place.`, { target: target.name })

/** Objects below `prefix` that other targets have and this one lacks. Their bytes are sealed or public: copied as they are. */
async function copySmall({ store }: MetadataParts, target: Target, prefix: string, isOurs: (key: ObjectKey) => boolean, signal: AbortSignal): Promise<number> {
  let written = 0
  for await (const { key } of store.list(prefix, { signal })) {
    if (!isOurs(key) || await target.use((own) => own.head(key, { signal })) !== undefined) continue
    const facts = await store.head(key, { signal })
    if (facts === undefined || facts.bytes > SMALL_OBJECT_BYTES_MAX) continue // gone meanwhile, or not ours
    const bytes = await store.getRange(key, { offset: 0, bytes: facts.bytes }, { signal })
    if (bytes === undefined) continue
    await target.change((own) => own.put(key, bytesBody(bytes), { signal }))
    written++
  }
  return written
}

async function applyTombstones({ targets }: MetadataParts, target: Target, signal: AbortSignal): Promise<void> {
  const ids: SnapshotId[] = []
  await target.use(async (store) => {
    for await (const { key } of store.list(TOMBSTONE_PREFIX, { signal })) {
      const id = tombstoneIdOfKey(key)
      if (id !== undefined) ids.push(id)
    }
  })
  for (const id of ids) await target.change((store) => store.delete(snapshotKey(id), { signal }))
  // A deletion is remembered until every target has heard of it: not of what this process knows, but from this very mouth.
  if (ids.length === 0 || targets.all.some((one) => one.anyFailure !== undefined || !one.isReadable)) return
  for (const one of targets.readable) if (one !== target) await one.change((store) => store.deleteMany(ids.map(snapshotKey), { signal }))
  for (const one of targets.readable) await one.change((store) => store.deleteMany(ids.map((id) => `${TOMBSTONE_PREFIX}${id}`), { signal }))
}

async function putSnapshots(parts: MetadataParts, target: Target, signal: AbortSignal): Promise<number> {
  const listed = new Set<SnapshotId>()
  await target.use(async (store) => {
    for await (const { key } of store.list(SNAPSHOT_PREFIX, { signal })) {
      const id = snapshotIdOfKey(key)
      if (id !== undefined) listed.add(id)
    }
  })
  let written = 0
  await forEachBounded(everySnapshot(parts.index), HEADS_IN_FLIGHT_MAX, async ({ snapshotId }) => {
    if (listed.has(snapshotId) || await target.use((store) => store.head(snapshotKey(snapshotId), { signal })) !== undefined) return
    await parts.snapshotLocks.run(snapshotId, async () => {
      const object = await parts.snapshotObject(snapshotId)
      if (object === undefined) return
      const retainUntilMs = parts.retention.retainUntilMs()
      await target.change((store) => store.put(snapshotKey(snapshotId), bytesBody(object), { signal, ...(retainUntilMs && { retainUntilMs }) }))
      written++
    })
  })
  return written
}
