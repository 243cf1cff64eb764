/** Machines that run from snapshots: a real guest in QEMU under software emulation, with servers that go away under it, moved home, tested, killed. */
import assert from 'node:assert/strict'
import { execFileSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { describe, test, type TestContext } from 'node:test'
import { BOOT_FS_BYTES, checkFileSystem, Guest, guestImages, startGuest } from '../support/guest-lab.js'
import { leftBehind, machinesOf, until, worldWithMachine } from '../support/machine-world.js'
import { tool, type RoostWorld } from '../support/run-roost.js'

const { directory: images, skip } = guestImages()
const SMALL = ['--memory', '160M', '--source', 'web1'] as const

interface Booted { readonly guest: Guest; readonly child: ChildProcess; readonly said: () => string; ended(): Promise<number | null> }
function boot(t: TestContext, world: RoostWorld, args: readonly string[] = []): Booted {
  const child = world.start(['boot', 'latest', ...SMALL, ...args], 'pipe')
  t.after(() => { child.kill('SIGKILL') })
  let said = ''
  const guest = new Guest(child, '', '', '')
  child.stderr!.on('data', (bytes: Buffer) => { said += bytes.toString() })
  child.stdin!.on('error', () => undefined)
  const ended = new Promise<number | null>((resolve) => child.once('exit', (code) => { resolve(code) }))
  return { guest, child, said: () => said, ended: () => ended }
}
/** Reads everything of the guest's file system anew, from its disk. */
const REREAD = 'echo 3 > /proc/sys/vm/drop_caches; /bin/verify /data | tail -1'

describe('a machine that runs from a snapshot', { skip }, () => {
  test('is ready while nothing is restored, and lives through the end of the repository\'s server', async (t) => {
    const world = await worldWithMachine(t, images)
    const { guest, child, said, ended } = boot(t, world, ['--cache', '16M'])
    await guest.line(/GUEST: ready/, { also: true })
    await guest.writesOn()
    assert.match(said(), /What it writes is thrown away/)
    await world.killServer()
    const during = guest.shell(`head -c 20000000 /dev/vda1 > /dev/null; ${REREAD}`, 60_000)
    await new Promise((resolve) => setTimeout(resolve, 1_000))
    await world.startServer()
    assert.match(await during, /0 bad/)
    await guest.writesOn()
    child.kill('SIGINT')
    assert.equal(await ended(), 0)
    assert.deepEqual([leftBehind(world), machinesOf(world)], [[], []])
    assert.match((await world.ok(['ls', 'latest:boot.raw//p2'])).stdout, /^\/lost\+found\/\n\/hello\n$/, 'the snapshot is as it was')
  })
  test('lives through the end of `roost nbd`, where that serves its disks', async (t) => {
    const world = await worldWithMachine(t, images)
    const socket = world.path('nbd.sock')
    const serve = async (): Promise<ChildProcess> => {
      const nbd = world.start(['nbd', 'latest', '--source', 'web1', '--socket', socket, '--json'], 'pipe')
      t.after(() => { nbd.kill('SIGKILL') })
      await once(createInterface({ input: nbd.stdout! }), 'line')
      return nbd
    }
    const nbd = await serve()
    const { guest, child, ended } = boot(t, world, ['--nbd', socket])
    await guest.line(/GUEST: ready/, { also: true })
    nbd.kill('SIGKILL')
    await once(nbd, 'exit')
    const during = guest.shell(`head -c 20000000 /dev/vda1 > /dev/null; ${REREAD}`, 60_000)
    await new Promise((resolve) => setTimeout(resolve, 1_000))
    await serve()
    assert.match(await during, /0 bad/)
    child.kill('SIGTERM')
    assert.equal(await ended(), 0)
  })
  test('moves home while it runs and writes, then needs the server no more; what is at home is whole and boots by itself', async (t) => {
    const world = await worldWithMachine(t, images)
    const home = world.path('home.qcow2')
    const { guest, said, ended } = boot(t, world, ['--move-home', home])
    await guest.writesOn()
    await until(() => /needs the snapshot no more/.test(said()), said)
    await world.killServer()
    await guest.writesOn()
    assert.match(await guest.shell(REREAD, 60_000), /0 bad/)
    await guest.writesOn()
    guest.child.stdin!.write('sync; poweroff -f\n')
    assert.equal(await ended(), 0, said())
    assert.deepEqual([leftBehind(world), machinesOf(world)], [[], []])
    execFileSync('qemu-img', ['check', '-q', home])
    assert.doesNotMatch(tool('qemu-img', ['info', home]), /backing/)
    tool('qemu-img', ['convert', '-O', 'raw', home, world.path('home.raw')])
    const { files, bad } = checkFileSystem(world.path('home.raw'), BOOT_FS_BYTES, world.directory)
    assert.ok(files > 20 && bad.length === 0, `${files} files, bad: ${bad.join()}`)
    const alone = startGuest(t, { directory: world.directory, disks: [{ path: home, format: 'qcow2' }] })
    await alone.line(/VERIFY OK/, { also: true })
    await alone.kill()
  })
  test('a move that cannot be, or is interrupted, leaves no file and ends clean', async (t) => {
    const world = await worldWithMachine(t, images)
    writeFileSync(world.path('there'), 'mine')
    const refused = boot(t, world, ['--move-home', world.path('there')])
    assert.equal(await refused.ended(), 1)
    assert.match(refused.said(), /nothing is replaced/)
    assert.equal(readFileSync(world.path('there'), 'utf8'), 'mine')
    mkdirSync(world.path('homes'))
    const cut = boot(t, world, ['--move-home', world.path('homes'), '--move-format', 'raw'])
    await until(() => existsSync(world.path('homes', 'boot.raw')) || cut.guest.child.exitCode !== null, cut.said)
    cut.child.kill('SIGINT')
    await cut.ended()
    assert.ok(/needs the snapshot no more/.test(cut.said()) || !existsSync(world.path('homes', 'boot.raw')), 'half a move leaves nothing')
    assert.deepEqual([leftBehind(world), machinesOf(world)], [[], []])
  })
  test('ends with us, even when we are killed, and its overlays with it', async (t) => {
    const world = await worldWithMachine(t, images)
    const { guest, child } = boot(t, world)
    await guest.line(/GUEST: ready/, { also: true })
    assert.equal(machinesOf(world).length, 1)
    assert.deepEqual(leftBehind(world).filter((name) => name.startsWith('roost-overlay')), [], 'overlays have no names once they are in use')
    child.kill('SIGKILL')
    await until(() => machinesOf(world).length === 0)
  })
})
