/** Recorded servers in another cloud: what resolves, what does not, and what is made. */
import assert from 'node:assert/strict'
import { describe, test, type TestContext } from 'node:test'
import type { NovaDescription } from '../../client/machine/machine-description.js'
import { MACHINE_FILE } from '../../client/machine/machine-description.js'
import { restoreServer, type RestoredServer, type RestoreServerOptions } from '../../client/openstack/restore-server.js'
import { EMPTY_MAP, parseServerMap } from '../../client/openstack/server-map.js'
import { planServer, recordedServerBody, serverBody, type ServerPlan } from '../../client/openstack/server-plan.js'
import { ENTRY_TYPES } from '../../client/tree/entry.js'
import { ImageTreeWriter } from '../../client/image/image-tree.js'
import { systemClock, type Clock } from '../../src/core/clock.js'
import type { Cloud } from '../../src/openstack/cloud.js'
import { CloudError, type CloudErrorCode } from '../../src/openstack/cloud-error.js'
import { fakeCloud, withImages, type FakeCloud } from '../support/fake-cloud.js'
import { MemoryRepository } from '../support/memory-repository.js'
import { noise } from '../support/odd-tree.js'
import { TreeBuilder } from '../support/tree-builder.js'

const signal = new AbortController().signal
const GIB = 1024 ** 3
const fails = (code: CloudErrorCode, words: RegExp) => (error: unknown): boolean => error instanceof CloudError && error.code === code && words.test(error.message)

const NOVA: NovaDescription = {
  serverId: 'srv-old', server: { name: 'web1', description: 'the shop', 'OS-EXT-SRV-ATTR:hostname': 'web1' },
  flavor: { name: 'm1.small', vcpus: 2, ramMiB: 2048, diskGiB: 20 },
  image: { id: 'img-old', properties: { hw_disk_bus: 'scsi' } }, keyName: 'ann', securityGroups: ['default', 'web'], metadata: { role: 'web', roost_backup: 'roost backup …' }, tags: ['prod'],
  ports: [{ networkId: 'net-old', networkName: 'private', mac: 'fa:16:3e:00:00:01', fixedIps: [{ address: 'fd00::5' }, { address: '10.0.0.5' }] },
    { networkId: 'net-dmz', networkName: 'dmz', mac: 'fa:16:3e:00:00:02', fixedIps: [{ address: '192.0.2.5' }] }],
  volumes: [{ id: 'vol-1', device: '/dev/vdb' }], availabilityZone: 'az1', configDrive: true, userData: 'aGk=', warnings: [],
}
/** Another cloud than the record is of. */
async function otherCloud(t: TestContext): Promise<{ fake: FakeCloud; cloud: Cloud }> {
  const { fake, cloud } = await fakeCloud(t)
  fake.json('GET /compute/flavors/detail', { flavors: [
    { id: 'f1', name: 's.tiny', vcpus: 1, ram: 512, disk: 1 }, { id: 'f2', name: 's.small', vcpus: 2, ram: 2048, disk: 20 }, { id: 'f3', name: 's.large', vcpus: 8, ram: 8192, disk: 0 }] })
  fake.json('GET /compute/os-keypairs/ann-2', { keypair: { name: 'ann-2' } })
  fake.json('GET /compute/os-availability-zone', { availabilityZoneInfo: [{ zoneName: 'nova', zoneState: { available: true } }, { zoneName: 'down', zoneState: { available: false } }] })
  const networks = [{ id: 'net-lan', name: 'lan' }, { id: 'net-a', name: 'twice' }, { id: 'net-b', name: 'twice' }]
  fake.on('GET /network/networks', ({ path }) => ({ status: 200, json: { networks: networks.filter(({ name }) => name === new URL(path, 'http://x').searchParams.get('name')) } }))
  for (const network of networks) fake.json(`GET /network/networks/${network.id}`, { network })
  fake.json('GET /network/subnets', { subnets: [{ cidr: '192.168.7.0/24' }, { cidr: 'fd07::/64' }] })
  fake.on('GET /network/ports', ({ path }) => ({ status: 200, json: { ports: path.includes('192.168.7.66') ? [{ id: 'port-other' }] : [] } }))
  fake.on('GET /network/security-groups', ({ path }) => ({ status: 200, json: { security_groups: path.endsWith('=default') ? [{ id: 'sg', name: 'default' }] : [] } }))
  return { fake, cloud }
}
const MAP = { flavors: { 'm1.small': 's.small' }, networks: { private: 'lan', 'net-dmz': null }, fixedIps: { '10.0.0.5': '192.168.7.5', 'fd00::5': null }, keys: { ann: 'ann-2' },
  securityGroups: { web: null }, availabilityZones: { az1: null } }

describe('a plan', () => {
  test('without a mapping names everything that the other cloud lacks, at once, with what would do', async (t) => {
    const { cloud } = await otherCloud(t)
    const { problems, flavor, networks } = await planServer(cloud, NOVA, { map: EMPTY_MAP, bootBytes: 3 * GIB }, signal)
    assert.deepEqual([flavor, networks], [undefined, []])
    assert.equal(problems.length, 6)
    assert.match(problems[0]!, /no flavor "m1.small" \(2 processors, 2048 MiB, disk 20 GiB\).*large enough are s.small, s.large/)
    assert.match(problems[1]!, /no network "net-old".*"networks"/)
    assert.match(problems[2]!, /no network "net-dmz"/)
    assert.match(problems[3]!, /no security group "web"/)
    assert.match(problems[4]!, /no key pair "ann"/)
    assert.match(problems[5]!, /no availability zone "az1".*one of nova,/)
  })
  test('with a mapping becomes the request that Nova takes', async (t) => {
    const { cloud } = await otherCloud(t)
    const plan = await planServer(cloud, NOVA, { map: parseServerMap(MAP), bootBytes: 3 * GIB }, signal)
    assert.deepEqual(plan.problems, [])
    assert.deepEqual(serverBody(plan, 'img-new'), { server: { name: 'web1', imageRef: 'img-new', flavorRef: 'f2', metadata: { role: 'web' }, tags: ['prod'], key_name: 'ann-2', config_drive: true,
      networks: [{ uuid: 'net-lan', fixed_ip: '192.168.7.5' }], security_groups: [{ name: 'default' }], user_data: 'aGk=', description: 'the shop', hostname: 'web1' } })
    assert.match(plan.notes.join('\n'), /volume vol-1 \(\/dev\/vdb\)/)
    assert.match(plan.notes.join('\n'), /MAC/)
  })
  test('asks for addresses that fit the network and are free', async (t) => {
    const { cloud } = await otherCloud(t)
    const problemsWith = async (fixedIps: Record<string, string | null>): Promise<string> =>
      (await planServer(cloud, NOVA, { map: parseServerMap({ ...MAP, fixedIps }), bootBytes: GIB }, signal)).problems.join('\n')
    assert.match(await problemsWith({}), /address 10\.0\.0\.5 fits no subnet \(192\.168\.7\.0\/24, fd07::\/64\) in the network "lan"/)
    assert.match(await problemsWith({ '10.0.0.5': '192.168.7.66' }), /192\.168\.7\.66 is taken by the port port-other/)
    assert.match(await problemsWith({ '10.0.0.5': 'ten', 'fd00::5': null }), /ten is no IP address/)
    assert.equal(await problemsWith({ '10.0.0.5': null, 'fd00::5': 'fd07::5' }), '')
  })
  test('refuses a flavor whose disk is too small, and a name that two networks have', async (t) => {
    const { cloud } = await otherCloud(t)
    const map = parseServerMap({ ...MAP, flavors: { 'm1.small': 's.tiny' }, networks: { private: 'twice', dmz: 'net-a' }, fixedIps: { ...MAP.fixedIps, '192.0.2.5': null } })
    const { problems } = await planServer(cloud, NOVA, { map, bootBytes: 3 * GIB }, signal)
    assert.deepEqual(problems.map((text) => text.split(':')[0]), ['The flavor "s.tiny" has a disk of 1 GiB, and the image needs 3 GiB', 'This cloud has 2 networks called "twice"'])
  })
  test('of a cloud without a network service: cards must be given up by the mapping', async (t) => {
    const { fake, cloud } = await otherCloud(t)
    fake.services = ['compute', 'image']
    assert.match((await planServer(cloud, NOVA, { map: parseServerMap(MAP), bootBytes: GIB }, signal)).problems.join(), /no network service/)
    const plan = await planServer(cloud, NOVA, { map: parseServerMap({ ...MAP, networks: { private: null, dmz: null } }), bootBytes: GIB }, signal)
    assert.deepEqual(plan.problems, [])
    assert.equal((serverBody(plan, 'i')['server'] as Record<string, unknown>)['networks'], 'none')
  })
  test('for an old Nova leaves out what it does not take', async (t) => {
    const { fake, cloud } = await otherCloud(t)
    fake.version('2.36')
    const plan = await planServer(cloud, NOVA, { map: parseServerMap({ ...MAP, networks: { private: null, dmz: null } }), bootBytes: GIB, serverName: 'web2' }, signal)
    assert.match(plan.problems.join(), /no servers without networks/)
    assert.deepEqual([plan.tags, plan.hostname, plan.name, plan.description], [[], undefined, 'web2', 'the shop'])
  })
  test('a record alone as a request has the names that it has', () => {
    assert.deepEqual((recordedServerBody(NOVA)['server'] as Record<string, unknown>)['networks'], [{ uuid: 'net-old', fixed_ip: 'fd00::5' }, { uuid: 'net-dmz', fixed_ip: '192.0.2.5' }])
  })
  test('a mapping file with a typing error is refused', () => {
    assert.equal(parseServerMap({ networks: { 42: 17 } }).networks.get('42'), '17')
    for (const [value, words] of [[{ flavours: {} }, /"flavours" is not a section/], [{ flavors: { a: null } }, /maps "a" to something that is no name/],
      [{ keys: { a: {} } }, /not null/], [[], /not a table/], [{ keys: 'x' }, /"keys" is not a table/]] as const)
      assert.throws(() => parseServerMap(value), fails('PLAN_UNRESOLVED', words))
  })
})

interface Scene { fake: FakeCloud; images: ReturnType<typeof withImages>; events: string[]; restore(options?: Partial<RestoreServerOptions>): Promise<RestoredServer> }
async function scene(t: TestContext, disks: readonly string[] = ['vda'], nova: NovaDescription | null = NOVA): Promise<Scene> {
  const { fake, cloud } = await otherCloud(t)
  const images = withImages(fake)
  const repository = new MemoryRepository(), tree = new TreeBuilder(repository)
  const entries = []
  for (const [i, name] of disks.entries()) {
    const writer = new ImageTreeWriter(tree.sink, { imageBytes: 1024 ** 2, chunkBytes: 131_072 })
    await writer.add(0, tree.data(noise(131_072, i)))
    entries.push(tree.entry(name, ENTRY_TYPES.image, { content: await writer.finish() }))
  }
  const machine = Buffer.from(JSON.stringify({ format: 1, name: 'web1', capturedAt: '2026-01-31T02:00:00Z', consistency: 'crash', ...(nova && { nova }) }))
  entries.push(tree.file(MACHINE_FILE, [machine]))
  await tree.snapshot(entries)
  const events: string[] = []
  return { fake, images, events, restore: (options = {}) => restoreServer(repository, cloud, {
    snapshot: 'latest', map: parseServerMap(MAP), imageFormat: 'raw', imageProperties: {}, isDryRun: false,
    waitMs: 60_000, clock: quick, ...options }, {
    onPlan: (plan: ServerPlan, planned) => { events.push(`plan ${plan.problems.length} ${planned.map(({ imageName }) => imageName).join()}`) },
    onUpload: ({ name }) => { events.push(`upload ${name}`) },
    onImage: ({ id }) => { events.push(`image ${id}`) }, onCreated: (id) => { events.push(`server ${id}`) }, onStatus: (status) => { events.push(status) },
  }, signal) }
}
/** Waiting for Nova takes no time; the watch over an upload does. */
const quick: Clock = { ...systemClock, monotonicMs: () => systemClock.monotonicMs() + skipped, sleep: async (ms, until) => {
  if (ms > 2_000) return await systemClock.sleep(ms, until)
  skipped += ms
  await Promise.resolve()
} }
let skipped = 0
function withBirth(fake: FakeCloud, states: Record<string, unknown>[]): void {
  fake.on('POST /compute/servers', { status: 202, json: { server: { id: 'srv-new', adminPass: 'x' } } })
  fake.on('GET /compute/servers/srv-new', () => ({ status: 200, json: { server: { id: 'srv-new', ...(states.length > 1 ? states.shift() : states[0]) } } }))
}

describe('a server comes back', () => {
  test('from its disk and its record; further disks come as images', async (t) => {
    const { fake, images, events, restore } = await scene(t, ['vda', 'vdb'])
    withBirth(fake, [{ status: 'BUILD' }, { status: 'BUILD' }, { status: 'ACTIVE' }])
    const made = await restore()
    assert.deepEqual(events, ['plan 0 web1,web1-vdb', 'upload vda', 'image image-1', 'upload vdb', 'image image-2', 'server srv-new', 'BUILD', 'ACTIVE'])
    assert.deepEqual([made.serverId, made.images.length, images.get('image-1')!.image['hw_disk_bus']], ['srv-new', 2, 'scsi'])
    assert.equal(((fake.asked.find(({ method, path }) => method === 'POST' && path === '/compute/servers')!.json!)['server'] as Record<string, unknown>)['imageRef'], 'image-1')
  })
  test('from an image that is there already, without an upload', async (t) => {
    const { fake, events, restore } = await scene(t)
    withBirth(fake, [{ status: 'ACTIVE' }])
    fake.json('GET /image/images/kept', { id: 'kept', status: 'active', virtual_size: 1024 ** 2 })
    await restore({ imageId: 'kept' })
    assert.deepEqual(events, ['plan 0 web1', 'server srv-new', 'ACTIVE'])
    await assert.rejects(restore({ imageId: 'gone' }), fails('PLAN_UNRESOLVED', /One thing of the record/))
  })
  test('not in a dry run, nor while anything does not resolve: then nothing is made', async (t) => {
    const { fake, events, restore } = await scene(t)
    assert.deepEqual((await restore({ isDryRun: true })).serverId, undefined)
    await assert.rejects(restore({ map: EMPTY_MAP }), fails('PLAN_UNRESOLVED', /6 things of the record cannot be had in this cloud.*nothing was made/))
    assert.deepEqual(events, ['plan 0 web1', 'plan 6 web1'])
    assert.equal(fake.asked.filter(({ method }) => method !== 'GET').length, 0)
  })
  test('or fails with Nova\'s own fault, or when it takes too long', async (t) => {
    const { fake, events, restore } = await scene(t)
    withBirth(fake, [{ status: 'BUILD' }, { status: 'ERROR', fault: { message: 'No valid host was found.' } }])
    await assert.rejects(restore(), fails('SERVER_FAILED', /No valid host was found/))
    assert.equal(events.includes('server srv-new'), true)
    withBirth(fake, [{ status: 'BUILD' }])
    await assert.rejects(restore(), fails('SERVER_FAILED', /status BUILD after 60 s/))
  })
  test('only with a record', async (t) => {
    const { restore } = await scene(t, ['vda'], null)
    await assert.rejects(restore(), fails('PLAN_UNRESOLVED', /no record of a Nova server/))
  })
})
