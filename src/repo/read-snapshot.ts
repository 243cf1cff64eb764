/** Reads one snapshot object from the target. */
import { isAbort, RoostError } from '../core/errors.js'
import type { SnapshotId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import { snapshotKey } from './layout.js'
import type { RepositoryParts } from './repository-parts.js'
import { decodeSnapshotObject, type SignedRecord } from './snapshot-format.js'

/** Damage and absence are values, so that a walk over many goes on; an unreachable target throws. */
export async function readSnapshotObject(parts: Pick<RepositoryParts, 'store' | 'keys' | 'repositoryId'>, id: SnapshotId): Promise<SignedRecord | RoostError> {
  const stream = await parts.store.get(snapshotKey(id))
  if (stream === undefined) return new RoostError('SNAPSHOT_CORRUPT', 'A snapshot is not on its target.', { snapshot: id })
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of stream) {
    bytes += (piece as Buffer).byteLength
    if (bytes > LIMITS.snapshotBytesMax + 4096) return new RoostError('SNAPSHOT_CORRUPT', 'A snapshot object is too long.', { snapshot: id })
    pieces.push(piece as Buffer)
  }
  try {
    return decodeSnapshotObject(Buffer.concat(pieces), id, parts.repositoryId, parts.keys)
  } catch (error) {
    if (error instanceof RoostError) return error
    throw error
  }
}

/** From the first target that has it whole. @throws what a target throws that could not be asked, when no other has it. */
export async function readSnapshot(parts: Pick<RepositoryParts, 'targets' | 'keys' | 'repositoryId'>, id: SnapshotId): Promise<SignedRecord | RoostError> {
  const { targets, keys, repositoryId } = parts
  let damage: RoostError | undefined, blocked: unknown
  for (const target of targets.readersOf({ heldBy: 0 })) {
    try {
      const read = await target.use((store) => readSnapshotObject({ store, keys, repositoryId }, id))
      if (!(read instanceof RoostError)) return read
      damage ??= read
    } catch (error) {
      if (isAbort(error)) throw error
      blocked ??= error
    }
  }
  if (blocked !== undefined) throw blocked
  return damage ?? new RoostError('STORE_UNAVAILABLE', 'Every target of this repository is disabled.')
}
