/** Disks as qcow2 files: read back by a reader of the format that was written for this test, and by QEMU where it is installed. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { ImageTreeWriter } from '../../client/image/image-tree.js'
import { placeRefcounts, shapeOf } from '../../client/qcow2/layout.js'
import { qcow2Names } from '../../client/restore/restore-machine.js'
import type { RestoreProblem, RestoreReport } from '../../client/restore/restore-report.js'
import { runRestore, type RestoreOptions } from '../../client/restore/run-restore.js'
import { ENTRY_TYPES, type Content, type Entry } from '../../client/tree/entry.js'
import { MemoryRepository } from '../support/memory-repository.js'
import { noise } from '../support/odd-tree.js'
import { hasTool } from '../support/run-roost.js'
import { TreeBuilder } from '../support/tree-builder.js'

const KiB = 1024
const MiB = 1024 * KiB
const GiB = 1024 * MiB
const qemuImg = hasTool('qemu-img')
if (!qemuImg) console.log('SKIPPED GROUP: qcow2 files checked by qemu-img — qemu-img is not installed')

class World {
  readonly repository = new MemoryRepository()
  readonly tree = new TreeBuilder(this.repository)
  readonly directory = mkdtempSync(join(tmpdir(), 'roost-qcow2-'))
  readonly problems: RestoreProblem[] = []
  constructor(t: TestContext) { t.after(() => { rmSync(this.directory, { recursive: true, force: true }) }) }
  path(...names: string[]): string { return join(this.directory, ...names) }
  /** `slots`: chunks by their number. */
  async image(imageBytes: number, chunkBytes: number, slots: ReadonlyMap<number, Buffer>): Promise<Content> {
    const writer = new ImageTreeWriter(this.tree.sink, { imageBytes, chunkBytes })
    for (const [slot, bytes] of slots) await writer.add(slot, this.tree.data(bytes))
    return await writer.finish()
  }
  async restore(options: Partial<RestoreOptions> & Pick<RestoreOptions, 'destination'>, signal = new AbortController().signal): Promise<RestoreReport> {
    this.problems.length = 0
    return await runRestore(this.repository, { snapshot: 'latest', overwrite: 'never', ...options }, { problem: (problem) => { this.problems.push(problem) } }, signal)
  }
  async toQcow2(content: Content, name = 'out.qcow2', options: Partial<RestoreOptions> = {}): Promise<string> {
    await this.tree.snapshot([this.tree.entry('disk', ENTRY_TYPES.image, { content })])
    await this.restore({ destination: { kind: 'qcow2', path: Buffer.from(this.path(name)) }, ...options })
    return this.path(name)
  }
}
const sized = (path: string): { apparent: number; stored: number } => ({ apparent: statSync(path).size, stored: statSync(path).blocks * 512 })

/** The image in a qcow2 file, and that every cluster of the file is counted right. */
function readQcow2(path: string): Buffer {
  const file = readFileSync(path)
  assert.equal(file.readUInt32BE(0), 0x514649fb)
  assert.deepEqual([file.readUInt32BE(4), file.readUInt32BE(20), file.readUInt32BE(96), file.readUInt32BE(100)], [3, 16, 4, 104])
  const cluster = 65_536
  assert.equal(file.byteLength % cluster, 0)
  const bytes = Number(file.readBigUInt64BE(24))
  const image = Buffer.alloc(bytes)
  const used = new Set([0])
  const take = (offset: number): number => { assert.ok(offset % cluster === 0 && !used.has(offset / cluster), `cluster ${offset} is used twice`); used.add(offset / cluster); return offset }
  const entry = (at: number): number => Number(file.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n)
  const l1 = Number(file.readBigUInt64BE(40)), tables = file.readUInt32BE(36)
  for (let at = 0; at < Math.max(1, tables * 8); at += cluster) take(l1 + at)
  for (let table = 0; table < tables; table++) {
    if (entry(l1 + table * 8) === 0) continue
    assert.equal(file.readBigUInt64BE(l1 + table * 8) >> 63n, 1n)
    const l2 = take(entry(l1 + table * 8))
    for (let i = 0; i < 8192; i++) {
      if (entry(l2 + i * 8) === 0) continue
      const to = (table * 8192 + i) * cluster
      file.copy(image, to, take(entry(l2 + i * 8)), entry(l2 + i * 8) + Math.min(cluster, bytes - to))
    }
  }
  const refcounts = Number(file.readBigUInt64BE(48)), refcountClusters = file.readUInt32BE(56)
  for (let i = 0; i < refcountClusters; i++) take(refcounts + i * cluster)
  const blocks: number[] = []
  for (let i = 0; i < refcountClusters * 8192; i++) {
    const block = Number(file.readBigUInt64BE(refcounts + i * 8))
    if (block !== 0) blocks[i] = take(block)
  }
  for (let i = 0; i < file.byteLength / cluster; i++)
    assert.equal(file.readUInt16BE(blocks[Math.floor(i / 32_768)]! + i % 32_768 * 2), used.has(i) ? 1 : 0, `the count of cluster ${i}`)
  return image
}
function checkByQemu(path: string, raw: string): void {
  if (!qemuImg) return
  execFileSync('qemu-img', ['check', '-f', 'qcow2', path], { timeout: 60_000 })
  assert.match(execFileSync('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', raw, path], { timeout: 60_000, encoding: 'utf8' }), /identical/)
}

test('an image with holes becomes a sparse qcow2 file that QEMU finds whole and identical', async (t) => {
  const world = new World(t)
  const chunkBytes = 128 * KiB, imageBytes = 700 * MiB + 512
  const slots = new Map([0, 1, 2, 77, 4095, 4096, 4097, 5600].map((slot) => [slot, noise(Math.min(chunkBytes, imageBytes - slot * chunkBytes), slot + 1)]))
  const path = await world.toQcow2(await world.image(imageBytes, chunkBytes, slots))
  const image = readQcow2(path)
  assert.equal(image.byteLength, imageBytes)
  for (const [slot, bytes] of slots) assert.ok(image.subarray(slot * chunkBytes, slot * chunkBytes + bytes.byteLength).equals(bytes), `slot ${slot}`)
  for (const [slot, bytes] of slots) image.fill(0, slot * chunkBytes, slot * chunkBytes + bytes.byteLength)
  assert.ok(image.equals(Buffer.alloc(imageBytes)), 'the rest is zeroes')
  assert.ok(sized(path).stored < 3 * MiB)
  assert.equal(statSync(path).mode & 0o777, 0o600)
  await world.restore({ destination: { kind: 'file', path: Buffer.from(world.path('disk.raw')) } })
  checkByQemu(path, world.path('disk.raw'))
  assert.deepEqual(readdirSync(world.directory).sort(), ['disk.raw', 'out.qcow2'])
})
test('chunks that are shorter than a cluster, of any lengths and of an odd total share clusters', async (t) => {
  const world = new World(t)
  const parts = Array.from({ length: 300 }, (_, i) => i % 7 === 3 ? 70_001 : i % 7 === 5 ? 300_000 : noise(1 + (i * 7919) % 90_000, i))
  const content = await world.tree.list(parts)
  const path = await world.toQcow2(content)
  const expected = Buffer.concat(parts.map((part) => typeof part === 'number' ? Buffer.alloc(part) : part))
  const image = readQcow2(path)
  assert.equal(image.byteLength, Math.ceil(expected.byteLength / 512) * 512, 'whole sectors')
  assert.ok(image.subarray(0, expected.byteLength).equals(expected))
  writeFileSync(world.path('raw'), expected)
  checkByQemu(path, world.path('raw'))
  const small = await world.toQcow2(await world.image(MiB, 4 * KiB, new Map([3, 15, 16, 200].map((slot) => [slot, noise(4 * KiB, slot)]))), 'small')
  assert.ok(readQcow2(small).subarray(200 * 4 * KiB, 201 * 4 * KiB).equals(noise(4 * KiB, 200)))
})
test('images without any data, of any length, are valid too', async (t) => {
  const world = new World(t)
  for (const [i, bytes] of [512, 64 * KiB, 3 * GiB].entries()) {
    const path = await world.toQcow2({ kind: 'image', bytes, chunkBytes: 128 * KiB, root: undefined }, `empty${i}`)
    assert.ok(sized(path).stored < MiB)
    if (qemuImg) execFileSync('qemu-img', ['check', '-f', 'qcow2', path])
    if (bytes < GiB) assert.ok(readQcow2(path).equals(Buffer.alloc(bytes)))
  }
})
test('refcounts cover themselves, whatever the length', () => {
  for (const dataClusters of [0, 1, 32_000, 32_766, 32_767, 32_768, 65_530, 268_435_450, 2 ** 31]) {
    const shape = shapeOf(dataClusters * 65_536 + 1)
    const { blocks, endCluster, tableClusters } = placeRefcounts(shape, dataClusters)
    assert.ok(blocks * 32_768 >= endCluster && (blocks - 2) * 32_768 < endCluster && tableClusters * 8192 >= blocks)
  }
  assert.throws(() => shapeOf(3 * 2 ** 50), { code: 'LIMIT_EXCEEDED' })
})
test('what is there stays unless it is to be replaced; an interrupted or damaged restore leaves nothing', async (t) => {
  const world = new World(t)
  const bytes = noise(128 * KiB, 5)
  const content = await world.image(MiB, 128 * KiB, new Map([[0, bytes], [3, noise(128 * KiB, 6)]]))
  writeFileSync(world.path('out.qcow2'), 'mine')
  await world.toQcow2(content)
  assert.equal(readFileSync(world.path('out.qcow2'), 'utf8'), 'mine')
  await world.toQcow2(content, 'out.qcow2', { overwrite: 'always' })
  assert.ok(readQcow2(world.path('out.qcow2')).subarray(0, 128 * KiB).equals(bytes))
  const aborted = new AbortController()
  aborted.abort(new DOMException('now', 'AbortError'))
  await assert.rejects(world.restore({ destination: { kind: 'qcow2', path: Buffer.from(world.path('cut')) } }, aborted.signal), { name: 'AbortError' })
  const cut = new AbortController()
  await assert.rejects(runRestore(world.repository, { snapshot: 'latest', destination: { kind: 'qcow2', path: Buffer.from(world.path('cut')) } },
    { progress: () => { cut.abort(new DOMException('now', 'AbortError')) } }, cut.signal), { name: 'AbortError' })
  world.repository.lose(world.tree.data(bytes))
  const lost = await world.restore({ destination: { kind: 'qcow2', path: Buffer.from(world.path('lost')) } })
  assert.deepEqual([lost.problems, lost.files, world.problems[0]!.reason], [1, 0, 'damaged'])
  await assert.rejects(world.restore({ destination: { kind: 'qcow2', path: Buffer.from(world.path('lost')) }, onDamage: 'stop' }), { code: 'CHUNK_MISSING' })
  assert.deepEqual(readdirSync(world.directory), ['out.qcow2'])
  const kept = await world.restore({ destination: { kind: 'qcow2', path: Buffer.from(world.path('kept')) }, onDamage: 'keep' })
  assert.deepEqual([kept.problems, kept.files], [1, 1])
  assert.ok(readQcow2(world.path('kept')).subarray(0, 128 * KiB).equals(Buffer.alloc(128 * KiB)))
  await assert.rejects(world.restore({ destination: { kind: 'qcow2', path: Buffer.from(world.path('x/')) } }), { code: 'EISDIR' })
})
test('a machine comes back as one file a disk, with its description and whatever else it had', async (t) => {
  const world = new World(t)
  const { tree } = world
  const disk = async (name: string, seed: number): Promise<Entry> =>
    tree.entry(name, ENTRY_TYPES.image, { content: await world.image(MiB, 128 * KiB, new Map([[seed, noise(128 * KiB, seed)]])) })
  const machine = JSON.stringify({ format: 1, name: 'web1', capturedAt: '2026-01-01T00:00:00Z', consistency: 'agent', qemu: {
    version: '7.2', machineType: 'pc', cpus: 1, memoryBytes: 2 ** 28, firmware: 'bios', networkCards: [],
    disks: [{ image: 'vdb', bytes: MiB, device: 'virtio-blk-pci', qdev: 'b', format: 'raw' }, { image: 'gone', bytes: 1, device: 'x', qdev: 'x', format: 'raw' }] } })
  await tree.snapshot([await disk('a.img', 1), await disk('a.raw', 2), await disk('vdb', 3), tree.file('machine.json', machine), tree.file('vars.fd', 'firmware')])
  const report = await world.restore({ destination: { kind: 'machine', path: Buffer.from(world.path('m')) } })
  assert.equal(report.problems, 0)
  assert.deepEqual(readdirSync(world.path('m')).sort(), ['a.img.qcow2', 'a.raw.qcow2', 'machine.json', 'vars.fd', 'vdb.qcow2'])
  assert.ok(readQcow2(world.path('m', 'vdb.qcow2')).subarray(3 * 128 * KiB, 4 * 128 * KiB).equals(noise(128 * KiB, 3)))
  assert.equal(readFileSync(world.path('m', 'machine.json'), 'utf8'), machine)
  for (const [which, seed] of [['1', 3], ['a.raw', 2], ['2', 1]] as const) {
    await world.restore({ destination: { kind: 'file', path: Buffer.from(world.path('one')) }, disk: which, overwrite: 'always' })
    assert.ok(readFileSync(world.path('one')).subarray(seed * 128 * KiB, (seed + 1) * 128 * KiB).equals(noise(128 * KiB, seed)), which)
  }
  await assert.rejects(world.restore({ destination: { kind: 'file', path: Buffer.from(world.path('two')) }, disk: '4' }), /there are: 1 \(vdb\), 2 \(a\.img\), 3 \(a\.raw\)/)
  await tree.snapshot([await disk('vda', 1), tree.file('machine.json', '{')])
  await world.restore({ destination: { kind: 'machine', path: Buffer.from(world.path('m2')) } })
  assert.ok(existsSync(world.path('m2', 'vda.qcow2')), 'a description that nobody understands keeps no disk back')
  await tree.snapshot([tree.file('x', 'y')])
  await assert.rejects(world.restore({ destination: { kind: 'machine', path: Buffer.from(world.path('m3')) } }), { code: 'MACHINE_MALFORMED' })
})
test('names of files never clash', () => {
  assert.deepEqual(qcow2Names([{ name: 'vda' }, { name: 'b.img' }, { name: 'c.img' }, { name: 'c.RAW' }, { name: '.img' }]),
    ['vda.qcow2', 'b.qcow2', 'c.img.qcow2', 'c.RAW.qcow2', '.img.qcow2'])
})
