/** Bug classes: an entry that comes back different; hostile nodes that crash, loop, or are believed; an insertion into a
 *  large directory that rewrites all of it. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { hasCode } from '../../src/core/errors.js'
import { CHUNK_KINDS, chunkKey, type ChunkId } from '../../src/core/ids.js'
import { decodeNode, encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import { decodeDirectoryNode, encodeDirectoryIndex, LeafBuilder } from '../../client/tree/directory-node.js'
import { DirectoryReader } from '../../client/tree/directory-reader.js'
import { DirectoryWriter } from '../../client/tree/directory-writer.js'
import { ENTRY_TYPES, type Entry } from '../../client/tree/entry.js'
import { anyEntries, fakeId, fileEntry } from '../support/entries.js'
import { MemoryNodes, MemorySink } from '../support/memory-sink.js'

const encodeLeaf = (entries: readonly Entry[]): Buffer => {
  const leaf = new LeafBuilder()
  for (const entry of entries) leaf.add(entry)
  return leaf.finish()
}
const decodeLeaf = (bytes: Buffer): Entry[] => {
  const node = decodeDirectoryNode(bytes)
  assert.ok('entries' in node)
  return node.entries
}
const isMalformed = (error: unknown): boolean => hasCode(error, 'TREE_MALFORMED')
const numbered = (count: number): Entry[] =>
  Array.from({ length: count }, (_, i) => fileEntry(`entry-${String(i).padStart(7, '0')}`))
const writeAll = async (sink: MemorySink, entries: Iterable<Entry>): Promise<ChunkId> => {
  const writer = new DirectoryWriter(sink)
  for (const entry of entries) await writer.add(entry)
  return await writer.finish()
}

test('every field of every kind of entry comes back as it was', () => {
  fc.assert(fc.property(anyEntries(12), (entries) => {
    assert.deepEqual(decodeLeaf(encodeLeaf(entries)), entries)
  }), { numRuns: 300 })
})

test('the example of docs/formats/directory-v1.md is what is written and read', () => {
  const common = {
    mode: 0o644, uid: 1000, gid: 100, user: 'ada', group: '', mtimeNs: 1_700_000_000_123_456_789n, ctimeNs: -1n, inode: 4711n,
    device: 2049n, linkCount: 1, xattrs: [],
  }
  const id = (byte: number): ChunkId => Buffer.alloc(32, byte) as ChunkId
  const extents = [{ bytes: 5, id: id(0xaa) }, { bytes: 8_192, id: undefined }]
  const entries: Entry[] = [
    { ...common, name: Buffer.from('a'), type: ENTRY_TYPES.file, xattrs: [{ name: Buffer.from('user.x'), value: Buffer.of(255) }],
      content: { kind: 'extents', bytes: 8_197, extents } },
    { ...common, name: Buffer.from('b'), type: ENTRY_TYPES.directory, mode: 0o755, subtree: id(0xbb) },
    { ...common, name: Buffer.of(255), type: ENTRY_TYPES.symlink, mode: 0o777, symlinkTarget: Buffer.from('a') },
  ]
  const owner = 'e807640100' + '80c49fd50c15cd5b07' + '01ffc99a3b' + '6712000000000000' + '0001'
  const hex = '524e010102000000' + `01${'aa'.repeat(32)}` + `02${'bb'.repeat(32)}` + '01' + '0103616461' + '010108000000000000' + '03' +
    `016101a401${owner}` + '0106757365722e7801ff' + '018540020a818001' + `016202ed01${owner}00` + `01ff03ff01${owner}00` + '0161'
  assert.equal(encodeLeaf(entries).toString('hex'), hex)
  assert.deepEqual(decodeLeaf(Buffer.from(hex, 'hex')), entries)
})

test('equal entries make equal bytes', () => {
  fc.assert(fc.property(anyEntries(6), (entries) => {
    assert.deepEqual(encodeLeaf(entries), encodeLeaf(decodeLeaf(encodeLeaf(entries))))
  }), { numRuns: 50 })
})

test('a leaf that was cut, extended or altered is TREE_MALFORMED or another valid leaf, never anything else', () => {
  fc.assert(fc.property(anyEntries(6), fc.nat(), fc.integer({ min: 1, max: 255 }), fc.nat(2), (entries, place, flip, way) => {
    const node = Buffer.from(encodeLeaf(entries))
    const at = place % node.byteLength
    const mutated = way === 0 ? node.subarray(0, at) : way === 1 ? Buffer.concat([node, Buffer.of(flip)]) : node
    if (way === 2) mutated[at] = mutated[at]! ^ flip
    try {
      decodeDirectoryNode(mutated)
      assert.equal(way, 2, 'a cut or extended node is refused')
    } catch (error) { if (!isMalformed(error)) throw error }
  }), { numRuns: 2_000 })
})

test('random bytes behind a valid envelope are TREE_MALFORMED', () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), fc.constantFrom(1, 2), (body, type) => {
    const bytes = encodeNode(type as 1 | 2, [{ kind: CHUNK_KINDS.node, id: fakeId(1) }], Buffer.concat([Buffer.of(1), body]))
    try { decodeDirectoryNode(bytes) } catch (error) { if (!isMalformed(error)) throw error }
  }), { numRuns: 1_000 })
})

/** A leaf whose name bytes were replaced after encoding: what an honest writer refuses to write. */
const withName = (from: string, to: string): Buffer => {
  const bytes = encodeLeaf([fileEntry('aaaa'), fileEntry(from), fileEntry('zzzz')])
  const at = bytes.indexOf(from)
  bytes.write(to, at, 'latin1')
  return bytes
}
for (const [what, to] of [['a slash', 'b/cd'], ['NUL', 'b\0cd'], ['a duplicate', 'aaaa'], ['a descent', 'a@@@']] as const)
  test(`a name with ${what} is refused`, () => {
    assert.throws(() => decodeDirectoryNode(withName('bbbb', to)), isMalformed)
  })
for (const dots of ['.', '..'])
  test(`an entry named ${dots} is refused`, () => {
    const bytes = encodeLeaf([fileEntry('x'.repeat(dots.length))])
    bytes.write(dots, bytes.indexOf('x'.repeat(dots.length)), 'latin1')
    assert.throws(() => decodeDirectoryNode(bytes), isMalformed)
  })

test('extents that do not sum to the size are refused', () => {
  const good = fileEntry('f', { kind: 'extents', bytes: 7, extents: [{ bytes: 7, id: fakeId(1) }] })
  const bad = { ...good, content: { ...good.content!, bytes: 8 } }
  assert.doesNotThrow(() => decodeDirectoryNode(encodeLeaf([good])))
  assert.throws(() => decodeDirectoryNode(encodeLeaf([bad])), isMalformed)
})

test('references of the wrong kind, too few or too many, are refused', () => {
  const subtree = fakeId(3)
  const { content: _, ...rest } = fileEntry('d')
  const node = decodeNode(encodeLeaf([{ ...rest, type: ENTRY_TYPES.directory, subtree }]))
  const nodeRef = { kind: CHUNK_KINDS.node, id: subtree }
  for (const refs of [[], [{ kind: CHUNK_KINDS.data, id: subtree }], [nodeRef, nodeRef]])
    assert.throws(() => decodeDirectoryNode(encodeNode(NODE_TYPES.directory, refs, node.body)), isMalformed)
})

test('small and empty directories are one leaf', async () => {
  for (const count of [0, 1, 128]) {
    const sink = new MemorySink()
    const root = await writeAll(sink, numbered(count))
    assert.equal(sink.taken.nodes, 1)
    assert.equal(decodeLeaf(sink.chunks.get(root).bytes).length, count)
  }
})

test('a directory of 100 000 entries reads back in order, by any name, through several levels', async () => {
  const sink = new MemorySink()
  const root = await writeAll(sink, numbered(100_000))
  const top = decodeDirectoryNode(sink.chunks.get(root).bytes)
  assert.ok('children' in top && top.level >= 2)
  const reader = new DirectoryReader(new MemoryNodes(sink.chunks, root), root)
  let at = 0
  for await (const entry of reader.entries()) {
    if (!entry.name.equals(Buffer.from(`entry-${String(at).padStart(7, '0')}`))) assert.fail(`entry ${at} is out of place`)
    at++
  }
  assert.equal(at, 100_000)
  for (const name of ['entry-0000000', 'entry-0054321', 'entry-0099999'])
    assert.equal((await reader.find(Buffer.from(name)))?.name.toString(), name)
  for (const name of ['a', 'entry-0054321x', 'z']) assert.equal(await reader.find(Buffer.from(name)), undefined)
})

test('an insertion or removal changes a few nodes only', async () => {
  const entries = numbered(20_000)
  const before = new MemorySink()
  await writeAll(before, entries)
  for (const changed of [
    [...entries.slice(0, 9_000), fileEntry('entry-0008999+'), ...entries.slice(9_000)],
    [...entries.slice(0, 9_000), ...entries.slice(9_001)],
  ]) {
    const after = new MemorySink()
    await writeAll(after, changed)
    const fresh = [...after.chunks.byKey.keys()].filter((key) => !before.chunks.byKey.has(key))
    assert.ok(fresh.length <= 6, `${fresh.length} of ${after.chunks.byKey.size} nodes changed`)
  }
})

test('nodes that equal the former ones at their place are inherited', async () => {
  const sink = new MemorySink()
  const entries = numbered(5_000)
  const root = await writeAll(sink, entries)
  const reader = new DirectoryReader(new MemoryNodes(sink.chunks, root), root)
  for await (const _ of reader.leaves()) { /* to learn the places */ }
  const again = new MemorySink()
  const writer = new DirectoryWriter(again, reader.nodesRead)
  for (const entry of entries) await writer.add(entry)
  assert.deepEqual(await writer.finish(), root)
  assert.deepEqual([again.taken.nodes, again.inherited.nodes], [0, sink.taken.nodes])
})

test('an index that lies about its children is refused', async () => {
  const sink = new MemorySink()
  const leafA = sink.put(encodeLeaf([fileEntry('a'), fileEntry('m')]), CHUNK_KINDS.node)
  const leafB = sink.put(encodeLeaf([fileEntry('k'), fileEntry('z')]), CHUNK_KINDS.node)
  const a = { firstName: Buffer.from('a'), id: leafA }
  const lies = {
    'another first name': encodeDirectoryIndex(1, [{ ...a, firstName: Buffer.from('b') }]),
    'a wrong level': encodeDirectoryIndex(2, [a]),
    'overlapping leaves': encodeDirectoryIndex(1, [a, { firstName: Buffer.from('k'), id: leafB }]),
  }
  for (const [what, bytes] of Object.entries(lies)) {
    const reader = new DirectoryReader(new MemoryNodes(sink.chunks), sink.put(bytes, CHUNK_KINDS.node))
    await assert.rejects(async () => { for await (const _ of reader.entries()) { /* drain */ } }, isMalformed, what)
  }
})

test('reading keeps few nodes in flight', async () => {
  const sink = new MemorySink()
  const root = await writeAll(sink, numbered(30_000))
  const nodes = new MemoryNodes(sink.chunks, root)
  for await (const _ of new DirectoryReader(nodes, root).leaves()) break
  assert.ok(nodes.calls.reduce((sum, count) => sum + count, 0) <= 40)
  assert.ok(!nodes.calls.some((count) => count > 8))
  assert.equal(chunkKey(root).length, 32)
})
