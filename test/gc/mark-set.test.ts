/** Marks against the plain sets that they stand for. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { hasBit } from '../../src/core/frames.js'
import { CHUNK_KINDS, packNumber, parsePackId } from '../../src/core/ids.js'
import type { PackRow } from '../../src/index/chunk-index.js'
import { MarkSet } from '../../src/gc/mark-set.js'

const row = (number: number, entryCount: number, isNode: boolean): PackRow => ({ packNumber: packNumber(number), packId: parsePackId('00'.repeat(32)),
  kind: isNode ? CHUNK_KINDS.node : CHUNK_KINDS.data, state: 'stored', storedBytes: 1, rawBytes: 1, entryCount, heldBy: 1 })
const packs = fc.uniqueArray(fc.record({ number: fc.oneof(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 1, max: 4_000_000 })), entries: fc.integer({ min: 1, max: 40 }), isNode: fc.boolean() }),
  { selector: ({ number }) => number, minLength: 1, maxLength: 30 })
const steps = fc.array(fc.record({ pack: fc.nat(), entry: fc.nat(), bytes: fc.nat(1_000), follow: fc.boolean(), expand: fc.boolean() }), { maxLength: 200 })

test('what is reached, what is to expand and in which order, for packs with dense and sparse numbers', () => {
  fc.assert(fc.property(packs, steps, (some, acts) => {
    const rows = some.sort((a, b) => a.number - b.number)
    const marks = new MarkSet()
    for (const { number, entries, isNode } of rows) marks.add(row(number, entries, isNode))
    marks.seal()
    const reached = new Map<string, number>(), toExpand = new Map<number, Set<number>>()
    for (const { pack, entry, bytes, follow, expand } of acts) {
      const { number, entries, isNode } = rows[pack % rows.length]!
      const at = entry % entries, key = `${number}:${at}`
      if (!reached.has(key)) {
        reached.set(key, follow ? bytes : 0)
        if (isNode && follow) toExpand.set(number, (toExpand.get(number) ?? new Set()).add(at))
      }
      if (follow) assert.equal(marks.reach(number, at, bytes), true)
      else marks.keep(number, at)
      const highest = [...toExpand.keys()].sort((a, b) => b - a)[0]
      assert.equal(marks.nextPack(), highest)
      if (!expand || highest === undefined) continue
      const taken = marks.takeToExpand(packNumber(highest))
      for (const one of toExpand.get(highest)!) assert.ok(taken.includes(one))
      for (const one of taken) assert.ok(reached.has(`${highest}:${one}`))
      toExpand.delete(highest)
    }
    for (const { number, entries } of rows) {
      const mine = Array.from({ length: entries }, (_, at) => reached.get(`${number}:${at}`))
      const found = marks.reachedOf(packNumber(number))
      assert.deepEqual([found.entries, found.rawBytes], [mine.filter((bytes) => bytes !== undefined).length, mine.reduce<number>((sum, bytes) => sum + (bytes ?? 0), 0)])
      const bitmap = marks.bitmapOf(packNumber(number))
      mine.forEach((bytes, at) => { assert.equal(hasBit(bitmap, at), bytes !== undefined) })
    }
  }))
})
test('a pack that came after the beginning is not part of it', () => {
  const marks = new MarkSet()
  marks.add(row(5, 3, true))
  marks.seal()
  for (const number of [1, 4, 6, 1_000_000]) assert.deepEqual([marks.reach(number, 0, 1), marks.covers(packNumber(number))], [false, false])
  assert.equal(marks.nextPack(), undefined)
})
test('an index without packs has nothing to mark', () => {
  const marks = new MarkSet()
  marks.seal()
  assert.deepEqual([marks.reach(1, 0, 1), marks.nextPack(), marks.chunks, marks.packs], [false, undefined, 0, 0])
})
test('memory is at most two bits a chunk, and some bytes a pack', () => {
  const marks = new MarkSet()
  const packCount = 4_000, entries = 500
  for (let number = 1; number <= packCount; number++) marks.add(row(number, entries, number % 10 === 0))
  marks.seal()
  for (let number = 1; number <= packCount; number++) marks.reach(number, 7, 1)
  for (let pack = marks.nextPack(); pack !== undefined; pack = marks.nextPack()) marks.takeToExpand(pack)
  assert.ok(marks.memoryBytes <= packCount * entries * 2 / 8 + packCount * 64, `${marks.memoryBytes} bytes`)
})
