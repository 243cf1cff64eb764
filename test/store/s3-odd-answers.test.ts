/** The S3 target against a scripted service: what real ones do only on bad days, and what other makes of S3 do always. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { test, type TestContext } from 'node:test'
import { hasCode } from '../../src/core/errors.js'
import { bytesBody } from '../../src/store/bytes-body.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { openS3Store, type S3StoreOptions } from '../../src/store/s3/s3-store.js'
import { ManualClock } from '../support/manual-clock.js'

interface Seen { readonly method: string; readonly path: string; readonly headers: IncomingMessage['headers']; readonly body: Buffer }
interface Answer { readonly status: number; readonly headers?: Record<string, string>; readonly body?: string | Buffer }
type Script = (seen: Seen, service: Service) => Answer | 'hang up' | undefined

/** A small S3 that honours conditional creation, unless the script answers first. */
class Service {
  readonly seen: Seen[] = []
  readonly objects = new Map<string, Buffer>()
  constructor(readonly script: Script) {}
  answer(seen: Seen): Answer | 'hang up' {
    const odd = this.script(seen, this)
    if (odd !== undefined) return odd
    const [path = ''] = seen.path.split('?')
    const held = this.objects.get(path)
    if (seen.method === 'PUT') {
      if (seen.headers['if-none-match'] === '*' && held !== undefined) return refusal(412, 'PreconditionFailed')
      this.objects.set(path, seen.body)
      return { status: 200, headers: { etag: `"${md5(seen.body)}"` } }
    }
    if (seen.method === 'DELETE') {
      this.objects.delete(path)
      return { status: 204 }
    }
    if (path === '/bucket' || path === '/bucket/') return { status: 200 }
    if (held === undefined) return refusal(404, 'NoSuchKey')
    return { status: 200, headers: { etag: `"${md5(held)}"` }, body: held }
  }
  puts(key: string): Seen[] { return this.seen.filter(({ method, path }) => method === 'PUT' && path.startsWith(`/bucket/${key}`)) }
}
const md5 = (bytes: Buffer): string => createHash('md5').update(bytes).digest('hex')
const refusal = (status: number, code: string, more = '', headers: Record<string, string> = {}): Answer =>
  ({ status, headers: { 'content-type': 'application/xml', ...headers }, body: `<?xml version="1.0"?><Error><Code>${code}</Code><Message>of the script</Message>${more}</Error>` })

async function world(t: TestContext, script: Script = () => undefined, more: Partial<S3StoreOptions> = {}, query = '', { numbersRequests = true } = {}): Promise<{ service: Service; store: ObjectStore }> {
  const service = new Service(script)
  const server = createServer((request, response) => {
    void buffer(request).then((body) => {
      const seen = { method: request.method ?? '', path: request.url ?? '', headers: request.headers, body }
      service.seen.push(seen)
      const answer = service.answer(seen)
      if (answer === 'hang up') { request.socket.destroy(); return }
      const { status, headers = {}, body: content = '' } = answer
      const named = !numbersRequests || /^text\//.test(headers['content-type'] ?? '') ? {} : { 'x-amz-request-id': 'req123' }
      response.writeHead(status, { ...named, ...(status === 204 ? {} : { 'content-length': String(Buffer.byteLength(content)) }), ...headers })
      response.end(request.method === 'HEAD' ? undefined : content)
    }, () => undefined)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const store = openS3Store({ url: `s3:bucket?endpoint=http://127.0.0.1:${(server.address() as AddressInfo).port}${query}`, clock: new ManualClock(),
    environment: { AWS_ACCESS_KEY_ID: 'key', AWS_SECRET_ACCESS_KEY: 'sesame' }, ...more })
  t.after(() => store.close())
  return { service, store }
}
const packBody = bytesBody(Buffer.from('the bytes of a pack'))

for (const [what, ignores] of [
  ['ignores them', (): undefined => undefined],
  ['answers 501 to them', (): Answer => refusal(501, 'NotImplemented')],
  ['answers 400 to them', (): Answer => refusal(400, 'InvalidArgument')],
] as const)
  test(`conditional creation on a service that ${what}: objects are looked for first, and none is overwritten`, async (t) => {
    const { service, store } = await world(t, (seen, { objects }) => {
      if (seen.method !== 'PUT' || seen.headers['if-none-match'] === undefined) return undefined
      const answer = ignores()
      if (answer !== undefined) return answer
      objects.set(seen.path.split('?')[0]!, seen.body)
      return { status: 200, headers: { etag: `"${md5(seen.body)}"` } }
    })
    assert.equal(store.remark, undefined)
    await store.put('pack', packBody)
    assert.match(store.remark ?? '', /does not honour If-None-Match \(conditional writes\)/)
    await store.put('pack', packBody) // the same bytes: settled
    assert.equal(service.puts('pack').length, 1)
    assert.ok(service.puts('pack').every(({ headers }) => headers['if-none-match'] === undefined))
    await assert.rejects(store.put('pack', bytesBody(Buffer.from('other bytes'))), (error: Error) => hasCode(error, 'STORE_REFUSED') && /was not overwritten/.test(error.message))
    assert.equal(service.objects.get('/bucket/pack')?.toString(), 'the bytes of a pack')
  })

test('conditional creation is tried out once, and its trial object is removed', async (t) => {
  const { service, store } = await world(t)
  await store.put('pack1', packBody)
  await store.put('pack2', packBody)
  assert.equal(service.puts('probe-').length, 2)
  assert.deepEqual([...service.objects.keys()].sort(), ['/bucket/pack1', '/bucket/pack2'])
  assert.equal(service.puts('pack2')[0]?.headers['if-none-match'], '*')
  assert.equal(store.remark, undefined)
})

test('a trial that is not answered is repeated by the next put', async (t) => {
  let isAway = true
  const { store, service } = await world(t, () => isAway ? refusal(503, 'ServiceUnavailable') : undefined)
  await assert.rejects(store.put('pack', packBody), (error) => hasCode(error, 'STORE_UNAVAILABLE'))
  isAway = false
  await store.put('pack', packBody)
  assert.equal(service.puts('pack').length, 1)
})

for (const [what, answer, code, sentence] of [
  ['a wrong access key', refusal(403, 'InvalidAccessKeyId'), 'STORE_REFUSED', /does not know the access key/],
  ['a wrong secret', refusal(403, 'SignatureDoesNotMatch'), 'STORE_REFUSED', /secret key does not belong/],
  ['expired credentials', refusal(400, 'ExpiredToken'), 'STORE_REFUSED', /have expired; renew them/],
  ['credentials that may only read', refusal(403, 'AccessDenied'), 'STORE_REFUSED', /may not do it; grant them/],
  ['a skewed clock', refusal(403, 'RequestTimeTooSkewed'), 'STORE_REFUSED', /clock .* set the clock/],
  ['a missing bucket', refusal(404, 'NoSuchBucket'), 'STORE_REFUSED', /the bucket is missing; create it/],
  ['another region', refusal(301, 'PermanentRedirect', '', { 'x-amz-bucket-region': 'eu-north-1' }), 'STORE_REFUSED', /in the region eu-north-1; give region=eu-north-1/],
  ['a malformed region', refusal(400, 'AuthorizationHeaderMalformed', '<Region>eu-north-1</Region>'), 'STORE_REFUSED', /give region=eu-north-1/],
  ['a quota', refusal(403, 'QuotaExceeded'), 'STORE_REFUSED', /quota is reached/],
  ['a rate limit', refusal(503, 'SlowDown', '', { 'retry-after': '7' }), 'STORE_UNAVAILABLE', /limits the rate/],
  ['bytes altered on their way', refusal(400, 'BadDigest'), 'STORE_UNAVAILABLE', /altered on their way/],
  ['a web page with 200', { status: 200, headers: { 'content-type': 'text/html; charset=utf-8' }, body: '<html>Log in</html>' }, 'STORE_REFUSED', /with a web page \(200\)/],
  ['a web page with 502', { status: 502, headers: { 'content-type': 'text/html' }, body: '<html>Bad gateway</html>' }, 'STORE_UNAVAILABLE', /a proxy in front of it answers 502/],
  ['plain text with 200', { status: 200, headers: { 'content-type': 'text/plain' }, body: 'hello' }, 'STORE_REFUSED', /does not speak S3/],
  ['a closed connection', 'hang up', 'STORE_UNAVAILABLE', /did not do the/],
] as const satisfies readonly (readonly [string, Answer | 'hang up', string, RegExp])[])
  test(`${what} is named in one sentence by every operation, without the secret`, async (t) => {
    const { store } = await world(t, (seen) => seen.method === 'HEAD' && answer !== 'hang up' && answer.headers?.['content-type'] === undefined ? { ...answer, body: '' } : answer)
    const failures: Error[] = []
    const collect = (error: unknown): void => { failures.push(error as Error) }
    await store.put('pack', packBody).catch(collect)
    await store.get('pack').catch(collect)
    await store.getRange('pack', { offset: 0, bytes: 4 }).catch(collect)
    await (async () => { for await (const object of store.list('')) assert.fail(object.key) })().catch(collect)
    await store.deleteMany(['pack', 'pack2']).catch(collect)
    // After a HEAD that failed with 5xx no listing is asked for its cause: the service has enough to do.
    const isBusy = answer !== 'hang up' && answer.status >= 500
    if (!isBusy) await store.head('pack').catch(collect)
    assert.equal(failures.length, isBusy ? 5 : 6)
    for (const failure of failures) {
      assert.ok(hasCode(failure, code), failure.stack)
      assert.match(failure.message, sentence)
      assert.doesNotMatch(failure.message, /sesame|\n/)
    }
  })

for (const [what, held, replace, code, sentence] of [
  ['the same bytes', 'the bytes of a pack', false, undefined, undefined],
  ['other bytes', 'the bytes of a knack', false, 'STORE_REFUSED', /was not overwritten/],
  ['nothing', undefined, false, 'STORE_UNAVAILABLE', /changed by another hand in the same moment/],
  ['the same bytes as a replacement\'s', 'the bytes of a pack', true, undefined, undefined],
  ['another replacement\'s bytes', 'other bytes', true, 'STORE_UNAVAILABLE', /changed by another hand in the same moment/],
] as const)
  test(`an upload answered without an ETag, as s3api answers one that came second, is settled by a look: ${what}`, async (t) => {
    const { store } = await world(t, (seen, { objects }) => {
      if (seen.method !== 'PUT' || !seen.path.startsWith('/bucket/pack')) return undefined
      if (held !== undefined) objects.set('/bucket/pack', Buffer.from(held))
      return { status: 200 }
    })
    const put = store.put('pack', packBody, { replace })
    if (code === undefined) await put
    else await assert.rejects(put, (error: Error) => hasCode(error, code) && sentence.test(error.message))
  })

test('a service that numbers no requests is S3 all the same', async (t) => {
  const { store, service } = await world(t, undefined, {}, '', { numbersRequests: false })
  await store.put('pack', packBody)
  await store.put('pack', packBody)
  assert.equal((await store.head('pack'))?.bytes, packBody.bytes)
  assert.equal((await store.getRange('pack', { offset: 4, bytes: 5 }))?.toString(), 'bytes')
  assert.equal(await store.head('absent'), undefined)
  await store.delete('pack')
  assert.equal(service.objects.size, 0)
})

test('an error names the request id, and a rate limit says for how long', async (t) => {
  const { store } = await world(t, () => refusal(503, 'SlowDown', '', { 'retry-after': '7' }))
  await assert.rejects(store.get('pack'), (error: Error & { details?: Record<string, unknown> }) => {
    assert.match(error.message, /request req123/)
    assert.equal(error.details?.['retryAfterMs'], 7_000)
    return true
  })
})

test('no credentials at all: the sentence says where to put them', async (t) => {
  const { store } = await world(t, undefined, {}, '&credentials-file=/nowhere/credentials')
  await assert.rejects(store.get('pack'), (error: Error) => hasCode(error, 'STORE_REFUSED') && /There are no credentials for s3:bucket.*AWS_ACCESS_KEY_ID/.test(error.message))
})

test('credentials that change while reads are under way: those go on, and the next requests are signed with the new ones', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'roost-s3-credentials-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'credentials')
  const write = (key: string): Promise<void> => writeFile(file, `[default]\naws_access_key_id = ${key}\naws_secret_access_key = sesame\n`)
  await write('old')
  let valid = 'old'
  const { store, service } = await world(t, ({ headers }) => headers.authorization?.includes(`Credential=${valid}/`) === true ? undefined : refusal(403, 'InvalidAccessKeyId'),
    { environment: {} }, `&credentials-file=${file}`)
  const large = Buffer.alloc(8 * 1024 * 1024, 'x')
  await store.put('large', bytesBody(large))
  const underWay = await store.get('large')
  await write('new')
  valid = 'new'
  await Promise.all(['a', 'b', 'c'].map((key) => store.put(key, packBody)))
  assert.ok((await buffer(underWay!)).equals(large))
  assert.ok(service.objects.has('/bucket/a') && service.objects.has('/bucket/c'))
  assert.ok(service.seen.filter(({ headers }) => headers.authorization?.includes('Credential=old/')).length < 10, 'the old ones are not tried again and again')
})

test('a service that stored other bytes is caught by its ETag', async (t) => {
  const { store } = await world(t, (seen) => seen.method === 'PUT' && seen.path.startsWith('/bucket/pack') ? { status: 200, headers: { etag: `"${md5(Buffer.from('other'))}"` } } : undefined)
  await assert.rejects(store.put('pack', packBody), (error: Error) => hasCode(error, 'STORE_UNAVAILABLE') && /stored other bytes/.test(error.message))
})

test('a service that ignores ranges, or sends too little, never makes a wrong range', async (t) => {
  let isShort = false
  const { service, store } = await world(t, (seen, { objects }) => {
    if (seen.method !== 'GET' || !isShort) return undefined
    return { status: 206, headers: { etag: '"x"', 'content-range': 'bytes 4-9/19' }, body: objects.get('/bucket/pack')!.subarray(4, 8) }
  })
  await store.put('pack', packBody)
  assert.equal((await store.getRange('pack', { offset: 4, bytes: 5 }))?.toString(), 'bytes')
  assert.equal(service.seen.at(-1)?.headers.range, 'bytes=4-8')
  isShort = true
  await assert.rejects(store.getRange('pack', { offset: 4, bytes: 6 }), (error) => hasCode(error, 'OBJECT_TOO_SHORT'))
})

test('retention headers are sent where the target asks for object lock, and only there', async (t) => {
  const untilMs = Date.UTC(2030, 0, 2, 3, 4, 5)
  const locking = await world(t, undefined, {}, '&object-lock=compliance')
  await locking.store.put('pack', packBody, { retainUntilMs: untilMs })
  assert.equal(locking.service.puts('pack')[0]?.headers['x-amz-object-lock-mode'], 'COMPLIANCE')
  assert.match(String(locking.service.puts('pack')[0]?.headers['x-amz-object-lock-retain-until-date']), /^2030-01-02T03:04:05/)
  const plain = await world(t)
  await plain.store.put('pack', packBody, { retainUntilMs: untilMs })
  assert.equal(plain.service.puts('pack')[0]?.headers['x-amz-object-lock-mode'], undefined)
})

test('many keys are deleted together, and one by one where the service cannot', async (t) => {
  const { service, store } = await world(t, (seen) => seen.method === 'POST' ? refusal(501, 'NotImplemented') : undefined)
  for (const key of ['a', 'b2', 'c']) await store.put(key, packBody)
  await store.deleteMany(['a', 'b2', 'missing'])
  await store.deleteMany(['c'])
  assert.equal(service.objects.size, 0)
  assert.equal(service.seen.filter(({ method }) => method === 'POST').length, 1)
})
