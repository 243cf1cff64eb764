/** Images and files of a snapshot read at random, as the NBD server does: right at any place, each chunk fetched once, memory bounded, ahead of those
 *  who go forwards.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ImageTreeWriter } from '../../client/image/image-tree.js'
import { ChunkCache } from '../../client/nbd/chunk-cache.js'
import { openLayout } from '../../client/nbd/image-layout.js'
import { ImageReader } from '../../client/nbd/image-reader.js'
import type { ReadableSession } from '../../client/read-chunks.js'
import type { ReadChunk, ReadingClient } from '../../client/repository-client.js'
import { ListContentWriter } from '../../client/tree/content-writer.js'
import type { Content } from '../../client/tree/entry.js'
import { RoostError } from '../../src/core/errors.js'
import { asChunkId, CHUNK_ID_BYTES, CHUNK_KINDS, formatChunkId, parseSessionId } from '../../src/core/ids.js'
import { MemoryNodes, MemorySink } from '../support/memory-sink.js'
import { noise } from '../support/odd-tree.js'

const KiB = 1024
const MiB = 1024 * KiB
const CHUNK = 4 * KiB

/** Serves the chunks of a sink; counts what was asked for, and can wait, fail or lie. */
class MemoryReads {
  readonly asked = new Map<string, number>()
  requests = 0
  inFlight = 0
  inFlightMax = 0
  idsMax = 0
  failure: Error | undefined
  lieAbout: string | undefined
  gate: Promise<void> | undefined
  readonly session: ReadableSession
  constructor(readonly sink: MemorySink) {
    const client = { readChunks: (_session: string, ids: Buffer) => this.#read(ids) } as unknown as ReadingClient
    this.session = { client, sessionId: parseSessionId('00'.repeat(16)), dedupKey: Buffer.alloc(32, 7) }
  }
  async *#read(ids: Buffer): AsyncGenerator<ReadChunk> {
    this.requests++
    this.inFlightMax = Math.max(this.inFlightMax, ++this.inFlight)
    try {
      await this.gate
      if (this.failure !== undefined) throw this.failure
      const count = ids.byteLength / CHUNK_ID_BYTES
      this.idsMax = Math.max(this.idsMax, count)
      for (let index = count - 1; index >= 0; index--) { // the server's order is its own
        const id = asChunkId(ids.subarray(index * CHUNK_ID_BYTES, (index + 1) * CHUNK_ID_BYTES))
        const name = formatChunkId(id)
        this.asked.set(name, (this.asked.get(name) ?? 0) + 1)
        const { bytes } = this.sink.chunks.get(id)
        const isLie = name === this.lieAbout
        yield { index, status: 'ok', bytes: isLie ? Buffer.alloc(bytes.byteLength, 1) : bytes }
      }
    } finally { this.inFlight-- }
  }
}
interface Scene { readonly reader: ImageReader; readonly reads: MemoryReads; readonly cache: ChunkCache; readonly content: Content }
function open(sink: MemorySink, content: Content, cacheBytes = 64 * MiB): Scene {
  const reads = new MemoryReads(sink)
  const cache = new ChunkCache(reads.session, cacheBytes)
  const root = content.kind === 'extents' ? undefined : content.root
  return { reads, cache, content, reader: new ImageReader(openLayout(new MemoryNodes(sink.chunks, root), content), cache) }
}
/** `data`: the slots that are no zeroes, and what is in them. */
async function writeImage(sink: MemorySink, imageBytes: number, slots: Iterable<number>, fill: (slot: number, bytes: number) => Buffer = (slot, bytes) => noise(bytes, slot + 1)): Promise<Content> {
  const writer = new ImageTreeWriter(sink, { imageBytes, chunkBytes: CHUNK })
  for (const slot of slots) await writer.add(slot, sink.put(fill(slot, Math.min(CHUNK, imageBytes - slot * CHUNK)), CHUNK_KINDS.data))
  return await writer.finish()
}
async function bytesAt({ reader }: Scene, offset: number, bytes: number): Promise<Buffer> {
  const pieces = await reader.read(offset, bytes)
  let at = offset
  for (const piece of pieces) {
    assert.equal(piece.offset, at, 'without gaps')
    assert.ok(piece.data === undefined || piece.data.byteLength === piece.bytes)
    at += piece.bytes
  }
  assert.equal(at, offset + bytes)
  return Buffer.concat(pieces.map(({ data, bytes: length }) => data ?? Buffer.alloc(length)))
}

test('any bytes of an image are those of its source, whatever was read before', async () => {
  const sink = new MemorySink()
  const imageBytes = 5 * MiB + 123
  const last = Math.floor(imageBytes / CHUNK)
  const slots = [...Array.from({ length: 100 }, (_, i) => i), 300, 301, 700, 701, last]
  const expected = Buffer.alloc(imageBytes)
  for (const slot of slots) noise(Math.min(CHUNK, imageBytes - slot * CHUNK), slot + 1).copy(expected, slot * CHUNK)
  const scene = open(sink, await writeImage(sink, imageBytes, slots), 64 * KiB)
  const place = fc.oneof(fc.nat({ max: imageBytes - 1 }), fc.constantFrom(...slots.flatMap((slot) => [slot * CHUNK, Math.max(0, slot * CHUNK - 1)])))
  await fc.assert(fc.asyncProperty(place, fc.oneof(fc.nat({ max: 300 * KiB }), fc.constantFrom(0, 1, CHUNK, CHUNK + 1)), async (offset, wanted) => {
    const bytes = Math.min(wanted, imageBytes - offset)
    assert.ok((await bytesAt(scene, offset, bytes)).equals(expected.subarray(offset, offset + bytes)), `${bytes} at ${offset}`)
  }), { numRuns: 150 })
  assert.ok(scene.cache.keptBytes <= 64 * KiB)
})
test('a sparse image of terabytes is known by a few nodes, and its holes cost nothing', async () => {
  const sink = new MemorySink()
  const imageBytes = 3 * 1024 * 1024 * MiB
  const far = 2 * 1024 * 1024 * 256
  const scene = open(sink, await writeImage(sink, imageBytes, [5, far]))
  assert.ok((await bytesAt(scene, far * CHUNK + 10, 20)).equals(noise(CHUNK, far + 1).subarray(10, 30)))
  assert.ok((await bytesAt(scene, 1024 * 1024 * MiB, 32 * MiB)).equals(Buffer.alloc(32 * MiB)))
  assert.ok((await bytesAt(scene, imageBytes - 1, 1)).equals(Buffer.alloc(1)))
  const blocks: { bytes: number; isHole: boolean }[] = []
  for (let at = 0, answers = 0; at < 4_000_000_000; answers++) {
    assert.ok(answers < 100, 'each answer goes on')
    for (const block of await scene.reader.allocation(at, 4_000_000_000 - at, 100)) {
      at += block.bytes
      if (blocks.at(-1)?.isHole === block.isHole) blocks.at(-1)!.bytes += block.bytes
      else blocks.push({ ...block })
    }
  }
  assert.deepEqual(blocks, [{ bytes: 5 * CHUNK, isHole: true }, { bytes: CHUNK, isHole: false }, { bytes: 4_000_000_000 - 6 * CHUNK, isHole: true }])
  assert.deepEqual(await scene.reader.allocation(5 * CHUNK + 1, 10 * CHUNK, 1), [{ bytes: CHUNK - 1, isHole: false }])
  assert.equal([...scene.reads.asked.values()].length, 1, 'one chunk was fetched')
})
test('an image of zeroes and an empty file are served too', async () => {
  const sink = new MemorySink()
  const scene = open(sink, await writeImage(sink, MiB + 1, []))
  assert.ok((await bytesAt(scene, MiB - 5, 6)).equals(Buffer.alloc(6)))
  assert.deepEqual(await scene.reader.allocation(3, 1000, 9), [{ bytes: 1000, isHole: true }])
  assert.deepEqual(await open(sink, { kind: 'extents', bytes: 0, extents: [] }).reader.read(0, 0), [])
})
test('files cut by content are read at random too: few extents, and a list of thousands', async () => {
  for (const count of [3, 5_000]) {
    const sink = new MemorySink()
    const writer = new ListContentWriter(sink)
    const parts: Buffer[] = []
    for (let i = 0; i < count; i++) {
      const part = i % 7 === 3 ? Buffer.alloc(500 + i % 50) : noise(200 + i % 90, i + 1)
      await writer.add(i % 7 === 3 ? undefined : sink.put(part, CHUNK_KINDS.data), part.byteLength)
      parts.push(part)
    }
    const content = await writer.finish()
    assert.equal(content.kind, count === 3 ? 'extents' : 'list')
    const expected = Buffer.concat(parts)
    const scene = open(sink, content)
    await fc.assert(fc.asyncProperty(fc.nat({ max: expected.byteLength - 1 }), fc.nat({ max: 5_000 }), async (offset, wanted) => {
      const bytes = Math.min(wanted, expected.byteLength - offset)
      assert.ok((await bytesAt(scene, offset, bytes)).equals(expected.subarray(offset, offset + bytes)))
    }), { numRuns: 100 })
  }
})

test('many readers of the same chunks cost one fetch each, in few requests of bounded size', async () => {
  const sink = new MemorySink()
  const scene = open(sink, await writeImage(sink, 4 * MiB, Array.from({ length: 1024 }, (_, i) => i)))
  await Promise.all(Array.from({ length: 20 }, () => scene.reader.read(0, 4 * MiB)))
  assert.equal(scene.reads.asked.size, 1024)
  assert.deepEqual([...new Set(scene.reads.asked.values())], [1])
  assert.ok(scene.reads.requests <= 8 && scene.reads.idsMax <= 256 && scene.reads.inFlightMax <= 4, `${scene.reads.requests} requests`)
})
test('the cache stays within its bytes, keeps what was used last, and what fell out is fetched again', async () => {
  const sink = new MemorySink()
  const scene = open(sink, await writeImage(sink, 40 * MiB, Array.from({ length: 10_240 }, (_, i) => i)), 10 * CHUNK)
  const counts = (): number => scene.cache.fetched
  for (let i = 0; i < 20; i++) await scene.reader.read(i * 500 * CHUNK, CHUNK)
  assert.ok(scene.cache.keptBytes <= 10 * CHUNK)
  const before = counts()
  await scene.reader.read(19 * 500 * CHUNK, CHUNK)
  assert.equal(counts(), before, 'the last one is here')
  await scene.reader.read(0, CHUNK)
  assert.equal(counts(), before + 1, 'the first one is not')
})
test('who reads forwards finds the next chunks asked for already; who jumps pays for nothing else', async () => {
  const sink = new MemorySink()
  const content = await writeImage(sink, 16 * MiB, Array.from({ length: 4096 }, (_, i) => i))
  const forwards = open(sink, content)
  for (let at = 0; at < 4 * MiB; at += 64 * KiB) await forwards.reader.read(at, 64 * KiB)
  assert.ok(forwards.reads.requests <= 40, `${forwards.reads.requests} requests for 64 reads`)
  assert.ok(forwards.cache.fetched > 4 * MiB / CHUNK, 'more than was read is here')
  const jumping = open(sink, content)
  for (const slot of [1000, 3000, 200, 2000, 4000]) await jumping.reader.read(slot * CHUNK, CHUNK)
  assert.equal(jumping.cache.fetched, 5)
  const striding = open(sink, content)
  for (let slot = 0; slot < 4096; slot += 256) await striding.reader.read(slot * CHUNK, CHUNK)
  assert.equal(striding.cache.fetched, 16, 'a step of a megabyte is a jump')
})
test('a chunk that lies ends the read with its name, a failed request fails those who waited, and the next one tries again', async () => {
  const sink = new MemorySink()
  const scene = open(sink, await writeImage(sink, MiB, [0, 1, 2]))
  scene.reads.failure = new RoostError('SERVER_BUSY', 'not now')
  await assert.rejects(Promise.all([scene.reader.read(0, 100), scene.reader.read(50, 100)]), { code: 'SERVER_BUSY' })
  scene.reads.failure = undefined
  assert.ok((await bytesAt(scene, 0, 100)).equals(noise(CHUNK, 1).subarray(0, 100)))
  const second = sink.put(noise(CHUNK, 2), CHUNK_KINDS.data)
  scene.reads.lieAbout = formatChunkId(second)
  await assert.rejects(scene.reader.read(CHUNK, 10), { code: 'CHUNK_CORRUPT', details: { chunk: formatChunkId(second) } })
  assert.ok((await bytesAt(scene, 2 * CHUNK, 100)).equals(noise(CHUNK, 3).subarray(0, 100)))
})
test('a chunk of another length than its place is refused, not served shifted', async () => {
  const sink = new MemorySink()
  const scene = open(sink, await writeImage(sink, MiB, [0, 1], (slot) => noise(slot === 0 ? 100 : CHUNK, slot + 1)))
  await assert.rejects(scene.reader.read(0, 10), { code: 'TREE_MALFORMED' })
})
test('what is wanted goes before what is only read ahead, also when it was read ahead already', async () => {
  const sink = new MemorySink()
  const scene = open(sink, await writeImage(sink, 64 * MiB, Array.from({ length: 16_384 }, (_, i) => i)))
  let openGate: () => void = () => undefined
  scene.reads.gate = new Promise((resolve) => { openGate = resolve })
  scene.reader.readAhead(0, 16 * MiB)
  const last = scene.reader.read(16 * MiB - CHUNK, CHUNK)
  openGate()
  const [piece] = await last
  assert.ok(piece!.data!.equals(noise(CHUNK, 4096)))
  const pieces = await scene.reader.read(0, 16 * MiB)
  assert.equal(pieces.length, 4096)
  assert.deepEqual([...new Set(scene.reads.asked.values())], [1], 'nothing was fetched twice')
})
