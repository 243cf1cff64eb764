/** Groups of chunks on the wire between servers: what was encoded comes back, and nothing malformed costs memory or passes for data. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { decodeGroupBody, decodeGroupHeader, encodeGroup, encodeGroupsEnd, GROUP_CODECS, GROUP_HEADER_BYTES, openGroup, parseGroups, unfoldGroups, type ChunkGroup } from '../../src/core/chunk-groups.js'
import { RoostError } from '../../src/core/errors.js'
import { frameId, parseFrames } from '../../src/core/frames.js'
import { LIMITS } from '../../src/core/limits.js'
import { zstdEncoder } from '../../src/core/zstd.js'

function groupOf(chunks: readonly Buffer[], isCompressed: boolean): ChunkGroup {
  const raw = Buffer.concat(chunks)
  return { kind: 1, codec: isCompressed ? GROUP_CODECS.zstd : GROUP_CODECS.raw, ids: Buffer.concat(chunks.map((_chunk, i) => Buffer.alloc(32, i + 1))),
    rawBytes: Uint32Array.from(chunks, ({ byteLength }) => byteLength), payload: isCompressed ? Buffer.from(zstdEncoder(1).encode(raw)) : raw }
}
const chunks = fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 }).map((bytes) => Buffer.from(bytes)), { minLength: 1, maxLength: 20 })

test('groups that were encoded unfold to the same frames', () => {
  fc.assert(fc.property(fc.array(fc.tuple(chunks, fc.boolean()), { minLength: 1, maxLength: 4 }), (list) => {
    const groups = parseGroups(Buffer.concat(list.flatMap(([some, isCompressed]) => encodeGroup(groupOf(some, isCompressed)))))
    const { buffer, bytes } = unfoldGroups(groups)
    const table = parseFrames(Buffer.from(buffer, 0, bytes))
    const all = list.flatMap(([some]) => some)
    assert.equal(table.count, all.length)
    all.forEach((chunk, i) => { assert.ok(table.body.subarray(table.payloadAt[i], table.payloadAt[i]! + table.wireBytes[i]!).equals(chunk)) })
    assert.deepEqual(frameId(table, 0), Buffer.alloc(32, 1))
  }))
})
test('changed bytes are refused, or give other bytes under the ids; never an error of another kind', () => {
  fc.assert(fc.property(chunks, fc.boolean(), fc.nat(), fc.integer({ min: 1, max: 255 }), (some, isCompressed, at, mask) => {
    const body = Buffer.concat(encodeGroup(groupOf(some, isCompressed)))
    body[at % body.byteLength]! ^= mask
    try {
      const groups = parseGroups(body)
      for (const group of groups) openGroup(group)
      unfoldGroups(groups)
    } catch (error) {
      assert.ok(error instanceof RoostError && (error.code === 'FRAME_MALFORMED' || error.code === 'LIMIT_EXCEEDED'), String(error))
    }
  }), { numRuns: 500 })
})
test('a header that announces too much, or ends nothing, is refused before its body', () => {
  const header = (count: number, wireBytes: number, kind: number, codec: number): Buffer => {
    const bytes = Buffer.alloc(GROUP_HEADER_BYTES)
    bytes.writeUInt32LE(count, 0)
    bytes.writeUInt32LE(wireBytes, 4)
    bytes[8] = kind
    bytes[9] = codec
    return bytes
  }
  for (const bytes of [header(LIMITS.bodyFramesMax + 1, 10, 1, 0), header(1, LIMITS.bodyBytesMax + 1, 1, 0), header(1, 10, 3, 0), header(1, 10, 1, 9), header(0, 10, 1, 0),
    header(1, 0, 1, 0), header(1, 10, 1, 2), header(1, 0, 1, 3)]) assert.throws(() => decodeGroupHeader(bytes), { code: 'FRAME_MALFORMED' })
  assert.equal(decodeGroupHeader(encodeGroupsEnd()).codec, GROUP_CODECS.end)
  assert.throws(() => parseGroups(encodeGroupsEnd()), { code: 'FRAME_MALFORMED' }, 'nobody sends an end to be stored')
  assert.throws(() => parseGroups(Buffer.alloc(0)), { code: 'FRAME_MALFORMED' })
})
test('what unfolds to more than a body may have is refused, however small it is on the wire', () => {
  const payload = Buffer.from(zstdEncoder(1).encode(Buffer.alloc(LIMITS.chunkBytesMax)))
  const one = (count: number): Buffer[] => encodeGroup({ kind: 1, codec: GROUP_CODECS.zstd, ids: Buffer.alloc(32 * count), rawBytes: new Uint32Array(count).fill(LIMITS.chunkBytesMax), payload })
  assert.ok(payload.byteLength < 10_000)
  assert.throws(() => parseGroups(Buffer.concat(one(3))), { code: 'FRAME_MALFORMED' })
  assert.throws(() => parseGroups(Buffer.concat([...one(1), ...one(1), ...one(1)])), { code: 'LIMIT_EXCEEDED' })
  const body = Buffer.concat(one(1))
  const header = decodeGroupHeader(body.subarray(0, GROUP_HEADER_BYTES))
  const longer = Buffer.from(body.subarray(GROUP_HEADER_BYTES))
  longer.writeUInt32LE(LIMITS.chunkBytesMax + 1, 0)
  assert.throws(() => decodeGroupBody(header, longer), { code: 'FRAME_MALFORMED' })
})
