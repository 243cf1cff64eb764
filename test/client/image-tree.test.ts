import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { encodeImageNode, IMAGE_FAN_OUT, rootLevel, slotBytes, slotCount, slotSpan, spansSameBytes, type ImageContent, type ImageShape,
} from '../../client/image/image-node.js'
import { ImageTreeReader, ImageTreeWriter } from '../../client/image/image-tree.js'
import type { PlacedExtent } from '../../client/tree/content-reader.js'
import { hasCode } from '../../src/core/errors.js'
import { asChunkId, CHUNK_KINDS, formatChunkId, type ChunkId } from '../../src/core/ids.js'
import { decodeNode, encodeNode, NODE_TYPES, type ChildRef } from '../../src/core/node-format.js'
import { fakeId } from '../support/entries.js'
import { MemoryChunks, MemoryNodes, MemorySink } from '../support/memory-sink.js'

const KiB = 1024
const CHUNK = 4 * KiB
type Slots = ReadonlyMap<number, ChunkId>

async function writeTree(sink: MemorySink, shape: ImageShape, slots: Slots, parent?: ImageTreeReader): Promise<ImageContent> {
  const writer = new ImageTreeWriter(sink, shape, parent?.findNode)
  for (const slot of [...slots.keys()].sort((a, b) => a - b)) {
    await parent?.chunkAt(slot)
    await writer.add(slot, slots.get(slot))
  }
  return await writer.finish()
}
const readerOf = (chunks: MemoryChunks, content: ImageContent): ImageTreeReader =>
  new ImageTreeReader(new MemoryNodes(chunks, content.root), content)
async function collect(extents: AsyncIterable<PlacedExtent>): Promise<PlacedExtent[]> {
  const all: PlacedExtent[] = []
  for await (const extent of extents) all.push(extent)
  return all
}
/** What extents() must yield, straight from the map. */
function expectedExtents(shape: ImageShape, slots: Slots): PlacedExtent[] {
  const extents: PlacedExtent[] = []
  let at = 0
  const hole = (to: number): void => { if (to > at) extents.push({ offset: at, bytes: to - at, id: undefined }) }
  for (const slot of [...slots.keys()].sort((a, b) => a - b)) {
    hole(slot * shape.chunkBytes)
    extents.push({ offset: slot * shape.chunkBytes, bytes: slotBytes(shape, slot), id: slots.get(slot) })
    at = slot * shape.chunkBytes + slotBytes(shape, slot)
  }
  hole(shape.imageBytes)
  return extents
}
const imageOf = (slots: number, tailBytes = CHUNK): ImageShape => ({ imageBytes: (slots - 1) * CHUNK + tailBytes, chunkBytes: CHUNK })
const idsAt = (...slots: number[]): Slots => new Map(slots.map((slot) => [slot, fakeId(slot % 0xffff_ffff)]))

test('what is written comes back: chunks, holes and bounds, over every number of levels', async () => {
  const shapes = fc.record({ slots: fc.oneof(fc.integer({ min: 1, max: 600 }), fc.integer({ min: 60_000, max: 70_000 }),
    fc.integer({ min: 1, max: 2 ** 40 })), tailBytes: fc.integer({ min: 1, max: CHUNK }) })
    .filter(({ slots, tailBytes }) => imageOf(slots, tailBytes).imageBytes < 2 ** 52)
  await fc.assert(fc.asyncProperty(shapes, fc.array(fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }), { maxLength: 40 }),
    fc.nat(300), async ({ slots: count, tailBytes }, places, run) => {
      const shape = imageOf(count, tailBytes)
      const slots = idsAt(...places.map((place) => Math.floor(place * count)), ...Array.from({ length: Math.min(run, count) }, (_, i) => i))
      const sink = new MemorySink()
      const content = await writeTree(sink, shape, slots)
      assert.deepEqual(await collect(readerOf(sink.chunks, content).extents()), expectedExtents(shape, slots))
      const byPlace = readerOf(sink.chunks, content)
      for (const place of places.reverse()) {
        const slot = Math.floor(place * count)
        assert.deepEqual(await byPlace.chunkAt(slot), slots.get(slot))
      }
      assert.equal(await byPlace.chunkAt(count + 5), undefined)
    }), { numRuns: 60 })
})

test('an image of zeroes, and one of no bytes, have no nodes', async () => {
  for (const imageBytes of [0, 1, 2 ** 52 - 1]) {
    const sink = new MemorySink()
    const content = await writeTree(sink, { imageBytes, chunkBytes: CHUNK }, new Map())
    assert.deepEqual(content, { kind: 'image', bytes: imageBytes, chunkBytes: CHUNK, root: undefined })
    assert.equal(sink.taken.nodes, 0)
    const hole = imageBytes === 0 ? [] : [{ offset: 0, bytes: imageBytes, id: undefined }]
    assert.deepEqual(await collect(readerOf(sink.chunks, content).extents()), hole)
  }
})

test('a part of the bytes is read as whole slots, reading only the nodes above them', async () => {
  const shape = imageOf(3 * IMAGE_FAN_OUT)
  const sink = new MemorySink()
  const content = await writeTree(sink, shape, idsAt(0, 300, 302, 700))
  const nodes = new MemoryNodes(sink.chunks, content.root)
  const part = await collect(new ImageTreeReader(nodes, content).extents(300 * CHUNK + 1, 303 * CHUNK - 1))
  assert.deepEqual(part.map(({ offset, id }) => [offset / CHUNK, id]),
    [[300, fakeId(300)], [301, undefined], [302, fakeId(302)]])
  const past = await collect(new ImageTreeReader(nodes, content).extents(shape.imageBytes, shape.imageBytes + 5))
  assert.deepEqual(past, [])
})

test('one changed chunk writes the nodes above it, and all others are inherited from the parent', async () => {
  const shape = imageOf(IMAGE_FAN_OUT ** 2 + 10)
  const slots = new Map(idsAt(...Array.from({ length: 1000 }, (_, i) => i), 5000, 65_536))
  const first = new MemorySink()
  const parent = await writeTree(first, shape, slots)
  const second = new MemorySink(first.chunks)
  await writeTree(second, shape, slots, readerOf(first.chunks, parent))
  assert.deepEqual([second.taken.nodes, second.inherited.nodes], [0, first.taken.nodes])
  slots.set(700, fakeId(123_456))
  const third = new MemorySink(first.chunks)
  await writeTree(third, shape, slots, readerOf(first.chunks, parent))
  assert.deepEqual([third.taken.nodes, third.inherited.nodes], [3, first.taken.nodes - 3])
})

test('growing and shrinking keep the leaves that span the same bytes', async () => {
  const small = imageOf(IMAGE_FAN_OUT * 2)
  const slots = idsAt(...Array.from({ length: IMAGE_FAN_OUT * 2 }, (_, i) => i))
  const first = new MemorySink()
  const parent = await writeTree(first, small, slots)
  const grown = new MemorySink(first.chunks)
  const content = await writeTree(grown, imageOf(IMAGE_FAN_OUT ** 2 + 1), slots, readerOf(first.chunks, parent))
  assert.deepEqual([grown.inherited.nodes, grown.taken.nodes], [3, 1], 'the old root is the first index, below a new root')
  const shrunk = new MemorySink(first.chunks)
  const shorter = new Map([...slots].filter(([slot]) => slot < IMAGE_FAN_OUT))
  const back = await writeTree(shrunk, imageOf(IMAGE_FAN_OUT), shorter, readerOf(first.chunks, content))
  assert.deepEqual([shrunk.inherited.nodes, shrunk.taken.nodes], [1, 0])
  assert.equal(rootLevel({ imageBytes: back.bytes, chunkBytes: CHUNK }), 0)
})

test('unchanged subtrees are taken over whole, without reading them', async () => {
  const shape = imageOf(IMAGE_FAN_OUT ** 2 * 2)
  const slots = new Map(idsAt(1, 300, 65_535, 65_536, 70_000, 131_000))
  const first = new MemorySink()
  const parent = await writeTree(first, shape, slots)
  slots.set(70_000, fakeId(9))
  const nodes = new MemoryNodes(first.chunks, parent.root)
  const tree = new ImageTreeReader(nodes, parent)
  const second = new MemorySink(first.chunks)
  const writer = new ImageTreeWriter(second, shape, tree.findNode)
  await writer.inheritSubtree(1, 0, (await tree.subtreeAt(1, 0))!)
  await writer.inheritSubtree(0, 65_536, (await tree.subtreeAt(0, 65_536))!)
  await writer.add(70_000, slots.get(70_000))
  const last = 131_000 - 131_000 % IMAGE_FAN_OUT
  await writer.inheritSubtree(0, last, (await tree.subtreeAt(0, last))!)
  const content = await writer.finish()
  assert.deepEqual(await collect(readerOf(first.chunks, content).extents()), expectedExtents(shape, slots))
  assert.equal(nodes.calls.reduce((sum, count) => sum + count, 0), 2, 'the root and the index over the change were read')
  assert.equal(await tree.subtreeAt(0, 1024), undefined)
  assert.equal(await tree.subtreeAt(3, 0), undefined)
})

test('a subtree may move over only where both images have all its bytes', () => {
  const span = slotSpan(0) * CHUNK
  assert.equal(spansSameBytes(0, 0, CHUNK, span, span + 1), true)
  assert.equal(spansSameBytes(0, 0, CHUNK, span - 1, span + 1), false)
  assert.equal(spansSameBytes(0, 256, CHUNK, span + 1, span + 2), false)
  assert.equal(spansSameBytes(0, 256, CHUNK, span + 1, span + 1), true)
})

test('leaves are asked for ahead, in a bounded number, each once', async () => {
  const shape = imageOf(100 * IMAGE_FAN_OUT)
  const sink = new MemorySink()
  const content = await writeTree(sink, shape, idsAt(...Array.from({ length: 100 }, (_, i) => i * IMAGE_FAN_OUT)))
  const nodes = new MemoryNodes(sink.chunks, content.root)
  await collect(new ImageTreeReader(nodes, content).extents())
  assert.equal(nodes.calls.reduce((sum, count) => sum + count, 0), 101)
  assert.ok(nodes.calls.length < 30 && Math.max(...nodes.calls) <= 9, `requests of ${nodes.calls.join()}`)
})

test('hostile trees are refused, whatever is wrong with them', async () => {
  const data: ChildRef = { kind: CHUNK_KINDS.data, id: fakeId(1) }
  const node: ChildRef = { kind: CHUNK_KINDS.node, id: fakeId(1) }
  const body = (change: { version?: number; level?: number; chunkBytes?: number; bits?: number[]; more?: number } = {}): Buffer => {
    const bytes = Buffer.alloc(38 + (change.more ?? 0))
    bytes[0] = change.version ?? 1
    bytes[1] = change.level ?? 0
    bytes.writeUInt32LE(change.chunkBytes ?? CHUNK, 2)
    for (const bit of change.bits ?? [0]) bytes[6 + (bit >> 3)]! |= 1 << (bit & 7)
    return bytes
  }
  const hostile: [string, Buffer][] = [
    ['a version of the future', encodeNode(NODE_TYPES.image, [data], body({ version: 2 }))],
    ['a level that is not this one', encodeNode(NODE_TYPES.image, [data], body({ level: 1 }))],
    ['another chunk size', encodeNode(NODE_TYPES.image, [data], body({ chunkBytes: 2 * CHUNK }))],
    ['nothing listed', encodeNode(NODE_TYPES.image, [], body({ bits: [] }))],
    ['too few references', encodeNode(NODE_TYPES.image, [data], body({ bits: [0, 1] }))],
    ['too many references', encodeNode(NODE_TYPES.image, [data, data], body())],
    ['a slot past the end', encodeNode(NODE_TYPES.image, [data], body({ bits: [5] }))],
    ['nodes where chunks belong', encodeNode(NODE_TYPES.image, [node], body())],
    ['an index where a leaf belongs', encodeNode(NODE_TYPES.imageIndex, [node], body({ level: 1 }))],
    ['a directory', encodeNode(NODE_TYPES.directory, [data], body())],
    ['a body too long', encodeNode(NODE_TYPES.image, [data], body({ more: 1 }))],
    ['a body too short', encodeNode(NODE_TYPES.image, [data], body().subarray(0, 37))],
    ['no node', Buffer.from('RN')],
  ]
  for (const [what, bytes] of hostile) {
    const nodes = { readNodes: async () => [bytes] }
    const content: ImageContent = { kind: 'image', bytes: 5 * CHUNK, chunkBytes: CHUNK, root: fakeId(0) }
    await assert.rejects(collect(new ImageTreeReader(nodes, content).extents()), (e) => hasCode(e, 'TREE_MALFORMED'), what)
  }
  for (const shape of [{ bytes: 10, chunkBytes: 0 }, { bytes: 10, chunkBytes: 1 }, { bytes: 10, chunkBytes: 3 * CHUNK },
    { bytes: 10, chunkBytes: 2 ** 23 }, { bytes: 2 ** 52, chunkBytes: CHUNK }, { bytes: -1, chunkBytes: CHUNK }])
    assert.throws(() => new ImageTreeReader({ readNodes: async () => [] }, { kind: 'image', root: undefined, ...shape }),
      (e) => hasCode(e, 'TREE_MALFORMED'), JSON.stringify(shape))
})

test('bytes of nodes, damaged anyhow, are refused or read as another tree of the same shape', async () => {
  const shape = imageOf(600)
  const sink = new MemorySink()
  const content = await writeTree(sink, shape, idsAt(1, 2, 300))
  const reader = readerOf(sink.chunks, content)
  const good = await reader.nodes.readNodes([content.root!])
  await fc.assert(fc.asyncProperty(fc.nat(good[0]!.byteLength - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
    const bytes = Buffer.from(good[0]!)
    bytes[at]! ^= flip
    const nodes = { readNodes: async (ids: readonly ChunkId[]) => ids.map((id) => id.equals(content.root!) ? bytes : leafOfOne) }
    const leafOfOne = encodeImageNode(0, CHUNK, [fakeId(1)])
    try {
      const extents = await collect(new ImageTreeReader(nodes, content).extents())
      assert.equal(extents.reduce((sum, extent) => sum + extent.bytes, 0), shape.imageBytes)
    } catch (error) {
      assert.ok(hasCode(error, 'TREE_MALFORMED'), String(error instanceof Error ? error.message : 'no error'))
    }
  }))
})

test('the example of docs/formats/image-tree-v1.md is what is written', async () => {
  const sink = new MemorySink()
  const id = asChunkId(Buffer.alloc(32, 0xaa))
  const content = await writeTree(sink, { imageBytes: 1_000_000, chunkBytes: 65_536 }, new Map([[0, id], [15, asChunkId(Buffer.alloc(32, 0xbb))]]))
  const bytes = sink.chunks.get(content.root!).bytes
  assert.equal(bytes.toString('hex'), '524e010502000000' + '01' + 'aa'.repeat(32) + '01' + 'bb'.repeat(32) + '0100' + '00000100' + '0180' + '00'.repeat(30))
  assert.equal(decodeNode(bytes).refs.count, 2)
  assert.equal(slotCount({ imageBytes: 1_000_000, chunkBytes: 65_536 }), 16)
  assert.equal(slotBytes({ imageBytes: 1_000_000, chunkBytes: 65_536 }, 15), 16_960)
  assert.equal(formatChunkId(content.root!).length, 64)
})
