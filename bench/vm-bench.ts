/** What an incremental backup of a running machine reads, sends and stores after 1 % of its disk was written in random 4 KiB, against reading everything
 *  again and against restic, on the same disk in the same run.
 *
 *  The machine is a QEMU whose processors never start; the writes go through its block layer as a guest's would (qemu-io), so its bitmaps see them.
 *
 *  node dist/bench/vm-bench.js [--gib N] [--percent N] [--json]
 */
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, fsyncSync, ftruncateSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { createConnection, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { systemRandom } from '../src/core/random.js'
import { hasTool, jsonLines, RoostWorld, roostCommand, tool } from '../test/support/run-roost.js'
import { measure, type Cost } from './measure-process.js'

const KiB = 1024, MiB = 1024 * KiB, GiB = 1024 * MiB
const { values } = parseArgs({ strict: false, options: { gib: { type: 'string', default: '8' }, percent: { type: 'string', default: '1' }, json: { type: 'boolean' } } })
const DEVICE = '/machine/peripheral/vda/virtio-backend'
const diskBytes = Number(values['gib']) * GiB
const writes = Math.round(diskBytes / (4 * KiB) * Number(values['percent']) / 100)

if (!hasTool('qemu-system-x86_64')) {
  console.log('vm-bench: SKIPPED, qemu-system-x86_64 is not installed (test/lab/guest/install.sh)')
  process.exit(0)
}
interface Row { readonly what: string; readonly wallSeconds: number; readonly cpuSeconds: number; readonly bytesRead: number; readonly bytesPushed: number | undefined; readonly bytesStored: number }
const rows: Row[] = []
const world = new RoostWorld()
const disk = world.path('disk.raw'), qmp = world.path('qmp'), control = world.path('control'), block = world.path('block')
let qemu: ReturnType<typeof spawn> | undefined
try {
  await world.startServer()
  await world.createRepository()
  fillDisk()
  qemu = spawn('qemu-system-x86_64', ['-S', '-machine', 'pc', '-accel', 'tcg', '-m', '64', '-nodefaults', '-display', 'none', '-name', 'bench',
    '-qmp', `unix:${qmp},server=on,wait=off`, '-qmp', `unix:${control},server=on,wait=off`, '-blockdev', JSON.stringify({ driver: 'raw', 'node-name': 'node0', file: { driver: 'file', filename: disk } }),
    '-device', 'virtio-blk-pci,drive=node0,id=vda'], { stdio: ['ignore', 'ignore', 'inherit'] })
  const monitor = await connect()
  const hasRestic = hasTool('restic')
  const restic = ['restic', '--repo', world.path('restic'), '--quiet']
  const environment = { ...process.env, RESTIC_PASSWORD: 'bench', RESTIC_CACHE_DIR: world.path('restic-cache') }
  if (hasRestic) await measure([...restic, 'init'], { env: environment })

  await roost('first, 128 KiB chunks', 'of128')
  await roost('first, 64 KiB chunks', 'of64', '--chunk-size', '64K')
  if (hasRestic) await byRestic('first, restic')
  await writeRandomly(monitor)
  await roost('what changed, 128 KiB chunks', 'of128')
  await roost('what changed, 64 KiB chunks', 'of64')
  await roost('all read again, 128 KiB chunks', 'of128', '--no-parent')
  if (hasRestic) await byRestic('all read again, restic')
  report()

  async function byRestic(what: string): Promise<void> {
    const before = storedBytes('restic')
    const cost = await measure([...restic, 'backup', disk], { env: environment })
    add(what, cost, diskBytes, undefined, storedBytes('restic') - before)
  }
} finally {
  qemu?.kill('SIGKILL')
  await world.close()
}

async function roost(what: string, source: string, ...more: readonly string[]): Promise<void> {
  const before = storedBytes('data')
  const out = world.path('out')
  const cost = await measure(['sh', '-c', `exec "$@" > ${out}`, 'sh', ...roostCommand(['backup', '--vm', qmp, '--source', source, '--fleece-dir', world.directory, '--json', ...more])], {
    env: { ...process.env, ...world.environment, ROOST_REPOSITORY: `${world.url}/${world.name}`, ROOST_TOKEN_FILE: world.adminTokenFile, HOME: world.path('home') } })
  const snapshot = jsonLines(tool('cat', [out])).find(({ type }) => type === 'snapshot')!['statistics'] as Record<string, number>
  add(what, cost, snapshot['bytesRead']!, snapshot['bytesSent']!, storedBytes('data') - before)
}
function add(what: string, { wallSeconds, cpuSeconds }: Cost, bytesRead: number, bytesPushed: number | undefined, bytesStored: number): void {
  rows.push({ what, wallSeconds, cpuSeconds, bytesRead, bytesPushed, bytesStored })
  if (values['json'] !== true) console.log(`${what}: ${wallSeconds.toFixed(1)} s`)
}
function storedBytes(folder: string): number { return Number(spawnSync('du', ['-s', '-B1', '--exclude=index', world.path(folder)], { encoding: 'utf8' }).stdout.split('\t')[0]) }

/** A quarter of every 128 KiB is noise, the rest compresses well. */
function fillDisk(): void {
  mkdirSync(world.path('scratch'))
  const fd = openSync(disk, 'w')
  ftruncateSync(fd, diskBytes)
  const piece = Buffer.alloc(8 * MiB, 'a disk has much that repeats, and some that does not. ')
  for (let at = 0; at < diskBytes; at += piece.length) {
    for (let chunk = 0; chunk < piece.length; chunk += 128 * KiB) systemRandom.bytes(32 * KiB).copy(piece, chunk)
    writeSync(fd, piece, 0, piece.length, at)
  }
  fsyncSync(fd)
  closeSync(fd)
}
async function writeRandomly(monitor: Monitor): Promise<void> {
  const blocks = diskBytes / (4 * KiB)
  for (let count = 0; count < writes; count++) {
    writeFileSync(block, systemRandom.bytes(4 * KiB))
    const at = Math.floor(systemRandom.fraction() * blocks) * 4
    const said = await monitor.command('human-monitor-command', { 'command-line': `qemu-io -d ${DEVICE} "write -q -s ${block} ${at}k 4k"` })
    if (count === 0 && said !== '') throw new Error(`QEMU does not write: ${JSON.stringify(said)}`)
  }
  await monitor.command('human-monitor-command', { 'command-line': `qemu-io -d ${DEVICE} flush` })
}

interface Monitor { command(execute: string, parameters?: object): Promise<unknown> }
async function connect(): Promise<Monitor> {
  let socket: Socket | undefined
  for (let attempt = 0; socket === undefined; attempt++) {
    await new Promise((resolve) => setTimeout(resolve, 50))
    socket = await new Promise<Socket | undefined>((resolve) => {
      const trying = createConnection({ path: control }, () => { resolve(trying) }).once('error', () => { if (attempt > 200) throw new Error('QEMU does not start'); resolve(undefined) })
    })
  }
  const answers: ((answer: Record<string, unknown>) => void)[] = []
  const reader = createInterface({ input: socket })
  reader.on('line', (line) => {
    const message = JSON.parse(line) as Record<string, unknown>
    if (!('event' in message) && !('QMP' in message)) answers.shift()?.(message)
  })
  socket.on('error', () => undefined) // answers that do not come are told by what waits for them
  reader.on('error', () => undefined)
  const open = socket
  const monitor: Monitor = { async command(execute, parameters) {
    const answer = new Promise<Record<string, unknown>>((resolve) => { answers.push(resolve) })
    open.write(`${JSON.stringify({ execute, arguments: parameters ?? {} })}\n`)
    const { return: value, error } = await answer
    if (error !== undefined) throw new Error(`${execute}: ${JSON.stringify(error)}`)
    return value
  } }
  await monitor.command('qmp_capabilities')
  return monitor
}
function report(): void {
  if (values['json'] === true) { console.log(JSON.stringify({ diskBytes, writes, rows })); return }
  const mib = (bytes: number | undefined): string => bytes === undefined ? '' : `${Math.round(bytes / MiB)}`
  console.log(`\n${diskBytes / GiB} GiB, then ${writes} random writes of 4 KiB (${Math.round(writes * 4 / KiB)} MiB)\n`)
  console.log('| | wall s | client CPU s | read MiB | pushed MiB | stored MiB |\n|---|---|---|---|---|---|')
  for (const row of rows) console.log(`| ${row.what} | ${row.wallSeconds.toFixed(1)} | ${row.cpuSeconds.toFixed(1)} | ${mib(row.bytesRead)} | ${mib(row.bytesPushed)} | ${mib(row.bytesStored)} |`)
}
