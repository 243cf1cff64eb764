/** Reads one snapshot object from the target. */
import { RoostError } from '../core/errors.js'
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
