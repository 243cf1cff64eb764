/** Bug classes: a byte range of a large file that comes back at another offset; an insertion that rewrites the whole list;
 *  hostile lists that are believed. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { hasCode } from '../../src/core/errors.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import { decodeNode, encodeNode, type NodeType } from '../../src/core/node-format.js'
import { decodeListNode, listExtents, type PlacedExtent } from '../../client/tree/content-reader.js'
import { ListContentWriter } from '../../client/tree/content-writer.js'
import type { Content } from '../../client/tree/entry.js'
import { fakeId } from '../support/entries.js'
import { MemoryNodes, MemorySink } from '../support/memory-sink.js'

type Piece = readonly [id: ChunkId | undefined, bytes: number]
const write = async (sink: MemorySink, pieces: readonly Piece[]): Promise<Content> => {
  const writer = new ListContentWriter(sink)
  for (const [id, bytes] of pieces) await writer.add(id, bytes)
  return await writer.finish()
}
const read = async (sink: MemorySink, content: Content): Promise<PlacedExtent[]> => {
  const nodes = new MemoryNodes(sink.chunks, content.kind === 'list' ? content.root : undefined)
  const extents: PlacedExtent[] = []
  for await (const extent of listExtents(nodes, content)) extents.push(extent)
  return extents
}
const chunks = (count: number): Piece[] => Array.from({ length: count }, (_, i) => [fakeId(i), 1_000 + i % 100])
const isMalformed = (error: unknown): boolean => hasCode(error, 'TREE_MALFORMED')

test('any run of chunks and holes comes back at its offsets, adjoining holes as one', async () => {
  const piece = fc.tuple(fc.option(fc.nat(1_000_000), { nil: undefined }), fc.integer({ min: 0, max: 100_000 }))
  await fc.assert(fc.asyncProperty(fc.array(piece, { maxLength: 3_000, size: 'max' }), async (drawn) => {
    const pieces = drawn.map(([seed, bytes]): Piece => [seed === undefined ? undefined : fakeId(seed), bytes])
    const expected: PlacedExtent[] = []
    let offset = 0
    for (const [id, bytes] of pieces) {
      const last = expected.at(-1)
      if (bytes > 0 && id === undefined && last !== undefined && last.id === undefined)
        expected[expected.length - 1] = { ...last, bytes: last.bytes + bytes }
      else if (bytes > 0) expected.push({ offset, bytes, id })
      offset += bytes
    }
    const sink = new MemorySink()
    const content = await write(sink, pieces)
    assert.equal(content.bytes, offset)
    assert.equal(content.kind, expected.length <= 16 ? 'extents' : 'list')
    assert.deepEqual(await read(sink, content), expected)
  }), { numRuns: 40 })
})

test('the examples of docs/formats/content-list-v1.md read as it says', () => {
  const id = (byte: number): ChunkId => Buffer.alloc(32, byte) as ChunkId
  const list = `524e010301000000${'01' + 'aa'.repeat(32)}0102${'0a'}818001`
  assert.deepEqual(decodeListNode(Buffer.from(list, 'hex')),
    { level: 0, extents: [{ bytes: 5, id: id(0xaa) }, { bytes: 8_192, id: undefined }] })
  const index = `524e010402000000${'02' + 'bb'.repeat(32)}${'02' + 'cc'.repeat(32)}010102${'8540'}07`
  assert.deepEqual(decodeListNode(Buffer.from(index, 'hex')),
    { level: 1, children: [{ bytes: 8_197, id: id(0xbb) }, { bytes: 7, id: id(0xcc) }] })
})

test('a list of 300 000 chunks has several levels and reads back whole', async () => {
  const sink = new MemorySink()
  const pieces = chunks(300_000)
  const content = await write(sink, pieces)
  assert.ok(content.kind === 'list')
  const top = decodeListNode(sink.chunks.get(content.root).bytes)
  assert.ok(top.level >= 2)
  const extents = await read(sink, content)
  assert.equal(extents.length, pieces.length)
  assert.equal(extents.at(-1)!.offset + extents.at(-1)!.bytes, content.bytes)
})

test('a chunk inserted at the front of a large list leaves all but a few nodes as they were', async () => {
  const before = new MemorySink()
  await write(before, chunks(50_000))
  const after = new MemorySink()
  await write(after, [[fakeId(9_999_999), 5], ...chunks(50_000)])
  const fresh = [...after.chunks.byKey.keys()].filter((key) => !before.chunks.byKey.has(key))
  assert.ok(fresh.length <= 8, `${fresh.length} of ${after.chunks.byKey.size} nodes changed`)
})

test('a list that spans other bytes than its entry says is refused', async () => {
  const sink = new MemorySink()
  const content = await write(sink, chunks(2_000))
  await assert.rejects(read(sink, { ...content, bytes: content.bytes + 1 }), isMalformed)
})

test('an altered list node is refused or another valid list', async () => {
  const sink = new MemorySink()
  await write(sink, chunks(5_000))
  const nodes = [...sink.chunks.byKey.values()].filter(({ kind }) => kind === CHUNK_KINDS.node)
  fc.assert(fc.property(fc.constantFrom(...nodes), fc.nat(), fc.integer({ min: 1, max: 255 }), (node, place, flip) => {
    const { type, refs, body } = decodeNode(node.bytes)
    const altered = Buffer.from(body)
    altered[place % altered.byteLength]! ^= flip
    const kept = Array.from({ length: refs.count }, (_, i) => ({ kind: refs.kind(i), id: refs.id(i) }))
    for (const list of [kept, kept.slice(1), [...kept, kept[0]!]]) {
      try { decodeListNode(encodeNode(type as NodeType, list, altered)) } catch (error) { if (!isMalformed(error)) throw error }
    }
  }), { numRuns: 200 })
})
