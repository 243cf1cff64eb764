/** roost backup with hooks, as a command: what is made when they fail, and when it is interrupted. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { openWorld, readToken } from '../support/run-roost.js'

test('hooks run around a backup, see what it came to, and no token', async (t) => {
  const world = await openWorld(t)
  mkdirSync(world.path('tree'))
  writeFileSync(world.path('tree', 'file'), 'x')
  const log = world.path('log')
  const lines = (): string[] => readFileSync(log, 'utf8').trim().split('\n')
  const note = `echo $ROOST_HOOK $ROOST_RESULT $ROOST_SNAPSHOT >> ${log}`
  const hooks = ['--pre', note, '--post-point', note, '--post', note]
  const environment = { ROOST_TOKEN: readToken(world.adminTokenFile), ROOST_TOKEN_FILE: '' }
  const records = await world.json(['backup', world.path('tree'), ...hooks, '--pre', `env > ${world.path('env')}`], { environment })
  const id = records.find(({ type }) => type === 'snapshot')!['id'] as string
  assert.deepEqual(lines(), ['pre', 'post-point', `post ok ${id}`])
  assert.deepEqual(records.filter(({ type }) => type === 'hook').map(({ kind, result }) => `${kind as string} ${result as string}`), ['pre ok', 'pre ok', 'post-point ok', 'post ok'])
  assert.ok(!readFileSync(world.path('env'), 'utf8').includes(environment.ROOST_TOKEN))

  writeFileSync(log, '')
  const refused = await world.run(['backup', world.path('tree'), ...hooks, '--pre', 'echo the reason; exit 9'])
  assert.equal(refused.code, 1)
  assert.match(refused.stderr, /pre: the reason\n.*ended with 9.*\n.*The backup is not made.*\[HOOK_FAILED\]/s)
  assert.deepEqual(lines(), ['pre', 'post failed'])
  assert.equal((await world.json(['snapshots'])).length, 1)

  assert.equal((await world.run(['backup', world.path('tree'), '--post', 'false'])).code, 3)
  assert.equal((await world.run(['backup', world.path('nowhere'), ...hooks])).code, 3)
  assert.match(lines().at(-1)!, /^post problems [0-9a-f]{64}$/)
  assert.equal((await world.run(['backup', world.path('tree'), ...hooks, '--repository', `${world.url}/nowhere`])).code, 1)
  assert.deepEqual(lines().slice(-2), ['pre', 'post failed'])
  assert.equal((await world.run(['backup', world.path('tree'), '--hook-timeout', '5'])).code, 2)
  const late = await world.run(['backup', world.path('tree'), '--pre', 'sleep 1000', '--hook-timeout', '1'])
  assert.equal(late.code, 1)
  assert.match(late.stderr, /longer than 1 s/)

  const child = world.start(['backup', world.path('tree'), '--pre', `touch ${world.path('begun')}; sleep 1000`, '--post', note])
  t.after(() => { child.kill('SIGKILL') })
  while (!existsSync(world.path('begun'))) await new Promise((resolve) => setTimeout(resolve, 20))
  child.kill('SIGINT')
  const [code] = await once(child, 'exit') as [number]
  assert.equal(code, 130)
  assert.equal(lines().at(-1), 'post interrupted')

  const directory = world.path('hooks')
  mkdirSync(directory, { mode: 0o700 })
  writeFileSync(`${directory}/pre`, `#!/bin/sh\necho script >> ${log}\n`, { mode: 0o700 })
  await world.ok(['backup', world.path('tree')], { environment: { ROOST_HOOKS: directory } })
  assert.equal(lines().at(-1), 'script')
})
