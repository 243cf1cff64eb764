/** Every target's copies of the header, the key slots, the retention settings, the origins and the snapshots: whole, and the same everywhere. With `heal`, what is missing or
 *  damaged in one place is written anew from another.
 */
import { hasCode, RoostError } from '../core/errors.js'
import type { MaintenanceEvent } from '../core/messages.js'
import type { SnapshotRow } from '../index/chunk-index.js'
import { bytesBody } from '../store/bytes-body.js'
import type { ObjectKey, ObjectStore } from '../store/object-store.js'
import { everySnapshot } from './every-snapshot.js'
import { readSlot } from './key-slots.js'
import { HEADER_KEY, KEY_SLOT_PREFIX, originKey, slotIdOfKey, snapshotKey } from './layout.js'
import { readSnapshotObject } from './read-snapshot.js'
import type { RepositoryParts } from './repository-parts.js'
import { encodeSnapshotObject } from './snapshot-format.js'
import type { Target } from './targets/target.js'

const SLOT_BYTES_MAX = 64 * 1024

export async function* checkSmallObjects(parts: RepositoryParts, heal: boolean, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  for (const target of parts.targets.readable) {
    yield* checkHeader(parts, target, heal, signal)
    yield* checkKeySlots(parts, target, heal, signal)
    yield* checkRetention(parts, target, heal, signal)
    yield* checkOrigins(parts, target, heal, signal)
    for await (const row of everySnapshot(parts.index)) {
      signal.throwIfAborted()
      if (!parts.spooledSnapshots.has(row.snapshotId)) yield* checkSnapshotCopy(parts, target, row, heal, signal)
    }
  }
}
function bad(target: Target, object: string, problem: string): MaintenanceEvent {
  return { type: 'problem', code: object.startsWith('snapshot') ? 'SNAPSHOT_CORRUPT' : 'REPOSITORY_CORRUPT',
    message: `The ${object} ${problem} on the target ${target.name}.`, target: target.name }
}
async function* replace(target: Target, object: string, key: ObjectKey, bytes: Buffer, from: string, signal: AbortSignal,
  retainUntilMs?: number): AsyncGenerator<MaintenanceEvent, void, undefined> {
  await target.change((store) => store.put(key, bytesBody(bytes), { signal, replace: true, ...(retainUntilMs && { retainUntilMs }) }))
  yield { type: 'healed', object, target: target.name, from }
}

async function* checkHeader(parts: RepositoryParts, target: Target, heal: boolean, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const bytes = await readSmall(target, HEADER_KEY, signal)
  if (bytes?.equals(parts.headerBytes) === true) return
  yield bad(target, 'repository header', bytes === undefined ? 'is missing' : 'is damaged')
  if (heal) yield* replace(target, 'the repository header', HEADER_KEY, parts.headerBytes, 'the server', signal)
}

async function* checkKeySlots(parts: RepositoryParts, target: Target, heal: boolean, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  for await (const { key } of parts.store.list(KEY_SLOT_PREFIX, { signal })) {
    const slotId = slotIdOfKey(key)
    if (slotId === undefined || await isWholeSlot(target, slotId)) continue
    const present = await readSmall(target, key, signal)
    yield bad(target, `key slot ${slotId}`, present === undefined ? 'is missing' : 'is damaged')
    for (const other of heal ? parts.targets.readable : []) {
      if (other === target || !await isWholeSlot(other, slotId)) continue
      yield* replace(target, `key slot ${slotId}`, key, (await readSmall(other, key, signal))!, other.name, signal)
      break
    }
  }
}
async function isWholeSlot(target: Target, slotId: string): Promise<boolean> {
  try { return await target.use((store) => readSlot(store, slotId)) !== undefined } catch (error) {
    if (hasCode(error, 'REPOSITORY_CORRUPT')) return false
    throw error
  }
}

async function* checkRetention({ retention }: RepositoryParts, target: Target, heal: boolean, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const difference = await retention.differenceOn(target, signal)
  if (difference === undefined) return
  yield bad(target, 'retention settings', `are ${difference}`)
  if (heal && await retention.syncTo(target, signal) > 0) yield { type: 'healed', object: 'the retention settings', target: target.name, from: 'the server' }
}

async function* checkOrigins({ origins }: RepositoryParts, target: Target, heal: boolean, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  for (const origin of await origins.list()) {
    const key = originKey(origin.verifyKey), expected = origins.objectOf(origin)
    const present = await readSmall(target, key, signal)
    if (present?.equals(expected) === true) continue
    yield bad(target, `origin ${origin.repositoryId}`, present === undefined ? 'is missing' : 'is damaged')
    if (heal) yield* replace(target, `the origin ${origin.repositoryId}`, key, expected, 'the server', signal)
  }
}

async function* checkSnapshotCopy(parts: RepositoryParts, target: Target, row: SnapshotRow, heal: boolean, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const { keys, repositoryId, random, index, snapshotLocks } = parts
  const id = row.snapshotId
  const read = await target.use((store) => readSnapshotObject({ store, keys, repositoryId }, id))
  if (!(read instanceof RoostError)) return
  const isMissing = await target.use((store) => store.head(snapshotKey(id), { signal })) === undefined
  // Deleted meanwhile: nothing is wrong, and nothing must be written.
  const isWanted = async (): Promise<boolean> => await index.getSnapshot(id) !== undefined
  if (!await snapshotLocks.run(id, isWanted)) return
  yield { ...bad(target, `snapshot ${id}`, isMissing ? 'is missing' : 'is damaged'), snapshot: id, source: row.source, receivedAtMs: row.receivedAtMs } as MaintenanceEvent
  if (!heal) return
  const retainUntilMs = parts.retention.retainUntilMs()
  const isHealed = await snapshotLocks.run(id, async () => {
    if (!await isWanted()) return false
    const object = bytesBody(encodeSnapshotObject(row, repositoryId, keys, random))
    await target.change((store) => store.put(snapshotKey(id), object, { signal, replace: true, ...(retainUntilMs && { retainUntilMs }) }))
    return true
  })
  if (isHealed) yield { type: 'healed', object: `snapshot ${id}`, target: target.name, from: 'the index' }
}

async function readSmall(target: Target, key: ObjectKey, signal: AbortSignal): Promise<Buffer | undefined> {
  return target.use(async (store: ObjectStore) => {
    const facts = await store.head(key, { signal })
    if (facts === undefined) return undefined
    return await store.getRange(key, { offset: 0, bytes: Math.min(facts.bytes, SLOT_BYTES_MAX) }, { signal })
  })
}
