/** Makes the index anew from the targets alone: pack trailers first, then snapshots. Safe to run on a live index: it adds what is missing, and
 *  forgets packs that no target has any more.
 *
 *  Reads checkpoints, and kilobytes of a pack that is in none. Memory: 36 bytes a pack of a target's listing.
 *  A damaged pack or snapshot is reported and skipped; the rest comes back. Repeating it resumes: packs
 *  that the index holds already are not read again. Every target must answer (or be disabled): absence is not guessed.
 */
import { hasCode, RoostError } from '../core/errors.js'
import type { PackNumber, SnapshotId } from '../core/ids.js'
import type { MaintenanceEvent } from '../core/messages.js'
import type { PackRow } from '../index/chunk-index.js'
import { coveredBy, readCheckpoint } from './checkpoints/checkpoints.js'
import { PackListing } from './checkpoints/pack-listing.js'
import { CHECKPOINT_PREFIX, checkpointIdOfKey, checkpointKey, PACK_PREFIX, packIdOfKey, packKey, SNAPSHOT_PREFIX, snapshotIdOfKey, snapshotKey, tombstoneKey } from './layout.js'
import { placeEntries } from './pack-format.js'
import { isPackDamage, packSources, targetSource } from './pack-sources.js'
import { readPackSelf } from './read-trailer.js'
import { readSnapshot } from './read-snapshot.js'
import type { RepositoryParts } from './repository-parts.js'
import { adoptSnapshot } from './adopt-snapshot.js'
import { parseRecord } from './snapshot-format.js'
import type { Target } from './targets/target.js'

const ROWS_PER_PAGE = 500
interface Counts { packs: number; packsAdded: number; packsOfCheckpoints: number; packsForgotten: number; snapshots: number; snapshotsAdded: number }
interface Progress {
  readonly counts: Counts
  /** Which packs each target listed whole: those need no further question. */
  readonly listed: Map<Target, PackNumbers>
  problems: number
}
/** A bit a pack. */
class PackNumbers {
  #bits = new Uint8Array(1024)
  add(number: PackNumber): void {
    if (number >>> 3 >= this.#bits.length) {
      const larger = new Uint8Array(Math.max(this.#bits.length * 2, (number >>> 3) + 1))
      larger.set(this.#bits)
      this.#bits = larger
    }
    this.#bits[number >>> 3]! |= 1 << (number & 7)
  }
  has(number: PackNumber): boolean { return ((this.#bits[number >>> 3] ?? 0) >>> (number & 7) & 1) === 1 }
}

export async function* rebuildIndex(parts: RepositoryParts, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const counts: Counts = { packs: 0, packsAdded: 0, packsOfCheckpoints: 0, packsForgotten: 0, snapshots: 0, snapshotsAdded: 0 }
  const progress: Progress = { counts, listed: new Map(), problems: 0 }
  for (const target of parts.targets.readable) yield* takeInPacks(parts, target, progress, signal)
  yield { type: 'progress', phase: 'packs', done: counts.packs, total: counts.packs }
  yield* forgetLostPacks(parts, progress, signal)
  yield* takeInSnapshots(parts, progress, signal)
  await parts.lineage.advanceIfPossible(parts.index, true)
  await parts.index.setComplete(true)
  parts.checkpoints.wake(true)
  await parts.index.flush()
  yield { type: 'progress', phase: 'snapshots', done: counts.snapshots, total: counts.snapshots }
  yield { type: 'done', problems: progress.problems, counts: { ...counts } }
}

async function* takeInPacks(parts: RepositoryParts, target: Target, progress: Progress, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const { index, targets } = parts
  const { counts } = progress
  const listed = new PackNumbers()
  progress.listed.set(target, listed)
  const list = await listPacksOn(target, signal)
  yield* takeInCheckpoints(parts, target, list, progress, signal)
  let done = 0
  for (const { packId, bytes } of list) {
    done++
    const known = await index.findPack(packId)
    // Asked in this order: a pack that leaves the index between the two is doomed.
    if (known === undefined && await index.isDoomed(packId)) continue
    if (known === undefined) {
      const added = await addPack(parts, packId, bytes, target, signal)
      if (added instanceof RoostError) {
        progress.problems++
        yield { type: 'problem', code: added.code, message: added.message, pack: packId, target: target.name }
      } else {
        listed.add(added)
        counts.packsAdded++
      }
      counts.packs++
    } else if (known.storedBytes === bytes) {
      listed.add(known.packNumber)
      if ((known.heldBy & target.bit) === 0) await targets.place(known.packNumber, { add: target.bit })
      if (target === targets.readable[0]) counts.packs++
    }
    if (done % 32 === 0) yield { type: 'progress', phase: `packs on ${target.name}`, done, total: list.count }
  }
}
async function listPacksOn(target: Target, signal: AbortSignal): Promise<PackListing> {
  const list = new PackListing()
  for await (const { key, bytes } of await target.use(async (store) => store.list(PACK_PREFIX, { signal }))) {
    const packId = packIdOfKey(key)
    if (packId !== undefined) list.add(packId, bytes)
  }
  return list
}
/** Packs that a checkpoint names, if this target has them: no request for each. What is wrong with one costs time, nothing else. */
async function* takeInCheckpoints(parts: RepositoryParts, target: Target, list: PackListing, progress: Progress, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const { index } = parts
  const { counts } = progress
  const read: { id: string; packs: number; bytes: number }[] = []
  const taken: number[] = []
  const keys: { id: string; bytes: number }[] = []
  for await (const { key, bytes } of await target.use(async (store) => store.list(CHECKPOINT_PREFIX, { signal }))) {
    const id = checkpointIdOfKey(key)
    if (id !== undefined) keys.push({ id, bytes })
  }
  for (const { id, bytes } of keys) {
    signal.throwIfAborted()
    let packs
    try { packs = await target.use((store) => readCheckpoint(store, id, parts)) } catch (error) {
      if (!hasCode(error, 'REPOSITORY_CORRUPT')) throw error
      progress.problems++
      yield { type: 'problem', code: 'REPOSITORY_CORRUPT', message: `${error.message} It is passed over, and removed: packs say the same themselves.`, target: target.name }
      await target.change((store) => store.delete(checkpointKey(id), { signal })).catch((failure: unknown) => { if (!(failure instanceof RoostError)) throw failure })
      continue
    }
    let number = await index.reservePackNumbers(Math.max(1, packs.length)) as number
    for (const { packId, kind, storedBytes, blocks, idProofs, rawBytes } of packs) {
      if (list.bytesOf(packId) !== storedBytes || await index.findPack(packId) !== undefined || await index.isDoomed(packId)) continue
      const entries = placeEntries(blocks, idProofs, rawBytes)
      const row: PackRow = { packNumber: number++ as PackNumber, packId, kind, state: 'stored', storedBytes,
        rawBytes: rawBytes.reduce((sum, one) => sum + one, 0), entryCount: entries.count, heldBy: target.bit }
      taken.push(await index.addPack(row, entries, []))
      parts.targets.noteAdded(row)
      counts.packsAdded++
      counts.packsOfCheckpoints++
    }
    read.push({ id, packs: packs.length, bytes })
    yield { type: 'progress', phase: `checkpoints on ${target.name}`, done: read.length, total: keys.length }
  }
  // What comes after them has higher numbers, and is for the next checkpoint.
  if (read.length > 0 && (await index.checkpoints()).checkpoints.length === 0) await index.setCheckpoints({ ...coveredBy(taken, 0), checkpoints: read })
}
async function addPack(parts: RepositoryParts, packId: PackRow['packId'], bytes: number, target: Target, signal: AbortSignal): Promise<PackNumber | RoostError> {
  const { index, keys, repositoryId } = parts
  try {
    const source = targetSource({ packId, storedBytes: bytes } as PackRow, target)
    const self = await readPackSelf(bytes, (range) => source.read(range, signal), keys.packKey, repositoryId)
    const row: PackRow = { packNumber: await index.reservePackNumbers(1), packId, kind: self.header.kind, state: 'stored',
      storedBytes: bytes, rawBytes: self.rawBytes, entryCount: self.trailer.entries.count, heldBy: target.bit }
    await index.addPack(row, self.trailer.entries, [])
    parts.targets.noteAdded(row)
    return row.packNumber
  } catch (error) {
    if (!isPackDamage(error)) throw error
    return error
  }
}

/** A pack that the index names and no target has: its chunks must be "missing", or the next backup would rely on them. */
async function* forgetLostPacks(parts: RepositoryParts, progress: Progress, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const { index, targets, uploads } = parts
  const lost: PackNumber[] = []
  for (let after = 0; ;) {
    const rows = await index.listPacks(after, ROWS_PER_PAGE)
    if (rows.length === 0) break
    after = rows.at(-1)!.packNumber
    for (const row of rows) {
      signal.throwIfAborted()
      if (uploads.isWaiting(row.packNumber)) continue
      let heldBy = 0
      for (const target of targets.readable) {
        const isThere = progress.listed.get(target)?.has(row.packNumber) === true ||
          (await target.use((store) => store.head(packKey(row.packId), { signal })))?.bytes === row.storedBytes
        if (isThere) heldBy |= target.bit
        else if ((row.heldBy & target.bit) !== 0) await targets.place(row.packNumber, { remove: target.bit })
      }
      // A disabled target was not asked: what it holds is not lost.
      if (heldBy !== 0 || targets.all.some((target) => !target.isReadable && (row.heldBy & target.bit) !== 0)) continue
      lost.push(row.packNumber)
      progress.problems++
      yield { type: 'problem', code: 'CHUNK_MISSING', message: 'A pack is on no target any more; the next backups send its chunks again, if their sources still have them.', pack: row.packId }
    }
  }
  if (lost.length === 0) return
  for (const number of lost) targets.noteForgotten((await index.getPack(number))!)
  await index.forgetPacks(lost)
  progress.counts.packsForgotten = lost.length
  await reviveEntries(parts, signal)
}
/** Chunks of a forgotten pack may lie in another one, passed over until now because the first had them. */
async function reviveEntries(parts: RepositoryParts, signal: AbortSignal): Promise<void> {
  const { index, keys, repositoryId } = parts
  for (let after = 0; ;) {
    const rows = await index.listPacks(after, ROWS_PER_PAGE)
    if (rows.length === 0) return
    after = rows.at(-1)!.packNumber
    for (const row of rows)
      for (const source of packSources(row, parts)) {
        try {
          const self = await readPackSelf(row.storedBytes, (range) => source.read(range, signal), keys.packKey, repositoryId)
          await index.reviveEntries(row.packNumber, self.trailer.entries)
          break
        } catch (error) {
          if (!isPackDamage(error)) throw error
        }
      }
  }
}

async function* takeInSnapshots(parts: RepositoryParts, progress: Progress, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const { index, store } = parts
  const { counts } = progress
  // Oldest first, so that "newest" means the same as before.
  const found: { receivedAtMs: number; id: SnapshotId }[] = []
  for await (const { key } of store.list(SNAPSHOT_PREFIX, { signal })) {
    const id = snapshotIdOfKey(key)
    if (id === undefined || await store.head(tombstoneKey(id), { signal }) !== undefined) continue
    counts.snapshots++
    if (await index.getSnapshot(id) !== undefined) continue
    const signed = await readSnapshot(parts, id)
    if (signed instanceof RoostError) {
      if (await store.head(snapshotKey(id), { signal }) === undefined) continue // deleted since it was listed
      progress.problems++
      yield { type: 'problem', code: signed.code, message: signed.message, snapshot: id }
      continue
    }
    found.push({ receivedAtMs: parseRecord(signed).receivedAtMs, id })
  }
  for (const { id } of found.sort((a, b) => a.receivedAtMs - b.receivedAtMs || (a.id < b.id ? -1 : 1))) {
    const adopted = await adoptSnapshot(parts, id)
    if (adopted instanceof RoostError) throw adopted // it was whole a moment ago
    if (adopted) counts.snapshotsAdded++
  }
  for (const target of parts.targets.all) if (target.isBehind) parts.catchUp.wakeIfBehind(target)
}
