/** Disks with a dirty map: what is taken over from the parent, what is read, and that a map which misses a write is found out. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { auditSample } from '../../client/image/audit-sample.js'
import type { BlockReads, BlockSource, SourceExtent } from '../../client/image/block-source.js'
import type { ImageContent } from '../../client/image/image-node.js'
import { ImageTreeReader } from '../../client/image/image-tree.js'
import { ownFacts } from '../../client/image/own-facts.js'
import { scanDisk, type DiskScanOptions, type DiskScanResult } from '../../client/image/scan-disk.js'
import type { ScanContext, SourceProblem } from '../../client/upload/chunk-sink.js'
import { RoostError } from '../../src/core/errors.js'
import { MappedSource } from '../support/mapped-source.js'
import { MemoryChunks, MemoryNodes, MemorySink } from '../support/memory-sink.js'

const CHUNK = 4096
const BLOCK = 1024

interface Outcome { readonly result: DiskScanResult; readonly sink: MemorySink; readonly problems: SourceProblem[]; readonly notes: string[]; readonly context: ScanContext }
async function scan(source: BlockSource, chunks: MemoryChunks, parent?: ImageContent, options: Partial<DiskScanOptions> = {}): Promise<Outcome> {
  const sink = new MemorySink(chunks)
  const problems: SourceProblem[] = []
  const notes: string[] = []
  const context: ScanContext = {
    sink, parent: undefined, report: (problem) => { problems.push(problem) }, note: (text) => { notes.push(text) }, at: () => undefined,
    signal: new AbortController().signal,
    counters: { files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, filesUnchanged: 0, errors: 0 },
  }
  const result = await scanDisk({
    name: 'disk', source, shape: { imageBytes: source.bytes, chunkBytes: CHUNK }, context, audit: undefined, limit: undefined, mapRefusal: undefined,
    parent: parent === undefined ? undefined : { nodes: new MemoryNodes(chunks), content: parent }, usesMap: parent !== undefined, ...options,
  })
  assert.equal(context.counters.sourceBytes, source.bytes, 'progress comes to the end, whatever was read twice')
  return { result, sink, problems, notes, context }
}
async function bytesOf(content: ImageContent, chunks: MemoryChunks): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const { bytes, id } of new ImageTreeReader(new MemoryNodes(chunks), content).extents())
    parts.push(id === undefined ? Buffer.alloc(bytes) : chunks.get(id).bytes)
  return Buffer.concat(parts)
}
const blocksOf = (bytes: number): number => Math.ceil(bytes / BLOCK)

describe('a dirty map', () => {
  const KINDS: readonly BlockReads['kind'][] = ['direct', 'queued']
  test('gives exactly the tree of a full reading, and reads no slot that is all clean', async () => {
    const write = fc.record({ at: fc.double({ min: 0, max: 0.999, noNaN: true }), blocks: fc.integer({ min: 1, max: 60 }), fill: fc.integer({ min: 0, max: 3 }) })
    await fc.assert(fc.asyncProperty(fc.record({
      bytes: fc.oneof(fc.integer({ min: 1, max: 40 * CHUNK }), fc.integer({ min: 250 * CHUNK, max: 600 * CHUNK })),
      first: fc.array(write, { maxLength: 12 }), later: fc.array(write, { maxLength: 6 }), kind: fc.constantFrom(...KINDS), share: fc.constantFrom(0, 0.2, 1),
      spurious: fc.array(fc.double({ min: 0, max: 0.999, noNaN: true }), { maxLength: 4 }),
    }), async ({ bytes, first, later, kind, share, spurious }) => {
      const disk = Buffer.alloc(bytes)
      const dirty = new Array<boolean>(blocksOf(bytes)).fill(false)
      const apply = ({ at, blocks, fill }: (typeof first)[number]): void => {
        const from = Math.floor(at * dirty.length)
        dirty.fill(true, from, from + blocks)
        disk.fill(fill, from * BLOCK, Math.min(bytes, (from + blocks) * BLOCK))
      }
      first.forEach(apply)
      const chunks = new MemoryChunks()
      const full = await scan(new MappedSource({ bytes: Buffer.from(disk), blockBytes: BLOCK, kind }), chunks)
      dirty.fill(false)
      later.forEach(apply)
      for (const place of spurious) dirty[Math.floor(place * dirty.length)] = true
      const source = new MappedSource({ bytes: disk, blockBytes: BLOCK, kind, dirty })
      const second = await scan(source, chunks, full.result.content, { audit: { share, seed: 'x' } })
      const wanted = await scan(new MappedSource({ bytes: disk, blockBytes: BLOCK, kind: 'direct' }), new MemoryChunks())
      assert.deepEqual(second.result.content, wanted.result.content)
      assert.ok((await bytesOf(second.result.content, chunks)).equals(disk))
      assert.deepEqual([second.result.read, second.problems, second.notes], ['incremental', [], []])
      assert.equal(second.context.counters.bytesRead, second.result.dirtyBytes + second.result.auditedBytes)
      assert.equal(second.context.counters.bytesRead, source.askedBytes)
      if (share === 1) assert.equal(second.result.auditedBytes, second.result.cleanBytes)
      if (share === 0) for (const { position, bytes: length } of source.asked)
        for (let at = position; at < position + length; at += CHUNK)
          assert.ok(dirty.slice(at / BLOCK, Math.ceil(Math.min(bytes, at + CHUNK) / BLOCK)).includes(true), 'a slot that is read is dirty somewhere')
    }), { numRuns: 150 })
  })
  test('over an unchanged disk reads nothing of it and no node of the parent', async () => {
    const bytes = Buffer.alloc(70_000 * CHUNK / 16, 7) // three levels would be 65 536 slots; two are enough
    const chunks = new MemoryChunks()
    const first = await scan(new MappedSource({ bytes, blockBytes: 16 * CHUNK, kind: 'direct' }), chunks)
    const nodes = new MemoryNodes(chunks)
    const source = new MappedSource({ bytes, blockBytes: 16 * CHUNK, kind: 'queued', dirty: new Array<boolean>(Math.ceil(bytes.byteLength / CHUNK / 16)).fill(false) })
    const again = await scan(source, chunks, first.result.content, { parent: { nodes, content: first.result.content } })
    assert.deepEqual([again.result.content, source.asked, nodes.calls], [first.result.content, [], []])
    assert.deepEqual(again.sink.taken, { dataChunks: 0, dataBytes: 0, nodes: 0, nodeBytes: 0 })
  })
  test('that discarded blocks are dirty in is not taken for clean where half a slot is zero', async () => {
    const bytes = Buffer.alloc(4 * CHUNK, 5)
    const chunks = new MemoryChunks()
    const first = await scan(new MappedSource({ bytes: Buffer.from(bytes), blockBytes: BLOCK, kind: 'direct' }), chunks)
    bytes.fill(0, CHUNK, CHUNK + 2 * BLOCK)
    const dirty = new Array<boolean>(16).fill(false).fill(true, 4, 6)
    const second = await scan(new MappedSource({ bytes, blockBytes: BLOCK, kind: 'queued', dirty }), chunks, first.result.content)
    assert.ok((await bytesOf(second.result.content, chunks)).equals(bytes))
    assert.equal(second.context.counters.bytesRead, CHUNK)
  })
})

describe('a dirty map that misses a write', () => {
  async function lied(kind: BlockReads['kind'], share: number, fill: number): Promise<{ outcome: Outcome; disk: Buffer; chunks: MemoryChunks }> {
    const disk = Buffer.alloc(600 * CHUNK, 3)
    const chunks = new MemoryChunks()
    const first = await scan(new MappedSource({ bytes: Buffer.from(disk), blockBytes: BLOCK, kind: 'direct' }), chunks)
    disk.fill(fill, 400 * CHUNK + 5, 400 * CHUNK + 5 + (fill === 0 ? CHUNK * 3 : 1))
    const dirty = new Array<boolean>(blocksOf(disk.byteLength)).fill(false).fill(true, 40, 50)
    const source = new MappedSource({ bytes: disk, blockBytes: BLOCK, kind, dirty })
    return { outcome: await scan(source, chunks, first.result.content, { audit: { share, seed: 'today' } }), disk, chunks }
  }
  for (const kind of ['direct', 'queued'] as const) test(`is found by an audit of all, told of, and distrusted: the snapshot is right (${kind})`, async () => {
    for (const fill of [9, 0]) {
      const { outcome: { result, problems, notes, context }, disk, chunks } = await lied(kind, 1, fill)
      assert.deepEqual([result.read, result.auditMismatches, result.cleanBytes, result.dirtyBytes], ['full', 1, 0, 0])
      assert.match(result.reason!, /dirty map is wrong.*at 1638400 clean/)
      assert.deepEqual(problems.map(({ path, reason }) => [path, reason]), [['disk', 'map-wrong']])
      assert.match(notes.join('\n'), /disk is read in full: its dirty map is wrong/)
      assert.ok((await bytesOf(result.content, chunks)).equals(disk))
      assert.ok(context.counters.bytesRead > disk.byteLength, 'what the first reading read is counted too')
    }
  })
  test('goes unnoticed without an audit: that is what the audit is for', async () => {
    const { outcome: { result }, disk, chunks } = await lied('direct', 0, 9)
    assert.equal(result.read, 'incremental')
    assert.ok(!(await bytesOf(result.content, chunks)).equals(disk))
  })
  test('an audit takes its share of slots, the same for a seed, others for another', () => {
    const slots = Array.from({ length: 100_000 }, (_, slot) => slot)
    const sampled = (seed: string, share: number): number[] => slots.filter(auditSample({ share, seed }))
    for (const share of [0.01, 0.1, 0.5]) assert.ok(Math.abs(sampled('a', share).length / 100_000 - share) < share / 5, `about ${share}`)
    assert.deepEqual(sampled('a', 0.01), sampled('a', 0.01))
    assert.notDeepEqual(sampled('a', 0.01), sampled('b', 0.01))
    assert.deepEqual([sampled('a', 0).length, sampled('a', 1).length, sampled('a', Number.NaN).length], [0, 100_000, 0])
    assert.notEqual(auditSample({ share: 0.5, seed: 'a' })(2 ** 33 + 1), undefined)
  })
})

test('a parent whose nodes are lost, or a map that is refused, leads to a full reading with its reason', async () => {
  const disk = Buffer.alloc(600 * CHUNK, 3)
  const chunks = new MemoryChunks()
  const first = await scan(new MappedSource({ bytes: disk, blockBytes: BLOCK, kind: 'direct' }), chunks)
  const dirty = new Array<boolean>(blocksOf(disk.byteLength)).fill(false).fill(true, 2000, 2001)
  const source = (): MappedSource => new MappedSource({ bytes: disk, blockBytes: BLOCK, kind: 'queued', dirty })
  const lost = await scan(source(), chunks, first.result.content, {
    parent: { content: first.result.content, nodes: { readNodes: () => Promise.reject(new RoostError('CHUNK_MISSING', 'gone')) } } })
  assert.deepEqual([lost.result.read, lost.result.reason, lost.problems], ['full', 'the parent snapshot cannot be read in all its parts', []])
  assert.ok((await bytesOf(lost.result.content, chunks)).equals(disk))
  const refused = await scan(source(), chunks, first.result.content, { usesMap: false, mapRefusal: 'it is of another disk' })
  assert.deepEqual([refused.result.read, refused.result.reason, refused.notes], ['full', 'it is of another disk', ['disk is read in full: it is of another disk']])
  assert.equal(refused.sink.taken.dataChunks, 0, 'it still is compared with the parent')
  const down = new RoostError('SERVER_BUSY', 'busy')
  await assert.rejects(scan(source(), chunks, first.result.content, { parent: { content: first.result.content, nodes: { readNodes: () => Promise.reject(down) } } }), down)
})

test('reading is limited before it happens: every byte that is read was asked for', async () => {
  for (const kind of ['direct', 'queued'] as const) {
    const taken: number[] = []
    const limit = { bytesPerSecond: 1, pieceBytes: 1, take: async (bytes: number) => { taken.push(bytes) } }
    const source = new MappedSource({ bytes: Buffer.alloc(50 * CHUNK + 7, 1), blockBytes: BLOCK, kind })
    const { context } = await scan(source, new MemoryChunks(), undefined, { limit })
    assert.equal(taken.reduce((sum, bytes) => sum + bytes, 0), context.counters.bytesRead, kind)
  }
})

/** A disk of three levels without its bytes in memory: slots with data are listed, each is filled with what its version says. */
class SparseSource implements BlockSource {
  readonly isDevice = false
  readonly facts = ownFacts()
  readonly read: number[] = []
  readonly reads: BlockReads = { kind: 'queued', requestBytes: CHUNK, windowBytes: 8 * CHUNK, read: async (position, bytes) => {
    this.read.push(position / CHUNK)
    const version = this.data.get(position / CHUNK)
    return version === undefined ? undefined : Buffer.alloc(bytes, version)
  } }
  constructor(readonly bytes: number, readonly data: ReadonlyMap<number, number>, readonly dirty: readonly number[]) {}
  async *extents(withMap: boolean): AsyncGenerator<SourceExtent> {
    const marked = withMap ? this.dirty : [...this.data.keys()].sort((a, b) => a - b)
    let offset = 0
    for (const slot of marked) {
      if (slot * CHUNK > offset) yield { offset, bytes: slot * CHUNK - offset, state: withMap ? 'clean' : 'zero' }
      yield { offset: slot * CHUNK, bytes: Math.min(CHUNK, this.bytes - slot * CHUNK), state: withMap && !this.data.has(slot) ? 'zero' : 'data' }
      offset = Math.min(this.bytes, (slot + 1) * CHUNK)
    }
    if (offset < this.bytes) yield { offset, bytes: this.bytes - offset, state: withMap ? 'clean' : 'zero' }
  }
  changes(): undefined { return undefined }
  close(): void { /* nothing is open */ }
}
test('a tree of three levels is taken over in whole branches: the nodes that are read follow what was written', async () => {
  const slots = 3 * 65_536 - 777
  const bytes = (slots - 1) * CHUNK + 100
  const data = new Map<number, number>()
  for (let slot = 0; slot < slots; slot += 61) data.set(slot, 1 + slot % 200)
  data.set(slots - 1, 5)
  const chunks = new MemoryChunks()
  const first = await scan(new SparseSource(bytes, data, []), chunks)
  for (const dirty of [[], [0], [slots - 1], [65_535, 65_536], [700, 70_000, 70_001, 150_000], [61 * 2_000]]) {
    const now = new Map(data)
    for (const slot of dirty) if (slot % 61 === 0 && slot > 0) now.delete(slot); else now.set(slot, 250)
    const source = new SparseSource(bytes, now, dirty)
    const nodes = new MemoryNodes(chunks)
    const { result } = await scan(source, chunks, first.result.content, { parent: { nodes, content: first.result.content } })
    const wanted = await scan(new SparseSource(bytes, now, []), new MemoryChunks())
    assert.deepEqual(result.content, wanted.result.content, `after writing to ${dirty.join()}`)
    assert.deepEqual(source.read, dirty.filter((slot) => now.has(slot)))
    const nodesRead = nodes.calls.reduce((sum, count) => sum + count, 0)
    assert.ok(nodesRead <= dirty.length * 11, `${nodesRead} nodes for ${dirty.length} slots: the path, and leaves read ahead`)
  }
})
