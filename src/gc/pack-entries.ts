/** What a pack holds, as a collection needs it: from the pack's own trailer, or, when no copy can be read, from the index. */
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, type PackNumber } from '../core/ids.js'
import type { Locations, PackEntries, PackRow } from '../index/chunk-index.js'
import { isPackDamage, packSources } from '../repo/pack-sources.js'
import { readPackSelf } from '../repo/read-trailer.js'
import type { RepositoryParts } from '../repo/repository-parts.js'

const CHUNKS_PER_PAGE = 4_096

/** Undefined when the pack is gone, damaged, or missing everywhere. @throws {RoostError} STORE_UNAVAILABLE; STORE_REFUSED when a target that may
 *  have it cannot be asked */
export async function entriesOf(parts: RepositoryParts, number: PackNumber, signal: AbortSignal): Promise<PackEntries | undefined> {
  const { index, keys, repositoryId } = parts
  const row = await index.getPack(number)
  if (row === undefined) return undefined
  let blocked: unknown
  for (const source of packSources(row, parts)) {
    try {
      const { trailer, header } = await readPackSelf(row.storedBytes, (range) => source.read(range, signal), keys.packKey, repositoryId)
      if (trailer.entries.count === row.entryCount && header.kind === row.kind) return trailer.entries
    } catch (error) {
      signal.throwIfAborted()
      if (!isPackDamage(error)) blocked ??= error
    }
  }
  if (blocked !== undefined) throw blocked
  return undefined
}

/** Ids of the entries that live in the pack, each at its place; the rest is zero. Scans the whole index: for packs that nobody can read. */
export async function entriesByIndex(parts: RepositoryParts, row: PackRow, signal: AbortSignal): Promise<PackEntries> {
  const zeroes = (): Uint32Array => new Uint32Array(row.entryCount)
  const entries: PackEntries = { count: row.entryCount, idProofs: Buffer.alloc(row.entryCount * ID_PROOF_BYTES), rawBytes: zeroes(), blockOffsets: zeroes(),
    blockStoredBytes: zeroes(), offsetsInBlock: zeroes() }
  for (let after: Buffer | undefined; ;) {
    signal.throwIfAborted()
    const { ids, locations } = await parts.index.scanChunks(after, CHUNKS_PER_PAGE)
    if (locations.count === 0) return entries
    after = ids.subarray(ids.length - CHUNK_ID_BYTES)
    for (let i = 0; i < locations.count; i++)
      if (locations.packNumbers[i] === row.packNumber) ids.copy(entries.idProofs, locations.entryNumbers[i]! * ID_PROOF_BYTES, i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES)
  }
}

/** Where the entries of a pack lie, by entry number. */
export function locationsIn({ packNumber, kind }: Pick<PackRow, 'packNumber' | 'kind'>, entries: PackEntries): Locations {
  const { count, blockOffsets, blockStoredBytes, offsetsInBlock, rawBytes } = entries
  return { count, packNumbers: new Uint32Array(count).fill(packNumber), entryNumbers: Uint32Array.from({ length: count }, (_, entry) => entry),
    kinds: new Uint8Array(count).fill(kind), blockOffsets, blockStoredBytes, offsetsInBlock, rawBytes }
}
