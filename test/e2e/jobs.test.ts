/** Scheduled jobs as an operator sees them: a file for the server, `roost jobs` for the rest. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { openWorld, jsonLines, SLOW } from '../support/run-roost.js'

const JOBS = `
jobs:
  - name: yearly-check
    kind: check
    cron: "0 3 1 1 *"
    timeZone: UTC
    options: { readDataPercent: 100 }
`

test('an operator configures a job, sees it, runs it, and sees the result after a restart', async (t) => {
  const world = await openWorld(t)
  assert.deepEqual(await world.json(['jobs']), [])
  assert.match((await world.ok(['jobs'])).stderr, /No jobs are configured/)
  await world.stopServer()
  const file = world.path('jobs.yaml')
  writeFileSync(file, JOBS)
  await world.startServer(['--jobs', file])

  assert.match((await world.ok(['jobs'])).stdout, /^JOB +KIND .*\nyearly-check +check +0 3 1 1 \* \(UTC\) +\d{4}-01-01 \d\d:0\d:\d\d +never\n/)
  const waited = await world.ok(['jobs', 'run', 'yearly-check', '--wait'])
  assert.match(waited.stdout, /runs now, as [0-9a-f]{16}\.\n.*check: no problems/s)
  await world.ok(['check'])
  const lines = await world.json(['jobs'])
  assert.deepEqual(lines.map((line) => [line['type'], line['kind'], line['job'] ?? line['name'] ?? null, line['state'] ?? null]),
    [['job', 'check', 'yearly-check', null], ['run', 'check', null, 'done'], ['run', 'check', 'yearly-check', 'done']])
  const id = lines[2]!['id'] as string
  assert.match((await world.ok(['jobs', 'watch', id])).stdout, /check: no problems/)
  assert.match((await world.ok(['jobs', 'cancel', id])).stdout, /had ended: no problems/)
  const unknown = await world.run(['jobs', 'run', 'nightly'])
  assert.equal(unknown.code, 1)
  assert.match(unknown.stderr, /JOB_UNKNOWN/)

  await world.killServer()
  await world.startServer(['--jobs', file])
  assert.match((await world.ok(['jobs'])).stdout, new RegExp(`${id} +check +yearly-check .* no problems`))
})

test('a jobs file with a mistake keeps the server from starting, and says where', async (t) => {
  const world = await openWorld(t)
  await world.stopServer()
  const file = world.path('jobs.yaml')
  writeFileSync(file, JOBS.replace('0 3 1 1 *', '0 3 1 13 *'))
  const refused = await world.run(['server', '--data', world.dataDirectory, '--jobs', file, '--json'])
  assert.equal(refused.code, 2)
  assert.match(refused.stderr + JSON.stringify(jsonLines(refused.stdout)), /job 1 \(yearly-check\): .*0 3 1 13/)
})

test('garbage is planned, collected and gone; what is kept restores', async (t) => {
  const world = await openWorld(t)
  for (const name of ['kept', 'dropped']) {
    mkdirSync(world.path(name))
    writeFileSync(world.path(name, 'file'), randomBytes(3_000_000))
    await world.ok(['backup', world.path(name), '--source', name])
  }
  const [snapshot] = await world.json(['snapshots', '--source', 'dropped'])
  await world.ok(['snapshot', 'delete', snapshot!['id'] as string])
  const plan = await world.ok(['gc', '--dry-run'])
  assert.match(plan.stdout, /^drop +[0-9a-f]{64} +data +2\.8\d MiB +nothing needs it$/m)
  assert.match(plan.stdout, /^gc: no problems; would drop \d+ packs? \(2\.8\d MiB\)/m)
  const [before] = await world.json(['stats'])
  const events = await world.json(['gc'])
  assert.deepEqual([...new Set(events.map(({ type }) => type))].sort(), ['done', 'fate', 'progress'])
  const [after] = await world.json(['stats'])
  assert.ok((before!['storedBytes'] as number) - (after!['storedBytes'] as number) > 2_800_000, 'the bytes are gone')
  await world.ok(['restore', 'latest', '--source', 'kept', '--target', world.path('back')])
  assert.equal((await world.json(['jobs'])).filter(({ kind, state }) => kind === 'gc' && state === 'done').length, 2)
  await world.ok(['check', '--read-data'])
})

test('what a policy does not keep is forgotten and collected by jobs', async (t) => {
  const world = await openWorld(t)
  await world.stopServer()
  const file = world.path('jobs.yaml')
  writeFileSync(file, 'jobs: [{ name: forget, kind: forget, cron: "@daily" }, { name: gc, kind: gc, cron: "@daily" }]')
  await world.startServer(['--jobs', file])
  const source = world.path('source')
  mkdirSync(source)
  for (let version = 0; version < 3; version++) {
    writeFileSync(join(source, 'file'), randomBytes(1_000_000))
    await world.ok(['backup', source, '--source', 's'])
  }
  assert.match((await world.ok(['jobs', 'run', 'forget', '--wait'])).stdout, /forget: no problems/)
  assert.equal((await world.json(['snapshots'])).length, 3, 'without a policy everything is kept')
  await world.ok(['policy', 'set', '--keep-last', '1'])
  await world.ok(['jobs', 'run', 'forget', '--wait'])
  assert.equal((await world.json(['snapshots'])).length, 1)
  assert.match((await world.ok(['jobs', 'run', 'gc', '--wait'])).stdout, /gc: no problems; dropped [45] packs/)
  assert.match((await world.ok(['jobs'])).stdout, /^forget +forget .*2 of 3 snapshots deleted$.*^gc +gc .*packs dropped/ms)
  await world.ok(['restore', 'latest', '--target', world.path('back')])
})

test('a collection goes on when its command is interrupted, is seen, cancelled, and done by the next one', async (t) => {
  const world = await openWorld(t)
  const source = world.path('source')
  mkdirSync(source)
  for (const name of ['stays', 'goes', 'goes-too']) writeFileSync(join(source, name), randomBytes(2_000_000))
  await world.ok(['backup', source, '--source', 's'])
  for (const name of ['goes', 'goes-too']) rmSync(join(source, name))
  await world.ok(['backup', source, '--source', 's'])
  const first = (await world.json(['snapshots', '--source', 's'])).at(-1)
  await world.ok(['snapshot', 'delete', first!['id'] as string])
  assert.match((await world.ok(['gc', '--dry-run'])).stdout, /^repack .*only 3\d(\.\d)? % of it is needed$/m)

  const interrupted = world.start(['gc', '--limit', '4K']) // minutes of it
  const running = async () => (await world.json(['jobs'])).filter(({ type, state }) => type === 'run' && state === 'running')
  while ((await running()).length === 0) continue
  const ended = new Promise((resolve) => interrupted.once('exit', resolve))
  interrupted.kill('SIGINT')
  assert.equal(await ended, 130)
  const [run] = await running()
  assert.deepEqual([run!['kind'], run!['trigger'], run!['options']], ['gc', 'hand', { bytesPerSecondMax: 4096 }])
  const busy = await world.run(['gc'])
  assert.equal(busy.code, 1)
  assert.match(busy.stderr, new RegExp(`job ${run!["id"] as string}\\).*REPOSITORY_BUSY`))
  assert.match((await world.ok(['jobs', 'cancel', run!['id'] as string])).stdout, /is cancelled/)
  assert.match((await world.ok(['gc'])).stdout, /repacked 1 pack \(/)
  await world.ok(['check', '--read-data'])
})

test('the schedule runs by the real clock, and a server that is killed in a run says so afterwards', { skip: !SLOW && 'waits for two minutes to begin (npm run test:slow)' }, async (t) => {
  const world = await openWorld(t)
  await world.stopServer()
  const file = world.path('jobs.yaml')
  writeFileSync(file, 'jobs: [{ name: often, kind: gc, cron: "* * * * *", jitterSeconds: 0 }]')
  await world.startServer(['--jobs', file])
  const runs = async () => (await world.json(['jobs'])).filter(({ type, trigger }) => type === 'run' && trigger === 'schedule')
  while ((await runs()).length < 2) await new Promise((resolve) => setTimeout(resolve, 1_000))
  assert.deepEqual((await runs()).map(({ job, state }) => [job, state]).slice(-1), [['often', 'done']])
  const source = world.path('source')
  mkdirSync(source)
  for (const name of ['stays', 'goes', 'goes-too']) writeFileSync(join(source, name), randomBytes(2_000_000))
  await world.ok(['backup', source, '--source', 's'])
  for (const name of ['goes', 'goes-too']) rmSync(join(source, name))
  await world.ok(['backup', source, '--source', 's'])
  await world.stopServer()
  await world.startServer()
  await world.ok(['snapshot', 'delete', (await world.json(['snapshots'])).at(-1)!['id'] as string])
  const collecting = world.start(['gc', '--limit', '4K'])
  const log = join(world.dataDirectory, 'jobs', `${world.name}.json`)
  while (!readFileSync(log, 'utf8').includes('"running"')) await new Promise((resolve) => setTimeout(resolve, 20))
  await world.killServer()
  await new Promise((resolve) => { if (collecting.exitCode !== null) resolve(undefined); else collecting.once('exit', resolve) })
  await world.startServer()
  assert.equal((await world.json(['jobs'])).find(({ type }) => type === 'run')!['state'], 'interrupted')
  await world.ok(['gc'])
  await world.ok(['check', '--read-data'])
})
