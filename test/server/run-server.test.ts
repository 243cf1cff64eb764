import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { request as httpsRequest } from 'node:https'
import { connect } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { promisify } from 'node:util'
import type { JobRunInfo, JobsReply, RepositoryInfo, WireError } from '../../src/core/messages.js'
import { MEDIA, ROUTES, routePath } from '../../src/protocol/routes.js'
import { SERVER_CONFIG_DEFAULTS, ServerConfigError, type ServerConfig } from '../../src/server/config.js'
import { DataLockedError } from '../../src/server/data-lock.js'
import { runServer, type RunServerDeps, type RunningServer } from '../../src/server/run-server.js'
import { FakeHost } from '../support/fake-repository.js'
import { ManualClock } from '../support/manual-clock.js'
import { DONE, SteppedEvents, settle } from '../support/stepped-events.js'
import { temporaryDirectory } from '../support/server-under-test.js'

async function start(t: TestContext, config: Partial<ServerConfig> = {}, deps: Partial<RunServerDeps> = {}) {
  const host = new FakeHost('alpha'), shutdown = new AbortController()
  const full: ServerConfig = { ...SERVER_CONFIG_DEFAULTS, dataDirectory: await temporaryDirectory(t), port: 0, ...config }
  const silent = { write: () => undefined }
  const server = await runServer(full, { openHost: async () => host, logDestination: silent, shutdown: shutdown.signal, ...deps })
  t.after(async () => { server.hurry(); await server.drain() })
  return { server, host, shutdown, config: full }
}
const get = (server: RunningServer, path: string, token?: string) =>
  fetch(server.url + path, { headers: token === undefined ? {} : { authorization: `Bearer ${token}` } })

test('the first start makes an administrator’s token, keeps it private, and later starts make none', async (t) => {
  const first = await start(t)
  const made = first.server.adminToken!
  assert.equal((await readFile(made.path, 'utf8')).trim(), made.token)
  assert.equal((await stat(made.path)).mode & 0o777, 0o600)
  const reply = await get(first.server, ROUTES.repositories, made.token)
  assert.deepEqual((await reply.json() as RepositoryInfo[]).map(({ name }) => name), ['alpha'])
  await first.server.drain()
  const second = await start(t, { dataDirectory: first.config.dataDirectory })
  assert.equal(second.server.adminToken, undefined)
  assert.equal((await get(second.server, ROUTES.tokens, made.token)).status, 200)
})

test('two servers never share a data directory, and a failed start lets go of it', async (t) => {
  const { server, config } = await start(t)
  await assert.rejects(runServer(config, { openHost: async () => new FakeHost() }), DataLockedError)
  await server.drain()
  const broken = runServer(config, { openHost: async () => { throw new Error('no disk') }, logDestination: { write: () => undefined } })
  await assert.rejects(broken, /no disk/)
  await start(t, { dataDirectory: config.dataDirectory })
})

test('plain HTTP is served beyond loopback only when allowed', async (t) => {
  await assert.rejects(start(t, { host: '0.0.0.0' }), ServerConfigError)
  await assert.rejects(start(t, { admissionBytes: 1 }), ServerConfigError)
  const { server } = await start(t, { host: '0.0.0.0', allowPlainHttp: true })
  assert.match(server.url, /^http:\/\/0\.0\.0\.0:\d+$/)
})

test('with a certificate it speaks TLS', async (t) => {
  const directory = await temporaryDirectory(t)
  const certFile = join(directory, 'cert.pem'), keyFile = join(directory, 'key.pem')
  await promisify(execFile)('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
    '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', keyFile, '-out', certFile])
  const { server } = await start(t, { tls: { certFile, keyFile } })
  assert.match(server.url, /^https:/)
  const ca = await readFile(certFile)
  const status = await new Promise((resolve, reject) => {
    httpsRequest(server.url + ROUTES.health, { ca }, (response) => { response.resume(); resolve(response.statusCode) }).on('error', reject).end()
  })
  assert.equal(status, 200)
})

test('a drain lets the body in flight finish, refuses new work, then closes repositories and lock', async (t) => {
  const { server, host, shutdown, config } = await start(t)
  const token = server.adminToken!.token
  const tokenId = token.split('_')[1]!
  const repository = host.get('alpha'), session = repository.addSession({ tokenId })
  let finish = (): void => undefined, begun = (): void => undefined
  const entered = new Promise<void>((resolve) => { begun = resolve })
  repository.onPutChunks = () => new Promise((resolve) => { finish = resolve; begun() })
  const put = () => fetch(server.url + routePath(ROUTES.sessionChunks, { repository: 'alpha', session }),
    { method: 'POST', headers: { authorization: `Bearer ${token}`, 'content-type': MEDIA.frames }, body: Buffer.alloc(100) })
  const inFlight = put()
  await entered
  shutdown.abort()
  const refused = await put()
  assert.deepEqual([refused.status, (await refused.json() as WireError).code], [503, 'SERVER_DRAINING'])
  assert.equal((await get(server, ROUTES.ready)).status, 503)
  assert.equal(host.isClosed, false)
  finish()
  assert.equal((await inFlight).status, 200)
  await server.closed
  assert.equal(host.isClosed, true)
  await assert.rejects(stat(join(config.dataDirectory, 'server.lock')))
})

test('a drain cuts at its deadline what will not end, and a hurried one at once', async (t) => {
  for (const hurried of [false, true]) {
    const clock = new ManualClock()
    const { server, host } = await start(t, { drainMs: 5_000 }, { clock })
    const token = server.adminToken!.token
    const repository = host.get('alpha')
    let begun = (): void => undefined
    const entered = new Promise<void>((resolve) => { begun = resolve })
    const session = repository.addSession({ tokenId: token.split('_')[1]! })
    let told: unknown
    repository.onPutChunks = (_body, signal) => new Promise((_resolve, reject) => {
      begun()
      signal.addEventListener('abort', () => { told = signal.reason; reject(signal.reason as Error) })
    })
    const inFlight = fetch(server.url + routePath(ROUTES.sessionChunks, { repository: 'alpha', session }),
      { method: 'POST', headers: { authorization: `Bearer ${token}`, 'content-type': MEDIA.frames }, body: Buffer.alloc(100) })
      .then((reply) => reply.status, () => 'cut')
    await entered
    const ended = server.drain()
    if (hurried) server.hurry()
    else await clock.advance(5_000)
    await ended
    assert.ok(told instanceof Error)
    assert.ok(hurried || await inFlight === 503, 'the client is told')
    await inFlight
    assert.equal(host.isClosed, true)
  }
})

test('a connection that says nothing does not hold up a drain', async (t) => {
  const { server } = await start(t)
  const silent = connect(Number(new URL(server.url).port), '127.0.0.1')
  t.after(() => silent.destroy())
  silent.on('error', () => undefined)
  await new Promise((resolve) => { silent.once('connect', resolve) })
  await server.drain()
})

test('configured jobs run by the server’s clock; its end interrupts them, and the next start begins them again', async (t) => {
  const clock = new ManualClock(Date.parse('2026-11-25T02:59:00Z')), events = new SteppedEvents(), lines: string[] = []
  const dataDirectory = await temporaryDirectory(t), jobsFile = join(dataDirectory, 'jobs.yaml')
  await writeFile(jobsFile, 'jobs: [{ name: nightly, kind: check, cron: "0 3 * * *", timeZone: UTC, jitterSeconds: 0 }, { name: lost, kind: check, repository: mian, cron: "0 3 * * *" }]')
  const logDestination = { write: (line: string) => { lines.push(line) } }
  const first = await start(t, { dataDirectory, jobsFile }, { clock, logDestination })
  first.host.get('alpha').events = events.source
  assert.ok(lines.some((line) => line.includes('mian')), 'a job for a repository that is not there is told')
  for (let turn = 0; events.signals.length === 0; turn++) { // its log is being read
    assert.ok(turn < 1_000)
    await settle()
    await clock.advance(1_000)
  }
  await first.server.drain()
  assert.equal(events.signals[0]!.aborted, true)
  const runs = JSON.parse(await readFile(join(dataDirectory, 'jobs', 'alpha.json'), 'utf8')) as { runs: JobRunInfo[] }
  assert.deepEqual(runs.runs.map(({ job, state }) => [job, state]), [['nightly', 'interrupted']])
  const second = await start(t, { dataDirectory, jobsFile }, { clock })
  second.host.get('alpha').events = events.source
  for (let turn = 0; events.signals.length === 1; turn++) {
    assert.ok(turn < 1_000)
    await settle()
    await clock.advance(1_000)
  }
  const token = (await readFile(join(dataDirectory, 'admin-token'), 'utf8')).trim()
  const { jobs } = await (await get(second.server, routePath(ROUTES.jobs, { repository: 'alpha' }), token)).json() as JobsReply
  assert.deepEqual(jobs.map(({ name, lastRun }) => [name, lastRun?.state]), [['nightly', 'running']])
})

test('a run that does not heed its end does not hold up the server’s', async (t) => {
  const clock = new ManualClock()
  const { server, host } = await start(t, {}, { clock })
  let release = (): void => undefined
  host.get('alpha').events = async function* () { await new Promise<void>((resolve) => { release = resolve }); yield DONE }
  const close = host.close.bind(host)
  host.close = async () => { release(); await close() } // as a repository ends what works on it
  const backfill = fetch(server.url + routePath(ROUTES.targetBackfill, { repository: 'alpha', target: 'main' }), { method: 'POST', headers: { authorization: `Bearer ${server.adminToken!.token}` } })
    .catch(() => undefined) // cut
  while (host.get('alpha').callsOf('backfillTarget').length === 0) await settle()
  const ended = server.drain()
  server.hurry()
  await clock.someoneSleeps(10_000)
  await clock.advance(10_000)
  await ended
  await backfill
  assert.equal(host.isClosed, true)
})

test('a jobs file with a mistake keeps the server from starting, and lets go of the data directory', async (t) => {
  const dataDirectory = await temporaryDirectory(t), jobsFile = join(dataDirectory, 'jobs.yaml')
  await writeFile(jobsFile, 'jobs: [{ name: nightly, kind: chekc, cron: "0 3 * * *" }]')
  await assert.rejects(start(t, { dataDirectory, jobsFile }), (error) => error instanceof ServerConfigError && /nightly.*"kind" must be/.test(error.message))
  await start(t, { dataDirectory })
})
