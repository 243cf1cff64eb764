/** Holds every entry of the index against its pack's row, page by page: an entry of a pack that is not there, or that the pack cannot have, leads reads
 *  and pushes astray.
 */
import { CHUNK_ID_BYTES, type PackNumber } from '../../core/ids.js'
import type { MaintenanceEvent } from '../../core/messages.js'
import type { Locations, PackRow } from '../../index/chunk-index.js'
import { ByteLru } from '../byte-lru.js'
import type { RepositoryParts } from '../repository-parts.js'

const ENTRIES_PER_PAGE = 4_096
const PROGRESS_EVERY_PAGES = 64
const ROW_BYTES = 256, ROWS_BYTES_MAX = 4 * 1024 * 1024
/** Told one by one; more are counted. */
const TOLD_MAX = 1_000

/** @returns how many are wrong and were not told. */
export async function* checkEntries(parts: RepositoryParts, mark: boolean, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, number, undefined> {
  const { index } = parts
  const rows = new ByteLru<number, PackRow>(ROWS_BYTES_MAX)
  const { chunks } = await index.totals()
  let told = 0, untold = 0, done = 0
  const isWrong = async (locations: Locations, i: number): Promise<boolean> => {
    const row = await index.getPack(locations.packNumbers[i] as PackNumber)
    if (row !== undefined) rows.set(row.packNumber, row, ROW_BYTES)
    return !fits(row, locations, i)
  }
  for (let after: Buffer | undefined, page = 0; ; page++) {
    signal.throwIfAborted()
    const { ids, locations } = await index.scanChunks(after, ENTRIES_PER_PAGE)
    if (locations.count === 0) return untold
    for (let i = 0; i < locations.count; i++) {
      // Most packs were seen a moment ago: no promise for each of a hundred million entries.
      if (fits(rows.get(locations.packNumbers[i]!), locations, i) || !await isWrong(locations, i)) continue
      const id = Buffer.from(ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))
      const now = await index.locate(id) // a collection may have moved it after the page was read
      if (now.packNumbers[0] === 0 || !await isWrong(now, 0)) continue
      if (mark) await index.markDamaged(now.packNumbers[0]!, id)
      if (told < TOLD_MAX) {
        told++
        yield { type: 'problem', code: 'INDEX_CORRUPT', message: 'The index places a chunk where no pack can have it; run `roost rebuild`.', chunk: id.toString('hex') }
      } else untold++
    }
    done += locations.count
    after = Buffer.from(ids.subarray((locations.count - 1) * CHUNK_ID_BYTES))
    if (page % PROGRESS_EVERY_PAGES === 0) yield { type: 'progress', phase: 'index', done, total: Math.max(done, chunks) }
  }
}

function fits(row: PackRow | undefined, locations: Locations, i: number): boolean {
  return row !== undefined && locations.kinds[i] === row.kind && locations.entryNumbers[i]! < row.entryCount &&
    locations.blockOffsets[i]! + locations.blockStoredBytes[i]! <= row.storedBytes
}
