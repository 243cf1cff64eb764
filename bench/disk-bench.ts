/** A disk of a machine: backed up in full, in full again after one percent of it was written to, and by its dirty bitmap; beside nbdcopy, qemu-img and restic.
 *
 *  Run: npm run bench -- --only disks [--gib N]
 */
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, rmSync, statSync, writeSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { noise } from '../test/support/odd-tree.js'
import { hasTool, jsonLines, RoostWorld, tool } from '../test/support/run-roost.js'
import { measure, type Cost } from './measure-process.js'

const MiB = 1024 * 1024
const { values } = parseArgs({ options: { gib: { type: 'string', default: '2' }, only: { type: 'string' }, json: { type: 'boolean', default: false } } })
const bytes = Number(values.gib) * 1024 * MiB
const scratch = mkdtempSync(join(tmpdir(), 'roost-bench-'))
const image = join(scratch, 'disk.qcow2')
const WRITE_BYTES = 4096
const writes = Math.round(bytes / 100 / WRITE_BYTES)

interface Line { readonly what: string; readonly cost: Cost; readonly bytesRead?: number; readonly bytesSent?: number }
const lines: Line[] = []

function makeDisk(): void {
  const raw = join(scratch, 'disk.raw')
  const fd = openSync(raw, 'w')
  for (let at = 0; at < bytes; at += 16 * MiB) writeSync(fd, noise(16 * MiB, at / MiB + 1), 0, 16 * MiB, at)
  closeSync(fd)
  tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, image])
  rmSync(raw)
}
/** At places that a seed chooses. */
function writeOnePercent(): void {
  let state = 12_345
  const commands: string[] = []
  for (let i = 0; i < writes; i++) {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9 >>> 0
    const block = state % Math.floor(bytes / WRITE_BYTES)
    commands.push(`write -q -P ${1 + i % 250} ${block * WRITE_BYTES} ${WRITE_BYTES}`)
  }
  tool('qemu-io', ['-f', 'qcow2', image], `${commands.join('\n')}\n`)
}
async function withServer(work: (uri: string) => Promise<void>): Promise<void> {
  const socket = join(scratch, 'nbd.sock')
  const server = spawn('qemu-nbd', ['-t', '-r', '-e', '8', '-f', 'qcow2', '-B', 'b0', '-k', socket, image], { stdio: 'ignore' })
  try {
    while (!await new Promise<boolean>((resolve) => {
      const probe = connect(socket, () => { probe.destroy(); resolve(true) })
      probe.on('error', () => { resolve(false) })
    })) await new Promise((resolve) => setTimeout(resolve, 20))
    await work(`nbd+unix:///?socket=${socket}`)
  } finally {
    const ended = new Promise((resolve) => server.once('exit', resolve))
    server.kill()
    await ended
  }
}

const world = new RoostWorld('bench')
try {
  makeDisk()
  await world.startServer(['--log-level', 'error'])
  await world.createRepository()
  const roost = async (what: string, uri: string, ...args: readonly string[]): Promise<string> => {
    const started = performance.now()
    const [saved] = jsonLines((await world.ok(['backup', '--image', `disk=${uri}`, '--source', 'vm', ...args, '--json'])).stdout).filter((line) => line['type'] === 'snapshot')
    const statistics = saved!['statistics'] as Record<string, number>
    lines.push({ what, cost: { wallSeconds: (performance.now() - started) / 1000, cpuSeconds: statistics['cpuMs']! / 1000, peakBytes: 0 }, bytesRead: statistics['bytesRead']!, bytesSent: statistics['bytesSent']! })
    return saved!['id'] as string
  }
  const copy = async (when: string, uri: string): Promise<void> => {
    lines.push({ what: `nbdcopy to nowhere, ${when}`, cost: await measure(['nbdcopy', uri, 'null:']), bytesRead: bytes })
    lines.push({ what: `qemu-img convert to nowhere, ${when}`, cost: await measure(['qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', '-W', uri, `json:{"driver":"raw","file":{"driver":"null-co","size":${bytes}}}`]), bytesRead: bytes })
  }
  const restic = async (when: string): Promise<void> => {
    if (!hasTool('restic')) return
    const env = { ...process.env, RESTIC_PASSWORD: 'bench', RESTIC_REPOSITORY: join(scratch, 'restic'), RESTIC_CACHE_DIR: join(scratch, 'restic-cache') }
    if (when === 'first') spawnSync('restic', ['init', '-q'], { env })
    lines.push({ what: `restic over the image file, ${when}`, cost: await measure(['restic', 'backup', '-q', '--force', image], { env }), bytesRead: statSync(image).size })
  }
  tool('qemu-img', ['bitmap', '--add', '-f', 'qcow2', image, 'b0'])
  let first = ''
  await withServer(async (uri) => {
    await copy('first', uri)
    first = await roost('roost, first', uri)
  })
  await restic('first')
  writeOnePercent()
  await withServer(async (uri) => {
    await roost('roost by the dirty bitmap', uri, '--dirty-map', 'qemu:dirty-bitmap:b0', '--dirty-map-since', first, '--audit', '0')
    await roost('the same again, all of it known to the server', uri, '--dirty-map', 'qemu:dirty-bitmap:b0', '--dirty-map-since', first, '--audit', '0')
    await roost('roost in full again', uri, '--parent', first)
    await copy('again', uri)
  })
  await restic('again')
} finally {
  await world.close()
  rmSync(scratch, { recursive: true, force: true })
}
if (values.json) console.log(JSON.stringify({ bytes, writes, lines }))
else {
  console.log(`A disk of ${values.gib} GiB without holes; then ${writes} writes of 4 KiB at random.`)
  console.log(`${''.padEnd(50)}${'seconds'.padStart(10)}${'CPU s'.padStart(10)}${'MiB/s disk'.padStart(12)}${'read MiB'.padStart(10)}${'new MiB'.padStart(10)}`)
  for (const { what, cost, bytesRead, bytesSent } of lines)
    console.log(`${what.padEnd(50)}${cost.wallSeconds.toFixed(2).padStart(10)}${cost.cpuSeconds.toFixed(2).padStart(10)}${(bytes / MiB / cost.wallSeconds).toFixed(0).padStart(12)}` +
      `${(bytesRead === undefined ? '' : (bytesRead / MiB).toFixed(0)).padStart(10)}${(bytesSent === undefined ? '' : (bytesSent / MiB).toFixed(0)).padStart(10)}`)
}
