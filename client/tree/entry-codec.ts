/** One directory entry as bytes (docs/formats/directory-v1.md §3).
 *
 *  Ids are not in these bytes: each stored extent, list or image root and subtree takes the next reference of its node, so
 *  that the server sees every reference and the body names none. Owner names and device numbers repeat, and go by table.
 */
import { assert, assertNever } from '../../src/core/assert.js'
import type { ByteReader, ByteWriter } from '../../src/core/bytes.js'
import { asChunkId, CHUNK_KINDS, type ChunkId, type ChunkKind } from '../../src/core/ids.js'
import { LIMITS, MiB } from '../../src/core/limits.js'
import type { ChildRef, NodeRefs } from '../../src/core/node-format.js'
import { ENTRY_TYPES, type Content, type Entry, type EntryType, type Extent, type Xattr } from './entry.js'

export const NAME_BYTES_MAX = 255
/** Linux allows 4 095; room for others. */
export const SYMLINK_BYTES_MAX = 65_535
/** All xattrs of one entry, names and values. Keeps the largest leaf below LIMITS.nodeBytesMax. */
export const XATTR_BYTES_MAX = 1 * MiB
/** A file with more extents than this has a list of its own (content-list-v1.md). */
export const INLINE_EXTENTS_MAX = 16
/** 4 PiB − 1: twice this is still an exact number. Larger (sparse) files are refused. */
export const CONTENT_BYTES_MAX = 2 ** 52 - 1
/** Seconds from 1970, either way; sources clamp to it. */
export const TIME_SECONDS_MAX = 2 ** 51

const CONTENT_KINDS = { extents: 1, list: 2, image: 3 } as const
const NS_PER_S = 1_000_000_000n

/** Values that repeat within a node, each stored once; 0 stands for "none" where a table has optional values. */
export interface EntryTables { owner(name: string): number; device(number: bigint): number }
export interface DecodedTables { readonly owners: readonly string[]; readonly devices: readonly bigint[] }

/** Hands out a node's references in order. */
export class RefCursor {
  #next = 0
  constructor(readonly refs: NodeRefs, readonly fail: ByteReader['fail']) {}
  /** A view into the node. */
  take(kind: ChunkKind, field: string): ChunkId {
    const at = this.#next++
    if (at >= this.refs.count) throw this.fail(`${field} has no reference left`, 0)
    if (this.refs.kind(at) !== kind) throw this.fail(`${field} refers to a chunk of the wrong kind`, 0)
    return asChunkId(this.refs.id(at))
  }
  expectEnd(): void {
    if (this.#next !== this.refs.count) throw this.fail('it has references that nothing uses', 0)
  }
}

/** True for what may name an entry: 1 to 255 bytes without '/' and NUL, neither "." nor "..". */
export function isEntryName(name: Buffer): boolean {
  const bytes = name.byteLength
  if (bytes === 0 || bytes > NAME_BYTES_MAX) return false
  if (name[0] === 0x2e && (bytes === 1 || (bytes === 2 && name[1] === 0x2e))) return false
  for (let i = 0; i < bytes; i++) if (name[i] === 0x2f || name[i] === 0) return false
  return true
}

/** @throws AssertionError on an entry that no source makes. */
export function writeEntry(out: ByteWriter, entry: Entry, refs: ChildRef[], tables: EntryTables): void {
  assert(isEntryName(entry.name), 'an entry has a valid name')
  out.u8(entry.name.byteLength).bytes(entry.name).u8(entry.type).u16(entry.mode)
  out.varint(entry.uid).varint(entry.gid).varint(tables.owner(entry.user)).varint(tables.owner(entry.group))
  writeTime(out, entry.mtimeNs)
  writeTime(out, entry.ctimeNs)
  out.i64(BigInt.asIntN(64, entry.inode)).varint(tables.device(entry.device)).varint(entry.linkCount)
  writeXattrs(out, entry.xattrs)
  switch (entry.type) {
    case ENTRY_TYPES.file:
    case ENTRY_TYPES.image:
      assert(entry.content !== undefined, 'a file has content')
      writeContent(out, entry.content, refs)
      break
    case ENTRY_TYPES.directory:
      assert(entry.subtree !== undefined, 'a directory has a subtree')
      refs.push({ kind: CHUNK_KINDS.node, id: entry.subtree })
      break
    case ENTRY_TYPES.symlink:
      assert(entry.symlinkTarget !== undefined && entry.symlinkTarget.byteLength <= SYMLINK_BYTES_MAX, 'a symlink has a target')
      out.varint(entry.symlinkTarget.byteLength).bytes(entry.symlinkTarget)
      break
    case ENTRY_TYPES.characterDevice:
    case ENTRY_TYPES.blockDevice:
      assert(entry.deviceMajor !== undefined && entry.deviceMinor !== undefined, 'a device has its numbers')
      out.varint(entry.deviceMajor).varint(entry.deviceMinor)
      break
    case ENTRY_TYPES.fifo:
    case ENTRY_TYPES.socket: break
    default: assertNever(entry.type)
  }
}

/** Byte views of the result point into the node. */
export function readEntry(input: ByteReader, refs: RefCursor, tables: DecodedTables): Entry {
  const name = readEntryName(input)
  const typeAt = input.offset
  const type = input.u8('type')
  if (!isEntryType(type)) throw input.fail(`type ${type} is unknown`, typeAt)
  const mode = input.u16('mode')
  if (mode > 0o7777) throw input.fail(`mode is ${mode}`, typeAt)
  const common = {
    name, type, mode,
    uid: input.varint('uid', 0xffff_ffff), gid: input.varint('gid', 0xffff_ffff),
    user: readOwner(input, tables), group: readOwner(input, tables),
    mtimeNs: readTime(input, 'mtime'), ctimeNs: readTime(input, 'ctime'),
    inode: BigInt.asUintN(64, input.i64('inode')), device: readDevice(input, tables),
    linkCount: input.varint('linkCount', 0xffff_ffff), xattrs: readXattrs(input),
  }
  switch (type) {
    case ENTRY_TYPES.file:
    case ENTRY_TYPES.image: return { ...common, content: readContent(input, refs) }
    case ENTRY_TYPES.directory: return { ...common, subtree: refs.take(CHUNK_KINDS.node, 'a subtree') }
    case ENTRY_TYPES.symlink: return { ...common, symlinkTarget: readSymlinkTarget(input) }
    case ENTRY_TYPES.characterDevice:
    case ENTRY_TYPES.blockDevice:
      return { ...common, deviceMajor: input.varint('major', 0xffff_ffff), deviceMinor: input.varint('minor', 0xffff_ffff) }
    case ENTRY_TYPES.fifo:
    case ENTRY_TYPES.socket: return common
    default: return assertNever(type)
  }
}

export function readEntryName(input: ByteReader): Buffer {
  const at = input.offset
  const name = input.bytes(input.u8('name length'), 'name')
  if (!isEntryName(name)) throw input.fail('a name is empty, a dot entry, or holds a slash or NUL', at)
  return name
}
function isEntryType(value: number): value is EntryType {
  return value >= ENTRY_TYPES.file && value <= ENTRY_TYPES.image
}
function readSymlinkTarget(input: ByteReader): Buffer {
  const at = input.offset
  const target = input.bytes(input.varint('symlink target length', SYMLINK_BYTES_MAX), 'symlink target')
  if (target.byteLength === 0 || target.includes(0)) throw input.fail('a symlink target is empty or holds NUL', at)
  return target
}

function writeTime(out: ByteWriter, ns: bigint): void {
  let seconds = Number(ns / NS_PER_S)
  let rest = Number(ns % NS_PER_S)
  if (rest < 0) { rest += 1_000_000_000; seconds-- }
  assert(Math.abs(seconds) <= TIME_SECONDS_MAX, 'sources clamp times')
  out.varint(seconds >= 0 ? seconds * 2 : -seconds * 2 - 1).u32(rest)
}
function readTime(input: ByteReader, field: string): bigint {
  const zigzag = input.varint(field, TIME_SECONDS_MAX * 2)
  const seconds = zigzag % 2 === 0 ? zigzag / 2 : -(zigzag + 1) / 2
  return BigInt(seconds) * NS_PER_S + BigInt(input.u32(field, 999_999_999))
}

function readOwner(input: ByteReader, tables: DecodedTables): string {
  const index = input.varint('owner', tables.owners.length)
  return index === 0 ? '' : tables.owners[index - 1]!
}
function readDevice(input: ByteReader, tables: DecodedTables): bigint {
  const at = input.offset
  const device = tables.devices[input.varint('device')]
  if (device === undefined) throw input.fail('a device is not in the table', at)
  return device
}

function writeXattrs(out: ByteWriter, xattrs: readonly Xattr[]): void {
  out.varint(xattrs.length)
  for (const { name, value } of xattrs)
    out.varint(name.byteLength).bytes(name).varint(value.byteLength).bytes(value)
}
const NO_XATTRS: readonly Xattr[] = []
function readXattrs(input: ByteReader): readonly Xattr[] {
  const at = input.offset
  const count = input.varint('xattr count', XATTR_BYTES_MAX)
  if (count === 0) return NO_XATTRS
  const xattrs: Xattr[] = []
  let last: Buffer | undefined
  let bytes = 0
  for (let i = 0; i < count; i++) {
    const name = input.bytes(input.varint('xattr name length', NAME_BYTES_MAX), 'xattr name')
    const value = input.bytes(input.varint('xattr value length', XATTR_BYTES_MAX), 'xattr value')
    if (name.byteLength === 0 || name.includes(0)) throw input.fail('an xattr name is empty or holds NUL', at)
    if (last !== undefined && last.compare(name) >= 0) throw input.fail('xattrs are out of order', at)
    bytes += name.byteLength + value.byteLength
    if (bytes > XATTR_BYTES_MAX) throw input.fail(`xattrs are over ${XATTR_BYTES_MAX} bytes`, at)
    last = name
    xattrs.push({ name, value })
  }
  return xattrs
}

function writeContent(out: ByteWriter, content: Content, refs: ChildRef[]): void {
  assert(content.bytes <= CONTENT_BYTES_MAX, 'content is at most CONTENT_BYTES_MAX')
  out.u8(CONTENT_KINDS[content.kind]).varint(content.bytes)
  switch (content.kind) {
    case 'extents':
      assert(content.extents.length <= INLINE_EXTENTS_MAX, 'more extents go into a list')
      out.varint(content.extents.length)
      for (const extent of content.extents) writeExtent(out, extent, refs)
      break
    case 'list':
      refs.push({ kind: CHUNK_KINDS.node, id: content.root })
      break
    case 'image':
      out.varint(content.chunkBytes).u8(content.root === undefined ? 0 : 1)
      if (content.root !== undefined) refs.push({ kind: CHUNK_KINDS.node, id: content.root })
      break
    default: assertNever(content)
  }
}
function readContent(input: ByteReader, refs: RefCursor): Content {
  const at = input.offset
  const kind = input.u8('content kind')
  const bytes = input.varint('content bytes', CONTENT_BYTES_MAX)
  if (kind === CONTENT_KINDS.extents) {
    const extents: Extent[] = []
    let sum = 0
    for (let count = input.varint('extent count', INLINE_EXTENTS_MAX); count > 0; count--) {
      const extent = readExtent(input, refs)
      sum += extent.bytes
      extents.push(extent)
    }
    if (sum !== bytes) throw input.fail(`content of ${bytes} bytes has extents of ${sum}`, at)
    return { kind: 'extents', bytes, extents }
  }
  if (kind === CONTENT_KINDS.list) return { kind: 'list', bytes, root: refs.take(CHUNK_KINDS.node, 'a content list') }
  if (kind !== CONTENT_KINDS.image) throw input.fail(`content kind ${kind} is unknown`, at)
  const chunkBytes = input.varint('image chunk bytes', LIMITS.chunkBytesMax)
  if (chunkBytes === 0) throw input.fail('image chunks of no bytes', at)
  const hasRoot = input.u8('image root')
  if (hasRoot > 1) throw input.fail('the image root flag is neither 0 nor 1', at)
  return { kind: 'image', bytes, chunkBytes, root: hasRoot === 1 ? refs.take(CHUNK_KINDS.node, 'an image') : undefined }
}

/** Twice the bytes, plus one for a hole. */
export function writeExtent(out: ByteWriter, extent: Extent, refs: ChildRef[]): void {
  assert(extent.bytes > 0 && (extent.id === undefined || extent.bytes <= LIMITS.chunkBytesMax), 'an extent has bytes')
  out.varint(extent.bytes * 2 + (extent.id === undefined ? 1 : 0))
  if (extent.id !== undefined) refs.push({ kind: CHUNK_KINDS.data, id: extent.id })
}
export function readExtent(input: ByteReader, refs: RefCursor): Extent {
  const at = input.offset
  const word = input.varint('extent', CONTENT_BYTES_MAX * 2 + 1)
  const isHole = word % 2 === 1
  const bytes = (word - (isHole ? 1 : 0)) / 2
  if (bytes === 0) throw input.fail('an extent of no bytes', at)
  if (!isHole && bytes > LIMITS.chunkBytesMax) throw input.fail(`an extent of ${bytes} bytes is no chunk`, at)
  return { bytes, id: isHole ? undefined : refs.take(CHUNK_KINDS.data, 'an extent') }
}
