/** Disks that a thread of their own serves. With QEMU 7.2 the guest would not survive a backup: they are refused. With QEMU 10 they are saved as any other. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { describe, test } from 'node:test'
import { guestImages, qemuTen } from '../support/guest-lab.js'
import { openScene } from '../support/live-scene.js'

const { directory: images, skip } = guestImages()
const ten = skip === false ? qemuTen() : { qemu: undefined, skip }
const isOld = skip === false && /version [789]\./.test(spawnSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8' }).stdout)

/** One of each kind, each in a thread of its own. */
const MACHINE = {
  formats: ['qcow2', 'raw'], device: ['virtio-blk-pci,iothread=io0', 'scsi-hd,bus=scsi0.0'],
  extra: ['-object', 'iothread,id=io0', '-object', 'iothread,id=io1', '-device', 'virtio-scsi-pci,id=scsi0,iothread=io1'],
} as const

describe('disks in iothreads', { skip: skip !== false ? skip : isOld ? false : 'the QEMU that is installed can save them' }, () => {
  test('are refused with an old QEMU, and the guest goes on', async (t) => {
    const scene = await openScene(t, { images, ...MACHINE })
    for (const [left, name] of [['vda', 'vdb'], ['vdb', 'vda']] as const) {
      const { code, message } = await scene.failToBackUp('--exclude-disk', left)
      assert.equal(code, 'MACHINE_UNSUPPORTED')
      assert.match(message, new RegExp(`The disk ${name} is served by an iothread.*--exclude-disk ${name}`))
    }
    await scene.guest.writesOn()
  })
})

describe('disks in iothreads of QEMU 10', { skip: ten.skip }, () => {
  test('are saved in full and by what changed, also after a client was killed while it read', async (t) => {
    const scene = await openScene(t, { images, ...MACHINE, qemu: ten.qemu! })
    for (const read of ['full', 'incremental']) {
      const backup = await scene.backUp('--audit', '100')
      assert.deepEqual(backup.moment.disks.map((disk) => [disk.name, disk.read]), [['vda', read], ['vdb', read]])
      assert.equal((await scene.check(backup.id)).needsRecovery, false)
      await scene.check(backup.id, 'vdb', 0)
      await scene.guest.writesOn()
    }
    // What QEMU 7.2 dies of: somebody hangs up while the disk's thread serves him.
    const bitmaps = (await scene.guest.traces()).bitmaps
    const slow = await scene.startSlowBackup('--audit', '100')
    slow.child.kill('SIGKILL')
    await slow.ended
    await scene.eventually('a clean QEMU', () => scene.isClean(bitmaps))
    await scene.guest.writesOn()
    await scene.assertNextIsRight('incremental')
  })
})
