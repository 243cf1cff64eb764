/** The direct calls into BLAKE3 must give what the package gives, or ids would differ between machines. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { keyedHash } from 'blake3'
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS } from '../../src/core/ids.js'
import { loadKeyedBlake3 } from '../../src/core/native-blake3.js'

const key = Buffer.from(Array.from({ length: 32 }, (_, i) => i))

test('direct calls are in use where the native package is installed', () => {
  assert.notEqual(loadKeyedBlake3(), undefined)
})
test('hashChunk equals the package at every boundary of the tree, at odd offsets too', () => {
  const bytes = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff))
  for (const length of [0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 4096, 65_535, 65_536, 262_145])
    for (const offset of [0, 3]) {
      const piece = bytes.subarray(offset, offset + length)
      assert.deepEqual(hashChunk(key, piece, CHUNK_KINDS.data), Buffer.from(keyedHash(key, piece, { length: 48 })), `${length} at ${offset}`)
    }
})
test('a node and data of the same bytes have different ids', () => {
  const bytes = Buffer.from('the same bytes')
  assert.notDeepEqual(hashChunk(key, bytes, CHUNK_KINDS.node), hashChunk(key, bytes, CHUNK_KINDS.data))
})
test('bytes in memory that threads share hash as any others', () => {
  const shared = Buffer.from(new SharedArrayBuffer(5_000)).fill('roost')
  assert.deepEqual(hashChunk(key, shared.subarray(7, 4_000), CHUNK_KINDS.data), hashChunk(key, Buffer.from(shared.subarray(7, 4_000)), CHUNK_KINDS.data))
})
