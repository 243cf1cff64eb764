/** Bug class: a repository on several targets that loses, hides or invents data when one of them is away, empty, damaged or slow. Real file targets
 *  whose calls can be made to fail, real formats, a clock whose pauses are short.
 */
import assert from 'node:assert/strict'
import { readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { hasCode, RoostError } from '../../src/core/errors.js'
import type { MaintenanceEvent } from '../../src/core/messages.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { buildTree, chunksOf, commitRequest, frameBody, never, openPush, pushTree, restoreTree } from '../support/repository-world.js'
import { assertAlike, caughtUp, eventually, objectsOf, twoTargets, type Scene } from '../support/two-targets.js'

const ONE = [Buffer.from('one'), Buffer.alloc(3000, 'a')]
const TWO = [Buffer.from('two'), Buffer.alloc(4000, 'b')]
async function events(source: AsyncIterable<MaintenanceEvent>): Promise<MaintenanceEvent[]> {
  const all: MaintenanceEvent[] = []
  for await (const event of source) if (event.type !== 'progress') all.push(event)
  return all
}
const problemsOf = async (repository: LocalRepository, heal = false): Promise<number> => {
  const last = (await events(repository.check({ readDataPercent: 100, heal }, never))).at(-1)!
  assert.equal(last.type, 'done')
  return (last as MaintenanceEvent & { type: 'done' }).problems
}
const packFiles = async (directory: string): Promise<string[]> =>
  (await readdir(join(directory, 'packs'), { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name)).sort()
async function restoresFresh(scene: Scene, id: string, data: readonly Buffer[]): Promise<void> {
  assert.deepEqual(await restoreTree(scene.repository, id), data)
}

test('what is pushed is on both targets, and what was there before a target came is copied to it', async (t) => {
  const scene = await twoTargets(t)
  const id = await pushTree(scene.repository, ONE)
  await caughtUp(scene.repository)
  await assertAlike(scene)
  assert.equal((await packFiles(scene.pathOf('b'))).length, 2)
  await restoresFresh(scene, id, ONE)
  assert.equal(await problemsOf(scene.repository), 0)
})

test('an emptied target: restores are right, check counts what is gone, and heal brings all of it back', async (t) => {
  const scene = await twoTargets(t)
  const id = await pushTree(scene.repository, ONE)
  for (const key of (await objectsOf(scene.pathOf('a'))).keys()) await rm(join(scene.pathOf('a'), key))
  await restoresFresh(scene, id, ONE)
  await scene.repository.close()
  const again = await scene.world.open(true) // from the other target's header and keys
  t.after(() => again.close())
  const healed = await events(again.check({ readDataPercent: 100, heal: true }, never))
  const last = healed.at(-1) as MaintenanceEvent & { type: 'done' }
  assert.equal(last.problems, 0)
  await caughtUp(again)
  await assertAlike(scene)
  assert.equal(await problemsOf(again), 0)
  assert.deepEqual(await restoreTree(again, id), ONE)
})

const DAMAGES: Record<string, (file: string, other: string) => Promise<void>> = {
  'with a flipped bit': async (file) => {
    const bytes = await readFile(file)
    bytes[Math.floor(bytes.length / 2)]! ^= 1
    await writeFile(file, bytes)
  },
  truncated: async (file) => { await truncate(file, 40) },
  missing: (file) => rm(file),
  "that holds another pack's bytes": async (file, other) => { await writeFile(file, await readFile(other)) },
}
for (const [name, damage] of Object.entries(DAMAGES)) {
  test(`a pack ${name} on one target is read from the other and mended by heal, which says so`, async (t) => {
    const scene = await twoTargets(t)
    await pushTree(scene.repository, ONE)
    const id = await pushTree(scene.repository, TWO)
    // Unlinked first: the two targets may share the file.
    const files = await packFiles(scene.pathOf('a'))
    const whole = await Promise.all(files.map((file) => readFile(file)))
    for (const [i, file] of files.entries()) { await rm(file); await writeFile(file, whole[i]!) }
    for (const file of files.slice(0, 3)) await damage(file, files.at(-1)!)
    const reported = await events(scene.repository.check({ readDataPercent: 100 }, never))
    assert.ok(reported.some((event) => event.type === 'problem' && event.target === 'main' && ['PACK_CORRUPT', 'CHUNK_MISSING'].includes(event.code)), JSON.stringify(reported))
    await restoresFresh(scene, id, TWO)
    const healed = await events(scene.repository.check({ readDataPercent: 100, heal: true }, never))
    assert.equal((healed.at(-1) as MaintenanceEvent & { type: 'done' }).problems, 0, JSON.stringify(healed))
    await caughtUp(scene.repository)
    for (const [i, file] of files.entries()) assert.ok((await readFile(file)).equals(whole[i]!), file)
    assert.equal(await problemsOf(scene.repository), 0)
  })
}

test('both targets damaged in different places: restores are right, and reads alone mend what they stumble on', async (t) => {
  const scene = await twoTargets(t)
  const id = await pushTree(scene.repository, ONE)
  await scene.repository.close()
  for (const [place, at] of [['a', 0], ['b', 1]] as const) {
    const file = (await packFiles(scene.pathOf(place)))[at]!
    const bytes = Buffer.from(await readFile(file))
    await rm(file)
    bytes[bytes.length >> 1]! ^= 0x40
    await writeFile(file, bytes)
  }
  const again = await scene.world.open(true)
  t.after(() => again.close())
  assert.deepEqual(await restoreTree(again, id), ONE)
  await eventually('the first target is mended', async () => await problemsOfTarget(again, 'main') === 0)
  assert.equal(await problemsOf(again, true), 0)
  assert.equal(await problemsOf(again), 0)
})
async function problemsOfTarget(repository: LocalRepository, target: string): Promise<number> {
  return (await events(repository.check({ readDataPercent: 100 }, never))).filter((event) => event.type === 'problem' && event.target === target).length
}

test('with a write policy of one, a target that is away delays nobody, shows its lag, and catches up with packs, snapshots and deletions', async (t) => {
  const scene = await twoTargets(t)
  await scene.repository.change({ writePolicy: 1 })
  const gone = await pushTree(scene.repository, ONE)
  await caughtUp(scene.repository)
  scene.places.get('b')!.isDown = true
  const id = await pushTree(scene.repository, TWO)
  await scene.repository.deleteSnapshot(gone as Parameters<LocalRepository['deleteSnapshot']>[0])
  const b = (await scene.repository.listTargets()).targets.find(({ name }) => name === 'b')!
  assert.deepEqual([b.health, b.lagPacks], ['unreachable', 2])
  assert.ok(b.failingSinceMs! > 0 && b.lagBytes > 0)
  assert.ok((await objectsOf(scene.pathOf('b'))).has(`snapshots/${gone}`))
  scene.places.get('b')!.isDown = false
  await caughtUp(scene.repository)
  await eventually('the deletion arrived', async () => !(await objectsOf(scene.pathOf('b'))).has(`snapshots/${gone}`))
  await eventually('it is remembered no longer', async () => ![...(await objectsOf(scene.pathOf('a'))).keys()].some((key) => key.startsWith('tombstones/')))
  await assertAlike(scene)
  await restoresFresh(scene, id, TWO)
  assert.equal(await problemsOf(scene.repository), 0)
})

test('a snapshot that was deleted while a target was away does not come back with a rebuild', async (t) => {
  const scene = await twoTargets(t)
  await scene.repository.change({ writePolicy: 1 })
  const gone = await pushTree(scene.repository, ONE)
  await caughtUp(scene.repository)
  scene.places.get('b')!.isDown = true
  await scene.repository.listTargets()
  await scene.repository.deleteSnapshot(gone as Parameters<LocalRepository['deleteSnapshot']>[0])
  await scene.repository.close()
  const again = await scene.world.open(true)
  t.after(() => again.close())
  scene.places.get('b')!.isDown = false
  await events(again.rebuild(never))
  assert.deepEqual((await again.listSnapshots({ limit: 10 })).snapshots, [])
})

const setDown = ({ places }: Scene, isDown: boolean): void => { for (const place of places.values()) place.isDown = isDown }

test('with every target down and durability "remote" a commit says not yet, and finishes by itself when they are back', async (t) => {
  const scene = await twoTargets(t, { commitWaitMs: 50 })
  setDown(scene, true)
  const { session, key } = await openPush(scene.repository)
  const tree = buildTree(key, ONE)
  await scene.repository.putChunks(session, frameBody(key, chunksOf(tree)), never)
  const commit = (): ReturnType<LocalRepository['commit']> => scene.repository.commit(session, commitRequest(key, tree), never)
  await assert.rejects(commit(), { code: 'NOT_YET_DURABLE' })
  await assert.rejects(commit(), (error) => hasCode(error, 'NOT_YET_DURABLE') && typeof error.details['snapshot'] === 'string')
  const [waiting] = (await scene.repository.listSnapshots({ limit: 1 })).snapshots
  assert.equal(waiting?.inSpool, true)
  assert.deepEqual(await restoreTree(scene.repository, waiting.id), ONE, 'it restores from the spool')
  setDown(scene, false)
  await eventually('it is durable', async () => (await scene.repository.listSnapshots({ limit: 1 })).snapshots[0]!.inSpool === undefined)
  const { snapshot, alreadyCommitted } = await commit()
  assert.deepEqual([snapshot.id, alreadyCommitted], [waiting.id, true])
  await caughtUp(scene.repository)
  await assertAlike(scene)
  assert.deepEqual((await readdir(join(scene.world.directory, 'spool'))), [])
})

test('with durability "spool" a commit is acknowledged from the spool, survives a crash and a restart without any target, and is uploaded later', async (t) => {
  const scene = await twoTargets(t)
  await scene.repository.change({ durability: 'spool' })
  const before = await pushTree(scene.repository, ONE)
  await caughtUp(scene.repository)
  setDown(scene, true)
  const id = await pushTree(scene.repository, TWO)
  assert.equal((await scene.repository.listSnapshots({ limit: 1 })).snapshots[0]!.inSpool, true)
  // The process dies here; the next one starts with its targets still down.
  scene.world.effects.arm({ step: 0, mode: 'before' })
  await scene.world.effects.settled()
  scene.world.effects.arm()
  const again = await scene.world.open(false)
  t.after(() => again.close())
  assert.deepEqual(await restoreTree(again, id), TWO)
  await assert.rejects(restoreTree(again, before), (error) => error instanceof RoostError && error.code === 'STORE_UNAVAILABLE', 'unreachable is not missing')
  const third = await pushTree(again, [Buffer.from('three')])
  setDown(scene, false)
  await eventually('all is durable', async () => (await again.listSnapshots({ limit: 9 })).snapshots.every(({ inSpool }) => inSpool === undefined))
  await caughtUp(again)
  await assertAlike(scene)
  for (const [snapshot, data] of [[before, ONE], [id, TWO], [third, [Buffer.from('three')]]] as const) assert.deepEqual(await restoreTree(again, snapshot), data)
  assert.equal(await problemsOf(again), 0)
})

test('a target that can be read and not written goes on serving reads, and says why it takes nothing', async (t) => {
  let isReadOnly = false
  const scene = await twoTargets(t, { wrap: (store, url) => !url.endsWith('/a') ? store : new Proxy(store, {
    get: (target, name: keyof ObjectStore) => name === 'put' && isReadOnly ? () => Promise.reject(new RoostError('STORE_REFUSED', 'Read-only credentials.'))
      : typeof target[name] === 'function' ? (target[name] as (...args: unknown[]) => unknown).bind(target) : target[name],
  }) })
  await scene.repository.change({ writePolicy: 1 })
  const id = await pushTree(scene.repository, ONE)
  await caughtUp(scene.repository)
  isReadOnly = true
  const second = await pushTree(scene.repository, TWO)
  const a = (await scene.repository.listTargets()).targets.find(({ name }) => name === 'main')!
  assert.deepEqual([a.health, a.failure], ['refused', 'Read-only credentials.'])
  scene.places.get('b')!.isDown = true
  await restoresFresh(scene, id, ONE)
  scene.places.get('b')!.isDown = false
  isReadOnly = false
  await caughtUp(scene.repository)
  await restoresFresh(scene, second, TWO)
  await assertAlike(scene)
})

test('a repository moves: add, backfill, drain, remove; the old place can then be wiped', async (t) => {
  const scene = await twoTargets(t)
  const id = await pushTree(scene.repository, ONE)
  await scene.repository.change({ writePolicy: 1 })
  await assert.rejects(scene.repository.change({ writePolicy: 3 }), { code: 'TARGET_NEEDED' })
  scene.places.get('b')!.isDown = true
  const late = await pushTree(scene.repository, TWO)
  await assert.rejects(scene.repository.removeTarget('main'), { code: 'TARGET_NEEDED' }, 'it holds what nobody else has')
  scene.places.get('b')!.isDown = false
  const filled = await events(scene.repository.backfillTarget('b', never))
  assert.equal(filled.at(-1)?.type, 'done')
  await events(scene.repository.drainTarget('main', never))
  await scene.repository.removeTarget('main')
  await rm(scene.pathOf('a'), { recursive: true })
  assert.deepEqual((await scene.repository.listTargets()).targets.map(({ name }) => name), ['b'])
  await restoresFresh(scene, id, ONE)
  await restoresFresh(scene, late, TWO)
  const third = await pushTree(scene.repository, [Buffer.from('afterwards')])
  await scene.repository.close()
  const again = await scene.world.open(true)
  t.after(() => again.close())
  for (const [snapshot, data] of [[id, ONE], [late, TWO], [third, [Buffer.from('afterwards')]]] as const) assert.deepEqual(await restoreTree(again, snapshot), data)
  assert.equal(await problemsOf(again), 0)
  await assert.rejects(again.removeTarget('b'), { code: 'TARGET_NEEDED' })
})

test('a place with another repository, or with packs of nobody, is refused as a target', async (t) => {
  const scene = await twoTargets(t)
  const other = await twoTargets(t, { seed: 7 })
  await assert.rejects(scene.repository.addTarget({ name: 'c', url: `file:${other.pathOf('a')}` }), { code: 'STORE_REFUSED' })
  await assert.rejects(scene.repository.addTarget({ name: 'b', url: `file:${scene.pathOf('c')}` }), { code: 'TARGET_EXISTS' })
  await rm(join(other.pathOf('b'), 'roost.json'))
  await pushTree(other.repository, ONE)
  await assert.rejects(scene.repository.addTarget({ name: 'c', url: `file:${other.pathOf('b')}` }), { code: 'STORE_REFUSED' })
  assert.equal((await scene.repository.listTargets()).targets.length, 2)
})

test('a pack that every target lost is forgotten by rebuild: the next backup sends its chunks again, and earlier duplicates come back', async (t) => {
  const scene = await twoTargets(t)
  await pushTree(scene.repository, ONE)
  for (const place of ['a', 'b']) for (const file of await packFiles(scene.pathOf(place))) await rm(file)
  const report = await events(scene.repository.rebuild(never))
  assert.equal(report.filter((event) => event.type === 'problem' && event.code === 'CHUNK_MISSING').length, 2)
  const { session, key } = await openPush(scene.repository, 'another')
  const tree = buildTree(key, ONE)
  await assert.rejects(scene.repository.commit(session, commitRequest(key, tree), never), { code: 'COMMIT_INCOMPLETE' })
  const id = await pushTree(scene.repository, ONE)
  await restoresFresh(scene, id, ONE)
})
