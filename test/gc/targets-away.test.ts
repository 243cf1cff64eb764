/** Deletions on targets that are down, disabled, or that refuse: remembered, and done when it can be. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { RoostError } from '../../src/core/errors.js'
import { parseSnapshotId } from '../../src/core/ids.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { never, pushTree, restoreTree } from '../support/repository-world.js'
import { assertAlike, caughtUp, eventually, twoTargets, type Scene } from '../support/two-targets.js'

const KEPT = [randomBytes(2_000)], GONE = [randomBytes(3_000)]

async function collect(repository: LocalRepository, dryRun = false): Promise<Readonly<Record<string, number>>> {
  let counts: Readonly<Record<string, number>> | undefined
  for await (const event of repository.collect({ dryRun }, never)) if (event.type === 'done') counts = event.counts
  return counts!
}
const packsOn = async (scene: Scene, place: string): Promise<number> =>
  (await readdir(join(scene.pathOf(place), 'packs'), { recursive: true })).filter((name) => /[0-9a-f]{64}$/.test(name)).length
async function pushBoth(scene: Scene): Promise<string> {
  const kept = await pushTree(scene.repository, KEPT)
  const gone = await pushTree(scene.repository, GONE)
  await caughtUp(scene.repository)
  await scene.repository.deleteSnapshot(parseSnapshotId(gone))
  await eventually('nothing is on its way any more', async () => (await collect(scene.repository, true))['packsDropped'] === 2)
  return kept
}
const doomed = async ({ repository }: Scene): Promise<number> => (await collect(repository))['packsDoomed']!

test('a target that is down keeps its packs until it answers again, and they are deleted then without being asked for', async (t) => {
  const scene = await twoTargets(t)
  const kept = await pushBoth(scene)
  scene.places.get('b')!.isDown = true
  const counts = await collect(scene.repository)
  assert.deepEqual([counts['packsDropped'], counts['packsDoomed']], [2, 2])
  assert.deepEqual([await packsOn(scene, 'a'), await packsOn(scene, 'b')], [2, 4])
  assert.deepEqual(await restoreTree(scene.repository, kept), KEPT)
  scene.places.get('b')!.isDown = false
  await eventually('the target was cleaned', async () => await packsOn(scene, 'b') === 2)
  await caughtUp(scene.repository)
  assert.equal(await doomed(scene), 0)
  assert.deepEqual(await restoreTree(scene.repository, kept), KEPT)
})

test('what a target that is down still holds is remembered across a restart, and is never taken in again', async (t) => {
  const scene = await twoTargets(t)
  const kept = await pushBoth(scene)
  scene.places.get('b')!.isDown = true
  await collect(scene.repository)
  await scene.repository.close()
  const next = { ...scene, repository: await scene.world.open(true) }
  t.after(() => next.repository.close())
  assert.equal((await next.repository.stats()).packs, 2)
  assert.equal(await packsOn(scene, 'b'), 4)
  scene.places.get('b')!.isDown = false
  await eventually('the target was cleaned', async () => await packsOn(scene, 'b') === 2)
  for await (const event of next.repository.rebuild(never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
  assert.equal((await next.repository.stats()).packs, 2)
  assert.deepEqual(await restoreTree(next.repository, kept), KEPT)
})

test('a disabled target keeps what it holds until it is enabled', async (t) => {
  const scene = await twoTargets(t)
  await pushBoth(scene)
  await scene.repository.change({ writePolicy: 1 })
  await scene.repository.changeTarget('b', { mode: 'disabled' })
  assert.equal(await doomed(scene), 2)
  assert.equal(await packsOn(scene, 'b'), 4)
  await scene.repository.changeTarget('b', { mode: 'active' })
  await eventually('the target was cleaned', async () => await packsOn(scene, 'b') === 2)
  await caughtUp(scene.repository)
  await eventually('all is alike', async () => await assertAlike(scene).then(() => true, () => false))
})

test('a target that refuses to delete one pack, as a lock on it does, is asked for the others and asked again', async (t) => {
  let locked = ''
  let isLocked = true
  const scene = await twoTargets(t, { wrap: (store, url) => url.endsWith('/b') ? refusing(store, (key) => {
    if (!key.startsWith('packs/') || !isLocked) return false
    locked ||= key
    return key === locked
  }) : store })
  await pushBoth(scene)
  const counts = await collect(scene.repository)
  assert.deepEqual([counts['packsDoomed'], counts['deletionsRefused']], [1, 1])
  assert.deepEqual([await packsOn(scene, 'a'), await packsOn(scene, 'b')], [2, 3])
  assert.ok(scene.world.events.some(({ type }) => type === 'deletion-refused'))
  isLocked = false
  assert.equal(await doomed(scene), 0)
  assert.equal(await packsOn(scene, 'b'), 2)
})

function refusing(store: ObjectStore, isRefused: (key: string) => boolean): ObjectStore {
  const refuse = (key: string): void => { if (isRefused(key)) throw new RoostError('STORE_REFUSED', 'The object is locked.', { key }) }
  return new Proxy(store, {
    get: (target, name: keyof ObjectStore) => {
      if (name === 'delete') return async (key: string) => { refuse(key); await target.delete(key) }
      if (name === 'deleteMany') return async (keys: readonly string[]) => { for (const key of keys) refuse(key); await target.deleteMany(keys) }
      const value = target[name] as unknown
      return typeof value === 'function' ? value.bind(target) as unknown : value
    },
  })
}
