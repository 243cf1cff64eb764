/** Which chunks does a snapshot lack? Walks its tree to the end, whatever is missing on the way, over references alone.
 *
 *  Subtrees that were found whole are not walked again, by this snapshot or the next; those that lack something are, since every snapshot that has
 *  them is to be told. Memory: two bits a chunk, a stack, and a bounded number of ids.
 */
import { RoostError } from '../../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, chunkKey, type ChunkKey } from '../../core/ids.js'
import { LIMITS, MiB } from '../../core/limits.js'
import { decodeNode } from '../../core/node-format.js'
import type { ChunkIndex } from '../../index/chunk-index.js'
import { PlaceSet } from '../verify-tree.js'

const STACK_BYTES_MAX = 64 * MiB
/** Ids kept of one snapshot; what it lacks beyond them is counted. */
const IDS_MAX = 100_000

export interface DamageWalk {
  readonly index: Pick<ChunkIndex, 'locate'>
  /** Nodes whose whole subtree is there. Grows. */
  readonly whole: PlaceSet
  /** Undefined: it is not readable anywhere. */
  readNode(id: Buffer): Promise<Buffer | undefined>
  onNode(): void
  readonly signal: AbortSignal
}
export interface Lacking {
  /** Distinct, up to a bound. */
  readonly ids: readonly Buffer[]
  /** References to what is missing. */
  readonly count: number
  /** Of these, chunks that the index has though they cannot be read. */
  readonly unreadable: number
}
interface Level { readonly ids: Buffer; next: number; /** Place of the node being walked. */ at: { pack: number; entry: number } | undefined; isWhole: boolean }

/** @throws {RoostError} TREE_MALFORMED; LIMIT_EXCEEDED; what readNode throws */
export async function walkForDamage(walk: DamageWalk, root: Buffer): Promise<Lacking> {
  const seen = new PlaceSet()
  const ids = new Map<ChunkKey, Buffer>()
  let count = 0, unreadable = 0
  const lack = (id: Buffer): void => {
    count++
    if (ids.size < IDS_MAX) ids.set(chunkKey(id), Buffer.from(id))
  }
  const top: Level = { ids: root, next: 0, at: undefined, isWhole: true }
  const stack = [top]
  let stackBytes = CHUNK_ID_BYTES
  while (stack.length > 0) {
    walk.signal.throwIfAborted()
    const level = stack.at(-1)!
    if (level.next * CHUNK_ID_BYTES === level.ids.byteLength) {
      stack.pop()
      stackBytes -= level.ids.byteLength
      if (level.at === undefined) continue
      if (level.isWhole) walk.whole.add(level.at.pack, level.at.entry)
      else stack.at(-1)!.isWhole = false
      continue
    }
    const id = level.ids.subarray(level.next * CHUNK_ID_BYTES, (level.next + 1) * CHUNK_ID_BYTES)
    level.next++
    const place = await walk.index.locate(id)
    const at = { pack: place.packNumbers[0]!, entry: place.entryNumbers[0]! }
    if (at.pack === 0) { level.isWhole = false; lack(id); continue }
    if (walk.whole.has(at.pack, at.entry)) continue
    if (!seen.add(at.pack, at.entry)) { level.isWhole = false; continue } // walked for this snapshot, and not whole
    walk.onNode()
    const bytes = await walk.readNode(id)
    if (bytes === undefined) { level.isWhole = false; unreadable++; lack(id); continue }
    const refs = decodeNode(bytes).refs
    const found = await walk.index.locate(refs.ids())
    const children: Buffer[] = []
    let isWhole = true
    for (let i = 0; i < refs.count; i++) {
      if (found.packNumbers[i] === 0 || found.kinds[i] !== refs.kind(i)) { isWhole = false; lack(refs.id(i)) }
      else if (refs.kind(i) === CHUNK_KINDS.node && !walk.whole.has(found.packNumbers[i]!, found.entryNumbers[i]!)) children.push(refs.id(i))
    }
    const below = Buffer.concat(children)
    stackBytes += below.byteLength
    if (stack.length >= LIMITS.treeDepthMax || stackBytes > STACK_BYTES_MAX)
      throw new RoostError('LIMIT_EXCEEDED', `A tree is at most ${LIMITS.treeDepthMax} levels deep.`, { limit: LIMITS.treeDepthMax })
    stack.push({ ids: below, next: 0, at, isWhole })
  }
  return { ids: [...ids.values()], count, unreadable }
}
