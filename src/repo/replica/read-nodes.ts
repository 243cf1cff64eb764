/** Nodes by id, in the order of the packs: for walks of this server's own, which act on their references. */
import { hasCode } from '../../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS } from '../../core/ids.js'
import { chunkInBlock } from '../pack-format.js'
import { LOCATE_TURNS_MAX, stillMoving } from '../pack-reader.js'
import type { RepositoryParts } from '../repository-parts.js'

export interface FoundNode { readonly index: number; readonly bytes: Buffer }

/** Each verified by its id. What is absent, damaged or no node is left out. Bytes are views of larger buffers.
 *  @throws {RoostError} STORE_UNAVAILABLE */
export async function* readNodes({ index, reader, keys }: RepositoryParts, ids: Buffer, signal: AbortSignal): AsyncGenerator<FoundNode, void, undefined> {
  let rows = Array.from({ length: ids.byteLength / CHUNK_ID_BYTES }, (_, i) => i)
  for (let turn = 0; rows.length > 0; turn++) {
    if (turn === LOCATE_TURNS_MAX) throw stillMoving()
    const locations = await index.locate(ids)
    const gone: number[] = []
    rows = rows.filter((row) => locations.packNumbers[row] !== 0 && locations.kinds[row] === CHUNK_KINDS.node)
    for await (const block of reader.blocks(locations, rows, signal)) {
      signal.throwIfAborted()
      if (block.isGone === true) gone.push(...block.rows)
      else if (block.bytes !== undefined) for (const row of block.rows) {
        const bytes = verified(block.bytes, { offset: locations.offsetsInBlock[row]!, rawBytes: locations.rawBytes[row]! }, keys.dedupKey,
          ids.subarray(row * CHUNK_ID_BYTES, (row + 1) * CHUNK_ID_BYTES))
        if (bytes !== undefined) yield { index: row, bytes }
      }
    }
    rows = gone
  }
}
function verified(block: Buffer, place: { offset: number; rawBytes: number }, dedupKey: Buffer, id: Buffer): Buffer | undefined {
  try {
    return chunkInBlock(block, place, dedupKey, CHUNK_KINDS.node, id)
  } catch (error) {
    if (!hasCode(error, 'CHUNK_CORRUPT')) throw error
    return undefined
  }
}
