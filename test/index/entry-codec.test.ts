/** Bug class: rot of the index taken for data. Every single-bit change of every row must be found. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { hasCode } from '../../src/core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, packNumber } from '../../src/core/ids.js'
import { CHUNK_VALUE_BYTES, checkChunkValue, emptyLocations, encodeChunkValue, proofMatches,
  putLocation } from '../../src/index/entry-codec.js'
import { FRESH_COUNTERS, decodeCounters, decodeNumberRow, decodePackRow, decodePins, decodeSessionRow, decodeSnapshotHead,
  decodeSnapshotRecord, encodeCounters, encodeNumberRow, encodePackRow, encodePins, encodeSessionRow, encodeSnapshotHead,
  encodeSnapshotRecord, idKey, pinKey, sessionKey, u32Key } from '../../src/index/row-codec.js'
import { emptySnapshot, entriesOf, idOf, idProofOf, packIdOf, packRow, sessionIdOf, sessionRow, snapshotIdOf } from '../support/index-fixtures.js'

const corrupt = (error: unknown): boolean => hasCode(error, 'INDEX_CORRUPT')
const u32 = fc.integer({ min: 0, max: 0xffff_ffff })

function valueOf(n: number): Buffer {
  const value = Buffer.alloc(CHUNK_VALUE_BYTES)
  encodeChunkValue(value, 7, CHUNK_KINDS.data, entriesOf([n]), 0)
  return value
}
function* flipsOf(bytes: Buffer): Generator<Buffer> {
  for (let at = 0; at < bytes.length; at++) for (let bit = 0; bit < 8; bit++) {
    const flipped = Buffer.from(bytes)
    flipped[at]! ^= 1 << bit
    yield flipped
  }
}

test('a chunk entry comes back as it was written, at the ends of every range', () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 0xffff_ffff }), fc.constantFrom(CHUNK_KINDS.data, CHUNK_KINDS.node),
    fc.integer({ min: 0, max: 300 }), fc.tuple(u32, u32, u32, u32), (number, kind, entry, fields) => {
      const entries = entriesOf(Array.from({ length: entry + 1 }, (_, i) => i))
      const columns = [entries.blockOffsets, entries.blockStoredBytes, entries.offsetsInBlock, entries.rawBytes]
      columns.forEach((column, i) => { column[entry] = fields[i]! })
      const value = Buffer.alloc(CHUNK_VALUE_BYTES)
      encodeChunkValue(value, number, kind, entries, entry)
      checkChunkValue(value, idOf(entry), 0)
      assert.ok(proofMatches(value, idProofOf(entry), CHUNK_ID_BYTES))
      const found = emptyLocations(1)
      putLocation(found, 0, value)
      assert.deepEqual([found.packNumbers[0], found.kinds[0], found.entryNumbers[0], found.blockOffsets[0],
        found.blockStoredBytes[0], found.offsetsInBlock[0], found.rawBytes[0]], [number, kind, entry, ...fields])
    }), { numRuns: 50 })
})

test('every flipped bit of a chunk entry, or of the id it stands under, is found', () => {
  const value = valueOf(1)
  for (const flipped of flipsOf(value)) assert.throws(() => checkChunkValue(flipped, idOf(1), 0), corrupt)
  for (const flipped of flipsOf(idOf(1))) assert.throws(() => checkChunkValue(value, flipped, 0), corrupt)
  assert.throws(() => checkChunkValue(value.subarray(0, -1), idOf(1), 0), corrupt)
})

test('zeros are not an entry, and an entry does not serve another id', () => {
  assert.throws(() => checkChunkValue(Buffer.alloc(CHUNK_VALUE_BYTES), Buffer.alloc(CHUNK_ID_BYTES), 0), corrupt)
  assert.throws(() => checkChunkValue(valueOf(1), idOf(2), 0), corrupt)
})

test('any damage within one word is found for certain', () => {
  fc.assert(fc.property(fc.integer({ min: 0, max: CHUNK_VALUE_BYTES / 4 - 1 }), u32, (word, content) => {
    const value = valueOf(1)
    fc.pre(value.readUInt32LE(word * 4) !== content)
    value.writeUInt32LE(content, word * 4)
    assert.throws(() => checkChunkValue(value, idOf(1), 0), corrupt)
  }), { numRuns: 300 })
})

test('a proof matches only when all 16 bytes do', () => {
  const value = valueOf(1)
  for (const flipped of flipsOf(idProofOf(1).subarray(CHUNK_ID_BYTES))) assert.equal(proofMatches(value, flipped, 0), false)
  assert.equal(idProofOf(1).length, ID_PROOF_BYTES)
})

/** Each kind of row: its key, its bytes, how it is read. */
const session = sessionKey(sessionIdOf(1))
const snapshot = { ...emptySnapshot(1), sequence: 3 }
const { record: _, signature: __, ...head } = snapshot
const pins = { pinned: Uint8Array.from([1, 2, 3]), inherited: Uint8Array.from([1]) }
const ROWS = {
  pack: { key: u32Key(5), row: encodePackRow(u32Key(5), packRow(packNumber(5), 1, 9)), decode: decodePackRow,
    expected: packRow(packNumber(5), 1, 9) },
  'pack number': { key: idKey(packIdOf(1)), row: encodeNumberRow('packId', idKey(packIdOf(1)), 5),
    decode: (key: Buffer, row: Buffer) => decodeNumberRow('packId', key, row), expected: 5 },
  'snapshot number': { key: idKey(snapshotIdOf(1)), row: encodeNumberRow('snapshotId', idKey(snapshotIdOf(1)), 6),
    decode: (key: Buffer, row: Buffer) => decodeNumberRow('snapshotId', key, row), expected: 6 },
  session: { key: session, row: encodeSessionRow(session, sessionRow(1)), decode: decodeSessionRow, expected: sessionRow(1) },
  'snapshot head': { key: u32Key(3), row: encodeSnapshotHead(u32Key(3), head), decode: decodeSnapshotHead, expected: head },
  'snapshot record': { key: u32Key(3), row: encodeSnapshotRecord(u32Key(3), snapshot), decode: decodeSnapshotRecord,
    expected: { record: snapshot.record, signature: snapshot.signature } },
  pins: { key: pinKey(session, 5), row: encodePins(pinKey(session, 5), pins),
    decode: (key: Buffer, row: Buffer) => {
      const { pinned, inherited } = decodePins(key, row)
      return { pinned: Uint8Array.from(pinned), inherited: Uint8Array.from(inherited) }
    }, expected: pins },
  counters: { key: Buffer.from('counters'), row: encodeCounters(Buffer.from('counters'), { ...FRESH_COUNTERS, rawBytes: 2 ** 50 }),
    decode: decodeCounters, expected: { ...FRESH_COUNTERS, rawBytes: 2 ** 50 } },
} as const

for (const [name, { key, row, decode, expected }] of Object.entries(ROWS)) {
  test(`a ${name} row comes back as written; every flipped bit, cut or strange key is found`, () => {
    assert.deepEqual(decode(key, row), expected)
    for (const flipped of flipsOf(row)) assert.throws(() => decode(key, flipped), corrupt)
    for (let end = 0; end < row.length; end++) assert.throws(() => decode(key, row.subarray(0, end)), corrupt, `cut at ${end}`)
    for (const flipped of flipsOf(key)) assert.throws(() => decode(flipped, row), corrupt)
  })
}

test('a row of one table is refused as a row of another', () => {
  const key = idKey(snapshotIdOf(1))
  assert.throws(() => decodeNumberRow('snapshotId', key, encodeNumberRow('packId', key, 5)), corrupt)
})
