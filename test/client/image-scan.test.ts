import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, symlinkSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { ImageContent } from '../../client/image/image-node.js'
import { ImageTreeReader } from '../../client/image/image-tree.js'
import { scanImage, type DiskConfig, type ImageConfig } from '../../client/image/scan-image.js'
import { writeImage, type ImagePiece } from '../../client/image/write-image.js'
import * as posix from '../../client/native/posix.js'
import { DirectoryReader } from '../../client/tree/directory-reader.js'
import { ENTRY_TYPES, type Entry } from '../../client/tree/entry.js'
import type { ScanContext, SourceProblem } from '../../client/upload/chunk-sink.js'
import { hasCode, RoostError } from '../../src/core/errors.js'
import type { ChunkId } from '../../src/core/ids.js'
import { MemoryChunks, MemoryNodes, MemorySink } from '../support/memory-sink.js'

const KiB = 1024
const MiB = 1024 * KiB
const CHUNK = 64 * KiB
const PARAMETERS = { gearSeed: '00'.repeat(32), minBytes: 64, averageBytes: 64, maxBytes: 64, imageChunkBytes: CHUNK }

function directory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'roost-image-'))
  t.after(() => rmSync(path, { recursive: true, force: true }))
  return path
}
/** A sparse file with these runs of a byte. */
function imageFile(t: TestContext, bytes: number, runs: readonly { at: number; bytes: number; fill: number }[]): string {
  const path = join(directory(t), 'disk.img')
  const fd = openSync(path, 'w')
  ftruncateSync(fd, bytes)
  for (const run of runs) writeSync(fd, Buffer.alloc(run.bytes, run.fill), 0, run.bytes, run.at)
  closeSync(fd)
  return path
}
function change(path: string, at: number, bytes: Buffer): void {
  const fd = openSync(path, 'r+')
  writeSync(fd, bytes, 0, bytes.byteLength, at)
  closeSync(fd)
}

interface Scanned { root: ChunkId; entry: Entry; content: ImageContent; sink: MemorySink; problems: SourceProblem[]; context: ScanContext }
type FileDisk = Omit<DiskConfig, 'from' | 'name'> & { readonly name?: string; readonly path: string | Uint8Array }
const oneDisk = ({ path, name = basename(path.toString()), ...rest }: FileDisk): ImageConfig => ({ disks: [{ name, from: { kind: 'file', path }, ...rest }] })
async function scan(config: FileDisk, chunks = new MemoryChunks(), parent?: ScanContext['parent']): Promise<Scanned> {
  const sink = new MemorySink(chunks)
  const problems: SourceProblem[] = []
  const context: ScanContext = {
    sink, parent, report: (problem) => { problems.push(problem) }, at: () => undefined, note: () => undefined, signal: new AbortController().signal,
    counters: { files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, filesUnchanged: 0, errors: 0 },
  }
  const { root } = await scanImage(oneDisk(config), context, PARAMETERS)
  const entries: Entry[] = []
  for await (const entry of new DirectoryReader(new MemoryNodes(chunks, root), root).entries()) entries.push(entry)
  assert.equal(entries.length, 1)
  const [entry] = entries
  assert.ok(entry?.content?.kind === 'image')
  return { root, entry, content: entry.content, sink, problems, context }
}
const asParent = (chunks: MemoryChunks, root: ChunkId): NonNullable<ScanContext['parent']> =>
  ({ root, nodes: new MemoryNodes(chunks, root), startedAtMs: 0 }) as NonNullable<ScanContext['parent']>

async function* piecesOf({ content, sink }: Scanned): AsyncGenerator<ImagePiece> {
  const reader = new ImageTreeReader(new MemoryNodes(sink.chunks), content)
  for await (const { offset, bytes, id } of reader.extents())
    yield { offset, length: bytes, bytes: id === undefined ? undefined : sink.chunks.get(id).bytes }
}
async function restore(t: TestContext, scanned: Scanned, path = join(directory(t), 'restored.img')): Promise<string> {
  const fd = openSync(path, 'a+')
  closeSync(fd)
  const target = openSync(path, 'r+')
  try {
    await writeImage({ fd: target, imageBytes: scanned.content.bytes, pieces: piecesOf(scanned) })
  } finally { closeSync(target) }
  return path
}

test('a sparse image comes back byte for byte and as sparse, and its holes were not read', async (t) => {
  const path = imageFile(t, 300 * MiB + 123, [{ at: 0, bytes: 100, fill: 1 }, { at: 70 * MiB + 5, bytes: 3 * CHUNK, fill: 2 },
    { at: 300 * MiB + 100, bytes: 23, fill: 3 }])
  const scanned = await scan({ path })
  assert.ok(scanned.context.counters.bytesRead <= 8 * CHUNK, `${scanned.context.counters.bytesRead} bytes read`)
  assert.equal(scanned.context.counters.sourceBytes, 300 * MiB + 123)
  assert.deepEqual(scanned.problems, [])
  const restored = await restore(t, scanned)
  assert.ok(readFileSync(restored).equals(readFileSync(path)))
  assert.ok(statSync(restored).blocks <= statSync(path).blocks + 64, 'the restored file is sparse')
})

test('chunks of zeroes that occupy the disk are read but not stored, and are holes when restored', async (t) => {
  const path = imageFile(t, 4 * MiB, [{ at: 0, bytes: 4 * MiB, fill: 0 }, { at: 2 * MiB, bytes: 1, fill: 9 }])
  const scanned = await scan({ path })
  assert.deepEqual([scanned.sink.taken.dataChunks, scanned.context.counters.bytesRead], [1, 4 * MiB])
  assert.ok(statSync(await restore(t, scanned)).blocks * 512 <= 16 * KiB)
})

test('the second backup of an unchanged image inherits all; after an edit it stores the chunk and the nodes above it', async (t) => {
  const bytes = 40 * MiB
  const path = imageFile(t, bytes, Array.from({ length: bytes / CHUNK }, (_, i) => ({ at: i * CHUNK, bytes: CHUNK, fill: 1 + i % 250 })))
  const first = await scan({ path })
  const { chunks } = first.sink
  const again = await scan({ path }, chunks, asParent(chunks, first.root))
  assert.deepEqual(again.sink.taken, { dataChunks: 0, dataBytes: 0, nodes: 0, nodeBytes: 0 })
  change(path, 20 * MiB + 7, Buffer.from('edited'))
  const edited = await scan({ path }, chunks, asParent(chunks, again.root))
  assert.deepEqual([edited.sink.taken.dataChunks, edited.sink.taken.nodes], [1, 3], 'the chunk; its leaf, the root of the tree, the directory')
  assert.ok(readFileSync(await restore(t, edited)).equals(readFileSync(path)))
})

test('a grown and a shrunk image inherit what they share, with a tail that is not whole', async (t) => {
  const path = imageFile(t, 20 * MiB + 17, [{ at: 0, bytes: 20 * MiB + 17, fill: 5 }, { at: 3 * MiB, bytes: CHUNK, fill: 6 }])
  const first = await scan({ path })
  const { chunks } = first.sink
  const fd = openSync(path, 'r+')
  t.after(() => closeSync(fd))
  ftruncateSync(fd, 60 * MiB + 1)
  writeSync(fd, Buffer.from('end'), 0, 1, 60 * MiB)
  const grown = await scan({ path }, chunks, asParent(chunks, first.root))
  assert.equal(grown.sink.taken.dataChunks, 2, 'the chunk that was the tail, and the new tail')
  assert.ok(readFileSync(await restore(t, grown)).equals(readFileSync(path)))
  ftruncateSync(fd, 10 * MiB + 5)
  const shrunk = await scan({ path }, chunks, asParent(chunks, grown.root))
  assert.equal(shrunk.sink.taken.dataChunks, 1)
  assert.ok(readFileSync(await restore(t, shrunk)).equals(readFileSync(path)))
})

test('an image keeps the chunk size of its parent unless told otherwise; odd sizes are refused', async (t) => {
  const path = imageFile(t, MiB, [{ at: 0, bytes: MiB, fill: 1 }])
  const first = await scan({ path, chunkBytes: 16 * KiB })
  const { chunks } = first.sink
  assert.equal((await scan({ path }, chunks, asParent(chunks, first.root))).content.chunkBytes, 16 * KiB)
  assert.equal((await scan({ path, chunkBytes: 32 * KiB }, chunks, asParent(chunks, first.root))).content.chunkBytes, 32 * KiB)
  assert.equal((await scan({ path })).content.chunkBytes, CHUNK)
  for (const chunkBytes of [0, 1024, 100_000, 8 * MiB])
    await assert.rejects(scan({ path, chunkBytes }), (error) => hasCode(error, 'REQUEST_MALFORMED'))
})

test('the entry has the name, owner, times and mode of the image, through a symlink too', async (t) => {
  const path = imageFile(t, 10, [{ at: 0, bytes: 10, fill: 1 }])
  posix.utimensNs(Buffer.from(path), 0n, 1_234_567_891_234_567_891n)
  const link = join(directory(t), 'link')
  symlinkSync(path, link)
  const { entry } = await scan({ path: Buffer.from(link) })
  assert.equal(entry.name.toString(), 'link')
  assert.equal(entry.type, ENTRY_TYPES.image)
  assert.equal(entry.mtimeNs, 1_234_567_891_234_567_891n)
  assert.equal(entry.uid, statSync(path).uid)
  assert.equal(entry.mode, statSync(path).mode & 0o7777)
  assert.equal((await scan({ path, name: 'root.disk' })).entry.name.toString(), 'root.disk')
  await assert.rejects(scan({ path, name: '../x' }), (error) => hasCode(error, 'REQUEST_MALFORMED'))
  await assert.rejects(scan({ path: tmpdir() }), (error) => hasCode(error, 'REQUEST_MALFORMED'))
})

test('an image that is renamed is still found in the parent', async (t) => {
  const path = imageFile(t, MiB, [{ at: 0, bytes: MiB, fill: 1 }])
  const first = await scan({ path, name: 'old' })
  const renamed = await scan({ path, name: 'new' }, first.sink.chunks, asParent(first.sink.chunks, first.root))
  assert.equal(renamed.sink.taken.dataChunks, 0)
})

test('an image cut short or written to while it is read is reported', async (t) => {
  const path = imageFile(t, 4 * MiB, [{ at: 0, bytes: 4 * MiB, fill: 1 }])
  for (const interfere of [() => { change(path, 0, Buffer.from('x')) }, () => {
    const fd = openSync(path, 'r+'); ftruncateSync(fd, MiB); closeSync(fd)
  }]) {
    const sink = new InterferingSink(interfere)
    const problems: SourceProblem[] = []
    const counters = { files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, filesUnchanged: 0, errors: 0 }
    await scanImage(oneDisk({ path }), { sink, parent: undefined, counters, report: (p) => { problems.push(p) }, at: () => undefined, note: () => undefined,
      signal: new AbortController().signal }, PARAMETERS)
    assert.deepEqual(problems.map(({ reason, path: where }) => [reason, where]), [['changed', path]])
  }
})
class InterferingSink extends MemorySink {
  #spaces = 0
  constructor(readonly interfere: () => void) { super() }
  override space(bytesMin: number, keepBytes = 0): Buffer {
    if (++this.#spaces === 30) this.interfere()
    return super.space(bytesMin, keepBytes)
  }
}

test('a parent with missing nodes is left alone from there on, and one that cannot be reached ends the scan', async (t) => {
  const path = imageFile(t, 40 * MiB, [{ at: 0, bytes: 40 * MiB, fill: 1 }])
  const first = await scan({ path })
  const lost = (nodes: number): ScanContext['parent'] => {
    const parent = asParent(first.sink.chunks, first.root)
    let reads = 0
    return { ...parent, nodes: { readNodes: async (ids) => {
      if (reads++ >= nodes) throw new RoostError('CHUNK_MISSING', 'gone')
      return await parent.nodes.readNodes(ids)
    } } }
  }
  for (const nodes of [0, 1, 2]) {
    const again = await scan({ path }, first.sink.chunks, lost(nodes))
    assert.ok(again.sink.taken.dataChunks > 0, `${nodes} nodes readable`)
    assert.ok(readFileSync(await restore(t, again)).equals(readFileSync(path)))
  }
  const unreachable = { ...asParent(first.sink.chunks, first.root), nodes: { readNodes: () => Promise.reject(new RoostError('SERVER_BUSY', 'busy')) } }
  await assert.rejects(scan({ path }, first.sink.chunks, unreachable), (error) => hasCode(error, 'SERVER_BUSY'))
})

test('a cancelled scan ends with the reason', async (t) => {
  const path = imageFile(t, MiB, [{ at: 0, bytes: MiB, fill: 1 }])
  const reason = new Error('enough')
  const counters = { files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, filesUnchanged: 0, errors: 0 }
  await assert.rejects(scanImage(oneDisk({ path }), { sink: new MemorySink(), parent: undefined, counters, report: () => undefined,
    at: () => undefined, note: () => undefined, signal: AbortSignal.abort(reason) }, PARAMETERS), reason)
})

test('writing over an existing file leaves nothing of it; a piece outside the image or a gap is refused', async (t) => {
  const scanned = await scan({ path: imageFile(t, 3 * MiB, [{ at: MiB, bytes: CHUNK, fill: 4 }]) })
  const target = imageFile(t, 9 * MiB, [{ at: 0, bytes: 9 * MiB, fill: 0xee }])
  await restore(t, scanned, target)
  const bytes = readFileSync(target)
  assert.equal(bytes.byteLength, 3 * MiB)
  assert.ok(bytes.subarray(0, MiB).every((byte) => byte === 0) && bytes[MiB] === 4)
  const fd = openSync(target, 'r+')
  t.after(() => closeSync(fd))
  const write = (...pieces: ImagePiece[]): Promise<void> =>
    writeImage({ fd, imageBytes: 100, pieces: (async function* () { yield* pieces })() })
  await assert.rejects(write({ offset: 90, length: 20, bytes: undefined }), /within the image/)
  await assert.rejects(write({ offset: 0, length: 50, bytes: undefined }), /whole image/)
  await write({ offset: 50, length: 50, bytes: Buffer.alloc(50, 7) }, { offset: 0, length: 50, bytes: undefined })
  assert.equal(statSync(target).size, 100)
})

test('a block device is backed up, and is restored onto with its holes zeroed; a smaller one is refused', async (t) => {
  const source = loopDevice(t, imageFile(t, 8 * MiB, [{ at: MiB, bytes: CHUNK, fill: 4 }]))
  if (source === undefined) return t.skip('needs root and loop devices')
  const scanned = await scan({ path: source })
  assert.equal(scanned.content.bytes, 8 * MiB)
  assert.equal(scanned.sink.taken.dataChunks, 1)
  const target = loopDevice(t, imageFile(t, 9 * MiB, [{ at: 0, bytes: 9 * MiB, fill: 0xee }]))!
  await restore(t, scanned, target)
  const [wanted, got] = [readFileSync(source), readFileSync(target)]
  assert.ok(got.subarray(0, 8 * MiB).equals(wanted))
  assert.ok(got.subarray(8 * MiB).every((byte) => byte === 0xee), 'what is past the image stays')
  const small = loopDevice(t, imageFile(t, 4 * MiB, []))!
  await assert.rejects(restore(t, scanned, small), (error) => hasCode(error, 'LIMIT_EXCEEDED'))
})
function loopDevice(t: TestContext, path: string): string | undefined {
  try {
    const device = execFileSync('losetup', ['-f', '--show', path], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
    t.after(() => { execFileSync('losetup', ['-d', device]) })
    return device
  } catch {
    return undefined // not root, no loop devices, or no losetup: the caller skips
  }
}
