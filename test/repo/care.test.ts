/** Bug classes: an outage taken for loss; loss that clients are never told of; whole chunks given up with damaged ones; a scrub that begins anew each
 *  time. Real formats and file targets, sealing without threads.
 */
import assert from 'node:assert/strict'
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { hasCode } from '../../src/core/errors.js'
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, packNumber, parseRepositoryId, parseSnapshotId } from '../../src/core/ids.js'
import type { CheckOptions, MaintenanceEvent } from '../../src/core/messages.js'
import { systemRandom } from '../../src/core/random.js'
import { zstdEncoder } from '../../src/core/zstd.js'
import { readKeyfile, unlockMasterKey } from '../../src/repo/key-slots.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { PackWriter } from '../../src/repo/pack-writer.js'
import { deriveRepositoryKeys } from '../../src/repo/repository-keys.js'
import { nodeFileEffects } from '../../src/store/file-effects.js'
import { openFileStore } from '../../src/store/file-store.js'
import { faultyStore, type FaultyStore } from '../support/faulty-store.js'
import { buildTree, buildWorld, chunksOf, commitRequest, frameBody, never, openPush, pushTree, restoreTree, type World, type WorldOptions } from '../support/repository-world.js'

const ONE = [Buffer.from('one'), Buffer.alloc(3000, 'a')]
const TWO = [Buffer.from('two'), Buffer.alloc(4000, 'b')]
const hastyClock: Clock = { ...systemClock, sleep: (ms, signal) => systemClock.sleep(Math.min(ms, 5), signal) }

interface Scene { readonly world: World; readonly repository: LocalRepository; readonly place: () => FaultyStore; readonly store: string }
async function scene(t: TestContext, options: WorldOptions = {}): Promise<Scene> {
  let place: FaultyStore | undefined
  const world = await buildWorld(t, (store) => {
    const faulty = faultyStore(store)
    faulty.isDown = place?.isDown ?? false
    return place = faulty
  }, { clock: hastyClock, commitWaitMs: 2_000, ...options })
  await world.create()
  const repository = await world.open(true)
  t.after(() => repository.close())
  return { world, repository, place: () => place!, store: join(world.directory, 'store') }
}
const packFiles = (store: string): string[] => readdirSync(join(store, 'packs'), { recursive: true, encoding: 'utf8' }).map((name) => join(store, 'packs', name))
  .filter((path) => statSync(path).isFile()).sort()
const packOf = (files: readonly string[], kind: number): string => files.find((file) => readFileSync(file)[10] === kind)!
/** Pushes and tells which files it made. */
async function pushed(scene: Scene, data: readonly Buffer[], source?: string): Promise<{ id: string; data: string; nodes: string }> {
  const before = new Set(existing(scene.store))
  const id = source === undefined ? await pushTree(scene.repository, data) : await pushFor(scene.repository, data, source)
  const fresh = existing(scene.store).filter((file) => !before.has(file))
  return { id, data: packOf(fresh, CHUNK_KINDS.data), nodes: packOf(fresh, CHUNK_KINDS.node) }
}
function existing(store: string): string[] {
  try { return packFiles(store) } catch { return [] } // before the first pack
}
async function pushFor(repository: LocalRepository, data: readonly Buffer[], source: string): Promise<string> {
  const { session, key } = await openPush(repository, source)
  const tree = buildTree(key, data)
  await repository.putChunks(session, frameBody(key, chunksOf(tree)), never)
  return (await repository.commit(session, commitRequest(key, tree), never)).snapshot.id
}
/** Flips a byte; the file of before is its own. */
function hurt(file: string, at = statSync(file).size >> 1): void {
  const bytes = readFileSync(file)
  rmSync(file)
  bytes[at]! ^= 4
  writeFileSync(file, bytes)
}
async function check(repository: LocalRepository, options: Partial<CheckOptions> = {}): Promise<{ events: MaintenanceEvent[]; problems: number; codes: string[]; counts: Record<string, number> }> {
  const events: MaintenanceEvent[] = []
  for await (const event of repository.check({ readDataPercent: 100, ...options }, never)) if (event.type !== 'progress') events.push(event)
  const done = events.at(-1) as MaintenanceEvent & { type: 'done' }
  return { events, problems: done.problems, counts: done.counts, codes: events.flatMap((event) => event.type === 'problem' ? [event.code] : []) }
}
const damaged = async (repository: LocalRepository): Promise<number> => (await repository.stats()).damagedChunks

/** A pack beside the repository's own ways, put on the target and taken in by a rebuild; `named`: what its ids say. */
async function sealedApart(at: Scene, data: readonly Buffer[], named: readonly Buffer[] = data): Promise<string> {
  const target = await openFileStore({ directory: at.store, effects: nodeFileEffects, create: false, clock: systemClock, random: systemRandom })
  const keys = deriveRepositoryKeys(await unlockMasterKey(target, { keyfile: await readKeyfile(join(at.world.directory, 'keyfile')) }))
  const writer = new PackWriter({ directory: at.world.directory, number: packNumber(900), kind: CHUNK_KINDS.data, repositoryId: parseRepositoryId(at.repository.info().repositoryId),
    packKey: keys.packKey, effects: nodeFileEffects, random: systemRandom, encoder: zstdEncoder(1) })
  writer.appendBlock(data, named.map((bytes) => hashChunk(keys.dedupKey, bytes, CHUNK_KINDS.data)))
  const { packId, file } = await writer.finish()
  const into = join(at.store, 'packs', packId.slice(0, 2))
  mkdirSync(into, { recursive: true })
  renameSync(file, join(into, packId))
  for await (const event of at.repository.rebuild(never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
  return packId
}

// ---- FIELD §3

test('fetch errors are not taken for corruption: a check of a target that is away fails, and nothing is marked, moved or forgotten', async (t) => {
  const at = await scene(t)
  const { id } = await pushed(at, ONE)
  at.place().isDown = true
  const before = await at.world.currentIndex().totals()
  await assert.rejects(check(at.repository), (error) => hasCode(error, 'STORE_UNAVAILABLE'))
  await assert.rejects(restoreTree(at.repository, id), (error) => hasCode(error, 'STORE_UNAVAILABLE'))
  assert.deepEqual(await at.world.currentIndex().totals(), { ...before, sessionsOpen: (await at.world.currentIndex().totals()).sessionsOpen })
  at.place().isDown = false
  assert.equal((await check(at.repository)).problems, 0)
  assert.deepEqual(await restoreTree(at.repository, id), ONE)
})

test('fetch errors are not taken for corruption: a pack missing on one target is not lost while the other one is disabled and may hold it', async (t) => {
  const at = await scene(t)
  await at.repository.addTarget({ name: 'b', url: `file:${join(at.world.directory, 'b')}` })
  const first = await pushed(at, ONE)
  await at.repository.change({ writePolicy: 1 })
  await at.repository.changeTarget('b', { mode: 'disabled' })
  rmSync(first.data)
  const { codes } = await check(at.repository)
  assert.ok(codes.includes('CHUNK_MISSING'), codes.join())
  assert.equal(await damaged(at.repository), 0)
  await at.repository.changeTarget('b', { mode: 'active' })
  assert.deepEqual(await restoreTree(at.repository, first.id), ONE)
})

test('a place without the repository header is no witness: packs that vanish with it (a file system that is not mounted) are not lost', async (t) => {
  const at = await scene(t)
  const { id } = await pushed(at, ONE)
  renameSync(at.store, `${at.store}.away`)
  const { codes } = await check(at.repository).catch((error: unknown) => ({ codes: [hasCode(error, 'STORE_UNAVAILABLE') ? 'away' : String((error as Error).message)] }))
  assert.ok(codes.length > 0)
  assert.equal(await damaged(at.repository), 0)
  rmSync(at.store, { recursive: true, force: true })
  renameSync(`${at.store}.away`, at.store)
  assert.deepEqual(await restoreTree(at.repository, id), ONE)
  assert.equal((await check(at.repository)).problems, 0)
})

test('decode errors are found by check --read-data, not only at a restore: a pack that is as it was written, and was written wrong', async (t) => {
  const at = await scene(t)
  const good = await pushed(at, ONE)
  const meant = Buffer.from('what was meant'), fine = Buffer.from('and this is fine')
  // Memory that failed between hashing and sealing.
  const packId = await sealedApart(at, [Buffer.from('what was mEant'), fine], [meant, fine])

  assert.equal((await check(at.repository, { readDataPercent: 0 })).problems, 0, 'its structure is right')
  const found = await check(at.repository)
  assert.deepEqual(found.codes, ['CHUNK_CORRUPT'])
  assert.deepEqual(found.events.filter(({ type }) => type === 'mended'), [{ type: 'mended', pack: packId, lost: 1, moved: 0 }])
  // Missing to a client that has it, which so heals it; what is right in that pack stays.
  const { session, key } = await openPush(at.repository)
  const missing = await at.repository.findMissing(session, Buffer.concat([hashChunk(key, meant, CHUNK_KINDS.data), hashChunk(key, fine, CHUNK_KINDS.data)]))
  assert.equal(missing[0], 0b01)
  assert.equal((await check(at.repository)).problems, 0, 'nothing that is kept needs it')
  assert.deepEqual(await restoreTree(at.repository, good.id), ONE)
})

// ---- marking and healing

test('a chunk that is damaged everywhere is missing to the next push, which heals it; whole ones of the pack move, and the pack goes', async (t) => {
  const at = await scene(t)
  const big = Array.from({ length: 80 }, () => systemRandom.bytes(60_000)) // two blocks and more
  const { id, data } = await pushed(at, big)
  const other = await pushed(at, TWO, 'other')
  hurt(data, 300)
  const found = await check(at.repository)
  assert.ok(found.codes.includes('PACK_CORRUPT') && found.codes.includes('CHUNK_MISSING'), found.codes.join())
  const problems = found.events.filter((event) => event.type === 'problem' && event.snapshot !== undefined)
  assert.deepEqual(problems.map((event) => event.type === 'problem' && [event.snapshot, event.source]), [[id, 's']])
  const mended = found.events.find((event) => event.type === 'mended') as MaintenanceEvent & { type: 'mended' }
  assert.ok(mended.lost > 0 && mended.moved > 0 && mended.lost + mended.moved === big.length, JSON.stringify(mended))
  assert.deepEqual(await restoreTree(at.repository, other.id), TWO)
  assert.equal((await restoreTree(at.repository, id)).filter((bytes, i) => bytes.equals(big[i]!)).length, mended.moved, 'the other chunks are there')

  const healedBy = await pushTree(at.repository, big)
  assert.deepEqual(await restoreTree(at.repository, healedBy), big)
  assert.deepEqual(await restoreTree(at.repository, id), big)
  assert.equal(await damaged(at.repository), 0)
  assert.equal((await check(at.repository)).problems, 0)
  assert.equal((await check(at.repository)).problems, 0)
  assert.ok(!packFiles(at.store).includes(data), 'nothing lives in the damaged pack, so it was deleted')
})

test('bytes that are readable again after all come back: nothing was deleted while a chunk was lost', async (t) => {
  const at = await scene(t)
  const { id, data } = await pushed(at, ONE)
  const whole = readFileSync(data)
  hurt(data, 70)
  await check(at.repository)
  assert.ok(await damaged(at.repository) > 0)
  writeFileSync(data, whole)
  const found = await check(at.repository)
  assert.ok(found.events.some(({ type }) => type === 'healed'))
  assert.equal(found.problems, 0)
  assert.equal(await damaged(at.repository), 0)
  assert.deepEqual(await restoreTree(at.repository, id), ONE)
})

test('a spare copy of a lost chunk is taken: what another pack was passed over for comes back', async (t) => {
  const at = await scene(t)
  const first = await pushed(at, ONE)
  // Sealed a second time, as two threads do that get one chunk at once: the index passes the later pack over.
  const second = await sealedApart(at, ONE)
  rmSync(first.data)
  const found = await check(at.repository)
  assert.ok(found.events.some((event) => event.type === 'healed' && event.object.includes(second)), JSON.stringify(found.events))
  assert.equal(await damaged(at.repository), 0)
  assert.deepEqual(await restoreTree(at.repository, first.id), ONE)
  assert.equal((await check(at.repository)).problems, 0)
})

test('damage that no snapshot needs is forgotten when the check has seen them all', async (t) => {
  const at = await scene(t)
  const gone = await pushed(at, ONE)
  const kept = await pushed(at, TWO, 'other')
  rmSync(gone.data)
  await check(at.repository)
  assert.equal(await damaged(at.repository), 2)
  await at.repository.deleteSnapshot(parseSnapshotId(gone.id))
  assert.equal((await check(at.repository)).problems, 0)
  assert.equal(await damaged(at.repository), 0)
  assert.deepEqual(await restoreTree(at.repository, kept.id), TWO)
})

// ---- parents

test('while damage is known, only a parent that was found whole since is offered; the other one is withheld, with its shape', async (t) => {
  const at = await scene(t)
  const hurtOne = await pushed(at, ONE, 'hurt')
  const wholeOne = await pushed(at, TWO, 'whole')
  const parentOf = async (source: string): Promise<{ parent: string | undefined; withheld: string | undefined }> => {
    const { reply, session } = await openPush(at.repository, source)
    await at.repository.closeSession(session)
    return { parent: reply.snapshot?.id, withheld: reply.withheldParent?.id }
  }
  assert.deepEqual(await parentOf('hurt'), { parent: hurtOne.id, withheld: undefined })
  rmSync(hurtOne.data)
  await check(at.repository)
  assert.deepEqual(await parentOf('hurt'), { parent: undefined, withheld: hurtOne.id })
  assert.deepEqual(await parentOf('whole'), { parent: wholeOne.id, withheld: undefined })
  // A commit that inherited nothing is whole, and a parent, although other damage is still known.
  const [, second] = ONE
  const next = await pushFor(at.repository, [second!], 'hurt')
  assert.ok(await damaged(at.repository) > 0)
  assert.deepEqual(await parentOf('hurt'), { parent: next, withheld: undefined })
  await pushFor(at.repository, ONE, 'hurt')
  assert.equal(await damaged(at.repository), 0)
})

test('a parent that nobody looked at since is judged in the background, and offered the next time', async (t) => {
  const at = await scene(t)
  const hurtOne = await pushed(at, ONE, 'hurt')
  const wholeOne = await pushed(at, TWO, 'whole')
  rmSync(hurtOne.data)
  await restoreTree(at.repository, hurtOne.id) // a read that stumbles, and no check
  await eventually(async () => await damaged(at.repository) > 0)
  await eventually(async () => {
    const { reply, session } = await openPush(at.repository, 'whole')
    await at.repository.closeSession(session)
    return reply.snapshot?.id === wholeOne.id
  })
})

test('a commit whose parent lost chunks meanwhile is refused, and one whose parent did not is taken', async (t) => {
  const at = await scene(t)
  const hurtOne = await pushed(at, ONE, 'hurt')
  await pushed(at, TWO, 'whole')
  const [onHurt, onWhole] = [await openPush(at.repository, 'hurt'), await openPush(at.repository, 'whole')]
  assert.equal(onHurt.reply.snapshot!.id, hurtOne.id)
  rmSync(hurtOne.data)
  await check(at.repository)
  // Both repeat their parent's tree, as a client does whose source did not change.
  const unchanged = (key: Buffer, data: readonly Buffer[]): ReturnType<typeof commitRequest> => commitRequest(key, buildTree(key, data))
  await assert.rejects(at.repository.commit(onHurt.session, unchanged(onHurt.key, ONE), never), (error) => hasCode(error, 'COMMIT_INCOMPLETE'))
  await at.repository.commit(onWhole.session, unchanged(onWhole.key, TWO), never)
  // The client's next pass: no parent, so it asks for everything, and sends what is missing.
  await at.repository.closeSession(onHurt.session)
  const id = await pushFor(at.repository, ONE, 'hurt')
  assert.deepEqual(await restoreTree(at.repository, id), ONE)
  assert.equal((await check(at.repository)).problems, 0)
})

test('a node that turns out to be damaged at the commit is marked before the answer: the next pass is told "missing"', async (t) => {
  const at = await scene(t)
  const first = await pushed(at, ONE)
  hurt(first.nodes, 100)
  await at.repository.close()
  const repository = await at.world.open(true) // nothing in memory
  t.after(() => repository.close())
  const attempt = async (): Promise<string> => {
    const { session, key } = await openPush(repository, 'another')
    const tree = buildTree(key, ONE)
    const root = hashChunk(key, tree.root, CHUNK_KINDS.node)
    const missing = await repository.findMissing(session, root)
    if (missing[0] === 1) await repository.putChunks(session, frameBody(key, [{ bytes: tree.root, kind: CHUNK_KINDS.node }]), never)
    await repository.findMissing(session, Buffer.concat(ONE.map((bytes) => hashChunk(key, bytes, CHUNK_KINDS.data))))
    return (await repository.commit(session, commitRequest(key, tree), never)).snapshot.id
  }
  await assert.rejects(attempt(), (error) => hasCode(error, 'COMMIT_INCOMPLETE'))
  assert.deepEqual(await restoreTree(repository, await attempt()), ONE)
  assert.deepEqual(await restoreTree(repository, first.id), ONE)
})

// ---- the scrub

test('a scrub reads what was never or least recently verified, and goes on after a restart', async (t) => {
  const at = await scene(t)
  for (let n = 0; n < 4; n++) await pushed(at, [Buffer.alloc(5000, n)], `s${n}`)
  const order = async (): Promise<number[]> => (await at.world.currentIndex().listVerified(0, 100)).map(({ packNumber: number }) => number)
  const all = (await at.world.currentIndex().listPacks(0, 100)).length
  const first = await check(at.repository, { readDataPercent: 40 })
  const done = await order()
  assert.ok(done.length > 0 && done.length < all, `${done.length} of ${all}`)
  assert.equal(first.counts['packs'], all, 'the structure of all is checked')
  await at.repository.close()
  const again = await at.world.open(true)
  t.after(() => again.close())
  await check(again, { readDataPercent: 40 })
  await check(again, { readDataPercent: 40 })
  const later = await order()
  assert.equal(later.length, all)
  assert.deepEqual(later.slice(-1).filter((number) => done.includes(number)).length, 1, 'the first ones came round again, last')
  // No more than so long, and no faster than so much.
  assert.equal((await check(again, { maxDurationMs: 0 })).counts['packsRead'], 0)
  assert.equal((await check(again, { bytesPerSecondMax: 10_000_000 })).counts['packsRead'], all)
})

test('an entry that places a chunk in a pack that is not there is found, and is missing from then on', async (t) => {
  const at = await scene(t)
  const { id } = await pushed(at, ONE)
  const index = at.world.currentIndex()
  const row = (await index.listPacks(0, 10)).find(({ kind }) => kind === CHUNK_KINDS.data)!
  // What no transaction of ours leaves behind: the row is gone, and its entries are not.
  await index.evacuatePack({ packNumber: row.packNumber, ids: Buffer.alloc(0), copies: [], then: 'forget', slots: 0 })
  const { codes } = await check(at.repository)
  assert.equal(codes.filter((code) => code === 'INDEX_CORRUPT').length, 2, codes.join())
  assert.equal(await damaged(at.repository), 2)
  await pushTree(at.repository, ONE)
  assert.deepEqual(await restoreTree(at.repository, id), ONE)
  assert.equal((await check(at.repository)).problems, 0)
})

test('a pack that a collection takes away between the listing and the reading is no problem', async (t) => {
  const at = await scene(t)
  const doomed = await pushed(at, ONE, 'gone')
  const kept = await pushed(at, TWO, 'kept')
  await at.repository.deleteSnapshot(parseSnapshotId(doomed.id))
  let hasCollected = false
  const original = at.place().head.bind(at.place())
  at.place().head = async (key, call) => {
    if (!hasCollected && key.startsWith('packs/')) {
      hasCollected = true
      for await (const event of at.repository.collect({}, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
    }
    return await original(key, call)
  }
  assert.equal((await check(at.repository)).problems, 0)
  assert.ok(hasCollected && !existing(at.store).includes(doomed.data))
  assert.deepEqual(await restoreTree(at.repository, kept.id), TWO)
})

async function eventually(isSo: () => Promise<boolean>): Promise<void> {
  for (let turns = 0; turns < 2_000; turns++) {
    if (await isSo()) return
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  assert.fail('it never came')
}
