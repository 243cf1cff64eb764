/** The parts of live backups by themselves: monitors and agents that misbehave, which bitmap is believed, the fleece, and the way out of QEMU. */
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { parentMachine, planDisk, type ParentMachine } from '../../client/machine/bitmap-plan.js'
import { listDisks, type MachineDisk } from '../../client/machine/block-devices.js'
import { Fleece } from '../../client/machine/fleece.js'
import { openAgent } from '../../client/machine/guest-agent.js'
import { tryLock } from '../../client/machine/machine-lock.js'
import { QemuRefusal, type Monitor } from '../../client/machine/monitor.js'
import { bitmapName, bitmapOwner, ownerOfBitmap, parseRunName, runName } from '../../client/machine/names.js'
import { QmpSocket } from '../../client/machine/qmp-socket.js'
import { tearDown } from '../../client/machine/tear-down.js'
import { qemuOwner } from '../../client/machine/virsh.js'
import { systemClock } from '../../src/core/clock.js'
import type { SnapshotRecord } from '../../src/core/messages.js'
import { systemRandom } from '../../src/core/random.js'
import { hasClientCode, type ClientErrorCode } from '../../src/protocol/client-errors.js'

const GREETING = '{"QMP": {"version": {}, "capabilities": []}}\n'
const code = (wanted: ClientErrorCode) => (error: unknown): boolean => hasClientCode(error, wanted)

/** A unix socket at which every line goes to `answer`. */
async function serve(t: TestContext, onConnect: (socket: Socket) => void, answer: (line: string, socket: Socket) => void): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'roost-qmp-'))
  const path = join(directory, 's')
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    let rest = ''
    socket.on('data', (bytes: Buffer) => {
      const lines = (rest + bytes.toString('latin1')).split('\n')
      rest = lines.pop()!
      for (const line of lines) answer(line, socket)
    })
    onConnect(socket)
  })
  await new Promise<void>((resolve) => server.listen(path, resolve))
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
    rmSync(directory, { recursive: true, force: true })
  })
  return path
}
const idOf = (line: string): number => (JSON.parse(line) as { id: number }).id

describe('a QMP socket', () => {
  test('answers by id, between events, in pieces, and says what QEMU refuses', async (t) => {
    const path = await serve(t, (socket) => { socket.write(GREETING) }, (line, socket) => {
      const id = idOf(line)
      if (line.includes('qmp_capabilities')) { socket.write(`{"return": {}, "id": ${id}}\n`); return }
      socket.write('{"event": "STOP", "data": {}}\nno json\n[1]\n{"return": "of somebody else", "id": 999}\n')
      const text = line.includes('refused') ? `{"error": {"class": "GenericError", "desc": "no"}, "id": ${id}}\n` : `{"return": ${JSON.stringify(line)}, "id": ${id}}\n`
      if (!line.includes('query-status')) { socket.write(text); return }
      socket.write(text.slice(0, 7))
      setTimeout(() => { socket.write(text.slice(7)) }, 5)
    })
    const qmp = await QmpSocket.open(path, systemClock)
    assert.match(await qmp.execute('query-status') as string, /query-status/)
    const both = await Promise.all([qmp.execute('a', { x: 1 }), qmp.execute('b')]) as string[]
    assert.match(both[0]!, /"a".*"x":1/)
    assert.match(both[1]!, /"b"/)
    await assert.rejects(qmp.execute('refused'), (error) => error instanceof QemuRefusal && error.description === 'no')
    qmp.close()
    await assert.rejects(qmp.execute('query-status'), code('MACHINE_UNREACHABLE'))
  })
  test('that greets somebody else, greets nobody, sends a line without end or is not there is a clear error', async (t) => {
    await assert.rejects(QmpSocket.open(await serve(t, () => undefined, () => undefined), systemClock), code('MACHINE_BUSY'))
    await assert.rejects(QmpSocket.open('/nonexistent/qmp', systemClock), code('MACHINE_UNREACHABLE'))
    await assert.rejects(QmpSocket.open(await serve(t, (socket) => { socket.end() }, () => undefined), systemClock), code('MACHINE_UNREACHABLE'))
    const flood = await serve(t, (socket) => { for (let i = 0; i < 20; i++) socket.write(Buffer.alloc(1024 * 1024, 0x20)) }, () => undefined)
    await assert.rejects(QmpSocket.open(flood, systemClock), /a line without end/)
  })
  test('that falls silent is given up in time, and the next command connects anew', async (t) => {
    let isSilent = true
    const path = await serve(t, (socket) => { socket.write(GREETING) }, (line, socket) => {
      if (!isSilent || line.includes('qmp_capabilities')) socket.write(`{"return": 7, "id": ${idOf(line)}}\n`)
    })
    const qmp = await QmpSocket.open(path, systemClock)
    await assert.rejects(qmp.execute('query-status', undefined, { timeoutMs: 50 }), code('MACHINE_UNREACHABLE'))
    isSilent = false
    assert.equal(await qmp.execute('query-status'), 7)
    const abort = new AbortController()
    isSilent = true
    const waiting = qmp.execute('query-status', undefined, { signal: abort.signal })
    abort.abort(new Error('enough'))
    await assert.rejects(waiting, /enough/)
    qmp.close()
  })
})

describe('a guest agent', () => {
  test('is believed after its answer to our own number; what others were told is passed over', async (t) => {
    const path = await serve(t, (socket) => { socket.write('{"return": 3}\nhalf of a li') }, (line, socket) => {
      const clean = line.slice(line.lastIndexOf('\xff') + 1)
      const { execute, arguments: given } = JSON.parse(clean) as { execute: string; arguments?: { id: number } }
      if (execute === 'guest-sync-delimited') socket.write(Buffer.concat([Buffer.from('{"return": 12}\n'), Buffer.from([0xff]), Buffer.from(`{"return": ${given!.id}}\n`)]))
      if (execute === 'guest-fsfreeze-status') socket.write('{"return": "frozen"}\n')
      if (execute === 'guest-fsfreeze-thaw') socket.write('{"return": 2}\n')
      if (execute === 'guest-fsfreeze-freeze') socket.write('{"error": {"class": "GenericError", "desc": "disabled"}}\n')
    })
    const agent = await openAgent({ kind: 'socket', path }, systemClock, systemRandom)
    assert.equal(await agent.isFrozen(), true)
    assert.equal(await agent.thaw(), 2)
    await assert.rejects(agent.freeze(1_000), (error) => error instanceof QemuRefusal && error.description === 'disabled')
    agent.close()
  })
  test('that only takes connections is none', async (t) => {
    const path = await serve(t, () => undefined, () => undefined)
    await assert.rejects(openAgent({ kind: 'socket', path }, systemClock, systemRandom, 100), code('MACHINE_UNREACHABLE'))
  })
})

const OWNER = bitmapOwner('ab'.repeat(16), 'vm'), BITMAP = bitmapName(OWNER, Buffer.alloc(8, 7))
const sound = { name: BITMAP, granularityBytes: 65_536, isRecording: true, isInconsistent: false, isBusy: false, isPersistent: true }
const disk: MachineDisk = { name: 'vda', qdev: '/machine/peripheral/vda', device: 'virtio-blk-pci', node: 'node0', bytes: 1 << 20, format: 'qcow2', keepsBitmaps: true, bitmaps: [sound] }
const recorded = { image: 'vda', qdev: disk.qdev, node: 'node0', bitmap: BITMAP, bytes: 1 << 20, granularityBytes: 65_536, isPersistent: true }
const recordWith = (machine: unknown, errors = 0): SnapshotRecord => ({ root: 'cd'.repeat(32), statistics: { errors }, description: { machine } }) as unknown as SnapshotRecord
const parent = parentMachine(recordWith({ uuid: 'u1', disks: [recorded] })) as ParentMachine

test('a bitmap is believed only when nothing speaks against it, and what does is said', () => {
  const plan = (change: Partial<MachineDisk> = {}, machine: { uuid?: string; owner?: string } = {}, from: ParentMachine | string = parent, elsewhere: readonly string[] = []): string => {
    const found = planDisk({ ...disk, ...change }, from, { owner: OWNER, uuid: 'u1', ...machine }, new Set(elsewhere))
    return found.kind === 'full' ? found.reason : `${found.kind} ${found.bitmap === BITMAP} ${found.parentRoot === 'cd'.repeat(32)}`
  }
  assert.equal(plan(), 'incremental true true')
  assert.match(plan({}, { uuid: 'u2' }), /another machine/)
  assert.match(plan({ name: 'vdb' }), /does not have this disk/)
  assert.match(plan({}, { owner: '0'.repeat(12) }), /not of this source/)
  assert.match(plan({ bytes: 2 << 20 }), /size changed from 1048576 to 2097152/)
  assert.match(plan({ bitmaps: [] }), /is gone \(another image/)
  assert.match(plan({ bitmaps: [] }, {}, parentMachine(recordWith({ uuid: 'u1', disks: [{ ...recorded, isPersistent: false }] }))), /QEMU was restarted/)
  assert.match(plan({ bitmaps: [] }, {}, parent, [BITMAP]), /moved to another block node/)
  assert.match(plan({ node: 'node9' }), /moved from the block node node0 to node9/)
  assert.match(plan({ bitmaps: [{ ...sound, isInconsistent: true, isRecording: false }] }), /without closing the image/)
  assert.match(plan({ bitmaps: [{ ...sound, isRecording: false }] }), /somebody stopped/)
  assert.match(plan({ bitmaps: [{ ...sound, isBusy: true }] }), /in use by something else/)
  assert.match(plan({ bitmaps: [{ ...sound, granularityBytes: 4_096 }] }), /was replaced/)
  assert.match(plan({}, {}, parentMachine(undefined)), /no earlier snapshot/)
  assert.match(plan({}, {}, parentMachine(recordWith(undefined))), /not taken from a running machine/)
  assert.match(plan({}, {}, parentMachine(recordWith({ disks: [recorded] }, 1))), /has problems/)
  assert.match(plan({}, {}, parentMachine(recordWith({ disks: [{ ...recorded, bitmap: 7 }, null, 'x'] }))), /does not have this disk/, 'a record that is odd is no reason to fail')
})

test('names of runs and bitmaps are read as they are written, fit QEMU, and nothing else is taken for ours', () => {
  assert.deepEqual(parseRunName(runName('0123abcd', 'filter', 12)), { run: '0123abcd', part: 'filter', disk: 12 })
  assert.ok(runName('0123abcd', 'filter', 999).length <= 31)
  for (const other of ['roost-0123abcd-filter', 'roost-0123ABCD-filter0', 'xroost-0123abcd-filter0', 'roost-0123abcd-other0', BITMAP, 'node0']) assert.equal(parseRunName(other), undefined)
  assert.equal(ownerOfBitmap(BITMAP), OWNER)
  assert.equal(ownerOfBitmap('roost-bitmap-x'), undefined)
  assert.notEqual(bitmapOwner('ab'.repeat(16), 'vm2'), OWNER)
})

test('a fleece is private, tells what it takes, and goes without following what lies in it', (t) => {
  const base = mkdtempSync(join(tmpdir(), 'roost-fleece-'))
  t.after(() => { rmSync(base, { recursive: true, force: true }) })
  const fleece = new Fleece({ directory: base, diskBytes: [1 << 30, 4096], bytesMax: 1 << 20 })
  assert.equal(statSync(fleece.directory).mode & 0o777, 0o700)
  assert.deepEqual(readdirSync(fleece.directory).map((name) => [name, statSync(join(fleece.directory, name)).mode & 0o777]), [['disk0', 0o600], ['disk1', 0o600]])
  assert.equal(statSync(fleece.filePath(0)).size, 1 << 30)
  assert.equal(fleece.bytesUsed, 0)
  assert.equal(fleece.problem(), undefined)
  fleece.unlinkFiles()
  assert.deepEqual(readdirSync(fleece.directory), [])
  symlinkSync(base, join(fleece.directory, 'elsewhere'))
  fleece.remove()
  assert.ok(existsSync(base), 'nothing beyond its own names is removed')
  assert.throws(() => new Fleece({ directory: join(base, 'absent'), diskBytes: [1] }), code('FLEECE_FAILED'))
})

test('a lock is held by one, and is free when released', async () => {
  const name = `test ${process.pid}`
  const lock = await tryLock(name)
  assert.equal(await tryLock(name), undefined)
  lock!.release()
  const again = await tryLock(name)
  again!.release()
  assert.ok(again)
})

/** Answers as scripted, and remembers what it was told to do. */
class ScriptedMonitor implements Monitor {
  readonly told: string[] = []
  constructor(readonly answers: Readonly<Record<string, unknown>>) {}
  execute(command: string, parameters?: Readonly<Record<string, unknown>>): Promise<unknown> {
    const property = parameters?.['property']
    const answer = /^(?:iothread|parent_bus)/.test(String(property)) ? this.answers[`qom-get ${String(property)}`] ?? '' : this.answers[command]
    if (!command.startsWith('query') && !command.startsWith('qom-list') && !command.startsWith('qom-get')) this.told.push(`${command} ${Object.values(parameters ?? {}).join(' ')}`.trim())
    return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer ?? {})
  }
  close(): void { /* nothing is open */ }
}
const deps = (monitor: Monitor): Parameters<typeof tearDown>[0] => ({ monitor, agent: undefined, clock: systemClock, random: systemRandom })

test('the way out: the machine runs, the devices use their own nodes, then the rest goes; what is another run\'s or another program\'s stays', async () => {
  const run = '0123abcd', other = 'ffffffff'
  const node = (name: string, bitmaps: readonly string[] = []): object => ({ 'node-name': name, 'dirty-bitmaps': bitmaps.map((bitmap) => ({ name: bitmap })) })
  const monitor = new ScriptedMonitor({
    'query-named-block-nodes': [node('disk', [runName(run, 'map', 0), BITMAP]), ...(['fleece', 'filter', 'view', 'mark'] as const).map((part) => node(runName(run, part))), node(runName(other, 'filter'))],
    'query-block-exports': [{ id: 'of-another', type: 'nbd' }], 'query-status': { status: 'paused' },
    'query-block': [{ qdev: '/machine/peripheral/vda/virtio-backend', inserted: { 'node-name': runName(run, 'filter') } }, { qdev: 'vdb', inserted: { 'node-name': 'plain' } }],
  })
  const report = await tearDown(deps(monitor), run, { ownsServer: true })
  assert.deepEqual([report.foundSomething, report.resumed, report.problems], [true, true, []])
  assert.deepEqual(monitor.told, ['cont', `blockdev-del ${runName(run, 'mark')}`, `blockdev-del ${runName(run, 'view')}`, 'qom-set /machine/peripheral/vda drive disk',
    `blockdev-del ${runName(run, 'filter')}`, `blockdev-del ${runName(run, 'fleece')}`, `block-dirty-bitmap-remove disk ${runName(run, 'map')}`])
})
test('the way out when there is nothing: nothing is told to QEMU but to stop the server that was ours', async () => {
  const answers = { 'query-named-block-nodes': [], 'query-block-exports': [], 'query-block': [] }
  const [foreign, own] = [new ScriptedMonitor(answers), new ScriptedMonitor(answers)]
  assert.equal((await tearDown(deps(foreign), '0123abcd', { ownsServer: false })).foundSomething, false)
  await tearDown(deps(own), '0123abcd', { ownsServer: true })
  assert.deepEqual([foreign.told, own.told], [[], ['nbd-server-stop']])
})

test('disks that QEMU does not see are not left out in silence', async () => {
  const block = { qdev: 'vda', inserted: { 'node-name': 'n', drv: 'raw', image: { 'virtual-size': 512 } } }
  const monitor = new ScriptedMonitor({ 'query-block': [block], 'qom-get': 'virtio-blk-pci', 'qom-list': [{ name: 'vhost0', type: 'child<vhost-user-blk-pci>' }] })
  await assert.rejects(listDisks(monitor, { include: [], exclude: [] }, 702), /vhost0 cannot be saved.*--exclude-disk vhost0/)
  assert.deepEqual((await listDisks(monitor, { include: [], exclude: ['vhost0'] }, 702)).disks.map(({ name, qdev }) => [name, qdev]), [['vda', '/machine/peripheral/vda']])
})
test('disks in an iothread, by either property, are left to QEMU 10.0 and newer', async () => {
  const block = { qdev: 'vda', inserted: { 'node-name': 'n', drv: 'raw', image: { 'virtual-size': 512 } } }
  const none = { include: [], exclude: [] }
  for (const property of [{ 'qom-get iothread': '/objects/io0' }, { 'qom-get iothread-vq-mapping': [{ iothread: 'io0' }] }]) {
    const monitor = new ScriptedMonitor({ 'query-block': [block], 'qom-get': 'virtio-blk-pci', ...property })
    await assert.rejects(listDisks(monitor, none, 902), /vda is served by an iothread/)
    assert.equal((await listDisks(monitor, none, 1000)).disks.length, 1)
  }
})
test('QEMU\'s user is read from the XML of libvirt', () => {
  assert.deepEqual(qemuOwner('<seclabel type=\'dynamic\' model=\'dac\' relabel=\'yes\'>\n    <label>+64055:+108</label>'), { uid: 64055, gid: 108 })
  assert.equal(qemuOwner('<domain/>'), undefined)
})
