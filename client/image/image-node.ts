/** Nodes of an image tree: fixed fan-out over fixed positions (docs/formats/image-tree-v1.md specifies them).
 *
 *  An image is a row of slots of `chunkBytes`; the last may be shorter. A node of level n spans 256^(n+1) slots, from a multiple
 *  of that number on; level 0 are leaves. The root is the one node of the lowest level that spans all slots. A slot of zeroes
 *  has no chunk, a node that would list nothing is not there, and so is its place in its parent.
 *  Body, little-endian: 0 version u8 = 1 | 1 level u8 | 2 chunkBytes u32 | 6 present 32: bit i%8 of byte i/8 = child i is there
 *  References: one for each bit set, in order; data chunks in a leaf, nodes above. Nothing in a node tells its place, so equal
 *  stretches of two images share nodes.
 */
import { assert } from '../../src/core/assert.js'
import { ByteReader } from '../../src/core/bytes.js'
import { RoostError } from '../../src/core/errors.js'
import { asChunkId, CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import { KiB, LIMITS } from '../../src/core/limits.js'
import { decodeNode, encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import type { Content } from '../tree/entry.js'
import { CONTENT_BYTES_MAX } from '../tree/entry-codec.js'

export type ImageContent = Extract<Content, { readonly kind: 'image' }>
export interface ImageShape { readonly imageBytes: number; readonly chunkBytes: number }

/** Half as many references rewritten as with 512 when one chunk of a stretch changes; twice the nodes, still few. */
export const IMAGE_FAN_OUT = 256
/** One page of every processor and sector of every disk. */
export const IMAGE_CHUNK_BYTES_MIN = 4 * KiB
const VERSION = 1
const PRESENT_BYTES = IMAGE_FAN_OUT / 8
const BODY_BYTES = 6 + PRESENT_BYTES

/** Children in order; absent ones are undefined. */
export type ImageChildren = readonly (ChunkId | undefined)[]

/** Powers of two from 4 KiB to the largest chunk. */
export function isImageChunkBytes(bytes: number): boolean {
  return Number.isInteger(Math.log2(bytes)) && bytes >= IMAGE_CHUNK_BYTES_MIN && bytes <= LIMITS.chunkBytesMax
}
/** @throws {RoostError} TREE_MALFORMED for a shape that no writer makes */
export function requireImageShape({ imageBytes, chunkBytes }: ImageShape): void {
  if (!isImageChunkBytes(chunkBytes)) throw malformed(`chunks of ${chunkBytes} bytes are out of bounds`)
  if (!Number.isSafeInteger(imageBytes) || imageBytes < 0 || imageBytes > CONTENT_BYTES_MAX)
    throw malformed(`its length of ${imageBytes} bytes is out of bounds`)
}
export const slotCount = ({ imageBytes, chunkBytes }: ImageShape): number => Math.ceil(imageBytes / chunkBytes)
/** The bytes of a slot: chunkBytes, less in the last one. */
export function slotBytes({ imageBytes, chunkBytes }: ImageShape, slot: number): number {
  return Math.min(chunkBytes, imageBytes - slot * chunkBytes)
}
/** Slots below a node of `level`; at level -1, the one slot of a chunk. Up to 2^40: no bit arithmetic. */
export const slotSpan = (level: number): number => IMAGE_FAN_OUT ** (level + 1)
/** The first slot of the node of `level` that spans `slot`. */
export const spanStart = (level: number, slot: number): number => slot - slot % slotSpan(level)
export function rootLevel(shape: ImageShape): number {
  const slots = slotCount(shape)
  let level = 0
  while (slotSpan(level) < slots) level++
  return level
}
/** True when the node of `level` at `slot` spans the same bytes in images of both lengths: a subtree may move over. */
export function spansSameBytes(level: number, slot: number, chunkBytes: number, oneBytes: number, otherBytes: number): boolean {
  return oneBytes === otherBytes || (slot + slotSpan(level)) * chunkBytes <= Math.min(oneBytes, otherBytes)
}

export function encodeImageNode(level: number, chunkBytes: number, children: ImageChildren): Buffer {
  assert(children.length <= IMAGE_FAN_OUT, 'a node has at most IMAGE_FAN_OUT children')
  const body = Buffer.alloc(BODY_BYTES)
  body[0] = VERSION
  body[1] = level
  body.writeUInt32LE(chunkBytes, 2)
  const kind = level === 0 ? CHUNK_KINDS.data : CHUNK_KINDS.node
  const refs: { kind: typeof kind; id: ChunkId }[] = []
  children.forEach((id, i) => {
    if (id === undefined) return
    body[6 + (i >> 3)]! |= 1 << (i & 7)
    refs.push({ kind, id })
  })
  assert(refs.length > 0, 'a node lists something')
  return encodeNode(level === 0 ? NODE_TYPES.image : NODE_TYPES.imageIndex, refs, body)
}

/** What the node of `level` at slot `start` of an image of `shape` lists: IMAGE_FAN_OUT places; ids are views into `bytes`.
 *  @throws {RoostError} TREE_MALFORMED when it is not exactly a node of that place */
export function decodeImageNode(bytes: Buffer, shape: ImageShape, level: number, start: number): ImageChildren {
  const node = decodeNode(bytes)
  const type = level === 0 ? NODE_TYPES.image : NODE_TYPES.imageIndex
  if (node.type !== type) throw malformed(`node type ${node.type} is out of place`)
  const input = new ByteReader(node.body, (problem, offset) => malformed(`${problem} (near byte ${offset} of its body)`))
  const version = input.u8('version')
  if (version !== VERSION) throw malformed(`version ${version} is unknown`)
  const actualLevel = input.u8('level')
  if (actualLevel !== level) throw malformed(`a node of level ${actualLevel} is where level ${level} belongs`)
  const chunkBytes = input.u32('chunk bytes')
  if (chunkBytes !== shape.chunkBytes)
    throw malformed(`a node over chunks of ${chunkBytes} bytes is among ${shape.chunkBytes}`)
  const present = input.bytes(PRESENT_BYTES, 'present')
  input.expectEnd('the body')

  const childSpan = slotSpan(level - 1)
  const placesUsed = Math.min(IMAGE_FAN_OUT, Math.ceil((slotCount(shape) - start) / childSpan))
  const kind = level === 0 ? CHUNK_KINDS.data : CHUNK_KINDS.node
  const children = new Array<ChunkId | undefined>(IMAGE_FAN_OUT).fill(undefined)
  let next = 0
  for (let i = 0; i < IMAGE_FAN_OUT; i++) {
    if ((present[i >> 3]! & (1 << (i & 7))) === 0) continue
    if (i >= placesUsed) throw malformed('it lists something past the end of the image')
    if (next >= node.refs.count) throw malformed('it has fewer references than children')
    if (node.refs.kind(next) !== kind) throw malformed('a reference is of the wrong kind')
    children[i] = asChunkId(node.refs.id(next++))
  }
  if (next === 0) throw malformed('it lists nothing')
  if (next !== node.refs.count) throw malformed('it has more references than children')
  return children
}

function malformed(problem: string): RoostError {
  return new RoostError('TREE_MALFORMED', `An image tree is malformed: ${problem}.`)
}
