/** Whole backups of several disks with files beside them, and of exports with dirty maps: when a map is used, when not, and what the snapshot says of it. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { runBackup, type BackupReport } from '../../client/backup.js'
import { disksOf, type DiskReport } from '../../client/image/disk-report.js'
import type { DirtyMapConfig, DiskOrigin } from '../../client/image/open-source.js'
import type { ImageConfig } from '../../client/image/scan-image.js'
import { hasCode } from '../../src/core/errors.js'
import type { OpenSessionReply } from '../../src/core/messages.js'
import { instantClock } from '../support/instant-clock.js'
import { errorChunk, startLyingServer, type LyingServer, type NbdScript } from '../support/lying-nbd-server.js'
import { MemoryRepository } from '../support/memory-repository.js'
import { noise } from '../support/odd-tree.js'

const KiB = 1024
const CHUNK = 16 * KiB
const CONTEXT = 'qemu:dirty-bitmap:b'
const NO_ABORT = new AbortController().signal

function files(t: TestContext): (name: string, bytes: Buffer) => DiskOrigin {
  const directory = mkdtempSync(join(tmpdir(), 'roost-disks-'))
  t.after(() => { rmSync(directory, { recursive: true, force: true }) })
  return (name, bytes) => {
    writeFileSync(join(directory, name), bytes)
    return { kind: 'file', path: join(directory, name) }
  }
}
async function backUp(repository: MemoryRepository, config: ImageConfig, notes: string[] = []): Promise<BackupReport> {
  return await runBackup(repository, {
    source: 'vm', config: { mode: 'image', ...config }, parent: 'latest', host: 'host', user: 'user', paths: [], tags: [], wire: 'raw', where: 'inline', clock: instantClock(1_500),
  }, { onNotice: (text) => { notes.push(text) } }, NO_ABORT)
}
const disks = (report: BackupReport): DiskReport[] => disksOf(report.record.description)

test('disks and files of one snapshot are entries of its root, in the order of their names; each disk finds its own in the parent', async (t) => {
  const repository = new MemoryRepository()
  const file = files(t)
  const config: ImageConfig = {
    disks: [{ name: 'sdb', chunkBytes: CHUNK, from: file('b', noise(10 * CHUNK, 1)) }, { name: 'sda', chunkBytes: 2 * CHUNK, from: file('a', noise(9 * CHUNK + 3, 2)) }],
    files: [{ name: 'machine.json', bytes: Buffer.from('{"format":1}') }, { name: 'empty', bytes: Buffer.alloc(0) }],
  }
  const first = await backUp(repository, config)
  assert.deepEqual(disks(first).map(({ name, imageBytes, chunkBytes, read, isDevice }) => [name, imageBytes, chunkBytes, read, isDevice]),
    [['sdb', 10 * CHUNK, CHUNK, 'full', false], ['sda', 9 * CHUNK + 3, 2 * CHUNK, 'full', false]])
  assert.deepEqual([first.statistics.files, first.statistics.sourceBytes, first.statistics.bytesRead, first.exitCode], [4, 19 * CHUNK + 15, 19 * CHUNK + 3, 0])
  const again = await backUp(repository, { ...config, disks: config.disks.map(({ name, from }) => ({ name, from })) })
  assert.deepEqual(disks(again).map(({ chunkBytes }) => chunkBytes), [CHUNK, 2 * CHUNK], 'cut as before')
  assert.ok(again.statistics.chunksSent <= 2, 'the directory (its files are of now), and what a second look at a small file costs')
})
test('two of the same name, none, names that cannot be, and files that are too long are refused', async (t) => {
  const from = files(t)('a', Buffer.alloc(512, 1))
  const cases: readonly ImageConfig[] = [
    { disks: [] }, { disks: [{ name: 'a', from }, { name: 'a', from }] }, { disks: [{ name: 'a', from }], files: [{ name: 'a', bytes: Buffer.alloc(1) }] },
    { disks: [{ name: 'a/b', from }] }, { disks: [{ name: '', from }] }, { disks: [{ name: 'a', from }], files: [{ name: 'b', bytes: Buffer.alloc(4 * 1024 * KiB + 1) }] },
    { disks: [{ name: 'a', from, chunkBytes: 5000 }] },
  ]
  for (const config of cases) await assert.rejects(backUp(new MemoryRepository(), config), (error) => hasCode(error, 'REQUEST_MALFORMED'))
})
class Withholding extends MemoryRepository {
  isWithholding = false
  override async openSession(...args: Parameters<MemoryRepository['openSession']>): Promise<OpenSessionReply> {
    const { snapshot, ...reply } = await super.openSession(...args)
    return { ...reply, ...(snapshot === undefined ? {} : this.isWithholding ? { withheldParent: snapshot } : { snapshot }) }
  }
}
test('a withheld parent gives each disk the chunk size that it had', async (t) => {
  const repository = new Withholding()
  const file = files(t)
  const all = [{ name: 'a', chunkBytes: CHUNK, from: file('a', noise(5 * CHUNK, 1)) }, { name: 'b', chunkBytes: 4 * CHUNK, from: file('b', noise(5 * CHUNK, 2)) }]
  await backUp(repository, { disks: all })
  repository.isWithholding = true
  const again = await backUp(repository, { disks: all.map(({ name, from }) => ({ name, from })) })
  assert.deepEqual(disks(again).map(({ chunkBytes, read }) => [chunkBytes, read]), [[CHUNK, 'full'], [4 * CHUNK, 'full']])
})

interface MappedScene { readonly repository: MemoryRepository; readonly content: Buffer; readonly first: BackupReport
  next(map: Partial<DirtyMapConfig>, script?: Partial<NbdScript>, name?: string, chunkBytes?: number): Promise<{ report: BackupReport; notes: string[]; server: LyingServer }> }
/** A snapshot of an export; then its chunks 3 and 20 are written to, and the map says so. */
async function mapped(t: TestContext): Promise<MappedScene> {
  const repository = new MemoryRepository()
  const content = noise(40 * CHUNK, 5)
  const origin = (path: string, dirtyMap?: DirtyMapConfig): DiskOrigin => ({ kind: 'nbd', address: { kind: 'unix', path }, exportName: 'x', ...(dirtyMap === undefined ? {} : { dirtyMap }) })
  const plain = await startLyingServer(t, { content: Buffer.from(content) })
  const first = await backUp(repository, { disks: [{ name: 'disk', chunkBytes: CHUNK, from: origin(plain.path) }] })
  const dirty = [3, 20]
  for (const slot of dirty) content[slot * CHUNK + 7]! ^= 1
  const status: NbdScript['status'] = (context, { offset, length }) => {
    const blocks: { bytes: number; flags: number }[] = []
    for (let at = offset; at < offset + length; at += CHUNK) blocks.push({ bytes: CHUNK, flags: context === CONTEXT && dirty.includes(at / CHUNK) ? 1 : 0 })
    return blocks
  }
  return { repository, content, first, next: async (map, script = {}, name = 'disk', chunkBytes) => {
    const server = await startLyingServer(t, { content, status, ...script })
    const notes: string[] = []
    const dirtyMap = { context: CONTEXT, parentRoot: first.record.root, ...map }
    const report = await backUp(repository, { disks: [{ name, from: origin(server.path, dirtyMap), ...(chunkBytes === undefined ? {} : { chunkBytes }) }], audit: { share: 0, seed: '' } }, notes)
    return { report, notes, server }
  } }
}
test('a map that is relative to the parent is used: only what it calls written is read', async (t) => {
  const { next } = await mapped(t)
  const { report, notes, server } = await next({})
  assert.deepEqual(disks(report), [{ name: 'disk', imageBytes: 40 * CHUNK, chunkBytes: CHUNK, isDevice: false, read: 'incremental', cleanBytes: 38 * CHUNK, dirtyBytes: 2 * CHUNK, auditedBytes: 0, auditMismatches: 0 }])
  assert.deepEqual([report.statistics.bytesRead, report.statistics.sourceBytes, report.exitCode, notes], [2 * CHUNK, 40 * CHUNK, 0, []])
  assert.deepEqual(server.asked.filter(({ command }) => command === 0).map(({ offset, length }) => [offset, length]), [[3 * CHUNK, CHUNK], [20 * CHUNK, CHUNK]])
})
test('a map that is relative to another snapshot, of another disk, length or chunk size, or not there, is not used; why is said', async (t) => {
  const scene = await mapped(t)
  const cases: readonly (readonly [RegExp, Parameters<MappedScene['next']>])[] = [
    [/relative to another snapshot/, [{ parentRoot: '00'.repeat(32) }]],
    [/does not offer its dirty map other:map/, [{ context: 'other:map' }]],
    [/does not offer/, [{}, { contexts: ['base:allocation'] }]],
    [/does not offer/, [{}, { isStructured: false }]],
  ]
  for (const [why, args] of cases) {
    const { report, notes } = await scene.next(...args)
    const [disk] = disks(report)
    assert.equal(disk!.read, 'full')
    assert.match(disk!.reason!, why)
    assert.match(notes.join('\n'), why)
    assert.deepEqual([report.statistics.bytesRead, report.exitCode], [40 * CHUNK, 0])
    assert.ok(report.statistics.chunksSent <= 5, 'it is compared with the parent all the same')
  }
  for (const [why, args] of [
    [/does not have it/, [{}, {}, 'other']], [/chunk size has changed/, [{}, {}, 'disk', 2 * CHUNK]], [/length has changed/, [{}, { content: scene.content.subarray(0, 39 * CHUNK) }]],
  ] as readonly (readonly [RegExp, Parameters<MappedScene['next']>])[]) {
    const fresh = await mapped(t)
    assert.match(disks((await fresh.next(...args)).report)[0]!.reason!, why)
  }
})
test('an export that cannot tell the allocation of what is clean is asked for the map alone; one that cannot tell the map is read in full', async (t) => {
  const alone = await mapped(t)
  const isBoth = (connection: number): boolean => connection === 0
  const { report, server } = await alone.next({}, { request: (asked, _nth, connection) => asked.command === 7 && isBoth(connection) ? errorChunk(asked, 22, 'outside of the bitmap') : 'honest' })
  assert.deepEqual([disks(report)[0]!.read, report.statistics.bytesRead, server.connections()], ['incremental', 2 * CHUNK, 2])
  const none = await mapped(t)
  const full = await none.next({}, { request: (asked) => asked.command === 7 ? errorChunk(asked, 5, 'broken') : 'honest' })
  assert.deepEqual([disks(full.report)[0]!.read, full.report.statistics.bytesRead], ['full', 40 * CHUNK])
  assert.match(disks(full.report)[0]!.reason!, /cannot tell its dirty map: broken \(error 5\)/)
})
