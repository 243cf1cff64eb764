/** Moving a machine's disks with a QEMU that refuses, fails, or is asked to stop in the middle: no file stays, nothing of ours in QEMU. */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { BootedDisk } from '../../client/boot/boot-machine.js'
import { moveHome, planHome } from '../../client/boot/move-home.js'
import { SerialLog } from '../../client/boot/serial-log.js'
import { QemuRefusal, type Monitor } from '../../client/machine/monitor.js'
import { systemClock } from '../../src/core/clock.js'
import { PassThrough } from 'node:stream'

const never = new AbortController().signal
const disk = (i: number): BootedDisk => ({ name: `vd${'ab'[i]!}`, bytes: 1_000_000, node: `disk${i}-overlay`, device: `disk${i}`, behind: [`disk${i}-base`, `disk${i}-nbd`] })

/** QEMU as far as this needs it; `script` may answer first. */
class FakeQemu implements Monitor {
  readonly said: string[] = []
  readonly jobs = new Map<string, { id: string; status: string; 'current-progress': number; 'total-progress': number; error?: string }>()
  readonly nodes = new Set<string>()
  constructor(readonly script: (command: string, parameters: Record<string, unknown>, qemu: FakeQemu) => void = () => undefined) {}
  async execute(command: string, parameters: Record<string, unknown> = {}): Promise<unknown> {
    this.said.push(command)
    this.script(command, parameters, this)
    const job = this.jobs.get(parameters['id'] as string)
    switch (command) {
      case 'blockdev-add': this.nodes.add(parameters['node-name'] as string); return {}
      case 'blockdev-del': this.nodes.delete(parameters['node-name'] as string); return {}
      case 'blockdev-mirror': { const id = parameters['job-id'] as string; this.jobs.set(id, { id, status: 'ready', 'current-progress': 5, 'total-progress': 5 }); return {} }
      case 'job-complete': case 'job-cancel': job!.status = 'concluded'; return {}
      case 'job-dismiss': this.jobs.delete(parameters['id'] as string); return {}
      case 'query-jobs': return [...this.jobs.values()].map((one) => ({ ...one }))
      default: throw new Error(command)
    }
  }
  close(): void { /* nothing is open */ }
}
function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'roost-home-'))
  t.after(() => { rmSync(path, { recursive: true, force: true }) })
  return path
}

test('all disks are level before the first is changed over, and what was behind them goes', async (t) => {
  const home = folder(t)
  const qemu = new FakeQemu()
  const files = planHome([disk(0), disk(1)], home, 'qcow2')
  await moveHome(qemu, files, {}, systemClock, never)
  assert.deepEqual(readdirSync(home).sort(), ['vda.qcow2', 'vdb.qcow2'])
  assert.ok(qemu.said.lastIndexOf('blockdev-mirror') < qemu.said.indexOf('job-complete'))
  assert.deepEqual([[...qemu.nodes], qemu.jobs.size], [['disk0-home', 'disk1-home'], 0])
})
for (const [what, script] of [
  ['QEMU refuses the second mirror', (command: string, parameters: Record<string, unknown>) => { if (command === 'blockdev-mirror' && parameters['job-id'] === 'disk1-move') throw new QemuRefusal(command, 'GenericError', 'no') }],
  ['a job fails', (command: string, _parameters: Record<string, unknown>, qemu: FakeQemu) => { const job = qemu.jobs.get('disk1-move'); if (command === 'query-jobs' && job !== undefined) Object.assign(job, { status: 'concluded', error: 'No space left on device' }) }],
] as const) test(`${what}: no file stays, and nothing in QEMU`, async (t) => {
  const home = folder(t)
  const qemu = new FakeQemu(script)
  await assert.rejects(moveHome(qemu, planHome([disk(0), disk(1)], home, 'raw'), {}, systemClock, never), { code: 'QEMU_FAILED' })
  assert.deepEqual([readdirSync(home), [...qemu.nodes], qemu.jobs.size], [[], [], 0])
})
test('asked to stop before the change, it leaves nothing; a file that appears meanwhile stays', async (t) => {
  const home = folder(t)
  const abort = new AbortController()
  const running = new FakeQemu((command, _parameters, qemu) => { if (command === 'query-jobs') { for (const job of qemu.jobs.values()) if (job.status === 'ready') job.status = 'running'; abort.abort(new DOMException('stop', 'AbortError')) } })
  await assert.rejects(moveHome(running, planHome([disk(0)], home, 'qcow2'), {}, systemClock, abort.signal), { name: 'AbortError' })
  assert.deepEqual([readdirSync(home), [...running.nodes]], [[], []])
  const late = planHome([disk(0)], join(home, 'one.qcow2'), 'qcow2')
  writeFileSync(join(home, 'one.qcow2'), 'mine')
  await assert.rejects(moveHome(new FakeQemu(), late, {}, systemClock, never), { code: 'EEXIST' })
  assert.ok(existsSync(join(home, 'one.qcow2')))
})
test('where disks go: a file for one, a folder for several, nothing replaced', (t) => {
  const home = folder(t)
  mkdirSync(join(home, 'd'))
  const paths = (disks: readonly BootedDisk[], path: string, format: 'raw' | 'qcow2' = 'qcow2'): string[] => planHome(disks, path, format).map((file) => file.path)
  assert.deepEqual(paths([disk(0)], join(home, 'x.img'), 'raw'), [join(home, 'x.img')])
  assert.deepEqual(paths([disk(0)], join(home, 'd')), [join(home, 'd', 'vda.qcow2')])
  assert.deepEqual(paths([disk(0), disk(1)], join(home, 'new')), [join(home, 'new', 'vda.qcow2'), join(home, 'new', 'vdb.qcow2')])
  writeFileSync(join(home, 'file'), '')
  for (const disks of [[disk(0)], [disk(0), disk(1)]]) assert.throws(() => paths(disks, join(home, 'file')), { code: 'DESTINATION_REFUSED' })
})
test('a console is read line by line and before its end, cleaned and bounded', async () => {
  const stream = new PassThrough()
  const log = new SerialLog(stream, (line) => line.endsWith('login: '))
  stream.write('\u001b[2J\u001b[1;31mred\u001b[0m\r\nn\u0007ext\n')
  stream.write('x'.repeat(10_000))
  stream.write('\n'.repeat(500))
  stream.write('host lo')
  stream.write('gin: ')
  await log.matched
  assert.deepEqual([log.lines(1), log.lines(1_000).length], [['host login: '], 201])
})
