/** Requests to a cloud: tokens, versions, addresses, retries and what refusals say. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CloudError, type CloudErrorCode } from '../../src/openstack/cloud-error.js'
import { chooseMicroversion, serviceRoot, versionRoot } from '../../src/openstack/service-root.js'
import { fakeCloud, PASSWORD } from '../support/fake-cloud.js'

const fails = (code: CloudErrorCode, words: RegExp) => (error: unknown): boolean => {
  assert.ok(error instanceof CloudError, `${error as string}`)
  assert.equal(error.code, code, error.message)
  assert.match(error.message, words)
  assert.doesNotMatch(JSON.stringify([error.message, error.stack, error.facts]), new RegExp(`${PASSWORD}|token-\\d`))
  return true
}

test('a token that a service rejects is replaced once, and the request repeated', async (t) => {
  const { fake, cloud } = await fakeCloud(t)
  fake.json('GET /compute/servers', { servers: [] })
  assert.deepEqual(await cloud.get('compute', '/servers'), { servers: [] })
  fake.goodFrom = 2
  assert.deepEqual(await cloud.get('compute', '/servers'), { servers: [] })
  assert.equal(fake.logins, 2)
  fake.goodFrom = 99
  await assert.rejects(cloud.get('compute', '/servers'), fails('CLOUD_REFUSED', /Nova answers 401 .* may not reach Keystone/))
  assert.equal(fake.logins, 3)
})
test('many requests at once log in once', async (t) => {
  const { fake, cloud } = await fakeCloud(t)
  fake.json('GET /image/images', { images: [] })
  await Promise.all(Array.from({ length: 20 }, () => cloud.get('image', '/images')))
  assert.equal(fake.logins, 1)
})
test('what only reads is asked again while a service is overloaded; what changes something is sent once', async (t) => {
  const { fake, cloud } = await fakeCloud(t)
  let refusals = 2
  fake.on('GET /compute/servers', () => refusals-- > 0 ? { status: 503, text: '<html>Service Unavailable</html>', headers: { 'retry-after': '0' } } : { status: 200, json: { servers: [] } })
  assert.deepEqual(await cloud.get('compute', '/servers'), { servers: [] })
  assert.equal(fake.count('GET /compute/servers'), 3)
  fake.on('POST /compute/servers', { status: 503, json: { message: 'busy' } })
  await assert.rejects(cloud.ask('compute', { method: 'POST', path: '/servers', json: {} }), fails('CLOUD_UNAVAILABLE', /Nova answers 503 to POST \/servers: busy/))
  assert.equal(fake.count('POST /compute/servers'), 1)
})
test('refusals carry the service\'s own words, and none of the query', async (t) => {
  const { fake, cloud } = await fakeCloud(t)
  fake.on('GET /compute/a', { status: 403, json: { forbidden: { code: 403, message: 'Policy does not allow it.' } }, headers: { 'x-openstack-request-id': 'req-17' } })
  fake.on('GET /network/b', { status: 409, json: { NeutronError: { type: 'X', message: 'In use.' } } })
  fake.on('GET /image/c', { status: 413, text: '<html><head><title>413</title></head><body><h1>Too large</h1>\n<p>Quota.</p></body></html>' })
  fake.on('GET /image/d', { status: 200, text: '<html>Welcome to the hotel\'s network</html>' })
  fake.on('GET /image/e', { status: 302, headers: { location: 'http://elsewhere/' } })
  await assert.rejects(cloud.get('compute', '/a?name=private'), (error: unknown) =>
    fails('CLOUD_REFUSED', /403 to GET \/a: Policy does not allow it\. \(req-17\); these credentials may not/)(error) && !(error as Error).message.includes('private'))
  await assert.rejects(cloud.get('network', '/b'), fails('CLOUD_CONFLICT', /Neutron answers 409 to GET \/b: In use/))
  await assert.rejects(cloud.get('image', '/c'), fails('CLOUD_REFUSED', /413 to GET \/c: Too large Quota/))
  await assert.rejects(cloud.get('image', '/d'), fails('CLOUD_REFUSED', /does not speak JSON/))
  await assert.rejects(cloud.get('image', '/e'), fails('CLOUD_REFUSED', /redirects elsewhere/))
  await assert.rejects(cloud.get('compute', '/nowhere'), fails('CLOUD_UNKNOWN', /404/))
})
test('the newest microversion that both know is spoken, wherever the catalog\'s address ends', async (t) => {
  const { fake, cloud } = await fakeCloud(t)
  fake.suffixes.compute = '/v2.1/project-1'
  fake.version('2.79').json('GET /compute/servers', { servers: [] })
  assert.deepEqual(await cloud.microversion(), [2, 79])
  await cloud.get('compute', '/servers')
  const { path, headers } = fake.asked.at(-1)!
  assert.equal(path, '/compute/servers')
  assert.deepEqual([headers['openstack-api-version'], headers['x-openstack-nova-api-version']], ['compute 2.79', '2.79'])
  assert.equal(chooseMicroversion({ version: { version: '2.300', min_version: '2.1' } }), '2.90')
  assert.equal(chooseMicroversion({ version: { version: '2.300', min_version: '2.200' } }), '2.1')
  assert.equal(chooseMicroversion({ version: { version: '', min_version: '' } }), '2.1')
  assert.equal(chooseMicroversion(undefined), '2.1')
  assert.deepEqual([serviceRoot('compute', 'http://n'), serviceRoot('image', 'http://g/image'), serviceRoot('image', 'http://g/v2'), serviceRoot('network', 'http://n:9696/v2.0'),
    serviceRoot('network', 'http://n:9696')],
    ['http://n/v2.1', 'http://g/image/v2', 'http://g/v2', 'http://n:9696/v2.0', 'http://n:9696/v2.0'])
  assert.equal(versionRoot('http://n/v2.1/p'), 'http://n/v2.1')
})
test('a service that the catalog lacks is told from one that is away', async (t) => {
  const { fake, cloud } = await fakeCloud(t)
  fake.services = ['compute']
  assert.deepEqual([await cloud.has('compute'), await cloud.has('network')], [true, false])
  await assert.rejects(cloud.get('network', '/ports'), fails('CLOUD_UNKNOWN', /has no network .*network_endpoint_override/))
})
test('an interrupted request ends with the reason', async (t) => {
  const { fake, cloud } = await fakeCloud(t)
  fake.on('GET /compute/servers', () => new Promise(() => undefined))
  const abort = new AbortController()
  const asked = cloud.get('compute', '/servers', abort.signal)
  await cloud.microversion()
  abort.abort(new DOMException('Interrupted.', 'AbortError'))
  await assert.rejects(asked, { name: 'AbortError' })
})
