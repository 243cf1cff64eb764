/** The engine between two repositories of one family: what it moves, what it does not move again, and what it never believes. */
import assert from 'node:assert/strict'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { GROUP_CODECS, type ChunkGroup } from '../../src/core/chunk-groups.js'
import { RoostError } from '../../src/core/errors.js'
import { signDetached, signingKeysFromSeed } from '../../src/core/nacl.js'
import { LIMITS } from '../../src/core/limits.js'
import { digest, hashChunk } from '../../src/core/hash.js'
import { encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import type { SignedSnapshot, SnapshotRecord } from '../../src/core/messages.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { LocalSide } from '../../src/replication/local-side.js'
import type { NearSide } from '../../src/replication/side.js'
import { altered, broughtIds, BroughtInMemory, problemsOf, replicaOf, replicate, replicationScene } from '../support/replication-scene.js'
import { buildTree, buildWorld, chunksOf, commitRequest, frameBody, never, openPush, pushTree, restoreTree } from '../support/repository-world.js'

const FIRST = [Buffer.from('one'), Buffer.alloc(60_000, 'x'), Buffer.from('three')]
const SECOND = [...FIRST, Buffer.from('of the second day')]
const idsOf = async (repository: LocalRepository): Promise<string[]> => (await repository.listSnapshots({ limit: 100 })).snapshots.map(({ id }) => id)

/** Counts the chunks that are asked for. */
function counting(side: NearSide, counts: { fetched: number; held: number }): NearSide {
  return altered(side, {
    fetch: (session, ids, signal) => { counts.fetched += ids.byteLength / 32; return side.fetch(session, ids, signal) },
    hold: (session, ids, signal) => { counts.held += ids.byteLength / 32; return side.hold(session, ids, signal) },
  })
}

for (const near of ['sink', 'source'] as const) {
  test(`near the ${near}: a snapshot comes whole, the next costs what it adds, a third run nothing`, async (t) => {
    const { source, sink } = await replicationScene(t)
    const first = await pushTree(source, FIRST)
    const counts = { fetched: 0, held: 0 }, brought = new BroughtInMemory()
    const options = { near, brought, wrapSource: (side: NearSide) => counting(side, counts) }
    assert.deepEqual(broughtIds(await replicate(source, sink, options)), [first])
    assert.equal(counts.fetched, FIRST.length + 1)
    assert.deepEqual(await restoreTree(sink, first), FIRST)
    const second = await pushTree(source, SECOND)
    counts.fetched = 0
    assert.deepEqual(broughtIds(await replicate(source, sink, options)), [second])
    assert.equal(counts.fetched, 2, 'a chunk and the node that lists it')
    assert.deepEqual(await restoreTree(sink, second), SECOND)
    counts.fetched = 0
    assert.deepEqual(broughtIds(await replicate(source, sink, options)), [])
    assert.equal(counts.fetched, 0)
    for await (const event of sink.check({ readDataPercent: 100 }, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
    await Promise.all([source.close(), sink.close()])
  })
}

test('what the base has is not asked about: the walk stops where both trees are the same', async (t) => {
  const { source, sink } = await replicationScene(t)
  const many = Array.from({ length: 300 }, (_, i) => Buffer.from(`chunk ${i}`))
  await pushTree(source, many)
  const counts = { fetched: 0, held: 0 }
  await replicate(source, sink)
  const second = await pushTree(source, [...many, Buffer.from('new')])
  await replicate(source, sink, { near: 'source', wrapSink: (side) => counting(side, counts) })
  assert.ok(counts.held <= 3, `${counts.held} chunks were asked about: the root, and what is new`)
  assert.equal((await restoreTree(sink, second)).length, 301)
  await Promise.all([source.close(), sink.close()])
})

test('a replica that also has clients, both ways, and three in a ring: every snapshot is everywhere once', async (t) => {
  const { source: a, sink: b } = await replicationScene(t)
  const { repository: c } = await replicaOf(t, b)
  const origins = [a, b, c]
  for (const one of origins) for (const other of origins) if (one !== other)
    await one.peer.trustOrigin({ repositoryId: other.info().repositoryId, verifyKey: other.info().verifyKey })
  const ids = [await pushTree(a, FIRST), await pushTree(b, SECOND), await pushTree(c, [Buffer.from('of c')])]
  for (let round = 0; round < 2; round++) for (const [from, to] of [[a, b], [b, c], [c, a], [b, a]] as const) await replicate(from, to)
  for (const one of origins) assert.deepEqual(new Set(await idsOf(one)), new Set(ids))
  for (const one of origins) assert.deepEqual(await restoreTree(one, ids[1]!), SECOND)
  for (const [from, to] of [[a, b], [b, c], [c, a]] as const) assert.deepEqual(broughtIds(await replicate(from, to)), [])
  await Promise.all(origins.map((one) => one.close()))
})

test('what the sink forgets is not brought again; --mirror takes only what was brought, not what is kept here, and not all at once', async (t) => {
  const { source, sink } = await replicationScene(t)
  const brought = new BroughtInMemory()
  const ids = [await pushTree(source, FIRST), await pushTree(source, SECOND), await pushTree(source, [Buffer.from('third')])]
  await replicate(source, sink, { brought })
  const own = await pushTree(sink, [Buffer.from('of a client of the sink')])
  await sink.deleteSnapshot(ids[0]! as never)
  assert.deepEqual(broughtIds(await replicate(source, sink, { brought })), [])
  await sink.protectSnapshot(ids[1]! as never, true)
  for (const id of ids.slice(0, 2)) await source.deleteSnapshot(id as never)
  await replicate(source, sink, { brought, mirror: true })
  assert.deepEqual(new Set(await idsOf(sink)), new Set([ids[1], ids[2], own]), 'one was protected here')
  await source.deleteSnapshot(ids[2]! as never)
  assert.deepEqual(problemsOf(await replicate(source, sink, { brought, mirror: true })), ['POLICY_KEEPS_NOTHING'])
  assert.ok((await idsOf(sink)).includes(ids[2]!))
  await Promise.all([source.close(), sink.close()])
})

test('only what is chosen comes', async (t) => {
  const { source, sink } = await replicationScene(t)
  const [, second] = [await pushTree(source, FIRST), await pushTree(source, SECOND)]
  assert.deepEqual(broughtIds(await replicate(source, sink, { selection: { sources: ['other*'] } })), [])
  assert.deepEqual(broughtIds(await replicate(source, sink, { selection: { sources: ['s'], newest: 1 } })), [second])
  await Promise.all([source.close(), sink.close()])
})

/** Groups with something done to them, as often as `times`. */
function spoiling(side: NearSide, spoil: (group: ChunkGroup) => ChunkGroup | undefined, times = Infinity): NearSide {
  let left = times
  return altered(side, { fetch: async function* (session, ids, signal) {
    for await (const group of side.fetch(session, ids, signal)) {
      const spoiled = left-- > 0 ? spoil(group) : group
      if (spoiled !== undefined) yield spoiled
    }
  } })
}
const flipped = (bytes: Buffer): Buffer => {
  const changed = Buffer.from(bytes)
  changed[changed.byteLength >> 1]! ^= 1
  return changed
}
test('chunks that arrive damaged are asked for again and never kept; from a source that only lies nothing stays', async (t) => {
  const lies: Record<string, (group: ChunkGroup) => ChunkGroup | undefined> = {
    'other bytes': (group) => ({ ...group, payload: flipped(group.payload) }),
    'another id': (group) => ({ ...group, ids: flipped(group.ids) }),
    'another kind': (group) => ({ ...group, kind: group.kind === 1 ? 2 : 1 }),
    'nothing': () => undefined,
  }
  for (const [what, spoil] of Object.entries(lies)) {
    const { source, sink } = await replicationScene(t)
    const id = await pushTree(source, FIRST)
    const chunks = (await sink.stats()).chunks
    const events = await replicate(source, sink, { wrapSource: (side) => spoiling(side, spoil) })
    assert.deepEqual([problemsOf(events), await idsOf(sink)], [['CHUNK_CORRUPT'], []], what)
    assert.equal((await sink.stats()).chunks, chunks, what)
    assert.deepEqual(broughtIds(await replicate(source, sink, { wrapSource: (side) => spoiling(side, spoil, 2) })), [id], what)
    assert.deepEqual(await restoreTree(sink, id), FIRST)
    await Promise.all([source.close(), sink.close()])
  }
})
test('a chunk that the source lacks is told, and the other snapshots come', async (t) => {
  const { source, sink } = await replicationScene(t)
  const [first, second] = [await pushTree(source, [Buffer.from('lost')]), await pushTree(source, SECOND)]
  const isLost = async (ids: Buffer): Promise<boolean> => ids.byteLength === 32
  let asked = 0
  const events = await replicate(source, sink, { wrapSource: (side) => altered(side, { fetch: async function* (session, ids, signal) {
    if (asked++ === 1 && await isLost(ids)) {
      yield { kind: 1, codec: GROUP_CODECS.absent, ids, rawBytes: new Uint32Array(1), payload: Buffer.alloc(0) }
      return
    }
    yield* side.fetch(session, ids, signal)
  } }) })
  assert.deepEqual([problemsOf(events), broughtIds(events)], [['CHUNK_MISSING'], [second]])
  assert.ok(!(await idsOf(sink)).includes(first))
  await Promise.all([source.close(), sink.close()])
})
test('sessions that are lost are opened again, on either side, and nothing is moved twice', async (t) => {
  for (const lost of ['source', 'sink'] as const) {
    const { source, sink } = await replicationScene(t)
    const id = await pushTree(source, FIRST)
    let left = 2
    const losing = (side: NearSide): NearSide => altered(side, {
      fetch: async function* (session, ids, signal) {
        if (lost === 'source' && left-- > 0) await side.close(session)
        yield* side.fetch(session, ids, signal)
      },
      put: async (session, groups, signal) => {
        if (lost === 'sink' && left-- > 0) await side.close(session)
        return await side.put(session, groups, signal)
      },
    })
    assert.deepEqual(broughtIds(await replicate(source, sink, { wrapSource: losing, wrapSink: losing })), [id], lost)
    assert.deepEqual(await restoreTree(sink, id), FIRST)
    await Promise.all([source.close(), sink.close()])
  }
})

/** The record of a snapshot with changes, signed by a key of one's own choice. */
function forge(signed: SignedSnapshot, seed: Buffer, changes: Partial<SnapshotRecord>): SignedSnapshot {
  const keys = signingKeysFromSeed(seed)
  const record = Buffer.from(JSON.stringify({ ...JSON.parse(Buffer.from(signed.record, 'base64').toString()) as SnapshotRecord, ...changes }))
  const message = Buffer.concat([Buffer.from('roost snapshot v1\0'), record])
  const signature = signDetached(message, keys.secretKey)
  return { id: digest(Buffer.concat([message, signature])).toString('hex'), record: record.toString('base64'), signature: signature.toString('base64'), signer: keys.publicKey.toString('hex') }
}
test('a snapshot whose signature, id or signer is not right is refused, whoever brings it', async (t) => {
  const { source, sink } = await replicationScene(t)
  const id = await pushTree(source, FIRST)
  const signed = await source.getSnapshot(id as never)
  const receive = async (snapshot: SignedSnapshot): Promise<string> => {
    const reply = await sink.peer.openSession({ kind: 'receive', source: 's', bases: [], challenge: '00'.repeat(32) }, { tokenId: 't' })
    return await sink.peer.receive(reply.sessionId as never, snapshot, never).then(() => 'taken in', (error: unknown) => (error as RoostError).code)
  }
  const signer = source.info().verifyKey
  assert.equal(await receive({ ...signed, signer, signature: flipped(Buffer.from(signed.signature, 'base64')).toString('base64') }), 'SNAPSHOT_CORRUPT')
  assert.equal(await receive({ ...signed, signer, id: '00'.repeat(32) }), 'SNAPSHOT_CORRUPT')
  assert.equal(await receive({ ...signed, signer, record: flipped(Buffer.from(signed.record, 'base64')).toString('base64') }), 'SNAPSHOT_CORRUPT')
  assert.equal(await receive(signed), 'SNAPSHOT_CORRUPT', 'nobody else signs for the sink')
  assert.equal(await receive(forge(signed, Buffer.alloc(32, 9), {})), 'SIGNER_UNKNOWN')
  const stranger = signingKeysFromSeed(Buffer.alloc(32, 9)).publicKey.toString('hex')
  await sink.peer.trustOrigin({ repositoryId: '77'.repeat(16), verifyKey: stranger })
  assert.equal(await receive(forge(signed, Buffer.alloc(32, 9), {})), 'SIGNER_UNKNOWN', 'a key signs for its own repository only')
  assert.equal(await receive(forge(signed, Buffer.alloc(32, 9), { repositoryId: '77'.repeat(16), root: 'no' })), 'SNAPSHOT_CORRUPT')
  assert.equal(await receive(forge(signed, Buffer.alloc(32, 9), { repositoryId: '77'.repeat(16) })), 'COMMIT_INCOMPLETE', 'a record without its tree')
  assert.deepEqual(await idsOf(sink), [])
  await Promise.all([source.close(), sink.close()])
})
test('two snapshots of one push with different content are an alarm, and nothing is overwritten', async (t) => {
  const { source, sink, sinkWorld } = await replicationScene(t)
  const id = await pushTree(source, FIRST)
  await replicate(source, sink)
  const signed = await source.getSnapshot(id as never)
  // Somebody with a key that is trusted signs another record of the same push.
  const seed = Buffer.alloc(32, 5)
  await sink.peer.trustOrigin({ repositoryId: '55'.repeat(16), verifyKey: signingKeysFromSeed(seed).publicKey.toString('hex') })
  const other = forge(signed, seed, { repositoryId: '55'.repeat(16), tags: ['changed'] })
  const events: string[] = []
  await assert.rejects(async () => {
    for await (const event of (await import('../../src/replication/run-replication.js')).runReplication({
      ...await sidesWith(source, sink, other), selection: {}, mirror: false, bytesPerSecondMax: 0, brought: new BroughtInMemory(),
      clock: (await import('../../src/core/clock.js')).systemClock, onLag: () => undefined, onProgress: () => undefined }, never)) if (event.type === 'problem') events.push(event.code)
  }, { code: 'REPLICA_CONFLICT' })
  assert.deepEqual(events, ['REPLICA_CONFLICT'])
  assert.ok(sinkWorld.events.some(({ type }) => type === 'conflict'), 'the operator hears of it')
  assert.deepEqual(await idsOf(sink), [id])
  assert.deepEqual(await restoreTree(sink, id), FIRST)
  await Promise.all([source.close(), sink.close()])
})
async function sidesWith(source: LocalRepository, sink: LocalRepository, other: SignedSnapshot): Promise<{ source: NearSide; sink: NearSide; near: NearSide }> {
  const real = new LocalSide(source), near = new LocalSide(sink)
  const { snapshots: [known] } = await source.peer.outline(undefined)
  return { near, sink: near, source: altered(real as NearSide, {
    outlines: async function* () { yield { ...known!, id: other.id } },
    open: async () => ({ ...await real.open({ kind: 'send', snapshot: known!.id }), snapshot: other }),
  }) }
}

test('repositories that are not of one family are told apart before anything moves', async (t) => {
  const { source } = await replicationScene(t)
  const world = await buildWorld(t, undefined, { seed: 7 })
  await world.create()
  const stranger = await world.open(true)
  await pushTree(source, FIRST)
  await stranger.peer.trustOrigin({ repositoryId: source.info().repositoryId, verifyKey: source.info().verifyKey })
  await assert.rejects(replicate(source, stranger), { code: 'PEER_REFUSED' })
  assert.equal((await stranger.stats()).chunks, 0)
  await Promise.all([source.close(), stranger.close()])
})

test('a session that receives signs nothing itself, and one of a client receives nothing', async (t) => {
  const { source, sink } = await replicationScene(t)
  const id = await pushTree(source, FIRST)
  const own = await sink.peer.openSession({ kind: 'receive', source: 's', bases: [], challenge: '00'.repeat(32) }, { tokenId: 't' })
  const record = JSON.parse(Buffer.from((await source.getSnapshot(id as never)).record, 'base64').toString()) as SnapshotRecord
  await assert.rejects(sink.commit(own.sessionId as never, record, never), { code: 'AUTH_FORBIDDEN' })
  const push = await sink.openSession({ kind: 'push', source: 's', mode: 'files', parent: null }, { tokenId: 't' })
  await assert.rejects(sink.peer.hold(push.sessionId as never, Buffer.alloc(32)), { code: 'AUTH_FORBIDDEN' })
  await assert.rejects(sink.peer.inherit(push.sessionId as never, Buffer.alloc(32), never), { code: 'AUTH_FORBIDDEN' })
  const read = await source.openSession({ kind: 'read', snapshot: id }, { tokenId: 't' })
  await assert.rejects(async () => { for await (const group of source.peer.fetch(read.sessionId as never, Buffer.alloc(32), never)) void group }, { code: 'AUTH_FORBIDDEN' })
  await Promise.all([source.close(), sink.close()])
})

test('what a replica takes in is checked on its targets, healed, and there after everything local is lost', async (t) => {
  const { source, sink, sinkWorld } = await replicationScene(t)
  const id = await pushTree(source, FIRST)
  await replicate(source, sink)
  const folder = join(sinkWorld.directory, 'store', 'origins')
  const [name] = readdirSync(folder)
  writeFileSync(join(folder, name!), 'not what was written')
  const codes: string[] = []
  for await (const event of sink.check({ readDataPercent: 0, heal: true }, never)) if (event.type === 'problem' || event.type === 'healed') codes.push(event.type)
  assert.deepEqual(codes, ['problem', 'healed'])
  await sink.close()
  const again = await sinkWorld.open(true)
  assert.deepEqual((await again.peer.listOrigins()).map(({ verifyKey }) => verifyKey), [source.info().verifyKey])
  const second = await pushTree(source, SECOND)
  assert.deepEqual(broughtIds(await replicate(source, again)), [second])
  assert.deepEqual(await restoreTree(again, id), FIRST)
  await Promise.all([source.close(), again.close()])
})
test('a snapshot whose signer is not taken in is refused before anything moves', async (t) => {
  const { source, sink } = await replicationScene(t)
  const { repository: stranger } = await replicaOf(t, source)
  await pushTree(stranger, FIRST)
  const chunks = (await sink.stats()).chunks
  const counts = { fetched: 0, held: 0 }
  assert.deepEqual(problemsOf(await replicate(stranger, sink, { wrapSource: (side) => counting(side, counts) })), ['SIGNER_UNKNOWN'])
  assert.deepEqual([counts.fetched, (await sink.stats()).chunks], [0, chunks])
  await Promise.all([source.close(), sink.close(), stranger.close()])
})
test('a node that merely is there is no base: what it lists is not inherited, and no snapshot is taken in on it', async (t) => {
  const { source, sink } = await replicationScene(t)
  const { session, key } = await openPush(source)
  const lower = buildTree(key, FIRST)
  const idOfNode = (bytes: Buffer): Buffer => hashChunk(key, bytes, 2).subarray(0, 32)
  const root = encodeNode(NODE_TYPES.directory, [{ kind: 2, id: idOfNode(lower.root) }], Buffer.alloc(0))
  await source.putChunks(session, frameBody(key, [...chunksOf(lower), { bytes: root, kind: 2 }]), never)
  const { snapshot: { id } } = await source.commit(session, { ...commitRequest(key, lower), root: idOfNode(root).toString('hex') }, never)
  const sending = await source.peer.openSession({ kind: 'send', snapshot: id, challenge: '00'.repeat(32) }, { tokenId: 't' })
  const near = new LocalSide(sink)
  const nodes = Buffer.concat([idOfNode(root), idOfNode(lower.root)])
  const receiving = await near.open({ kind: 'receive', source: 's', bases: [] })
  // Its push never ended: two nodes came, what the lower one lists did not.
  const groups: ChunkGroup[] = []
  for await (const group of source.peer.fetch(sending.sessionId as never, nodes, never)) groups.push(group)
  await near.put(receiving.sessionId, groups, never)
  await near.close(receiving.sessionId)
  await pushTree(sink, [Buffer.from('somebody commits, which seals what is open')])
  const next = await near.open({ kind: 'receive', source: 's', bases: [] })
  assert.deepEqual([...await near.hold(next.sessionId, nodes)], [0], 'they are there')
  await near.inherit(next.sessionId, nodes, never)
  const signed = await source.getSnapshot(id as never)
  await assert.rejects(near.receive(next.sessionId, { ...signed, signer: source.info().verifyKey }, never), { code: 'COMMIT_INCOMPLETE' })
  assert.deepEqual(broughtIds(await replicate(source, sink)), [id])
  for await (const event of sink.check({ readDataPercent: 100 }, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
  await Promise.all([source.close(), sink.close()])
})
test('very many very small chunks stay within what a body may hold', async (t) => {
  const { source, sink } = await replicationScene(t)
  const many = Array.from({ length: 9_000 }, (_, i) => Buffer.from(`${i}`))
  const { session, key } = await openPush(source)
  const tree = buildTree(key, many)
  for (let at = 0; at < many.length; at += 3_000) await source.putChunks(session, frameBody(key, many.slice(at, at + 3_000).map((bytes) => ({ bytes, kind: 1 }))), never)
  await source.putChunks(session, frameBody(key, [{ bytes: tree.root, kind: 2 }]), never)
  const { snapshot: { id } } = await source.commit(session, commitRequest(key, tree), never)
  const frames: number[] = []
  assert.deepEqual(broughtIds(await replicate(source, sink, { wrapSink: (side) => altered(side, { put: (on, groups, signal) => {
    frames.push(groups.reduce((sum, group) => sum + group.rawBytes.length, 0))
    return side.put(on, groups, signal)
  } }) })), [id])
  assert.ok(frames.every((count) => count <= LIMITS.bodyFramesMax), `${frames.join(' ')}`)
  assert.equal((await sink.stats()).chunks, many.length + 1)
  await Promise.all([source.close(), sink.close()])
})
test('collections on both sides, in the middle of a snapshot on its way, take nothing of it; forgetting it at the source does not stop what was begun', async (t) => {
  const { source, sink } = await replicationScene(t)
  const first = await pushTree(source, FIRST)
  await replicate(source, sink)
  const second = await pushTree(source, SECOND)
  let collections = 0
  const collecting = (side: NearSide): NearSide => altered(side, { put: async (session, groups, signal) => {
    const verdicts = await side.put(session, groups, signal)
    if (collections++ > 0) return verdicts
    // The base goes on both sides, and what is being read at the source.
    for (const id of [first, second]) await source.deleteSnapshot(id as never)
    await sink.deleteSnapshot(first as never)
    await pushTree(sink, [Buffer.from('somebody commits, which seals what is open')])
    for (const repository of [source, sink]) for await (const event of repository.collect({ repackBelow: 1 }, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
    return verdicts
  } })
  assert.deepEqual(broughtIds(await replicate(source, sink, { wrapSink: collecting })), [second])
  assert.ok(collections > 0)
  assert.deepEqual(await restoreTree(sink, second), SECOND)
  for await (const event of sink.check({ readDataPercent: 100 }, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
  await Promise.all([source.close(), sink.close()])
})
