/** Bug class: an acknowledged snapshot that is not whole after a crash. Method: count the steps (file effects and index transactions) of a push
 *  with its commit, then die before, in the middle of and after every one of them, with and without the loss of unsynced data; open again:
 *  everything acknowledged restores, everything listed is whole, `check` is clean, and the push succeeds when it is run again.
 */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { assertWhole, atEveryStep, crashDuring, type Cut } from '../support/crash-steps.js'
import { CUT_MODES } from '../support/cut-effects.js'
import { buildWorld, pushTree, restoreTree, type World } from '../support/repository-world.js'

const BEFORE = [Buffer.from('acknowledged long ago'), Buffer.alloc(3000, 'a')]
const DURING = [Buffer.from('pushed while the process dies'), Buffer.alloc(5000, 'b')]

async function startWorld(t: TestContext): Promise<{ world: World; repository: LocalRepository; before: string }> {
  const world = await buildWorld(t)
  await world.create()
  const repository = await world.open(true)
  const before = await pushTree(repository, BEFORE)
  world.effects.arm()
  world.index.arm()
  return { world, repository, before }
}

async function surviveCut(t: TestContext, cut: Cut, powerLoss: boolean): Promise<void> {
  const scene = await startWorld(t)
  const { world, before } = scene
  const { answer: acknowledged, reopened } = await crashDuring(scene, cut, powerLoss, (repository) => pushTree(repository, DURING))
  await assertWhole(world, reopened, [[before, BEFORE], ...(acknowledged === undefined ? [] : [[acknowledged, DURING] as const])])
  const again = await pushTree(reopened, DURING)
  await assertWhole(world, reopened, [[before, BEFORE], [again, DURING]])
  await reopened.close()
}

test('a push survives a crash at every file effect and every index transaction', async (t) => {
  const probe = await startWorld(t)
  await pushTree(probe.repository, DURING)
  const { effects, index } = probe.world
  assert.ok(effects.steps.length > 15 && index.steps.length > 5, `the probe itself works: ${effects.steps.length} file effects, ${index.steps.length} transactions`)
  await atEveryStep(t, probe, surviveCut)
})

test('a repository is made, or can be made again, after a crash at every step of its creation', async (t) => {
  const probe = await buildWorld(t)
  await probe.create()
  const steps = probe.effects.steps.length
  assert.ok(steps > 10, 'the probe itself works')
  for (let step = 0; step < steps; step++) for (const mode of CUT_MODES)
    await t.test(`file effect ${step}, ${mode}`, async (inner) => {
      const world = await buildWorld(inner)
      world.effects.arm({ step, mode })
      await world.create().catch((error: unknown) => { assert.ok(error instanceof Error) })
      assert.ok(world.effects.isDead, 'the scripted crash fired')
      world.effects.loseUnsynced(world.directory)
      world.effects.arm()
      const opened = await world.open(true).catch(async () => {
        await world.create()
        return world.open(true)
      })
      assert.deepEqual(await restoreTree(opened, await pushTree(opened, BEFORE)), BEFORE)
      await opened.close()
    })
})
