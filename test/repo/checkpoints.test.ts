/** Bug classes: a cache that is believed against the packs; a compaction that loses entries; a rebuild that asks twice for every pack. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { RoostError, hasCode } from '../../src/core/errors.js'
import { parseRepositoryId } from '../../src/core/ids.js'
import type { MaintenanceEvent } from '../../src/core/messages.js'
import { systemRandom } from '../../src/core/random.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import { decodeCheckpoint, encodeCheckpoint } from '../../src/repo/checkpoints/checkpoint-format.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { faultyStore } from '../support/faulty-store.js'
import { buildWorld, never, pushTree, restoreTree, type World, type WorldOptions } from '../support/repository-world.js'

const hastyClock: Clock = { ...systemClock, sleep: (ms, signal) => systemClock.sleep(Math.min(ms, 5), signal) }
const dataOf = (n: number): Buffer[] => [Buffer.from(`one ${n}`), Buffer.alloc(2000 + n, n)]

interface Scene { readonly world: World; readonly asked: string[]; readonly store: string }
async function scene(t: TestContext, options: WorldOptions = {}): Promise<Scene> {
  const asked: string[] = []
  const world = await buildWorld(t, (store) => ({ ...faultyStore(store), getRange: (key, range, call) => { asked.push(key); return store.getRange(key, range, call) } }),
    { clock: hastyClock, commitWaitMs: 2_000, isIndexOnDisk: true, checkpoints: { packsPerCheckpoint: 4 }, ...options })
  await world.create()
  return { world, asked, store: join(world.directory, 'store') }
}
const filesIn = (store: string, folder: string): string[] => {
  try { return readdirSync(join(store, folder), { recursive: true, encoding: 'utf8' }).map((name) => join(store, folder, name)).filter((path) => statSync(path).isFile()) } catch { return [] }
}
async function eventually(isSo: () => boolean | Promise<boolean>): Promise<void> {
  for (let turns = 0; turns < 2_000; turns++) {
    if (await isSo()) return
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  assert.fail('it never came')
}
/** Pushes until `checkpoints` of them are there; snapshots by their data. */
async function pushedUntil(repository: LocalRepository, store: string, checkpoints: number): Promise<Map<string, Buffer[]>> {
  const snapshots = new Map<string, Buffer[]>()
  for (let n = 0; filesIn(store, 'checkpoints').length < checkpoints; n++) {
    assert.ok(n < 60, 'checkpoints come')
    snapshots.set(await pushTree(repository, dataOf(n)), dataOf(n))
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return snapshots
}
async function rebuild(repository: LocalRepository): Promise<{ problems: string[]; counts: Record<string, number>; totals: number[] }> {
  const events: MaintenanceEvent[] = []
  for await (const event of repository.rebuild(never)) events.push(event)
  const done = events.at(-1) as MaintenanceEvent & { type: 'done' }
  return { problems: events.flatMap((event) => event.type === 'problem' ? [event.code] : []), counts: done.counts,
    totals: events.flatMap((event) => event.type === 'progress' ? [event.total] : []) }
}
async function lostIndex({ world }: Scene): Promise<LocalRepository> {
  rmSync(join(world.directory, 'index'), { recursive: true })
  return await world.open(true)
}
async function assertAll(repository: LocalRepository, snapshots: ReadonlyMap<string, readonly Buffer[]>): Promise<void> {
  for (const [id, data] of snapshots) assert.deepEqual(await restoreTree(repository, id), data)
}

test('a rebuild takes packs in by their checkpoint, without a request for each, and the others by their trailers', async (t) => {
  const at = await scene(t)
  const first = await at.world.open(true)
  const snapshots = await pushedUntil(first, at.store, 1)
  await first.close()
  const repository = await lostIndex(at)
  at.asked.length = 0
  const { problems, counts, totals } = await rebuild(repository)
  assert.deepEqual(problems, [])
  const packs = filesIn(at.store, 'packs').length
  const asked = new Set(at.asked.filter((key) => key.startsWith('packs/')))
  assert.equal(counts['packsAdded'], packs)
  assert.ok(counts['packsOfCheckpoints']! >= 4)
  assert.equal(asked.size, packs - counts['packsOfCheckpoints']!)
  assert.ok(totals.every((total) => total > 0 || packs === 0), 'progress has a real total')
  await assertAll(repository, snapshots)
  const problemsNow: string[] = []
  for await (const event of repository.check({ readDataPercent: 100 }, never)) if (event.type === 'problem') problemsNow.push(event.code)
  assert.deepEqual(problemsNow, [])
  await repository.close()
})

test('a pack that a checkpoint names and the target has not is not taken in', async (t) => {
  const at = await scene(t)
  const first = await at.world.open(true)
  const snapshots = await pushedUntil(first, at.store, 1)
  await first.close()
  const files = filesIn(at.store, 'packs')
  for (const file of files) rmSync(file)
  const repository = await lostIndex(at)
  const { counts } = await rebuild(repository)
  assert.equal(counts['packsAdded'], 0)
  assert.equal((await repository.stats()).chunks, 0)
  assert.equal(counts['snapshots'], snapshots.size)
  await repository.close()
})

test('a damaged checkpoint is reported, passed over and removed: every pack comes in by its own trailer', async (t) => {
  const at = await scene(t)
  const first = await at.world.open(true)
  const snapshots = await pushedUntil(first, at.store, 1)
  await first.close()
  const [file] = filesIn(at.store, 'checkpoints')
  const bytes = readFileSync(file!)
  bytes[bytes.length >> 1]! ^= 1
  rmSync(file!)
  writeFileSync(file!, bytes)
  const repository = await lostIndex(at)
  const { problems, counts } = await rebuild(repository)
  assert.deepEqual(problems, ['REPOSITORY_CORRUPT'])
  assert.deepEqual([counts['packsOfCheckpoints'], counts['packsAdded']], [0, filesIn(at.store, 'packs').length])
  await assertAll(repository, snapshots)
  await repository.close()
})

test('small checkpoints are written anew together, and the old ones go', async (t) => {
  const at = await scene(t, { checkpoints: { packsPerCheckpoint: 2, smallMax: 3 } })
  const repository = await at.world.open(true)
  const snapshots = new Map<string, Buffer[]>()
  const seen = new Set<string>()
  for (let n = 0; n < 12; n++) {
    snapshots.set(await pushTree(repository, dataOf(n)), dataOf(n))
    await new Promise((resolve) => setTimeout(resolve, 20))
    for (const file of filesIn(at.store, 'checkpoints')) seen.add(file)
  }
  await eventually(() => filesIn(at.store, 'checkpoints').length <= 3 && seen.size > 3)
  await repository.close()
  const again = await lostIndex(at)
  const { problems, counts } = await rebuild(again)
  assert.deepEqual(problems, [])
  assert.ok(counts['packsOfCheckpoints']! >= 6, JSON.stringify(counts))
  await assertAll(again, snapshots)
  await again.close()
})

test('index compaction that would drop entries is noticed before anything is deleted: what it replaces stays', async (t) => {
  let dropped: string | undefined
  const hide = (index: ChunkIndex): ChunkIndex => new Proxy(index, { get: (target, name: keyof ChunkIndex) => name !== 'findPack' ? target[name] : async (packId: string) => {
    // The compaction asks first whether the pack is still there: once, it is told a lie.
    if (dropped === undefined && new Error().stack!.includes('compact')) { dropped = packId; return undefined }
    return await target.findPack(packId as never)
  } })
  const at = await scene(t, { isIndexOnDisk: false, wrapIndex: hide, checkpoints: { packsPerCheckpoint: 2, smallMax: 3 } })
  const repository = await at.world.open(true)
  t.after(() => repository.close())
  for (let n = 0; dropped === undefined; n++) {
    assert.ok(n < 40)
    await pushTree(repository, dataOf(n))
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  await eventually(() => at.world.events.some((event) => event.type === 'damage' && /lacks a pack/.test(event.error.message)))
  const { checkpoints } = await at.world.currentIndex().checkpoints()
  const there = new Set(filesIn(at.store, 'checkpoints').map((file) => file.slice(-64)))
  assert.ok(checkpoints.length >= 3 && checkpoints.every(({ id }) => there.has(id)), 'the inputs are there and listed')
})

test('a checkpoint reads back what was written; a flipped byte anywhere is found', () => {
  const key = systemRandom.bytes(32), repositoryId = parseRepositoryId('ab'.repeat(16))
  const packs = [{ packId: 'cd'.repeat(32) as never, kind: 1 as never, storedBytes: 5000, blocks: [{ storedBytes: 100, entryCount: 2 }], idProofs: systemRandom.bytes(96), rawBytes: Uint32Array.of(7, 9) }]
  const { id, bytes } = encodeCheckpoint(packs, key, repositoryId, systemRandom)
  assert.deepEqual(decodeCheckpoint(bytes, id, key, repositoryId), packs)
  for (let at = 0; at < bytes.byteLength; at++) {
    const damaged = Buffer.from(bytes)
    damaged[at]! ^= 1
    assert.throws(() => decodeCheckpoint(damaged, id, key, repositoryId), (error) => hasCode(error, 'REPOSITORY_CORRUPT'))
  }
  assert.throws(() => decodeCheckpoint(bytes, id, systemRandom.bytes(32), repositoryId), RoostError)
  assert.throws(() => decodeCheckpoint(bytes, id, key, parseRepositoryId('ac'.repeat(16))), RoostError)
})
