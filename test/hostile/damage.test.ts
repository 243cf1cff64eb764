/** Bug class: rot taken for data. Every byte of every object that a repository keeps is flipped in turn: opening, reading or checking finds it, and
 *  what is read is the original or nothing.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { ByteWriter } from '../../src/core/bytes.js'
import { RoostError, hasCode, type ErrorCode } from '../../src/core/errors.js'
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, parseSessionId, parseSnapshotId } from '../../src/core/ids.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import { openLmdbIndex } from '../../src/index/lmdb-index.js'
import {
  encodeCounters, encodeJsonRow, encodeNumberRow, encodePackRow, encodePins, encodeSessionRow, encodeSnapshotHead, encodeSnapshotRecord, FRESH_COUNTERS,
  idKey, pinKey, sealRow, sessionKey, u32Key,
} from '../../src/index/row-codec.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { addPack, bitmap, emptySnapshot, entriesOf, idOf, idsOf, refsOf, sessionIdOf, sessionRow, snapshotIdOf } from '../support/index-fixtures.js'
import { rootOf } from '../support/real-server.js'
import { buildWorld, dedupKeyOf, never, pushTree, readIds, restoreTree, type World } from '../support/repository-world.js'

const DATA = [Buffer.from('some content of a file'), Buffer.from('and of another one')]

/** A repository at rest, with one snapshot. */
async function atRest(t: TestContext): Promise<{ world: World; snapshot: string; files: (prefix: string) => string[] }> {
  const world = await buildWorld(t, undefined, { isUnmended: true })
  await world.create()
  const repository = await world.open(true)
  const snapshot = await pushTree(repository, DATA)
  await repository.close()
  const store = join(world.directory, 'store')
  return { world, snapshot, files: (prefix) => readdirSync(store, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.startsWith(prefix) && statSync(join(store, name)).isFile()).map((name) => join(store, name)) }
}
/** Flips one bit of each byte in turn, another one at each place. */
async function everyFlip(file: string, visit: (at: number) => Promise<void>): Promise<number> {
  const whole = readFileSync(file)
  for (let at = 0; at < whole.byteLength; at++) {
    const damaged = Buffer.from(whole)
    damaged[at]! ^= 1 << (at % 8)
    writeFileSync(file, damaged)
    await visit(at)
  }
  writeFileSync(file, whole)
  return whole.byteLength
}
async function problemsOf(repository: LocalRepository): Promise<ErrorCode[]> {
  const codes: ErrorCode[] = []
  for await (const event of repository.check({ readDataPercent: 100, mark: false }, never)) if (event.type === 'problem') codes.push(event.code)
  return codes
}
/** Chunks that were read: the originals, or nothing where damage was found. */
async function readWhatIsThere(repository: LocalRepository, snapshot: string): Promise<void> {
  const chunks = await restoreTree(repository, snapshot).catch((error: unknown) => {
    assert.ok(error instanceof RoostError, String(error))
    return []
  })
  chunks.forEach((bytes, i) => { assert.ok(bytes.byteLength === 0 || bytes.equals(DATA[i]!), 'other bytes were returned') })
}

test('a byte flipped anywhere in a pack is found by check, and never read as data or structure', async (t) => {
  const { world, snapshot, files } = await atRest(t)
  const packs = files('packs/')
  assert.equal(packs.length, 2, 'one of data, one of nodes')
  const checked = await world.open(true) // check reads everything anew each time
  for (const file of packs)
    assert.ok(await everyFlip(file, async (at) => {
      const codes = await problemsOf(checked)
      assert.ok(codes.includes('PACK_CORRUPT'), `byte ${at}: ${codes.join()}`)
    }) > 200)
  await checked.close()
  for (const file of packs)
    await everyFlip(file, async () => {
      const repository = await world.open(true) // nothing cached
      await readWhatIsThere(repository, snapshot)
      await repository.close()
    })
  const repository = await world.open(true)
  assert.deepEqual(await problemsOf(repository), [])
  assert.deepEqual(await restoreTree(repository, snapshot), DATA)
  await repository.close()
})

test('objects that changed their names are found by check, and give nothing of each other', async (t) => {
  const world = await buildWorld(t, undefined, { isUnmended: true })
  await world.create()
  const repository = await world.open(true)
  const twins = [[Buffer.from('alpha')], [Buffer.from('gamma')]] // packs of the same layout
  const [first, second] = [await pushTree(repository, twins[0]!), await pushTree(repository, twins[1]!)]
  await repository.close()
  const store = join(world.directory, 'store')
  const named = (prefix: string): string[] => readdirSync(store, { recursive: true, encoding: 'utf8' }).filter((name) => name.startsWith(prefix) && statSync(join(store, name)).isFile()).sort()
  const swap = (a: string, b: string): void => {
    const [x, y] = [readFileSync(join(store, a)), readFileSync(join(store, b))]
    writeFileSync(join(store, a), y)
    writeFileSync(join(store, b), x)
  }
  const packs = named('packs/'), snapshots = named('snapshots/')
  assert.deepEqual([packs.length, snapshots.length], [4, 2])
  for (const a of packs) for (const b of packs.filter((name) => name > a)) {
    swap(a, b)
    const damaged = await world.open(true)
    const codes = await problemsOf(damaged)
    assert.ok(codes.filter((code) => code === 'PACK_CORRUPT').length >= 2, codes.join())
    await damaged.close()
    // Structure is proved by the server: what is served of another pack can only be data, which the client proves (client/read-chunks.ts).
    const reading = await world.open(true)
    for (const snapshot of [first, second]) {
      const reply = await reading.openSession({ kind: 'read', snapshot }, { tokenId: 't' })
      const root = rootOf(reply.snapshot!)
      const [node] = await readIds(reading, parseSessionId(reply.sessionId), root)
      if (node!.status === 0) assert.deepEqual(hashChunk(dedupKeyOf(reply), node!.bytes, CHUNK_KINDS.node).subarray(0, 32), root)
      else assert.equal(node!.bytes.byteLength, 0)
    }
    await reading.close()
    swap(a, b)
  }
  swap(snapshots[0]!, snapshots[1]!)
  const damaged = await world.open(true)
  assert.deepEqual(await problemsOf(damaged), ['SNAPSHOT_CORRUPT', 'SNAPSHOT_CORRUPT'])
  await damaged.close()
})

test('a byte flipped anywhere in a snapshot object is found by check, and by a rebuild, which does not take it in', async (t) => {
  const { world, snapshot, files } = await atRest(t)
  const [file, ...others] = files('snapshots/')
  assert.equal(others.length, 0)
  const repository = await world.open(true)
  await everyFlip(file!, async (at) => { assert.deepEqual(await problemsOf(repository), ['SNAPSHOT_CORRUPT'], `byte ${at}`) })

  const whole = readFileSync(file!)
  await repository.deleteSnapshot(parseSnapshotId(snapshot)) // from here on the index does not know what lies on the target
  const rebuild = async (): Promise<{ codes: ErrorCode[]; snapshots: number }> => {
    const codes: ErrorCode[] = []
    for await (const event of repository.rebuild(never)) if (event.type === 'problem') codes.push(event.code)
    return { codes, snapshots: (await repository.listSnapshots({ limit: 10 })).snapshots.length }
  }
  writeFileSync(file!, whole)
  await everyFlip(file!, async (at) => { assert.deepEqual(await rebuild(), { codes: ['SNAPSHOT_CORRUPT'], snapshots: 0 }, `byte ${at}`) })
  assert.deepEqual(await rebuild(), { codes: [], snapshots: 1 })
  await repository.close()
})

for (const [what, prefix, expected] of [
  ['the header', 'roost.json', ['REPOSITORY_CORRUPT']], ['a key slot', 'keys/', ['KEY_UNLOCK_FAILED', 'REPOSITORY_CORRUPT']],
] as const)
  test(`a byte flipped anywhere in ${what} keeps the repository from opening, or changes nothing that it says`, async (t) => {
    const { world, snapshot, files } = await atRest(t)
    const [file, ...others] = files(prefix)
    assert.equal(others.length, 0)
    const before = JSON.stringify(await openedInfo(world))
    let refused = 0
    const flips = await everyFlip(file!, async (at) => {
      const opened = await openedInfo(world).catch((error: unknown) => {
        assert.ok(error instanceof RoostError && expected.some((code) => code === error.code), `byte ${at}: ${String(error)}`)
        refused++
        return undefined
      })
      if (opened !== undefined) assert.equal(JSON.stringify(opened), before, `byte ${at}`)
    })
    assert.ok(refused > flips * 0.7, `${refused} of ${flips} flips were refused`)
    const repository = await world.open(true)
    assert.deepEqual(await restoreTree(repository, snapshot), DATA)
    await repository.close()
  })
async function openedInfo(world: World): Promise<unknown> {
  const repository = await world.open(true)
  try { return repository.info() } finally { await repository.close() }
}

test('a byte flipped in the keyfile keeps the repository from opening, in the local description it names no other one', async (t) => {
  const { world } = await atRest(t)
  const { repositoryId } = await openedInfo(world) as { repositoryId: string }
  await everyFlip(join(world.directory, 'keyfile'), async (at) => {
    await assert.rejects(openedInfo(world), (error) => hasCode(error, 'KEY_UNLOCK_FAILED') || hasCode(error, 'REPOSITORY_CORRUPT'), `byte ${at}`)
  })
  await everyFlip(join(world.directory, 'repository.json'), async (at) => {
    const opened = await openedInfo(world).catch((error: unknown) => { assert.ok(error instanceof RoostError, `byte ${at}: ${String(error)}`) })
    if (opened !== undefined) assert.equal((opened as { repositoryId: string }).repositoryId, repositoryId, `byte ${at}`)
  })
})

test('a byte flipped in a pack that waits in the spool is found at start, and the pack is kept aside', async (t) => {
  const { world } = await atRest(t)
  const [data] = readdirSync(join(world.directory, 'store', 'packs'), { recursive: true, encoding: 'utf8' }).filter((name) => /[0-9a-f]{64}$/.test(name))
  const bytes = readFileSync(join(world.directory, 'store', 'packs', data!))
  const id = data!.slice(-64), spooled = join(world.directory, 'spool', `${'0'.repeat(64)}.pack`)
  for (let at = 0; at < bytes.byteLength; at += 5) {
    const damaged = Buffer.from(bytes)
    damaged[at]! ^= 2
    const renamed = spooled.replace('0'.repeat(64), `${id.slice(0, 60)}${at.toString(16).padStart(4, '0')}`) // a pack that no index knows
    writeFileSync(renamed, damaged)
    const repository = await world.open(false)
    await repository.close()
    assert.deepEqual(readdirSync(join(world.directory, 'spool')), [`${renamed.slice(-69)}.damaged`])
    rmSync(`${renamed}.damaged`)
  }
})

// ---- the index, in its file

test('a byte flipped anywhere in any kind of row of the index file is found when it is read', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'roost-rot-'))
  t.after(() => { rmSync(directory, { recursive: true, force: true }) })
  const at = join(directory, 'index'), file = join(at, 'data.mdb')
  const identity = { repositoryId: 'ab'.repeat(16), formatVersion: 1 }
  const open = (): Promise<ChunkIndex> => openLmdbIndex({ directory: at, identity })
  const index = await open()
  const pack = await addPack(index, 1, entriesOf([1, 2, 3]))
  await index.openSession(sessionRow(1))
  await index.openSession(sessionRow(2))
  await index.pinEntries(sessionIdOf(1), pack.packNumber, bitmap(0, 2))
  const row = await index.commitSnapshot(emptySnapshot(1), sessionIdOf(2))
  await index.setComplete(true)
  await index.markDamaged(pack.packNumber, idOf(3))
  await index.noteWhole(row.snapshotId, 1)
  await index.noteVerified(pack.packNumber, 77)
  const totals = await index.totals()
  await index.close()

  const everything = async (): Promise<string> => {
    const opened = await open()
    try {
      return JSON.stringify([
        opened.openedClean, await opened.isComplete(), await opened.totals(), await opened.listPacks(0, 10), await opened.getPack(pack.packNumber), await opened.findPack(pack.packId),
        [...(await opened.locate(idsOf([1, 2, 3]))).offsetsInBlock], (await opened.scanChunks(undefined, 10)).ids.toString('hex'),
        await opened.listSessions(), await opened.getSession(sessionIdOf(1)), [...await opened.inspectRefs(sessionIdOf(1), refsOf([1, 2, 3]))],
        await opened.listSnapshots({ limit: 10 }), await opened.getSnapshot(snapshotIdOf(1)), await opened.findSnapshotOfSession(sessionIdOf(2)),
        await opened.listDamaged(undefined, 10), await opened.damageState(), await opened.wholeAt(snapshotIdOf(1)), await opened.listVerified(0, 10),
      ])
    } finally { await opened.close() }
  }
  const whole = await everything()
  const bytes = readFileSync(file)
  const session = sessionKey(sessionIdOf(1)), { record, signature, ...head } = row
  const counters = { ...FRESH_COUNTERS, ...totals, nextPackNumber: pack.packNumber + 1, nextSequence: row.sequence + 1, removals: 1 }
  const rows: Record<string, Buffer> = {
    pack: encodePackRow(u32Key(pack.packNumber), pack),
    'pack number': encodeNumberRow('packId', idKey(pack.packId), pack.packNumber),
    session: encodeSessionRow(session, sessionRow(1)),
    pins: encodePins(pinKey(session, pack.packNumber), { pinned: bitmap(0, 2), inherited: new Uint8Array(0) }),
    'snapshot head': encodeSnapshotHead(u32Key(row.sequence), head),
    'snapshot record': encodeSnapshotRecord(u32Key(row.sequence), { record, signature }),
    'snapshot number': encodeNumberRow('snapshotId', idKey(row.snapshotId), row.sequence),
    'snapshot of a session': encodeNumberRow('sessionSnapshot', sessionKey(sessionIdOf(2)), row.sequence),
    counters: encodeCounters(Buffer.from('counters'), counters),
    damaged: encodeNumberRow('damaged', idOf(3), pack.packNumber),
    'damage state': sealRow('damage', Buffer.from('damage'), new ByteWriter(24).u64(1).u64(1).u64(1).finish()),
    whole: encodeNumberRow('whole', idKey(row.snapshotId), 1),
    'verified order': sealRow('verifiedOrder', Buffer.from([0, 0, 0, 0, 0, 0, 0, 1]), new ByteWriter(12).u32(pack.packNumber).u64(77).finish()),
    identity: encodeJsonRow('identity', Buffer.from('identity'), identity),
    complete: sealRow('state', Buffer.from('complete'), Buffer.from([1])),
    clean: sealRow('state', Buffer.from('clean'), Buffer.from([1])),
    chunk: bytes.subarray(bytes.lastIndexOf(idOf(2)) + 32, bytes.lastIndexOf(idOf(2)) + 32 + 40),
  }
  for (const [kind, needle] of Object.entries(rows)) {
    const places: number[] = []
    for (let place = bytes.indexOf(needle); place >= 0; place = bytes.indexOf(needle, place + 1)) places.push(place)
    assert.ok(places.length > 0, `the ${kind} row lies in the file`)
    for (let byte = 0; byte < needle.byteLength; byte++) {
      const damaged = Buffer.from(bytes)
      for (const place of places) damaged[place + byte]! ^= 1 << (byte % 8)
      writeFileSync(file, damaged)
      const found = await everything().catch((error: unknown) => error)
      assert.ok(hasCode(found, 'INDEX_CORRUPT'), `byte ${byte} of the ${kind} row: ${String(found)}`)
    }
  }
  writeFileSync(file, bytes)
  assert.equal(await everything(), whole)
  assert.equal(pack.kind, CHUNK_KINDS.data)
})
