/** Walks a tree over references alone, each node once, in bounded memory: 1 bit per chunk plus a bounded stack.
 *
 *  Commit uses it over what a session pushed; check and rebuild over whole snapshots. The body of a node is never looked at.
 */
import { assert } from '../core/assert.js'
import { hasBit, setBit } from '../core/frames.js'
import { RoostError } from '../core/errors.js'
import { CHUNK_ID_BYTES } from '../core/ids.js'
import { LIMITS, MiB } from '../core/limits.js'
import { decodeNode, type NodeRefs } from '../core/node-format.js'
import type { ChunkIndex } from '../index/chunk-index.js'

/** Pending child ids over all levels: a hostile tree is refused, an honest one stays far below. */
const STACK_BYTES_MAX = 64 * MiB

/** Which chunks were seen, by place: a bitmap per pack. */
export class PlaceSet {
  readonly #packs = new Map<number, Uint8Array>()
  /** True when it was not in the set before. */
  add(pack: number, entry: number): boolean {
    let bitmap = this.#packs.get(pack)
    if (bitmap === undefined || entry >> 3 >= bitmap.length) {
      const larger = new Uint8Array(Math.max((entry >> 3) + 1, 64, (bitmap?.length ?? 0) * 2))
      if (bitmap !== undefined) larger.set(bitmap)
      this.#packs.set(pack, bitmap = larger)
    }
    if (hasBit(bitmap, entry)) return false
    setBit(bitmap, entry)
    return true
  }
  has(pack: number, entry: number): boolean {
    const bitmap = this.#packs.get(pack)
    return bitmap !== undefined && entry >> 3 < bitmap.length && hasBit(bitmap, entry)
  }
}

export interface TreeWalk {
  readonly index: ChunkIndex
  readonly seen: PlaceSet
  readNode(id: Buffer): Promise<Buffer>
  /** Judges the references of one node (throws to refuse); returns the packed ids (32 bytes each) of child nodes to descend into. */
  visit(refs: NodeRefs): Promise<Buffer>
  readonly signal: AbortSignal
}

/** @throws {RoostError} TREE_MALFORMED; LIMIT_EXCEEDED for a tree deeper or wider than any honest one; what readNode and visit throw. */
export async function walkTree(walk: TreeWalk, root: Buffer): Promise<void> {
  const stack: { ids: Buffer; next: number }[] = [{ ids: await unseen(walk, root), next: 0 }]
  let stackBytes = CHUNK_ID_BYTES
  while (stack.length > 0) {
    walk.signal.throwIfAborted()
    const level = stack.at(-1)!
    if (level.next === level.ids.byteLength) {
      stackBytes -= level.ids.byteLength
      stack.pop()
      continue
    }
    const id = level.ids.subarray(level.next, level.next + CHUNK_ID_BYTES)
    level.next += CHUNK_ID_BYTES
    const children = await unseen(walk, await walk.visit(decodeNode(await walk.readNode(id)).refs))
    stackBytes += children.byteLength
    if (stack.length >= LIMITS.treeDepthMax || stackBytes > STACK_BYTES_MAX)
      throw new RoostError('LIMIT_EXCEEDED', `A tree is at most ${LIMITS.treeDepthMax} levels deep.`, { limit: LIMITS.treeDepthMax })
    stack.push({ ids: children, next: 0 })
  }
}

/** Leaves out the nodes that were walked before; a tree that shares subtrees costs each of them once. */
async function unseen(walk: TreeWalk, ids: Buffer): Promise<Buffer> {
  if (ids.byteLength === 0) return ids
  const locations = await walk.index.locate(ids)
  const kept: Buffer[] = []
  for (let i = 0; i < locations.count; i++) {
    assert(locations.packNumbers[i] !== 0, 'visit refuses what is missing')
    if (walk.seen.add(locations.packNumbers[i]!, locations.entryNumbers[i]!)) kept.push(ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))
  }
  return Buffer.concat(kept)
}
