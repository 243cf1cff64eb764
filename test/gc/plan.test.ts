/** The plan alone: fates, reasons, and what must hold for all inputs. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CHUNK_KINDS, packNumber, parsePackId } from '../../src/core/ids.js'
import { LIMITS } from '../../src/core/limits.js'
import { judge, PLAN_DEFAULTS, SmallPackCounter, type PackFacts, type PlanPolicy, type Verdict } from '../../src/gc/plan.js'

const FULL = LIMITS.dataPackBytesTarget
function pack(facts: Partial<PackFacts> = {}): PackFacts {
  return { packNumber: packNumber(1), packId: parsePackId('ab'.repeat(32)), kind: CHUNK_KINDS.data, storedBytes: FULL, rawBytes: 1_000, entryCount: 10, liveEntries: 10, liveRawBytes: 1_000, ...facts }
}
function planOf(packs: readonly PackFacts[], policy: PlanPolicy = PLAN_DEFAULTS): Verdict[] {
  const counter = new SmallPackCounter(policy)
  for (const one of packs) counter.add(one)
  return packs.map((one) => judge(one, policy, counter.counts))
}
const fatesOf = (packs: readonly PackFacts[], policy?: PlanPolicy): string[] => planOf(packs, policy).map(({ fate }) => fate)

test('a pack is dropped when nothing in it is needed, kept when enough is, repacked in between', () => {
  assert.deepEqual(fatesOf([
    pack({ liveEntries: 0, liveRawBytes: 0 }), pack(), pack({ liveEntries: 9, liveRawBytes: 750 }), pack({ liveEntries: 9, liveRawBytes: 749 }),
    pack({ liveEntries: 1, liveRawBytes: 0 }), // pinned, its length not known
  ]), ['drop', 'keep', 'keep', 'repack', 'repack'])
})
test('bytes count, not entries: one large dead chunk is worth a repack, many small ones are not', () => {
  assert.deepEqual(fatesOf([pack({ liveEntries: 9, liveRawBytes: 100 }), pack({ liveEntries: 1, liveRawBytes: 900 })]), ['repack', 'keep'])
})
test('packs that came later or are on their way are left alone, whatever they look like', () => {
  assert.deepEqual(planOf([pack({ liveEntries: 0, liveRawBytes: 0, held: 'it came later' })]).map(({ fate, reason }) => [fate, reason]), [['keep', 'it came later']])
})
test('the threshold is the policy’s: never, and whenever a byte is dead', () => {
  const some = [pack({ liveEntries: 1, liveRawBytes: 1 }), pack({ liveEntries: 9, liveRawBytes: 999 }), pack()]
  assert.deepEqual(fatesOf(some, { ...PLAN_DEFAULTS, repackBelow: 0 }), ['keep', 'keep', 'keep'])
  assert.deepEqual(fatesOf(some, { ...PLAN_DEFAULTS, repackBelow: 1 }), ['repack', 'repack', 'keep'])
})
test('small packs are merged from eight of a kind on, and kinds are counted apart', () => {
  const small = (kind: PackFacts['kind'], count: number): PackFacts[] => Array.from({ length: count }, () => pack({ kind, storedBytes: 1_000 }))
  assert.deepEqual(new Set(fatesOf([...small(CHUNK_KINDS.data, 7), ...small(CHUNK_KINDS.node, 7)])), new Set(['keep']))
  assert.deepEqual(fatesOf([...small(CHUNK_KINDS.data, 8), ...small(CHUNK_KINDS.node, 1), pack()]), [...Array<string>(8).fill('repack'), 'keep', 'keep'])
})
test('for all inputs: one fate with a reason each, nothing that is needed is dropped, nothing that is held is touched', () => {
  const facts = fc.record({ kind: fc.constantFrom(CHUNK_KINDS.data, CHUNK_KINDS.node), storedBytes: fc.integer({ min: 1, max: LIMITS.packBytesMax }), rawBytes: fc.integer({ min: 0, max: 1_000_000 }),
    entryCount: fc.integer({ min: 1, max: 100 }), live: fc.double({ min: 0, max: 1, noNaN: true }), liveBytes: fc.double({ min: 0, max: 1, noNaN: true }), isHeld: fc.boolean() })
    .map(({ live, liveBytes, isHeld, ...rest }) => pack({ ...rest, liveEntries: Math.floor(live * rest.entryCount), liveRawBytes: Math.floor(liveBytes * rest.rawBytes), ...(isHeld ? { held: 'held' } : {}) }))
  fc.assert(fc.property(fc.array(facts, { maxLength: 40 }), fc.double({ min: 0, max: 1, noNaN: true }), (packs, repackBelow) => {
    for (const { pack: one, fate, reason } of planOf(packs, { ...PLAN_DEFAULTS, repackBelow })) {
      assert.ok(reason.length > 0)
      if (fate === 'drop') assert.equal(one.liveEntries, 0)
      if (one.held !== undefined) assert.equal(fate, 'keep')
      if (one.held === undefined && one.liveEntries === 0) assert.equal(fate, 'drop')
    }
    assert.deepEqual(planOf(packs), planOf(packs))
  }))
})
