import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { DataLockedError, describeProcess, lockDataDirectory } from '../../src/server/data-lock.js'
import { temporaryDirectory } from '../support/server-under-test.js'

test('a second holder is refused while the first lives, and let in after it releases', async (t) => {
  const directory = await temporaryDirectory(t)
  const first = await lockDataDirectory(directory)
  await assert.rejects(lockDataDirectory(directory), (error) => error instanceof DataLockedError && error.holderPid === process.pid)
  await first.release()
  await first.release()
  const second = await lockDataDirectory(directory)
  await second.release()
  assert.deepEqual(await readdir(directory), [], 'nothing is left behind')
})

test('the lock of a killed process is taken over', async (t) => {
  const directory = await temporaryDirectory(t)
  const child = spawn('sleep', ['600'])
  t.after(() => child.kill('SIGKILL'))
  const holder = await describeProcess(child.pid!)
  assert.ok(holder)
  await writeFile(join(directory, 'server.lock'), JSON.stringify(holder))
  await assert.rejects(lockDataDirectory(directory), DataLockedError)
  child.kill('SIGKILL')
  await once(child, 'exit')
  const lock = await lockDataDirectory(directory)
  assert.match(await readFile(lock.path, 'utf8'), new RegExp(`"pid":${process.pid},`))
  await lock.release()
})

test('a pid that was reused, or a boot before this one, does not hold a lock', async (t) => {
  const directory = await temporaryDirectory(t), own = (await describeProcess(process.pid))!
  for (const stale of [{ ...own, startTicks: '1' }, { ...own, bootId: '00000000-0000-0000-0000-000000000000' }]) {
    await writeFile(join(directory, 'server.lock'), JSON.stringify(stale))
    await (await lockDataDirectory(directory)).release()
  }
})

test('of many that race for a stale lock, one gets it', async (t) => {
  const directory = await temporaryDirectory(t), own = (await describeProcess(process.pid))!
  await writeFile(join(directory, 'server.lock'), JSON.stringify({ ...own, startTicks: '1' }))
  const outcomes = await Promise.allSettled(Array.from({ length: 8 }, () => lockDataDirectory(directory)))
  const taken = outcomes.filter((outcome) => outcome.status === 'fulfilled')
  assert.equal(taken.length, 1)
})
