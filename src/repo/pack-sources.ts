/** Where a pack can be read, best place first: the spool while it waits there, then its targets. */
import { open } from 'node:fs/promises'
import { hasCode, isErrno, RoostError } from '../core/errors.js'
import type { PackRow } from '../index/chunk-index.js'
import type { ByteRange } from '../store/object-store.js'
import { packKey } from './layout.js'
import { packCorrupt } from './pack-format.js'
import type { PackUploads } from './pack-uploads.js'
import type { Target } from './targets/target.js'
import type { TargetSet } from './targets/target-set.js'

export interface PackSource {
  readonly name: string
  /** Undefined: the spool. */
  readonly target: Target | undefined
  /** Exact bytes. @throws {RoostError} CHUNK_MISSING when the pack is not here; PACK_CORRUPT when it is too short; STORE_UNAVAILABLE; STORE_REFUSED */
  read(range: ByteRange, signal?: AbortSignal): Promise<Buffer>
}

/** `isHasty`: one attempt at each, because there are others to ask. */
export function packSources(row: PackRow, { uploads, targets }: { uploads: PackUploads; targets: TargetSet }, isHasty = false): PackSource[] {
  const sources = targets.readersOf(row).map((target) => targetSource(row, target, isHasty))
  const file = uploads.spoolFile(row.packNumber)
  return file === undefined ? sources : [{ name: 'the spool', target: undefined, read: (range) => readSpool(file, range) }, ...sources]
}
export function targetSource(row: PackRow, target: Target, isHasty = false): PackSource {
  return {
    name: target.name,
    target,
    read: async (range, signal) => {
      const call = { ...(signal === undefined ? {} : { signal }), ...(isHasty ? { attemptsMax: 1 } : {}) }
      const bytes = await target.use((store) => store.getRange(packKey(row.packId), range, call)).catch((error: unknown) => {
        // Every range asked for here ends within the pack as it was written: a shorter object is damage.
        if (hasCode(error, 'OBJECT_TOO_SHORT')) throw packCorrupt('it is shorter than when it was written', range.offset)
        throw error
      })
      if (bytes === undefined) throw new RoostError('CHUNK_MISSING', 'A pack that the index names is not on its target.', { pack: row.packId, target: target.name })
      return bytes
    },
  }
}

async function readSpool(file: string, range: ByteRange): Promise<Buffer> {
  let handle
  try {
    handle = await open(file, 'r')
  } catch (error) {
    // Uploaded meanwhile: its targets are asked next.
    if (isErrno(error, 'ENOENT')) throw new RoostError('CHUNK_MISSING', 'A pack left the spool.', {}, { cause: error })
    throw new RoostError('STORE_UNAVAILABLE', 'The server cannot read its spool.', {}, { cause: error })
  }
  try {
    const bytes = Buffer.allocUnsafe(range.bytes)
    const { bytesRead } = await handle.read(bytes, 0, range.bytes, range.offset)
    if (bytesRead !== range.bytes) throw packCorrupt('its spool file is short', range.offset)
    return bytes
  } finally {
    await handle.close()
  }
}

/** The pack itself is missing or wrong in one place; another may have it. */
export function isPackDamage(error: unknown): error is RoostError {
  return hasCode(error, 'PACK_CORRUPT') || hasCode(error, 'CHUNK_MISSING')
}
