/** Deletes a snapshot from every place. Order (docs/durability.md, deletes): its objects on the targets, then its row. Dying in between brings
 *  the snapshot back whole.
 */
import { isAbort } from '../core/errors.js'
import { parseChunkId, type SnapshotId } from '../core/ids.js'
import type { SnapshotRow } from '../index/chunk-index.js'
import { bytesBody } from '../store/bytes-body.js'
import { snapshotKey, tombstoneKey } from './layout.js'
import type { RepositoryParts } from './repository-parts.js'
import { Holds, requireDeletable } from './retention/locks.js'
import { unknownSnapshot } from './sessions.js'
import { parseRecord } from './snapshot-format.js'

/** Refused for what is protected or locked, whoever asks. A target that cannot be asked now hears of it later, by a tombstone on the others: nothing
 *  that was deleted comes back with it.
 *  @throws {RoostError} SNAPSHOT_UNKNOWN; SNAPSHOT_PROTECTED; RETENTION_LOCKED; what the targets throw when none of them took the deletion */
export function deleteSnapshot(parts: RepositoryParts, id: SnapshotId): Promise<void> {
  const { index, retention } = parts
  return retention.exclusively(async (settings) => {
    const row = await index.getSnapshot(id)
    if (row === undefined) throw unknownSnapshot(id)
    requireDeletable(await Holds.of(settings, retention.time), row)
    await parts.snapshotLocks.run(id, () => deleteEverywhere(parts, row))
  })
}
async function deleteEverywhere({ index, targets, spooledSnapshots }: RepositoryParts, row: SnapshotRow): Promise<void> {
  const id = row.snapshotId
  const wasInSpool = spooledSnapshots.has(id)
  await spooledSnapshots.drop(id)
  let failure: unknown
  let reached = 0
  for (const target of targets.readable)
    await target.change((store) => store.delete(snapshotKey(id))).then(() => { reached++ }, (error: unknown) => {
      if (isAbort(error)) throw error
      target.isBehind = true
      failure ??= error
    })
  const isEverywhere = reached === targets.all.length
  if (!isEverywhere && reached === 0 && !wasInSpool) throw failure
  if (!isEverywhere && reached > 0) {
    let told = 0
    for (const target of targets.readable.filter((one) => !one.isBehind && one.anyFailure === undefined))
      await target.change((store) => store.put(tombstoneKey(id), bytesBody(Buffer.from(`${id}\n`)))).then(() => { told++ }, (error: unknown) => { failure ??= error })
    if (told === 0) throw failure
  }
  await index.deleteSnapshot(id, parseChunkId(parseRecord(row).root))
}
