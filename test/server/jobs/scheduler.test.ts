import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hasCode } from '../../../src/core/errors.js'
import { SCHEDULED_RUNS_MAX } from '../../../src/server/jobs/scheduler.js'
import { DAY, HOUR, MINUTE, SCENE_START, jobScene } from '../../support/job-scene.js'
import { DONE, SteppedEvents, settle } from '../../support/stepped-events.js'

const nightly = (more = ''): string => `jobs: [{ name: nightly, kind: check, cron: "0 3 * * *", timeZone: UTC, jitterSeconds: 0${more} }]`
const AT_3 = 3 * 60, DAY_MINUTES = 24 * 60

test('a job runs at its time, day after day, with its options', async (t) => {
  const { pass, starts, host, scheduler } = await jobScene(t, { jobs: nightly(', options: { readDataPercent: 7 }') })
  assert.deepEqual(starts, [])
  await pass(3 * HOUR - 1)
  assert.deepEqual(starts, [])
  await pass(1)
  assert.deepEqual(starts, [AT_3])
  await pass(2 * DAY)
  assert.deepEqual(starts, [AT_3, AT_3 + DAY_MINUTES, AT_3 + 2 * DAY_MINUTES])
  assert.deepEqual(host.get('alpha').callsOf('check')[0], [{ readDataPercent: 7 }])
  const [job] = await scheduler.jobsOf('alpha')
  assert.deepEqual([job!.nextRunAtMs, job!.lastRun?.state, job!.lastRun?.trigger], [SCENE_START + 3 * DAY + 3 * HOUR, 'done', 'schedule'])
})

test('jitter delays a run by a bounded part of its seconds, never into the half of the period before the next', async (t) => {
  const daily = await jobScene(t, { jobs: nightly().replace('jitterSeconds: 0', 'jitterSeconds: 600'), fraction: 0.5 })
  await daily.pass(4 * HOUR)
  assert.deepEqual(daily.starts, [AT_3 + 5])
  const often = await jobScene(t, { jobs: 'jobs: [{ name: often, kind: check, cron: "*/10 * * * *", timeZone: UTC, jitterSeconds: 86400 }]', fraction: 0.999 })
  await often.pass(31 * MINUTE)
  assert.equal(often.starts.length, 2, 'two, and the third is on its way')
  assert.ok(often.starts.every((start, place) => start >= 10 * (place + 1) && start < 10 * (place + 1) + 5), often.starts.join())
})

test('without `repository` a job runs on all, also on one that is made later; with it, on that one', async (t) => {
  const { pass, host, starts } = await jobScene(t, { repositories: ['alpha', 'beta'],
    jobs: 'jobs: [{ name: all, kind: check, cron: "0 3 * * *", timeZone: UTC, jitterSeconds: 0 }, { name: one, kind: backfill, repository: beta, cron: "0 5 * * *", timeZone: UTC, jitterSeconds: 0 }]' })
  await pass(4 * HOUR)
  assert.deepEqual(starts, [AT_3, AT_3])
  await host.create({ name: 'gamma' })
  await pass(DAY)
  assert.deepEqual(['alpha', 'beta', 'gamma'].map((name) => host.get(name).callsOf('check').length), [2, 2, 1])
  assert.deepEqual(['alpha', 'beta', 'gamma'].map((name) => host.get(name).callsOf('backfillTarget').length), [0, 1, 0])
})

test('a run that takes longer than the period is not overlapped; what it missed is one run', async (t) => {
  const scene = await jobScene(t, { jobs: nightly() })
  const events = new SteppedEvents()
  scene.host.get('alpha').events = events.source
  await scene.pass(3 * HOUR + 2 * DAY + HOUR)
  assert.equal(events.signals.length, 1)
  const [waiting] = await scene.scheduler.jobsOf('alpha')
  assert.equal(waiting!.waitingFor, waiting!.lastRun?.id)
  events.give(DONE)
  await scene.pass(MINUTE)
  assert.equal(events.signals.length, 2, 'once, for two that were missed')
  events.give(DONE)
  await scene.pass(2 * HOUR)
  assert.equal(events.signals.length, 2)
})

test('a job whose repository is busy with what a person started waits for its end', async (t) => {
  const { pass, host, registry, scheduler } = await jobScene(t, { jobs: nightly() })
  const repository = host.get('alpha'), events = new SteppedEvents()
  repository.events = events.source
  const rebuild = registry.start({ repository, kind: 'rebuild', options: {}, trigger: 'hand' })
  await pass(4 * HOUR)
  assert.equal(repository.callsOf('check').length, 0)
  assert.equal((await scheduler.jobsOf('alpha'))[0]!.waitingFor, rebuild.facts.id)
  events.give(DONE)
  await settle()
  assert.equal(repository.callsOf('check').length, 1, 'at once')
  events.give(DONE)
  await settle()
})

test('times that passed while the server was down are one run at its start, and none when nothing was missed', async (t) => {
  const scene = await jobScene(t, { jobs: nightly() })
  await scene.pass(4 * HOUR)
  assert.deepEqual(scene.starts, [AT_3])
  const soon = await scene.restart()
  await soon.pass(HOUR)
  assert.deepEqual(soon.starts, [], 'it ran an hour ago')
  scene.clock.jump(5 * DAY) // no process is there to see it
  const late = await soon.restart()
  await late.pass(MINUTE)
  assert.equal(late.starts.length, 1)
  await late.pass(10 * HOUR)
  assert.equal(late.starts.length, 1)
})

test('a job that is new in the configuration does not run before its time, and is not forgotten when the server is down then', async (t) => {
  const jobs = nightly()
  const scene = await jobScene(t, { jobs })
  await scene.pass(2 * HOUR)
  assert.deepEqual(scene.starts, [])
  scene.clock.jump(10 * HOUR) // no process is there to see it
  const again = await scene.restart()
  await again.pass(MINUTE)
  assert.equal(again.starts.length, 1)
})

test('a clock that is set forward by a year starts a job once; set back again, it goes on as before', async (t) => {
  const { pass, clock, starts, scheduler } = await jobScene(t, { jobs: nightly() })
  await pass(4 * HOUR)
  clock.jump(365 * DAY)
  await pass(2 * HOUR)
  assert.equal(starts.length, 2)
  clock.jump(-365 * DAY)
  await pass(2 * HOUR)
  assert.equal(starts.length, 2)
  assert.equal((await scheduler.jobsOf('alpha'))[0]!.nextRunAtMs, SCENE_START + DAY + 3 * HOUR, 'not in a year')
  await pass(20 * HOUR)
  assert.equal(starts.length, 3)
})

test('a clock that jumps to and fro starts no storm, by weeks or by minutes around the time of a job', async (t) => {
  const weeks = await jobScene(t, { jobs: nightly() })
  for (let round = 0; round < 120; round++) {
    weeks.clock.jump(round % 2 === 0 ? 7 * DAY : -7 * DAY)
    await weeks.pass(MINUTE)
  }
  assert.ok(weeks.starts.length <= 3, `${weeks.starts.length} runs in two hours`)
  const minutes = await jobScene(t, { jobs: nightly() })
  await minutes.pass(3 * HOUR - MINUTE)
  for (let round = 0; round < 60; round++) {
    await minutes.pass(2 * MINUTE)
    minutes.clock.jump(-2 * MINUTE)
  }
  assert.ok(minutes.starts.length >= 1 && minutes.starts.length <= 3, `${minutes.starts.length} runs in two hours`)
  const forward = await jobScene(t, { jobs: nightly() })
  for (let round = 0; round < 60; round++) {
    forward.clock.jump(DAY)
    await forward.pass(MINUTE)
  }
  assert.ok(forward.starts.length <= 2, `${forward.starts.length} runs in an hour`)
})

test('only so many runs of the schedule are under way at once; the others follow', async (t) => {
  const names = ['a', 'b', 'c', 'd', 'e']
  const scene = await jobScene(t, { jobs: nightly(), repositories: names })
  const events = new SteppedEvents()
  for (const name of names) scene.host.get(name).events = events.source
  await scene.pass(4 * HOUR)
  assert.equal(events.signals.length, SCHEDULED_RUNS_MAX)
  for (const _name of names) {
    events.give(DONE)
    await scene.pass(1)
  }
  assert.equal(events.signals.length, names.length)
})

test('a configured job runs when asked to, counts as run, and an unknown one is unknown', async (t) => {
  const { pass, scheduler, host, starts } = await jobScene(t, { jobs: nightly(), repositories: ['alpha', 'beta'] })
  await pass(2 * HOUR)
  const run = scheduler.runNow(host.get('alpha'), 'nightly')
  await run.ended
  assert.deepEqual([run.facts.trigger, run.facts.job], ['hand', 'nightly'])
  await pass(2 * HOUR)
  assert.deepEqual(starts, [2 * 60, AT_3, AT_3])
  assert.throws(() => scheduler.runNow(host.get('alpha'), 'weekly'), (error) => hasCode(error, 'JOB_UNKNOWN'))
})

test('a run that fails is told, and the next one comes at its time', async (t) => {
  const { pass, scheduler, host } = await jobScene(t, { jobs: nightly() })
  host.get('alpha').failNext('check', new Error('the disk is on fire'))
  await pass(4 * HOUR)
  const [job] = await scheduler.jobsOf('alpha')
  assert.deepEqual([job!.lastRun?.state, job!.nextRunAtMs], ['failed', SCENE_START + DAY + 3 * HOUR])
  await pass(DAY)
  assert.equal((await scheduler.jobsOf('alpha'))[0]!.lastRun?.state, 'done')
})

test('a run that an orderly stop cut short begins again at the next start, once; one that a kill cut short waits for its time', async (t) => {
  const scene = await jobScene(t, { jobs: nightly() })
  const events = new SteppedEvents()
  scene.host.get('alpha').events = events.source
  await scene.pass(4 * HOUR)
  await scene.close()
  assert.equal((await scene.registry.find('alpha', 'nightly')).state, 'interrupted')
  const again = await scene.restart()
  await again.pass(MINUTE)
  assert.equal(events.signals.length, 2)
  const killed = await again.restart()
  assert.equal((await killed.registry.find('alpha', 'nightly')).state, 'interrupted')
  await killed.pass(HOUR)
  assert.equal(events.signals.length, 2)
  await killed.pass(DAY)
  assert.equal(events.signals.length, 3)
  events.give(DONE)
  await killed.pass(MINUTE)
})
