/** The part of the ChunkIndex contract that a collection stands on (docs/gc.md): what is held while it runs, what it may take away. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hasCode } from '../../src/core/errors.js'
import { CHUNK_KINDS, packNumber, type PackNumber } from '../../src/core/ids.js'
import { REF_STATES, type ChunkIndex, type CondemnRequest, type PackEntries } from '../../src/index/chunk-index.js'
import { addPack, bitmap, emptySnapshot, entriesOf, idOf, idProofsOf, idsOf, packIdOf, refsOf, sessionIdOf, sessionRow, snapshotIdOf } from '../support/index-fixtures.js'
import type { IndexSubject } from './chunk-index.js'

const S1 = sessionIdOf(1), S2 = sessionIdOf(2)
const NOTHING = new Uint8Array(0)
const request = (epoch: number, number: PackNumber, entries: PackEntries, marked: Uint8Array = NOTHING): CondemnRequest =>
  ({ epoch, packNumber: number, entries, marked, slots: 0b101 })
const isStale = (error: unknown): boolean => hasCode(error, 'COLLECTION_STALE')
const presence = async (index: ChunkIndex, numbers: readonly number[]): Promise<number[]> => [...(await index.locate(idsOf(numbers))).packNumbers]

export function collections({ open, reopen }: IndexSubject): void {
  test('a condemned pack is gone with its entries, its pins and its superseded ones, and is doomed on its targets', async (t) => {
    const index = await open(t)
    const first = entriesOf([1, 2]), second = entriesOf([2, 3])
    const one = await addPack(index, 1, first)
    const two = await addPack(index, 2, second)
    const epoch = await index.beginCollection()
    assert.equal(await index.condemnPack(request(epoch, two.packNumber, second)), 'condemned')
    assert.deepEqual(await presence(index, [1, 2, 3]), [one.packNumber, one.packNumber, 0])
    assert.equal(await index.getPack(two.packNumber), undefined)
    assert.equal(await index.findPack(two.packId), undefined)
    assert.deepEqual(await index.listDoomed(undefined, 10), [{ packId: two.packId, storedBytes: two.storedBytes, pending: 0b101 }])
    assert.equal(await index.isDoomed(two.packId), true)
    const totals = await index.totals()
    assert.deepEqual([totals.packs, totals.chunks, totals.storedBytes, totals.rawBytes, totals.doomedPacks, totals.doomedBytes],
      [1, 2, one.storedBytes, one.rawBytes, 1, two.storedBytes])
    assert.equal(await index.condemnPack(request(epoch, two.packNumber, second)), 'gone')
    // A push brings the chunk back into another pack.
    const three = await addPack(index, 3, entriesOf([3]))
    assert.deepEqual(await presence(index, [3]), [three.packNumber])
  })

  test('a pack is not condemned while a live entry of it is marked, or pinned by an open session', async (t) => {
    const index = await open(t)
    const entries = entriesOf([1, 2])
    const pack = await addPack(index, 1, entries)
    const epoch = await index.beginCollection()
    assert.equal(await index.condemnPack(request(epoch, pack.packNumber, entries, bitmap(1))), 'needed')
    await index.openSession(sessionRow(1))
    await index.pinPresent(S1, idProofsOf([2]))
    assert.equal(await index.condemnPack(request(epoch, pack.packNumber, entries)), 'needed')
    assert.deepEqual(await presence(index, [1, 2]), [pack.packNumber, pack.packNumber])
    // A session that ends without a commit leaves nothing that relies on its pins.
    await index.closeSession(S1)
    assert.equal(await index.condemnPack(request(epoch, pack.packNumber, entries)), 'condemned')
  })

  test('what was present before a pack was condemned is missing to a session that asks after', async (t) => {
    const index = await open(t)
    const entries = entriesOf([1])
    const pack = await addPack(index, 1, entries)
    await index.openSession(sessionRow(1))
    const epoch = await index.beginCollection()
    // Both at once: either the pin comes first and the pack stays, or the pack goes and the answer is "missing".
    const [result, present] = await Promise.all([index.condemnPack(request(epoch, pack.packNumber, entries)), index.pinPresent(S1, idProofsOf([1]))])
    assert.equal((present[0]! & 1) === 1, result === 'needed')
    assert.equal((await index.inspectRefs(S1, refsOf([1], CHUNK_KINDS.data)))[0], result === 'needed' ? REF_STATES.pinned : REF_STATES.missing)
  })

  test('pins of sessions that commit during a collection are held until it ends', async (t) => {
    const index = await open(t)
    const entries = entriesOf([1, 2])
    const pack = await addPack(index, 1, entries)
    await index.openSession(sessionRow(1))
    const first = await index.beginCollection()
    await index.pinPresent(S1, idProofsOf([1]))
    await index.inheritRefs(S1, idsOf([2]))
    await index.commitSnapshot(emptySnapshot(1), S1)
    assert.deepEqual((await index.listPins(undefined, 10)).pins.map(({ packNumber: number, pinned, inherited }) => [number, [...pinned], [...inherited]]),
      [[pack.packNumber, [0b11], [0b10]]])
    assert.equal(await index.condemnPack(request(first, pack.packNumber, entries)), 'needed')
    await index.endCollection(first)
    assert.deepEqual((await index.listPins(undefined, 10)).pins, [])
    const second = await index.beginCollection()
    assert.equal(await index.condemnPack(request(second, pack.packNumber, entries)), 'condemned') // its mark would have found the snapshot
  })

  test('the root of a snapshot that is deleted during a collection is held as inherited', async (t) => {
    const index = await open(t)
    const entries = entriesOf([1])
    const pack = await addPack(index, 1, entries, CHUNK_KINDS.node)
    await index.commitSnapshot(emptySnapshot(1), null)
    await index.commitSnapshot(emptySnapshot(2), null)
    await index.deleteSnapshot(snapshotIdOf(2), idOf(1))
    const epoch = await index.beginCollection()
    assert.deepEqual((await index.listPins(undefined, 10)).pins, [])
    await index.deleteSnapshot(snapshotIdOf(1), idOf(1))
    assert.deepEqual((await index.listPins(undefined, 10)).pins.map(({ inherited }) => [...inherited]), [[1]])
    assert.equal(await index.condemnPack(request(epoch, pack.packNumber, entries)), 'needed')
  })

  test('a collection that another one or its own end overtook takes nothing away', async (t) => {
    const index = await open(t)
    const entries = entriesOf([1])
    const pack = await addPack(index, 1, entries)
    const first = await index.beginCollection()
    const second = await index.beginCollection()
    assert.ok(second > first)
    await assert.rejects(index.condemnPack(request(first, pack.packNumber, entries)), isStale)
    await index.endCollection(first) // not this one's end
    await index.endCollection(second)
    await assert.rejects(index.condemnPack(request(second, pack.packNumber, entries)), isStale)
    await assert.rejects(index.movePack({ ...request(second, pack.packNumber, entries), copies: [] }), isStale)
    assert.deepEqual(await presence(index, [1]), [pack.packNumber])
  })

  test('a collection is over when lost entries are found again elsewhere: it may have marked them where they were', async (t) => {
    const index = await open(t)
    const entries = entriesOf([1])
    const lost = await addPack(index, 1, entries)
    const spare = await addPack(index, 2, entries)
    const epoch = await index.beginCollection()
    assert.equal(await index.reviveEntries(spare.packNumber, entries), 0)
    assert.equal(await index.condemnPack(request(epoch, lost.packNumber, entries, bitmap(0))), 'needed')
    await index.forgetPacks([lost.packNumber])
    assert.equal(await index.reviveEntries(spare.packNumber, entries), 1)
    await assert.rejects(index.condemnPack(request(epoch, spare.packNumber, entries)), isStale)
  })

  test('entries move to their copies with every pin on them, and what has no copy and no need is condemned', async (t) => {
    const index = await open(t)
    const old = entriesOf([1, 2, 3])
    const from = await addPack(index, 1, old, CHUNK_KINDS.node)
    await index.openSession(sessionRow(1))
    await index.openSession(sessionRow(2))
    await index.pinPresent(S1, idProofsOf([1]))
    await index.inheritRefs(S2, idsOf([2]))
    const epoch = await index.beginCollection()
    await index.commitSnapshot(emptySnapshot(1), S2) // held now
    const copies = entriesOf([2, 1])
    const to = await addPack(index, 2, copies, CHUNK_KINDS.node)
    assert.deepEqual(await presence(index, [1, 2]), [from.packNumber, from.packNumber], 'a copy alone changes nothing')
    assert.equal(await index.movePack({ ...request(epoch, from.packNumber, old, bitmap(0)), copies: [{ packNumber: to.packNumber, entries: copies }] }), 'condemned')
    const found = await index.locate(idsOf([1, 2, 3]))
    assert.deepEqual([[...found.packNumbers], [...found.entryNumbers]], [[to.packNumber, to.packNumber, 0], [1, 0, 0]])
    assert.equal((await index.inspectRefs(S1, refsOf([1], CHUNK_KINDS.node)))[0], REF_STATES.pinned)
    assert.equal(await index.condemnPack(request(epoch, to.packNumber, copies, bitmap(0))), 'needed')
    await index.closeSession(S1)
    assert.equal(await index.condemnPack(request(epoch, to.packNumber, copies)), 'needed', 'the held pin has moved, too')
    const totals = await index.totals()
    assert.deepEqual([totals.packs, totals.chunks, totals.nodeChunks], [1, 2, 2])
  })

  test('a pack is not moved while a needed entry has no copy, or its copy is not in the index', async (t) => {
    const index = await open(t)
    const old = entriesOf([1, 2])
    const from = await addPack(index, 1, old)
    const copies = entriesOf([1])
    const epoch = await index.beginCollection()
    const move = (marked: Uint8Array, to: number) => index.movePack({ ...request(epoch, from.packNumber, old, marked), copies: [{ packNumber: packNumber(to), entries: copies }] })
    assert.equal(await move(bitmap(0), 99), 'needed')
    const to = await addPack(index, 2, copies)
    assert.equal(await move(bitmap(0, 1), to.packNumber), 'needed')
    assert.deepEqual(await presence(index, [1, 2]), [from.packNumber, from.packNumber], 'nothing was changed half')
    assert.equal(await move(bitmap(0), to.packNumber), 'condemned')
  })

  test('a doomed pack is forgotten when no target may have it, and targets that leave the repository do not count', async (t) => {
    const index = await open(t)
    const packs: { readonly packNumber: PackNumber }[] = []
    for (const n of [1, 2]) packs.push(await addPack(index, n, entriesOf([n])))
    const epoch = await index.beginCollection()
    for (const [i, pack] of packs.entries()) await index.condemnPack(request(epoch, pack.packNumber, entriesOf([i + 1])))
    await index.settleDoomed([packIdOf(1)], 0b001)
    assert.deepEqual((await index.listDoomed(undefined, 10)).map(({ pending }) => pending).sort(), [0b100, 0b101])
    await index.settleDoomed([packIdOf(1), packIdOf(2), packIdOf(9)], 0b100)
    assert.deepEqual((await index.listDoomed(undefined, 10)).map(({ packId }) => packId), [packIdOf(2)])
    await index.clearHolders(0b001)
    assert.deepEqual(await index.listDoomed(undefined, 10), [])
    assert.equal((await index.totals()).doomedPacks, 0)
  })

  test('a listing of pins goes on where it was, HELD last', async (t) => {
    const index = await open(t)
    for (const n of [1, 2, 3]) await addPack(index, n, entriesOf([n]))
    await index.openSession(sessionRow(1))
    await index.openSession(sessionRow(2))
    await index.beginCollection()
    await index.pinPresent(S1, idProofsOf([1, 2]))
    await index.pinPresent(S2, idProofsOf([3]))
    const first = await index.listPins(undefined, 1)
    assert.equal(first.pins.length, 1)
    await index.commitSnapshot(emptySnapshot(1), S1)
    await index.commitSnapshot(emptySnapshot(2), S2)
    const seen = [...first.pins]
    for (let at = first.next; at !== undefined;) {
      const page = await index.listPins(at, 1)
      seen.push(...page.pins)
      at = page.next
    }
    assert.deepEqual([...new Set(seen.map((pin) => Number(pin.packNumber)))].sort(), [1, 2, 3])
  })

  if (reopen !== undefined)
    for (const how of ['clean', 'crashed'] as const)
      test(`an index that is opened again (${how}) runs no collection, holds nothing, and knows what is doomed`, async (t) => {
        const index = await open(t)
        const entries = entriesOf([1]), more = entriesOf([2])
        const pack = await addPack(index, 1, entries)
        const kept = await addPack(index, 2, more)
        await index.openSession(sessionRow(1))
        const epoch = await index.beginCollection()
        await index.condemnPack(request(epoch, pack.packNumber, entries))
        await index.pinPresent(S1, idProofsOf([2]))
        await index.commitSnapshot(emptySnapshot(1), S1)
        const again = await reopen(t, how)
        assert.deepEqual((await again.listPins(undefined, 10)).pins, [])
        await assert.rejects(again.condemnPack(request(epoch, kept.packNumber, more)), isStale)
        assert.deepEqual((await again.listDoomed(undefined, 10)).map(({ packId }) => packId), [pack.packId])
        assert.ok(await again.beginCollection() > epoch)
      })
}
