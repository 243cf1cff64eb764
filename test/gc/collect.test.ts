/** Collection on a real repository: what nothing needs goes, what anything needs stays, whoever else is at work. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { hasCode } from '../../src/core/errors.js'
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, parseSnapshotId, type SessionId } from '../../src/core/ids.js'
import type { CollectOptions, MaintenanceEvent } from '../../src/core/messages.js'
import { decodeNode, encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { buildTree, buildWorld, chunksOf, commitRequest, frameBody, never, openPush, pushTree, readIds, restoreTree, type World } from '../support/repository-world.js'

async function openWorld(t: TestContext): Promise<{ world: World; repository: LocalRepository }> {
  const world = await buildWorld(t)
  await world.create()
  const repository = await world.open(true)
  t.after(() => repository.close())
  return { world, repository }
}
async function collect(repository: LocalRepository, options: CollectOptions = {}): Promise<{ counts: Readonly<Record<string, number>>; events: MaintenanceEvent[] }> {
  const events: MaintenanceEvent[] = []
  for await (const event of repository.collect(options, never)) events.push(event)
  const done = events.at(-1)
  assert.ok(done?.type === 'done')
  return { counts: done.counts, events }
}
const chunks = (count: number, bytes = 5_000): Buffer[] => Array.from({ length: count }, () => randomBytes(bytes))
const packFiles = ({ directory }: World): string[] => readdirSync(join(directory, 'store', 'packs'), { recursive: true, encoding: 'utf8' }).filter((name) => /[0-9a-f]{64}$/.test(name))
const forget = (repository: LocalRepository, id: string): Promise<void> => repository.deleteSnapshot(parseSnapshotId(id))
async function isPresent(repository: LocalRepository, session: SessionId, key: Buffer, bytes: Buffer): Promise<boolean> {
  return ((await repository.findMissing(session, hashChunk(key, bytes, CHUNK_KINDS.data)))[0]! & 1) === 0
}
async function checkIsClean(repository: LocalRepository): Promise<void> {
  for await (const event of repository.check({ readDataPercent: 100 }, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
}

test('packs that only a forgotten snapshot needed are deleted, and everything else restores', async (t) => {
  const { world, repository } = await openWorld(t)
  const kept = chunks(3), gone = chunks(3)
  const first = await pushTree(repository, kept)
  const second = await pushTree(repository, gone)
  const before = packFiles(world).length
  assert.equal((await collect(repository)).counts['packsDropped'], 0)
  await forget(repository, second)
  const { counts } = await collect(repository)
  assert.deepEqual([counts['packsDropped'], counts['objectsDeleted'], counts['packsDoomed']], [2, 2, 0])
  assert.equal(packFiles(world).length, before - 2)
  assert.deepEqual(await restoreTree(repository, first), kept)
  const stats = await repository.stats()
  assert.deepEqual([stats.chunks, stats.packs], [4, 2])
  const { session, key } = await openPush(repository)
  assert.equal(await isPresent(repository, session, key, kept[0]!), true)
  assert.equal(await isPresent(repository, session, key, gone[0]!), false)
  await checkIsClean(repository)
})

test('a dry run says the fate of every pack with its reason, and changes nothing', async (t) => {
  const { world, repository } = await openWorld(t)
  await pushTree(repository, chunks(2))
  await forget(repository, await pushTree(repository, chunks(2)))
  const before = packFiles(world)
  const { counts, events } = await collect(repository, { dryRun: true })
  const fates = events.flatMap((event) => event.type === 'fate' ? [event] : [])
  assert.deepEqual(fates.map(({ fate }) => fate).sort(), ['drop', 'drop', 'keep', 'keep'])
  assert.ok(fates.every(({ reason }) => reason.length > 0))
  assert.equal(counts['packsDropped'], 2)
  assert.deepEqual(packFiles(world), before)
  assert.equal((await repository.stats()).packs, 4)
})

test('a half-dead pack is written anew: live chunks move with the sessions that hold them, dead ones go', async (t) => {
  const { world, repository } = await openWorld(t)
  const shared = chunks(2), alone = chunks(10)
  const { session, key } = await openPush(repository, 'both')
  // One pack with the chunks of both trees.
  const dead = buildTree(key, [...shared, ...alone])
  await repository.putChunks(session, frameBody(key, chunksOf(dead)), never)
  const forgotten = (await repository.commit(session, commitRequest(key, dead), never)).snapshot.id
  const kept = await pushTree(repository, shared)
  const holder = await openPush(repository, 'holder')
  assert.equal(await isPresent(repository, holder.session, key, shared[0]!), true)
  await forget(repository, forgotten)
  const { counts } = await collect(repository)
  assert.ok(counts['packsRepacked']! >= 1, JSON.stringify(counts))
  assert.equal(counts['packsDoomed'], 0)
  assert.deepEqual(await restoreTree(repository, kept), shared)
  assert.equal(await isPresent(repository, holder.session, key, alone[0]!), false)
  // What the session was told before the move still counts.
  const again = buildTree(key, [shared[0]!])
  await repository.putChunks(holder.session, frameBody(key, [{ bytes: again.root, kind: CHUNK_KINDS.node }]), never)
  await repository.commit(holder.session, commitRequest(key, again), never)
  assert.equal((await repository.stats()).dataChunks, 2)
  await checkIsClean(repository)
  assert.equal(packFiles(world).length, (await repository.stats()).packs)
})

test('what an open session was told is there stays there, however long it is silent', async (t) => {
  const { repository } = await openWorld(t)
  const data = chunks(2)
  const old = await pushTree(repository, data)
  const { session, key } = await openPush(repository, 'late')
  for (const bytes of data) assert.equal(await isPresent(repository, session, key, bytes), true)
  await forget(repository, old)
  for (let turn = 0; turn < 3; turn++) await collect(repository)
  const tree = buildTree(key, data)
  await repository.putChunks(session, frameBody(key, [{ bytes: tree.root, kind: CHUNK_KINDS.node }]), never)
  const { snapshot } = await repository.commit(session, commitRequest(key, tree), never)
  assert.deepEqual(await restoreTree(repository, snapshot.id), data)
  await collect(repository)
  assert.deepEqual(await restoreTree(repository, snapshot.id), data)
})

test('a session that was abandoned holds nothing, and its chunks are missing to the next one', async (t) => {
  const { repository } = await openWorld(t)
  const data = chunks(2)
  const { session, key } = await openPush(repository, 'gone')
  await repository.putChunks(session, frameBody(key, chunksOf(buildTree(key, data))), never)
  await repository.closeSession(session)
  for await (const event of repository.check({ readDataPercent: 0 }, never)) void event // seals what is open
  while ((await repository.stats()).spoolPacks > 0) await setImmediate()
  assert.ok((await collect(repository)).counts['packsDropped']! >= 1)
  const next = await openPush(repository, 'next')
  assert.equal(await isPresent(repository, next.session, key, data[0]!), false)
  await repository.putChunks(next.session, frameBody(key, chunksOf(buildTree(key, data))), never)
  const { snapshot } = await repository.commit(next.session, commitRequest(key, buildTree(key, data)), never)
  assert.deepEqual(await restoreTree(repository, snapshot.id), data)
})

test('a restore of a snapshot that is forgotten meanwhile reads on to its end', async (t) => {
  const { repository } = await openWorld(t)
  const data = chunks(3)
  const id = await pushTree(repository, data)
  const reply = await repository.openSession({ kind: 'read', snapshot: id }, { tokenId: 't' })
  const session = reply.sessionId as SessionId
  await forget(repository, id)
  await collect(repository)
  const record = JSON.parse(Buffer.from(reply.snapshot!.record, 'base64').toString('utf8')) as { root: string }
  const [root] = await readIds(repository, session, Buffer.from(record.root, 'hex'))
  await collect(repository)
  const read = await readIds(repository, session, decodeNode(root!.bytes).refs.ids())
  assert.deepEqual(read.map(({ bytes }) => bytes), data)
  await repository.closeSession(session)
  assert.equal((await collect(repository)).counts['packsDropped'], 2)
})

test('an incremental push over a parent that is forgotten and collected meanwhile keeps what it inherited', async (t) => {
  const { repository } = await openWorld(t)
  const data = chunks(4)
  const parent = await pushTree(repository, data)
  const { session, key, reply } = await openPush(repository) // inherits the parent's root
  assert.equal(reply.snapshot?.id, parent)
  const run = repository.collect({}, never)[Symbol.asyncIterator]()
  await run.next() // begun
  await forget(repository, parent)
  const { root } = buildTree(key, data)
  const over = encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.node, id: hashChunk(key, root, CHUNK_KINDS.node).subarray(0, 32) }], Buffer.from('above'))
  await repository.putChunks(session, frameBody(key, [{ bytes: over, kind: CHUNK_KINDS.node }]), never)
  const { snapshot } = await repository.commit(session, commitRequest(key, { data, root: over }), never)
  while ((await run.next()).done !== true);
  await collect(repository)
  const read = await repository.openSession({ kind: 'read', snapshot: snapshot.id }, { tokenId: 't' })
  const at = read.sessionId as SessionId
  const [top] = await readIds(repository, at, hashChunk(key, over, CHUNK_KINDS.node).subarray(0, 32))
  const [below] = await readIds(repository, at, decodeNode(top!.bytes).refs.ids())
  assert.deepEqual((await readIds(repository, at, decodeNode(below!.bytes).refs.ids())).map(({ bytes }) => bytes), data)
})

test('small packs are merged when they are many, and not again and again', async (t) => {
  const { repository } = await openWorld(t)
  const pushed: { id: string; data: Buffer[] }[] = []
  for (let i = 0; i < 9; i++) {
    const data = chunks(2)
    pushed.push({ id: await pushTree(repository, data), data })
  }
  assert.equal((await repository.stats()).packs, 18)
  assert.equal((await collect(repository)).counts['packsRepacked'], 18)
  assert.equal((await repository.stats()).packs, 2)
  for (const { id, data } of pushed) assert.deepEqual(await restoreTree(repository, id), data)
  assert.equal((await collect(repository)).counts['packsRepacked'], 0)
  await checkIsClean(repository)
})

test('two collections of one repository do not run at once, nor one beside a rebuild', async (t) => {
  const { repository } = await openWorld(t)
  await pushTree(repository, chunks(1))
  const run = repository.collect({}, never)[Symbol.asyncIterator]()
  await run.next()
  const isBusy = (error: unknown): boolean => hasCode(error, 'REPOSITORY_BUSY')
  await assert.rejects(collect(repository), isBusy)
  await assert.rejects(async () => { for await (const event of repository.rebuild(never)) void event }, isBusy)
  await run.return?.()
  await collect(repository)
})

test('a run that nobody listens to any more neither stops the repository from closing nor collects in its next life', async (t) => {
  const { world, repository } = await openWorld(t)
  const data = chunks(2)
  await forget(repository, await pushTree(repository, data))
  const run = repository.collect({}, never)[Symbol.asyncIterator]()
  await run.next()
  await repository.close()
  const next = await world.open(true)
  t.after(() => next.close())
  await assert.rejects(async () => { while ((await run.next()).done !== true); })
  assert.equal((await next.stats()).packs, 2)
  assert.equal((await collect(next)).counts['packsDropped'], 2)
})

test('a damaged node stops the collection before anything is removed, unless the damage is accepted', async (t) => {
  const { world, repository } = await openWorld(t)
  const id = await pushTree(repository, chunks(2))
  await forget(repository, await pushTree(repository, chunks(2)))
  const stored = await repository.openSession({ kind: 'read', snapshot: id }, { tokenId: 't' })
  await repository.closeSession(stored.sessionId as SessionId)
  const { writeFileSync, readFileSync } = await import('node:fs')
  const files = packFiles(world)
  // The smallest packs hold the nodes.
  for (const name of files) {
    const path = join(world.directory, 'store', 'packs', name)
    const bytes = readFileSync(path)
    if (bytes.length < 3_000) writeFileSync(path, bytes.fill(0x55, 100))
  }
  await assert.rejects(collect(repository), (error: Error) => hasCode(error, 'CHUNK_MISSING') && /roost check --heal/.test(error.message))
  assert.deepEqual(packFiles(world), files)
  const { counts } = await collect(repository, { acceptDamage: true })
  assert.ok(counts['packsDropped']! >= 2)
})
