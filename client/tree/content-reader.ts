/** The extents of a file in order, whatever their number: list nodes are read a few ahead and checked against their claims. */
import { assert } from '../../src/core/assert.js'
import { ByteReader, type DecodeFailure } from '../../src/core/bytes.js'
import { RoostError } from '../../src/core/errors.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import { decodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import type { NodeSource } from '../upload/chunk-sink.js'
import { LIST_ITEMS_MAX, LIST_LEVEL_MAX, LIST_VERSION } from './content-writer.js'
import type { Content, Extent } from './entry.js'
import { CONTENT_BYTES_MAX, readExtent, RefCursor } from './entry-codec.js'

export interface PlacedExtent { readonly offset: number; readonly bytes: number; readonly id: ChunkId | undefined }

interface ListChild { readonly id: ChunkId; readonly bytes: number }
type ListNode =
  | { readonly level: 0; readonly extents: Extent[] }
  | { readonly level: number; readonly children: ListChild[] }

/** Nodes of one request. */
const PREFETCH_NODES = 4

/** Chunks and holes from offset 0 to content.bytes without gaps. Not for images: ImageTreeReader reads those.
 *  Memory: PREFETCH_NODES × 2 nodes a level. @throws {RoostError} TREE_MALFORMED, or what `nodes` throws */
export async function* listExtents(nodes: NodeSource, content: Content): AsyncGenerator<PlacedExtent> {
  assert(content.kind !== 'image', 'images are read by ImageTreeReader')
  let offset = 0
  if (content.kind === 'extents') {
    for (const { bytes, id } of content.extents) {
      yield { offset, bytes, id }
      offset += bytes
    }
    return
  }
  const [root] = await nodes.readNodes([content.root])
  for await (const extents of walk(nodes, decodeListNode(root!), undefined, content.bytes)) {
    for (const { bytes, id } of extents) {
      yield { offset, bytes, id }
      offset += bytes
    }
  }
}

/** `level` undefined: any (the root). `bytes`: what its parent says it spans. */
async function* walk(nodes: NodeSource, node: ListNode, level: number | undefined, bytes: number): AsyncGenerator<Extent[]> {
  if (level !== undefined && node.level !== level) throw malformed('a list index has a child of the wrong level')
  const items = 'children' in node ? node.children : node.extents
  if (items.reduce((sum, item) => sum + item.bytes, 0) !== bytes) throw malformed('a list spans other bytes than it should')
  if (!('children' in node)) { yield node.extents; return }
  const { children } = node
  const request = async (at: number): Promise<Buffer[]> =>
    at >= children.length ? [] : await nodes.readNodes(children.slice(at, at + PREFETCH_NODES).map(({ id }) => id))
  let coming = request(0)
  for (let at = 0; at < children.length; at += PREFETCH_NODES) {
    const batch = await coming
    coming = request(at + PREFETCH_NODES)
    coming.catch(() => undefined) // seen by the next round's await
    for (let i = 0; i < batch.length; i++)
      yield* walk(nodes, decodeListNode(batch[i]!), node.level - 1, children[at + i]!.bytes)
  }
}

/** @throws {RoostError} TREE_MALFORMED */
export function decodeListNode(bytes: Buffer): ListNode {
  const node = decodeNode(bytes)
  const fail: DecodeFailure = (problem, offset) => malformed(`${problem} (near byte ${offset} of its body)`)
  const input = new ByteReader(node.body, fail)
  const refs = new RefCursor(node.refs, fail)
  if (node.type !== NODE_TYPES.list && node.type !== NODE_TYPES.listIndex) throw fail(`node type ${node.type} is no list`, 0)
  const version = input.u8('version')
  if (version !== LIST_VERSION) throw fail(`version ${version} is unknown`, 0)
  const decoded = node.type === NODE_TYPES.list ? decodeList(input, refs) : decodeIndex(input, refs)
  input.expectEnd('the body')
  refs.expectEnd()
  return decoded
}
function decodeList(input: ByteReader, refs: RefCursor): ListNode {
  const extents: Extent[] = []
  for (let count = readCount(input); count > 0; count--) extents.push(readExtent(input, refs))
  return { level: 0, extents }
}
function decodeIndex(input: ByteReader, refs: RefCursor): ListNode {
  const level = input.u8('level')
  if (level === 0 || level > LIST_LEVEL_MAX) throw input.fail(`level ${level} is out of bounds`, 1)
  const children: ListChild[] = []
  for (let count = readCount(input); count > 0; count--) {
    const bytes = input.varint('child bytes', CONTENT_BYTES_MAX)
    children.push({ bytes, id: refs.take(CHUNK_KINDS.node, 'a child') })
  }
  return { level, children }
}
function readCount(input: ByteReader): number {
  const count = input.varint('count', LIST_ITEMS_MAX)
  if (count === 0) throw input.fail('it lists nothing', 1)
  return count
}
function malformed(problem: string): RoostError {
  return new RoostError('TREE_MALFORMED', `A content list is malformed: ${problem}.`)
}
