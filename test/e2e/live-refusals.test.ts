/** What a backup of a running machine refuses, and what it costs when its fleece fails: itself, never the guest. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { guestImages } from '../support/guest-lab.js'
import { openScene, type LiveScene } from '../support/live-scene.js'
import { isRoot } from '../support/run-roost.js'

const { directory: images, skip } = guestImages()
/** What the guest writes over while a backup reads: beside the files whose sums it has written down. */
const WRITE = 'dd if=/dev/urandom of=/data/over bs=64k count=240 conv=fsync 2>/dev/null && echo 0'
/** Its old content must go to the fleece. Says how many of its writes failed. */
const OVERWRITE = 'F=0; for i in $(seq 0 4 236); do dd if=/dev/urandom of=/data/over bs=64k count=4 seek=$i conv=notrunc,fsync 2>/dev/null || F=$((F+1)); done; echo $F'

async function assertGuestUnharmed(scene: LiveScene): Promise<void> {
  assert.equal(await scene.guest.shell('dmesg | grep -ci "i/o error"; true'), '0')
  assert.ok(!scene.guest.lines.includes('GUEST: WRITE FAILED'))
  await scene.guest.writesOn()
}

describe('a fleece that fails', { skip }, () => {
  test('because it reaches its limit ends the backup, and the guest writes on without an error', async (t) => {
    const scene = await openScene(t, { images })
    assert.equal(await scene.guest.shell(WRITE, 60_000), '0')
    const first = await scene.backUp()
    const slow = await scene.startSlowBackup('--no-parent', '--limit-read', '1M', '--fleece-size', '1M') // what it would send is there already
    assert.equal(await scene.guest.shell(OVERWRITE, 60_000), '0')
    const { code, stdout } = await slow.ended
    assert.equal(code, 1)
    assert.match(stdout, /"FLEECE_FAILED"/)
    await assertGuestUnharmed(scene)
    await scene.assertClean(await scene.bitmapsOf(first.id))
    await scene.assertNextIsRight('incremental')
  })
  test('because its file system is full ends the backup, and the guest writes on without an error', { skip: isRoot ? false : 'mounting needs root' }, async (t: TestContext) => {
    const scene = await openScene(t, { images })
    const small = mkdtempSync(join(tmpdir(), 'roost-small-')) // outside the world's directory, which goes first
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=900k', 'none', small]).status === 0
    if (!mounted) { t.skip('SKIPPED GROUP: no file system can be mounted here'); return }
    t.after(() => {
      spawnSync('umount', ['-l', small])
      rmSync(small, { recursive: true })
    })
    assert.equal(await scene.guest.shell(WRITE, 60_000), '0')
    const slow = await scene.startSlowBackup('--fleece-dir', small)
    assert.equal(await scene.guest.shell(OVERWRITE, 60_000), '0')
    const { code, stdout } = await slow.ended
    assert.equal(code, 1)
    assert.match(stdout, /"(?:FLEECE_FAILED|POINT_IN_TIME_LOST)"/)
    await assertGuestUnharmed(scene)
    await scene.assertClean([])
  })
})

describe('a backup is refused', { skip }, () => {
  test('while another one of the machine runs, whichever monitor it comes by; and while QEMU serves something else', async (t) => {
    const scene = await openScene(t, { images })
    const slow = await scene.startSlowBackup()
    const names = JSON.stringify(await scene.guest.traces())
    const run = async (...more: readonly string[]): Promise<string> => {
      const result = await scene.world.run([...scene.args(...more), '--json'])
      assert.equal(result.code, 1)
      assert.match(result.stdout, /"MACHINE_BUSY"/)
      return result.stdout
    }
    assert.match(await run(), /Another backup of this machine is running/)
    assert.match(await run('--vm', scene.guest.spareQmp), /Another backup of this machine is running/)
    assert.match(await run('--vm', scene.guest.controlPath), /another program is connected/)
    assert.equal(JSON.stringify(await scene.guest.traces()), names, 'the running one is untouched')
    assert.equal((await slow.ended).code, 0)

    await scene.guest.command('nbd-server-start', { addr: { type: 'unix', data: { path: scene.world.path('other.sock') } } })
    await scene.guest.command('block-export-add', { type: 'nbd', id: 'of-another', 'node-name': 'node0', name: 'x' })
    assert.match(await run(), /serves disks over NBD already/)
    const traces = await scene.guest.traces()
    assert.deepEqual([traces.exports, traces.nodes], [['of-another'], []], 'the other\'s export goes on')
    await scene.guest.command('nbd-server-stop')
    await scene.assertNextIsRight('incremental')
  })
  test('for disks that are not there or cannot be saved, and leaves out what is removable, read-only or excluded', async (t) => {
    const scene = await openScene(t, { images, formats: ['qcow2', 'raw'], extra: ['-device', 'virtio-scsi-pci', '-device', 'scsi-cd,id=cd0'] })
    assert.match((await scene.failToBackUp('--disk', 'vdz')).message, /no disk "vdz": it has /)
    assert.match((await scene.failToBackUp('--exclude-disk', 'vda', '--exclude-disk', 'vdb')).message, /no disk to save/)
    const only = await scene.backUp('--exclude-disk', 'vdb')
    assert.deepEqual(only.moment.disks.map(({ name }) => name), ['vda'])
    const both = await scene.backUp()
    assert.deepEqual(both.moment.disks.map(({ name, read, because }) => [name, read, because]),
      [['vda', 'incremental', null], ['vdb', 'full', 'the earlier snapshot does not have this disk']])
    const shown = await scene.world.run(scene.args())
    assert.match(shown.stderr, /not saved: cd0 \(scsi-cd\) is empty/)
    assert.match(shown.stderr, /file systems were frozen for \d+ ms/)
  })
  test('before anything is touched when the repository cannot be reached; a guest that is found frozen is thawed', async (t) => {
    const scene = await openScene(t, { images })
    await scene.world.stopServer()
    scene.world.environment['ROOST_RETRY_SECONDS'] = '1'
    assert.match((await scene.failToBackUp()).code, /^(?:SERVER_UNREACHABLE|STORE_UNAVAILABLE)$/)
    await scene.world.startServer()
    assert.equal(spawnSync('socat', ['-t', '3', '-', `UNIX-CONNECT:${scene.guest.agent}`], { input: '{"execute":"guest-fsfreeze-freeze"}\n', encoding: 'utf8' }).status, 0)
    await scene.guest.line(/hook freeze/, { also: true })
    const result = await scene.world.run(scene.args())
    assert.equal(result.code, 0, result.stderr)
    assert.match(result.stderr, /was found frozen and stayed so: \d+ file systems are thawed/)
    await scene.guest.writesOn()
  })
})
