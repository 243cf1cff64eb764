/** The envelope of a node: a plain list of child references, then a body that only clients understand.
 *
 *  The server, GC, replication and scrub read nothing but the references (docs/formats/node-v1.md).
 *  Layout, little-endian: 0 magic "RN" 2 | 2 version u8 | 3 type u8 | 4 refCount u32 | 8 refs (kind u8, id 32) × n | body
 */
import { assert } from './assert.js'
import { RoostError } from './errors.js'
import { CHUNK_ID_BYTES, isChunkKind, type ChunkKind } from './ids.js'
import { LIMITS } from './limits.js'

export const NODE_HEADER_BYTES = 8
export const NODE_REF_BYTES = 1 + CHUNK_ID_BYTES
const MAGIC = 0x4e52 // "RN"
const VERSION = 1

/** What the body holds; the server treats it as an opaque number. */
export const NODE_TYPES = { directory: 1, directoryIndex: 2, list: 3, listIndex: 4, image: 5, imageIndex: 6 } as const
export type NodeType = (typeof NODE_TYPES)[keyof typeof NODE_TYPES]

export interface ChildRef { readonly kind: ChunkKind; readonly id: Uint8Array }
export interface Node { readonly type: number; readonly refs: NodeRefs; readonly body: Buffer }

/** References as packed bytes: a view into the node, nothing is copied or boxed until asked for. */
export class NodeRefs {
  constructor(readonly packed: Buffer) { assert(packed.byteLength % NODE_REF_BYTES === 0, 'whole references') }
  get count(): number { return this.packed.byteLength / NODE_REF_BYTES }
  kind(i: number): ChunkKind { return this.packed[i * NODE_REF_BYTES] as ChunkKind }
  /** A view of 32 bytes. */
  id(i: number): Buffer { return this.packed.subarray(i * NODE_REF_BYTES + 1, (i + 1) * NODE_REF_BYTES) }
  /** All ids, packed 32 bytes each (a copy). */
  ids(): Buffer {
    const ids = Buffer.allocUnsafe(this.count * CHUNK_ID_BYTES)
    for (let i = 0; i < this.count; i++)
      this.packed.copy(ids, i * CHUNK_ID_BYTES, i * NODE_REF_BYTES + 1, (i + 1) * NODE_REF_BYTES)
    return ids
  }
}

/** @throws AssertionError over LIMITS.nodeRefsMax or nodeBytesMax: writers must split before. */
export function encodeNode(type: NodeType, refs: readonly ChildRef[], body: Uint8Array): Buffer {
  assert(refs.length <= LIMITS.nodeRefsMax, 'a node has at most nodeRefsMax references')
  const bytes = Buffer.allocUnsafe(NODE_HEADER_BYTES + refs.length * NODE_REF_BYTES + body.byteLength)
  assert(bytes.byteLength <= LIMITS.nodeBytesMax, 'a node is at most nodeBytesMax')
  bytes.writeUInt16LE(MAGIC, 0)
  bytes[2] = VERSION
  bytes[3] = type
  bytes.writeUInt32LE(refs.length, 4)
  let at = NODE_HEADER_BYTES
  for (const ref of refs) {
    bytes[at] = ref.kind
    bytes.set(ref.id, at + 1)
    at += NODE_REF_BYTES
  }
  bytes.set(body, at)
  return bytes
}

/** A view over `bytes`. @throws {RoostError} TREE_MALFORMED naming the problem; never a guess. */
export function decodeNode(bytes: Buffer): Node {
  const refuse = (problem: string): RoostError => new RoostError('TREE_MALFORMED', `A node is malformed: ${problem}.`)
  if (bytes.byteLength < NODE_HEADER_BYTES || bytes.byteLength > LIMITS.nodeBytesMax) throw refuse('its length is out of bounds')
  if (bytes.readUInt16LE(0) !== MAGIC) throw refuse('it has no node header')
  if (bytes[2] !== VERSION) throw refuse(`its version is ${bytes[2]}`)
  const count = bytes.readUInt32LE(4)
  const end = NODE_HEADER_BYTES + count * NODE_REF_BYTES
  if (count > LIMITS.nodeRefsMax || end > bytes.byteLength) throw refuse('its references run past the end')
  for (let at = NODE_HEADER_BYTES; at < end; at += NODE_REF_BYTES)
    if (!isChunkKind(bytes[at]!)) throw refuse('a reference is of unknown kind')
  return { type: bytes[3]!, refs: new NodeRefs(bytes.subarray(NODE_HEADER_BYTES, end)), body: bytes.subarray(end) }
}
