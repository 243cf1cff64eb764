/** Backups of a running machine in the middle of which others die: QEMU, the way to its monitor, the server. */
import assert from 'node:assert/strict'
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync } from 'node:fs'
import { describe, test } from 'node:test'
import { guestImages } from '../support/guest-lab.js'
import { openScene } from '../support/live-scene.js'
import { jsonLines } from '../support/run-roost.js'

const { directory: images, skip } = guestImages()

describe('in the middle of a backup', { skip }, () => {
  test('QEMU is killed: a clear error; after its restart everything is read, with the reason', async (t) => {
    const scene = await openScene(t, { images })
    await scene.backUp()
    await scene.guest.writesOn()
    const slow = await scene.startSlowBackup('--no-parent')
    await scene.guest.kill()
    const { code, stdout } = await slow.ended
    assert.equal(code, 1)
    assert.equal(jsonLines(stdout).find(({ type }) => type === 'error')!['code'], 'POINT_IN_TIME_LOST', stdout)
    await scene.boot(t)
    await scene.assertNextIsRight('full', /QEMU ended without writing it/)
    // A bitmap that was stored once is there after a crash, and of no use.
    await scene.guest.quit()
    await scene.boot(t)
    await scene.guest.kill()
    await scene.boot(t)
    await scene.assertNextIsRight('full', /QEMU ended without closing the image/)
  })
  test('the connection to the monitor breaks: the backup goes on and cleans up over a new one', async (t) => {
    const scene = await openScene(t, { images })
    const path = scene.world.path('proxied.qmp')
    const relay = (): ChildProcess => spawn('socat', [`UNIX-LISTEN:${path},fork,unlink-early`, `UNIX-CONNECT:${scene.guest.qmp}`], { stdio: 'ignore', detached: true })
    let proxy = relay()
    const stopProxy = (): void => { try { process.kill(-proxy.pid!, 'SIGKILL') } catch { /* it is gone */ } }
    t.after(stopProxy)
    await scene.eventually('the relay', () => Promise.resolve(existsSync(path)))
    const slow = await scene.startSlowBackup('--vm', path)
    stopProxy()
    proxy = relay()
    const result = await slow.ended
    assert.equal(result.code, 0, `${result.stdout}\n${result.stderr}`)
    const id = jsonLines(result.stdout).find(({ type }) => type === 'snapshot')!['id'] as string
    await scene.assertClean(await scene.bitmapsOf(id))
    await scene.assertNextIsRight('incremental')
  })
  test('the server is killed: the backup goes on with the next one, of the same moment', async (t) => {
    const scene = await openScene(t, { images })
    const slow = await scene.startSlowBackup()
    await new Promise((resolve) => setTimeout(resolve, 3_000))
    await scene.world.killServer()
    await scene.guest.writesOn()
    await scene.world.startServer()
    const result = await slow.ended
    assert.equal(result.code, 0, `${result.stdout}\n${result.stderr}`)
    const id = jsonLines(result.stdout).find(({ type }) => type === 'snapshot')!['id'] as string
    assert.equal((await scene.check(id)).needsRecovery, false)
    await scene.assertClean(await scene.bitmapsOf(id))
    await scene.assertNextIsRight('incremental')
  })
})
