/** The spool's disk is full for real (a small tmpfs), with the target away: a clean refusal, and recovery without help. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { compareTrees } from '../support/compare-trees.js'
import { isRoot, RoostWorld } from '../support/run-roost.js'
import { systemRandom } from '../../src/core/random.js'

const MiB = 1024 * 1024
/** Whether this process may mount: a container's root often may not. */
const mayMount = isRoot && spawnSync('unshare', ['-m', 'true']).status === 0

for (const [what, reserve] of [['kept free by the reserve', '48M'], ['filled to the last byte', '1K']] as const)
  test(`a spool's disk that is ${what}: clients wait, and go on when the target is back`, { skip: mayMount ? false : 'mounting a tmpfs needs root', timeout: 120_000 }, async (t) => {
    const world = new RoostWorld()
    mkdirSync(world.dataDirectory)
    assert.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=112m,mode=0700', 'tmpfs', world.dataDirectory]).status, 0)
    t.after(async () => {
      await world.killServer()
      spawnSync('umount', ['-l', world.dataDirectory])
      await world.close()
    })
    await world.startServer(['--spool-reserve', reserve])
    await world.ok(['repo', 'create', 'main', '--target', `file:${world.path('place')}`])
    await world.ok(['repo', 'set', '--durability', 'spool'])
    const tree = world.path('tree')
    mkdirSync(tree)
    for (let at = 0; at < 40; at++) writeFileSync(join(tree, `f${at}`), systemRandom.bytes(4 * MiB)) // 160 MiB that do not compress
    renameSync(world.path('place'), world.path('place-away'))
    const backup = world.run(['backup', tree])
    // Long enough for the spool to fill; the client must still be at it then.
    const early = await Promise.race([backup.then((result) => result), new Promise<undefined>((resolve) => setTimeout(() => { resolve(undefined) }, 6_000))])
    assert.equal(early, undefined, early?.stderr)
    renameSync(world.path('place-away'), world.path('place'))
    const result = await backup
    assert.equal(result.code, 0, `${result.stderr}\n${world.log.slice(-3000)}`)
    assert.match(result.stderr, /waiting:/)
    await world.ok(['restore', 'latest', '--target', world.path('back')])
    assert.deepEqual(compareTrees(tree, join(world.path('back'), tree)).differences, [])
    await world.ok(['check', '--read-data'])
    rmSync(world.path('back'), { recursive: true })
  })
