/** The ways in which other tools lost data while they collected, and those that the model of collection found (docs/gc.md), on a real repository. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test, type TestContext } from 'node:test'
import { hasCode, RoostError } from '../../src/core/errors.js'
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, parseSessionId, parseSnapshotId, type SessionId } from '../../src/core/ids.js'
import type { CollectOptions, MaintenanceEvent } from '../../src/core/messages.js'
import { encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { buildTree, buildWorld, chunksOf, commitRequest, frameBody, never, openPush, pushTree, readIds, restoreTree, type Chunk, type Tree, type World } from '../support/repository-world.js'

interface Setting {
  readonly world: World
  readonly repository: LocalRepository
  readonly index: ChunkIndex
  /** Runs once, before the next call of that method. */
  before(method: keyof ChunkIndex, work: () => Promise<void>): void
  /** The target refuses deletions from now on, or not any more. */
  holdObjects(isHeld: boolean): void
}
async function setUp(t: TestContext): Promise<Setting> {
  let index: ChunkIndex | undefined
  const hooks = new Map<string, () => Promise<void>>()
  let isHeld = false
  const refusing = (store: ObjectStore): ObjectStore => new Proxy(store, { get: (target, name: keyof ObjectStore) => {
    const method = target[name] as unknown
    if (isHeld && (name === 'delete' || name === 'deleteMany')) return () => Promise.reject(new RoostError('STORE_REFUSED', 'held here', { key: 'this one' }))
    return typeof method === 'function' ? method.bind(target) as unknown : method
  } })
  const world = await buildWorld(t, refusing, { wrapIndex: (opened) => {
    index = opened
    return new Proxy(opened, { get: (target, name: keyof ChunkIndex) => {
      const method = target[name] as unknown
      if (typeof method !== 'function') return method
      return (...parameters: unknown[]) => {
        const hook = hooks.get(name)
        hooks.delete(name)
        const call = (): unknown => method.apply(target, parameters) as unknown
        return hook === undefined ? call() : hook().then(call)
      }
    } })
  } })
  await world.create()
  const repository = await world.open(true)
  t.after(() => repository.close())
  return { world, repository, index: index!, before: (method, work) => { hooks.set(method, work) }, holdObjects: (held) => { isHeld = held } }
}
const chunks = (count: number, bytes = 5_000): Buffer[] => Array.from({ length: count }, () => randomBytes(bytes))
const forget = (repository: LocalRepository, id: string): Promise<void> => repository.deleteSnapshot(parseSnapshotId(id))
const nodeId = (key: Buffer, bytes: Buffer): Buffer => hashChunk(key, bytes, CHUNK_KINDS.node).subarray(0, 32)

async function finish(run: AsyncIterator<MaintenanceEvent>): Promise<Readonly<Record<string, number>>> {
  for (;;) {
    const { value, done } = await run.next() as IteratorResult<MaintenanceEvent, undefined>
    assert.ok(done !== true, 'a run ends with its counts')
    if (value.type === 'done') { await run.next(); return value.counts }
  }
}
const collect = (repository: LocalRepository, options: CollectOptions = {}): AsyncIterator<MaintenanceEvent> => repository.collect(options, never)[Symbol.asyncIterator]()
/** Goes on until everything is marked, and stops before the first pack goes. */
async function untilMarked(run: AsyncIterator<MaintenanceEvent>): Promise<void> {
  for (;;) {
    const { value, done } = await run.next() as IteratorResult<MaintenanceEvent, undefined>
    assert.ok(done !== true)
    if (value.type === 'fate') return
  }
}
async function isPresent(repository: LocalRepository, session: SessionId, proof: Buffer): Promise<boolean> {
  return ((await repository.findMissing(session, proof))[0]! & 1) === 0
}
const put = (repository: LocalRepository, session: SessionId, key: Buffer, parts: readonly Chunk[]): Promise<unknown> => repository.putChunks(session, frameBody(key, parts), never)
const nodeOf = (bytes: Buffer): Chunk => ({ bytes, kind: CHUNK_KINDS.node })
/** A root above another tree's root. */
const above = (key: Buffer, tree: Tree): Tree => ({ data: [], root: encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.node, id: nodeId(key, tree.root) }], Buffer.from('above')) })

test('a collection that slept through a restart and another collection removes nothing when it wakes (suspended maintenance)', async (t) => {
  const { repository, index } = await setUp(t)
  const wanted = chunks(2), dead = chunks(2)
  await forget(repository, await pushTree(repository, wanted))
  await forget(repository, await pushTree(repository, dead))
  const sleeper = collect(repository)
  await untilMarked(sleeper)
  // While it sleeps, a client relies on what it took for garbage; another collection begins and ends, and with it what was held.
  const { session, key } = await openPush(repository, 'late')
  const tree = buildTree(key, wanted)
  for (const { bytes, kind } of chunksOf(tree)) assert.equal(await isPresent(repository, session, hashChunk(key, bytes, kind)), true)
  const { snapshot } = await repository.commit(session, commitRequest(key, tree), never)
  await index.endCollection(await index.beginCollection())
  await assert.rejects(finish(sleeper), (error) => hasCode(error, 'COLLECTION_STALE'))
  assert.deepEqual(await restoreTree(repository, snapshot.id), wanted)
})

test('an exhaustive collection during a running push takes nothing of it (unreferenced is not garbage)', async (t) => {
  const { repository } = await setUp(t)
  const data = chunks(4)
  const { session, key } = await openPush(repository, 'running')
  for (const bytes of data) {
    await put(repository, session, key, [{ bytes, kind: CHUNK_KINDS.data }])
    await finish(collect(repository, { repackBelow: 1 }))
  }
  const tree = buildTree(key, data)
  await put(repository, session, key, [nodeOf(tree.root)])
  await finish(collect(repository, { repackBelow: 1 }))
  const { snapshot } = await repository.commit(session, commitRequest(key, tree), never)
  await finish(collect(repository, { repackBelow: 1 }))
  assert.deepEqual(await restoreTree(repository, snapshot.id), data)
})

test('a session that was closed while its client slept commits nothing, and its chunks may go (expired lease, then a commit)', async (t) => {
  const { repository } = await setUp(t)
  const data = chunks(2)
  await forget(repository, await pushTree(repository, data))
  const { session, key } = await openPush(repository, 'sleeper')
  const tree = buildTree(key, data)
  for (const { bytes, kind } of chunksOf(tree)) assert.equal(await isPresent(repository, session, hashChunk(key, bytes, kind)), true)
  await repository.closeSession(session)
  await finish(collect(repository))
  await assert.rejects(repository.commit(session, commitRequest(key, tree), never), (error) => hasCode(error, 'SESSION_LOST'))
  // Nothing of it is listed, and the next pass sends everything again.
  assert.equal((await repository.stats()).snapshots, 0)
  assert.deepEqual(await restoreTree(repository, await pushTree(repository, data)), data)
})

test('chunks that a session found after the marking stay, though it commits before the pack is judged (candidates grow old)', async (t) => {
  const { repository } = await setUp(t)
  const data = chunks(2)
  await forget(repository, await pushTree(repository, data))
  const run = collect(repository)
  await untilMarked(run)
  const { session, key } = await openPush(repository, 'quick')
  const tree = buildTree(key, data)
  for (const { bytes, kind } of chunksOf(tree)) assert.equal(await isPresent(repository, session, hashChunk(key, bytes, kind)), true)
  const { snapshot } = await repository.commit(session, commitRequest(key, tree), never)
  assert.ok((await finish(run))['packsNeeded']! >= 1)
  assert.deepEqual(await restoreTree(repository, snapshot.id), data)
})

test('a parent that is forgotten and collected while a session opens over it is not inherited from', async (t) => {
  const { repository, before } = await setUp(t)
  const data = chunks(2)
  const parent = await pushTree(repository, data)
  const run = collect(repository)
  before('inheritRefs', async () => {
    await forget(repository, parent)
    await untilMarked(run)
  })
  const { session, key, reply } = await openPush(repository)
  assert.equal(reply.snapshot, undefined)
  await finish(run)
  await assert.rejects(repository.commit(session, commitRequest(key, buildTree(key, data)), never), (error) => hasCode(error, 'COMMIT_INCOMPLETE'))
})

test('a snapshot that is forgotten while a session opens to read it is unknown', async (t) => {
  const { repository, before } = await setUp(t)
  const id = await pushTree(repository, chunks(1))
  before('inheritRefs', () => forget(repository, id))
  await assert.rejects(repository.openSession({ kind: 'read', snapshot: id }, { tokenId: 't' }), (error) => hasCode(error, 'SNAPSHOT_UNKNOWN'))
  assert.equal((await repository.stats()).sessionsOpen, 0)
})

test('a read that has located its chunks reads on when their pack is written anew and deleted under it', async (t) => {
  const { repository, before } = await setUp(t)
  const shared = chunks(340, 60_000) // more than the cache of opened blocks holds
  const { session, key } = await openPush(repository)
  const both = buildTree(key, [...shared, ...chunks(170, 60_000)])
  const parts = chunksOf(both)
  for (let at = 0; at < parts.length; at += 100) await put(repository, session, key, parts.slice(at, at + 100))
  const gone = (await repository.commit(session, commitRequest(key, both), never)).snapshot.id
  const second = await openPush(repository, 'second')
  for (const bytes of shared) assert.equal(await isPresent(repository, second.session, hashChunk(key, bytes, CHUNK_KINDS.data)), true)
  const tree = buildTree(key, shared)
  await put(repository, second.session, key, [nodeOf(tree.root)])
  const kept = (await repository.commit(second.session, commitRequest(key, tree), never)).snapshot.id
  await forget(repository, gone)
  const reader = parseSessionId((await repository.openSession({ kind: 'read', snapshot: kept }, { tokenId: 't' })).sessionId)
  await readIds(repository, reader, nodeId(key, tree.root))
  let repacked = 0
  before('inspectRefs', async () => { repacked = (await finish(collect(repository)))['packsRepacked']! })
  const ids = Buffer.concat(shared.map((bytes) => hashChunk(key, bytes, CHUNK_KINDS.data).subarray(0, 32)))
  const read = await readIds(repository, reader, ids)
  assert.ok(repacked > 0, 'the probe itself works')
  assert.ok(read.every(({ bytes }, i) => bytes.equals(shared[i]!)))
})

test('packs that a target does not let go of are asked for again, and a rebuild does not take them in', async (t) => {
  const { repository, holdObjects } = await setUp(t)
  await pushTree(repository, chunks(1))
  const before = (await repository.stats()).packs
  await forget(repository, await pushTree(repository, chunks(1)))
  holdObjects(true)
  const held = await finish(collect(repository))
  assert.deepEqual([held['deletionsRefused'], held['packsDoomed']], [2, 2])
  for await (const event of repository.rebuild(never)) assert.notEqual(event.type, 'problem')
  assert.equal((await repository.stats()).packs, before)
  holdObjects(false)
  assert.equal((await finish(collect(repository)))['packsDoomed'], 0)
})

test('a dead node that a session found is no damage, though what it lists is gone', async (t) => {
  const { repository } = await setUp(t)
  const data = chunks(1)
  const inner = await pushTree(repository, data)
  const { session, key } = await openPush(repository, 'outer')
  const lower = buildTree(key, data), upper = above(key, lower)
  for (const { bytes, kind } of chunksOf(lower)) assert.equal(await isPresent(repository, session, hashChunk(key, bytes, kind)), true)
  await put(repository, session, key, [nodeOf(upper.root)])
  const outer = (await repository.commit(session, commitRequest(key, upper), never)).snapshot.id
  await forget(repository, inner)
  await forget(repository, outer)
  const finder = await openPush(repository, 'finder')
  assert.equal(await isPresent(repository, finder.session, hashChunk(key, upper.root, CHUNK_KINDS.node)), true)
  assert.ok((await finish(collect(repository)))['packsDropped']! >= 1)
  assert.equal((await finish(collect(repository)))['brokenNodes'], 0)
  // It is asked for what is gone before it may commit.
  await assert.rejects(repository.commit(finder.session, commitRequest(key, upper), never), (error) => hasCode(error, 'COMMIT_INCOMPLETE'))
})

test('nothing goes while what lies below a lost node is not known, though only an open session needs it', async (t) => {
  const { repository, index } = await setUp(t)
  const data = chunks(2)
  const { session: first, key } = await openPush(repository)
  const lower = buildTree(key, data), { root } = lower
  await put(repository, first, key, [...chunksOf(lower), nodeOf(above(key, lower).root)])
  const id = (await repository.commit(first, commitRequest(key, above(key, lower)), never)).snapshot.id
  const { session } = await openPush(repository) // inherits all of it, and reads nothing
  await forget(repository, id)
  assert.equal(await index.markDamaged((await index.locate(nodeId(key, root))).packNumbers[0]!, nodeId(key, root)), 1)
  await assert.rejects(finish(collect(repository)), (error) => hasCode(error, 'CHUNK_MISSING'))
  const healer = await openPush(repository, 'healer')
  await put(repository, healer.session, key, [nodeOf(root)])
  await repository.commit(session, commitRequest(key, above(key, lower)), never)
  await finish(collect(repository))
  assert.equal((await repository.stats()).snapshots, 1)
  for (const bytes of data) assert.equal(await isPresent(repository, healer.session, hashChunk(key, bytes, CHUNK_KINDS.data)), true)
})

test('a lost node that comes again while a collection marks does not make garbage of what lies below it', async (t) => {
  const { repository, index } = await setUp(t)
  const data = chunks(2)
  const id = await pushTree(repository, data)
  const { session, key } = await openPush(repository, 'healer')
  const { root } = buildTree(key, data)
  const place = (await index.locate(nodeId(key, root))).packNumbers[0]!
  assert.equal(await index.markDamaged(place, nodeId(key, root)), 1)
  const run = collect(repository)
  for (;;) {
    const { value } = await run.next() as IteratorResult<MaintenanceEvent, undefined>
    if (value?.type === 'progress' && value.phase === 'roots') break // the packs are listed, nothing is looked up yet
  }
  await put(repository, session, key, [nodeOf(root)])
  await assert.rejects(repository.commit(session, commitRequest(key, buildTree(key, [])), never)) // seals what is open
  assert.notEqual((await index.locate(nodeId(key, root))).packNumbers[0], 0)
  await repository.closeSession(session)
  assert.equal((await finish(run))['brokenNodes'], 0)
  assert.deepEqual(await restoreTree(repository, id), data)
})
