/** Peaks of resident memory of the real processes, for loads much larger than the bounds. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { closeSync, ftruncateSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { describe, test } from 'node:test'
import { openWorld, roostCommand, SLOW, type RoostWorld } from '../support/run-roost.js'

const KiB = 1024, MiB = 1024 * KiB, GiB = 1024 * MiB
const CLIENT_MAX = 150 * MiB, SERVER_MAX = 350 * MiB
const CHUNK_BYTES = 128 * KiB
const isLinux = process.platform === 'linux'

/** Scattered extents of `extentBytes` in all: every chunk is another one, and most of each compresses well. */
function makeSparseImage(path: string, bytes: number, extentBytes: number): void {
  const run = Buffer.alloc(64 * CHUNK_BYTES, 0x5a)
  const runs = Math.ceil(extentBytes / run.byteLength)
  const stride = Math.floor(bytes / runs / CHUNK_BYTES) * CHUNK_BYTES
  const file = openSync(path, 'w')
  try {
    ftruncateSync(file, bytes)
    let seed = 12_345
    for (let i = 0; i < runs; i++) {
      for (let at = 0; at < run.byteLength; at += CHUNK_BYTES) {
        run.writeUInt32LE(i, at)
        for (let word = 4; word < 2 * KiB; word += 4) {
          seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
          run.writeUInt32LE(seed, at + word)
        }
      }
      writeSync(file, run, 0, run.byteLength, i * stride)
    }
  } finally {
    closeSync(file)
  }
}

/** Peak of a live process in bytes, or undefined once it has ended. */
function peakOf(pid: number): number | undefined {
  try {
    const peak = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    return peak === undefined ? undefined : Number(peak) * KiB
  } catch {
    return undefined // it ended between two looks
  }
}
/** Runs a command and returns its peak; the kernel keeps the peak, so looking now and then misses only the last moments. */
async function clientPeak(world: RoostWorld, args: readonly string[]): Promise<number> {
  const [command, ...rest] = roostCommand(args)
  const env = { PATH: process.env['PATH'], HOME: world.path('home'), ROOST_REPOSITORY: `${world.url}/${world.name}`, ROOST_TOKEN_FILE: world.adminTokenFile }
  const child = spawn(command!, rest, { env, stdio: 'ignore' })
  let peak = 0
  const looking = setInterval(() => { peak = Math.max(peak, peakOf(child.pid!) ?? 0) }, 20)
  const code = await new Promise<number | null>((resolve) => child.once('exit', resolve))
  clearInterval(looking)
  assert.equal(code, 0, `roost ${args.join(' ')}`)
  return peak
}
function assertWithin(what: string, peak: number, max: number): void {
  assert.ok(peak > 0, `${what}: a peak was seen`)
  assert.ok(peak <= max, `${what}: ${Math.round(peak / MiB)} MiB are resident at the peak, more than ${max / MiB} MiB`)
}

async function backUpTwice(world: RoostWorld, image: string): Promise<void> {
  for (const pass of ['first backup', 'unchanged backup'])
    assertWithin(`client, ${pass}`, await clientPeak(world, ['backup', '--image', image, '--source', 'image']), CLIENT_MAX)
}

describe('resident memory', { skip: !isLinux && 'peaks are read from /proc' }, () => {
  test('a sparse image many times as large as the bounds is backed up within them', async (t) => {
    const world = await openWorld(t)
    const image = world.path('disk.img')
    makeSparseImage(image, 20 * GiB, 1 * GiB)
    await backUpTwice(world, image)
    assertWithin('server', peakOf(world.serverPid!)!, SERVER_MAX)
  })
  test('a peak above the bound is seen as one', async () => {
    const child = spawn(process.execPath, ['-e', `globalThis.held = Buffer.alloc(${CLIENT_MAX}, 1); process.stdout.write('held'); setInterval(() => {}, 1000)`])
    await new Promise((resolve) => child.stdout.once('data', resolve))
    assert.throws(() => { assertWithin('probe', peakOf(child.pid!)!, CLIENT_MAX) }, /more than 150 MiB/)
    child.kill('SIGKILL')
  })
  test('200 GiB with 20 GiB of extents', { skip: !SLOW && 'ROOST_TEST_SLOW=1 runs it; it needs 21 GiB of disk' }, async (t) => {
    const world = await openWorld(t)
    const image = world.path('disk.img')
    makeSparseImage(image, 200 * GiB, 20 * GiB)
    await backUpTwice(world, image)
    rmSync(image)
    assertWithin('client, restore', await clientPeak(world, ['restore', 'latest', '--target', world.path('back')]), CLIENT_MAX)
    assertWithin('server', peakOf(world.serverPid!)!, SERVER_MAX)
  })
})
