/** Disks of other kinds than virtio-blk are led through a filter and back just the same. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { guestImages } from '../support/guest-lab.js'
import { openScene } from '../support/live-scene.js'

const { directory: images, skip } = guestImages()
const KINDS = [
  ['a SCSI disk', 'scsi-hd', ['-device', 'virtio-scsi-pci']],
  ['an IDE disk', 'ide-hd', []],
] as const

describe('a running machine with', { skip }, () => {
  for (const [what, device, extra] of KINDS) test(`${what} is saved in full and by what changed`, async (t) => {
    const scene = await openScene(t, { images, device, extra })
    for (const read of ['full', 'incremental']) {
      const backup = await scene.backUp('--audit', '100')
      assert.deepEqual(backup.moment.disks.map((disk) => [disk.name, disk.read]), [['vda', read]])
      assert.equal((await scene.check(backup.id)).needsRecovery, false)
      await scene.guest.writesOn()
    }
  })
})
