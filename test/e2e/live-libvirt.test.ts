/** A running domain of a real libvirt, reached through virsh, with a QEMU of another user. */
import assert from 'node:assert/strict'
import { chmodSync, mkdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { BOOT_FS_BYTES, checkFileSystem, guestImages, newDisk } from '../support/guest-lab.js'
import { defineDomain, startLibvirt, withoutLibvirt } from '../support/libvirt-lab.js'
import { openWorld } from '../support/run-roost.js'

const { directory: images, skip } = guestImages()
if (withoutLibvirt !== false) console.log(`SKIPPED GROUP: domains of libvirt — ${withoutLibvirt}`)

test('a domain of libvirt is saved in full and by what changed, sound and frozen, with its XML, and left as it was', { skip: skip === false ? withoutLibvirt : skip }, async (t) => {
  const world = await openWorld(t)
  chmodSync(world.directory, 0o755) // QEMU is another user
  const folder = world.path('vm')
  mkdirSync(folder)
  const libvirt = await startLibvirt(t, world.path('libvirt'))
  defineDomain(t, libvirt, folder, newDisk(images, 'boot.raw', `${folder}/boot.qcow2`, 'qcow2').path)
  const until = async (what: RegExp): Promise<void> => {
    const from = readFileSync(`${folder}/serial`, 'latin1').length
    for (const end = performance.now() + 120_000; !what.test(readFileSync(`${folder}/serial`, 'latin1').slice(from));) {
      if (performance.now() > end) throw new Error(`no ${what}: ${readFileSync(`${folder}/serial`, 'latin1').slice(-500)}`)
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
  }
  await until(/GUEST: wrote/)
  const query = (command: string): string => libvirt.virsh('qemu-monitor-command', '--domain', 'web1', '--cmd', JSON.stringify({ execute: command }))
  mkdirSync(world.path('scratch'))
  for (const read of ['full', 'incremental']) {
    const lines = await world.json(['backup', '--vm', 'web1', '--libvirt', libvirt.uri, '--fleece-dir', world.directory])
    const moment = lines.find(({ type }) => type === 'moment') as unknown as { consistency: string; because: string; disks: { name: string; read: string; because: string }[] }
    assert.equal(moment.consistency, 'agent', moment.because)
    assert.deepEqual(moment.disks.map((disk) => [disk.name, disk.read]), [['virtio-disk0', read]], moment.disks[0]!.because)
    await world.ok(['restore', 'latest:virtio-disk0', '--to-file', world.path(`${read}.raw`)])
    const state = checkFileSystem(world.path(`${read}.raw`), BOOT_FS_BYTES, world.path('scratch'))
    assert.deepEqual([state.needsRecovery, state.bad], [false, []])
    assert.ok(state.files > 0)
    assert.doesNotMatch(query('query-named-block-nodes'), /roost-[0-9a-f]{8}-/)
    assert.match(query('query-block-exports'), /"return":\[\]/)
    assert.match(query('query-status'), /"running"/)
    await until(/GUEST: wrote/)
  }
  const machine = JSON.parse((await world.ok(['dump', 'latest:machine.json'])).stdout) as { name: string; libvirtXml: string }
  assert.equal(machine.name, 'web1')
  assert.match(machine.libvirtXml, /^<domain type='qemu'/)
  assert.doesNotMatch(machine.libvirtXml, /hunter2/, 'no secrets')
  const gone = await world.run(['backup', '--vm', 'nosuch', '--libvirt', libvirt.uri, '--fleece-dir', world.directory])
  assert.equal(gone.code, 1)
  assert.match(gone.stderr, /failed to get domain 'nosuch'.*MACHINE_UNREACHABLE/)
})
