/** The direct calls into BLAKE3 must give what the package gives, or ids would differ between machines. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { keyedHash } from 'blake3'
import { hashChunk } from '../../src/core/hash.js'
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
      assert.deepEqual(hashChunk(key, piece), Buffer.from(keyedHash(key, piece, { length: 48 })), `${length} at ${offset}`)
    }
})
