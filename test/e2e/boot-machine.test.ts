/** A machine with two disks that was saved while it ran: back from its own description, under way home, disk by disk. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { describe, test } from 'node:test'
import { BOOT_FS_BYTES, checkFileSystem, Guest, guestImages, newDisk, startGuest } from '../support/guest-lab.js'
import { jsonLines, openWorld, tool } from '../support/run-roost.js'

const { directory: images, skip } = guestImages()
const MiB = 1024 * 1024

describe('a machine with two disks', { skip }, () => {
  test('comes back from its own description: by a line for sh, by a test, on its way home; one of its disks is served by its number', async (t) => {
    const world = await openWorld(t)
    const guest = startGuest(t, { directory: world.directory, disks: [newDisk(images, 'boot.raw', world.path('a.qcow2'), 'qcow2'), newDisk(images, 'data.raw', world.path('b.raw'), 'raw')], uuid: '01234567-89ab-cdef-0123-456789abcdef' })
    await guest.writesOn()
    const note = `echo $ROOST_HOOK >> ${world.path('hooks')}`
    await world.ok(['backup', '--vm', guest.qmp, '--source', 'web1', '--fleece-dir', world.directory, '--pre', note, '--post-point', note, '--post', note])
    assert.equal(readFileSync(world.path('hooks'), 'utf8'), 'pre\npost-point\npost\n')
    await guest.kill()
    await world.ok(['restore', 'latest', '--target', world.path('back'), '--format', 'qcow2'])
    const described = JSON.parse((await world.ok(['machine', 'latest'])).stdout) as { qemu: { memoryBytes: number; disks: unknown[] } }
    assert.deepEqual([described.qemu.memoryBytes, described.qemu.disks.length], [160 * MiB, 2])
    const line = (await world.ok(['machine', 'latest', '--as', 'qemu', '--disks', world.path('back')])).stdout.trimEnd()
    const started = new Guest(spawn('sh', ['-c', `exec ${line} -accel tcg,tb-size=64`], { cwd: '/', stdio: ['pipe', 'pipe', 'pipe'] }), '', '', '')
    t.after(() => started.kill())
    await started.line(/VERIFY OK/, { also: true })
    await started.kill()
    assert.match((await world.ok(['machine', 'latest', '--as', 'libvirt', '--disks', '/srv/web1'])).stdout, /<source file='\/srv\/web1\/vda\.qcow2'\/>/)
    const { stdout } = await world.ok(['boot-test', 'latest', '--wait-agent', '--timeout', '90', '--json'])
    assert.equal(jsonLines(stdout).at(-1)!['result'], 'ok', 'all disks, as it had them')
  
    const booting = world.start(['boot', 'latest', '--json', '--move-home', world.path('home/')], 'pipe')
    t.after(() => { booting.kill('SIGKILL') })
    const records: Record<string, unknown>[] = []
    for await (const text of createInterface({ input: booting.stdout! })) {
      records.push(JSON.parse(text) as Record<string, unknown>)
      if (records.at(-1)!['type'] === 'moved') break
    }
    booting.kill('SIGINT')
    assert.deepEqual(await once(booting, 'exit'), [0, null])
    assert.deepEqual(records.map(({ type }) => type), ['booted', 'moved'])
    assert.deepEqual((records[1]!['files'] as { disk: string; path: string }[]).map(({ disk, path }) => [disk, path]), [['vda', world.path('home', 'vda.qcow2')], ['vdb', world.path('home', 'vdb.qcow2')]])
    for (const name of ['vda', 'vdb']) tool('qemu-img', ['check', '-q', world.path('home', `${name}.qcow2`)])
    tool('qemu-img', ['convert', '-O', 'raw', world.path('home', 'vda.qcow2'), world.path('vda.raw')])
    assert.deepEqual(checkFileSystem(world.path('vda.raw'), BOOT_FS_BYTES, world.directory).bad, [])

    const serving = world.start(['nbd', 'latest', '--disk', '2', '--json'], 'pipe')
    t.after(() => { serving.kill('SIGKILL') })
    const [served] = await once(createInterface({ input: serving.stdout! }), 'line') as [string]
    assert.deepEqual((JSON.parse(served) as { exports: { name: string }[] }).exports.map(({ name }) => name), ['vdb'])
    serving.kill('SIGINT')
    await once(serving, 'exit')
  })
})
