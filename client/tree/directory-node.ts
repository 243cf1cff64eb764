/** Directory nodes: leaves that hold entries, and indices over leaves for large directories.
 *  Format: docs/formats/directory-v1.md. Decoders take hostile bytes: anything amiss is TREE_MALFORMED.
 */
import { assert } from '../../src/core/assert.js'
import { ByteReader, ByteWriter, type DecodeFailure } from '../../src/core/bytes.js'
import { RoostError } from '../../src/core/errors.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import { KiB, LIMITS, MiB } from '../../src/core/limits.js'
import { decodeNode, encodeNode, NODE_REF_BYTES, NODE_TYPES, type ChildRef } from '../../src/core/node-format.js'
import type { Entry } from './entry.js'
import {
  INLINE_EXTENTS_MAX, NAME_BYTES_MAX, readEntry, readEntryName, RefCursor, SYMLINK_BYTES_MAX, writeEntry, XATTR_BYTES_MAX,
} from './entry-codec.js'

export const LEAF_ENTRIES_MAX = 2_048
/** A leaf ends with the entry that reaches this; so the largest has this and one largest entry. */
export const LEAF_BYTES_MAX = 128 * KiB
export const INDEX_CHILDREN_MAX = 512
/** Levels of index above the leaves: 16^7 leaves at the very worst fan-out. */
export const INDEX_LEVEL_MAX = 12
const VERSION = 1
const ENTRY_BYTES_MAX = XATTR_BYTES_MAX + SYMLINK_BYTES_MAX + NAME_BYTES_MAX * 4 + INLINE_EXTENTS_MAX * (NODE_REF_BYTES + 8) + 128

assert(LEAF_BYTES_MAX + ENTRY_BYTES_MAX + 64 <= LIMITS.nodeBytesMax, 'the largest leaf is a node')
assert(INDEX_CHILDREN_MAX * (NAME_BYTES_MAX + 1 + NODE_REF_BYTES) <= 1 * MiB, 'the largest index is a node')
assert(LEAF_ENTRIES_MAX * INLINE_EXTENTS_MAX <= LIMITS.nodeRefsMax, 'a leaf of files has references enough')

export interface IndexChild { readonly firstName: Buffer; readonly id: ChunkId }
/** Level 0 = leaf. An index of level n lists nodes of level n − 1. */
export type DirectoryNode =
  | { readonly level: 0; readonly entries: Entry[] }
  | { readonly level: number; readonly children: IndexChild[] }

/** Gathers entries of one leaf, encoding as they come: memory is the node's bytes. */
export class LeafBuilder {
  #entries = new ByteWriter(1 * KiB)
  #refs: ChildRef[] = []
  #count = 0
  #tableBytes = 0
  readonly #owners = new Map<string, number>()
  readonly #devices = new Map<bigint, number>()
  #firstName: Buffer = Buffer.alloc(0)
  readonly #tables = {
    owner: (name: string): number => {
      if (name === '') return 0
      const known = this.#owners.get(name)
      if (known !== undefined) return known
      this.#owners.set(name, this.#owners.size + 1)
      this.#tableBytes += 1 + Buffer.byteLength(name)
      return this.#owners.size
    },
    device: (device: bigint): number => {
      const known = this.#devices.get(device)
      if (known !== undefined) return known
      this.#devices.set(device, this.#devices.size)
      this.#tableBytes += 8
      return this.#devices.size - 1
    },
  }

  get count(): number { return this.#count }
  /** The node's size so far, without a few bytes of header. */
  get bytes(): number { return this.#entries.length + this.#tableBytes + this.#refs.length * NODE_REF_BYTES }
  /** Empty before the first entry. */
  get firstName(): Buffer { return this.#firstName }

  add(entry: Entry): void {
    if (this.#count === 0) this.#firstName = entry.name
    writeEntry(this.#entries, entry, this.#refs, this.#tables)
    this.#count++
  }
  /** The encoded node; the builder is empty again. */
  finish(): Buffer {
    const body = new ByteWriter(this.#entries.length + this.#tableBytes + 32)
    body.u8(VERSION).varint(this.#owners.size)
    for (const owner of this.#owners.keys()) {
      const bytes = Buffer.from(owner)
      assert(bytes.byteLength <= NAME_BYTES_MAX, 'owner names are at most 255 bytes')
      body.u8(bytes.byteLength).bytes(bytes)
    }
    body.varint(this.#devices.size)
    for (const device of this.#devices.keys()) body.i64(BigInt.asIntN(64, device))
    body.varint(this.#count).bytes(this.#entries.finish())
    const node = encodeNode(NODE_TYPES.directory, this.#refs, body.finish())
    this.#entries = new ByteWriter(1 * KiB)
    this.#refs = []
    this.#count = 0
    this.#tableBytes = 0
    this.#owners.clear()
    this.#devices.clear()
    this.#firstName = Buffer.alloc(0)
    return node
  }
}

export function encodeDirectoryIndex(level: number, children: readonly IndexChild[]): Buffer {
  assert(level >= 1 && level <= INDEX_LEVEL_MAX, 'an index is above leaves')
  assert(children.length >= 1 && children.length <= INDEX_CHILDREN_MAX, 'an index has 1 to INDEX_CHILDREN_MAX children')
  const body = new ByteWriter(64 * children.length)
  body.u8(VERSION).varint(level).varint(children.length)
  for (const { firstName } of children) body.u8(firstName.byteLength).bytes(firstName)
  const refs = children.map(({ id }) => ({ kind: CHUNK_KINDS.node, id }))
  return encodeNode(NODE_TYPES.directoryIndex, refs, body.finish())
}

/** Views into `bytes`. @throws {RoostError} TREE_MALFORMED */
export function decodeDirectoryNode(bytes: Buffer): DirectoryNode {
  const node = decodeNode(bytes)
  const fail: DecodeFailure = (problem, offset) =>
    new RoostError('TREE_MALFORMED', `A directory node is malformed near byte ${offset} of its body: ${problem}.`)
  const input = new ByteReader(node.body, fail)
  const refs = new RefCursor(node.refs, fail)
  if (node.type !== NODE_TYPES.directory && node.type !== NODE_TYPES.directoryIndex)
    throw fail(`node type ${node.type} is no directory`, 0)
  const version = input.u8('version')
  if (version !== VERSION) throw fail(`version ${version} is unknown`, 0)
  const decoded = node.type === NODE_TYPES.directory ? decodeLeaf(input, refs) : decodeIndex(input, refs)
  input.expectEnd('the body')
  refs.expectEnd()
  return decoded
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function decodeLeaf(input: ByteReader, refs: RefCursor): DirectoryNode {
  const owners: string[] = []
  for (let count = input.varint('owner count', 2 * LEAF_ENTRIES_MAX); count > 0; count--) {
    const at = input.offset
    const bytes = input.bytes(input.u8('owner length'), 'owner')
    try { owners.push(utf8.decode(bytes)) } catch { throw input.fail('an owner name is not UTF-8', at) }
  }
  const devices: bigint[] = []
  for (let count = input.varint('device count', LEAF_ENTRIES_MAX); count > 0; count--)
    devices.push(BigInt.asUintN(64, input.i64('device')))
  const entries: Entry[] = []
  let last: Buffer | undefined
  for (let count = input.varint('entry count', LEAF_ENTRIES_MAX); count > 0; count--) {
    const at = input.offset
    const entry = readEntry(input, refs, { owners, devices })
    if (last !== undefined && last.compare(entry.name) >= 0) throw input.fail('names are not strictly ascending', at)
    last = entry.name
    entries.push(entry)
  }
  return { level: 0, entries }
}

function decodeIndex(input: ByteReader, refs: RefCursor): DirectoryNode {
  const level = input.varint('level', INDEX_LEVEL_MAX)
  if (level === 0) throw input.fail('an index of level 0', 1)
  const count = input.varint('child count', INDEX_CHILDREN_MAX)
  if (count === 0) throw input.fail('an index without children', 1)
  const children: IndexChild[] = []
  for (let i = 0; i < count; i++) {
    const at = input.offset
    const firstName = readEntryName(input)
    if (i > 0 && children[i - 1]!.firstName.compare(firstName) >= 0) throw input.fail('first names are not ascending', at)
    children.push({ firstName, id: refs.take(CHUNK_KINDS.node, 'a child') })
  }
  return { level, children }
}
