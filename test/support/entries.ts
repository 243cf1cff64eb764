/** Entries for tests: plain ones by name, and arbitrary ones for fast-check. */
import fc from 'fast-check'
import { CHUNK_ID_BYTES, type ChunkId } from '../../src/core/ids.js'
import { LIMITS } from '../../src/core/limits.js'
import { ENTRY_TYPES, type Content, type Entry, type Extent, type Xattr } from '../../client/tree/entry.js'
import { CONTENT_BYTES_MAX, isEntryName } from '../../client/tree/entry-codec.js'

/** An id that is no chunk's. */
export const fakeId = (seed: number): ChunkId => {
  const id = Buffer.alloc(CHUNK_ID_BYTES)
  id.writeUInt32LE(Math.imul(seed + 1, 0x9e3779b1) >>> 0, 0)
  id.writeUInt32LE(seed, 28)
  return id as ChunkId
}
export function fileEntry(name: string | Buffer, content: Content = { kind: 'extents', bytes: 0, extents: [] }): Entry {
  return {
    name: Buffer.from(name as string), type: ENTRY_TYPES.file, mode: 0o644, uid: 1000, gid: 1000, user: 'ada', group: 'users',
    mtimeNs: 1_700_000_000_123_456_789n, ctimeNs: 1_700_000_000_123_456_790n, inode: 4711n, device: 2049n, linkCount: 1,
    xattrs: [], content,
  }
}

const bytes = (minLength: number, maxLength: number): fc.Arbitrary<Buffer> =>
  fc.uint8Array({ minLength, maxLength }).map((array) => Buffer.from(array))
const chunkId = bytes(CHUNK_ID_BYTES, CHUNK_ID_BYTES) as fc.Arbitrary<ChunkId>
const withoutNul = (minLength: number, maxLength: number): fc.Arbitrary<Buffer> =>
  bytes(minLength, maxLength).map((buffer) => { buffer.forEach((byte, i) => { if (byte === 0) buffer[i] = 1 }); return buffer })
const entryName = fc.oneof(bytes(1, 12), bytes(250, 255), fc.constant(Buffer.from([0xff, 0x0a, 0x20]))).filter(isEntryName)
const ns = fc.bigInt({ min: -(2n ** 50n) * 1_000_000_000n, max: 2n ** 50n * 1_000_000_000n })
const extent: fc.Arbitrary<Extent> = fc.oneof(
  fc.record({ bytes: fc.integer({ min: 1, max: LIMITS.chunkBytesMax }), id: chunkId }, { noNullPrototype: true }),
  fc.record({ bytes: fc.integer({ min: 1, max: 2 ** 44 }), id: fc.constant(undefined) }, { noNullPrototype: true }))
const content: fc.Arbitrary<Content> = fc.oneof(
  fc.array(extent, { maxLength: 16 }).map((extents) =>
    ({ kind: 'extents' as const, bytes: extents.reduce((sum, { bytes }) => sum + bytes, 0), extents })),
  fc.record({ kind: fc.constant('list' as const), bytes: fc.integer({ min: 0, max: CONTENT_BYTES_MAX }), root: chunkId },
    { noNullPrototype: true }),
  fc.record({
    kind: fc.constant('image' as const), bytes: fc.integer({ min: 0, max: CONTENT_BYTES_MAX }),
    chunkBytes: fc.integer({ min: 1, max: LIMITS.chunkBytesMax }), root: fc.option(chunkId, { nil: undefined }),
  }, { noNullPrototype: true }))
const xattrs: fc.Arbitrary<Xattr[]> = fc.uniqueArray(
  fc.record({ name: withoutNul(1, 40), value: bytes(0, 80) }, { noNullPrototype: true }), { maxLength: 4, selector: ({ name }) => name.toString('latin1') })
  .map((list) => list.sort((a, b) => a.name.compare(b.name)))
const u32 = fc.integer({ min: 0, max: 0xffff_ffff })
const special: fc.Arbitrary<Partial<Entry>> = fc.oneof(
  content.map((value) => ({ type: ENTRY_TYPES.file, content: value })),
  content.map((value) => ({ type: ENTRY_TYPES.image, content: value })),
  chunkId.map((subtree) => ({ type: ENTRY_TYPES.directory, subtree })),
  withoutNul(1, 300).map((symlinkTarget) => ({ type: ENTRY_TYPES.symlink, symlinkTarget })),
  fc.constantFrom({ type: ENTRY_TYPES.fifo }, { type: ENTRY_TYPES.socket }),
  fc.record({ type: fc.constantFrom(ENTRY_TYPES.blockDevice, ENTRY_TYPES.characterDevice), deviceMajor: u32, deviceMinor: u32 }))

const owner = fc.oneof(fc.constant(''), fc.constant('root'), fc.string({ maxLength: 20, unit: 'grapheme' }))
  .filter((name) => Buffer.byteLength(name) <= 255)
const anyEntry: fc.Arbitrary<Entry> = fc.tuple(fc.record({
  name: entryName, mode: fc.integer({ min: 0, max: 0o7777 }), uid: u32, gid: u32, user: owner, group: owner,
  mtimeNs: ns, ctimeNs: ns, inode: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), device: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  linkCount: u32, xattrs,
}), special).map(([common, more]) => ({ ...common, ...more }) as Entry)

/** Entries of one directory: valid, distinct names, in order. */
export const anyEntries = (maxLength: number): fc.Arbitrary<Entry[]> =>
  fc.uniqueArray(anyEntry, { maxLength, selector: ({ name }) => name.toString('latin1') })
    .map((entries) => entries.sort((a, b) => a.name.compare(b.name)))
