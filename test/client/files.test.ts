/** Bug classes: a file, name or attribute that is saved different from what it is; a change that is not noticed; an unchanged
 *  file that is read again; a path that ends the walk. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  appendFileSync, chmodSync, fstatSync, ftruncateSync, linkSync, lstatSync, mkdirSync, mkdtempSync, openSync,
  closeSync, readFileSync, renameSync, symlinkSync, truncateSync, unlinkSync, utimesSync, writeFileSync, writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { RateLimiter } from '../../src/core/rate-limit.js'
import { isErrno } from '../../src/core/errors.js'
import { chunkKey, type ChunkId } from '../../src/core/ids.js'
import type { ChunkerParameters } from '../../src/core/messages.js'
import { DirectoryStack } from '../../client/files/directory-stack.js'
import { scanFiles, type FilesConfig } from '../../client/files/scan-files.js'
import { lsetxattr, mkfifo } from '../../client/native/posix.js'
import { listExtents } from '../../client/tree/content-reader.js'
import { DirectoryReader } from '../../client/tree/directory-reader.js'
import { ENTRY_TYPES, type Entry } from '../../client/tree/entry.js'
import type { ScanCounters, SourceProblem } from '../../client/upload/chunk-sink.js'
import { MemoryChunks, MemoryNodes, MemorySink } from '../support/memory-sink.js'

const PARAMETERS: ChunkerParameters =
  { gearSeed: '5a'.repeat(32), minBytes: 4_096, averageBytes: 16_384, maxBytes: 65_536, imageChunkBytes: 65_536 }
/** Later than any time a test sets: nothing is racy unless a test says so. */
const FAR_FUTURE_MS = 4_000_000_000_000

interface Scan { root: ChunkId; chunks: MemoryChunks; sink: MemorySink; counters: ScanCounters; problems: SourceProblem[]; nodeCalls: number[] }
interface ScanOptions { parent?: Scan; startedAtMs?: number; signal?: AbortSignal; sink?: MemorySink; limitRead?: RateLimiter }

function scratch(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'roost-files-'))
  t.after(() => { execFileSync('rm', ['-rf', directory]) }) // rmSync cannot go deeper than PATH_MAX
  return directory
}
async function scan(paths: string | readonly (string | Buffer)[], config: Partial<FilesConfig> = {}, options: ScanOptions = {}): Promise<Scan> {
  const chunks = options.parent?.chunks ?? new MemoryChunks()
  const sink = options.sink ?? new MemorySink(chunks)
  const counters = { files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, filesUnchanged: 0, errors: 0 }
  const problems: SourceProblem[] = []
  const nodes = options.parent === undefined ? undefined : new MemoryNodes(chunks, options.parent.root)
  const { root } = await scanFiles({ paths: [paths].flat().map((path) => Buffer.from(path as string)), ...config }, {
    sink, counters, report: (problem) => { problems.push(problem) }, at: () => {}, note: () => {}, signal: options.signal ?? new AbortController().signal,
    parent: nodes === undefined ? undefined
      : { root: options.parent!.root, nodes, startedAtMs: options.startedAtMs ?? FAR_FUTURE_MS },
    ...(options.limitRead === undefined ? {} : { limitRead: options.limitRead }),
  }, PARAMETERS)
  return { root, chunks: sink.chunks, sink, counters, problems, nodeCalls: nodes?.calls ?? [] }
}
async function list(result: Scan, path: string | Buffer = '/'): Promise<Entry[]> {
  const entry = await lookUp(result, path)
  const entries: Entry[] = []
  for await (const each of new DirectoryReader(new MemoryNodes(result.chunks), entry?.subtree ?? result.root).entries()) entries.push(each)
  return entries
}
const names = async (result: Scan, path: string): Promise<string[]> => (await list(result, path)).map(({ name }) => name.toString('latin1'))
/** undefined for '/'. */
async function lookUp(result: Scan, path: string | Buffer): Promise<Entry | undefined> {
  let entry: Entry | undefined
  for (const name of Buffer.from(path as string).toString('latin1').split('/').filter((part) => part !== '')) {
    const reader = new DirectoryReader(new MemoryNodes(result.chunks), entry?.subtree ?? result.root)
    entry = await reader.find(Buffer.from(name, 'latin1'))
    assert.ok(entry, `${name} of ${path.toString()} is saved`)
  }
  return entry
}
const get = async (result: Scan, path: string | Buffer): Promise<Entry> => (await lookUp(result, path))!
async function contentOf(result: Scan, path: string | Buffer): Promise<Buffer> {
  const { content } = await get(result, path)
  const parts: Buffer[] = []
  for await (const { bytes, id } of listExtents(new MemoryNodes(result.chunks), content!))
    parts.push(id === undefined ? Buffer.alloc(bytes) : result.chunks.get(id).bytes)
  const joined = Buffer.concat(parts)
  assert.equal(joined.byteLength, content!.bytes)
  return joined
}
/** Bytes that no chunker finds regular. */
function noise(bytes: number, seed = 1): Buffer {
  const buffer = Buffer.alloc(bytes)
  for (let i = 0, x = seed; i + 4 <= bytes; i += 4) { x = Math.imul(x, 1664525) + 1013904223 | 0; buffer.writeInt32LE(x ^ x >>> 15, i) }
  return buffer
}

test('files of every size come back byte for byte', async (t) => {
  const at = scratch(t)
  const sizes = [0, 1, 4_095, 4_096, 65_536, 65_537, 1_000_003, 9_000_000]
  for (const size of sizes) writeFileSync(`${at}/${size}`, noise(size, size))
  const result = await scan(at)
  for (const size of sizes) assert.ok((await contentOf(result, `${at}/${size}`)).equals(noise(size, size)), `${size} bytes`)
  assert.deepEqual(result.problems, [])
  assert.deepEqual([result.counters.files, result.counters.bytesRead], [sizes.length, sizes.reduce((a, b) => a + b)])
  assert.equal((await get(result, `${at}/9000000`)).content!.kind, 'list')
})

test('names are bytes: invalid UTF-8, newlines, 255 bytes, all in byte order', async (t) => {
  const at = scratch(t)
  const odd = [Buffer.from([0xff, 0xfe]), Buffer.from('new\nline'), Buffer.alloc(255, 0x78), Buffer.from(' '), Buffer.from('é'), Buffer.from('-rf')]
  for (const name of odd) writeFileSync(Buffer.concat([Buffer.from(`${at}/`), name]), name)
  const result = await scan(at)
  const saved = (await list(result, at)).map(({ name }) => name)
  assert.deepEqual(saved, odd.sort(Buffer.compare))
})

test('links, fifos and sockets are saved as what they are', async (t) => {
  const at = scratch(t)
  symlinkSync(Buffer.from([0x2f, 0xff, 0x0a]), Buffer.from(`${at}/link`))
  mkfifo(Buffer.from(`${at}/fifo`), 0o640)
  const result = await scan(at)
  const link = await get(result, `${at}/link`)
  assert.deepEqual([link.type, link.symlinkTarget], [ENTRY_TYPES.symlink, Buffer.from([0x2f, 0xff, 0x0a])])
  assert.equal((await get(result, `${at}/fifo`)).type, ENTRY_TYPES.fifo)
  const device = await get(await scan('/dev/null'), '/dev/null')
  assert.deepEqual([device.type, device.deviceMajor, device.deviceMinor], [ENTRY_TYPES.characterDevice, 1, 3])
  assert.equal(result.counters.others, 2)
})

test('mode, owner, times to the nanosecond and inode are as lstat says', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, 'x')
  chmodSync(`${at}/f`, 0o4751)
  utimesSync(`${at}/f`, 1, -5.5)
  const stat = lstatSync(`${at}/f`, { bigint: true })
  const entry = await get(await scan(at), `${at}/f`)
  assert.deepEqual([entry.mode, entry.uid, entry.gid], [0o4751, Number(stat.uid), Number(stat.gid)])
  assert.deepEqual([entry.mtimeNs, entry.ctimeNs, entry.inode, entry.device], [stat.mtimeNs, stat.ctimeNs, stat.ino, stat.dev])
  if (stat.uid === 0n) assert.equal(entry.user, 'root')
})

test('extended attributes of files and directories are saved', async (t) => {
  const at = scratch(t)
  mkdirSync(`${at}/d`)
  writeFileSync(`${at}/f`, 'x')
  const value = Buffer.from([0, 1, 255])
  try { for (const name of ['d', 'f']) lsetxattr(Buffer.from(`${at}/${name}`), Buffer.from('user.test'), value) } catch (error) {
    if (isErrno(error, 'ENOTSUP') || isErrno(error, 'EPERM')) return t.skip('no user xattrs on this file system')
    throw error
  }
  const result = await scan(at)
  for (const name of ['d', 'f']) {
    const { xattrs } = await get(result, `${at}/${name}`)
    assert.deepEqual(xattrs.filter(({ name: key }) => key.toString() === 'user.test').map((xattr) => xattr.value), [value])
  }
})

test('a file of several names is read once', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/a`, noise(50_000))
  linkSync(`${at}/a`, `${at}/b`)
  linkSync(`${at}/a`, `${at}/c`)
  const result = await scan(at)
  const [a, , c] = await list(result, at)
  assert.equal(result.counters.bytesRead, 50_000)
  assert.deepEqual([a!.linkCount, a!.inode, a!.content], [3, c!.inode, c!.content])
})

test('holes are not read and come back as zeroes', async (t) => {
  const at = scratch(t)
  const fd = openSync(`${at}/sparse`, 'w')
  writeSync(fd, noise(8_192), 0, 8_192, 1_048_576)
  ftruncateSync(fd, 64 * 1_048_576)
  const { blocks } = fstatSync(fd)
  closeSync(fd)
  truncateSync(`${at}/sparse`, 64 * 1_048_576)
  if (blocks * 512 > 1_048_576) return t.skip('no holes on this file system')
  const result = await scan(at)
  assert.ok(result.counters.bytesRead < 200_000, `${result.counters.bytesRead} bytes read`)
  assert.ok((await contentOf(result, `${at}/sparse`)).equals(readFileSync(`${at}/sparse`)))
})

test('directories nest 200 deep with names of 255 bytes, far beyond PATH_MAX, with few open', async (t) => {
  const at = scratch(t)
  const name = 'd'.repeat(255)
  {
    using stack = new DirectoryStack()
    for (const part of ['', ...at.split('/').slice(1)]) stack.enter(part)
    for (let depth = 0; depth < 200; depth++) {
      mkdirSync(stack.path(name))
      stack.enter(name)
    }
    writeFileSync(stack.path('bottom'), 'here')
  }
  const result = await scan(at)
  assert.deepEqual(result.problems, [])
  assert.equal(String(await contentOf(result, `${at}/${`${name}/`.repeat(200)}bottom`)), 'here')
  assert.equal(result.counters.files, 1)
})

test('a stack that may hold two directories open still finds its way back, and notices when there is none', (t) => {
  const at = scratch(t)
  mkdirSync(`${at}/1/2/3/4`, { recursive: true })
  for (const place of ['', '/1', '/1/2', '/1/2/3']) writeFileSync(`${at}${place}/file`, '')
  using stack = new DirectoryStack(2)
  for (const name of ['', ...at.split('/').slice(1), '1', '2', '3', '4']) stack.enter(name)
  stack.leave()
  assert.ok(lstatSync(stack.path('file')).isFile())
  stack.leave()
  assert.deepEqual(stack.names(0n), ['3', 'file'])
  renameSync(`${at}/1/2`, `${at}/moved`)
  stack.leave()
  assert.throws(() => lstatSync(stack.path('file')), (error) => isErrno(error, 'ENOENT'))
})

test('a large directory goes through several nodes and batches', async (t) => {
  const at = scratch(t)
  for (let i = 0; i < 3_000; i++) writeFileSync(`${at}/${i}`, '')
  const result = await scan(at)
  assert.equal((await list(result, at)).length, 3_000)
  using stack = new DirectoryStack()
  for (const name of ['', ...at.split('/').slice(1)]) stack.enter(name)
  assert.deepEqual(stack.names(10_000_000n), stack.names(0n), 'batched and whole reading agree')
})

test('nothing changed: nothing is read, no chunk is taken, every node is inherited, and few calls are made', async (t) => {
  const at = scratch(t)
  for (let d = 0; d < 30; d++) {
    mkdirSync(`${at}/${d}/empty`, { recursive: true })
    for (let f = 0; f < 12; f++) writeFileSync(`${at}/${d}/${f}`, noise(3_000 + f, d))
  }
  writeFileSync(`${at}/large`, noise(2_000_000))
  symlinkSync('large', `${at}/link`)
  const first = await scan(at)
  const second = await scan(at, {}, { parent: first })
  // Others use the temporary directory too: its own times, which nodes above it hold, may have moved.
  const nodesAbove = at.split('/').length - 2
  assert.ok(second.sink.taken.nodes <= nodesAbove, `${second.sink.taken.nodes} new nodes`)
  assert.ok(second.sink.inherited.nodes >= 1 + 30 + 30, `${second.sink.inherited.nodes} inherited nodes`)
  assert.equal(second.sink.taken.dataChunks, 0)
  assert.deepEqual([second.counters.bytesRead, second.counters.filesUnchanged, second.counters.files], [0, 361, 361])
  assert.equal(second.counters.sourceBytes, first.counters.sourceBytes)
  assert.deepEqual((await get(second, at)).subtree, (await get(first, at)).subtree)
  assert.ok(second.nodeCalls.length <= 12, `${second.nodeCalls.length} calls`)
})

test('what changed is read, what did not is not', async (t) => {
  const at = scratch(t)
  mkdirSync(`${at}/same`)
  for (const name of ['a', 'b', 'c', 'same/d']) writeFileSync(`${at}/${name}`, noise(20_000, name.length))
  const first = await scan(at)
  appendFileSync(`${at}/b`, 'more')
  chmodSync(`${at}/c`, 0o600)
  writeFileSync(`${at}/new`, 'new')
  const second = await scan(at, {}, { parent: first })
  assert.equal(second.counters.filesUnchanged, 2)
  assert.equal(String((await contentOf(second, `${at}/b`)).subarray(-4)), 'more')
  assert.equal((await get(second, `${at}/c`)).mode, 0o600)
  assert.deepEqual((await get(second, `${at}/same`)).subtree, (await get(first, `${at}/same`)).subtree)
  unlinkSync(`${at}/a`)
  assert.deepEqual(await names(await scan(at, {}, { parent: second }), at), ['b', 'c', 'new', 'same'])
})

test('a change that keeps size and mtime is noticed by ctime', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, 'before')
  const { atime, mtime } = lstatSync(`${at}/f`)
  const first = await scan(at)
  writeFileSync(`${at}/f`, 'after!')
  utimesSync(`${at}/f`, atime, mtime)
  assert.equal(String(await contentOf(await scan(at, {}, { parent: first }), `${at}/f`)), 'after!')
})

test('files touched about when the parent was taken are read again', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, 'x')
  const first = await scan(at)
  const ctimeMs = lstatSync(`${at}/f`).ctimeMs
  const racy = await scan(at, {}, { parent: first, startedAtMs: ctimeMs + 1_000 })
  assert.equal(racy.counters.filesUnchanged, 0)
  const settled = await scan(at, {}, { parent: first, startedAtMs: ctimeMs + 3_000 })
  assert.equal(settled.counters.filesUnchanged, 1)
})

test('a parent with damaged nodes is read around: its files are read again, nothing else', async (t) => {
  const at = scratch(t)
  for (const name of ['a', 'b', 'c']) {
    mkdirSync(`${at}/${name}`)
    writeFileSync(`${at}/${name}/f`, name)
  }
  const first = await scan(at)
  const lost = (await get(first, `${at}/b`)).subtree!
  first.chunks.byKey.delete(chunkKey(lost))
  const second = await scan(at, {}, { parent: first })
  assert.deepEqual([second.counters.filesUnchanged, second.counters.bytesRead, second.problems], [2, 1, []])
  assert.ok(second.chunks.byKey.has(chunkKey(lost)), 'and the lost node is there again')
})

test('several paths make one tree from the root; one inside another is saved once', async (t) => {
  const at = scratch(t)
  mkdirSync(`${at}/x/y/z`, { recursive: true })
  mkdirSync(`${at}/other`)
  for (const place of ['x/1', 'x/y/2', 'x/y/z/3', 'other/4', '5']) writeFileSync(`${at}/${place}`, place)
  const result = await scan([`${at}/x/y/z`, `${at}//x/./y/`, `${at}/5`])
  assert.deepEqual(await names(result, at), ['5', 'x'])
  assert.deepEqual(await names(result, `${at}/x`), ['y'])
  assert.deepEqual(await names(result, `${at}/x/y`), ['2', 'z'])
  assert.equal((await get(result, `${at}/x`)).mode, lstatSync(`${at}/x`).mode & 0o7777)
})

test('a path through a link is saved where it really is; a chosen link is saved as a link', async (t) => {
  const at = scratch(t)
  mkdirSync(`${at}/real`)
  writeFileSync(`${at}/real/f`, 'x')
  symlinkSync('real', `${at}/link`)
  const through = await scan(`${at}/link/f`)
  assert.deepEqual(await names(through, at), ['real'])
  assert.equal((await get(await scan(`${at}/link`), `${at}/link`)).type, ENTRY_TYPES.symlink)
})

test('excluded entries are left out, chosen paths never', async (t) => {
  const at = scratch(t)
  mkdirSync(`${at}/keep/cache`, { recursive: true })
  for (const place of ['keep/a.log', 'keep/b', 'keep/cache/c', 'keep/keep.log']) writeFileSync(`${at}/${place}`, 'x')
  const result = await scan(`${at}/keep`, { excludes: ['keep', 'cache/', '!keep.log'], excludeFiles: [Buffer.from('*.log\n')] })
  assert.deepEqual(await names(result, `${at}/keep`), ['b', 'keep.log'])
})

test('of a tagged cache directory only the tag is saved, when asked', async (t) => {
  const at = scratch(t)
  for (const name of ['cache', 'fake']) mkdirSync(`${at}/${name}`)
  writeFileSync(`${at}/cache/CACHEDIR.TAG`, 'Signature: 8a477f597d28d172789f06886806bc55\n# a comment')
  writeFileSync(`${at}/cache/x`, 'x')
  writeFileSync(`${at}/fake/CACHEDIR.TAG`, 'Signature: none')
  writeFileSync(`${at}/fake/x`, 'x')
  const result = await scan(at, { excludeCaches: true })
  assert.deepEqual(await names(result, `${at}/cache`), ['CACHEDIR.TAG'])
  assert.deepEqual(await names(result, `${at}/fake`), ['CACHEDIR.TAG', 'x'])
  assert.deepEqual(await names(await scan(at), `${at}/cache`), ['CACHEDIR.TAG', 'x'])
})

test('another file system is saved as an empty directory, when asked', async () => {
  const result = await scan('/dev', { oneFileSystem: true, excludes: ['/dev/*', '!/dev/shm', '!/dev/pts'] })
  const around = lstatSync('/dev').dev
  for (const { name, subtree } of await list(result, '/dev')) {
    if (lstatSync(`/dev/${name.toString()}`).dev === around || subtree === undefined) continue
    assert.deepEqual(await names(result, `/dev/${name.toString()}`), [])
  }
})

test('paths that are not there are reported, and the rest is saved', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, 'x')
  const result = await scan([`${at}/f`, `${at}/gone`, `${at}/no/such/place`])
  assert.deepEqual(result.problems.map(({ path, reason }) => [path, reason]),
    [[`${at}/no/such/place`, 'vanished'], [`${at}/gone`, 'vanished']])
  assert.equal(result.counters.errors, 2)
  assert.equal(String(await contentOf(result, `${at}/f`)), 'x')
})

test('an unreadable file or directory is reported, and the rest is saved', async (t) => {
  if (process.geteuid!() === 0) return t.skip('root reads everything')
  const at = scratch(t)
  mkdirSync(`${at}/closed`)
  for (const name of ['closed/x', 'secret', 'open']) writeFileSync(`${at}/${name}`, 'x')
  chmodSync(`${at}/secret`, 0)
  chmodSync(`${at}/closed`, 0)
  const result = await scan(at)
  chmodSync(`${at}/closed`, 0o700) // or it cannot be removed
  assert.deepEqual(result.problems.map(({ reason }) => reason), ['unreadable', 'unreadable'])
  assert.deepEqual(await names(result, at), ['closed', 'open'])
})

/** A sink that does something when data is taken: between the reads of a file, as far as a source can tell. */
class MeddlingSink extends MemorySink {
  constructor(readonly meddle: () => void) { super() }
  override take(...chunk: Parameters<MemorySink['take']>): ChunkId {
    this.meddle()
    return super.take(...chunk)
  }
}

test('a file that changes once while read is read again and saved whole', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, noise(300_000))
  let times = 0
  const sink = new MeddlingSink(() => { if (times++ === 0) appendFileSync(`${at}/f`, 'tail') })
  const result = await scan(at, {}, { sink })
  assert.deepEqual(result.problems, [])
  assert.equal(String((await contentOf(result, `${at}/f`)).subarray(-4)), 'tail')
})

test('a file that never rests is saved as seen, reported, and read again next time', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, noise(300_000))
  const result = await scan(at, {}, { sink: new MeddlingSink(() => { appendFileSync(`${at}/f`, 'x') }) })
  assert.deepEqual(result.problems.map(({ reason }) => reason), ['changed'])
  await contentOf(result, `${at}/f`)
  assert.equal((await scan(at, {}, { parent: result })).counters.filesUnchanged, 0)
})

test('a file that shrinks while read is saved at the length it then has', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, noise(3_000_000))
  let times = 0
  const result = await scan(at, {}, { sink: new MeddlingSink(() => { if (times++ === 0) truncateSync(`${at}/f`, 1_000) }) })
  assert.ok((await contentOf(result, `${at}/f`)).equals(noise(3_000_000).subarray(0, 1_000)))
})

test('an abort ends the walk with its reason', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, noise(40_000_000))
  const controller = new AbortController()
  const sink = new MeddlingSink(() => { controller.abort(new Error('enough')) })
  await assert.rejects(scan(at, {}, { signal: controller.signal, sink }), /enough/)
})

test('a failure of the sink is not taken for a problem of a path', async (t) => {
  const at = scratch(t)
  writeFileSync(`${at}/f`, 'x')
  await assert.rejects(scan(at, {}, { sink: new MeddlingSink(() => { throw new Error('the server is gone') }) }), /server is gone/)
})

test('reading is limited before it happens: every byte that is read was asked for', async (t) => {
  const directory = scratch(t)
  for (const bytes of [0, 1, 70_000, 1_500_000]) writeFileSync(join(directory, `${bytes}`), Buffer.alloc(bytes, 7))
  let asked = 0
  const { counters } = await scan(directory, {}, { limitRead: { bytesPerSecond: 1, pieceBytes: 1, take: async (bytes) => { asked += bytes } } })
  assert.deepEqual([asked, counters.bytesRead], [1_570_001, 1_570_001])
})
