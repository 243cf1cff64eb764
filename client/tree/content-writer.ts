/** Gathers a file's extents: few go into the directory, many into a tree of list nodes (docs/formats/content-list-v1.md).
 *
 *  List nodes end where a chunk's id says so, not at fixed counts: bytes inserted into a large file shift every later chunk
 *  by some places, and with cuts by content the list nodes after the next cut stay the same. Ids are keyed hashes, so their
 *  bits are random and nobody can choose them.
 */
import { assert } from '../../src/core/assert.js'
import { ByteWriter } from '../../src/core/bytes.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import { encodeNode, NODE_TYPES, type ChildRef } from '../../src/core/node-format.js'
import type { ChunkSink } from '../upload/chunk-sink.js'
import type { Content, Extent } from './entry.js'
import { INLINE_EXTENTS_MAX, writeExtent } from './entry-codec.js'

/** Extents of a list node, or children of an index. */
export const LIST_ITEMS_MAX = 1_024
export const LIST_VERSION = 1
/** Levels of index: at LIST_ITEMS_MIN children each, far beyond any file. */
export const LIST_LEVEL_MAX = 8
const LIST_ITEMS_MIN = 256
/** Mean of 256 items past the minimum. */
const LIST_CUT_MASK = 0xff

interface ListChild { readonly id: ChunkId; readonly bytes: number }

export class ListContentWriter {
  #extents: Extent[] = []
  /** Adjoining holes are one. */
  #holeBytes = 0
  #bytes = 0
  readonly #pending: ListChild[][] = []

  constructor(readonly sink: ChunkSink) {}
  get bytes(): number { return this.#bytes }

  /** The next `bytes` of the file: a chunk, or a hole where id is undefined. Await the result where it is a promise. */
  add(id: ChunkId | undefined, bytes: number): void | Promise<void> {
    if (bytes === 0) return
    this.#bytes += bytes
    if (id === undefined) { this.#holeBytes += bytes; return }
    if (this.#holeBytes > 0) this.#endHole()
    this.#extents.push({ id, bytes })
    // An open list of at most INLINE_EXTENTS_MAX may still become inline content: it is never cut that early.
    const isCut = this.#extents.length >= LIST_ITEMS_MIN && cutsAfter(id)
    if (isCut || this.#extents.length >= LIST_ITEMS_MAX - 1) return this.#flushList()
  }
  async finish(): Promise<Content> {
    this.#endHole()
    if (this.#pending.length === 0 && this.#extents.length <= INLINE_EXTENTS_MAX)
      return { kind: 'extents', bytes: this.#bytes, extents: this.#extents }
    if (this.#extents.length > 0) await this.#flushList()
    for (let level = 1; ; level++) {
      const children = this.#pending[level - 1]!
      if (level === this.#pending.length && children.length === 1)
        return { kind: 'list', bytes: this.#bytes, root: children[0]!.id }
      if (children.length > 0) await this.#flushIndex(level)
    }
  }

  /** Before a chunk, so a list of LIST_ITEMS_MAX − 2 has room for both. */
  #endHole(): void {
    if (this.#holeBytes === 0) return
    this.#extents.push({ id: undefined, bytes: this.#holeBytes })
    this.#holeBytes = 0
  }
  async #flushList(): Promise<void> {
    const extents = this.#extents
    this.#extents = []
    const refs: ChildRef[] = []
    const body = new ByteWriter(4 * extents.length + 16)
    body.u8(LIST_VERSION).varint(extents.length)
    for (const extent of extents) writeExtent(body, extent, refs)
    const id = await this.sink.put(encodeNode(NODE_TYPES.list, refs, body.finish()), CHUNK_KINDS.node)
    await this.#addChild(1, { id, bytes: extents.reduce((sum, extent) => sum + extent.bytes, 0) })
  }
  async #addChild(level: number, child: ListChild): Promise<void> {
    const children = (this.#pending[level - 1] ??= [])
    children.push(child)
    if (children.length >= LIST_ITEMS_MAX || (children.length >= LIST_ITEMS_MIN && cutsAfter(child.id)))
      await this.#flushIndex(level)
  }
  async #flushIndex(level: number): Promise<void> {
    assert(level <= LIST_LEVEL_MAX, 'a list has few levels')
    const children = this.#pending[level - 1]!
    this.#pending[level - 1] = []
    const body = new ByteWriter(8 * children.length + 16)
    body.u8(LIST_VERSION).u8(level).varint(children.length)
    for (const { bytes } of children) body.varint(bytes)
    const refs = children.map(({ id }) => ({ kind: CHUNK_KINDS.node, id }))
    const id = await this.sink.put(encodeNode(NODE_TYPES.listIndex, refs, body.finish()), CHUNK_KINDS.node)
    await this.#addChild(level + 1, { id, bytes: children.reduce((sum, child) => sum + child.bytes, 0) })
  }
}

const cutsAfter = (id: ChunkId): boolean => (id[0]! & LIST_CUT_MASK) === 0
