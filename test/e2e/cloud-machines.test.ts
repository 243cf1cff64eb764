/** Machines of a real OpenStack: Keystone, Glance and Nova (its fake hypervisor) from Debian's packages, and the real command line. */
import assert from 'node:assert/strict'
import { spawn, type ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import { Cloud, type Json } from '../../src/openstack/cloud.js'
import { readCloudConfig } from '../../src/openstack/cloud-config.js'
import { parseMark } from '../../client/openstack/run-mark.js'
import { noise } from '../support/odd-tree.js'
import { startLab, withoutCloud, type Lab } from '../support/openstack-lab.js'
import { hasTool, jsonLines, roostCommand, RoostWorld, tool, type CommandResult } from '../support/run-roost.js'

const MiB = 1024 * 1024
if (withoutCloud !== false) console.log(`SKIPPED GROUP: machines in a real OpenStack — ${withoutCloud}`)

/** Sixteen bit code that writes a line to the first serial port and stands still. */
function bootSector(line: string): Buffer {
  const sector = Buffer.alloc(512)
  Buffer.from('31c08ed8be167cbaf803ac84c07403eeebf8faf4ebfd', 'hex').copy(sector)
  sector.write(`${line}\r\n`, 22, 'latin1')
  sector.writeUInt16LE(0xaa55, 510)
  return sector
}
const BOOTS = 'this disk boots'

describe('machines in OpenStack', { skip: withoutCloud }, () => {
  let lab: Lab, world: RoostWorld, demo: Cloud, admin: Cloud
  const cleanUps: (() => unknown)[] = []
  const disk = (): string => world.path('disk.img')
  before(async () => {
    lab = await startLab({ after: (work) => { cleanUps.push(work as () => unknown) } }, { services: ['keystone', 'glance', 'nova'] })
    world = new RoostWorld()
    Object.assign(world.environment, { OS_CLIENT_CONFIG_FILE: lab.cloudsYaml, OS_CLOUD: 'demo' })
    await world.startServer()
    await world.createRepository()
    const cloud = (name: string): Cloud => new Cloud({ readConfig: () => readCloudConfig(name, { OS_CLIENT_CONFIG_FILE: lab.cloudsYaml }), clock: systemClock })
    demo = cloud('demo')
    admin = cloud('admin')
    const image = Buffer.alloc(24 * MiB)
    bootSector(BOOTS).copy(image)
    noise(6 * MiB, 1).copy(image, 3 * MiB)
    writeFileSync(disk(), image)
    for (const [id, name] of [['1', 'tiny'], ['2', 'small-there']])
      await post(admin, '/flavors', { flavor: { id, name, vcpus: 1, ram: 64, disk: 1 } })
    await post(admin, '/flavors/1/os-extra_specs', { extra_specs: { 'hw:mem_page_size': 'small' } })
    for (const name of ['ann', 'ann-there']) await post(demo, '/os-keypairs', { keypair: { name } })
  }, { timeout: 600_000 })
  after(async () => {
    await demo?.close()
    await admin?.close()
    for (const work of cleanUps.reverse()) await work()
    await world?.close()
  })

  const post = async (cloud: Cloud, path: string, json: unknown): Promise<Json> => await cloud.ask('compute', { method: 'POST', path, json }) ?? {}
  const read = async (id: string): Promise<Json> => (await demo.get('compute', `/servers/${id}`))['server'] as Json
  const reasonOf = async (id: string): Promise<unknown> => (await read(id))['locked_reason']
  const imagesNamed = async (name: string): Promise<Json[]> => (await demo.get('image', `/images?name=${name}`))['images'] as Json[]
  async function until<T>(what: string, look: () => Promise<T | undefined>): Promise<T> {
    for (let turn = 0; turn < 900; turn++) {
      const found = await look()
      if (found !== undefined) return found
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    throw new Error(`not seen within 90 s: ${what}`)
  }
  async function downloaded(id: string): Promise<Buffer> {
    const { token, url } = await glanceAccess()
    return Buffer.from(await (await fetch(`${url}/v2/images/${id}/file`, { headers: { 'x-auth-token': token } })).arrayBuffer())
  }
  async function glanceAccess(): Promise<{ token: string; url: string }> {
    const answer = await fetch(`${lab.keystoneUrl!}/auth/tokens`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ auth: {
      identity: { methods: ['password'], password: { user: { name: 'demo', password: 'demopw', domain: { id: 'default' } } } }, scope: { project: { name: 'demo', domain: { id: 'default' } } } } }) })
    return { token: answer.headers.get('x-subject-token')!, url: lab.glanceUrl! }
  }
  /** A server that runs in Nova, from an image of its own. */
  async function newServer(name: string): Promise<string> {
    await world.ok(['backup', '--image', disk(), '--source', 'seed'])
    const [image] = await world.json(['restore', 'latest', '--source', 'seed', '--to-glance', `${name}-image`, '--image-property', 'hw_disk_bus=scsi', '--image-property', 'os_type=linux'])
    const made = await post(demo, '/servers', { server: { name, imageRef: image!['id'], flavorRef: '1', networks: 'none', key_name: 'ann', metadata: { role: 'shop' }, tags: ['prod', 'web'],
      description: 'sells things', config_drive: true } })
    const { id } = made['server'] as { id: string }
    await until('the server is active', async () => (await read(id))['status'] === 'ACTIVE' ? true : undefined)
    return id
  }
  const backupArgs = (id: string, ...more: string[]): string[] => ['backup', '--image', disk(), '--source', 'shop', '--nova-server', id, '--json', ...more]
  /** A backup that waits in the middle, after Nova was told, until it is let go. */
  function heldBackup(id: string, ...more: string[]): { child: ChildProcess; ended: Promise<CommandResult>; letGo(): void; isHeld(): Promise<unknown>; told(): string } {
    const gate = world.path(`gate-${Math.trunc(performance.now())}`)
    const args = backupArgs(id, '--pre', `touch ${gate}.reached; while [ ! -e ${gate} ]; do sleep 0.05; done`, ...more)
    const [command, ...rest] = roostCommand(args)
    const child = spawn(command!, rest, { stdio: ['ignore', 'pipe', 'pipe'], cwd: world.directory, detached: true, env: { ...process.env, ROOST_REPOSITORY: `${world.url}/main`,
      ROOST_TOKEN_FILE: world.adminTokenFile, HOME: world.path('home'), XDG_CONFIG_HOME: world.path('home', '.config'), ...world.environment } })
    let stdout = '', stderr = ''
    child.stdout.on('data', (bytes: Buffer) => { stdout += bytes.toString('latin1') })
    child.stderr.on('data', (bytes: Buffer) => { stderr += bytes.toString() })
    cleanUps.push(() => { writeFileSync(gate, '') }) // a hook outlives its killed command
    const ended = new Promise<CommandResult>((resolve) => child.once('close', (code, signal) => { resolve({ code, signal, stdout, stderr }) }))
    return { child, ended, told: () => stdout + stderr, letGo: () => { writeFileSync(gate, '') },
      isHeld: () => until('the backup reached its gate', async () => existsSync(`${gate}.reached`) ? await Promise.resolve(true) : undefined) }
  }
  const killGroup = (child: ChildProcess, signal: NodeJS.Signals): void => { process.kill(-child.pid!, signal) }

  test('a disk becomes an image in Glance, byte by byte; what is downloaded again is it, and boots', async () => {
    await world.ok(['backup', '--image', disk(), '--source', 'boots'])
    const [raw] = await world.json(['restore', 'latest', '--source', 'boots', '--to-glance', 'boots', '--image-property', 'hw_firmware_type=bios'])
    const bytes = await downloaded(raw!['id'] as string)
    assert.ok(bytes.equals(readFileSync(disk())))
    const { status, disk_format: format, min_disk: minDisk, visibility, os_hash_value: hash, hw_firmware_type: firmware } = (await imagesNamed('boots'))[0]!
    assert.deepEqual([status, format, minDisk, visibility, firmware], ['active', 'raw', 1, 'private', 'bios'])
    assert.equal(hash, createHash('sha512').update(bytes).digest('hex'))
    assert.equal(raw!['isVerified'], true)
    writeFileSync(world.path('back.img'), bytes)
    if (hasTool('qemu-system-x86_64')) assert.match(await bootedLine(world.path('back.img')), new RegExp(BOOTS))
    else console.log('SKIPPED GROUP: booting what Glance returned — qemu-system-x86_64 is not installed')

    const [qcow2] = await world.json(['restore', 'latest:disk.img', '--source', 'boots', '--to-glance', 'boots-q', '--format', 'qcow2'])
    writeFileSync(world.path('back.qcow2'), await downloaded(qcow2!['id'] as string))
    assert.equal((await imagesNamed('boots-q'))[0]!['disk_format'], 'qcow2')
    if (hasTool('qemu-img')) {
      tool('qemu-img', ['check', world.path('back.qcow2')])
      tool('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', world.path('back.qcow2'), disk()])
    }
  })
  test('an upload that is interrupted leaves no image behind', async () => {
    const big = world.path('big.img')
    writeFileSync(big, Buffer.alloc(0))
    tool('truncate', ['-s', '6G', big])
    await world.ok(['backup', '--image', big, '--source', 'big'])
    const child = world.start(['restore', 'latest', '--source', 'big', '--to-glance', 'interrupted'])
    const ended = new Promise<number | null>((resolve) => child.once('exit', (code) => { resolve(code) }))
    await until('the image is being saved', async () => (await imagesNamed('interrupted'))[0]?.['status'] === 'saving' ? true : undefined)
    child.kill('SIGINT')
    assert.equal(await ended, 130)
    assert.deepEqual(await imagesNamed('interrupted'), [])
  })
  test('while a backup runs its lock is seen in Nova and holds; a second one is refused; afterwards the lock is gone', async () => {
    const id = await newServer('locked')
    const held = heldBackup(id)
    await held.isHeld()
    const reason = await reasonOf(id)
    const mark = parseMark(reason)
    assert.ok(mark !== undefined, `locked by "${reason as string}": ${held.told()}`)
    assert.equal(mark?.process.pid, held.child.pid)
    assert.deepEqual([(await read(id))['locked'], (await read(id))['metadata']], [true, { role: 'shop' }])
    await assert.rejects(demo.ask('compute', { method: 'DELETE', path: `/servers/${id}` }), /409/)
    const second = await world.run(backupArgs(id))
    assert.equal(second.code, 1)
    assert.match(second.stderr, /is under way.*SERVER_MARKED/)
    assert.deepEqual(parseMark(await reasonOf(id)), mark)
    held.letGo()
    const { code, stderr, stdout } = await held.ended
    assert.equal(code, 0, stderr)
    assert.equal(await reasonOf(id), null)
    assert.deepEqual(jsonLines(stdout).find(({ type }) => type === 'nova'), { type: 'nova', serverId: id, described: true, mark: 'lock',
      warnings: ['user data was not read: Nova shows it to administrators only'] })

    const machine = JSON.parse((await world.ok(['dump', 'latest:machine.json', '--source', 'shop'])).stdout) as { name: string; consistency: string; nova: Record<string, Json & unknown[]> }
    const { flavor, image, metadata, tags, keyName, configDrive, server } = machine.nova
    assert.deepEqual([machine.name, machine.consistency, keyName, configDrive, metadata, tags], ['locked', 'crash', 'ann', true, { role: 'shop' }, ['prod', 'web']])
    assert.deepEqual(flavor, { name: 'tiny', vcpus: 1, ramMiB: 64, diskGiB: 1, extraSpecs: { 'hw:mem_page_size': 'small' } })
    assert.deepEqual([image!['name'], (image!['properties'] as Json)['hw_disk_bus'], server!['description'], server!['adminPass'], server!['locked']],
      ['locked-image', 'scsi', 'sells things', undefined, false])
  })
  test('a running machine: what QEMU says of it and what Nova says are in one description', { skip: hasTool('qemu-system-x86_64') ? false : 'qemu-system-x86_64 is not installed' }, async () => {
    const id = await newServer('runs')
    const socket = world.path('qmp.sock'), copy = world.path('runs.img')
    writeFileSync(copy, readFileSync(disk()))
    const machine = spawn('qemu-system-x86_64', ['-accel', 'tcg', '-display', 'none', '-nodefaults', '-m', '32', '-name', 'instance-1', '-qmp', `unix:${socket},server=on,wait=off`,
      '-drive', `file=${copy},format=raw,if=virtio`], { stdio: ['ignore', 'ignore', 'inherit'] })
    try {
      await until('QEMU listens', async () => await Promise.resolve(existsSync(socket) ? true : undefined))
      await world.ok(['backup', '--vm', socket, '--source', 'runs', '--nova-server', id, '--json'])
      const [{ machine: described }] = await world.json(['machine', 'latest', '--source', 'runs']) as [{ machine: { name: string; consistency: string; qemu: Json; nova: Json } }]
      assert.deepEqual([described.name, described.consistency, (described.qemu['disks'] as Json[]).length, described.nova['serverId']], ['instance-1', 'crash', 1, id])
      assert.equal(await reasonOf(id), null)
      const [plan] = await world.json(['restore', 'latest', '--source', 'runs', '--to-nova', '--dry-run'])
      assert.deepEqual([plan!['name'], plan!['problems'], (plan!['disks'] as Json[]).length], ['runs', [], 1])
    } finally { machine.kill('SIGKILL') }
  })
  test('a backup that is interrupted takes its lock back; one that is killed leaves it to the next one', async () => {
    const id = await newServer('killed')
    const interrupted = heldBackup(id)
    await interrupted.isHeld()
    interrupted.child.kill('SIGINT')
    assert.equal((await interrupted.ended).code, 130)
    assert.equal(await reasonOf(id), null)

    const killed = heldBackup(id)
    await killed.isHeld()
    killGroup(killed.child, 'SIGKILL')
    await killed.ended
    killed.letGo()
    assert.notEqual(parseMark(await reasonOf(id)), undefined)
    const next = await world.ok(backupArgs(id))
    assert.match(next.stderr, /lock of a backup that did not end .* was removed/)
    assert.equal(await reasonOf(id), null)

    const marked = heldBackup(id, '--nova-mark', 'metadata')
    await marked.isHeld()
    assert.notEqual(parseMark(((await read(id))['metadata'] as Json)['roost_backup']), undefined)
    killGroup(marked.child, 'SIGKILL')
    await marked.ended
    marked.letGo()
    await world.ok(backupArgs(id, '--nova-mark', 'none'))
    assert.deepEqual([(await read(id))['metadata'], (await read(id))['locked']], [{ role: 'shop' }, false])
  })
  test('somebody else\'s lock stays as it is, and so does the server of a user who may only read', async () => {
    const id = await newServer('theirs')
    await post(demo, `/servers/${id}/action`, { lock: { locked_reason: 'audit until May' } })
    const { stderr } = await world.ok(backupArgs(id))
    assert.match(stderr, /somebody else's lock is on it \("audit until May"\), which stays/)
    assert.equal(await reasonOf(id), 'audit until May')
    await post(demo, `/servers/${id}/action`, { unlock: null })
    const reader = await world.ok(backupArgs(id, '--os-cloud', 'reader'))
    const told = jsonLines(reader.stdout).find(({ type }) => type === 'nova')
    assert.deepEqual([told?.['described'], told?.['mark']], [true, 'none'])
    assert.match(reader.stderr, /not marked for the backup/)
  })
  test('after server and image are gone, a server like it is made from the record, by a mapping to other names', async () => {
    const id = await newServer('shop')
    await world.ok(backupArgs(id))
    const { id: imageId } = (await imagesNamed('shop-image'))[0] as { id: string }
    await demo.ask('compute', { method: 'DELETE', path: `/servers/${id}` })
    await until('the server is gone', async () => await read(id).then(() => undefined, () => true))
    await demo.ask('image', { method: 'DELETE', path: `/images/${imageId}` })
    await admin.ask('compute', { method: 'DELETE', path: '/flavors/1' })

    const body = JSON.parse((await world.ok(['machine', 'latest', '--source', 'shop', '--as', 'nova'])).stdout) as { server: Json }
    assert.deepEqual([body.server['name'], body.server['flavorRef'], body.server['tags'], body.server['networks']], ['shop', 'tiny', ['prod', 'web'], 'none'])
    const lacking = await world.run(['restore', 'latest', '--source', 'shop', '--to-nova', '--json'])
    assert.equal(lacking.code, 1)
    assert.match(lacking.stderr, /missing: This cloud has no flavor "tiny".*large enough are small-there/)
    const map = world.path('map.yaml')
    writeFileSync(map, 'flavors: { tiny: small-there }\nkeys: { ann: ann-there }\navailabilityZones: { nova: null }\n')
    const [plan] = await world.json(['restore', 'latest', '--source', 'shop', '--to-nova', '--map', map, '--dry-run'])
    assert.deepEqual([plan!['problems'], (plan!['flavor'] as Json)['name'], plan!['keyName']], [[], 'small-there', 'ann-there'])
    assert.deepEqual(await imagesNamed('shop'), []) // nothing was made so far

    const lines = await world.json(['restore', 'latest', '--source', 'shop', '--to-nova', '--map', map])
    const made = await read(lines.at(-1)!['serverId'] as string)
    const { name, status, metadata, tags, key_name: key, description, config_drive: configDrive } = made
    assert.deepEqual([name, status, metadata, (tags as string[]).sort(), key, description, configDrive], ['shop', 'ACTIVE', { role: 'shop' }, ['prod', 'web'], 'ann-there', 'sells things', 'True'])
    assert.equal((made['flavor'] as Json)['original_name'], 'small-there')
    const image = (await imagesNamed('shop'))[0]!
    assert.deepEqual([image['id'], image['hw_disk_bus'], image['os_type']], [(made['image'] as Json)['id'], 'scsi', 'linux'])
    assert.ok((await downloaded(image['id'] as string)).equals(readFileSync(disk())))
    const again = await world.json(['restore', 'latest', '--source', 'shop', '--to-nova', '--map', map, '--image-id', image['id'] as string, '--server-name', 'shop-2'])
    assert.equal((await read(again.at(-1)!['serverId'] as string))['name'], 'shop-2')
    await post(admin, '/flavors', { flavor: { id: '1', name: 'tiny', vcpus: 1, ram: 64, disk: 1 } })
  })
  test('Nova or Keystone down: the backup is made, with a warning; not where Nova is required', async () => {
    const id = await newServer('down')
    lab.stop('nova-api')
    const withoutNova = await world.ok(backupArgs(id))
    assert.match(withoutNova.stderr, /record is not in this snapshot: Nova at .* refuses connections/)
    lab.start('nova-api')
    const unknown = await world.ok(backupArgs('00000000-0000-0000-0000-000000000000'))
    assert.match(unknown.stderr, /record is not in this snapshot: Nova answers 404/)
    lab.stop('keystone')
    const withoutKeystone = await world.ok(backupArgs(id))
    assert.match(withoutKeystone.stderr, /identity service at .* refuses connections/)
    assert.equal(jsonLines(withoutKeystone.stdout).find(({ type }) => type === 'nova')?.['described'], false)
    const required = await world.run(backupArgs(id, '--require-nova'))
    assert.deepEqual([required.code, /CLOUD_UNAVAILABLE/.test(required.stderr)], [1, true])
    const toGlance = await world.run(['restore', 'latest', '--source', 'shop', '--to-glance', 'x'])
    assert.deepEqual([toGlance.code, /no token for OpenStack/.test(toGlance.stderr)], [1, true])
    lab.start('keystone')
    const restored = await world.run(['restore', 'latest', '--source', 'shop', '--to-nova'])
    assert.deepEqual([restored.code, /no record of a Nova server/.test(restored.stderr)], [1, true])
    for (const { stderr } of [withoutNova, withoutKeystone, required, toGlance]) assert.doesNotMatch(stderr, /demopw/)
  })

  async function bootedLine(path: string): Promise<string> {
    const args = ['-accel', 'tcg', '-display', 'none', '-nodefaults', '-serial', 'stdio', '-m', '32', '-drive', `file=${path},format=raw,if=ide`]
    const machine = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'inherit'] })
    try {
      let told = ''
      machine.stdout.on('data', (bytes: Buffer) => { told += bytes.toString('latin1') })
      return await until('the disk boots', async () => await Promise.resolve(told.includes('\n') ? told : undefined))
    } finally { machine.kill('SIGKILL') }
  }
})
