/** The contract of damage and care: lost chunks, snapshots found whole, evacuated packs, the order of verification. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CHUNK_KINDS, packNumber, type PackNumber } from '../../src/core/ids.js'
import { ENTRY_STATES, REF_STATES, type ChunkIndex } from '../../src/index/chunk-index.js'
import { addPack, bitmap, emptySnapshot, entriesOf, idOf, idProofsOf, idsOf, refsOf, sessionIdOf, sessionRow, snapshotIdOf } from '../support/index-fixtures.js'
import type { IndexSubject } from './chunk-index.js'

const S1 = sessionIdOf(1)
const nowhere = async (index: ChunkIndex, numbers: readonly number[]): Promise<boolean> =>
  (await index.locate(idsOf(numbers))).packNumbers.every((number) => number === 0)

export function damageContract({ open, reopen }: IndexSubject): void {
  test('a chunk that is marked damaged is missing to everybody, counted and listed, until a pack brings it again', async (t) => {
    const index = await open(t)
    const pack = await addPack(index, 1, entriesOf([1, 2, 3]))
    await index.openSession(sessionRow(1))
    assert.deepEqual(await index.damageState(), { chunks: 0, generation: 0 })
    assert.equal(await index.markDamaged(pack.packNumber, idsOf([1, 3])), 2)
    assert.ok(await nowhere(index, [1, 3]))
    assert.equal((await index.pinPresent(S1, idProofsOf([1, 2, 3])))[0], 0b010)
    assert.deepEqual([...await index.inspectRefs(S1, refsOf([1]))], [REF_STATES.missing])
    assert.deepEqual(await index.damageState(), { chunks: 2, generation: 1 })
    const { chunks, dataChunks, damagedChunks } = await index.totals()
    assert.deepEqual({ chunks, dataChunks, damagedChunks }, { chunks: 1, dataChunks: 1, damagedChunks: 2 })
    const expected = [1, 3].map((n) => ({ id: Buffer.from(idOf(n)), packNumber: pack.packNumber as number })).sort((a, b) => a.id.compare(b.id))
    assert.deepEqual(await index.listDamaged(undefined, 10), expected)
    assert.deepEqual(await index.listDamaged(expected[0]!.id, 10), expected.slice(1))

    const again = await addPack(index, 2, entriesOf([3]))
    assert.deepEqual(await index.damageState(), { chunks: 1, generation: 1 })
    assert.equal((await index.locate(idsOf([3]))).packNumbers[0], again.packNumber)
    await addPack(index, 3, entriesOf([1, 9]))
    assert.deepEqual(await index.damageState(), { chunks: 0, generation: 1 })
    assert.deepEqual(await index.listDamaged(undefined, 10), [])
  })

  test('marking twice changes nothing; marking a chunk that lives in another pack leaves it alone; one that is nowhere is noted', async (t) => {
    const index = await open(t)
    const [first, second] = [await addPack(index, 1, entriesOf([1])), await addPack(index, 2, entriesOf([2]))]
    assert.equal(await index.markDamaged(first.packNumber, idsOf([1, 2])), 1)
    assert.equal(await index.markDamaged(first.packNumber, idsOf([1])), 0)
    assert.deepEqual(await index.damageState(), { chunks: 1, generation: 1 })
    assert.equal((await index.locate(idsOf([2]))).packNumbers[0], second.packNumber)
    assert.equal(await index.markDamaged(0, idsOf([7])), 1)
    assert.deepEqual(await index.damageState(), { chunks: 2, generation: 2 })
    assert.equal(await index.markDamaged(0, Buffer.alloc(0)), 0)
  })

  test('what lived in a forgotten pack is damaged; a revived entry heals it', async (t) => {
    const index = await open(t)
    const first = await addPack(index, 1, entriesOf([1, 2]))
    const second = await addPack(index, 2, entriesOf([2, 3]))
    await index.forgetPacks([first.packNumber])
    assert.deepEqual(await index.damageState(), { chunks: 2, generation: 1 })
    assert.deepEqual((await index.listDamaged(undefined, 10)).map(({ packNumber: number }) => number), [first.packNumber, first.packNumber])
    assert.deepEqual([...await index.inspectEntries(second.packNumber, entriesOf([2, 3]))], [ENTRY_STATES.spare, ENTRY_STATES.live])
    assert.equal(await index.reviveEntries(second.packNumber, entriesOf([2, 3])), 1)
    assert.deepEqual(await index.damageState(), { chunks: 1, generation: 1 })
  })

  test('entries of a pack are held against the index one by one', async (t) => {
    const index = await open(t)
    await addPack(index, 1, entriesOf([1]))
    const pack = await addPack(index, 2, entriesOf([1, 2, 3, 4]))
    await index.markDamaged(pack.packNumber, idsOf([3]))
    const trailer = entriesOf([1, 2, 3, 4, 5])
    trailer.offsetsInBlock[3] = 77
    assert.deepEqual([...await index.inspectEntries(pack.packNumber, trailer)],
      [ENTRY_STATES.elsewhere, ENTRY_STATES.live, ENTRY_STATES.lost, ENTRY_STATES.differs, ENTRY_STATES.absent])
  })

  test('damage that nothing needs is forgotten, unless more was lost meanwhile', async (t) => {
    const index = await open(t)
    const pack = await addPack(index, 1, entriesOf([1, 2]))
    await index.markDamaged(pack.packNumber, idsOf([1]))
    const { generation } = await index.damageState()
    await index.markDamaged(pack.packNumber, idsOf([2]))
    assert.equal(await index.forgetDamage(generation), false)
    assert.equal((await index.damageState()).chunks, 2)
    assert.equal(await index.forgetDamage(generation + 1), true)
    assert.deepEqual(await index.damageState(), { chunks: 0, generation: generation + 1 })
    assert.ok(await nowhere(index, [1, 2]))
    assert.deepEqual(await index.listDamaged(undefined, 10), [])
    // Its pack is still there, and its entries are not taken for ones that the index dropped; lost once more, it counts again.
    assert.deepEqual([...await index.inspectEntries(pack.packNumber, entriesOf([1, 2]))], [ENTRY_STATES.unneeded, ENTRY_STATES.unneeded])
    assert.equal(await index.markDamaged(0, idsOf([1])), 1)
    assert.deepEqual(await index.damageState(), { chunks: 1, generation: generation + 2 })
    await addPack(index, 2, entriesOf([1, 2]))
    assert.deepEqual(await index.damageState(), { chunks: 0, generation: generation + 2 })
  })

  test('a snapshot is whole at the latest generation noted, and what is known of it goes with it', async (t) => {
    const index = await open(t)
    const [id, other] = [snapshotIdOf(1), snapshotIdOf(2)]
    await index.noteWhole(id, 3)
    assert.equal(await index.wholeAt(id), undefined, 'there is no such snapshot')
    await index.commitSnapshot(emptySnapshot(1), null)
    await index.noteWhole(id, 3)
    await index.noteWhole(id, 2)
    assert.equal(await index.wholeAt(id), 3)
    assert.equal(await index.wholeAt(other), undefined)
    await index.deleteSnapshot(id, idOf(1))
    assert.equal(await index.wholeAt(id), undefined)
  })

  test('an evacuated pack is doomed; its chunks and their pins are at the copies', async (t) => {
    const index = await open(t)
    const pack = await addPack(index, 1, entriesOf([1, 2, 3]))
    await index.openSession(sessionRow(1))
    await index.pinPresent(S1, idProofsOf([1]))
    await index.inheritRefs(S1, idsOf([2]))
    await index.markDamaged(pack.packNumber, idsOf([3]))
    const copy = await addPack(index, 2, entriesOf([2, 1]))
    const request = { packNumber: pack.packNumber, ids: idsOf([1, 2, 3]), slots: 0b11, then: 'doom' as const, copies: [{ packNumber: copy.packNumber, entries: entriesOf([2, 1]) }] }
    assert.equal(await index.evacuatePack({ ...request, copies: [] }), 'needed')
    assert.equal(await index.evacuatePack(request), 'evacuated')
    assert.deepEqual([...(await index.locate(idsOf([1, 2]))).packNumbers], [copy.packNumber, copy.packNumber])
    assert.deepEqual([...await index.inspectRefs(S1, refsOf([1, 2, 3]))], [REF_STATES.pinned, REF_STATES.inherited, REF_STATES.missing])
    assert.equal(await index.getPack(pack.packNumber), undefined)
    assert.deepEqual(await index.listDoomed(undefined, 10), [{ packId: pack.packId, storedBytes: pack.storedBytes, pending: 0b11 }])
    assert.equal(await index.evacuatePack(request), 'gone')
    const { packs, chunks, damagedChunks } = await index.totals()
    assert.deepEqual({ packs, chunks, damagedChunks }, { packs: 1, chunks: 2, damagedChunks: 1 })
  })

  test('no pack gives way while a collection runs', async (t) => {
    const index = await open(t)
    const pack = await addPack(index, 1, entriesOf([1]))
    const copy = await addPack(index, 2, entriesOf([1]))
    const epoch = await index.beginCollection()
    const request = { packNumber: pack.packNumber, ids: idsOf([1]), slots: 1, then: 'forget' as const, copies: [{ packNumber: copy.packNumber, entries: entriesOf([1]) }] }
    assert.equal(await index.evacuatePack(request), 'collecting')
    await index.endCollection(epoch)
    assert.equal(await index.evacuatePack(request), 'evacuated')
    assert.equal(await index.getPack(pack.packNumber), undefined)
    assert.deepEqual(await index.listDoomed(undefined, 10), [])
  })

  test('an emptied pack can be kept: what is readable in it one day comes back by reviveEntries', async (t) => {
    const index = await open(t)
    const pack = await addPack(index, 1, entriesOf([1, 2]))
    await index.markDamaged(pack.packNumber, idsOf([1]))
    const copy = await addPack(index, 2, entriesOf([2]))
    const request = { packNumber: pack.packNumber, ids: idsOf([1, 2]), slots: 0, then: 'keep' as const, copies: [{ packNumber: copy.packNumber, entries: entriesOf([2]) }] }
    assert.equal(await index.evacuatePack(request), 'evacuated')
    assert.deepEqual(await index.getPack(pack.packNumber), pack)
    assert.deepEqual([...await index.inspectEntries(pack.packNumber, entriesOf([1, 2]))], [ENTRY_STATES.lost, ENTRY_STATES.elsewhere])
    assert.equal(await index.reviveEntries(pack.packNumber, entriesOf([1, 2])), 1)
    assert.deepEqual(await index.damageState(), { chunks: 0, generation: 1 })
    assert.deepEqual([...(await index.locate(idsOf([1, 2]))).packNumbers], [pack.packNumber, copy.packNumber])
  })

  test('packs are listed least recently verified first, those never verified apart, and those that left not at all', async (t) => {
    const index = await open(t)
    const packs: PackNumber[] = []
    for (const n of [1, 2, 3]) packs.push((await addPack(index, n, entriesOf([n]), CHUNK_KINDS.data)).packNumber)
    const verified = async (): Promise<number[]> => (await index.listVerified(0, 10)).map(({ packNumber: number }) => number)
    const unverified = async (): Promise<number[]> => (await index.listUnverified(0, 10)).packs.map(({ packNumber: number }) => number)
    assert.deepEqual(await unverified(), packs)
    await index.noteVerified(packs[1]!, 100)
    await index.noteVerified(packs[0]!, 200)
    assert.deepEqual(await unverified(), [packs[2]])
    assert.deepEqual(await index.listVerified(0, 10), [{ sequence: 1, packNumber: packs[1], atMs: 100 }, { sequence: 2, packNumber: packs[0], atMs: 200 }])
    await index.noteVerified(packs[1]!, 300)
    assert.deepEqual(await verified(), [packs[0], packs[1]])
    assert.deepEqual((await index.listVerified(2, 10)).map(({ atMs }) => atMs), [300])
    await index.noteVerified(packNumber(99), 1)
    await index.forgetPacks([packs[0]!])
    assert.deepEqual(await verified(), [packs[1]])
    assert.deepEqual(await index.listUnverified(0, 1), { packs: [], next: packs[1] })
    assert.deepEqual(await index.listUnverified(packs[2]!, 1), { packs: [], next: undefined })
  })

  if (reopen !== undefined)
    test('damage and verdicts outlive the process, and a crash', async (t) => {
      const index = await open(t)
      const pack = await addPack(index, 1, entriesOf([1, 2]))
      await index.commitSnapshot(emptySnapshot(1), null)
      await index.markDamaged(pack.packNumber, idsOf([1]))
      await index.noteWhole(snapshotIdOf(1), 1)
      await index.noteVerified(pack.packNumber, 5)
      await index.openSession({ ...sessionRow(1) })
      await index.pinEntries(S1, pack.packNumber, bitmap(1))
      await index.flush()
      const later = await reopen(t, 'crashed')
      assert.deepEqual(await later.damageState(), { chunks: 1, generation: 1 })
      assert.equal(await later.wholeAt(snapshotIdOf(1)), 1)
      assert.deepEqual(await later.listVerified(0, 5), [{ sequence: 1, packNumber: pack.packNumber, atMs: 5 }])
      assert.ok(await nowhere(later, [1]))
    })
}
