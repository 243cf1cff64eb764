/** Backups of a running machine whose client is killed, stopped or interrupted in the middle, with and without its watchdog. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { describe, test } from 'node:test'
import { guestImages } from '../support/guest-lab.js'
import { openScene } from '../support/live-scene.js'

const { directory: images, skip } = guestImages()

/** The watchdog of a client: its only child that is one. */
const watchdogOf = (pid: number): number => Number(spawnSync('pgrep', ['-P', `${pid}`, '-f', 'watchdog-process'], { encoding: 'utf8' }).stdout.trim())

describe('a client that is killed', { skip }, () => {
  test('while it reads: its watchdog takes everything out of QEMU, and the next run misses nothing', async (t) => {
    const scene = await openScene(t, { images })
    const first = await scene.backUp()
    await scene.guest.writesOn()
    const slow = await scene.startSlowBackup('--audit', '100')
    slow.child.kill('SIGKILL')
    await slow.ended
    const bitmaps = await scene.bitmapsOf(first.id)
    await scene.eventually('a clean QEMU', () => scene.isClean(bitmaps))
    await scene.assertClean(bitmaps)
    await scene.guest.writesOn()
    await scene.assertNextIsRight('incremental')
  })
  test('while the guest is frozen: the watchdog thaws it', async (t) => {
    const scene = await openScene(t, { images })
    const first = await scene.backUp()
    await scene.guest.shell('echo 2 > /run/hook-sleep; echo set')
    const child = scene.world.start([...scene.args(), '--json'], 'pipe')
    await scene.guest.line(/hook freeze/)
    child.kill('SIGKILL')
    await scene.guest.line(/hook thaw/)
    await scene.guest.writesOn()
    await scene.guest.shell('rm /run/hook-sleep; echo removed')
    const bitmaps = await scene.bitmapsOf(first.id)
    await scene.eventually('a clean QEMU', () => scene.isClean(bitmaps))
    await scene.assertNextIsRight('incremental')
  })
  test('together with its watchdog, while the guest is frozen and while it reads: the next run cleans up', async (t) => {
    const scene = await openScene(t, { images })
    await scene.backUp()
    await scene.guest.shell('echo 2 > /run/hook-sleep; echo set')
    const child = scene.world.start([...scene.args(), '--json'], 'pipe')
    await scene.guest.line(/hook freeze/)
    process.kill(watchdogOf(child.pid!), 'SIGKILL')
    child.kill('SIGKILL')
    await new Promise((resolve) => setTimeout(resolve, 3_000)) // the guest comes to stand
    assert.ok((await scene.guest.traces()).nodes.some((name) => name.includes('-mark')))
    const second = await scene.backUp()
    assert.ok(scene.guest.lines.filter((line) => /hook thaw/.test(line)).length >= 3, 'thawed for the dead run, then for this one')
    assert.equal(second.moment.disks[0]!.read, 'incremental', second.moment.disks[0]!.because ?? '')
    await scene.guest.shell('rm /run/hook-sleep; echo removed')
    await scene.guest.writesOn()

    const slow = await scene.startSlowBackup('--audit', '100')
    process.kill(watchdogOf(slow.child.pid!), 'SIGKILL')
    slow.child.kill('SIGKILL')
    await slow.ended
    assert.ok((await scene.guest.traces()).nodes.length > 0)
    await scene.guest.writesOn()
    for (const name of scene.fleeces()) rmSync(scene.world.path(name), { recursive: true })
    await scene.assertNextIsRight('incremental')
  })
  test('by Ctrl-C ends with 130 and leaves nothing; one that is stopped while the guest stands is ended by its watchdog', async (t) => {
    const scene = await openScene(t, { images })
    const first = await scene.backUp()
    const slow = await scene.startSlowBackup('--audit', '100')
    slow.child.kill('SIGINT')
    assert.equal((await slow.ended).code, 130)
    await scene.assertClean(await scene.bitmapsOf(first.id))
    assert.deepEqual(scene.fleeces(), [])

    await scene.guest.shell('echo 1 > /run/hook-sleep; echo set')
    const child = scene.world.start([...scene.args('--freeze-timeout', '2'), '--json'], 'pipe')
    const ended = new Promise<string | null>((resolve) => child.once('exit', (_code, signal) => { resolve(signal) }))
    await scene.guest.line(/hook freeze/)
    child.kill('SIGSTOP')
    await scene.guest.line(/hook thaw/)
    assert.equal(await ended, 'SIGKILL')
    await scene.guest.writesOn()
    await scene.guest.shell('rm /run/hook-sleep; echo removed')
    const bitmaps = await scene.bitmapsOf(first.id)
    await scene.eventually('a clean QEMU', () => scene.isClean(bitmaps))
    await scene.assertNextIsRight('incremental')
  })
})
