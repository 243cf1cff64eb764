/** Takes a snapshot that is on the targets into the index that does not know it. */
import { isAbort, RoostError } from '../core/errors.js'
import type { SnapshotId } from '../core/ids.js'
import { snapshotKey, tombstoneKey } from './layout.js'
import { readSnapshot } from './read-snapshot.js'
import type { RepositoryParts } from './repository-parts.js'
import { toSnapshotRow } from './snapshot-format.js'

/** Targets that lack it are behind from here on: whoever calls lets them be caught up.
 *  @returns true when it was taken in; false when it is known, or was deleted meanwhile; what is wrong with it, if it cannot be read.
 */
export function adoptSnapshot(parts: RepositoryParts, id: SnapshotId): Promise<boolean | RoostError> {
  const { index, store, targets } = parts
  return parts.snapshotLocks.run(id, async () => {
    if (await index.getSnapshot(id) !== undefined || await store.head(tombstoneKey(id)) !== undefined) return false
    const signed = await readSnapshot(parts, id)
    if (signed instanceof RoostError) return await store.head(snapshotKey(id)) === undefined ? false : signed
    await index.commitSnapshot(toSnapshotRow(signed), null)
    for (const target of targets.readable) {
      const isThere = await target.use((own) => own.head(snapshotKey(id))).then((facts) => facts !== undefined, (error: unknown) => {
        if (isAbort(error)) throw error
        return false // its health says why
      })
      if (!isThere) target.isBehind = true
    }
    return true
  })
}
