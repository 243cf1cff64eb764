/** Streams chunks to a peer in groups: the blocks of the packs, compressed as they lie there when all of a block is wanted.
 *
 *  A session that sends may read every chunk by its id: replicating is a right to the whole repository. Its snapshot's root is pinned as inherited, so no
 *  collection takes what the peer is about to ask for.
 */
import { encodeGroup, encodeGroupsEnd, GROUP_CODECS, type ChunkGroup } from '../../core/chunk-groups.js'
import { RoostError } from '../../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, chunkKey, type ChunkKind } from '../../core/ids.js'
import { LIMITS } from '../../core/limits.js'
import type { Locations } from '../../index/chunk-index.js'
import { LOCATE_TURNS_MAX, stillMoving, type BlockForm } from '../pack-reader.js'
import type { RepositoryParts } from '../repository-parts.js'

/** What is sent of a block in part is compressed anew, at the level that costs little. */
const REGROUP_LEVEL = 2

/** Each distinct id once. @throws {RoostError} REQUEST_MALFORMED; LIMIT_EXCEEDED; STORE_UNAVAILABLE */
export async function* fetchGroups({ index, reader, pool }: RepositoryParts, ids: Buffer, signal: AbortSignal): AsyncGenerator<ChunkGroup, void, undefined> {
  const count = ids.byteLength / CHUNK_ID_BYTES
  if (!Number.isInteger(count)) throw new RoostError('REQUEST_MALFORMED', `A fetch names ${CHUNK_ID_BYTES}-byte ids.`)
  if (count > LIMITS.readIdsMax) throw new RoostError('LIMIT_EXCEEDED', `A fetch names at most ${LIMITS.readIdsMax} chunks.`, { limit: LIMITS.readIdsMax })
  const seen = new Set<string>()
  let rows = Array.from({ length: count }, (_, i) => i).filter((row) => {
    const key = chunkKey(ids, row * CHUNK_ID_BYTES)
    return !seen.has(key) && seen.add(key)
  })
  const absent: number[] = []
  for (let turn = 0; rows.length > 0; turn++) {
    if (turn === LOCATE_TURNS_MAX) throw stillMoving()
    const locations = await index.locate(ids)
    const form: BlockForm = ({ packKey, header }, offset, sealed, wanted) => pool.regroup(packKey, header, offset, sealed,
      wanted.map((row) => ({ offset: locations.offsetsInBlock[row]!, bytes: locations.rawBytes[row]! })), REGROUP_LEVEL)
    const gone: number[] = []
    absent.push(...rows.filter((row) => locations.packNumbers[row] === 0))
    for await (const block of reader.blocks(locations, rows, signal, form)) {
      signal.throwIfAborted()
      if (block.isGone === true) gone.push(...block.rows)
      else if (block.bytes === undefined) absent.push(...block.rows)
      else yield groupOf(ids, locations, block.rows, block.bytes)
    }
    rows = gone
  }
  for (let at = 0; at < absent.length; at += LIMITS.bodyFramesMax) {
    const part = absent.slice(at, at + LIMITS.bodyFramesMax)
    yield { kind: CHUNK_KINDS.data, codec: GROUP_CODECS.absent, ids: pick(ids, part), rawBytes: new Uint32Array(part.length), payload: Buffer.alloc(0) }
  }
}
/** The same on the wire, with its end. */
export async function* encodedGroups(groups: AsyncIterable<ChunkGroup>): AsyncGenerator<Buffer, void, undefined> {
  for await (const group of groups) yield* encodeGroup(group)
  yield encodeGroupsEnd()
}

function groupOf(ids: Buffer, locations: Locations, rows: readonly number[], bytes: Buffer): ChunkGroup {
  return { kind: locations.kinds[rows[0]!] as ChunkKind, codec: bytes[0] === GROUP_CODECS.zstd ? GROUP_CODECS.zstd : GROUP_CODECS.raw,
    ids: pick(ids, rows), rawBytes: Uint32Array.from(rows, (row) => locations.rawBytes[row]!), payload: bytes.subarray(1) }
}
const pick = (ids: Buffer, rows: readonly number[]): Buffer => Buffer.concat(rows.map((row) => ids.subarray(row * CHUNK_ID_BYTES, (row + 1) * CHUNK_ID_BYTES)))
