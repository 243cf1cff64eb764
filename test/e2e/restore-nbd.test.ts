/** roost restore --to-nbd: into exports of qemu-nbd and nbdkit, which differ in what they can, and into those that fail. */
import assert from 'node:assert/strict'
import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { closeSync, existsSync, ftruncateSync, openSync, readFileSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { test, type TestContext } from 'node:test'
import { noise } from '../support/odd-tree.js'
import { hasTool, openWorld, type RoostWorld } from '../support/run-roost.js'

const MiB = 1024 * 1024
const lacking = ['qemu-nbd', 'qemu-img', 'nbdkit'].filter((name) => !hasTool(name))
const skip = lacking.length === 0 ? false : `SKIPPED GROUP: restores into NBD exports — not installed: ${lacking.join(', ')}`
if (skip !== false) console.log(skip)

const BYTES = 70 * MiB + 512
function makeImage(world: RoostWorld): string {
  const path = world.path('disk.img')
  const file = openSync(path, 'w')
  ftruncateSync(file, BYTES)
  for (const [at, bytes] of [[0, 700_000], [20 * MiB, 9 * MiB], [BYTES - 3000, 3000]] as const) writeSync(file, noise(bytes, at + 1), 0, bytes, at)
  closeSync(file)
  return path
}
async function serve(t: TestContext, socket: string, command: string, args: readonly string[]): Promise<ChildProcess> {
  const child = spawn(command, args, { stdio: 'ignore' })
  t.after(() => { child.kill('SIGKILL') })
  for (let attempt = 0; attempt < 200 && !existsSync(socket); attempt++) await new Promise((resolve) => setTimeout(resolve, 50))
  return child
}
/** Whatever was there shows through where nothing is written. */
function dirty(path: string, bytes: number): string {
  writeFileSync(path, noise(Math.min(bytes, 80 * MiB), 99))
  truncateSync(path, bytes)
  return path
}

test('the export is the image afterwards, whatever was there: with and without zeroing, in blocks of 1 and of 4096 bytes', { skip }, async (t) => {
  const world = await openWorld(t)
  const image = makeImage(world)
  await world.ok(['backup', '--image', image, '--source', 'web1'])
  const expected = readFileSync(image)
  const same = (path: string): void => { assert.ok(readFileSync(path).subarray(0, BYTES).equals(expected), path) }

  const qemu = dirty(world.path('qemu.raw'), 80 * MiB)
  await serve(t, world.path('q.sock'), 'qemu-nbd', ['-t', '-f', 'raw', '-x', 'a/b', '-k', world.path('q.sock'), '--discard=unmap', qemu])
  await world.ok(['restore', 'latest', '--to-nbd', `nbd+unix:///a/b?socket=${world.path('q.sock')}`])
  same(qemu)
  assert.ok(statSync(qemu).blocks * 512 < 40 * MiB, 'holes are holes again')
  assert.ok(readFileSync(qemu).subarray(BYTES).equals(noise(80 * MiB, 99).subarray(BYTES)), 'what is past the image stays')

  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', world.path('q.qcow2'), '70M'])
  execFileSync('qemu-img', ['resize', '-q', world.path('q.qcow2'), '+512'])
  await serve(t, world.path('c.sock'), 'qemu-nbd', ['-t', '-f', 'qcow2', '-k', world.path('c.sock'), world.path('q.qcow2')])
  await world.ok(['restore', 'latest', '--disk', 'disk.img', '--to-nbd', `nbd+unix:///?socket=${world.path('c.sock')}`])
  assert.match(execFileSync('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'qcow2', image, world.path('q.qcow2')], { encoding: 'utf8' }), /identical/)

  for (const [name, filters, options] of [['plain', ['--filter=nozero'], ['zeromode=none']], ['blocks', ['--filter=blocksize-policy'], ['blocksize-minimum=4096', 'blocksize-preferred=4096', 'blocksize-maximum=1M', 'blocksize-error-policy=error']]] as const) {
    const file = dirty(world.path(`${name}.raw`), 71 * MiB)
    const socket = world.path(`${name}.sock`)
    await serve(t, socket, 'nbdkit', ['-f', '-U', socket, ...filters, 'file', file, ...options])
    await world.ok(['restore', 'latest:disk.img', '--to-nbd', `nbd+unix:///?socket=${socket}`])
    same(file)
  }
})
test('exports that are too small, read-only or failing are refused or told, and nothing is said to be done', { skip }, async (t) => {
  const world = await openWorld(t)
  await world.ok(['backup', '--image', makeImage(world), '--source', 'web1'])
  const cases: readonly [string, readonly string[], RegExp][] = [
    ['small', ['memory', '70M'], /DESTINATION_REFUSED/], ['read-only', ['-r', 'memory', '80M'], /read-only.*DESTINATION_REFUSED/],
    ['failing', ['--filter=error', 'memory', '80M', 'error-pwrite=ENOSPC', 'error-pwrite-rate=30%'], /holds a part of the image.*NBD_FAILED/s],
    ['gone', ['--filter=delay', 'memory', '80M', 'delay-write=5'], /NBD_UNREACHABLE/],
  ]
  for (const [name, args, says] of cases) {
    const socket = world.path(`${name}.sock`)
    const server = await serve(t, socket, 'nbdkit', ['-f', '-U', socket, ...args])
    if (name === 'gone') setTimeout(() => { server.kill('SIGKILL') }, 1_500)
    const result = await world.run(['restore', 'latest', '--to-nbd', `nbd+unix:///?socket=${socket}`])
    assert.equal(result.code, 1, `${name}: ${result.stderr}`)
    assert.match(result.stderr, says, name)
  }
  assert.equal((await world.run(['restore', 'latest', '--to-nbd', 'http://x'])).code, 1)
  assert.equal((await world.run(['restore', 'latest', '--to-nbd', 'nbd://127.0.0.1:1/x', '--format', 'qcow2'])).code, 2)
})
