/** Bug class: an acknowledgement that outruns what it promises. The order of a commit's effects (docs/durability.md W2–W6) as the target and the
 *  index see it, and what is left when the target refuses one of them.
 */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { parseSessionId } from '../../src/core/ids.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { faultyStore, type FaultyStore, type StoreFault } from '../support/faulty-store.js'
import { buildTree, buildWorld, chunksOf, commitRequest, frameBody, never, openPush, restoreTree, type World } from '../support/repository-world.js'

const DATA = [Buffer.from('one'), Buffer.from('two')]

async function openedWorld(t: TestContext, wrap: (store: ObjectStore) => ObjectStore): Promise<{ world: World; repository: LocalRepository }> {
  let isCreated = false // creating a repository puts objects too; they are not counted
  const world = await buildWorld(t, (store) => isCreated ? wrap(store) : store)
  await world.create()
  isCreated = true
  return { world, repository: await world.open(true) } // which puts one object: how far the index has come
}
async function pushed(repository: LocalRepository): Promise<(signal?: AbortSignal) => ReturnType<LocalRepository['commit']>> {
  const { session, key } = await openPush(repository)
  const tree = buildTree(key, DATA)
  await repository.putChunks(session, frameBody(key, chunksOf(tree)), never)
  return (signal = never) => repository.commit(parseSessionId(session), commitRequest(key, tree), signal)
}
const listed = async (repository: LocalRepository): Promise<number> => (await repository.listSnapshots({ limit: 10 })).snapshots.length

test('packs are in the index before the target, stored only after it, and a snapshot comes last: target, then index, then the answer', async (t) => {
  const log: string[] = []
  const { world, repository } = await openedWorld(t, (store) => ({
    ...faultyStore(store), put: async (...args: Parameters<ObjectStore['put']>) => {
      const kind = args[0].split('/')[0]!
      if (kind === 'lineage.json') return await store.put(...args)
      log.push(`put ${kind} begins after ${steps(world, 'addPack')} added, ${steps(world, 'placePack')} stored, ${steps(world, 'commitSnapshot')} committed`)
      await store.put(...args)
      log.push(`put ${kind} ends after ${steps(world, 'placePack')} stored, ${steps(world, 'commitSnapshot')} committed`)
    },
  }))
  const commit = await pushed(repository)
  world.index.arm()
  assert.equal(log.length, 0, 'nothing is promised, so nothing is on the target')
  await commit()
  const [begins, ends] = [log.filter((line) => line.includes('packs begins')), log.filter((line) => line.includes('packs ends'))]
  assert.equal(begins.length, 2, 'a pack of data and a pack of nodes')
  assert.ok(begins.every((line) => /after [12] added/.test(line)), begins.join('; '))
  assert.match(ends[0]!, /after 0 stored/)
  assert.deepEqual(log.slice(-2), ['put snapshots begins after 2 added, 2 stored, 0 committed', 'put snapshots ends after 2 stored, 0 committed'])
  assert.equal(world.index.steps.at(-1), 'commitSnapshot')
  await repository.close()
})
const steps = (world: World, name: string): number => world.index.steps.filter((step) => step === name).length

test('while the target takes no packs, a commit is not answered, no snapshot is listed and no pack counts as stored', async (t) => {
  const stopped = new AbortController()
  const fault: StoreFault = { operation: 'put', call: 2, calls: Infinity, how: 'before', error: () => {
    // The upload now waits for its next attempt; the commit for the upload.
    setImmediate(() => { stopped.abort(new DOMException('the client went away', 'AbortError')) })
    return Object.assign(new Error('no space'), { code: 'ENOSPC' })
  } }
  let store: FaultyStore | undefined
  const { repository } = await openedWorld(t, (inner) => store = faultyStore(inner, [fault]))
  const commit = await pushed(repository)
  await assert.rejects(commit(stopped.signal), { name: 'AbortError' })
  store!.assertAllFired()
  assert.equal(await listed(repository), 0)
  assert.equal((await repository.stats()).spoolPacks, 2)
  // Not closed: closing would give the target time, and time stands still in this world.
})

for (const how of ['before', 'torn', 'after'] as const)
  test(`a snapshot that the target refuses (${how}) waits in the spool, is named as such, and the same commit is acknowledged later`, async (t) => {
    let store: FaultyStore | undefined
    const { repository } = await openedWorld(t, (inner) => store = faultyStore(inner, [{ operation: 'put', call: 4, how }]))
    const commit = await pushed(repository)
    await assert.rejects(commit(), { code: 'NOT_YET_DURABLE' })
    store!.assertAllFired()
    assert.equal((await repository.listSnapshots({ limit: 10 })).snapshots[0]?.inSpool, true, 'it is there, and says where')
    const { snapshot, alreadyCommitted } = await commit()
    assert.deepEqual([alreadyCommitted, snapshot.inSpool], [true, undefined])
    assert.deepEqual(await restoreTree(repository, snapshot.id), DATA)
    assert.equal(await listed(repository), 1)
    await repository.close()
  })
