/** Where the bytes at any place of an image or file are: its tree, looked up from the root, with what was looked up lately kept decoded.
 *
 *  Unlike the readers that go forwards (ImageTreeReader, listExtents), many may ask at the same time and in any order.
 *  Memory: NODES_KEPT decoded nodes of at most 256 (image) or LIST_ITEMS_MAX (list) places.
 */
import { RoostError } from '../../src/core/errors.js'
import { chunkKey, type ChunkId } from '../../src/core/ids.js'
import { LIMITS } from '../../src/core/limits.js'
import {
  decodeImageNode, requireImageShape, rootLevel, slotBytes, slotSpan, spanStart, type ImageChildren, type ImageContent, type ImageShape,
} from '../image/image-node.js'
import { decodeListNode, type PlacedExtent } from '../tree/content-reader.js'
import type { Content } from '../tree/entry.js'
import type { NodeSource } from '../upload/chunk-sink.js'

export interface Layout {
  readonly bytes: number
  /** No chunk is longer. */
  readonly chunkBytesMax: number
  /** Extents without gaps around `offset`, as many as one node tells: at least the one that holds it. `offset` is within the content.
   *  @throws {RoostError} TREE_MALFORMED, or what `nodes` throws */
  runAt(offset: number): Promise<readonly PlacedExtent[]>
}

/** @throws {RoostError} TREE_MALFORMED for lengths out of bounds */
export function openLayout(nodes: NodeSource, content: Content): Layout {
  switch (content.kind) {
    case 'image': return new ImageLayout(nodes, content)
    case 'list': return new ListLayout(nodes, content.bytes, content.root)
    case 'extents': {
      const run = placed(content.extents, 0)
      return { bytes: content.bytes, chunkBytesMax: LIMITS.chunkBytesMax, runAt: async () => run }
    }
  }
}
/** The place in `run` of the extent that holds `offset`; run.length where none does. */
export function findInRun(run: readonly PlacedExtent[], offset: number): number {
  let low = 0, high = run.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (run[middle]!.offset + run[middle]!.bytes <= offset) low = middle + 1
    else high = middle
  }
  return low
}

const NODES_KEPT = 96

class KeptNodes<T> {
  /** In order of use, the least recent first. */
  readonly #kept = new Map<string, Promise<T>>()
  get(key: string, load: () => Promise<T>): Promise<T> {
    let node = this.#kept.get(key)
    if (node === undefined) {
      node = load()
      node.catch(() => { if (this.#kept.get(key) === node) this.#kept.delete(key) }) // the next one who asks tries again
    }
    this.#kept.delete(key)
    this.#kept.set(key, node)
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= NODES_KEPT) break
      this.#kept.delete(oldest)
    }
    return node
  }
}

class ImageLayout implements Layout {
  readonly bytes: number
  readonly chunkBytesMax: number
  readonly #shape: ImageShape
  readonly #inner = new KeptNodes<ImageChildren>()
  readonly #leaves = new KeptNodes<readonly PlacedExtent[]>()

  constructor(readonly nodes: NodeSource, readonly content: ImageContent) {
    this.#shape = { imageBytes: content.bytes, chunkBytes: content.chunkBytes }
    requireImageShape(this.#shape)
    this.bytes = content.bytes
    this.chunkBytesMax = content.chunkBytes
  }
  async runAt(offset: number): Promise<readonly PlacedExtent[]> {
    const slot = Math.floor(offset / this.#shape.chunkBytes)
    let id = this.content.root
    for (let level = rootLevel(this.#shape); ; level--) {
      const start = spanStart(level, slot)
      if (id === undefined) return [this.#hole(start, start + slotSpan(level))]
      const nodeId = id
      const children = (): Promise<ImageChildren> => this.#read(nodeId, level, start)
      if (level === 0) return await this.#leaves.get(`${start}`, async () => this.#leafRun(start, await children()))
      const node = await this.#inner.get(`${level}:${start}`, children)
      id = node[Math.floor((slot - start) / slotSpan(level - 1))]
    }
  }
  async #read(id: ChunkId, level: number, start: number): Promise<ImageChildren> {
    const [bytes] = await this.nodes.readNodes([id])
    return decodeImageNode(bytes!, this.#shape, level, start)
  }
  #hole(fromSlot: number, toSlot: number): PlacedExtent {
    const { chunkBytes, imageBytes } = this.#shape
    const offset = fromSlot * chunkBytes
    return { offset, bytes: Math.min(toSlot * chunkBytes, imageBytes) - offset, id: undefined }
  }
  #leafRun(start: number, children: ImageChildren): PlacedExtent[] {
    const { chunkBytes, imageBytes } = this.#shape
    const run: PlacedExtent[] = []
    for (let slot = start; slot < start + children.length && slot * chunkBytes < imageBytes; slot++) {
      const id = children[slot - start]
      const before = run.at(-1)
      if (id === undefined && before !== undefined && before.id === undefined)
        run[run.length - 1] = { ...before, bytes: before.bytes + slotBytes(this.#shape, slot) }
      else run.push({ offset: slot * chunkBytes, bytes: slotBytes(this.#shape, slot), id })
    }
    return run
  }
}

type ListNode = ReturnType<typeof decodeListNode>

class ListLayout implements Layout {
  readonly chunkBytesMax = LIMITS.chunkBytesMax
  readonly #nodes = new KeptNodes<ListNode>()
  readonly #leaves = new KeptNodes<readonly PlacedExtent[]>()
  constructor(readonly nodes: NodeSource, readonly bytes: number, readonly root: ChunkId) {}

  async runAt(offset: number): Promise<readonly PlacedExtent[]> {
    let id = this.root, start = 0, bytes = this.bytes
    for (let level: number | undefined; ;) {
      const node = await this.#read(id, level, bytes)
      if (!('children' in node)) {
        const [from, extents] = [start, node.extents]
        return await this.#leaves.get(`${from}`, async () => placed(extents, from))
      }
      const child = node.children.find((one) => {
        if (offset < start + one.bytes) return true
        start += one.bytes
        return false
      })
      if (child === undefined) throw new RoostError('TREE_MALFORMED', 'A content list is malformed: a list spans fewer bytes than it should.')
      level = node.level - 1
      id = child.id
      bytes = child.bytes
    }
  }
  async #read(id: ChunkId, level: number | undefined, bytes: number): Promise<ListNode> {
    const node = await this.#nodes.get(chunkKey(id), async () => decodeListNode((await this.nodes.readNodes([id]))[0]!))
    const items = 'children' in node ? node.children : node.extents
    if (level !== undefined && node.level !== level) throw new RoostError('TREE_MALFORMED', 'A content list is malformed: a child is of the wrong level.')
    if (items.reduce((sum, item) => sum + item.bytes, 0) !== bytes)
      throw new RoostError('TREE_MALFORMED', 'A content list is malformed: a list spans other bytes than it should.')
    return node
  }
}

function placed(extents: readonly { readonly bytes: number; readonly id: ChunkId | undefined }[], from: number): PlacedExtent[] {
  let offset = from
  return extents.map(({ bytes, id }) => {
    const at = offset
    offset += bytes
    return { offset: at, bytes, id }
  })
}
