/** Walks all snapshot rows, newest first, few at a time: a record may have a megabyte. */
import type { ChunkIndex, SnapshotRow } from '../index/chunk-index.js'

const ROWS_AT_ONCE = 8

export async function* everySnapshot(index: ChunkIndex): AsyncGenerator<SnapshotRow, void, undefined> {
  for (let before: number | undefined; ;) {
    const rows = await index.listSnapshots({ limit: ROWS_AT_ONCE, ...(before === undefined ? {} : { before }) })
    if (rows.length === 0) return
    before = rows.at(-1)!.sequence
    yield* rows
  }
}
