/** What only real connections show: slow, cut, refused and abandoned bodies; replies that nobody takes. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { test, type TestContext } from 'node:test'
import { LIMITS, MiB } from '../../src/core/limits.js'
import type { WireError } from '../../src/core/messages.js'
import { MEDIA, ROUTES, routePath } from '../../src/protocol/routes.js'
import { PACE } from '../../src/server/raw-body.js'
import { REPLY_STALL_MS } from '../../src/server/reply-stream.js'
import { ManualClock } from '../support/manual-clock.js'
import { RawConnection, listen, serverUnderTest, type ServerOptions } from '../support/server-under-test.js'

async function openSocketServer(t: TestContext, options: ServerOptions = {}) {
  const server = await serverUnderTest(t, options)
  const { bearer, tokenId } = await server.token({ repository: '*', scopes: ['push', 'read', 'admin'] })
  const repository = server.host.get('alpha'), session = repository.addSession({ tokenId })
  const port = await listen(server.app)
  const head = (pattern: string, type: string, bytes: number | 'chunked', extra = ''): string =>
    `POST ${routePath(pattern, { repository: 'alpha', session })} HTTP/1.1\r\nhost: x\r\nauthorization: ${bearer}\r\ncontent-type: ${type}\r\n` +
    `${bytes === 'chunked' ? 'transfer-encoding: chunked' : `content-length: ${bytes}`}\r\n${extra}\r\n`
  const connect = (): RawConnection => {
    const connection = new RawConnection(port)
    t.after(() => { connection.destroy() })
    return connection
  }
  return { server, repository, session, port, bearer, connect, chunksHead: (bytes: number | 'chunked', extra?: string) => head(ROUTES.sessionChunks, MEDIA.frames, bytes, extra), head }
}
const parse = (body: string): WireError => JSON.parse(body) as WireError
/** A promise and its settling. */
function gate(): { readonly opened: Promise<void>; readonly open: () => void } {
  let open = (): void => undefined
  const opened = new Promise<void>((resolve) => { open = resolve })
  return { opened, open }
}

test('a full-size body over a socket arrives whole, time after time, in the same memory', async (t) => {
  const { server, repository, connect, chunksHead } = await openSocketServer(t)
  const body = Buffer.alloc(LIMITS.bodyBytesMax, 3)
  const buffers = new Set<SharedArrayBuffer>()
  repository.onPutChunks = async ({ buffer, bytes }) => {
    buffers.add(buffer)
    assert.ok(Buffer.from(buffer, 0, bytes).equals(body))
  }
  const connection = connect()
  for (const last of [false, false, true]) {
    await connection.write(chunksHead(body.byteLength, last ? 'connection: close\r\n' : ''))
    await connection.write(body)
  }
  const reply = await connection.reply()
  assert.equal(reply.status, 200)
  assert.equal(repository.callsOf('putChunks').length, 3)
  assert.equal(buffers.size, 1)
  assert.equal(server.admission.bytesFree, server.admission.bytesMax)
})

test('a body whose sender stops early is BODY_TRUNCATED, and its room is free again', async (t) => {
  const { server, repository, connect, chunksHead } = await openSocketServer(t)
  const connection = connect()
  await connection.write(chunksHead(1_000) + 'x'.repeat(999))
  connection.finish()
  const reply = await connection.reply()
  assert.deepEqual([reply.status, parse(reply.body).code], [400, 'BODY_TRUNCATED'])
  await server.lifetimes.idle()
  assert.equal(server.admission.bytesFree, server.admission.bytesMax)
  assert.deepEqual(repository.calls, [])
})

test('a body whose connection vanishes leaves nothing behind', async (t) => {
  const { server, repository, connect, chunksHead } = await openSocketServer(t)
  const connection = connect()
  const begun = once(server.app.server, 'request')
  await connection.write(chunksHead(1_000) + 'x')
  await begun
  connection.destroy()
  await server.lifetimes.idle()
  await new Promise((resolve) => { setImmediate(resolve) })
  assert.equal(server.admission.bytesFree, server.admission.bytesMax)
  assert.deepEqual(repository.calls, [])
})

test('a body that stands still gets REQUEST_TIMEOUT, is told so, and loses its connection', async (t) => {
  const clock = new ManualClock()
  const { server, connect, chunksHead } = await openSocketServer(t, { clock })
  const connection = connect()
  await connection.write(chunksHead(1_000) + 'x')
  await clock.someoneSleeps(PACE.windowMs)
  await clock.advance(PACE.windowMs * PACE.windows)
  await clock.someoneSleeps(2_000)
  await clock.advance(2_000)
  const reply = await connection.reply()
  assert.deepEqual([reply.status, parse(reply.body).code, parse(reply.body).retry], [408, 'REQUEST_TIMEOUT', 'same'])
  assert.match(reply.head, /connection: close/)
  assert.equal(connection.error, undefined)
  assert.equal(server.admission.bytesFree, server.admission.bytesMax)
})

test('an oversize, unmeasured or unauthorised body is refused by its header, and the client reads why while still sending', async (t) => {
  // Time stands still: the server waits for the rest of a refused body as long as it comes.
  const { repository, connect, chunksHead, head } = await openSocketServer(t, { clock: new ManualClock() })
  const bytes = LIMITS.bodyBytesMax
  const refused = [
    [chunksHead(bytes + 1), 413, 'BODY_TOO_LARGE'], [chunksHead('chunked'), 411, 'LENGTH_REQUIRED'],
    [chunksHead(bytes).replace(/authorization: .*\r\n/, ''), 401, 'AUTH_REQUIRED'],
    [head(ROUTES.sessionMissing, MEDIA.idProofs, bytes), 413, 'BODY_TOO_LARGE'],
    [head(ROUTES.sessions, 'application/json', LIMITS.jsonBytesMax + 1), 413, 'BODY_TOO_LARGE'],
    [head('/v1/nowhere', 'application/json', bytes), 404, 'ROUTE_UNKNOWN'],
  ] as const
  for (const [request, status, code] of refused) {
    const connection = connect()
    await connection.write(request)
    // Several MiB, far more than socket buffers hold: were the connection closed at once, this would end in a reset.
    const declared = Number(/content-length: (\d+)/.exec(request)?.[1] ?? bytes), isChunked = request.includes('chunked')
    const sending = connection.write(Buffer.concat([
      Buffer.from(isChunked ? `${declared.toString(16)}\r\n` : ''), Buffer.alloc(declared), Buffer.from(isChunked ? '\r\n0\r\n\r\n' : ''),
    ]))
    const reply = await connection.reply()
    assert.deepEqual([reply.status, parse(reply.body).code], [status, code])
    assert.equal(await sending, undefined, `${code} was read without a reset`)
    assert.equal(connection.error, undefined)
  }
  assert.deepEqual(repository.calls, [])
})

test('when the server is full a body gets 503 and Retry-After after a short wait, and the ordinary client sees it', async (t) => {
  const clock = new ManualClock(), hold = gate(), entered = gate()
  const { server, repository, port, session, bearer } = await openSocketServer(t, { clock, admission: { bytesMax: LIMITS.bodyBytesMax } })
  repository.onPutChunks = async () => { entered.open(); await hold.opened }
  const put = (bytes: number) => new Promise<{ status: number; retryAfter: string | undefined; body: string }>((resolve, reject) => {
    const request = httpRequest({ port, method: 'POST', path: routePath(ROUTES.sessionChunks, { repository: 'alpha', session }),
      headers: { authorization: bearer, 'content-type': MEDIA.frames, 'content-length': bytes } }, (response) => {
      let body = ''
      response.setEncoding('latin1').on('data', (part: string) => { body += part })
      response.on('end', () => { resolve({ status: response.statusCode ?? 0, retryAfter: response.headers['retry-after'], body }) })
    })
    request.on('error', reject)
    request.end(Buffer.alloc(bytes))
  })
  const first = put(LIMITS.bodyBytesMax)
  await entered.opened
  const second = put(8 * MiB)
  await clock.someoneSleeps(2_000)
  assert.equal(server.admission.waiting, 1)
  await clock.advance(2_000)
  const refusal = await second
  assert.deepEqual([refusal.status, refusal.retryAfter, parse(refusal.body).code], [503, '1', 'SERVER_BUSY'])
  hold.open()
  assert.equal((await first).status, 200)
  assert.equal((await put(10)).status, 200)
})

test('a session with all its bodies in flight gets 429 for one more', async (t) => {
  const { repository, connect, chunksHead } = await openSocketServer(t, { admission: { sessionBodiesMax: 1 } })
  const hold = gate(), entered = gate()
  repository.onPutChunks = async () => { entered.open(); await hold.opened }
  const first = connect(), second = connect()
  await first.write(chunksHead(10, 'connection: close\r\n') + 'x'.repeat(10))
  await entered.opened
  await second.write(chunksHead(10) + 'x'.repeat(10))
  const refusal = await second.reply().then((reply) => reply, () => undefined)
  hold.open()
  assert.equal((await first.reply()).status, 200)
  assert.ok(refusal !== undefined && refusal.status === 429 && /retry-after: 1/.test(refusal.head))
})

test('requests that are not HTTP get a typed answer', async (t) => {
  const { connect } = await openSocketServer(t)
  const connection = connect()
  await connection.write('BREW /pot HTCPCP/1.0\r\n\r\n')
  const reply = await connection.reply()
  assert.deepEqual([reply.status, parse(reply.body).code], [400, 'REQUEST_MALFORMED'])
})

test('a reader that goes away ends the use case, and its place is free', async (t) => {
  const { server, repository, connect, head } = await openSocketServer(t)
  const begun = gate(), ended = gate()
  let reason: unknown
  repository.readItems = async function* (signal) {
    try {
      for (;;) {
        begun.open()
        yield Buffer.alloc(1 * MiB)
        signal.throwIfAborted()
      }
    } finally {
      reason = signal.reason
      ended.open()
    }
  }
  const connection = connect()
  await connection.write(head(ROUTES.sessionRead, MEDIA.ids, 32) + 'x'.repeat(32))
  await begun.opened
  connection.destroy()
  await ended.opened
  assert.ok(reason instanceof Error && reason.name === 'AbortError')
  await server.lifetimes.idle()
})

test('a reply is pulled no faster than it is taken, and cut when it is not taken at all', async (t) => {
  const clock = new ManualClock()
  const { server, repository, port, session, bearer } = await openSocketServer(t, { clock })
  let pulled = 0
  const ended = gate()
  repository.readItems = async function* () {
    try {
      for (; pulled < 1_000; pulled++) yield Buffer.alloc(1 * MiB)
    } finally { ended.open() }
  }
  const request = httpRequest({ port, method: 'POST', path: routePath(ROUTES.sessionRead, { repository: 'alpha', session }),
    headers: { authorization: bearer, 'content-type': MEDIA.ids, 'content-length': 32 } })
  request.on('error', () => undefined) // the cut
  request.end(Buffer.alloc(32))
  const [response] = await once(request, 'response') as [import('node:http').IncomingMessage]
  response.on('error', () => undefined).pause()
  await clock.someoneSleeps(REPLY_STALL_MS)
  for (let before = -1; before !== pulled;) { // until the sockets are full and nothing moves
    before = pulled
    for (let turn = 0; turn < 200; turn++) await new Promise((resolve) => { setImmediate(resolve) })
  }
  assert.ok(pulled < 100, `${pulled} MiB were pulled for a client that takes none`)
  await clock.advance(2 * REPLY_STALL_MS)
  await ended.opened
  await server.lifetimes.idle()
  request.destroy()
})

test('a read that fails half-way is cut, never a short success', async (t) => {
  const { repository, connect, head } = await openSocketServer(t)
  repository.readItems = async function* () { yield Buffer.from('first'); throw new Error('disk') }
  const connection = connect()
  await connection.write(head(ROUTES.sessionRead, MEDIA.ids, 32) + 'x'.repeat(32))
  const reply = await connection.reply()
  assert.equal(reply.status, 200)
  assert.ok(!reply.body.endsWith('0\r\n\r\n'), 'the chunked body has no end')
})
