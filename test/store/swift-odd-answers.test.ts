/** The Swift target against a scripted service: what real ones do only on bad days. */
import assert from 'node:assert/strict'
import { createHash, createHmac } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { test, type TestContext } from 'node:test'
import { hasCode, RoostError } from '../../src/core/errors.js'
import { bytesBody } from '../../src/store/bytes-body.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { parseByteRanges } from '../../src/store/swift/byte-ranges.js'
import { readSwiftCloud as readCloudConfig } from '../../src/store/swift/login.js'
import { openSwiftStore, type SwiftStoreOptions } from '../../src/store/swift/swift-store.js'
import { ManualClock } from '../support/manual-clock.js'

interface Seen { readonly method: string; readonly path: string; readonly headers: IncomingMessage['headers']; readonly body: Buffer }
interface Answer { readonly status: number; readonly headers?: Record<string, string>; readonly body?: string | Buffer }
interface Script {
  /** Of the objects' service; tokens are checked before it is asked. */
  answer?: (seen: Seen) => Answer | undefined
  logIn?: () => Promise<Answer | undefined>
  tokenSeconds?: number
}
class Service {
  readonly seen: Seen[] = []
  logins = 0
  valid = new Set<string>()
  isIdentityAway = false
  constructor(readonly origin: string, readonly script: Script) {}
  async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = await buffer(request)
    const path = request.url ?? ''
    const send = ({ status, headers = {}, body: content = '' }: Answer): void => {
      response.writeHead(status, { 'x-trans-id': 'tx123', 'content-length': String(Buffer.byteLength(content)), ...headers })
      response.end(request.method === 'HEAD' ? undefined : content)
    }
    if (path === '/auth/v1.0') {
      if (this.isIdentityAway) { request.socket.destroy(); return }
      this.logins++
      const odd = await this.script.logIn?.()
      if (odd !== undefined) { send(odd); return }
      const token = `token${this.logins}`
      this.valid.add(token)
      send({ status: 200, headers: { 'x-auth-token': token, 'x-storage-url': `${this.origin}/v1/AUTH_test`, 'x-auth-token-expires': String(this.script.tokenSeconds ?? 3600) } })
      return
    }
    if (path === '/info') { send({ status: 200, body: JSON.stringify({ swift: { max_file_size: 1000 }, bulk_delete: {} }) }); return }
    const seen = { method: request.method ?? '', path, headers: request.headers, body }
    this.seen.push(seen)
    if (!path.includes('temp_url_sig') && !this.valid.has(String(request.headers['x-auth-token']))) { send({ status: 401 }); return }
    send(this.script.answer?.(seen) ?? defaultAnswer(seen))
  }
}
function defaultAnswer({ method, path, body }: Seen): Answer {
  if (method === 'PUT') return { status: 201, headers: { etag: md5(body) } }
  if (/^\/v1\/AUTH_test\/c(\?|$)/.test(path)) return { status: 204, headers: { 'x-container-object-count': '0' } }
  return { status: 404 }
}
const md5 = (bytes: Buffer): string => createHash('md5').update(bytes).digest('hex')

interface World { readonly service: Service; readonly store: ObjectStore; readonly clock: ManualClock; open(more?: Partial<SwiftStoreOptions>, query?: string): ObjectStore }
async function world(t: TestContext, script: Script = {}): Promise<World> {
  const server = createServer((request, response) => { void service.serve(request, response) })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => { server.closeAllConnections(); server.close() })
  const service = new Service(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, script)
  const clock = new ManualClock()
  const environment = { OS_AUTH_TYPE: 'v1password', OS_AUTH_URL: `${service.origin}/auth/v1.0`, OS_USERNAME: 'test:tester', OS_PASSWORD: 'sesame' }
  const open: World['open'] = (more = {}, query = '?auth=env') => {
    const store = openSwiftStore({ url: `swift:c${query}`, clock, environment, ...more })
    t.after(() => store.close())
    return store
  }
  return { service, store: open(), clock, open }
}
const unavailable = (words: RegExp) => (error: unknown): boolean => hasCode(error, 'STORE_UNAVAILABLE') && words.test(error.message)
const refused = (words: RegExp) => (error: unknown): boolean => hasCode(error, 'STORE_REFUSED') && words.test(error.message)
async function keysOf(store: ObjectStore): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of store.list('')) keys.push(key)
  return keys
}

test('one login serves all who wait for it, and one who gives up leaves the others waiting', async (t) => {
  let release = (): void => undefined
  const gate = new Promise<void>((resolve) => { release = resolve })
  const { store, service } = await world(t, { logIn: async () => { await gate; return undefined } })
  const reason = new Error('no time')
  const abort = new AbortController()
  const others = Array.from({ length: 5 }, (_, at) => store.head(`k${at}`))
  const impatient = store.head('k', { signal: abort.signal })
  abort.abort(reason)
  await assert.rejects(impatient, (error) => error === reason)
  release()
  assert.deepEqual(await Promise.all(others), Array(5).fill(undefined))
  assert.equal(service.logins, 1)
})
test('an upload whose token is rejected is sent again whole with a new one', async (t) => {
  const { store, service } = await world(t)
  await store.head('k')
  service.valid.clear()
  await store.put('k', bytesBody(Buffer.from('the body')))
  assert.equal(service.logins, 2)
  assert.equal(service.seen.at(-1)!.body.toString(), 'the body')
  assert.equal(service.seen.at(-1)!.headers['if-none-match'], '*')
})
test('a token is renewed before it runs out', async (t) => {
  const { store, service, clock } = await world(t, { tokenSeconds: 60 })
  await store.head('k')
  await clock.advance(61_000)
  await store.head('k')
  assert.equal(service.logins, 2)
  assert.ok(service.seen.every(({ headers }) => headers['x-auth-token'] !== undefined))
})
test('a rejected token that cannot be renewed is an outage of the identity service, not a wrong password', async (t) => {
  const { store, service } = await world(t)
  await store.head('k')
  service.valid.clear()
  service.isIdentityAway = true
  await assert.rejects(store.head('k'), (error) =>
    unavailable(/identity service at http.* no token/)(error) && !/credentials|password/.test((error as RoostError).message))
})
test('a live token goes on while the identity service is away', async (t) => {
  const { store, service, clock } = await world(t, { tokenSeconds: 1000 })
  await store.head('k')
  service.isIdentityAway = true
  await clock.advance(950_000)
  assert.equal(await store.head('k'), undefined)
  assert.equal(await store.head('k'), undefined)
})
test('wrong credentials are said once, naming where they came from and no secret', async (t) => {
  const { store } = await world(t, { logIn: async () => ({ status: 401 }) })
  await assert.rejects(store.head('k'), (error) => refused(/OS_\* variables.*check user/)(error) && !(error as Error).message.includes('sesame'))
})
test('rate limits and failures carry their code, their time and the transaction', async (t) => {
  for (const status of [498, 429, 503]) {
    const { store } = await world(t, { answer: ({ method }) => method === 'PUT' ? { status, headers: { 'retry-after': '7' } } : undefined })
    await assert.rejects(store.put('k', bytesBody(Buffer.from('x'))), (error) =>
      unavailable(/X-Trans-Id tx123|tx123/)(error) && (error as RoostError).details['retryAfterMs'] === 7000 && (error as RoostError).details['transactionId'] === 'tx123')
  }
})
test('a page of HTML with 200 is no object, no upload and no listing', async (t) => {
  const { store } = await world(t, { answer: () => ({ status: 200, headers: { 'content-type': 'text/html' }, body: '<html>Log in</html>' }) })
  const isProxy = refused(/not Swift; a web proxy/)
  await assert.rejects(store.head('k'), isProxy)
  await assert.rejects(store.getRange('k', { offset: 0, bytes: 1 }), isProxy)
  await assert.rejects(store.put('k', bytesBody(Buffer.from('x'))), isProxy)
  await assert.rejects(keysOf(store), isProxy)
  await assert.rejects(store.delete('k'), isProxy)
})
test('bytes that were altered on their way are sent once more, then it is said', async (t) => {
  let puts = 0
  const heals = await world(t, { answer: ({ method }) => method === 'PUT' && ++puts === 1 ? { status: 201, headers: { etag: md5(Buffer.from('other')) } } : undefined })
  await heals.store.put('k', bytesBody(Buffer.from('right')))
  assert.equal(puts, 2)
  const never = await world(t, { answer: ({ method }) => method === 'PUT' ? { status: 201, headers: { etag: md5(Buffer.from('other')) } } : undefined })
  await assert.rejects(never.store.put('k', bytesBody(Buffer.from('right'))), unavailable(/other bytes than were sent/))
})
test('an upload that Swift drops for a later one (202) is settled by a look, and a replacement is sent again', async (t) => {
  const right = Buffer.from('right')
  const dropping = async (held: Buffer | undefined, drops: number): Promise<{ service: Service; put(replace: boolean): Promise<void> }> => {
    let puts = 0
    const { store, service } = await world(t, { answer: ({ method, path }) => {
      if (method === 'PUT' && ++puts <= drops) return { status: 202 }
      return method === 'HEAD' && path.endsWith('/k') && held !== undefined ? { status: 200, headers: { etag: md5(held), 'content-length': String(held.length) } } : undefined
    } })
    return { service, put: (replace) => store.put('k', bytesBody(right), { replace }) }
  }
  const putsOf = (service: Service): number => service.seen.filter(({ method }) => method === 'PUT').length
  const same = await dropping(right, 1)
  await same.put(false)
  assert.equal(putsOf(same.service), 1)
  await assert.rejects((await dropping(Buffer.from('wrong'), 1)).put(false), refused(/was not overwritten/))
  for (const held of [Buffer.from('wrong'), Buffer.from('longer ones'), undefined]) {
    const replaced = await dropping(held, 1)
    await replaced.put(true)
    assert.equal(putsOf(replaced.service), 2)
    await assert.rejects((await dropping(held, 2)).put(true), unavailable(/another hand in the same moment/))
  }
})
test('a missing container is named, and never an absent object', async (t) => {
  const { store } = await world(t, { answer: () => ({ status: 404 }) })
  await assert.rejects(store.head('k'), refused(/container is missing/))
})
test('an object over the cluster\'s limit is refused before it is sent', async (t) => {
  const { store, service } = await world(t)
  await store.head('k')
  await assert.rejects(store.put('k', bytesBody(Buffer.alloc(1001))), refused(/at most 1000 bytes \(max_file_size\)/))
  assert.ok(service.seen.every(({ method }) => method !== 'PUT'))
})
test('deletions in bulk are believed by their body, and an outage does not turn them off', async (t) => {
  let answers: Answer[] = [{ status: 503 }, { status: 200, body: JSON.stringify({ 'Response Status': '400 Bad Request', 'Number Deleted': 1, Errors: [['/c/b', '409 Conflict']] }) }]
  const { store, service } = await world(t, { answer: ({ method }) => method === 'POST' ? answers.shift() : method === 'DELETE' ? { status: 204 } : undefined })
  await assert.rejects(store.deleteMany(['a', 'b']), unavailable(/503/))
  await store.deleteMany(['a', 'b'])
  assert.deepEqual(service.seen.filter(({ method }) => method === 'DELETE').map(({ path }) => path), ['/v1/AUTH_test/c/a', '/v1/AUTH_test/c/b'])
  answers = [{ status: 405 }]
  await store.deleteMany(['a'])
  await store.deleteMany(['a'])
  assert.equal(service.seen.filter(({ method }) => method === 'POST').length, 3)
})
test('a listing goes on past pages that are shorter than asked for', async (t) => {
  const pages = [['a', 'b'], ['c'], []]
  const { store } = await world(t, { answer: ({ method }) => method === 'GET'
    ? { status: 200, body: JSON.stringify(pages.shift()!.map((name) => ({ name, bytes: 1 }))) } : undefined })
  assert.deepEqual(await keysOf(store), ['a', 'b', 'c'])
})
test('a service that ignores or cuts ranges is read all the same', async (t) => {
  const object = Buffer.from('0123456789')
  const { store } = await world(t, { answer: ({ method }) => method === 'GET' ? { status: 200, headers: { etag: md5(object) }, body: object } : undefined })
  assert.deepEqual((await store.getRanges('k', [{ offset: 1, bytes: 2 }, { offset: 7, bytes: 3 }]))?.map(String), ['12', '789'])
  await assert.rejects(store.getRange('k', { offset: 8, bytes: 3 }), (error) => hasCode(error, 'OBJECT_TOO_SHORT'))
})
test('several ranges are found by their place, whatever their bytes look like', () => {
  const part = (from: number, bytes: string): string => `--B\r\nContent-Type: x\r\nContent-Range: bytes ${from}-${from + bytes.length - 1}/99\r\n\r\n${bytes}\r\n`
  const body = Buffer.from(`${part(20, '--B--')}${part(3, '\r\n\r\n')}--B--`)
  const ranges = [{ offset: 3, bytes: 4 }, { offset: 20, bytes: 5 }]
  assert.deepEqual(parseByteRanges('multipart/byteranges; boundary=B', body, ranges)?.map(String), ['\r\n\r\n', '--B--'])
  assert.equal(parseByteRanges('multipart/byteranges;boundary=B', body.subarray(0, 60), ranges), undefined)
  assert.equal(parseByteRanges('text/plain', body, ranges), undefined)
})
test('with a TempURL key and a remembered address, reads need no identity service at all', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'roost-tempurl-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const keyFile = join(directory, 'key')
  await writeFile(keyFile, 'temp-secret\n')
  const object = Buffer.from('0123456789')
  let note: string | undefined
  const memory = { read: async () => note, write: async (text: string) => { note = text } }
  const { open, service } = await world(t, { answer: ({ method, path }) => {
    const query = new URL(path, 'http://x').searchParams
    const signature = createHmac('sha256', 'temp-secret').update(`${method}\n${query.get('temp_url_expires')}\n/v1/AUTH_test/c/k`).digest('hex')
    if (path.startsWith('/v1/AUTH_test/c/k?') && query.get('temp_url_sig') !== signature) return { status: 401 }
    return path.startsWith('/v1/AUTH_test/c/k') ? { status: 200, headers: { etag: md5(object) }, body: object } : undefined
  } })
  const query = `?auth=env&tempurl-key-file=${keyFile}`
  assert.equal((await open({ memory }, query).head('k'))?.bytes, 10)
  assert.ok(note !== undefined && !/token|sesame|secret/.test(note))
  service.isIdentityAway = true
  const restarted = open({ memory }, query)
  assert.equal((await restarted.head('k'))?.bytes, 10)
  assert.equal((await restarted.getRange('k', { offset: 2, bytes: 3 }))?.toString(), '234')
  await assert.rejects(restarted.put('n', bytesBody(object)), unavailable(/identity service/))
  await assert.rejects(open({}, query).head('k'), unavailable(/identity service/))
  await assert.rejects(open({ memory }, query).head('absent'), unavailable(/identity service/), 'without a token nobody can tell whether the container is there')
})
test('clouds.yaml is read as OpenStack\'s own clients read it', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'roost-clouds-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const clouds = join(directory, 'clouds.yaml'), secure = join(directory, 'secure.yaml')
  await writeFile(clouds, `clouds:
  home: { auth: { auth_url: "http://k/v3", username: me, project_name: p, user_domain_name: Default }, region_name: R1, interface: internal, verify: no }
  app: { auth_type: v3applicationcredential, auth: { auth_url: "http://k", application_credential_id: i, application_credential_secret: s } }
  vendor: { profile: rackspace, auth: { username: me } }
`)
  await writeFile(secure, 'clouds: { home: { auth: { password: 0123 } } }\n')
  const environment = { OS_CLIENT_CONFIG_FILE: clouds, OS_CLIENT_SECURE_FILE: secure, OS_CLOUD: 'home', OS_PASSWORD: 'not this' }
  const home = await readCloudConfig(undefined, environment)
  assert.deepEqual([home.authType, home.auth['password'], home.region, home.interface, home.verify], ['password', '0123', 'R1', 'internal', false])
  assert.equal((await readCloudConfig('app', environment)).authType, 'applicationCredential')
  await assert.rejects(readCloudConfig('vendor', environment), refused(/vendor profile/))
  await assert.rejects(readCloudConfig('nowhere', environment), refused(/no cloud named "nowhere"/))
  await assert.rejects(readCloudConfig(undefined, { OS_AUTH_URL: 'http://k', OS_USERNAME: 'u' }), refused(/no password/))
  const st = await readCloudConfig(undefined, { ST_AUTH: 'http://s/auth/v1.0', ST_USER: 'a:b', ST_KEY: 'k' })
  assert.deepEqual([st.authType, st.auth['username'], st.auth['password']], ['v1', 'a:b', 'k'])
})
