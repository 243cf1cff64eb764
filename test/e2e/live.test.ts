/** Backups of a running machine: a full one and five of what changed, while it writes; with and without an agent; several disks of one moment. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { parseMachineDescription } from '../../client/machine/parse-description.js'
import { guestImages } from '../support/guest-lab.js'
import { openScene, type LiveBackup } from '../support/live-scene.js'

const MiB = 1024 * 1024
const { directory: images, skip } = guestImages()

describe('a machine that writes on', { skip }, () => {
  test('is saved in full and then five times by what changed: each time sound, each file whole, and it boots by itself', async (t) => {
    const scene = await openScene(t, { images, uuid: '6f1c1fa8-4f0b-4c8e-9a39-0d7c2f6a1b11', name: 'web1' })
    const backups: LiveBackup[] = []
    let files = 0
    for (let round = 0; round < 6; round++) {
      const written = Number(await scene.guest.shell('wc -l < /data/manifest'))
      const backup = await scene.backUp()
      backups.push(backup)
      const [disk] = backup.moment.disks
      assert.equal(disk!.read, round === 0 ? 'full' : 'incremental', disk!.because ?? '')
      assert.equal(backup.moment.consistency, 'agent', backup.moment.because ?? '')
      assert.equal(backup.statistics['frozenMs'], backup.moment.frozenMs)
      const state = await scene.check(backup.id)
      assert.equal(state.needsRecovery, false, 'frozen, the journal is empty')
      assert.ok(state.files >= written, `${state.files} files of at least ${written} that were fsynced before`)
      assert.ok(state.files >= files)
      files = state.files
      if (round > 0) assert.ok(backup.statistics['bytesRead']! < backups[0]!.statistics['bytesRead']! / 2, `read ${backup.statistics['bytesRead']} bytes of what changed`)
      await scene.guest.writesOn()
    }
    await scene.bootsByItself(t, backups.at(-1)!.id)
    await scene.bootsByItself(t, backups[2]!.id)
    const machine = parseMachineDescription(Buffer.from((await scene.world.ok(['dump', `${backups[1]!.id}:machine.json`])).stdout, 'latin1'))
    assert.deepEqual({ ...machine, capturedAt: '', qemu: { ...machine.qemu, version: '', machineType: '', disks: [], networkCards: [] } }, {
      format: 1, name: 'web1', uuid: '6f1c1fa8-4f0b-4c8e-9a39-0d7c2f6a1b11', capturedAt: '', consistency: 'agent',
      qemu: { version: '', machineType: '', cpus: 1, cpuModel: 'qemu64', memoryBytes: 160 * MiB, firmware: 'bios', disks: [], networkCards: [] },
    })
    assert.match(machine.qemu!.machineType, /^pc-i440fx/)
    assert.deepEqual(machine.qemu!.disks, [{ image: 'vda', bytes: 256 * MiB, device: 'virtio-blk-pci', qdev: '/machine/peripheral/vda', format: 'qcow2', file: scene.disks[0]!.path, bootIndex: 1 }])
    await scene.world.ok(['check', '--read-data'])
  })
  test('without an agent is saved as after a power cut: the journal is replayed, and every fsynced file is whole', async (t) => {
    const scene = await openScene(t, { images, agent: false })
    for (const read of ['full', 'incremental']) {
      const written = Number(await scene.guest.shell('wc -l < /data/manifest'))
      const backup = await scene.backUp()
      assert.equal(backup.moment.consistency, 'crash')
      assert.match(backup.moment.because!, /no port for a guest agent/)
      assert.equal(backup.moment.disks[0]!.read, read)
      const state = await scene.check(backup.id)
      assert.ok(state.files >= written)
      if (read === 'incremental') await scene.bootsByItself(t, backup.id)
      await scene.guest.writesOn()
    }
  })
  test('with an agent that hangs or is slow is saved all the same, and goes on', async (t) => {
    const scene = await openScene(t, { images })
    await scene.guest.shell('kill -STOP $(cat /run/qga.pid); echo stopped')
    const backup = await scene.backUp()
    assert.equal(backup.moment.consistency, 'crash')
    assert.match(backup.moment.because!, /did not answer/)
    await scene.guest.shell('kill -CONT $(cat /run/qga.pid); echo on')
    await scene.guest.writesOn()
    // One that freezes too slowly is thawed before anything else.
    await scene.guest.shell('echo 4 > /run/hook-sleep; echo set')
    const late = await scene.backUp('--freeze-timeout', '2')
    assert.deepEqual([late.moment.consistency, late.moment.because], ['crash', 'The guest agent did not answer guest-fsfreeze-freeze within 2 s.'])
    await scene.guest.writesOn()
    await scene.guest.shell('rm /run/hook-sleep; echo removed')
    assert.equal((await scene.backUp()).moment.consistency, 'agent')
    await scene.check(backup.id)
  })
  test('with two disks is saved of one moment: what it writes to one after the other is never the wrong way round', async (t) => {
    const scene = await openScene(t, { images, formats: ['qcow2', 'raw'], agent: false })
    for (const read of ['full', 'incremental']) {
      const backup = await scene.backUp()
      assert.deepEqual(backup.moment.disks.map((disk) => [disk.name, disk.read]), [['vda', read], ['vdb', read]])
      const { files } = await scene.check(backup.id)
      await scene.check(backup.id, 'vdb', 0)
      const counter = await scene.world.path('scratch', 'checked', 'counter')
      const { readFileSync } = await import('node:fs')
      // The line of file N is fsynced to the first disk before N goes to the second, and the next line comes after that.
      const last = Number(readFileSync(counter, 'utf8'))
      assert.ok(last === files - 1 || last === files - 2, `the second disk is at ${last}, the first has ${files} files`)
      await scene.guest.writesOn()
    }
  })
})
