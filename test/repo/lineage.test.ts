/** Bug class: an old index that is taken for the present one. It names packs that were deleted since, and lacks what came. */
import assert from 'node:assert/strict'
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { hasCode } from '../../src/core/errors.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { buildWorld, never, pushTree, restoreTree, type World } from '../support/repository-world.js'

const ONE = [Buffer.from('one'), Buffer.alloc(3000, 'a')]
const TWO = [Buffer.from('two'), Buffer.alloc(4000, 'b')]
const hastyClock: Clock = { ...systemClock, sleep: (ms, signal) => systemClock.sleep(Math.min(ms, 5), signal) }

async function worldOnDisk(t: TestContext): Promise<World> {
  const world = await buildWorld(t, undefined, { clock: hastyClock, commitWaitMs: 2_000, isIndexOnDisk: true })
  await world.create()
  return world
}
async function rebuilt(repository: LocalRepository): Promise<void> {
  for await (const event of repository.rebuild(never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
}
async function assertSetAside(world: World, data: ReadonlyMap<string, readonly Buffer[]>): Promise<void> {
  const repository = await world.open(true)
  try {
    assert.equal(repository.info().state, 'rebuild-needed')
    await assert.rejects(pushTree(repository, ONE), (error) => hasCode(error, 'INDEX_REBUILD_NEEDED'))
    assert.ok(world.events.some((event) => event.type === 'damage' && /older than the repository/.test(event.error.message)), JSON.stringify(world.events))
    await rebuilt(repository)
    for (const [id, chunks] of data) assert.deepEqual(await restoreTree(repository, id), chunks)
  } finally { await repository.close() }
  const again = await world.open(true)
  assert.equal(again.info().state, 'ready', 'the new index is the present one')
  await again.close()
}

test('an index that was copied while the server was stopped, and put back later, is refused and set aside', async (t) => {
  const world = await worldOnDisk(t)
  const index = join(world.directory, 'index')
  let repository = await world.open(true)
  const first = await pushTree(repository, ONE)
  await repository.close()
  cpSync(index, `${index}.copy`, { recursive: true })
  repository = await world.open(true)
  const second = await pushTree(repository, TWO)
  await repository.close()
  rmSync(index, { recursive: true })
  cpSync(`${index}.copy`, index, { recursive: true })
  await assertSetAside(world, new Map([[first, ONE], [second, TWO]]))
})

test('so it is when the file beside it was put back as well: the target knows', async (t) => {
  const world = await worldOnDisk(t)
  const parts = ['index', 'lineage.json'].map((name) => join(world.directory, name))
  let repository = await world.open(true)
  const first = await pushTree(repository, ONE)
  await repository.close()
  for (const part of parts) cpSync(part, `${part}.copy`, { recursive: true })
  repository = await world.open(true)
  await repository.close()
  for (const part of parts) { rmSync(part, { recursive: true }); cpSync(`${part}.copy`, part, { recursive: true }) }
  await assertSetAside(world, new Map([[first, ONE]]))
})

test('an index that was copied while the server ran lacks packs of later snapshots: that is found at the start', async (t) => {
  const world = await worldOnDisk(t)
  const index = join(world.directory, 'index')
  const repository = await world.open(true)
  const first = await pushTree(repository, ONE)
  cpSync(index, `${index}.copy`, { recursive: true })
  const second = await pushTree(repository, TWO)
  await repository.close()
  rmSync(index, { recursive: true })
  cpSync(`${index}.copy`, index, { recursive: true })
  const opened = await world.open(true)
  assert.equal(opened.info().state, 'rebuild-needed')
  await rebuilt(opened)
  for (const [id, data] of [[first, ONE], [second, TWO]] as const) assert.deepEqual(await restoreTree(opened, id), data)
  await opened.close()
})

test('a collection makes every copy of before old, whenever it was made', async (t) => {
  const world = await worldOnDisk(t)
  const index = join(world.directory, 'index')
  const repository = await world.open(true)
  const first = await pushTree(repository, ONE)
  cpSync(index, `${index}.copy`, { recursive: true })
  for await (const event of repository.collect({}, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
  await repository.close()
  rmSync(index, { recursive: true })
  cpSync(`${index}.copy`, index, { recursive: true })
  await assertSetAside(world, new Map([[first, ONE]]))
})

test('a crash, a lost or foreign note and the present index: it is taken', async (t) => {
  const world = await worldOnDisk(t)
  let repository = await world.open(true)
  const first = await pushTree(repository, ONE)
  await repository.close()
  const [file, object] = [join(world.directory, 'lineage.json'), join(world.directory, 'store', 'lineage.json')]
  const present = readFileSync(object)
  for (const bytes of [undefined, Buffer.from('{"format":1,"instance":"ab","sequence":99,"mac":"00"}'), Buffer.from('noise')]) {
    for (const path of [file, object]) {
      rmSync(path, { force: true })
      if (bytes !== undefined) writeFileSync(path, bytes)
    }
    repository = await world.open(true)
    assert.equal(repository.info().state, 'ready')
    assert.deepEqual(await restoreTree(repository, first), ONE)
    await repository.close()
  }
  // The index had gone on, and the note did not land.
  writeFileSync(object, present)
  rmSync(file)
  repository = await world.open(true)
  assert.equal(repository.info().state, 'ready')
  await repository.close()
})
