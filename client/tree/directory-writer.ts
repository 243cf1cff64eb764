/** Streams entries into directory nodes: memory is one open node a level, whatever the directory's size.
 *
 *  Leaves end where the hash of a name says so, not at fixed counts: an insertion or removal then changes one leaf (and its
 *  indices), and the rest keep their ids. The same holds for indices, by the first names of their children.
 */
import { assert } from '../../src/core/assert.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import type { ChunkSink } from '../upload/chunk-sink.js'
import {
  encodeDirectoryIndex, INDEX_CHILDREN_MAX, LEAF_BYTES_MAX, LEAF_ENTRIES_MAX, LeafBuilder, type IndexChild,
} from './directory-node.js'
import type { Entry } from './entry.js'

/** Half of a leaf's mean 256 entries is the minimum, the other half is up to the hash. */
const LEAF_ENTRIES_MIN = 128
const LEAF_CUT_MASK = 0x7f
const INDEX_CHILDREN_MIN = 64
const INDEX_CUT_MASK = 0x3f

/** Nodes of the directory's former state by place: where an equal node is written again, it is inherited, not sent. */
export type NodesByPlace = ReadonlyMap<string, ChunkId>
/** The key of NodesByPlace: a node's level and the first name below it. */
export const nodePlace = (level: number, firstName: Buffer): string => `${level}/${firstName.toString('latin1')}`

export class DirectoryWriter {
  readonly #leaf = new LeafBuilder()
  /** Children that wait for an index node of level i + 1. */
  readonly #pending: IndexChild[][] = []
  #lastName: Buffer | undefined

  /** `inherited` may grow while writing. */
  constructor(readonly sink: ChunkSink, readonly inherited?: NodesByPlace) {}

  /** Names must ascend, by bytes. Await the result where it is a promise (back-pressure). */
  add(entry: Entry): void | Promise<void> {
    assert(this.#lastName === undefined || this.#lastName.compare(entry.name) < 0, 'entries come in ascending order of names')
    this.#lastName = entry.name
    this.#leaf.add(entry)
    const { count, bytes } = this.#leaf
    if (count >= LEAF_ENTRIES_MAX || bytes >= LEAF_BYTES_MAX ||
      (count >= LEAF_ENTRIES_MIN && (nameHash(entry.name) & LEAF_CUT_MASK) === 0)) return this.#flushLeaf()
  }

  /** The directory's root: its only leaf, or the topmost index. */
  async finish(): Promise<ChunkId> {
    if (this.#pending.length === 0) {
      const { firstName } = this.#leaf
      return await this.#put(0, firstName, this.#leaf.finish())
    }
    if (this.#leaf.count > 0) await this.#flushLeaf()
    for (let level = 1; ; level++) {
      const children = this.#pending[level - 1]!
      const isTop = level === this.#pending.length
      if (isTop && children.length === 1) return children[0]!.id
      if (children.length > 0) await this.#flushIndex(level)
    }
  }

  async #flushLeaf(): Promise<void> {
    const { firstName } = this.#leaf
    await this.#addChild(1, { firstName, id: await this.#put(0, firstName, this.#leaf.finish()) })
  }
  /** To the index of `level`, which is written when full; the new child opens the next one. */
  async #addChild(level: number, child: IndexChild): Promise<void> {
    const children = (this.#pending[level - 1] ??= [])
    const isCut = children.length >= INDEX_CHILDREN_MIN && (nameHash(child.firstName) >>> 16 & INDEX_CUT_MASK) === 0
    if (isCut || children.length >= INDEX_CHILDREN_MAX) await this.#flushIndex(level)
    this.#pending[level - 1]!.push(child)
  }
  async #flushIndex(level: number): Promise<void> {
    const children = this.#pending[level - 1]!
    this.#pending[level - 1] = []
    const { firstName } = children[0]!
    await this.#addChild(level + 1, { firstName, id: await this.#put(level, firstName, encodeDirectoryIndex(level, children)) })
  }
  #put(level: number, firstName: Buffer, node: Buffer): ChunkId | Promise<ChunkId> {
    return this.sink.put(node, CHUNK_KINDS.node, this.inherited?.get(nodePlace(level, firstName)))
  }
}

/** FNV-1a with a final mix, for evenly spread low bits. Part of no format: readers do not care where nodes end. */
function nameHash(name: Buffer): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < name.byteLength; i++) hash = Math.imul(hash ^ name[i]!, 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}
