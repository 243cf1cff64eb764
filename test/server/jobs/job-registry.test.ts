import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { RoostError, hasCode } from '../../../src/core/errors.js'
import type { JobKind, JobOptions, MaintenanceEvent } from '../../../src/core/messages.js'
import { RUNS_KEPT_MAX } from '../../../src/server/jobs/job-log.js'
import type { JobRegistry } from '../../../src/server/jobs/job-registry.js'
import { jobScene } from '../../support/job-scene.js'
import { DONE, SteppedEvents, progress, settle } from '../../support/stepped-events.js'

const never = new AbortController().signal
const problem: MaintenanceEvent = { type: 'problem', code: 'PACK_CORRUPT', message: 'a pack is corrupt', pack: 'p' }

async function open(t: TestContext) {
  const scene = await jobScene(t, { jobs: '', repositories: ['alpha', 'beta'] })
  const events = new SteppedEvents(), repository = scene.host.get('alpha')
  repository.events = events.source
  const start = (kind: JobKind, options: JobOptions = {}, asker?: AbortSignal, name = 'alpha') =>
    scene.registry.start({ repository: scene.host.get(name), kind, options, trigger: 'hand' }, asker)
  return { ...scene, events, start, repository }
}
async function all(events: AsyncIterable<MaintenanceEvent>): Promise<MaintenanceEvent[]> {
  const found: MaintenanceEvent[] = []
  for await (const event of events) found.push(event)
  return found
}
async function onlyRun(registry: JobRegistry, name = 'alpha') {
  const runs = await registry.runsOf(name)
  assert.equal(runs.length, 1)
  return runs[0]!
}

test('a run has an id, a place and a state while it runs, and what it came to afterwards', async (t) => {
  const { registry, start, events, clock } = await open(t)
  const run = start('check', { readDataPercent: 5 })
  events.give(progress(3), problem)
  await settle()
  const during = await onlyRun(registry)
  assert.match(during.id, /^[0-9a-f]{16}$/)
  assert.deepEqual([during.state, during.progress, during.problems, during.options, during.endedAtMs], ['running', { phase: 'packs', done: 3, total: 10 }, 1, { readDataPercent: 5 }, undefined])
  await clock.advance(5_000)
  events.give({ type: 'done', problems: 1, counts: { packs: 10 } })
  await run.ended
  const after = await onlyRun(registry)
  assert.deepEqual([after.state, after.counts, after.problems, after.endedAtMs! - after.startedAtMs], ['done', { packs: 10 }, 1, 5_000])
  assert.equal(registry.running.length, 0)
})

test('one run of a kind a repository: the second is refused and told which one runs; another repository is free', async (t) => {
  const { start, events } = await open(t)
  const first = start('check')
  assert.throws(() => start('check'), (error) => hasCode(error, 'REPOSITORY_BUSY') && error.details.job === first.facts.id && error.message.includes(first.facts.id))
  start('check', {}, undefined, 'beta')
  events.give(DONE)
  await first.ended
  start('check')
})

test('a rebuild and a check exclude each other, whichever came first; a check runs beside a backfill', async (t) => {
  const { start, events } = await open(t)
  const check = start('check')
  assert.throws(() => start('rebuild'), (error) => hasCode(error, 'REPOSITORY_BUSY') && error.details.kind === 'check')
  start('backfill', { target: 'main' })
  events.give(DONE, DONE)
  await check.ended
  await settle()
  start('rebuild')
  assert.throws(() => start('check'), (error) => hasCode(error, 'REPOSITORY_BUSY') && error.details.kind === 'rebuild')
})

test('backfills of two targets run beside each other; asked for again, the one that runs is watched', async (t) => {
  const { start, events } = await open(t)
  const one = start('backfill', { target: 'a' }), other = start('backfill', { target: 'b' })
  assert.notEqual(one, other)
  assert.equal(start('backfill', { target: 'a' }), one)
  events.give(DONE, DONE)
  await Promise.all([one.ended, other.ended])
})

test('who watches from the start sees every event; who comes later sees what was found and goes on from there', async (t) => {
  const { start, events } = await open(t)
  const run = start('check')
  const early = all(run.lookOn(never))
  events.give(progress(1), problem)
  await settle()
  const late = all(run.lookOn(never))
  await settle()
  events.give(progress(2), DONE)
  assert.deepEqual(await early, [progress(1), problem, progress(2), DONE])
  assert.deepEqual(await late, [problem, progress(1), progress(2), DONE])
  assert.deepEqual(await all(run.lookOn(never)), [problem, progress(2), DONE], 'even after its end')
})

test('who asked for a check gets every event and holds it back by reading slowly; leaving lets it end', async (t) => {
  const { start, events } = await open(t)
  const asker = new AbortController(), run = start('check', {}, asker.signal)
  const slow = run.watch(asker.signal)
  const first = slow.next()
  events.give(...Array.from({ length: 1_000 }, () => problem))
  await first
  await settle()
  assert.ok(events.left > 500, `${events.left} are left`)
  let seen = 1
  const rest = (async () => { for await (const event of slow) if (event.type === 'problem') seen++ })()
  events.give({ type: 'done', problems: 1_000, counts: {} })
  await rest
  assert.equal(seen, 1_000)
  const next = start('check', {}, asker.signal), stuck = next.watch(asker.signal)
  events.give(...Array.from({ length: 1_000 }, () => problem))
  await stuck.next()
  await settle()
  asker.abort(new DOMException('The client went away.', 'AbortError'))
  await next.ended
  assert.equal(next.info().state, 'cancelled')
})

test('one who only looks on holds nothing back, misses what he does not read, and hears the end', async (t) => {
  const { start, events } = await open(t)
  const run = start('gc')
  for (const watching of [run.lookOn(never), run.watch(never)]) {
    const first = watching.next()
    events.give(problem, ...Array.from({ length: 2_000 }, () => problem))
    await first
    for (let turn = 0; events.left > 0; turn++) { assert.ok(turn < 1_000); await settle() }
  }
  const late = run.lookOn(never)
  await late.next()
  events.give({ type: 'done', problems: 4_002, counts: {} })
  await run.ended
  const heard = await all(late)
  assert.ok(heard.length < 2_000)
  assert.deepEqual(heard.at(-1), { type: 'done', problems: 4_002, counts: {} })
})

test('a collection goes on without its asker, and beside a check; a dry run ends, and a rebuild has to wait', async (t) => {
  const { start, events, repository } = await open(t)
  const asker = new AbortController()
  const gc = start('gc', {}, asker.signal), check = start('check')
  assert.throws(() => start('gc', { dryRun: true }), (error) => hasCode(error, 'REPOSITORY_BUSY') && error.details.job === gc.facts.id)
  assert.throws(() => start('rebuild'), (error) => hasCode(error, 'REPOSITORY_BUSY'))
  asker.abort()
  await settle()
  assert.equal(gc.isRunning, true)
  events.give(DONE, DONE)
  await Promise.all([gc.ended, check.ended])
  const gone = new AbortController(), dry = start('gc', { dryRun: true }, gone.signal)
  gone.abort()
  await dry.ended
  assert.deepEqual([dry.info().state, repository.callsOf('collect')], ['cancelled', [[{}], [{ dryRun: true }]]])
})

test('a check ends with whoever asked for it; a backfill does not', async (t) => {
  const { start, events, registry } = await open(t)
  const asker = new AbortController()
  const check = start('check', {}, asker.signal), backfill = start('backfill', { target: 'main' }, asker.signal)
  asker.abort(new DOMException('The client went away.', 'AbortError'))
  await check.ended
  assert.deepEqual([check.info().state, check.info().error?.code, backfill.isRunning], ['cancelled', 'JOB_CANCELLED', true])
  assert.deepEqual((await registry.runsOf('alpha')).map(({ kind, state }) => [kind, state]), [['backfill', 'running'], ['check', 'cancelled']])
  events.give(DONE)
  await backfill.ended
})

test('a cancelled run ends at its next wait, its watchers are told, and cancelling it again is answered the same', async (t) => {
  const { start, registry, events } = await open(t)
  const run = start('check')
  const watched = all(run.lookOn(never))
  const cancelled = await registry.cancel('alpha', run.facts.id)
  assert.deepEqual([cancelled.state, cancelled.error?.code, events.signals[0]!.aborted], ['cancelled', 'JOB_CANCELLED', true])
  await assert.rejects(watched, (error) => hasCode(error, 'JOB_CANCELLED'))
  assert.equal((await registry.cancel('alpha', run.facts.id)).state, 'cancelled')
  await assert.rejects(registry.cancel('beta', run.facts.id), (error) => hasCode(error, 'JOB_UNKNOWN'))
})

test('what goes on by itself cannot be cancelled, and says so', async (t) => {
  const { start, registry, events } = await open(t)
  const run = start('drain', { target: 'main' })
  await assert.rejects(registry.cancel('alpha', run.facts.id), (error) => hasCode(error, 'JOB_NOT_CANCELLABLE'))
  events.give(DONE)
  await run.ended
})

test('a run that fails says why, to its watchers and for ever after', async (t) => {
  const { start, registry, events, logLines } = await open(t)
  const run = start('check')
  const watched = all(run.lookOn(never))
  events.give(progress(1), new RoostError('STORE_UNAVAILABLE', 'the host is down'))
  await assert.rejects(watched, (error) => hasCode(error, 'STORE_UNAVAILABLE'))
  assert.deepEqual((await onlyRun(registry)).error, { code: 'STORE_UNAVAILABLE', message: 'the host is down' })
  const second = start('check')
  events.give(new Error('password of the database'))
  await second.ended
  assert.deepEqual(second.info().error, { code: 'INTERNAL', message: 'Internal error.' })
  assert.ok(logLines.some((line) => line.includes('job failed') && line.includes('password of the database')))
})

test('the server’s end interrupts what nobody is connected to, and starts nothing any more', async (t) => {
  const { start, registry, directory, events, host } = await open(t)
  host.get('beta').events = events.source
  const asker = new AbortController()
  const attended = start('check', {}, asker.signal), alone = start('check', {}, undefined, 'beta')
  registry.beginClose()
  await alone.ended
  assert.equal(attended.isRunning, true, 'its connection ends it')
  assert.throws(() => start('rebuild', {}, undefined, 'beta'), (error) => hasCode(error, 'SERVER_DRAINING'))
  asker.abort(new RoostError('SERVER_DRAINING', 'The server is shutting down.'))
  await attended.ended
  await registry.close()
  assert.deepEqual([attended.info().state, alone.info().state], ['interrupted', 'interrupted'])
  assert.match(await readFile(join(directory, 'beta.json'), 'utf8'), /"interrupted"/)
})

test('after a restart the latest runs are still known, and one that the server’s death cut short is shown as interrupted', async (t) => {
  const scene = await open(t)
  scene.events.give(DONE)
  await scene.start('check').ended
  const cut = scene.start('rebuild')
  const again = await scene.restart()
  assert.deepEqual((await again.registry.runsOf('alpha')).map(({ id, kind, state }) => [id === cut.facts.id, kind, state]), [[true, 'rebuild', 'interrupted'], [false, 'check', 'done']])
  assert.equal((await again.registry.find('alpha', cut.facts.id)).state, 'interrupted')
})

test('only so many runs are remembered', async (t) => {
  const { start, events, registry } = await open(t)
  for (let count = 0; count < RUNS_KEPT_MAX + 5; count++) {
    events.give(DONE)
    await start('check').ended
  }
  assert.equal((await registry.runsOf('alpha')).length, RUNS_KEPT_MAX)
})

test('a log that cannot be read is reported and begun anew', async (t) => {
  for (const content of ['{', '[]', '{"format":9}']) {
    const scene = await open(t)
    await scene.registry.logOf('alpha').settled()
    await writeFile(join(scene.directory, 'alpha.json'), content)
    const again = await scene.restart()
    assert.deepEqual(await again.registry.runsOf('alpha'), [])
    assert.ok(again.logLines.some((line) => line.includes('log of jobs not read')))
  }
})
