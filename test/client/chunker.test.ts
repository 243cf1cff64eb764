import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { openChunker } from '../../client/chunker/chunker.js'
import type { Chunker, CutParameters } from '../../client/chunker/cut-rule.js'
import { openReferenceChunker } from '../../client/chunker/reference.js'
import { hasCode } from '../../src/core/errors.js'

const SMALL: CutParameters = { gearSeed: '17'.repeat(32), minBytes: 256, averageBytes: 1024, maxBytes: 4096 }
const LARGE: CutParameters = { gearSeed: '17'.repeat(32), minBytes: 131_072, averageBytes: 524_288, maxBytes: 2_097_152 }

/** xorshift32: the same bytes on every machine, for ever. */
function noise(bytes: number, seed: number): Buffer {
  const out = Buffer.alloc(bytes)
  for (let i = 0, x = seed | 1; i < bytes; i++) {
    x ^= x << 13; x ^= x >>> 17; x ^= x << 5
    out[i] = x & 0xff
  }
  return out
}
function cutLengths(chunker: Chunker, bytes: Buffer): number[] {
  const lengths: number[] = []
  for (let at = 0; at < bytes.byteLength;) {
    const length = chunker.cut(bytes.subarray(at), true)
    lengths.push(length)
    at += length
  }
  return lengths
}
function cutStrings(chunker: Chunker, bytes: Buffer): string[] {
  let at = 0
  return cutLengths(chunker, bytes).map((length) => bytes.toString('latin1', at, at += length))
}
const dataOfManyKinds = fc.oneof(
  fc.uint8Array({ maxLength: 12_000 }).map((bytes) => Buffer.from(bytes)),
  fc.record({ bytes: fc.nat(40_000), seed: fc.integer() }).map(({ bytes, seed }) => noise(bytes, seed)),
  fc.record({ bytes: fc.nat(20_000), fill: fc.nat(255) }).map(({ bytes, fill }) => Buffer.alloc(bytes, fill)),
  fc.record({ bytes: fc.nat(20_000), text: fc.string({ minLength: 1, maxLength: 100 }) })
    .map(({ bytes, text }) => Buffer.alloc(bytes, text)),
)

test('the WebAssembly chunker cuts where the reference cuts, on noise, runs, patterns and short inputs', () => {
  const fast = openChunker(SMALL)
  const reference = openReferenceChunker(SMALL)
  fc.assert(fc.property(dataOfManyKinds, fc.boolean(), (bytes, final) => {
    assert.equal(fast.cut(bytes, final), reference.cut(bytes, final))
    assert.deepEqual(cutLengths(fast, bytes), cutLengths(reference, bytes))
  }), { numRuns: 300 })
})

test('the same holds at every length around the bounds', () => {
  const fast = openChunker(SMALL)
  const reference = openReferenceChunker(SMALL)
  const zeroes = Buffer.alloc(5000)
  for (const source of [zeroes, noise(5000, 9)])
    for (const bytes of [0, 1, 63, 64, 65, 255, 256, 257, 1022, 1023, 1024, 1025, 4095, 4096, 4097, 5000])
      for (const final of [true, false])
        assert.equal(fast.cut(source.subarray(0, bytes), final), reference.cut(source.subarray(0, bytes), final), `${bytes} ${final}`)
})

test('large chunks, which span many scanning windows, are cut as the reference cuts them', () => {
  const bytes = noise(6_000_000, 3)
  assert.deepEqual(cutLengths(openChunker(LARGE), bytes), cutLengths(openReferenceChunker(LARGE), bytes))
})

test('every chunk but the last is within the bounds, and together they are the input', () => {
  const chunker = openChunker(SMALL)
  fc.assert(fc.property(dataOfManyKinds, (bytes) => {
    const lengths = cutLengths(chunker, bytes)
    assert.equal(lengths.reduce((sum, length) => sum + length, 0), bytes.byteLength)
    for (const length of lengths.slice(0, -1)) assert.ok(length >= SMALL.minBytes && length <= SMALL.maxBytes)
    assert.ok((lengths.at(-1) ?? 0) <= SMALL.maxBytes)
  }))
})

test('a cut does not depend on how much is offered: either more is asked for, or the answer is the one for all', () => {
  const chunker = openChunker(SMALL)
  fc.assert(fc.property(fc.integer(), fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 8 }), (seed, steps) => {
    const bytes = noise(9000, seed)
    const whole = chunker.cut(bytes, true)
    let offered = 0
    for (const step of steps) {
      offered = Math.min(bytes.byteLength, offered + step)
      const length = chunker.cut(bytes.subarray(0, offered), false)
      assert.ok(length === whole || (length === 0 && offered < SMALL.maxBytes), `offered ${offered}, cut ${length}, of ${whole}`)
      if (length !== 0) assert.ok(length <= offered)
    }
  }))
})

test('an edit changes the chunks around it and no others', () => {
  const chunker = openChunker(SMALL)
  const bytes = noise(400_000, 77)
  const before = new Set(cutStrings(chunker, bytes))
  const edited = Buffer.concat([bytes.subarray(0, 200_000), Buffer.from('inserted'), bytes.subarray(200_003)])
  const changed = cutStrings(chunker, edited).filter((chunk) => !before.has(chunk))
  assert.ok(before.size > 300, 'there is much to keep')
  assert.ok(changed.length >= 1 && changed.length <= 12, `${changed.length} chunks changed`)
})

test('lengths gather around the average and are hardly ever cut at the maximum', () => {
  const lengths = cutLengths(openChunker(SMALL), noise(4_000_000, 5))
  const mean = 4_000_000 / lengths.length
  assert.ok(mean > 0.9 * SMALL.averageBytes && mean < 1.3 * SMALL.averageBytes, `mean ${mean}`)
  assert.ok(lengths.filter((length) => length === SMALL.maxBytes).length < lengths.length / 500)
})

test('another seed cuts elsewhere', () => {
  const bytes = noise(50_000, 1)
  assert.notDeepEqual(cutLengths(openChunker(SMALL), bytes), cutLengths(openChunker({ ...SMALL, gearSeed: '18'.repeat(32) }), bytes))
})

test('cut points are frozen: changing them would store everything again', () => {
  assert.deepEqual(cutLengths(openChunker(SMALL), noise(12_000, 42)), GOLDEN_SMALL)
  assert.deepEqual(cutLengths(openChunker(LARGE), noise(3_000_000, 42)), GOLDEN_LARGE)
})
const GOLDEN_SMALL = [331, 902, 1778, 1174, 1179, 1158, 914, 1620, 1445, 1499]
const GOLDEN_LARGE = [244947, 617155, 563947, 612109, 478311, 483531]

test('parameters out of bounds are refused', () => {
  for (const wrong of [{ minBytes: 63 }, { minBytes: 2000 }, { averageBytes: 5000 }, { maxBytes: 5 * 1024 * 1024 }, { maxBytes: 1024.5 },
    { averageBytes: NaN }, { gearSeed: 'xyz' }, { gearSeed: 'AB'.repeat(32) }])
    assert.throws(() => openChunker({ ...SMALL, ...wrong }), (error) => hasCode(error, 'REQUEST_MALFORMED'), JSON.stringify(wrong))
})
