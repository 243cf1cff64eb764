/** Whole backups into a repository in memory: what is promised, what happens when the server forgets, who is told what. */
import assert from 'node:assert/strict'
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { runBackup, type BackupOptions, type BackupProgress } from '../../client/backup.js'
import { hasClientCode } from '../../src/protocol/client-errors.js'
import type { SourceConfig } from '../../client/scan-source.js'
import { RoostError } from '../../src/core/errors.js'
import { parseSnapshotId } from '../../src/core/ids.js'
import { seededBytes } from '../support/arena-loop.js'
import { instantClock } from '../support/instant-clock.js'
import { MemoryRepository, recordOf } from '../support/memory-repository.js'

const NO_ABORT = new AbortController().signal
function directory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'roost-backup-'))
  t.after(() => { rmSync(path, { recursive: true, force: true }) })
  return path
}
/** 40 files of 30 KB, and one of 3 MB. */
function fileTree(t: TestContext): { root: string; config: SourceConfig } {
  const root = directory(t)
  mkdirSync(join(root, 'sub'))
  for (let i = 0; i < 40; i++) writeFileSync(join(root, 'sub', `file ${i}`), seededBytes(30_000 + i, i))
  writeFileSync(join(root, 'large'), seededBytes(3_000_000, 77))
  return { root, config: { mode: 'files', paths: [Buffer.from(root)] } }
}
function optionsFor(config: SourceConfig, more: Partial<BackupOptions> = {}): BackupOptions {
  return {
    source: 'test', config, parent: 'latest', host: 'host', user: 'user', paths: ['/x'], tags: ['t'], wire: 'raw', where: 'inline',
    // Idle touches and the patience for closing must not fire in a test.
    clock: instantClock(1_500), ...more,
  }
}
function stdinOf(t: TestContext, bytes: Buffer): SourceConfig {
  const path = join(directory(t), 'input')
  writeFileSync(path, bytes)
  const fd = openSync(path, 'r')
  t.after(() => { closeSync(fd) })
  return { mode: 'stdin', name: 'dump.sql', fd }
}
const lost = (): RoostError => new RoostError('SESSION_LOST', 'the session is gone')

for (const where of ['inline', 'thread'] as const) {
  test(`a tree is pushed, committed and acknowledged (${where})`, async (t) => {
    const repository = new MemoryRepository()
    const { config } = fileTree(t)
    const passes: number[] = []
    let sample: (() => BackupProgress) | undefined
    const report = await runBackup(repository, optionsFor(config, { where }), { onPass: (pass, progress) => { passes.push(pass); sample = progress } }, NO_ABORT)
    assert.equal(report.exitCode, 0)
    assert.equal(report.statistics.files, 41)
    assert.equal(report.statistics.errors, 0)
    assert.ok(report.statistics.bytesRead > 4_000_000 && report.statistics.chunksSent >= 42)
    assert.deepEqual(passes, [1])
    assert.equal(sample!().phase, 'committing')
    assert.equal(repository.snapshots[0]!.id, report.snapshotId)
    assert.equal(repository.sessions.size, 0)
  })
}

test('an unchanged tree is not read again and nothing is sent', async (t) => {
  const repository = new MemoryRepository()
  const { config } = fileTree(t)
  // The parent must be younger than the files, or their times could hide a change.
  const clock = { ...instantClock(1_500), now: () => 32_503_680_000_000 }
  const first = await runBackup(repository, optionsFor(config, { clock }), {}, NO_ABORT)
  const again = await runBackup(repository, optionsFor(config, { clock }), {}, NO_ABORT)
  assert.equal(again.statistics.bytesRead, 0)
  assert.equal(again.statistics.chunksSent, 0)
  assert.equal(again.record.root, first.record.root)
  assert.equal(again.record.parent, first.snapshotId)
})

test('a session lost in mid-push is followed by another pass that finds what arrived', async (t) => {
  const repository = new MemoryRepository()
  const { config } = fileTree(t)
  repository.failNext('putChunks', lost(), 1)
  const reasons: (Error | undefined)[] = []
  const report = await runBackup(repository, optionsFor(config), { onPass: (_pass, _sample, because) => { reasons.push(because) } }, NO_ABORT)
  assert.equal(report.passes, 2)
  assert.ok(reasons[1] instanceof RoostError)
  assert.equal(repository.snapshots.length, 1)
  assert.equal(repository.counts.framesSent, repository.chunks.size)
})

test('a commit that the server finds incomplete is repeated without the parent', async (t) => {
  const repository = new MemoryRepository()
  const { config } = fileTree(t)
  const clock = { ...instantClock(1_500), now: () => 32_503_680_000_000 }
  await runBackup(repository, optionsFor(config, { clock }), {}, NO_ABORT)
  repository.failNext('commit', new RoostError('COMMIT_INCOMPLETE', 'a chunk is gone'))
  const notices: string[] = []
  const report = await runBackup(repository, optionsFor(config, { clock }), { onNotice: (text) => { notices.push(text) } }, NO_ABORT)
  assert.equal(report.passes, 2)
  assert.equal(report.record.parent, null)
  assert.ok(report.statistics.bytesRead > 4_000_000)
  assert.equal(notices.length, 1)
})

test('a damaged node of the parent costs reading, not the backup', async (t) => {
  const repository = new MemoryRepository()
  const { config } = fileTree(t)
  const first = await runBackup(repository, optionsFor(config), {}, NO_ABORT)
  repository.damage(Buffer.from(first.record.root, 'hex'))
  const report = await runBackup(repository, optionsFor(config), {}, NO_ABORT)
  assert.ok(report.statistics.bytesRead > 4_000_000)
  assert.equal(report.exitCode, 0)
})

test('a forged parent is not used, and a deleted one is done without', async (t) => {
  const repository = new MemoryRepository()
  const { config } = fileTree(t)
  const first = await runBackup(repository, optionsFor(config), {}, NO_ABORT)
  const genuine = repository.snapshots[0]!
  repository.snapshots[0] = { ...genuine, signature: Buffer.alloc(64).toString('base64') }
  const notices: string[] = []
  const report = await runBackup(repository, optionsFor(config), { onNotice: (text) => { notices.push(text) } }, NO_ABORT)
  assert.match(notices[0]!, /signature/)
  assert.ok(report.statistics.bytesRead > 4_000_000)
  await repository.deleteSnapshot(parseSnapshotId(first.snapshotId))
  await runBackup(repository, optionsFor(config, { parent: parseSnapshotId(first.snapshotId) }), { onNotice: (text) => { notices.push(text) } }, NO_ABORT)
  assert.match(notices[1]!, /does not exist/)
})

test('a server that never lets the push finish is given up on', async (t) => {
  const repository = new MemoryRepository()
  const { config } = fileTree(t)
  for (let i = 0; i < 20; i++) repository.failNext('commit', lost())
  await assert.rejects(runBackup(repository, optionsFor(config), {}, NO_ABORT), (error) => hasClientCode(error, 'PUSH_NOT_CONVERGING'))
  assert.ok(repository.calls['openSession']! <= 8)
})

test('a refusal for good ends the backup at once, with its session closed', async (t) => {
  const repository = new MemoryRepository()
  const { config } = fileTree(t)
  repository.failNext('putChunks', new RoostError('AUTH_FORBIDDEN', 'no'))
  await assert.rejects(runBackup(repository, optionsFor(config), {}, NO_ABORT), (error) => error instanceof RoostError && error.code === 'AUTH_FORBIDDEN')
  assert.equal(repository.calls['openSession'], 1)
  assert.equal(repository.sessions.size, 0)
})

test('a pinned verify key refuses a repository that signs with another', async (t) => {
  const { config } = fileTree(t)
  await assert.rejects(runBackup(new MemoryRepository(), optionsFor(config, { verifyKeys: ['0'.repeat(64)] }), {}, NO_ABORT),
    (error) => hasClientCode(error, 'SNAPSHOT_KEY_MISMATCH'))
})

test('unreadable paths are reported, the rest is saved, and the exit code says so', async (t) => {
  const repository = new MemoryRepository()
  const { root } = fileTree(t)
  const problems: string[] = []
  const report = await runBackup(repository, optionsFor({ mode: 'files', paths: [Buffer.from(root), Buffer.from(join(directory(t), 'absent'))] }),
    { onProblem: (problem) => { problems.push(problem.reason) } }, NO_ABORT)
  assert.equal(report.exitCode, 3)
  assert.equal(report.statistics.errors, problems.length)
  assert.equal(report.statistics.files, 41)
})

for (const where of ['inline', 'thread'] as const) {
  test(`an abort ends the scan and closes the session (${where})`, async (t) => {
    const repository = new MemoryRepository()
    const { config } = fileTree(t)
    const interrupt = new AbortController()
    const reason = new Error('interrupted')
    const running = runBackup(repository, optionsFor(config, { where }), { onPass: () => { interrupt.abort(reason) } }, interrupt.signal)
    await assert.rejects(running, reason)
    assert.equal(repository.sessions.size, 0)
    assert.equal(repository.snapshots.length, 0)
  })
}

test('standard input becomes one file of the given name', async (t) => {
  const repository = new MemoryRepository()
  const bytes = seededBytes(2_500_000, 9)
  const report = await runBackup(repository, optionsFor(stdinOf(t, bytes), { parent: null }), {}, NO_ABORT)
  assert.equal(report.statistics.files, 1)
  assert.equal(report.statistics.sourceBytes, bytes.byteLength)
  assert.equal(recordOf(repository.snapshots[0]!).mode, 'stdin')
  const data = [...repository.chunks.values()].filter((chunk) => chunk.kind === 1).map((chunk) => chunk.bytes)
  assert.ok(Buffer.concat(data).equals(bytes))
})
test('standard input that breaks in mid-push cannot be read again, and that is said', async (t) => {
  const repository = new MemoryRepository()
  repository.failNext('putChunks', lost())
  await assert.rejects(runBackup(repository, optionsFor(stdinOf(t, seededBytes(10_000, 1))), {}, NO_ABORT),
    (error) => hasClientCode(error, 'SOURCE_NOT_REPEATABLE'))
})
test('empty standard input is an empty file', async (t) => {
  const repository = new MemoryRepository()
  const report = await runBackup(repository, optionsFor(stdinOf(t, Buffer.alloc(0))), {}, NO_ABORT)
  assert.equal(report.statistics.sourceBytes, 0)
  assert.equal(report.statistics.files, 1)
})
