/** Makes the index anew from the target alone: pack trailers first, then snapshots. Safe to run on a live index: it only adds what is missing.
 *
 *  Reads kilobytes a pack. A damaged pack or snapshot is reported and skipped; the rest comes back. Repeating it resumes: packs
 *  that the index holds already are not read again.
 */
import { RoostError } from '../core/errors.js'
import type { SnapshotId } from '../core/ids.js'
import type { MaintenanceEvent } from '../core/messages.js'
import type { PackRow } from '../index/chunk-index.js'
import { PACK_PREFIX, packIdOfKey, SNAPSHOT_PREFIX, snapshotIdOfKey } from './layout.js'
import { readPackSelf } from './read-trailer.js'
import { readSnapshotObject } from './read-snapshot.js'
import type { RepositoryParts } from './repository-parts.js'
import { toSnapshotRow, parseRecord } from './snapshot-format.js'

export async function* rebuildIndex(parts: RepositoryParts, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const { index, store, keys, repositoryId } = parts
  const counts = { packs: 0, packsAdded: 0, snapshots: 0, snapshotsAdded: 0 }
  let problems = 0
  for await (const { key, bytes } of store.list(PACK_PREFIX, { signal })) {
    const packId = packIdOfKey(key)
    if (packId === undefined) continue
    counts.packs++
    if (await index.findPack(packId) === undefined) {
      try {
        const self = await readPackSelf(bytes, async (range) => {
          const part = await store.getRange(key, range, { signal })
          if (part === undefined) throw new RoostError('CHUNK_MISSING', 'A listed pack is not there.', { pack: packId })
          return part
        }, keys.packKey, repositoryId)
        const row: PackRow = { packNumber: await index.reservePackNumbers(1), packId, kind: self.header.kind, state: 'stored',
          storedBytes: bytes, rawBytes: self.rawBytes, entryCount: self.trailer.entries.count, heldBy: 1 }
        await index.addPack(row, self.trailer.entries, [])
        counts.packsAdded++
      } catch (error) {
        if (!(error instanceof RoostError) || (error.code !== 'PACK_CORRUPT' && error.code !== 'CHUNK_MISSING')) throw error
        problems++
        yield { type: 'problem', code: error.code, message: error.message, pack: packId }
      }
    }
    if (counts.packs % 32 === 0) yield { type: 'progress', phase: 'packs', done: counts.packs, total: 0 }
  }
  yield { type: 'progress', phase: 'packs', done: counts.packs, total: counts.packs }
  // Oldest first, so that "newest" means the same as before.
  const found: { receivedAtMs: number; id: SnapshotId }[] = []
  for await (const { key } of store.list(SNAPSHOT_PREFIX, { signal })) {
    const id = snapshotIdOfKey(key)
    if (id === undefined) continue
    counts.snapshots++
    if (await index.getSnapshot(id) !== undefined) continue
    const signed = await readSnapshotObject(parts, id)
    if (signed instanceof RoostError) {
      problems++
      yield { type: 'problem', code: signed.code, message: signed.message, snapshot: id }
      continue
    }
    found.push({ receivedAtMs: parseRecord(signed).receivedAtMs, id })
  }
  for (const { id } of found.sort((a, b) => a.receivedAtMs - b.receivedAtMs || (a.id < b.id ? -1 : 1))) {
    const signed = await readSnapshotObject(parts, id)
    if (signed instanceof RoostError) throw signed // it was whole a moment ago
    await index.commitSnapshot(toSnapshotRow(signed), null)
    counts.snapshotsAdded++
  }
  await index.setComplete(true)
  await index.flush()
  yield { type: 'progress', phase: 'snapshots', done: counts.snapshots, total: counts.snapshots }
  yield { type: 'done', problems, counts }
}
