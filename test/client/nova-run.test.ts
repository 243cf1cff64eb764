/** A backup in Nova's eyes: the mark, whose it is, and what is read of a server. */
import assert from 'node:assert/strict'
import { describe, test, type TestContext } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import { systemRandom } from '../../src/core/random.js'
import { CloudError } from '../../src/openstack/cloud-error.js'
import type { Cloud } from '../../src/openstack/cloud.js'
import { beginNova, type NovaRun, type NovaRunOptions } from '../../client/openstack/nova-run.js'
import { readServer } from '../../client/openstack/read-server.js'
import { formatMark, judgeMark, newMark, parseMark, type RunMark } from '../../client/openstack/run-mark.js'
import { fakeCloud, withServer, type FakeCloud } from '../support/fake-cloud.js'

const signal = new AbortController().signal
const mark = (more: Partial<RunMark['process']> = {}): RunMark => {
  const own = newMark(systemRandom, '2026-01-31T02:00:00Z')
  return { ...own, process: { ...own.process, ...more } }
}
interface Scene { fake: FakeCloud; cloud: Cloud; server: ReturnType<typeof withServer>; warnings: string[]; begin(options?: Partial<NovaRunOptions>, until?: AbortSignal): Promise<NovaRun> }
async function scene(t: TestContext, more: Record<string, unknown> = {}): Promise<Scene> {
  const { fake, cloud } = await fakeCloud(t)
  const warnings: string[] = []
  return { fake, cloud, server: withServer(fake, more), warnings, begin: (options = {}, until = signal) => beginNova(cloud, { serverId: 'srv-1', mark: 'lock', takesOver: false, isRequired: false,
    clock: systemClock, random: systemRandom, warn: (text) => { warnings.push(text) }, ...options }, until) }
}
const marked = (error: unknown): boolean => error instanceof CloudError && error.code === 'SERVER_MARKED'

describe('the text of a mark', () => {
  test('says run, host, time and process, and nothing else passes for one', () => {
    const own = mark()
    const text = formatMark(own)
    assert.match(text, /^roost backup [0-9a-f]{16} on \S+ since 2026-01-31T02:00:00Z \[/)
    assert.ok(text.length <= 255)
    assert.deepEqual(parseMark(text), own)
    for (const other of ['maintenance', `${text} `, text.replace('roost', 'Roost'), text.replace('[', '['.repeat(300)), '', null, 17]) assert.equal(parseMark(other), undefined)
  })
  test('is judged by the process that wrote it, where that can be seen', () => {
    const me = mark().process
    assert.equal(judgeMark(mark(), me), 'alive')
    assert.equal(judgeMark(mark({ startTicks: '1' }), me), 'dead') // another process has the number now
    assert.equal(judgeMark(mark({ pid: 4_194_304 }), me), 'dead')
    assert.equal(judgeMark(mark({ boot: '00000000' }), me), 'dead')
    assert.equal(judgeMark(mark({ namespace: '1' }), me), 'unknown')
    assert.equal(judgeMark(mark({ machine: '00000000' }), me), 'unknown')
    assert.equal(judgeMark(mark(), me, () => 'hidden'), 'unknown')
  })
})

describe('a run', () => {
  test('locks the server, reads its record, and unlocks', async (t) => {
    const { server, begin, warnings } = await scene(t)
    const run = await begin()
    assert.deepEqual([run.mark, run.description?.serverId, server.locked], ['lock', 'srv-1', true])
    assert.notEqual(parseMark(server.locked_reason), undefined)
    await run.end()
    await run.end()
    assert.deepEqual([server.locked, warnings], [false, []])
  })
  test('leaves somebody else\'s lock where it is, and warns', async (t) => {
    const { server, begin, warnings } = await scene(t, { locked: true, locked_reason: 'maintenance till May' })
    const run = await begin()
    assert.equal(run.mark, 'none')
    assert.match(warnings.join('\n'), /maintenance till May.*stays[\s\S]*not marked.*locked/)
    await run.end()
    assert.deepEqual([server.locked, server.locked_reason], [true, 'maintenance till May'])
  })
  test('marks the metadata where it may not lock, and keeps the mark out of the record', async (t) => {
    const { fake, server, begin, warnings } = await scene(t, { metadata: { role: 'web' } })
    fake.on('POST /compute/servers/srv-1/action', { status: 403, json: { forbidden: { message: 'Policy does not allow os_compute_api:os-lock-server:lock' } } })
    const run = await begin()
    assert.equal(run.mark, 'metadata')
    assert.notEqual(parseMark(server.metadata['roost_backup']), undefined)
    assert.deepEqual(run.description?.metadata, { role: 'web' })
    await run.end()
    assert.deepEqual(server.metadata, { role: 'web' })
    assert.match(warnings.join(), /os-lock-server/)
  })
  test('marks the metadata of a Nova that takes no reasons', async (t) => {
    const { fake, server, begin } = await scene(t)
    fake.version('2.60')
    const run = await begin()
    assert.deepEqual([run.mark, server.locked, typeof server.metadata['roost_backup']], ['metadata', false, 'string'])
    await run.end()
  })
  test('is refused while another one of this machine goes on', async (t) => {
    const { server, begin } = await scene(t)
    const first = await begin()
    await assert.rejects(begin(), marked)
    await assert.rejects(begin({ mark: 'none' }), marked)
    assert.equal(server.locked, true)
    await first.end()
    const second = await begin({ mark: 'metadata' })
    await assert.rejects(begin(), marked)
    await second.end()
    assert.deepEqual([server.locked, server.metadata], [false, {}])
  })
  test('removes what a dead run left, and not what another machine\'s run may still need', async (t) => {
    const { server, begin, warnings } = await scene(t)
    Object.assign(server, { locked: true, locked_reason: formatMark(mark({ startTicks: '1' })), metadata: { roost_backup: formatMark(mark({ boot: 'ffffffff' })) } })
    const run = await begin()
    assert.equal(run.mark, 'lock')
    assert.deepEqual(server.metadata, {})
    assert.equal(warnings.filter((text) => /did not end .* was removed/.test(text)).length, 2)
    await run.end()

    Object.assign(server, { locked: true, locked_reason: formatMark(mark({ machine: '00000000' })) })
    await assert.rejects(begin(), (error: unknown) => marked(error) && /--nova-take-over/.test((error as Error).message))
    assert.equal(server.locked, true)
    await (await begin({ takesOver: true })).end()
    assert.equal(server.locked, false)
  })
  test('that is beaten in the moment of its lock finds the other\'s reason there', async (t) => {
    const { fake, server, begin } = await scene(t)
    fake.on('POST /compute/servers/srv-1/action', () => {
      Object.assign(server, { locked: true, locked_reason: formatMark(mark()) })
      return { status: 202 }
    })
    await assert.rejects(begin(), marked)
    assert.equal(server.locked, true)
  })
  test('that is interrupted while it locks takes the lock back', async (t) => {
    const { fake, server, begin } = await scene(t)
    const abort = new AbortController()
    const act = fake.answers.get('POST /compute/servers/srv-1/action')!
    fake.on('POST /compute/servers/srv-1/action', async (asked, request, response) => {
      const answer = await act(asked, request, response)
      if (!abort.signal.aborted) abort.abort(new DOMException('Interrupted.', 'AbortError'))
      return answer
    })
    await assert.rejects(begin({}, abort.signal), { name: 'AbortError' })
    assert.equal(server.locked, false)
  })
  test('does not take back what somebody put in its place', async (t) => {
    const { server, begin } = await scene(t)
    const run = await begin()
    server.locked_reason = 'an administrator wants it so'
    await run.end()
    assert.deepEqual([server.locked, server.locked_reason], [true, 'an administrator wants it so'])
  })
  test('whose mark cannot be removed says how it goes away', async (t) => {
    const { fake, begin, warnings } = await scene(t)
    const run = await begin()
    fake.on('POST /compute/servers/srv-1/action', { status: 403, json: {} })
    await run.end()
    assert.match(warnings.join(), /openstack server unlock/)
  })
  test('asks again for the lock while Nova is overloaded, and has the record where the lock cannot be had', async (t) => {
    const { fake, server, begin, warnings } = await scene(t)
    const act = fake.answers.get('POST /compute/servers/srv-1/action')!
    let failures = 1
    fake.on('POST /compute/servers/srv-1/action', (asked, request, response) => failures-- > 0 ? { status: 500, json: {} } : act(asked, request, response))
    const run = await begin()
    assert.deepEqual([run.mark, server.locked, warnings], ['lock', true, []])
    await run.end()
    failures = 3
    const second = await begin()
    assert.deepEqual([second.mark, second.description?.serverId, server.locked], ['none', 'srv-1', false])
    assert.match(warnings.join(), /not marked for the backup.*Nova answers 500/)
    await second.end()
  })
  test('waits for a cloud that says nothing only so long', async (t) => {
    const { fake, begin, warnings } = await scene(t)
    fake.on('GET /compute/servers/srv-1', () => new Promise(() => undefined))
    const run = await begin({ patienceMs: 300 })
    assert.deepEqual([run.description, run.mark], [undefined, 'none'])
    assert.match(warnings.join(), /did not answer within 0.3 s/)
    await assert.rejects(begin({ patienceMs: 300, isRequired: true }), { code: 'CLOUD_UNAVAILABLE' })
  })
  test('goes on without Nova, and does not where Nova is required', async (t) => {
    const { fake, begin, warnings } = await scene(t)
    fake.on('GET /compute/servers/srv-1', { status: 500, json: {} })
    const run = await begin()
    assert.deepEqual([run.description, run.mark], [undefined, 'none'])
    assert.match(warnings.join(), /record is not in this snapshot: Nova answers 500/)
    const asked = fake.asked.length
    await run.end()
    assert.equal(fake.asked.length, asked) // nothing was placed, so nobody is asked
    await assert.rejects(begin({ isRequired: true }), /500/)
    fake.on('GET /compute/servers/srv-1', { status: 404, json: { itemNotFound: { message: 'Instance srv-1 could not be found.' } } })
    await begin()
    assert.match(warnings.join(), /could not be found/)
  })
})

describe('the record of a server', () => {
  test('has its flavor, image, ports with names of networks, volumes, groups, key, tags; neither links nor passwords', async (t) => {
    const { fake, cloud } = await scene(t, { image: { id: 'img-1' }, key_name: 'ann', tags: ['web'], security_groups: [{ name: 'default' }, { name: 'default' }], config_drive: 'True',
      adminPass: 'x', links: [{}], 'OS-EXT-AZ:availability_zone': 'az1', 'OS-EXT-SRV-ATTR:user_data': 'aGk=', 'os-extended-volumes:volumes_attached': [{ id: 'vol-1', delete_on_termination: true }] })
    fake.json('GET /image/images/img-1', { id: 'img-1', name: 'debian', hw_disk_bus: 'scsi' })
    fake.json('GET /network/ports', { ports: [{ network_id: 'net-2', mac_address: 'fa:16:3e:00:00:09', fixed_ips: [], created_at: '2026-01-01T00:00:02Z' },
      { id: 'p', created_at: '2026-01-01T00:00:01Z', network_id: 'net-1', mac_address: 'fa:16:3e:00:00:01', fixed_ips: [{ subnet_id: 'sub-1', ip_address: '10.0.0.5' }] }] })
    fake.json('GET /network/networks/net-1', { network: { id: 'net-1', name: 'private' } })
    fake.json('GET /compute/servers/srv-1/os-volume_attachments', { volumeAttachments: [{ volumeId: 'vol-1', device: '/dev/vdb' }] })
    const nova = await readServer(cloud, 'srv-1', signal)
    assert.deepEqual(nova.warnings.map((text) => text.split(' could')[0]), ['the network net-2'])
    assert.deepEqual(nova.flavor, { name: 'm1.small', vcpus: 2, ramMiB: 2048, diskGiB: 20 })
    assert.deepEqual(nova.ports, [{ networkId: 'net-1', networkName: 'private', mac: 'fa:16:3e:00:00:01', fixedIps: [{ address: '10.0.0.5', subnetId: 'sub-1' }] },
      { networkId: 'net-2', mac: 'fa:16:3e:00:00:09', fixedIps: [] }])
    assert.deepEqual(nova.volumes, [{ id: 'vol-1', device: '/dev/vdb', deleteOnTermination: true }])
    assert.deepEqual([nova.image?.name, nova.keyName, nova.tags, nova.securityGroups, nova.configDrive, nova.availabilityZone, nova.userData, nova.projectId],
      ['debian', 'ann', ['web'], ['default'], true, 'az1', 'aGk=', 'project-1'])
    assert.deepEqual(Object.keys(nova.server).filter((name) => ['adminPass', 'links', 'OS-EXT-SRV-ATTR:user_data'].includes(name)), [])
  })
  test('of an old Nova: the flavor is looked up, and ports come from Nova where there is no network service', async (t) => {
    const { fake, cloud } = await scene(t, { flavor: { id: 'f-1' }, image: { id: 'img-gone' } })
    fake.version('2.20')
    fake.services = ['compute', 'image']
    fake.json('GET /compute/flavors/f-1', { flavor: { id: 'f-1', name: 'big', vcpus: 8, ram: 16384, disk: 40 } })
      .json('GET /compute/flavors/f-1/os-extra_specs', { extra_specs: { 'hw:cpu_policy': 'dedicated' } })
    fake.json('GET /compute/servers/srv-1/os-interface', { interfaceAttachments: [{ net_id: 'net-1', mac_addr: 'fa:16:3e:00:00:02', fixed_ips: [{ ip_address: '10.0.0.6' }] }] })
    const nova = await readServer(cloud, 'srv-1', signal)
    assert.deepEqual(nova.flavor, { name: 'big', vcpus: 8, ramMiB: 16384, diskGiB: 40, extraSpecs: { 'hw:cpu_policy': 'dedicated' } })
    assert.deepEqual(nova.ports, [{ networkId: 'net-1', mac: 'fa:16:3e:00:00:02', fixedIps: [{ address: '10.0.0.6' }] }])
    assert.deepEqual(nova.image, { id: 'img-gone', properties: {} })
    assert.deepEqual(nova.warnings.map((text) => text.split(/ (?:was|were|could|is|are)|'s/)[0]), ['the image img-gone', 'this cloud', 'tags', 'user data'])
  })
  test('has at least the addresses, when neither Neutron nor Nova tells the ports', async (t) => {
    const { fake, cloud } = await scene(t, { addresses: { private: [
      { addr: '10.0.0.7', version: 4, 'OS-EXT-IPS-MAC:mac_addr': 'fa:16:3e:00:00:03', 'OS-EXT-IPS:type': 'fixed' },
      { addr: 'fd00::7', version: 6, 'OS-EXT-IPS-MAC:mac_addr': 'fa:16:3e:00:00:03', 'OS-EXT-IPS:type': 'fixed' },
      { addr: '192.0.2.7', version: 4, 'OS-EXT-IPS-MAC:mac_addr': 'fa:16:3e:00:00:03', 'OS-EXT-IPS:type': 'floating' }] } })
    fake.on('GET /network/ports', { status: 403, json: {} })
    const nova = await readServer(cloud, 'srv-1', signal)
    assert.deepEqual(nova.ports, [{ networkName: 'private', mac: 'fa:16:3e:00:00:03', fixedIps: [{ address: '10.0.0.7' }, { address: 'fd00::7' }] }])
    assert.match(nova.warnings.join('\n'), /ports could not be read[\s\S]*interfaces could not be read/)
  })
})
