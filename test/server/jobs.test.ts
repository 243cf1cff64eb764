/** Jobs over HTTP: what is configured, what runs, and the way to start, watch and end it. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import type { JobRunInfo, JobsReply, MaintenanceEvent, WireError } from '../../src/core/messages.js'
import { MEDIA, ROUTES, routePath } from '../../src/protocol/routes.js'
import { parseJobFile } from '../../src/server/jobs/job-file.js'
import { listen, serverUnderTest } from '../support/server-under-test.js'
import { DONE, SteppedEvents, progress, settle } from '../support/stepped-events.js'

async function open(t: TestContext) {
  const server = await serverUnderTest(t, { definitions: parseJobFile(
    'jobs: [{ name: nightly, kind: check, cron: "0 3 * * *", timeZone: UTC }, { name: other, kind: check, repository: beta, cron: "0 3 * * *" }]', 'jobs.yaml', Date.now()) })
  const { bearer } = await server.token({ repository: 'alpha', scopes: ['admin'] })
  const events = new SteppedEvents()
  server.host.get('alpha').events = events.source
  const request = (method: 'GET' | 'POST', pattern: string, job = 'nightly', payload?: object) =>
    server.app.inject({ method, url: routePath(pattern, { repository: 'alpha', job, target: 'main' }), headers: { authorization: bearer }, ...(payload === undefined ? {} : { payload }) })
  const list = async () => (await request('GET', ROUTES.jobs)).json<JobsReply>()
  return { server, events, request, list, bearer }
}
const linesOf = (payload: string): MaintenanceEvent[] => payload.trim().split('\n').map((line) => JSON.parse(line) as MaintenanceEvent)

test('the configured jobs of a repository are listed with their next run, and runs with their progress', async (t) => {
  const { request, list, events } = await open(t)
  const before = await list()
  assert.deepEqual(before.jobs.map(({ name, cron, timeZone, lastRun }) => [name, cron, timeZone, lastRun]), [['nightly', '0 3 * * *', 'UTC', undefined]])
  assert.ok(before.jobs[0]!.nextRunAtMs! > Date.now())
  const started = await request('POST', ROUTES.jobRun)
  assert.equal(started.statusCode, 201)
  const run = started.json<JobRunInfo>()
  assert.deepEqual([run.kind, run.job, run.trigger, run.state], ['check', 'nightly', 'hand', 'running'])
  events.give(progress(4))
  await settle()
  const during = await list()
  assert.deepEqual([during.runs.length, during.runs[0]!.progress, during.jobs[0]!.lastRun?.id], [1, { phase: 'packs', done: 4, total: 10 }, run.id])
  events.give(DONE)
  await settle()
  for (const id of [run.id, 'nightly']) assert.equal((await request('GET', ROUTES.job, id)).json<JobRunInfo>().state, 'done')
})

test('a run by hand is refused while the schedule’s runs, and the other way round, with the id of the one in the way', async (t) => {
  const { request, events, list } = await open(t)
  const run = (await request('POST', ROUTES.jobRun)).json<JobRunInfo>()
  const busy = await request('POST', ROUTES.check, '', { readDataPercent: 0 })
  assert.deepEqual([busy.statusCode, busy.json<WireError>().code, busy.json<WireError>().details.job, busy.headers['retry-after']], [409, 'REPOSITORY_BUSY', run.id, '10'])
  const rebuild = await request('POST', ROUTES.rebuild)
  assert.equal(rebuild.json<WireError>().code, 'REPOSITORY_BUSY')
  events.give(DONE)
  await settle()
  const check = request('POST', ROUTES.check, '', { readDataPercent: 0 })
  await settle()
  assert.equal((await request('POST', ROUTES.jobRun)).json<WireError>().details.job, (await list()).runs[0]!.id)
  events.give(DONE)
  assert.deepEqual(linesOf((await check).payload), [DONE])
})

test('a run is watched by anyone who asks, and cancelled by anyone who may', async (t) => {
  const { request, events } = await open(t)
  const run = (await request('POST', ROUTES.jobRun)).json<JobRunInfo>()
  events.give(progress(1))
  await settle()
  const watched = request('GET', ROUTES.jobEvents, run.id)
  await settle()
  const cancelled = await request('POST', ROUTES.jobCancel)
  assert.deepEqual([cancelled.statusCode, cancelled.json<JobRunInfo>().state], [200, 'cancelled'])
  const { payload, headers } = await watched
  assert.equal(headers['content-type'], MEDIA.progress)
  const lines = linesOf(payload)
  assert.deepEqual(lines[0], progress(1))
  assert.ok(lines[1]?.type === 'failed' && lines[1].error.code === 'JOB_CANCELLED')
  const late = await request('GET', ROUTES.jobEvents, run.id)
  assert.deepEqual([late.statusCode, late.json<WireError>().code], [409, 'JOB_CANCELLED'])
})

test('jobs, runs and names that do not exist are unknown; those of another repository too', async (t) => {
  const { server, request } = await open(t)
  for (const [method, pattern] of [['GET', ROUTES.job], ['POST', ROUTES.jobRun], ['POST', ROUTES.jobCancel], ['GET', ROUTES.jobEvents]] as const) {
    for (const job of ['other', 'weekly', '0123456789abcdef', '__proto__']) {
      const reply = await request(method, pattern, job)
      assert.deepEqual([reply.statusCode, reply.json<WireError>().code], [404, 'JOB_UNKNOWN'], `${pattern} ${job}`)
    }
  }
  const beta = await server.token({ repository: 'beta', scopes: ['admin'] })
  const foreign = await server.app.inject({ url: routePath(ROUTES.jobs, { repository: 'alpha' }), headers: { authorization: beta.bearer } })
  assert.equal(foreign.statusCode, 403)
})

test('a check ends when its client goes away; a backfill goes on', async (t) => {
  const { server, request, events, bearer } = await open(t)
  const port = await listen(server.app)
  const gone = new AbortController()
  const post = (pattern: string, body?: object) => fetch(`http://127.0.0.1:${port}${routePath(pattern, { repository: 'alpha', target: 'main' })}`, { method: 'POST', signal: gone.signal,
    headers: { authorization: bearer, ...(body === undefined ? {} : { 'content-type': 'application/json' }) }, ...(body === undefined ? {} : { body: JSON.stringify(body) }) })
  const check = post(ROUTES.check, { readDataPercent: 0 }), backfill = post(ROUTES.targetBackfill)
  while (server.jobs.running.length < 2) await settle()
  events.give(progress(1), progress(1))
  await Promise.all([check, backfill])
  const runs = server.jobs.running
  gone.abort()
  await runs.find(({ facts }) => facts.kind === 'check')!.ended
  assert.deepEqual(server.jobs.running.map(({ facts }) => facts.kind), ['backfill'])
  events.give(DONE)
  await runs.find(({ facts }) => facts.kind === 'backfill')!.ended
  assert.equal((await request('GET', ROUTES.jobs)).json<JobsReply>().runs.length, 2)
})
