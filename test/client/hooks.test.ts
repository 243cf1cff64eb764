/** Commands around a backup: what they are given, how they are ended, and what of them is believed. */
import assert from 'node:assert/strict'
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { BackupHooks, type HookOptions } from '../../client/hooks/backup-hooks.js'
import { runHook, withoutSecrets, type HookOutcome } from '../../client/hooks/run-hook.js'
import { systemClock } from '../../src/core/clock.js'

const never = new AbortController().signal
const sh = (shell: string, timeoutMs = 20_000, environment: Record<string, string> = {}, signal = never): Promise<HookOutcome> =>
  runHook({ command: { shell }, timeoutMs, environment: { PATH: process.env['PATH']!, ...environment }, clock: systemClock }, signal)
function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'roost-hooks-'))
  t.after(() => { rmSync(path, { recursive: true, force: true }) })
  return path
}
const isAlive = (pid: number): boolean => { try { return !/^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')) } catch { return false } }
async function untilDead(pid: number): Promise<void> { while (isAlive(pid)) await new Promise((resolve) => setTimeout(resolve, 10)) }

test('output of both streams and the way it ended are told; output is bounded', async () => {
  assert.deepEqual((({ failure, output }) => [failure, output])(await sh('echo out; echo err >&2')), [undefined, 'out\nerr\n'])
  assert.match((await sh('exit 7')).failure!, /ended with 7/)
  assert.match((await sh('kill -9 $$')).failure!, /SIGKILL/)
  assert.match((await runHook({ command: { file: '/nowhere' }, timeoutMs: 1000, environment: {}, clock: systemClock }, never)).failure!, /could not be started/)
  const { output } = await sh('yes 0123456789 | head -c 3000000; echo; echo the end')
  assert.ok(Buffer.byteLength(output) <= 65_536 && output.endsWith('the end\n'))
  assert.equal((await sh('cat')).output, '', 'there is no standard input')
})
test('one that takes too long is ended with all that it started', async (t) => {
  const file = join(folder(t), 'pids')
  const late = await sh(`trap '' TERM; sleep 1000 & echo $! > ${file}; echo $$ >> ${file}; wait; sleep 1000`, 300)
  assert.match(late.failure!, /longer than 0\.3 s/)
  for (const pid of readFileSync(file, 'utf8').trim().split('\n')) await untilDead(Number(pid))
})
test('a child that it leaves behind with its output open holds nobody up', async (t) => {
  const file = join(folder(t), 'pid')
  assert.equal((await sh(`sleep 1000 & echo $! > ${file}; echo done`)).output, 'done\n')
  process.kill(Number(readFileSync(file, 'utf8')))
})
test('an abort ends it, and is passed on once it is gone', async (t) => {
  const file = join(folder(t), 'pid')
  const abort = new AbortController()
  const running = sh(`echo $$ > ${file}; sleep 1000`, 60_000, {}, abort.signal)
  let pid = 0
  while (pid === 0) { await new Promise((resolve) => setTimeout(resolve, 10)); try { pid = Number(readFileSync(file, 'utf8')) } catch { /* not yet */ } }
  abort.abort(new DOMException('stop', 'AbortError'))
  await assert.rejects(running, { name: 'AbortError' })
  await untilDead(pid)
  await assert.rejects(sh('true', 1000, {}, abort.signal), { name: 'AbortError' })
})
test('secrets stay with us', () => {
  assert.deepEqual(withoutSecrets({ PATH: '/bin', ROOST_TOKEN: 'x', OS_PASSWORD: 'x', OS_USERNAME: 'u', OS_APPLICATION_CREDENTIAL_SECRET: 'x', AWS_SECRET_ACCESS_KEY: 'x',
    ROOST_PASSPHRASE: 'x', ROOST_TOKEN_FILE: '/f', EMPTY: undefined }), { PATH: '/bin', OS_USERNAME: 'u', ROOST_TOKEN_FILE: '/f' })
})

interface Scene { readonly log: string; readonly lines: () => string[]; open(options?: Partial<HookOptions>): BackupHooks }
function scene(t: TestContext): Scene {
  const log = join(folder(t), 'log')
  const note = (what: string): string => `echo ${what} $ROOST_HOOK $ROOST_SOURCE $ROOST_RESULT $ROOST_SNAPSHOT >> ${log}`
  return {
    log, lines: () => { try { return readFileSync(log, 'utf8').trim().split('\n').map((line) => line.trim()) } catch { return [] } },
    open: (options = {}) => new BackupHooks({ pre: [note('a'), note('b')], postPoint: [note('c')], post: [note('d')], timeoutMs: 20_000, source: 's', environment: { PATH: process.env['PATH'] },
      clock: systemClock, ...options }),
  }
}
test('they run in their order, and the point in time is told once', async (t) => {
  const { open, lines } = scene(t)
  const hooks = open()
  await hooks.pre(never)
  await hooks.pointTaken(never)
  await hooks.pointTaken(never)
  await hooks.post('ok', 'id')
  assert.deepEqual(lines(), ['a pre s', 'b pre s', 'c post-point s', 'd post s ok id'])
  assert.equal(hooks.problems, 0)
})
test('a failure before keeps the backup from being made, later ones are counted; without a beginning there is no end', async (t) => {
  const { open, lines } = scene(t)
  const failing = open({ pre: ['false', 'echo never'] })
  await assert.rejects(failing.pre(never), { code: 'HOOK_FAILED' })
  await failing.post('failed', undefined)
  assert.deepEqual(lines(), ['d post s failed'])
  const later = open({ pre: [], post: ['false', 'true', 'false'], postPoint: ['exit 1'] })
  await later.pre(never)
  await later.pointTaken(never)
  await later.post('ok', 'id')
  assert.equal(later.problems, 3)
  await open().post('ok', undefined)
  assert.equal(lines().length, 1)
})
test('scripts of a folder: those of the source before those of all; what others could have written is not run', async (t) => {
  const { open, lines, log } = scene(t)
  const directory = folder(t)
  const script = (path: string, what: string): void => { writeFileSync(path, `#!/bin/sh\necho ${what} $ROOST_HOOK >> ${log}\n`, { mode: 0o700 }) }
  script(join(directory, 'pre'), 'all')
  script(join(directory, 'post'), 'all')
  mkdirSync(join(directory, 'web1%3A%2Fsrv'))
  script(join(directory, 'web1%3A%2Fsrv', 'pre'), 'own')
  const run = async (source: string): Promise<void> => {
    const hooks = open({ directory, source, pre: [], post: [] })
    await hooks.pre(never)
    await hooks.post('ok', undefined)
  }
  await run('web1:/srv')
  await run('other')
  await run('..')
  assert.deepEqual(lines(), ['own pre', 'all pre', 'all post', 'all pre', 'all post'])
  chmodSync(join(directory, 'pre'), 0o722)
  assert.throws(() => open({ directory }), /written by others/)
  chmodSync(join(directory, 'pre'), 0o600)
  assert.throws(() => open({ directory }), /chmod \+x/)
  chmodSync(join(directory, 'pre'), 0o700)
  chmodSync(directory, 0o777)
  assert.throws(() => open({ directory }), /written by others/)
  assert.throws(() => open({ directory: join(directory, 'nowhere') }), { code: 'HOOK_FAILED' })
})
