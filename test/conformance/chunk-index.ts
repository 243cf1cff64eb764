/** The ChunkIndex contract as tests of any implementation. `reopen` is given by those that outlive their process: it
 *  closes (clean) or abandons (crashed) the index that `open` made in this test and opens it again.
 */
import assert from 'node:assert/strict'
import { describe, test, type TestContext } from 'node:test'
import { hasCode } from '../../src/core/errors.js'
import { CHUNK_KINDS, CHUNK_ID_BYTES, ID_PROOF_BYTES, packNumber } from '../../src/core/ids.js'
import { REF_STATES, type ChunkIndex, type PackEntries } from '../../src/index/chunk-index.js'
import { addPack, bitmap, emptySnapshot, entriesOf, idOf, idProofOf, idProofsOf, idsOf, packIdOf, packRow, refsOf,
  sessionIdOf, sessionRow, snapshotIdOf } from '../support/index-fixtures.js'

import { collections } from './index-collection.js'
import { damageContract } from './index-damage.js'

export interface IndexSubject {
  open(t: TestContext): Promise<ChunkIndex>
  /** Absent when nothing outlives the process. */
  readonly reopen?: (t: TestContext, how: 'clean' | 'crashed') => Promise<ChunkIndex>
}

const lost = (error: unknown): boolean => hasCode(error, 'SESSION_LOST')
const S1 = sessionIdOf(1)
const S2 = sessionIdOf(2)

export function chunkIndexConformance(name: string, subject: IndexSubject): void {
  describe(`ChunkIndex contract: ${name}`, () => {
    packsAndChunks(subject)
    pins(subject)
    concurrentPushes(subject)
    sessions(subject)
    snapshots(subject)
    collections(subject)
    damageContract(subject)
    lifetime(subject)
  })
}

function packsAndChunks({ open }: IndexSubject): void {
  test('a new index is empty, clean and not complete', async (t) => {
    const index = await open(t)
    assert.equal(index.openedClean, true)
    assert.equal(await index.isComplete(), false)
    assert.ok(Object.values(await index.totals()).every((total) => total === 0))
    assert.deepEqual(await index.listPacks(0, 10), [])
    assert.equal((await index.scanChunks(undefined, 10)).locations.count, 0)
  })

  test('pack numbers start at 1 and follow one another without overlap', async (t) => {
    const index = await open(t)
    assert.equal(await index.reservePackNumbers(3), 1)
    const both = await Promise.all([index.reservePackNumbers(2), index.reservePackNumbers(1)])
    assert.deepEqual(new Set(both).size, 2)
    assert.equal(await index.reservePackNumbers(1), 7)
  })

  test('an added pack is found by number, by id and in the listing; its chunks are located field by field', async (t) => {
    const index = await open(t)
    const entries = entriesOf([10, 11, 12])
    const pack = await addPack(index, 1, entries, CHUNK_KINDS.node)
    assert.deepEqual(await index.getPack(pack.packNumber), pack)
    assert.deepEqual(await index.findPack(pack.packId), pack)
    assert.deepEqual(await index.listPacks(0, 10), [pack])
    const found = await index.locate(idsOf([12, 99, 10]))
    assert.equal(found.count, 3)
    assert.deepEqual([...found.packNumbers], [pack.packNumber, 0, pack.packNumber])
    assert.deepEqual([...found.entryNumbers], [2, 0, 0])
    assert.deepEqual([...found.kinds], [CHUNK_KINDS.node, 0, CHUNK_KINDS.node])
    assert.deepEqual([...found.rawBytes], [entries.rawBytes[2], 0, entries.rawBytes[0]])
    assert.deepEqual([...found.blockOffsets], [entries.blockOffsets[2], 0, entries.blockOffsets[0]])
    assert.deepEqual([...found.blockStoredBytes], [entries.blockStoredBytes[2], 0, entries.blockStoredBytes[0]])
    assert.deepEqual([...found.offsetsInBlock], [entries.offsetsInBlock[2], 0, entries.offsetsInBlock[0]])
  })

  test('an unknown pack is undefined, by number and by id', async (t) => {
    const index = await open(t)
    assert.equal(await index.getPack(packNumber(9)), undefined)
    assert.equal(await index.findPack(packIdOf(9)), undefined)
  })

  test('every field takes its largest value', async (t) => {
    const index = await open(t)
    const largest = (count: number): Uint32Array => new Uint32Array(count).fill(0xffff_ffff)
    const entries: PackEntries = { ...entriesOf([1]), rawBytes: largest(1), blockOffsets: largest(1),
      blockStoredBytes: largest(1), offsetsInBlock: largest(1) }
    await addPack(index, 1, entries)
    const found = await index.locate(idsOf([1]))
    assert.deepEqual([found.rawBytes[0], found.blockOffsets[0], found.blockStoredBytes[0], found.offsetsInBlock[0]],
      [0xffff_ffff, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff])
  })

  test('adding a pack again returns its number and changes nothing', async (t) => {
    const index = await open(t)
    const pack = await addPack(index, 1, entriesOf([1, 2]))
    const before = await index.totals()
    const [other] = [await index.reservePackNumbers(1)]
    assert.equal(await index.addPack({ ...pack, packNumber: other }, entriesOf([1, 2]), []), pack.packNumber)
    assert.deepEqual(await index.totals(), before)
    assert.equal(await index.getPack(other), undefined)
  })

  test('a pack added twice at the same time is one pack', async (t) => {
    const index = await open(t)
    const number = await index.reservePackNumbers(2)
    const row = packRow(number, 1, 2)
    const numbers = await Promise.all([index.addPack(row, entriesOf([1, 2]), []),
      index.addPack({ ...row, packNumber: packNumber(number + 1) }, entriesOf([1, 2]), [])])
    assert.equal(numbers[0], numbers[1])
    assert.equal((await index.totals()).packs, 1)
  })

  test('an id that is live keeps its place when another pack brings it again', async (t) => {
    const index = await open(t)
    const first = await addPack(index, 1, entriesOf([1, 2]))
    const second = await addPack(index, 2, entriesOf([2, 3]))
    const found = await index.locate(idsOf([1, 2, 3]))
    assert.deepEqual([...found.packNumbers], [first.packNumber, first.packNumber, second.packNumber])
    assert.deepEqual([...found.entryNumbers], [0, 1, 1])
    assert.equal((await index.totals()).chunks, 3)
  })

  test('an id twice in one pack is one chunk', async (t) => {
    const index = await open(t)
    await addPack(index, 1, entriesOf([1, 1, 2]))
    assert.equal((await index.totals()).chunks, 2)
    assert.equal((await index.locate(idsOf([1]))).rawBytes[0], entriesOf([1]).rawBytes[0])
  })

  test('an empty batch is answered with an empty batch', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    assert.equal((await index.locate(Buffer.alloc(0))).count, 0)
    assert.equal((await index.pinPresent(S1, Buffer.alloc(0))).length, 0)
    assert.equal((await index.inheritRefs(S1, Buffer.alloc(0))).length, 0)
    assert.equal((await index.inspectRefs(S1, Buffer.alloc(0))).length, 0)
  })

  test('totals count live chunks by kind, and packs with their bytes, until they are stored', async (t) => {
    const index = await open(t)
    const data = await addPack(index, 1, entriesOf([1, 2, 3]))
    const node = await addPack(index, 2, entriesOf([3, 4]), CHUNK_KINDS.node)
    assert.deepEqual(await index.totals(), { packs: 2, chunks: 4, dataChunks: 3, nodeChunks: 1,
      rawBytes: data.rawBytes + node.rawBytes, storedBytes: data.storedBytes + node.storedBytes, spooledPacks: 2,
      spooledBytes: data.storedBytes + node.storedBytes, snapshots: 0, sessionsOpen: 0, doomedPacks: 0, doomedBytes: 0, damagedChunks: 0 })
    await index.placePack(data.packNumber, { add: 0b10 })
    assert.deepEqual([(await index.totals()).spooledPacks, (await index.getPack(data.packNumber))?.heldBy], [2, 0b10], 'held is not stored yet')
    for (let twice = 0; twice < 2; twice++) await index.placePack(data.packNumber, { add: 0b101, remove: 0b10, stored: true })
    const totals = await index.totals()
    assert.deepEqual([totals.spooledPacks, totals.spooledBytes], [1, node.storedBytes])
    const row = await index.getPack(data.packNumber)
    assert.deepEqual([row?.state, row?.heldBy], ['stored', 0b101])
    await index.clearHolders(0b1)
    assert.equal((await index.getPack(data.packNumber))?.heldBy, 0b100)
    assert.equal(await index.placePack(packNumber(99), { stored: true }), undefined)
  })

  test('packs that are forgotten take their chunks along, and what had lost to them comes back from the packs that stay', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    const lost = await addPack(index, 1, entriesOf([1, 2, 3]))
    const kept = await addPack(index, 2, entriesOf([3, 4]))
    const other = await addPack(index, 3, entriesOf([5]), CHUNK_KINDS.node)
    await index.forgetPacks([lost.packNumber])
    assert.deepEqual([...(await index.locate(idsOf([1, 2, 3, 4, 5]))).packNumbers], [0, 0, 0, kept.packNumber, other.packNumber])
    assert.equal(await index.findPack(packIdOf(1)), undefined)
    assert.equal(await index.reviveEntries(kept.packNumber, entriesOf([3, 4])), 1)
    assert.equal(await index.reviveEntries(kept.packNumber, entriesOf([3, 4])), 0)
    assert.deepEqual([...(await index.locate(idsOf([3, 4]))).packNumbers], [kept.packNumber, kept.packNumber])
    const totals = await index.totals()
    assert.deepEqual([totals.packs, totals.chunks, totals.dataChunks, totals.nodeChunks], [2, 3, 2, 1])
    assert.deepEqual([totals.storedBytes, totals.rawBytes, totals.spooledPacks], [kept.storedBytes + other.storedBytes, kept.rawBytes + other.rawBytes, 2])
    // The same pack may be pushed again: its name follows from its bytes.
    await addPack(index, 1, entriesOf([1, 2, 3]))
    assert.deepEqual([...await index.pinPresent(S1, idProofsOf([1, 2, 3]))], [0b111])
  })

  test('packs page in ascending order, each exactly once', async (t) => {
    const index = await open(t)
    for (let n = 1; n <= 5; n++) await addPack(index, n, entriesOf([n]))
    const seen: number[] = []
    for (let after = 0; ;) {
      const page = await index.listPacks(after, 2)
      if (page.length === 0) break
      assert.ok(page.length <= 2)
      for (const pack of page) seen.push(pack.packNumber)
      after = page.at(-1)!.packNumber
    }
    assert.deepEqual(seen, [1, 2, 3, 4, 5])
  })

  for (const pageLimit of [3, 4, 5, 100]) {
    test(`chunks page in ascending id order, each exactly once, ${pageLimit} to a page`, async (t) => {
      const index = await open(t)
      const numbers = [1, 2, 3, 4, 5, 6, 7, 8]
      await addPack(index, 1, entriesOf(numbers))
      const seen: string[] = []
      for (let after: Buffer | undefined; ;) {
        const { ids, locations } = await index.scanChunks(after, pageLimit)
        assert.equal(ids.length, locations.count * CHUNK_ID_BYTES)
        if (locations.count === 0) break
        for (let i = 0; i < locations.count; i++) {
          seen.push(ids.toString('hex', i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))
          assert.equal(locations.packNumbers[i], 1)
        }
        after = ids.subarray(-CHUNK_ID_BYTES)
      }
      assert.deepEqual(seen, numbers.map((n) => idOf(n).toString('hex')).sort())
    })
  }
}

function pins({ open }: IndexSubject): void {
  const states = async (index: ChunkIndex, numbers: readonly number[], kind: number = CHUNK_KINDS.data): Promise<number[]> =>
    [...await index.inspectRefs(S1, refsOf(numbers, kind))]

  test('a reference goes from missing to unpinned, pinned and inherited, and never back', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    assert.deepEqual(await states(index, [1]), [REF_STATES.missing])
    await addPack(index, 1, entriesOf([1, 2]))
    assert.deepEqual(await states(index, [1, 2]), [REF_STATES.unpinned, REF_STATES.unpinned])
    await index.pinPresent(S1, idProofsOf([1]))
    assert.deepEqual(await states(index, [1, 2]), [REF_STATES.pinned, REF_STATES.unpinned])
    assert.deepEqual([...await index.inheritRefs(S1, idsOf([1, 9]))], [0b01])
    assert.deepEqual(await states(index, [1, 2]), [REF_STATES.inherited, REF_STATES.unpinned])
    await index.pinPresent(S1, idProofsOf([1, 2]))
    assert.deepEqual(await states(index, [1, 2]), [REF_STATES.inherited, REF_STATES.pinned])
  })

  test('ids alone are pinned for those who may, and what is not there is not', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await addPack(index, 1, entriesOf([1, 2]))
    assert.deepEqual([...await index.pinIds(S1, idsOf([1, 9]))], [0b01])
    assert.deepEqual(await states(index, [1, 2]), [REF_STATES.pinned, REF_STATES.unpinned])
    await index.inheritRefs(S1, idsOf([1]))
    await index.pinIds(S1, idsOf([1, 2]))
    assert.deepEqual(await states(index, [1, 2]), [REF_STATES.inherited, REF_STATES.pinned])
    await assert.rejects(index.pinIds(S2, idsOf([1])), { code: 'SESSION_LOST' })
  })

  test('a reference of the other kind is wrongKind, pinned or not', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await addPack(index, 1, entriesOf([1]))
    await index.pinPresent(S1, idProofsOf([1]))
    assert.deepEqual(await states(index, [1], CHUNK_KINDS.node), [REF_STATES.wrongKind])
  })

  test('pinPresent answers by bit in the order asked, over many packs', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    for (let n = 0; n < 5; n++) await addPack(index, n, entriesOf([n * 10, n * 10 + 1, n * 10 + 2]))
    const asked = Array.from({ length: 50 }, (_, i) => 49 - i)
    const found = await index.pinPresent(S1, idProofsOf(asked))
    assert.equal(found.length, 7)
    asked.forEach((n, i) => assert.equal((found[i >>> 3]! >>> (i & 7)) & 1, n % 10 < 3 ? 1 : 0, `chunk ${n}`))
    assert.deepEqual(await states(index, asked), asked.map((n) => (n % 10 < 3 ? REF_STATES.pinned : REF_STATES.missing)))
  })

  test('a wrong proof means missing, and pins nothing, whichever byte is wrong', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await addPack(index, 1, entriesOf([1]))
    for (let at = CHUNK_ID_BYTES; at < ID_PROOF_BYTES; at++) {
      const guess = Buffer.from(idProofOf(1))
      guess[at]! ^= 0x80
      assert.deepEqual([...await index.pinPresent(S1, guess)], [0], `byte ${at}`)
    }
    assert.deepEqual(await states(index, [1]), [REF_STATES.unpinned])
  })

  test('the same pair many times in one batch is present each time', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await addPack(index, 1, entriesOf([1]))
    assert.deepEqual([...await index.pinPresent(S1, idProofsOf([1, 1, 1]))], [0b111])
    assert.deepEqual([...await index.pinPresent(S1, idProofsOf([1, 1, 1]))], [0b111])
  })

  test('pins of one session are not pins of another', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await index.openSession(sessionRow(2))
    await addPack(index, 1, entriesOf([1]))
    await index.pinPresent(S2, idProofsOf([1]))
    assert.deepEqual(await states(index, [1]), [REF_STATES.unpinned])
  })

  test('addPack pins its entries for the sessions named, at once', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await index.openSession(sessionRow(2))
    await addPack(index, 1, entriesOf([1, 2, 3]), CHUNK_KINDS.data, [{ sessionId: S1, bitmap: bitmap(0, 2) },
      { sessionId: S2, bitmap: bitmap(1) }])
    assert.deepEqual(await states(index, [1, 2, 3]), [REF_STATES.pinned, REF_STATES.unpinned, REF_STATES.pinned])
  })

  test('addPack passes over a session that has closed', async (t) => {
    const index = await open(t)
    await addPack(index, 1, entriesOf([1]), CHUNK_KINDS.data, [{ sessionId: S1, bitmap: bitmap(0) }])
    await index.openSession(sessionRow(1))
    assert.deepEqual(await states(index, [1]), [REF_STATES.unpinned])
  })

  test('adding a pack again adds the new pins', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    const pack = await addPack(index, 1, entriesOf([1, 2]))
    await index.addPack(pack, entriesOf([1, 2]), [{ sessionId: S1, bitmap: bitmap(1) }])
    assert.deepEqual(await states(index, [1, 2]), [REF_STATES.unpinned, REF_STATES.pinned])
  })

  test('entries pinned before their pack is added are pinned once it is', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    const number = await index.reservePackNumbers(1)
    await index.pinEntries(S1, number, bitmap(0))
    await index.pinEntries(S1, number, bitmap(9))
    const entries = entriesOf(Array.from({ length: 10 }, (_, i) => i))
    await index.addPack(packRow(number, 1, 10), entries, [])
    assert.deepEqual(await states(index, [0, 1, 9]), [REF_STATES.pinned, REF_STATES.unpinned, REF_STATES.pinned])
  })

  test('closing a session drops its pins: the same id opened again has none', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await index.openSession(sessionRow(2))
    await addPack(index, 1, entriesOf([1]))
    await index.inheritRefs(S1, idsOf([1]))
    await index.inheritRefs(S2, idsOf([1]))
    await index.closeSession(S1)
    await index.openSession(sessionRow(1))
    assert.deepEqual(await states(index, [1]), [REF_STATES.unpinned])
    assert.deepEqual([...await index.inspectRefs(S2, refsOf([1]))], [REF_STATES.inherited])
  })
}

/** Two sessions push one chunk at once: both place it, one pack wins. The loser's pin must cover the winner's entry. */
function concurrentPushes({ open }: IndexSubject): void {
  const opened = async (t: TestContext, index: Promise<ChunkIndex>): Promise<ChunkIndex> => {
    const ready = await index
    await ready.openSession(sessionRow(1))
    await ready.openSession(sessionRow(2))
    await addPack(ready, 1, entriesOf([7, 1]), CHUNK_KINDS.data, [{ sessionId: S1, bitmap: bitmap(0, 1) }])
    return ready
  }
  const winnerIsPinned = async (index: ChunkIndex): Promise<void> => {
    assert.equal((await index.locate(idsOf([1]))).packNumbers[0], 1)
    assert.deepEqual([...await index.inspectRefs(S2, refsOf([1, 2, 7]))],
      [REF_STATES.pinned, REF_STATES.pinned, REF_STATES.unpinned])
  }

  test('a pin given with the losing pack covers the live entry', async (t) => {
    const index = await opened(t, open(t))
    await addPack(index, 2, entriesOf([1, 2]), CHUNK_KINDS.data, [{ sessionId: S2, bitmap: bitmap(0, 1) }])
    await winnerIsPinned(index)
  })
  test('a pin by position before the losing pack is added covers the live entry', async (t) => {
    const index = await opened(t, open(t))
    const number = await index.reservePackNumbers(1)
    await index.pinEntries(S2, number, bitmap(0, 1))
    await index.addPack(packRow(number, 2, 2), entriesOf([1, 2]), [])
    await winnerIsPinned(index)
  })
  test('a pin by position after the losing pack was added covers the live entry', async (t) => {
    const index = await opened(t, open(t))
    const { packNumber: number } = await addPack(index, 2, entriesOf([1, 2]))
    await index.pinEntries(S2, number, bitmap(0, 1))
    await winnerIsPinned(index)
  })
  test('a pin given when the losing pack is repeated covers the live entry', async (t) => {
    const index = await opened(t, open(t))
    const pack = await addPack(index, 2, entriesOf([1, 2]))
    await index.addPack(pack, entriesOf([1, 2]), [{ sessionId: S2, bitmap: bitmap(0, 1) }])
    await winnerIsPinned(index)
  })
}

function sessions({ open }: IndexSubject): void {
  test('sessions are listed and read as opened, with their last use', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await index.openSession(sessionRow(2))
    assert.deepEqual(await index.listSessions(), [sessionRow(1), sessionRow(2)])
    assert.equal((await index.totals()).sessionsOpen, 2)
    await index.touchSession(S1, 5_000)
    assert.deepEqual(await index.getSession(S1), { ...sessionRow(1), lastUsedAtMs: 5_000 })
    assert.deepEqual((await index.listSessions())[0]?.lastUsedAtMs, 5_000)
    await index.closeSession(S1)
    await index.closeSession(S1)
    assert.equal(await index.getSession(S1), undefined)
    assert.equal((await index.totals()).sessionsOpen, 1)
  })

  test('nothing can be done in a session that is not open: SESSION_LOST', async (t) => {
    const index = await open(t)
    await addPack(index, 1, entriesOf([1]))
    await index.openSession(sessionRow(1))
    await index.closeSession(S1)
    await assert.rejects(index.touchSession(S1, 1), lost)
    await assert.rejects(index.pinPresent(S1, idProofsOf([1])), lost)
    await assert.rejects(index.pinPresent(S1, idProofsOf([99])), lost, 'also with nothing present')
    await assert.rejects(index.pinEntries(S1, packNumber(1), bitmap(0)), lost)
    await assert.rejects(index.inheritRefs(S1, idsOf([1])), lost)
    await assert.rejects(index.inspectRefs(S1, refsOf([1])), lost)
    await assert.rejects(index.commitSnapshot(emptySnapshot(1), S1), lost)
    assert.equal((await index.totals()).snapshots, 0)
  })

  test('a pin that races with the close of its session fails or is dropped with it, and leaves nothing', async (t) => {
    const index = await open(t)
    await addPack(index, 1, entriesOf([1]))
    await index.openSession(sessionRow(1))
    await Promise.allSettled([index.closeSession(S1), index.pinPresent(S1, idProofsOf([1]))])
    await index.openSession(sessionRow(1))
    assert.deepEqual([...await index.inspectRefs(S1, refsOf([1]))], [REF_STATES.unpinned])
  })
}

function snapshots({ open }: IndexSubject): void {
  test('a commit adds the snapshot and closes its session; both are found again', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    const row = await index.commitSnapshot(emptySnapshot(1), S1)
    assert.deepEqual(row, { ...emptySnapshot(1), sequence: 1 })
    assert.deepEqual(await index.getSnapshot(snapshotIdOf(1)), row)
    assert.deepEqual(await index.findSnapshotOfSession(S1), row)
    assert.equal(await index.getSession(S1), undefined)
    const totals = await index.totals()
    assert.deepEqual([totals.snapshots, totals.sessionsOpen], [1, 0])
  })

  test('a repeated commit returns the existing row, though the session is gone', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    const row = await index.commitSnapshot(emptySnapshot(1), S1)
    assert.deepEqual(await index.commitSnapshot(emptySnapshot(1), S1), row)
    assert.deepEqual(await index.commitSnapshot(emptySnapshot(1), null), row)
    assert.equal((await index.totals()).snapshots, 1)
  })

  test('a snapshot without a session is taken in; an unknown one is undefined', async (t) => {
    const index = await open(t)
    assert.equal((await index.commitSnapshot(emptySnapshot(4), null)).sequence, 1)
    assert.equal(await index.getSnapshot(snapshotIdOf(5)), undefined)
    assert.equal(await index.findSnapshotOfSession(S1), undefined)
  })

  test('a snapshot that came from elsewhere is found by the push that made it there, until it is deleted', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    const row = await index.commitSnapshot({ ...emptySnapshot(1), signer: 'ab'.repeat(32), arrivedAtMs: 7, originSession: S2 }, S1)
    assert.deepEqual([row.signer, row.arrivedAtMs], ['ab'.repeat(32), 7])
    assert.deepEqual(await index.findSnapshotOfSession(S2), row)
    assert.deepEqual(await index.findSnapshotOfSession(S1), row)
    assert.deepEqual(await index.listSnapshots({ limit: 5 }), [row])
    await index.deleteSnapshot(row.snapshotId, Buffer.alloc(32))
    assert.equal(await index.findSnapshotOfSession(S2), undefined)
  })

  test('a large record comes back byte for byte', async (t) => {
    const index = await open(t)
    const record = Buffer.alloc(300_000, 'roost')
    await index.commitSnapshot({ ...emptySnapshot(1), record }, null)
    assert.deepEqual((await index.getSnapshot(snapshotIdOf(1)))?.record, record)
    assert.deepEqual((await index.listSnapshots({ limit: 1 }))[0]?.record, record)
  })

  test('snapshots page newest first, each once, also by source and by tag', async (t) => {
    const index = await open(t)
    for (let n = 1; n <= 6; n++)
      await index.commitSnapshot({ ...emptySnapshot(n), source: n % 2 === 0 ? 'even' : 'odd', tags: n > 3 ? ['late', 'x'] : [] }, null)
    const sequences = async (query: { source?: string; tag?: string }, limit: number): Promise<number[]> => {
      const seen: number[] = []
      for (let before: number | undefined; ;) {
        const page = await index.listSnapshots({ ...query, limit, ...(before === undefined ? {} : { before }) })
        assert.ok(page.length <= limit)
        if (page.length === 0) return seen
        for (const row of page) seen.push(row.sequence)
        before = page.at(-1)!.sequence
      }
    }
    for (const limit of [1, 2, 5, 6, 7]) {
      assert.deepEqual(await sequences({}, limit), [6, 5, 4, 3, 2, 1])
      assert.deepEqual(await sequences({ source: 'even' }, limit), [6, 4, 2])
      assert.deepEqual(await sequences({ tag: 'late' }, limit), [6, 5, 4])
      assert.deepEqual(await sequences({ source: 'odd', tag: 'late' }, limit), [5])
    }
  })

  test('a deleted snapshot is gone from every listing, and its sequence is not used again', async (t) => {
    const index = await open(t)
    await index.openSession(sessionRow(1))
    await index.commitSnapshot(emptySnapshot(1), S1)
    await index.deleteSnapshot(snapshotIdOf(1), idOf(1))
    await index.deleteSnapshot(snapshotIdOf(1), idOf(1))
    assert.equal(await index.getSnapshot(snapshotIdOf(1)), undefined)
    assert.equal(await index.findSnapshotOfSession(S1), undefined)
    assert.deepEqual(await index.listSnapshots({ limit: 5 }), [])
    assert.equal((await index.totals()).snapshots, 0)
    assert.equal((await index.commitSnapshot(emptySnapshot(2), null)).sequence, 2)
  })
}

function lifetime({ open, reopen }: IndexSubject): void {
  test('complete is what was last set', async (t) => {
    const index = await open(t)
    await index.setComplete(true)
    assert.equal(await index.isComplete(), true)
    await index.setComplete(false)
    assert.equal(await index.isComplete(), false)
  })

  test('close is idempotent, and a closed index refuses calls', async (t) => {
    const index = await open(t)
    await index.flush()
    await Promise.all([index.close(), index.close()])
    await index.close()
    await assert.rejects(index.totals())
    await assert.rejects(index.reservePackNumbers(1))
  })

  if (reopen === undefined) return

  const fill = async (index: ChunkIndex): Promise<void> => {
    await index.openSession(sessionRow(1))
    await index.openSession(sessionRow(2))
    await addPack(index, 1, entriesOf([1, 2, 3]), CHUNK_KINDS.data, [{ sessionId: S1, bitmap: bitmap(0) }])
    await index.inheritRefs(S1, idsOf([2]))
    await index.commitSnapshot(emptySnapshot(1), S2)
    await index.touchSession(S1, 7_777)
    await index.setComplete(true)
    await index.reservePackNumbers(10)
  }
  const assertDurable = async (index: ChunkIndex): Promise<void> => {
    assert.equal(await index.isComplete(), true)
    assert.equal((await index.locate(idsOf([3]))).entryNumbers[0], 2)
    assert.deepEqual(await index.getSnapshot(snapshotIdOf(1)), { ...emptySnapshot(1), sequence: 1 })
    assert.equal((await index.findSnapshotOfSession(S2))?.snapshotId, snapshotIdOf(1))
    assert.equal(await index.reservePackNumbers(1), 12, 'numbers are never handed out twice')
    assert.equal((await index.commitSnapshot(emptySnapshot(2), null)).sequence, 2)
  }

  test('a clean close keeps everything, sessions and pins with it', async (t) => {
    await fill(await open(t))
    const index = await reopen(t, 'clean')
    assert.equal(index.openedClean, true)
    assert.deepEqual(await index.listSessions(), [{ ...sessionRow(1), lastUsedAtMs: 7_777 }])
    assert.deepEqual([...await index.inspectRefs(S1, refsOf([1, 2, 3]))],
      [REF_STATES.pinned, REF_STATES.inherited, REF_STATES.unpinned])
    await assertDurable(index)
  })

  test('a crash drops sessions and pins and keeps all that was durable', async (t) => {
    await fill(await open(t))
    const index = await reopen(t, 'crashed')
    assert.equal(index.openedClean, false)
    assert.deepEqual(await index.listSessions(), [])
    assert.equal((await index.totals()).sessionsOpen, 0)
    await assert.rejects(index.pinPresent(S1, idProofsOf([1])), lost)
    await index.openSession(sessionRow(1))
    assert.deepEqual([...await index.inspectRefs(S1, refsOf([1, 2]))], [REF_STATES.unpinned, REF_STATES.unpinned])
    await assertDurable(index)
  })

  test('after a crash and a clean close the index opens clean again', async (t) => {
    await fill(await open(t))
    await reopen(t, 'crashed')
    assert.equal((await reopen(t, 'clean')).openedClean, true)
  })
}
