/** Bug class: a collection that dies in the middle and takes with it what a snapshot needs, or leaves for ever what nothing needs. Method: count
 *  the steps of forgetting a snapshot and collecting (a pack is dropped, one is repacked, two kinds of them), die at each, open again: every
 *  snapshot that is left restores, `check` is clean; and after one more collection the target holds exactly the packs of the index.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { CHUNK_KINDS, parseSnapshotId } from '../../src/core/ids.js'
import { hashChunk } from '../../src/core/hash.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { assertWhole, atEveryStep, crashDuring, type CrashScene, type Cut } from '../support/crash-steps.js'
import { buildTree, buildWorld, chunksOf, commitRequest, frameBody, never, openPush, pushTree } from '../support/repository-world.js'

const KEPT = [Buffer.from('needed all the time'), Buffer.alloc(3_000, 'k')]
const GONE = [Buffer.from('needed by nobody'), Buffer.alloc(5_000, 'g'), Buffer.alloc(4_000, 'h')]
const ALONE = [Buffer.alloc(6_000, 'x'), Buffer.from('in a pack of its own')]

interface Scene extends CrashScene { readonly kept: string; readonly forgotten: readonly string[] }
async function startWorld(t: TestContext): Promise<Scene> {
  const world = await buildWorld(t)
  await world.create()
  const repository = await world.open(true)
  // One data pack that is needed in part, one that is not needed at all.
  const { session, key } = await openPush(repository, 'both')
  const both = buildTree(key, [...KEPT, ...GONE])
  await repository.putChunks(session, frameBody(key, chunksOf(both)), never)
  const mixed = (await repository.commit(session, commitRequest(key, both), never)).snapshot.id
  const kept = await pushTree(repository, KEPT)
  const alone = await pushTree(repository, ALONE)
  world.effects.arm()
  world.index.arm()
  return { world, repository, kept, forgotten: [mixed, alone] }
}
async function forgetAndCollect(repository: LocalRepository, { forgotten }: Scene): Promise<Readonly<Record<string, number>> | undefined> {
  for (const id of forgotten) await repository.deleteSnapshot(parseSnapshotId(id))
  return collect(repository)
}
async function collect(repository: LocalRepository): Promise<Readonly<Record<string, number>> | undefined> {
  let counts: Readonly<Record<string, number>> | undefined
  for await (const event of repository.collect({}, never)) if (event.type === 'done') counts = event.counts
  return counts
}
async function assertNothingLeftOver({ world }: Scene, repository: LocalRepository): Promise<void> {
  while ((await repository.stats()).spoolPacks > 0) await setImmediate()
  await collect(repository)
  const files = readdirSync(join(world.directory, 'store', 'packs'), { recursive: true, encoding: 'utf8' }).filter((name) => /[0-9a-f]{64}$/.test(name))
  const { packs } = await repository.stats()
  assert.equal(files.length, packs)
  assert.deepEqual(readdirSync(join(world.directory, 'spool')), [])
}

async function surviveCut(t: TestContext, cut: Cut, powerLoss: boolean): Promise<void> {
  const scene = await startWorld(t)
  const { world, kept, forgotten } = scene
  const { reopened } = await crashDuring(scene, cut, powerLoss, (repository) => forgetAndCollect(repository, scene))
  await assertWhole(world, reopened, [[kept, KEPT]])
  // What was collected can be pushed again, and what was not is still known.
  const again = await pushTree(reopened, GONE)
  await assertWhole(world, reopened, [[kept, KEPT], [again, GONE]])
  for (const id of [...forgotten, again]) await reopened.deleteSnapshot(parseSnapshotId(id)).catch(() => undefined) // it may be forgotten already
  await collect(reopened)
  await assertNothingLeftOver(scene, reopened)
  const { session, key } = await openPush(reopened)
  const present = await reopened.findMissing(session, Buffer.concat([KEPT[1]!, GONE[1]!].map((bytes) => hashChunk(key, bytes, CHUNK_KINDS.data))))
  assert.equal(present[0], 0b10)
  await assertWhole(world, reopened, [[kept, KEPT]])
  await reopened.close()
}

test('a collection survives a crash at every file effect and every index transaction', async (t) => {
  const probe = await startWorld(t)
  const counts = await forgetAndCollect(probe.repository, probe)
  assert.ok(counts?.['packsDropped']! >= 2 && counts?.['packsRepacked']! >= 1, `the probe itself works: ${JSON.stringify(counts)}`)
  assert.ok(probe.world.index.steps.includes('condemnPack') && probe.world.index.steps.includes('movePack') && probe.world.index.steps.includes('settleDoomed'))
  await atEveryStep(t, probe, surviveCut)
})
