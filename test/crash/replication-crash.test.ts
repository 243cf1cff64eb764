/** Bug class: a replica that lists a snapshot which is not whole, or does not come to an end, after its server died. Method: as of a push: every file
 *  effect and index transaction of taking a snapshot in, with and without the loss of unsynced data; then the replication is run again.
 */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { assertWhole, atEveryStep, crashDuring, type CrashScene, type Cut } from '../support/crash-steps.js'
import { buildWorld, pushTree } from '../support/repository-world.js'
import { BroughtInMemory, familyOf, replicate } from '../support/replication-scene.js'
import type { AcceptedFamily } from '../../src/repo/replica/family.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'

const BEFORE = [Buffer.from('replicated long ago'), Buffer.alloc(3000, 'a')]
const DURING = [...BEFORE, Buffer.from('replicated while the process dies'), Buffer.alloc(5000, 'b')]

/** The source outlives all of its replicas' deaths. */
interface Origin { readonly source: LocalRepository; readonly family: AcceptedFamily; readonly ids: readonly [string, string] }
async function startOrigin(t: TestContext): Promise<Origin> {
  const world = await buildWorld(t, undefined, { seed: 1 })
  await world.create()
  const source = await world.open(true)
  return { source, family: await familyOf(source), ids: [await pushTree(source, BEFORE), await pushTree(source, DURING)] }
}
async function startScene(t: TestContext, { source, family, ids: [, during] }: Origin): Promise<CrashScene> {
  const world = await buildWorld(t, undefined, { seed: 2 })
  await world.create({}, family)
  const repository = await world.open(true)
  const brought = new BroughtInMemory()
  await brought.add(during) // not yet
  await replicate(source, repository, { brought })
  world.effects.arm()
  world.index.arm()
  return { world, repository }
}
async function surviveCut(t: TestContext, origin: Origin, cut: Cut, powerLoss: boolean): Promise<void> {
  const { source, ids: [before, during] } = origin
  const scene = await startScene(t, origin)
  const { answer, reopened } = await crashDuring(scene, cut, powerLoss, (sink) => replicate(source, sink))
  await assertWhole(scene.world, reopened, [[before, BEFORE], ...(answer === undefined ? [] : [[during, DURING] as const])])
  await replicate(source, reopened)
  await assertWhole(scene.world, reopened, [[before, BEFORE], [during, DURING]])
  const { snapshots } = await reopened.listSnapshots({ limit: 10 })
  assert.deepEqual(snapshots.map(({ signer }) => signer), [source.info().verifyKey, source.info().verifyKey])
  await reopened.close()
}

test('a replica survives a crash at every file effect and every index transaction of taking a snapshot in', async (t) => {
  const origin = await startOrigin(t)
  const probe = await startScene(t, origin)
  await replicate(origin.source, probe.repository)
  const { effects, index } = probe.world
  assert.ok(effects.steps.length > 15 && index.steps.length > 4, `the probe itself works: ${effects.steps.length} file effects, ${index.steps.length} transactions`)
  await atEveryStep(t, probe, (inner, cut, powerLoss) => surviveCut(inner, origin, cut, powerLoss))
  await origin.source.close()
})
