/** What a request becomes for the repository, and what its answer becomes for the client. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { RoostError } from '../../src/core/errors.js'
import { LIMITS } from '../../src/core/limits.js'
import type { MaintenanceEvent, TokenGrant, WireError } from '../../src/core/messages.js'
import { MEDIA, ROUTES, routePath } from '../../src/protocol/routes.js'
import { serverUnderTest } from '../support/server-under-test.js'

const SCOPES = ['push', 'read', 'delete', 'admin'] as const
async function openServer(t: TestContext, scopes: TokenGrant['scopes'] = SCOPES) {
  const server = await serverUnderTest(t)
  const { bearer, tokenId } = await server.token({ repository: '*', scopes })
  const repository = server.host.get('alpha')
  const session = repository.addSession({ tokenId })
  const request = (method: 'GET' | 'POST' | 'DELETE' | 'PUT', pattern: string, body?: Buffer | object, type = 'application/json') => server.app.inject({
    method, url: routePath(pattern, { repository: 'alpha', session, slot: 'slot-1' }),
    headers: { authorization: bearer, ...(body === undefined ? {} : { 'content-type': type }) },
    ...(body === undefined ? {} : { payload: Buffer.isBuffer(body) ? body : JSON.stringify(body) }),
  })
  return { server, repository, session, request, bearer }
}

test('octets reach the repository unchanged and its octets come back', async (t) => {
  const { repository, session, request } = await openServer(t)
  const idProofs = Buffer.alloc(96, 5), ids = Buffer.alloc(64, 6), frames = Buffer.alloc(1_000, 7)
  let seen: Buffer | undefined
  repository.onPutChunks = async ({ buffer, bytes }) => { seen = Buffer.from(Buffer.from(buffer, 0, bytes)) }
  const missing = await request('POST', ROUTES.sessionMissing, idProofs, MEDIA.idProofs)
  assert.deepEqual([missing.headers['content-type'], missing.rawPayload], [MEDIA.bitmap, Buffer.from([0xff])])
  const put = await request('POST', ROUTES.sessionChunks, frames, MEDIA.frames)
  assert.deepEqual([put.headers['content-type'], put.rawPayload, seen], [MEDIA.verdicts, Buffer.from([0]), frames])
  const read = await request('POST', ROUTES.sessionRead, ids, MEDIA.ids)
  assert.deepEqual([read.headers['content-type'], read.payload], [MEDIA.readFrames, 'frame'])
  assert.deepEqual(repository.calls.map(({ method, args }) => [method, args[0], args[1]]),
    [['findMissing', session, idProofs], ['putChunks', session, 1_000], ['readChunks', session, ids]])
})

test('a chunk body is memory of its own, and room is given back after success and failure', async (t) => {
  const { server, repository, request } = await openServer(t)
  repository.onPutChunks = async ({ buffer, bytes }) => {
    assert.equal(buffer.byteLength, bytes)
    assert.equal(server.admission.bytesFree, server.admission.bytesMax - bytes)
  }
  assert.equal((await request('POST', ROUTES.sessionChunks, Buffer.alloc(500), MEDIA.frames)).statusCode, 200)
  repository.onPutChunks = async () => { throw new RoostError('SPOOL_FULL', 'full') }
  const refused = await request('POST', ROUTES.sessionChunks, Buffer.alloc(500), MEDIA.frames)
  assert.equal(refused.statusCode, 503)
  assert.equal(refused.headers['retry-after'], '10')
  assert.equal(server.admission.bytesFree, server.admission.bytesMax)
})

test('bodies of octets are whole units within their limit', async (t) => {
  const { request } = await openServer(t)
  const codeOf = async (pattern: string, bytes: number, type: string) => (await request('POST', pattern, Buffer.alloc(bytes), type)).json<WireError>().code
  assert.equal(await codeOf(ROUTES.sessionMissing, 47, MEDIA.idProofs), 'REQUEST_MALFORMED')
  assert.equal(await codeOf(ROUTES.sessionRead, (LIMITS.readIdsMax + 1) * 32, MEDIA.ids), 'BODY_TOO_LARGE')
  assert.equal(await codeOf(ROUTES.sessionChunks, LIMITS.bodyBytesMax + 1, MEDIA.frames), 'BODY_TOO_LARGE')
})

test('JSON that is malformed, unknown, too long or of the wrong type is refused before the repository hears of it', async (t) => {
  const { server, repository, request, bearer } = await openServer(t)
  const push = { kind: 'push', source: 'web', mode: 'files', parent: null }
  const wrong: object[] = [
    {}, [], { ...push, extra: 1 }, { ...push, mode: 'tape' }, { ...push, parent: 'AB'.repeat(32) }, { ...push, source: '' }, { ...push, source: 7 },
    { ...push, source: 'x'.repeat(257) }, { ...push, source: 'é'.repeat(129) }, { ...push, source: 'a\u0000b' }, { kind: 'read' },
    { kind: 'read', snapshot: 'zz' }, { kind: 'steal' },
  ]
  for (const body of wrong) {
    const reply = await request('POST', ROUTES.sessions, body)
    assert.equal(reply.json<WireError>().code, 'REQUEST_MALFORMED', JSON.stringify(body))
  }
  for (const payload of ['{', '', 'null', '{"kind":"push","__proto__":{"x":1}}', '{"a":'.repeat(100_000)]) {
    const reply = await server.app.inject({ method: 'POST', url: '/v1/repositories/alpha/sessions', payload,
      headers: { authorization: bearer, 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(payload)) } })
    assert.equal(reply.json<WireError>().code, 'REQUEST_MALFORMED', payload.slice(0, 50))
  }
  const long = await request('POST', ROUTES.sessions, { ...push, source: 'x'.repeat(LIMITS.jsonBytesMax) })
  assert.equal(long.json<WireError>().code, 'BODY_TOO_LARGE')
  const query = await server.app.inject({ url: '/v1/repositories/alpha/snapshots?limit=-1', headers: { authorization: bearer } })
  assert.equal(query.json<WireError>().code, 'REQUEST_MALFORMED')
  assert.deepEqual(repository.calls, [])
})

test('a description that is nested beyond reason is refused as malformed', async (t) => {
  const { server, repository, request, session, bearer } = await openServer(t)
  const statistics = { files: 1, directories: 1, others: 0, sourceBytes: 1, bytesRead: 1, chunksTotal: 1, chunksSent: 1, bytesSent: 1, bytesOnWire: 1, errors: 0, durationMs: 1, cpuMs: 1 }
  const commit = { root: 'ab'.repeat(32), host: 'h', user: 'u', paths: [], tags: [], startedAtMs: 1, statistics }
  const payload = JSON.stringify({ ...commit, description: { a: 'HERE' } }).replace('"HERE"', '['.repeat(300_000) + ']'.repeat(300_000))
  const deep = await server.app.inject({ method: 'POST', url: routePath(ROUTES.sessionCommit, { repository: 'alpha', session }), payload,
    headers: { authorization: bearer, 'content-type': 'application/json' } })
  assert.equal(deep.json<WireError>().code, 'REQUEST_MALFORMED')
  assert.deepEqual(repository.calls, [])
  assert.equal((await request('POST', ROUTES.sessionCommit, { ...commit, description: { a: [[{ b: null }]] } })).statusCode, 200)
})

test('a refusal names the place, not the value', async (t) => {
  const { server, request } = await openServer(t)
  const reply = await request('POST', ROUTES.keySlots, { kind: 'passphrase', label: 'l', passphrase: 'hunter2 ', extra: 'hunter2' })
  assert.equal(reply.statusCode, 400)
  assert.ok(!reply.payload.includes('hunter2'))
  assert.ok(!server.logLines.join('').includes('hunter2'))
})

test('snapshots are asked for as the query says, one page at most', async (t) => {
  const { server, repository, bearer } = await openServer(t)
  await server.app.inject({ url: '/v1/repositories/alpha/snapshots?limit=9999&after=x&source=web&tag=t', headers: { authorization: bearer } })
  assert.deepEqual(repository.callsOf('listSnapshots'), [[{ limit: 1_000, after: 'x', source: 'web', tag: 't' }]])
})

test('a name in the path and another in the body do not attach', async (t) => {
  const { server, request } = await openServer(t)
  assert.equal((await request('PUT', ROUTES.repository, { name: 'other', target: 'file:/x' })).json<WireError>().code, 'REQUEST_MALFORMED')
  assert.deepEqual(server.host.attached, [])
})

test('maintenance answers lines of events; a failure among them is the last line', async (t) => {
  const { repository, request } = await openServer(t)
  const progress: MaintenanceEvent = { type: 'progress', phase: 'packs', done: 1, total: 2 }
  repository.events = async function* () { yield progress; throw new RoostError('STORE_UNAVAILABLE', 'the host is down') }
  const failed = await request('POST', ROUTES.check, { readDataPercent: 100 })
  const lines = failed.payload.trim().split('\n').map((line) => JSON.parse(line) as MaintenanceEvent)
  assert.equal(failed.headers['content-type'], MEDIA.progress)
  assert.deepEqual(lines[0], progress)
  assert.ok(lines[1]?.type === 'failed' && lines[1].error.code === 'STORE_UNAVAILABLE')
  assert.equal(lines[1].error.message, 'the host is down') // only administrators maintain
  assert.deepEqual(repository.callsOf('check'), [[{ readDataPercent: 100 }]])
  repository.failNext('rebuild', new RoostError('REPOSITORY_BUSY', 'A check is running.'))
  const busy = await request('POST', ROUTES.rebuild)
  assert.deepEqual([busy.statusCode, busy.headers['retry-after'], busy.json<WireError>().code], [409, '10', 'REPOSITORY_BUSY'])
})

test('a read that is refused at once answers with its status', async (t) => {
  const { repository, request } = await openServer(t)
  repository.failNext('readChunks', new RoostError('SESSION_LOST', 'gone'))
  const reply = await request('POST', ROUTES.sessionRead, Buffer.alloc(32), MEDIA.ids)
  assert.deepEqual([reply.statusCode, reply.json<WireError>().retry], [410, 'restart-session'])
})

test('an unknown error is 500 without detail; its cause is in the log under the same request id', async (t) => {
  const { server, repository, request } = await openServer(t)
  repository.failNext('stats', new Error('password of the database'))
  const reply = await request('GET', ROUTES.stats)
  const error = reply.json<WireError>()
  assert.deepEqual({ ...error, requestId: '' }, { code: 'INTERNAL', message: 'Internal error.', retry: 'never', requestId: '', details: {} })
  assert.equal(reply.headers['x-request-id'], error.requestId)
  assert.ok(server.logLines.some((line) => line.includes('password of the database') && line.includes(error.requestId)))
})

test('an operator’s error keeps its code and loses its message, except for an administrator', async (t) => {
  for (const [scopes, isTold] of [[['push', 'read', 'delete'], false], [SCOPES, true]] as const) {
    const { repository, request } = await openServer(t, scopes)
    repository.failNext('listSnapshots', new RoostError('PACK_CORRUPT', 'pack at /srv/x', { path: '/srv/x' }))
    const reply = await request('GET', ROUTES.snapshots)
    assert.equal(reply.json<WireError>().code, 'PACK_CORRUPT')
    assert.equal(reply.payload.includes('/srv/x'), isTold)
  }
})

test('what targets say while a policy is applied is for administrators', async (t) => {
  for (const [scopes, isTold] of [[['delete'], false], [SCOPES, true]] as const) {
    const { repository, request } = await openServer(t, scopes)
    repository.events = async function* () {
      yield { type: 'problem', code: 'STORE_REFUSED', message: 'no space on /srv/x', snapshot: 'ab' }
      yield { type: 'problem', code: 'POLICY_KEEPS_NOTHING', message: 'of the source web' }
      throw new RoostError('STORE_UNAVAILABLE', '/srv/x is away')
    }
    const lines = (await request('POST', ROUTES.forget, { dryRun: true })).payload
    assert.equal(lines.includes('/srv/x'), isTold)
    assert.ok(lines.includes('of the source web'))
    assert.deepEqual(repository.callsOf('forget'), [[{ dryRun: true }]])
  }
})

test('no token reaches the log, whatever the level', async (t) => {
  const { server, request, bearer } = await openServer(t)
  await request('GET', ROUTES.stats)
  await request('POST', ROUTES.tokens, { label: 'l', grants: [{ repository: 'alpha', scopes: ['push'] }] })
  assert.ok(server.logLines.length > 0)
  assert.ok(!/roost_[0-9a-f]{16}_/.test(server.logLines.join('')))
  server.app.log.info({ req: { headers: { authorization: bearer } }, headers: { authorization: bearer }, passphrase: 'open sesame' }, 'careless')
  assert.ok(!/roost_|sesame/.test(server.logLines.join('')))
})

test('unknown routes, methods and broken paths answer with typed errors', async (t) => {
  const { server, bearer } = await openServer(t)
  const codeOf = async (url: string, method: 'GET' | 'POST' = 'GET') =>
    (await server.app.inject({ method, url, headers: { authorization: bearer } })).json<WireError>().code
  assert.equal(await codeOf('/nowhere'), 'ROUTE_UNKNOWN')
  assert.equal(await codeOf('/v1/repositories/alpha/stats', 'POST'), 'ROUTE_UNKNOWN')
  assert.equal(await codeOf('/v1/repositories/no-such/stats'), 'REPOSITORY_UNKNOWN')
  assert.equal(await codeOf('/v1/repositories/%ff/stats'), 'REQUEST_MALFORMED')
  assert.equal(await codeOf(`/v1/repositories/${'x'.repeat(200)}/stats`), 'ROUTE_UNKNOWN')
})

test('a draining server refuses new work, finishes what is open, and says so to probes', async (t) => {
  const { server, request } = await openServer(t)
  assert.equal((await server.app.inject({ url: ROUTES.ready })).statusCode, 200)
  server.drain.active = true
  assert.equal((await server.app.inject({ url: ROUTES.health })).statusCode, 200)
  assert.equal((await server.app.inject({ url: ROUTES.ready })).statusCode, 503)
  for (const [pattern, body, type] of [
    [ROUTES.sessions, { kind: 'push', source: 'web', mode: 'files', parent: null }, 'application/json'],
    [ROUTES.sessionChunks, Buffer.alloc(10), MEDIA.frames], [ROUTES.sessionMissing, Buffer.alloc(48), MEDIA.idProofs],
  ] as const) {
    const reply = await request('POST', pattern, body, type)
    assert.deepEqual([reply.json<WireError>().code, reply.headers['retry-after']], ['SERVER_DRAINING', '5'])
  }
  assert.equal((await request('DELETE', ROUTES.session)).statusCode, 204)
})
