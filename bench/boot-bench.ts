/** How long a guest takes to be ready from `roost nbd`, over an overlay, against the local raw file over an overlay: the same QEMU, software emulation,
 *  in turns. Server and `roost nbd` are started anew for each boot, so every cache of ours is empty. The goal is 1.5 at most.
 *
 *  node dist/bench/boot-bench.js [--rounds N]
 */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { systemClock } from '../src/core/clock.js'
import { guestImages } from '../test/support/guest-lab.js'
import { labInstalled, startLab } from '../test/support/openstack-lab.js'
import { RoostWorld } from '../test/support/run-roost.js'

const { values } = parseArgs({ options: { rounds: { type: 'string', default: '3' } } })
const rounds = Number(values.rounds)
const { directory: images, skip } = guestImages()
if (skip !== false) {
  console.log(`boot-bench: SKIPPED, ${skip}`)
  process.exit(0)
}
const image = `${images}/boot.raw`
const afterwards: (() => void | Promise<void>)[] = []

/** Seconds from starting QEMU to the guest's word. `base`: the nodes below the overlay, the last is named base. */
async function bootSeconds(world: RoostWorld, base: readonly Record<string, unknown>[]): Promise<number> {
  const overlay = world.path('overlay.qcow2')
  rmSync(overlay, { force: true })
  if (spawnSync('qemu-img', ['create', '-q', '-f', 'qcow2', overlay, '256M']).status !== 0) throw new Error('qemu-img cannot make an overlay')
  const nodes = [...base, { driver: 'qcow2', 'node-name': 'disk', file: { driver: 'file', filename: overlay }, backing: 'base' }]
  const startMs = systemClock.monotonicMs()
  const qemu = spawn('qemu-system-x86_64', ['-machine', 'pc', '-accel', 'tcg,tb-size=64', '-m', '160', '-nodefaults', '-display', 'none', '-serial', 'stdio',
    ...nodes.flatMap((node) => ['-blockdev', JSON.stringify(node)]), '-device', 'virtio-blk-pci,drive=disk'], { stdio: ['ignore', 'pipe', 'inherit'] })
  for await (const line of createInterface({ input: qemu.stdout })) {
    if (!line.includes('GUEST: ready')) continue
    const seconds = (systemClock.monotonicMs() - startMs) / 1000
    qemu.kill('SIGKILL')
    await once(qemu, 'close')
    return seconds
  }
  throw new Error('QEMU ended before the guest was ready')
}
const local = (world: RoostWorld): Promise<number> => bootSeconds(world, [{ driver: 'raw', 'node-name': 'base', 'read-only': true, file: { driver: 'file', filename: image } }])
async function fromRoost(world: RoostWorld): Promise<number> {
  await world.stopServer()
  await world.startServer()
  const socket = world.path('nbd.sock')
  const nbd = world.start(['nbd', 'latest', '--socket', socket, '--json'], 'pipe')
  await once(createInterface({ input: nbd.stdout! }), 'line')
  try {
    return await bootSeconds(world, [{ driver: 'nbd', 'node-name': 'nbd', 'read-only': true, server: { type: 'unix', path: socket }, export: '' }, { driver: 'raw', 'node-name': 'base', 'read-only': true, file: 'nbd' }])
  } finally {
    nbd.kill('SIGINT')
    await once(nbd, 'exit')
  }
}
const median = (numbers: readonly number[]): number => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)]!

async function compare(name: string, world: RoostWorld): Promise<void> {
  await world.ok(['backup', '--image', image])
  await local(world) // the image into the page cache
  const times: { local: number; roost: number }[] = []
  for (let round = 0; round < rounds; round++) {
    const isRoostFirst = round % 2 === 1
    const first = await (isRoostFirst ? fromRoost(world) : local(world)), second = await (isRoostFirst ? local(world) : fromRoost(world))
    const pair = isRoostFirst ? { local: second, roost: first } : { local: first, roost: second }
    times.push(pair)
    console.log(`${name}, round ${round + 1}: local ${pair.local.toFixed(2)} s, roost ${pair.roost.toFixed(2)} s, ratio ${(pair.roost / pair.local).toFixed(2)}`)
  }
  const [a, b, ratio] = [median(times.map((one) => one.local)), median(times.map(({ roost }) => roost)), median(times.map((one) => one.roost / one.local))]
  console.log(`boot from roost nbd, packs on ${name}: median ${b.toFixed(2)} s against ${a.toFixed(2)} s, median of the rounds' ratios ${ratio.toFixed(2)} (goal 1.5 at most)`)
}

try {
  const files = new RoostWorld()
  afterwards.push(() => files.close())
  await files.startServer()
  await files.createRepository()
  await compare('files', files)
  if (!labInstalled) console.log('boot-bench: packs on Swift SKIPPED, Swift is not installed (test/lab/install.sh)')
  else {
    const lab = await startLab({ after: (work: unknown) => { afterwards.push(work as () => void) } } as Parameters<typeof startLab>[0], { services: ['swift'] })
    const swift = new RoostWorld()
    afterwards.push(() => swift.close())
    swift.environment['OS_CLIENT_CONFIG_FILE'] = lab.cloudsYaml
    await swift.startServer()
    await swift.ok(['repo', 'create', 'main', '--target', 'swift:packs/main?cloud=tempauth'])
    await compare('Swift', swift)
  }
} finally {
  for (const work of afterwards.reverse()) await work()
}
