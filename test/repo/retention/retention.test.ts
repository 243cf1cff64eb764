/** Retention of a real repository: rules applied by the server, protections and locks that bind everybody, settings that survive what a server can lose. */
import assert from 'node:assert/strict'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { RoostError, type ErrorCode } from '../../../src/core/errors.js'
import { parseSnapshotId } from '../../../src/core/ids.js'
import type { ForgetRequest, MaintenanceEvent } from '../../../src/core/messages.js'
import type { LocalRepository } from '../../../src/repo/local-repository.js'
import type { ObjectStore, PutOptions } from '../../../src/store/object-store.js'
import { faultyStore, type FaultyStore } from '../../support/faulty-store.js'
import { buildTree, buildWorld, chunksOf, commitRequest, frameBody, never, openPush, restoreTree, type World } from '../../support/repository-world.js'
import { SteppingClock } from '../../support/stepping-clock.js'

const HOUR = 3_600_000, DAY = 24 * HOUR
const START = Date.parse('2025-01-01T12:00:00Z')

interface Scene { readonly clock: SteppingClock; readonly world: World; repository: LocalRepository; readonly puts: { key: string; retainUntilMs: number | undefined }[]; store: FaultyStore | undefined }
async function scene(t: TestContext): Promise<Scene> {
  const clock = new SteppingClock(START)
  const puts: Scene['puts'] = []
  const made: Scene = { clock, puts, store: undefined } as unknown as Scene
  const world = await buildWorld(t, (store) => {
    const wasDown = made.store?.isDown ?? false
    made.store = faultyStore(noting(store, puts))
    made.store.isDown = wasDown
    return made.store
  }, { clock })
  await world.create()
  Object.assign(made, { world, repository: await world.open(true) })
  t.after(() => made.repository.close())
  return made
}
function noting(store: ObjectStore, puts: Scene['puts']): ObjectStore {
  return new Proxy(store, { get: (target, name) => {
    const value: unknown = Reflect.get(target, name)
    if (typeof value !== 'function') return value
    if (name !== 'put') return value.bind(target) as unknown
    return (key: string, body: Parameters<ObjectStore['put']>[1], options?: PutOptions) => { puts.push({ key, retainUntilMs: options?.retainUntilMs }); return target.put(key, body, options) }
  } })
}
let serial = 0
interface Told { readonly source?: string; readonly tags?: readonly string[]; readonly startedAtMs?: number }
async function push({ repository }: { repository: LocalRepository }, { source = 's', tags = [], startedAtMs = 1 }: Told = {}): Promise<string> {
  const { session, key } = await openPush(repository, source)
  const tree = buildTree(key, [Buffer.from(`content ${serial++}`)])
  await repository.putChunks(session, frameBody(key, chunksOf(tree)), never)
  return (await repository.commit(session, { ...commitRequest(key, tree), tags, startedAtMs }, never)).snapshot.id
}
async function forget(repository: LocalRepository, request: ForgetRequest): Promise<MaintenanceEvent[]> {
  const events: MaintenanceEvent[] = []
  for await (const event of repository.forget(request, never)) events.push(event)
  return events
}
const idsOf = async (repository: LocalRepository): Promise<string[]> => (await repository.listSnapshots({ limit: 1000 })).snapshots.map(({ id }) => id).sort()
const verdictsOf = (events: readonly MaintenanceEvent[]) => events.filter((event) => event.type === 'verdict')
const reasonsOf = (events: readonly MaintenanceEvent[], id: string): string => {
  const verdict = verdictsOf(events).find(({ snapshot }) => snapshot === id)!
  return `${verdict.keep ? 'keep' : 'drop'}: ${verdict.reasons.join('; ')}`
}
const doneOf = (events: readonly MaintenanceEvent[]) => { const last = events.at(-1)!; assert.ok(last.type === 'done'); return last }
const remove = (repository: LocalRepository, id: string): Promise<void> => repository.deleteSnapshot(parseSnapshotId(id))
const rejectsWith = (work: Promise<unknown>, code: ErrorCode) => assert.rejects(work, (error: unknown) => error instanceof RoostError && error.code === code)

test('a dry run says of every snapshot what would happen and why, and deletes nothing; the run that follows does just that', async (t) => {
  const made = await scene(t)
  const ids: string[] = []
  for (let day = 0; day < 5; day++) { ids.push(await push(made)); made.clock.run(DAY) }
  const dry = await forget(made.repository, { policy: { daily: 2, keepOldest: false }, dryRun: true })
  assert.deepEqual(ids.map((id) => reasonsOf(dry, id)), ['drop: no rule keeps it', 'drop: no rule keeps it', 'drop: no rule keeps it', 'keep: daily snapshot', 'keep: daily snapshot'])
  assert.equal((await idsOf(made.repository)).length, 5)
  const wet = await forget(made.repository, { policy: { daily: 2, keepOldest: false } })
  assert.deepEqual(verdictsOf(wet), verdictsOf(dry))
  assert.deepEqual(doneOf(wet), { type: 'done', problems: 0, counts: { snapshots: 5, kept: 2, dropped: 3, deleted: 3 } })
  assert.deepEqual(await idsOf(made.repository), ids.slice(3).sort())
  assert.equal((await restoreTree(made.repository, ids[4]!)).length, 1)
})

test('rules count source by source, and the stored policy of a source wins over the repository\'s', async (t) => {
  const made = await scene(t)
  const ids = { a: [] as string[], b: [] as string[], c: [] as string[] }
  for (let day = 0; day < 3; day++) { for (const source of ['a', 'b', 'c'] as const) ids[source].push(await push(made, { source })); made.clock.run(DAY) }
  const untouched = await forget(made.repository, {})
  assert.equal(reasonsOf(untouched, ids.a[0]!), 'keep: there is no policy')
  await made.repository.setPolicy({ policy: { last: 1 } })
  await made.repository.setPolicy({ source: 'b', policy: { last: 2 } })
  await made.repository.setPolicy({ source: 'c', policy: { last: -1 } })
  await forget(made.repository, {})
  assert.deepEqual(await idsOf(made.repository), [...ids.a.slice(2), ...ids.b.slice(1), ...ids.c].sort())
  await made.repository.setPolicy({ source: 'c', policy: null })
  await forget(made.repository, { source: 'c' })
  assert.deepEqual(await idsOf(made.repository), [...ids.a.slice(2), ...ids.b.slice(1), ...ids.c.slice(2)].sort())
})

test('back-dated snapshots under an append-only token age nothing out: the time is when the server received them', async (t) => {
  const made = await scene(t)
  const good: string[] = []
  for (let day = 0; day < 10; day++) { good.push(await push(made, { startedAtMs: made.clock.now() })); made.clock.run(DAY) }
  const policy = { daily: 7, weekly: 4, within: '5d' } as const
  const before = verdictsOf(await forget(made.repository, { policy, dryRun: true })).filter(({ keep }) => keep).map(({ snapshot }) => snapshot)
  // The attacker may only push; every claim of the client is a lie: one for each of the past and coming fifty days, and far future ones.
  const lies = [...Array.from({ length: 50 }, (_, i) => START + (i - 25) * DAY), START + 1000 * DAY, 0, Number.MAX_SAFE_INTEGER]
  for (const startedAtMs of lies) { made.clock.run(60_000); await push(made, { startedAtMs }) }
  const after = await forget(made.repository, { policy })
  const left = await idsOf(made.repository)
  // One bucket (today's) went to the attacker, so one daily snapshot at the far end gives way; nothing of the week is lost.
  const lost = before.filter((id) => !left.includes(id))
  assert.ok(lost.length <= 1, `lost ${lost.length}`)
  for (const id of good.slice(-6)) assert.ok(left.includes(id), reasonsOf(after, id))
})

test('a flood of snapshots now displaces what only --keep-last holds, and nothing that rules by time, protections and locks hold', async (t) => {
  const made = await scene(t)
  const good: string[] = []
  for (let day = 0; day < 6; day++) { good.push(await push(made)); made.clock.run(DAY) }
  await made.repository.protectSnapshot(parseSnapshotId(good[0]!), true)
  for (let i = 0; i < 20; i++) { made.clock.run(1000); await push(made) }
  const byDay = await forget(made.repository, { policy: { daily: -1 }, dryRun: true })
  for (const id of good) assert.match(reasonsOf(byDay, id), /^keep: /)
  const byCount = await forget(made.repository, { policy: { last: 5 }, dryRun: true })
  assert.equal(reasonsOf(byCount, good[0]!), 'keep: protected')
  assert.equal(reasonsOf(byCount, good[5]!), 'drop: no rule keeps it', 'docs/retention.md warns of this')
  await made.repository.change({ retentionLockMs: 30 * DAY })
  const locked = await forget(made.repository, { policy: { last: 5 } })
  for (const id of good) assert.match(reasonsOf(locked, id), /^keep: .*locked until 2025-/)
})

test('a policy never drops the newest snapshot of a source, and one that would keep nothing is refused', async (t) => {
  const made = await scene(t)
  const ids = [await push(made), await push(made, { source: 'other', tags: ['x'] })]
  await rejectsWith(forget(made.repository, { policy: {} }), 'POLICY_KEEPS_NOTHING')
  await rejectsWith(made.repository.setPolicy({ policy: { last: 0 } }), 'POLICY_KEEPS_NOTHING')
  made.clock.run(DAY)
  const newer = await push(made)
  const partly = await forget(made.repository, { policy: { tags: [['x']] } })
  assert.equal(doneOf(partly).problems, 1)
  assert.ok(partly.some((event) => event.type === 'problem' && event.code === 'POLICY_KEEPS_NOTHING' && event.message.includes('source s')))
  assert.equal((await idsOf(made.repository)).length, 3)
  const consented = await forget(made.repository, { policy: {}, keepNone: true })
  assert.equal(reasonsOf(consented, newer), 'keep: newest of its source')
  assert.deepEqual(await idsOf(made.repository), [ids[1], newer].sort())
})

test('of a source whose clock went back, the latest by time and the latest by commit both stay', async (t) => {
  const made = await scene(t)
  made.clock.jump(300 * DAY)
  const ahead = await push(made)
  made.clock.jump(-300 * DAY)
  const first = await push(made)
  made.clock.run(DAY)
  const last = await push(made)
  const events = await forget(made.repository, { policy: { last: 1, keepOldest: false } })
  assert.equal(reasonsOf(events, ahead), 'keep: last snapshot')
  assert.equal(reasonsOf(events, last), 'keep: newest of its source')
  assert.equal(reasonsOf(events, first), 'drop: no rule keeps it')
})

test('only what a tag or source names is looked at', async (t) => {
  const made = await scene(t)
  const ids: string[] = []
  for (const tags of [['a'], ['b'], ['a'], ['b']]) { ids.push(await push(made, { tags })); made.clock.run(DAY) }
  const events = await forget(made.repository, { policy: { last: 1 }, tag: 'a' })
  assert.deepEqual(verdictsOf(events).map(({ snapshot }) => snapshot), [ids[2], ids[0]])
  assert.deepEqual(await idsOf(made.repository), [ids[1], ids[2], ids[3]].sort())
})

test('a protected snapshot is deleted by nobody until it is unprotected', async (t) => {
  const made = await scene(t)
  const [old] = [await push(made), made.clock.run(DAY), await push(made)]
  await made.repository.protectSnapshot(parseSnapshotId(old), true)
  assert.equal((await made.repository.getSnapshot(parseSnapshotId(old))).protected, true)
  await rejectsWith(remove(made.repository, old), 'SNAPSHOT_PROTECTED')
  assert.equal(reasonsOf(await forget(made.repository, { policy: { last: 1 } }), old), 'keep: protected')
  await made.repository.protectSnapshot(parseSnapshotId(old), false)
  await remove(made.repository, old)
  await rejectsWith(made.repository.protectSnapshot(parseSnapshotId(old), true), 'SNAPSHOT_UNKNOWN')
})

test('a retention lock refuses deletion until the server has itself run for its length', async (t) => {
  const made = await scene(t)
  await made.repository.change({ retentionLockMs: 30 * DAY })
  assert.equal(made.repository.info().retentionLockMs, 30 * DAY)
  const id = await push(made)
  await push(made)
  made.clock.run(29 * DAY)
  await rejectsWith(remove(made.repository, id), 'RETENTION_LOCKED')
  assert.match(reasonsOf(await forget(made.repository, { policy: { last: 1 } }), id), /^keep: locked until 2025-01-31T12:0[01]:\d\dZ$/)
  made.clock.run(DAY + 120_000)
  assert.equal((await made.repository.getSnapshot(parseSnapshotId(id))).lockedUntilMs, undefined)
  await remove(made.repository, id)
})

test('setting the clock forward ends no lock, whether the server runs meanwhile or not', async (t) => {
  const made = await scene(t)
  await made.repository.change({ retentionLockMs: 30 * DAY })
  const id = await push(made)
  await push(made)
  made.clock.jump(3650 * DAY)
  await rejectsWith(remove(made.repository, id), 'RETENTION_LOCKED')
  await made.repository.close()
  made.clock.jump(3650 * DAY)
  made.repository = await made.world.open(true)
  await rejectsWith(remove(made.repository, id), 'RETENTION_LOCKED')
  made.clock.run(31 * DAY)
  await remove(made.repository, id)
})

test('a lock can be lengthened, never shortened: not by asking, and not by asking while the clock is wrong', async (t) => {
  const made = await scene(t)
  const id = parseSnapshotId(await push(made))
  await made.repository.lockSnapshot(id, { forMs: 10 * DAY })
  await rejectsWith(made.repository.lockSnapshot(id, { forMs: 9 * DAY }), 'RETENTION_LOCKED')
  made.clock.jump(9 * DAY)
  await rejectsWith(made.repository.lockSnapshot(id, { untilMs: made.clock.now() + 2 * DAY }), 'RETENTION_LOCKED')
  made.clock.jump(-9 * DAY)
  await made.repository.lockSnapshot(id, { untilMs: made.clock.now() + 20 * DAY })
  made.clock.run(11 * DAY)
  await rejectsWith(remove(made.repository, id), 'RETENTION_LOCKED')
  await rejectsWith(made.repository.lockSnapshot(id, { untilMs: made.clock.now() - 1 }), 'REQUEST_MALFORMED')
  await made.repository.change({ retentionLockMs: DAY })
  await rejectsWith(made.repository.change({ retentionLockMs: DAY - 1 }), 'RETENTION_LOCKED')
  await rejectsWith(made.repository.change({ retentionLockMs: 0 }), 'RETENTION_LOCKED')
  await rejectsWith(made.repository.change({ retentionLockMs: 40_000 * DAY }), 'REQUEST_MALFORMED')
  made.clock.run(10 * DAY)
  await remove(made.repository, id)
})

test('policies, protections and locks survive the loss of the server\'s folder', async (t) => {
  const made = await scene(t)
  const [guarded, locked, plain] = [parseSnapshotId(await push(made)), parseSnapshotId(await push(made)), parseSnapshotId(await push(made))]
  await made.repository.setPolicy({ policy: { daily: 7, timeZone: 'Europe/Berlin' } })
  await made.repository.setPolicy({ source: 'db', policy: { within: '1y' } })
  await made.repository.protectSnapshot(guarded, true)
  await made.repository.lockSnapshot(locked, { forMs: DAY })
  await made.repository.change({ retentionLockMs: HOUR })
  const before = await made.repository.retention()
  await made.repository.close()
  for (const name of ['retention.json', 'witnessed-time.json']) await rm(join(made.world.directory, name))
  made.repository = await made.world.open(true)
  const after = await made.repository.retention()
  assert.deepEqual({ ...after, locks: [] }, { ...before, locks: [] })
  assert.deepEqual(after.locks.map(({ snapshot }) => snapshot), [locked])
  await rejectsWith(remove(made.repository, guarded), 'SNAPSHOT_PROTECTED')
  made.clock.run(2 * HOUR)
  await remove(made.repository, plain)
  await rejectsWith(remove(made.repository, locked), 'RETENTION_LOCKED')
  made.clock.run(DAY)
  await remove(made.repository, locked)
})

test('settings that were changed on the target are not believed, and those of the server\'s own copy hold', async (t) => {
  const made = await scene(t)
  const id = parseSnapshotId(await push(made))
  await made.repository.protectSnapshot(id, true)
  await made.repository.close()
  const path = join(made.world.directory, 'store', 'retention.json')
  const whole = await readFile(path, 'utf8')
  await writeFile(path, whole.replace(/"protected":\["[0-9a-f]+"\]/, '"protected":[]'))
  made.repository = await made.world.open(true)
  await rejectsWith(remove(made.repository, id), 'SNAPSHOT_PROTECTED')
  const events: MaintenanceEvent[] = []
  for await (const event of made.repository.check({ readDataPercent: 0, heal: true }, never)) events.push(event)
  assert.ok(events.some((event) => event.type === 'problem' && event.message.includes('retention settings are damaged')))
  assert.equal(await readFile(path, 'utf8'), whole)
})

test('as long as the settings cannot be known nothing is deleted', async (t) => {
  const made = await scene(t)
  const id = parseSnapshotId(await push(made))
  await made.repository.protectSnapshot(id, true)
  await made.repository.close()
  await rm(join(made.world.directory, 'retention.json'))
  made.store!.isDown = true
  made.repository = await made.world.open(true)
  await rejectsWith(remove(made.repository, id), 'STORE_UNAVAILABLE')
  await rejectsWith(forget(made.repository, { policy: { last: 1 } }), 'STORE_UNAVAILABLE')
  made.store!.isDown = false
  await rejectsWith(remove(made.repository, id), 'SNAPSHOT_PROTECTED')
})

test('a change that the target does not take is not made', async (t) => {
  const made = await scene(t)
  await made.repository.setPolicy({ policy: { last: 3 } })
  made.store!.isDown = true
  await rejectsWith(made.repository.setPolicy({ policy: { last: 1 } }), 'STORE_UNAVAILABLE')
  made.store!.isDown = false
  assert.deepEqual((await made.repository.retention()).policy, { last: 3 })
})

test('a new target gets the settings, and one that missed a change catches up', async (t) => {
  const made = await scene(t)
  await made.repository.setPolicy({ policy: { last: 3 } })
  const place = join(made.world.directory, 'second')
  const first = join(made.world.directory, 'store', 'retention.json'), second = join(place, 'retention.json')
  await made.repository.addTarget({ name: 'second', url: `file:${place}` })
  for await (const event of made.repository.backfillTarget('second', never)) assert.notEqual(event.type, 'problem')
  assert.equal(await readFile(second, 'utf8'), await readFile(first, 'utf8'))
  await writeFile(second, 'rot')
  for await (const event of made.repository.backfillTarget('second', never)) void event
  assert.equal(await readFile(second, 'utf8'), await readFile(first, 'utf8'))
})

test('packs and snapshots written under a lock tell the target until when to keep them; those before do not', async (t) => {
  const made = await scene(t)
  await push(made)
  assert.ok(made.puts.filter(({ key }) => /^(packs|snapshots)\//.test(key)).every(({ retainUntilMs }) => retainUntilMs === undefined))
  await made.repository.change({ retentionLockMs: 5 * DAY })
  made.puts.length = 0
  await push(made)
  const told = made.puts.filter(({ key }) => /^(packs|snapshots)\//.test(key))
  assert.ok(told.some(({ key }) => key.startsWith('packs/')) && told.some(({ key }) => key.startsWith('snapshots/')))
  assert.deepEqual([...new Set(told.map(({ retainUntilMs }) => retainUntilMs))], [made.clock.now() + 5 * DAY])
})

test('two runs at once: the second is told to wait; one that is left early gives way', async (t) => {
  const made = await scene(t)
  await push(made)
  const first = made.repository.forget({ policy: { last: 1 } }, never)[Symbol.asyncIterator]()
  await first.next()
  await rejectsWith(forget(made.repository, { policy: { last: 1 } }), 'REPOSITORY_BUSY')
  await first.return?.()
  assert.equal(doneOf(await forget(made.repository, { policy: { last: 1 } })).problems, 0)
})

test('a run that is cut short is finished by the next', async (t) => {
  const made = await scene(t)
  for (let day = 0; day < 6; day++) { await push(made); made.clock.run(DAY) }
  const stop = new AbortController()
  await assert.rejects(async () => {
    for await (const event of made.repository.forget({ policy: { last: 1, keepOldest: false } }, stop.signal)) if (event.type === 'deleted') stop.abort()
  }, { name: 'AbortError' })
  assert.equal((await idsOf(made.repository)).length, 5)
  await forget(made.repository, { policy: { last: 1, keepOldest: false } })
  assert.equal((await idsOf(made.repository)).length, 1)
})
