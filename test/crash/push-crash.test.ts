/** Bug class: an acknowledged snapshot that is not whole after a crash. Method: count the steps (file effects and index transactions) of a push
 *  with its commit, then die before, in the middle of and after every one of them, with and without the loss of unsynced data; open again:
 *  everything acknowledged restores, everything listed is whole, `check` is clean, and the push succeeds when it is run again.
 */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { CUT_MODES } from '../support/cut-effects.js'
import { buildWorld, never, pushTree, restoreTree, type World } from '../support/repository-world.js'

const BEFORE = [Buffer.from('acknowledged long ago'), Buffer.alloc(3000, 'a')]
const DURING = [Buffer.from('pushed while the process dies'), Buffer.alloc(5000, 'b')]
type Cut = { readonly where: 'file' | 'index'; readonly step: number; readonly mode: 'before' | 'torn' | 'after' }

async function startWorld(t: TestContext): Promise<{ world: World; repository: LocalRepository; before: string }> {
  const world = await buildWorld(t)
  await world.create()
  const repository = await world.open(true)
  const before = await pushTree(repository, BEFORE)
  world.effects.arm()
  world.index.arm()
  return { world, repository, before }
}

async function assertWhole(world: World, repository: LocalRepository, promised: readonly (readonly [string, Buffer[]])[]): Promise<void> {
  for (const [id, data] of promised) assert.deepEqual(await restoreTree(repository, id), data)
  for (const { id } of (await repository.listSnapshots({ limit: 100 })).snapshots) await restoreTree(repository, id)
  for await (const event of repository.check({ readDataPercent: 100 }, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
  assert.deepEqual((await readdir(join(world.directory, 'spool'))).filter((name) => name.endsWith('.tmp')), [])
}

/** A dead process never answers: its caller gives up once nothing can move any more. */
async function untilLongDead(world: World, answered: AbortSignal): Promise<void> {
  for (let turns = 0; turns < 200 && !answered.aborted; turns += world.isDead() ? 1 : 0) await new Promise((resolve) => setImmediate(resolve))
}

async function surviveCut(t: TestContext, cut: Cut, powerLoss: boolean): Promise<void> {
  const { world, repository, before } = await startWorld(t)
  if (cut.where === 'file') world.effects.arm(cut)
  else world.index.arm({ step: cut.step, mode: cut.mode === 'before' ? 'before' : 'after' })
  const answered = new AbortController()
  const acknowledged = await Promise.race([
    pushTree(repository, DURING).catch((error: unknown) => { assert.ok(error instanceof Error) }), untilLongDead(world, answered.signal)])
  answered.abort()
  // What follows the acknowledgement can be cut too.
  for (let turns = 0; !world.isDead(); turns++) {
    assert.ok(turns < 100_000, 'the scripted crash fired')
    await new Promise((resolve) => setImmediate(resolve))
  }
  world.effects.arm({ step: 0, mode: 'before' }) // whatever of the dead process still runs has no effect
  await world.effects.settled()
  if (powerLoss) world.effects.loseUnsynced(world.directory)
  world.effects.arm()
  world.index.arm()
  const reopened = await world.open(false)
  await assertWhole(world, reopened, [[before, BEFORE], ...(acknowledged === undefined ? [] : [[acknowledged, DURING] as const])])
  const again = await pushTree(reopened, DURING)
  await assertWhole(world, reopened, [[before, BEFORE], [again, DURING]])
  await reopened.close()
}

test('a push survives a crash at every file effect and every index transaction', async (t) => {
  const probe = await startWorld(t)
  await pushTree(probe.repository, DURING)
  const fileSteps = probe.world.effects.steps.length, indexSteps = probe.world.index.steps.length
  await probe.repository.close()
  assert.ok(fileSteps > 15 && indexSteps > 5, `the probe itself works: ${fileSteps} file effects, ${indexSteps} transactions`)
  for (const powerLoss of [false, true]) {
    for (let step = 0; step < fileSteps; step++) for (const mode of CUT_MODES)
      await t.test(`file effect ${step} (${probe.world.effects.steps[step] ?? '?'}), ${mode}${powerLoss ? ', power lost' : ''}`, (inner) =>
        surviveCut(inner, { where: 'file', step, mode }, powerLoss))
    for (let step = 0; step < indexSteps; step++) for (const mode of ['before', 'after'] as const)
      await t.test(`index transaction ${step}, ${mode}${powerLoss ? ', power lost' : ''}`, (inner) => surviveCut(inner, { where: 'index', step, mode }, powerLoss))
  }
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
