/** The real command line, the real server, and real Swift, Keystone and S3: a repository in several places, through outages and moves. */
import assert from 'node:assert/strict'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { startLab, withoutLab, type Lab } from '../support/openstack-lab.js'
import { jsonLines, RoostWorld, SLOW } from '../support/run-roost.js'
import { assertRestores, backup, caughtUp, makeTree, MiB, patience, swiftPlace, targetsOf, tempAuthLogin } from '../support/target-world.js'

/** A server beside a lab of its own, with its repository on Swift. */
async function swiftWorld(t: TestContext, options: { cloud: string; services: ('swift' | 'keystone')[]; tokenSeconds?: number; objectServers?: 3; more?: string; server?: readonly string[]; create?: boolean }):
  Promise<{ world: RoostWorld; lab: Lab }> {
  const lab = await startLab(t, { services: options.services, ...(options.tokenSeconds === undefined ? {} : { tokenSeconds: options.tokenSeconds }),
    ...(options.objectServers === undefined ? {} : { devices: 3, replicas: 3, objectServers: options.objectServers }) })
  const world = new RoostWorld()
  t.after(() => world.close())
  world.environment['OS_CLIENT_CONFIG_FILE'] = lab.cloudsYaml
  await world.startServer(options.server)
  if (options.create !== false) await world.ok(['repo', 'create', 'main', '--target', `swift:packs/main?cloud=${options.cloud}${options.more ?? ''}`])
  return { world, lab }
}
describe('targets on real services', { skip: withoutLab }, () => {
  test('Keystone tokens that live ten seconds: backup, restore and check see no error', async (t) => {
    const { world } = await swiftWorld(t, { cloud: 'demo', services: ['swift', 'keystone'], tokenSeconds: SLOW ? 60 : 10 })
    const tree = makeTree(world, 'tree', SLOW ? 2048 * MiB : 80 * MiB)
    const id = await backup(world, tree, ...(SLOW ? [] : ['--limit-upload', '5M']))
    await assertRestores(world, id, tree)
    await world.ok(['check', '--read-data'])
    assert.doesNotMatch(world.log, /"level":50/)
  })

  test('Swift goes away in mid-push and comes back: the backup ends well, and everything is there', async (t) => {
    const { world, lab } = await swiftWorld(t, { cloud: 'tempauth', services: ['swift'] })
    const tree = makeTree(world, 'tree', 150 * MiB)
    const running = backup(world, tree, '--limit-upload', '30M')
    await patience(2_000)
    lab.stop('swift-proxy')
    await patience(SLOW ? 120_000 : 8_000)
    lab.start('swift-proxy')
    const id = await running
    await caughtUp(world)
    await assertRestores(world, id, tree)
    await world.ok(['check', '--read-data'])
  })

  test('the object server gone: what is in the spool is listed so, survives a crash, and is uploaded later', async (t) => {
    const { world, lab } = await swiftWorld(t, { cloud: 'tempauth', services: ['swift'], server: ['--commit-wait-seconds', '1'] })
    const tree = makeTree(world, 'tree', 5 * MiB)
    const first = await backup(world, tree)
    lab.stop('swift-object')
    await world.ok(['repo', 'set', '--durability', 'spool'])
    const second = await backup(world, makeTree(world, 'more', 5 * MiB, 2))
    assert.equal((await world.json(['snapshots'])).find((line) => line['id'] === second)?.['inSpool'], true)
    let failure: string | undefined
    for (let turns = 0; turns < 60 && failure === undefined; turns++) {
      await patience(250)
      failure = (await targetsOf(world))[0]!.failure
    }
    assert.match(failure ?? '', /503, X-Trans-Id .*: a part of the cluster may be down/)
    // A restart without the object server: the spool survives, and reads of what is only on Swift say what is down.
    await world.killServer()
    await world.startServer(['--commit-wait-seconds', '1'])
    const unreachable = await world.run(['restore', first, '--target', world.path('nowhere')], { environment: { ROOST_RETRY_SECONDS: '1' } })
    assert.notEqual(unreachable.code, 0)
    assert.match(unreachable.stderr, /STORE_UNAVAILABLE/)
    lab.start('swift-object')
    await caughtUp(world)
    await assertRestores(world, first, tree)
    await assertRestores(world, second, world.path('more'))
    await world.ok(['check', '--read-data'])
  })

  test('object servers killed one by one: one of three is not missed; with two gone "not yet durable" has its own exit code, and is finished without the client', async (t) => {
    const { world, lab } = await swiftWorld(t, { cloud: 'tempauth', services: ['swift'], objectServers: 3, server: ['--commit-wait-seconds', '1'] })
    const trees = new Map<string, string>()
    const first = makeTree(world, 'tree0', 20 * MiB)
    const running = backup(world, first, '--limit-upload', '5M')
    for (const part of ['swift-object', 'swift-object2', 'swift-object3'] as const) {
      lab.stop(part)
      await patience(1_000)
      lab.start(part)
    }
    trees.set(await running, first)
    lab.stop('swift-object2')
    const second = makeTree(world, 'tree1', 3 * MiB, 2)
    trees.set(await backup(world, second), second)
    lab.stop('swift-object3')
    for (const [id, tree] of trees) await assertRestores(world, id, tree) // one copy is enough to read
    const third = makeTree(world, 'tree2', 3 * MiB, 3)
    const result = await world.run(['backup', third], { environment: { ROOST_RETRY_SECONDS: '2' } })
    assert.equal(result.code, 4, result.stderr)
    assert.match(result.stderr, /NOT_YET_DURABLE/)
    lab.start('swift-object2')
    lab.start('swift-object3')
    await caughtUp(world)
    let last: Record<string, unknown> | undefined
    for (let turns = 0; turns < 100 && last === undefined; turns++) {
      await patience(200)
      last = (await world.json(['snapshots'])).find((line) => line['type'] === 'snapshot' && !trees.has(line['id'] as string) && line['inSpool'] !== true)
    }
    trees.set(last!['id'] as string, third)
    for (const [id, tree] of trees) await assertRestores(world, id, tree)
    await world.ok(['check', '--read-data'])
  })

  test('Keystone gone: a live token and a TempURL key go on reading, without either the error says what is down and not that credentials are wrong', async (t) => {
    const { world, lab } = await swiftWorld(t, { cloud: 'demo', services: ['swift', 'keystone'], create: false })
    const key = world.path('tempurl.key')
    writeFileSync(key, 'a key for reads without a token\n', { mode: 0o600 })
    await world.ok(['repo', 'create', 'main', '--target', `swift:signed?cloud=demo&tempurl-key-file=${key}`])
    await world.ok(['repo', 'create', 'plain', '--target', 'swift:plain?cloud=demo'])
    const plain = { environment: { ROOST_REPOSITORY: `${world.url}/plain` } }
    const tree = makeTree(world, 'tree', 5 * MiB)
    const signed = await backup(world, tree)
    const unsigned = (await world.json(['backup', tree], plain)).find((line) => line['type'] === 'snapshot')!['id'] as string
    lab.stop('keystone')
    await assertRestores(world, signed, tree)
    await world.ok(['restore', unsigned, '--target', world.path('live-token')], plain)
    // A new process has no token; the proxy's cache of old ones is of no use to it.
    await world.killServer()
    lab.stop('memcached')
    lab.start('memcached')
    await world.startServer()
    await assertRestores(world, signed, tree)
    const refused = await world.run(['restore', unsigned, '--target', world.path('no-token')], { environment: { ...plain.environment, ROOST_RETRY_SECONDS: '1' } })
    assert.notEqual(refused.code, 0)
    assert.match(refused.stderr, /identity service at http:\/\/127\.0\.0\.1:\d+\/v3 refuses connections/)
    assert.doesNotMatch(refused.stderr, /credentials of/)
    lab.start('keystone')
    await world.ok(['restore', unsigned, '--target', world.path('again')], plain)
  })

  test('two targets: one is emptied, restores are right and check --heal mends all', async (t) => {
    const { world, lab } = await swiftWorld(t, { cloud: 'tempauth', services: ['swift'] })
    await world.ok(['target', 'add', 'disk', `file:${world.path('disk')}`])
    const tree = makeTree(world, 'tree', 20 * MiB)
    const id = await backup(world, tree)
    await caughtUp(world)
    const place = swiftPlace('main', await tempAuthLogin(lab.swiftAuthUrl), 'packs')
    for (const name of await place.names()) await place.remove(name)
    assert.deepEqual(await place.names(), [])
    await patience(11_000) // until then Swift's replicas may not agree, as far as the server knows
    await assertRestores(world, id, tree)
    const report = jsonLines((await world.run(['check', '--heal', '--json'])).stdout)
    assert.ok(report.some((line) => line['type'] === 'healed'), JSON.stringify(report).slice(0, 500))
    await caughtUp(world)
    await world.ok(['check', '--read-data'])
    rmSync(world.path('disk', 'packs'), { recursive: true })
    await assertRestores(world, id, tree)
    await world.ok(['check', '--heal'])
    await world.ok(['check', '--read-data'])
  })

  test('a repository moves from disk to Swift under three clients, with the server killed in the middle', async (t) => {
    const { world, lab } = await swiftWorld(t, { cloud: 'tempauth', services: ['swift'], create: false })
    await world.ok(['repo', 'create', 'main'])
    const trees = [0, 1, 2].map((at) => makeTree(world, `tree${at}`, 30 * MiB, at + 1))
    const early = await backup(world, trees[0]!)
    await world.ok(['target', 'add', 'swift', 'swift:moved?cloud=tempauth', '--limit-upload', '20M'])
    const running = trees.map((tree, at) => backup(world, tree, '--source', `client${at}`, '--limit-upload', '10M'))
    await patience(1_500)
    await world.killServer()
    await world.startServer()
    const ids = await Promise.all(running)
    await world.ok(['target', 'set', 'swift', '--limit-upload', '0'])
    await world.ok(['target', 'backfill', 'swift'])
    await world.ok(['target', 'drain', 'main'])
    await world.ok(['target', 'remove', 'main'])
    rmSync(join(world.dataDirectory, 'repositories', 'main', 'store'), { recursive: true })
    await assertRestores(world, early, trees[0]!)
    for (const [at, id] of ids.entries()) await assertRestores(world, id, trees[at]!)
    await world.ok(['check', '--read-data'])
    assert.equal((await world.json(['snapshots'])).filter((line) => line['type'] === 'snapshot').length, 4)
    // What is counted is what is there.
    const place = swiftPlace('swift', await tempAuthLogin(lab.swiftAuthUrl), 'moved')
    const packs = (await place.names()).filter((name) => name.startsWith('packs/'))
    const bytes = (await Promise.all(packs.map((name) => place.read(name)))).reduce((sum, { byteLength }) => sum + byteLength, 0)
    const [counted] = await targetsOf(world)
    assert.deepEqual([counted!.packs, counted!.storedBytes], [packs.length, bytes])
  })

  test('credentials that are revoked, tokens included, and replaced in clouds.yaml: refused until then, and no restart', async (t) => {
    const { world, lab } = await swiftWorld(t, { cloud: 'mine', services: ['swift', 'keystone'], create: false })
    const { create, remove } = await applicationCredentials(lab)
    const clouds = readFileSync(lab.cloudsYaml, 'utf8')
    const use = ({ id, secret }: { id: string; secret: string }): void => {
      writeFileSync(lab.cloudsYaml, `${clouds}  mine:
    auth_type: v3applicationcredential
    auth: { auth_url: '${lab.keystoneUrl!}', application_credential_id: ${id}, application_credential_secret: '${secret}' }
`)
    }
    const first = await create('first'), second = await create('second')
    use(first)
    await world.ok(['repo', 'create', 'main', '--target', 'swift:mine/main?cloud=mine'])
    await world.ok(['repo', 'set', '--durability', 'spool'])
    await backup(world, makeTree(world, 'tree', MiB))
    await caughtUp(world)
    const { serverPid } = world
    await remove(first.id)
    lab.stop('memcached') // where Swift's proxy keeps its verdicts on tokens
    lab.start('memcached')
    const id = await backup(world, makeTree(world, 'more', MiB, 2))
    let status: Awaited<ReturnType<typeof targetsOf>>[number] | undefined
    for (let turns = 0; turns < 100 && status?.health !== 'refused'; turns++) {
      await patience(100)
      status = (await targetsOf(world))[0]
    }
    assert.match(status?.failure ?? '', /refuses the credentials of the cloud "mine"/)
    use(second)
    await caughtUp(world)
    assert.equal(world.serverPid, serverPid)
    await assertRestores(world, id, world.path('more'))
    await world.ok(['check', '--read-data'])
  })

  test('Swift frozen is a deadline, not a hang', async (t) => {
    const { world, lab } = await swiftWorld(t, { cloud: 'tempauth', services: ['swift'], server: ['--commit-wait-seconds', '1'] })
    await world.ok(['repo', 'set', '--durability', 'spool'])
    await backup(world, makeTree(world, 'tree', 3 * MiB))
    await caughtUp(world)
    lab.freeze('swift-proxy')
    try {
      await backup(world, makeTree(world, 'more', 3 * MiB, 5))
    } finally { lab.thaw('swift-proxy') }
    await caughtUp(world)
    await world.ok(['check', '--read-data'])
  })
})

/** Of the user demo, made and deleted through Keystone itself. */
async function applicationCredentials(lab: Lab): Promise<{ create(name: string): Promise<{ id: string; secret: string }>; remove(id: string): Promise<void> }> {
  const domain = { id: 'default' }
  const login = await fetch(`${lab.keystoneUrl!}/auth/tokens`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ auth: {
    identity: { methods: ['password'], password: { user: { name: 'demo', domain, password: 'demopw' } } }, scope: { project: { name: 'demo', domain } } } }) })
  const headers = { 'x-auth-token': login.headers.get('x-subject-token')!, 'content-type': 'application/json' }
  const { token } = await login.json() as { token: { user: { id: string } } }
  const url = `${lab.keystoneUrl!}/users/${token.user.id}/application_credentials`
  return {
    create: async (name) => {
      const answer = await fetch(url, { method: 'POST', headers, body: JSON.stringify({ application_credential: { name } }) })
      return (await answer.json() as { application_credential: { id: string; secret: string } }).application_credential
    },
    remove: async (id) => { assert.equal((await fetch(`${url}/${id}`, { method: 'DELETE', headers })).status, 204) },
  }
}
