/** Bug class: a push that gives up when the server merely restarts, or repeats what must not be done twice. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { ClientError, hasClientCode } from '../../src/protocol/client-errors.js'
import { rateLimiter } from '../../src/core/rate-limit.js'
import { Transport, type TransportOptions, type WaitingNotice } from '../../src/protocol/transport.js'
import { hasCode } from '../../src/core/errors.js'
import { FakeRepositoryServer, refusing, refusingEarly, resetting } from '../support/fake-repository-server.js'
import { evenRandom, instantClock } from '../support/instant-clock.js'

const GET = { method: 'GET', path: '/v1/repositories/r' } as const

function open(t: TestContext, fake: FakeRepositoryServer, options: Partial<TransportOptions> = {}) {
  const clock = instantClock()
  const notices: WaitingNotice[] = []
  const transport = new Transport({
    baseUrl: fake.baseUrl, clock, random: evenRandom, onWaiting: (notice) => { notices.push(notice) }, ...options,
  })
  t.after(() => { transport.close() })
  return { transport, clock, notices }
}

test('a JSON request carries the token and reuses its connection', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { transport } = open(t, fake, { token: 'secret' })
  for (let i = 0; i < 3; i++) assert.equal((await transport.json<{ name: string }>(GET)).name, 'memory')
  assert.equal(fake.requests[0]!.headers.authorization, 'Bearer secret')
  assert.equal(fake.connections, 1)
})

test('a typed refusal is thrown at once with its code, details and request id', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { transport, notices } = open(t, fake)
  fake.interfere(refusing('AUTH_FORBIDDEN'))
  await assert.rejects(transport.json(GET), (error) => {
    assert.ok(hasCode(error, 'AUTH_FORBIDDEN'))
    assert.deepEqual(error.details, { limit: 7, requestId: 'request-1' })
    return true
  })
  fake.interfere(refusing('SESSION_LOST'))
  await assert.rejects(transport.json(GET), (error) => hasCode(error, 'SESSION_LOST'))
  assert.equal(notices.length, 0)
})

test('advice `later` waits as long as Retry-After says, advice `same` backs off', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { transport, clock, notices } = open(t, fake)
  fake.interfere(refusing('SERVER_BUSY', { 'retry-after': '7' }), refusing('REQUEST_TIMEOUT'), refusing('REQUEST_TIMEOUT'))
  await transport.json(GET)
  assert.equal(notices.length, 3)
  assert.ok(clock.sleeps[0]! >= 7_000)
  assert.ok(clock.sleeps[2]! > clock.sleeps[1]!)
})

test('a broken connection and a proxy\'s 502 are repeated', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { transport, notices } = open(t, fake)
  fake.interfere(resetting, (request, response) => {
    request.resume()
    response.writeHead(502, { 'content-type': 'text/html' }).end('<h1>Bad gateway</h1>')
    return true
  })
  await transport.json(GET)
  assert.equal(notices.length, 2)
  assert.ok(hasClientCode(notices[0]!.error, 'SERVER_UNREACHABLE'))
  assert.ok(hasCode(notices[1]!.error, 'SERVER_BUSY'))
})

test('a server that comes back within the time is waited for, one that stays away is not', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { port } = fake
  let back: Promise<void> | undefined
  const { transport, notices } = open(t, fake, { onWaiting: (notice) => {
    notices.push(notice)
    if (notices.length === 3) back = fake.listen(port)
  }, clock: { ...instantClock(), sleep: async () => { await back } } })
  await fake.stop()
  await transport.json(GET)
  assert.ok(notices.length >= 3)

  await fake.stop()
  const { transport: other, clock } = open(t, await FakeRepositoryServer.start(t), { baseUrl: `http://127.0.0.1:${port}`, retryForMs: 60_000 })
  await assert.rejects(other.json(GET), (error) => hasClientCode(error, 'SERVER_UNREACHABLE'))
  const waitedMs = clock.sleeps.reduce((sum, ms) => sum + ms, 0)
  assert.ok(waitedMs > 30_000 && waitedMs <= 60_000, `${waitedMs}`)
  await fake.listen(port)
})

test('what must not be done twice is not repeated after a broken connection, but is after a refusal to begin', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { transport } = open(t, fake)
  fake.interfere(resetting)
  await assert.rejects(transport.json({ ...GET, repeatable: false }), (error) => hasClientCode(error, 'SERVER_UNREACHABLE'))
  assert.equal(fake.requests.length, 1)
  fake.interfere(refusing('SERVER_DRAINING'))
  await transport.json({ ...GET, repeatable: false })
})

test('a large body arrives whole from many pieces', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { transport } = open(t, fake)
  const received: number[] = []
  fake.interfere((request, response) => {
    let sum = 0, bytes = 0
    request.on('data', (data: Buffer) => { for (let i = 0; i < data.byteLength; i += 997) sum += data[i]!; bytes += data.byteLength })
    request.once('end', () => { received.push(bytes, Number(request.headers['content-length'])); response.end(`${sum >= 0}`) })
    return true
  })
  const parts = Array.from({ length: 900 }, (_, i) => Buffer.alloc(10_000 + i, i))
  const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0)
  await transport.bytes({ method: 'POST', path: '/body', parts, contentType: 'application/octet-stream' }, 100)
  assert.deepEqual(received, [bytes, bytes])
})

test('a refusal that comes while the body is still being written is understood', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { transport } = open(t, fake)
  fake.interfere(refusingEarly('BODY_TOO_LARGE'), refusingEarly('BODY_TOO_LARGE'))
  const request = { method: 'POST', path: '/body', parts: [Buffer.alloc(256 * 1024)] } as const
  await assert.rejects(transport.bytes(request, 10), (error) => hasCode(error, 'BODY_TOO_LARGE') || hasClientCode(error, 'SERVER_UNREACHABLE'))
})

test('an abort ends a request in flight and a wait between attempts', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const reason = new Error('interrupted by the user')
  const inFlight = new AbortController()
  const { transport } = open(t, fake)
  fake.interfere(() => { inFlight.abort(reason); return true })
  await assert.rejects(transport.json({ ...GET, signal: inFlight.signal }), reason)

  const waiting = new AbortController()
  const { transport: other } = open(t, fake, { onWaiting: () => { waiting.abort(reason) } })
  fake.interfere(refusing('SERVER_BUSY'))
  await assert.rejects(other.json({ ...GET, signal: waiting.signal }), reason)
})

test('an endless reply is refused, not held', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const { transport } = open(t, fake)
  fake.interfere((_request, response) => { response.end(Buffer.alloc(1_000)); return true })
  await assert.rejects(transport.bytes(GET, 999), (error) => hasClientCode(error, 'REPLY_MALFORMED'))
})

test('a token does not travel over plain HTTP to another machine, unless allowed', () => {
  const options = { baseUrl: 'http://backup.example:8470', token: 'secret', clock: instantClock(), random: evenRandom }
  assert.throws(() => new Transport(options), (error) => hasClientCode(error, 'PLAIN_HTTP_REFUSED'))
  new Transport({ ...options, allowPlainHttp: true }).close()
  for (const host of ['localhost', '127.0.0.1', '[::1]']) new Transport({ ...options, baseUrl: `http://${host}:1` }).close()
  assert.throws(() => new Transport({ ...options, baseUrl: 'ftp://x' }), ClientError)
})

test('an upload limit paces the body', async (t) => {
  const fake = await FakeRepositoryServer.start(t)
  const clock = instantClock()
  const { transport } = open(t, fake, { uploadLimit: rateLimiter(100_000, clock), clock })
  const startMs = clock.monotonicMs()
  fake.interfere((request, response) => { request.resume(); request.once('end', () => response.end()); return true })
  await transport.bytes({ method: 'POST', path: '/body', parts: [Buffer.alloc(300_000), Buffer.alloc(200_000)] }, 10)
  const tookMs = clock.monotonicMs() - startMs
  assert.ok(tookMs >= 4_500 && tookMs <= 5_000, `${tookMs}`)
  assert.ok(clock.sleeps.every((ms) => ms <= 1_000))
})
