/** Mistakes that operators make with targets on real services: each gets one sentence that names the cause. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { sharedLab } from '../support/openstack-lab.js'
import { RoostWorld } from '../support/run-roost.js'
import { assertRestores, backup, makeTree, MiB } from '../support/target-world.js'

const lab = sharedLab()
interface Scene { readonly world: RoostWorld; refusal(target: string): Promise<string>; fresh(): string }
async function scene(t: TestContext, server: Record<string, string> = {}): Promise<Scene> {
  const world = new RoostWorld()
  t.after(() => world.close())
  Object.assign(world.environment, { OS_CLIENT_CONFIG_FILE: world.path('clouds.yaml'), AWS_EC2_METADATA_DISABLED: 'true', AWS_ACCESS_KEY_ID: lab!.s3.accessKeyId,
    AWS_SECRET_ACCESS_KEY: lab!.s3.secretAccessKey })
  writeFileSync(world.path('clouds.yaml'), '')
  Object.assign(world.environment, server)
  await world.startServer()
  for (const name of Object.keys(server)) delete world.environment[name]
  let places = 0
  return {
    world,
    fresh: () => `mistakes-${process.pid}-${world.serverPid!}-${places++}`,
    // The second line only says what to do about the code.
    refusal: async (target) => {
      const result = await world.run(['repo', 'create', 'wrong', '--target', target])
      assert.equal(result.code, 1, target)
      return result.stderr.split('\n')[0]!
    },
  }
}
/** A login page, or what else answers 200 to everything. */
async function webPages(t: TestContext): Promise<string> {
  const server = createServer((request, response) => {
    request.resume().on('end', () => { response.writeHead(200, { 'content-type': 'text/html' }).end('<html><form>Log in</form></html>') })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => { server.closeAllConnections(); server.close() })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

describe('mistakes', { skip: lab === undefined ? 'no lab in this run' : false }, () => {
  test('with Swift: password, region, cloud, rights, container, a proxy with a login page, a secret in the URL', async (t) => {
    const { world, refusal, fresh } = await scene(t, { OS_CLIENT_CONFIG_FILE: lab!.cloudsYaml })
    assert.match(await refusal('swift:packs?cloud=wrong-password'), /refuses the credentials of the cloud "wrong-password"/)
    assert.match(await refusal('swift:packs?cloud=wrong-region'), /no object-store in region Nowhere .* there are RegionOne/)
    assert.match(await refusal('swift:packs?cloud=nobody'), /has no cloud named "nobody"/)
    assert.match(await refusal('swift:packs?cloud=reader'), /these credentials may not do it/)
    assert.match(await refusal('swift:packs?colour=red'), /"colour" is not an option/)
    const attach = await world.run(['repo', 'attach', 'other', '--target', `swift:${fresh()}?cloud=demo`, '--passphrase-file', world.adminTokenFile])
    assert.match(attach.stderr, /the container is missing/)
    await world.ok(['repo', 'create', 'main'])
    assert.match((await world.run(['target', 'add', 'x', 'swift://user:secret@host/container'])).stderr, /holds no secrets/)
  })

  test('with a web page in the way of Swift: instead of Keystone, of TempAuth, and of the objects', async (t) => {
    const { world, refusal } = await scene(t)
    const pages = await webPages(t)
    writeFileSync(world.path('clouds.yaml'), `clouds:
  keystone: { auth: { auth_url: '${pages}/v3', username: demo, password: demopw, project_name: demo } }
  tempauth: { auth_type: v1password, auth: { auth_url: '${pages}/auth/v1.0', username: 'test:tester', password: testing } }
  objects: { auth_type: v1password, auth: { auth_url: '${lab!.swiftAuthUrl}', username: 'test:tester', password: testing }, object_store_endpoint_override: '${pages}/v1/AUTH_test' }
`)
    assert.match(await refusal('swift:packs?cloud=keystone'), /v3 answers, but not as an identity service does: is a web proxy or another site in between/)
    assert.match(await refusal('swift:packs?cloud=tempauth'), /answers, but not as an identity service does: is a web proxy or another site in between/)
    assert.match(await refusal('swift:packs?cloud=objects'), /what answers there \(200, text\/html\) is not Swift; a web proxy or a login page may be in between/)
  })

  test('with S3: keys, bucket, region, clock, a proxy with a login page; conditional writes are missed in a remark', async (t) => {
    const { world, refusal, fresh } = await scene(t)
    const endpoint = `endpoint=${lab!.s3.endpoint}`
    const credentials = world.path('credentials')
    const write = (key: string, secret: string): void => { writeFileSync(credentials, `[default]\naws_access_key_id = ${key}\naws_secret_access_key = ${secret}\n`) }
    const bucket = fresh()
    const withFile = `s3:${bucket}?${endpoint}&credentials-file=${credentials}`
    write(lab!.s3.accessKeyId, 'not-this-one')
    assert.match(await refusal(withFile), /403, SignatureDoesNotMatch, request \S+\): the secret key does not belong to the access key/)
    write('nobody:here', 'testing')
    assert.match(await refusal(withFile), /403, (InvalidAccessKeyId|SignatureDoesNotMatch), request/)
    assert.match(await refusal(`s3:${bucket}?${endpoint}&credentials-file=/nowhere/credentials`), /There are no credentials for s3:/)
    assert.match(await refusal(`s3:${bucket}?${endpoint}&region=eu-north-1`), /the bucket is in the region us-east-1; give region=us-east-1/)
    assert.match(await refusal(`s3:${bucket}?endpoint=${await webPages(t)}`), /with a web page \(200\) and not as S3 does; correct the endpoint, or remove the proxy or login page/)
    const attach = await world.run(['repo', 'attach', 'other', '--target', `s3:${fresh()}?${endpoint}`, '--passphrase-file', world.adminTokenFile])
    assert.match(attach.stderr, /the bucket is missing; create it, or correct its name/)
    write(lab!.s3.accessKeyId, lab!.s3.secretAccessKey) // corrected while the server runs
    await world.ok(['repo', 'create', 'main', '--target', withFile])
    const tree = makeTree(world, 'tree', MiB)
    await assertRestores(world, await backup(world, tree), tree)
    assert.match((await world.ok(['target', 'status'])).stdout, /main: The service does not honour If-None-Match \(conditional writes\)/)
  })

  test('with this machine\'s clock an hour ahead: S3 says so, and Swift does not mind', async (t) => {
    const preload = new RoostWorld()
    t.after(() => preload.close())
    writeFileSync(preload.path('ahead.cjs'), `const { now } = Date
globalThis.Date = class extends Date { constructor(...given) { given.length === 0 ? super(now() + 3600000) : super(...given) } static now() { return now() + 3600000 } }
`)
    const { world, refusal, fresh } = await scene(t, { NODE_OPTIONS: `--require ${preload.path('ahead.cjs')}`, OS_CLIENT_CONFIG_FILE: lab!.cloudsYaml })
    const place = `s3:${fresh()}?endpoint=${lab!.s3.endpoint}`
    for (const _ of [1, 2]) assert.match(await refusal(place), /RequestTimeTooSkewed, request \S+\): this machine's clock and the service's differ too much; set the clock/)
    await world.ok(['repo', 'create', 'main', '--target', `swift:${fresh()}?cloud=demo`])
    const tree = makeTree(world, 'tree', MiB)
    await assertRestores(world, await backup(world, tree), tree)
  })
})
