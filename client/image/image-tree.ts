/** Writing and reading the tree of an image, with one path of nodes in memory (image-node.ts has the format).
 *
 *  Positions are fixed: a changed chunk changes the nodes above it and no others; an image that grows or shrinks changes its last
 *  path, and gets or loses levels at the top. Writing over a parent, equal nodes are found at the same place of its tree.
 */
import { assert } from '../../src/core/assert.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import type { PlacedExtent } from '../tree/content-reader.js'
import type { ChunkSink, NodeSource } from '../upload/chunk-sink.js'
import {
  decodeImageNode, encodeImageNode, IMAGE_FAN_OUT, requireImageShape, rootLevel, slotBytes, slotCount, slotSpan, spanStart,
  type ImageChildren, type ImageContent, type ImageShape,
} from './image-node.js'

/** The parent's node at a place, where it was read: an equal node written there is inherited, not sent. */
export type FindParentNode = (level: number, firstSlot: number) => ChunkId | undefined

export class ImageTreeWriter {
  /** The open node of each level. */
  readonly #open: ({ readonly start: number; readonly children: (ChunkId | undefined)[] } | undefined)[] = []
  readonly #rootLevel: number
  #root: ChunkId | undefined
  /** The first slot that may still be added, and the first one past the lowest open node. */
  #next = 0
  #closeAt = Infinity

  constructor(readonly sink: ChunkSink, readonly shape: ImageShape, readonly findParentNode?: FindParentNode) {
    requireImageShape(shape)
    this.#rootLevel = rootLevel(shape)
  }

  /** The chunk of a slot; undefined for zeroes. Slots ascend; those left out are zeroes. Await the result where it is
   *  a promise. */
  add(slot: number, id: ChunkId | undefined): void | Promise<void> {
    assert(slot >= this.#next && slot < slotCount(this.shape), 'slots ascend and are within the image')
    this.#next = slot + 1
    if (slot >= this.#closeAt) return this.#closeBefore(slot).then(() => { this.#place(0, slot, id) })
    this.#place(0, slot, id)
  }
  /** A whole subtree as it is: the node of `level` that begins at `slot`, known to span the same bytes (spansSameBytes). */
  async inheritSubtree(level: number, slot: number, id: ChunkId): Promise<void> {
    assert(level >= 0 && level <= this.#rootLevel && slot === spanStart(level, slot), 'a subtree begins where one can')
    assert(slot >= this.#next && slot < slotCount(this.shape), 'subtrees ascend and are within the image')
    await this.#closeBefore(slot)
    this.#next = slot + slotSpan(level)
    this.#place(level + 1, slot, id)
  }
  async finish(): Promise<ImageContent> {
    await this.#closeBefore(Infinity)
    const { imageBytes, chunkBytes } = this.shape
    return { kind: 'image', bytes: imageBytes, chunkBytes, root: this.#root }
  }

  /** Puts a child into the open node of `level` that spans `slot`, opening it when need be. */
  #place(level: number, slot: number, id: ChunkId | undefined): void {
    if (id === undefined) return
    if (level > this.#rootLevel) { this.#root = id; return }
    const start = spanStart(level, slot)
    const node = this.#open[level] ??= { start, children: new Array<undefined>(IMAGE_FAN_OUT).fill(undefined) }
    assert(node.start === start, 'a node is closed before the next one of its level opens')
    node.children[(slot - start) / slotSpan(level - 1)] = id
    this.#closeAt = Math.min(this.#closeAt, start + slotSpan(level))
  }
  /** Writes the open nodes that end at or before `slot`, from the leaf up. */
  async #closeBefore(slot: number): Promise<void> {
    this.#closeAt = Infinity
    for (let level = 0; level <= this.#rootLevel; level++) {
      const node = this.#open[level]
      if (node === undefined) continue
      const end = node.start + slotSpan(level)
      if (end > slot) { this.#closeAt = Math.min(this.#closeAt, end); continue }
      this.#open[level] = undefined
      const bytes = encodeImageNode(level, this.shape.chunkBytes, node.children)
      this.#place(level + 1, node.start, await this.sink.put(bytes, CHUNK_KINDS.node, this.findParentNode?.(level, node.start)))
    }
  }
}

/** Leaves that are asked for ahead of the one in use. */
const READ_AHEAD_NODES = 8
/** Reading may be ahead of writing by some leaves. */
const LEFT_NODES = 4

interface ReadNode { readonly start: number; readonly id: ChunkId; readonly children: ImageChildren }

/** Reads forwards at full speed, elsewhere correctly. Memory: 1 + LEFT_NODES nodes a level, and twice READ_AHEAD_NODES at most.
 *  Concurrency: one call at a time. */
export class ImageTreeReader {
  readonly shape: ImageShape
  readonly #rootLevel: number
  /** The node last read of each level, and a few before: a writer asks for places that were left a little while ago. */
  readonly #current: (ReadNode | undefined)[] = []
  readonly #left: ReadNode[][] = []
  /** Leaves on their way, by first slot. */
  readonly #coming = new Map<number, Promise<Buffer>>()
  /** A stretch that is known to be all zeroes. */
  #zeroes = { from: 0, to: 0 }

  /** @throws {RoostError} TREE_MALFORMED for lengths out of bounds */
  constructor(readonly nodes: NodeSource, readonly content: ImageContent) {
    this.shape = { imageBytes: content.bytes, chunkBytes: content.chunkBytes }
    requireImageShape(this.shape)
    this.#rootLevel = rootLevel(this.shape)
  }

  /** The chunk of a slot; undefined for zeroes and past the end. At once where its leaf is the current one.
   *  @throws {RoostError} TREE_MALFORMED, or what `nodes` throws */
  chunkAt(slot: number): ChunkId | undefined | Promise<ChunkId | undefined> {
    const leaf = this.#current[0]
    if (leaf !== undefined && slot >= leaf.start && slot < leaf.start + IMAGE_FAN_OUT) return leaf.children[slot - leaf.start]
    if (slot >= this.#zeroes.from && slot < this.#zeroes.to) return undefined
    return this.#nodeAt(0, slot).then((node) => node?.children[slot - node.start])
  }
  /** The id of the node of `level` that begins at `slot`, read down to its parent only; undefined when it is all zeroes or not
   *  in this tree. @throws {RoostError} TREE_MALFORMED, or what `nodes` throws */
  async subtreeAt(level: number, slot: number): Promise<ChunkId | undefined> {
    assert(slot === spanStart(level, slot), 'a subtree begins where one can')
    if (level > this.#rootLevel || slot >= slotCount(this.shape)) return undefined
    if (level === this.#rootLevel) return this.content.root
    const parent = await this.#nodeAt(level + 1, slot)
    return parent?.children[(slot - parent.start) / slotSpan(level)]
  }
  /** The id of a node that was read lately, for ImageTreeWriter. */
  readonly findNode: FindParentNode = (level, firstSlot) =>
    [this.#current[level], ...this.#left[level] ?? []].find((node) => node?.start === firstSlot)?.id

  /** Chunks and holes over the bytes from `fromByte` to `toByte`, widened to whole slots, ascending, without gaps.
   *  @throws {RoostError} TREE_MALFORMED, or what `nodes` throws */
  async *extents(fromByte = 0, toByte = this.content.bytes): AsyncGenerator<PlacedExtent> {
    const { imageBytes, chunkBytes } = this.shape
    const slotEnd = Math.ceil(Math.min(toByte, imageBytes) / chunkBytes)
    const endOf = (slot: number): number => Math.min(slot * chunkBytes, imageBytes)
    let holeFrom: number | undefined
    for (let slot = Math.floor(Math.max(0, fromByte) / chunkBytes); slot < slotEnd;) {
      const node = await this.#nodeAt(0, slot)
      const leafEnd = Math.min(slotEnd, node === undefined ? this.#zeroes.to : node.start + IMAGE_FAN_OUT)
      if (node === undefined) { holeFrom ??= slot; slot = leafEnd; continue }
      for (; slot < leafEnd; slot++) {
        const id = node.children[slot - node.start]
        if (id === undefined) { holeFrom ??= slot; continue }
        if (holeFrom !== undefined) yield { offset: holeFrom * chunkBytes, bytes: (slot - holeFrom) * chunkBytes, id: undefined }
        holeFrom = undefined
        yield { offset: slot * chunkBytes, bytes: slotBytes(this.shape, slot), id }
      }
    }
    if (holeFrom !== undefined)
      yield { offset: holeFrom * chunkBytes, bytes: endOf(slotEnd) - holeFrom * chunkBytes, id: undefined }
  }

  /** The node of `level` over `slot`. Undefined when nothing is stored there: then #zeroes is a stretch around it. */
  async #nodeAt(level: number, slot: number): Promise<ReadNode | undefined> {
    const current = this.#current[level]
    const start = spanStart(level, slot)
    if (current?.start === start) return current
    const slots = this.content.root === undefined ? 0 : slotCount(this.shape)
    if (slot >= slots) {
      this.#zeroes = { from: slots, to: Infinity }
      return undefined
    }
    let id = this.content.root
    if (level < this.#rootLevel) {
      const parent = await this.#nodeAt(level + 1, slot)
      if (parent === undefined) return undefined // and #zeroes is set: the parent's whole stretch
      const place = (start - parent.start) / slotSpan(level)
      id = parent.children[place]
      if (id !== undefined && level === 0) this.#readAhead(parent, place)
    }
    if (id === undefined) {
      this.#zeroes = { from: start, to: start + slotSpan(level) }
      return undefined
    }
    const children = decodeImageNode(await this.#read(level, start, id), this.shape, level, start)
    if (current !== undefined) this.#left[level] = [current, ...this.#left[level] ?? []].slice(0, LEFT_NODES)
    return this.#current[level] = { start, id, children }
  }
  async #read(level: number, start: number, id: ChunkId): Promise<Buffer> {
    const coming = level === 0 ? this.#coming.get(start) : undefined
    if (coming !== undefined) {
      this.#coming.delete(start)
      return await coming
    }
    const [bytes] = await this.nodes.readNodes([id])
    return bytes!
  }
  /** Asks for this leaf and some that follow, in batches: when half of what was asked for is used up. */
  #readAhead(parent: ReadNode, place: number): void {
    const from = parent.start + place * IMAGE_FAN_OUT
    for (const start of this.#coming.keys()) if (start < from) this.#coming.delete(start)
    if (this.#coming.has(from) && this.#coming.size > READ_AHEAD_NODES / 2) return
    const wanted: { start: number; id: ChunkId }[] = []
    for (let i = place, ahead = 0; i < IMAGE_FAN_OUT && ahead <= READ_AHEAD_NODES; i++) {
      const id = parent.children[i]
      if (id === undefined) continue
      ahead++
      const start = parent.start + i * IMAGE_FAN_OUT
      if (!this.#coming.has(start)) wanted.push({ start, id })
    }
    if (wanted.length === 0) return
    const reply = this.nodes.readNodes(wanted.map(({ id }) => id))
    wanted.forEach(({ start }, i) => {
      const bytes = reply.then((all) => all[i]!)
      bytes.catch(() => undefined) // seen when it is used; until then nobody listens
      this.#coming.set(start, bytes)
    })
  }
}
