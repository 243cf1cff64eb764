/** Sizes, times, tables and progress as people see them. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { UsageError } from '../../src/cli/exit-codes.js'
import { formatBytes, formatCount, formatDuration, formatTable, parseBytes, printable } from '../../src/cli/format.js'
import { formatProgress, RateMeter } from '../../src/cli/progress.js'

test('bytes are told with three digits and a binary unit', () => {
  assert.deepEqual([0, 1023, 1024, 1536, 10 * 1024, 1024 ** 2 - 1, 5 * 1024 ** 3].map(formatBytes),
    ['0 B', '1023 B', '1.00 KiB', '1.50 KiB', '10.0 KiB', '1.00 MiB', '5.00 GiB'])
})
test('sizes are understood with and without unit, and nonsense is refused', () => {
  assert.deepEqual(['4096', '64K', '64KiB', '1.5M', '2g', '1 TiB'].map(parseBytes), [4096, 65536, 65536, 1_572_864, 2 * 1024 ** 3, 1024 ** 4])
  for (const text of ['', 'K', '-1', '1e3', '1X', '9999999P']) assert.throws(() => parseBytes(text), UsageError)
})
test('what formatBytes prints, parseBytes understands to three digits', () => {
  fc.assert(fc.property(fc.integer({ min: 0, max: 2 ** 50 }), (bytes) =>
    Math.abs(parseBytes(formatBytes(bytes)) - bytes) <= Math.max(1, bytes * 0.006)))
})
test('durations and counts are short', () => {
  assert.deepEqual([1234, 12_340, 65_000, 3_661_000].map(formatDuration), ['1.23 s', '12.3 s', '1:05', '1:01:01'])
  assert.equal(formatCount(1_234_567), '1 234 567')
})
test('a name cannot forge lines or move the cursor', () => {
  assert.equal(printable('a\nb\u001b[2K\u202ec\\'), 'a\\x0ab\\x1b[2K\\x202ec\\\\')
})
test('a table aligns its columns', () => {
  assert.equal(formatTable(['A', 'N'], [['long', '1'], ['b', '22']], [1]), 'A      N\nlong   1\nb     22')
})
test('the rate follows the recent past, and progress says how much is left', () => {
  const meter = new RateMeter(1000)
  assert.equal(meter.update(0, 0), undefined)
  assert.equal(meter.update(500, 1000), 500)
  for (let at = 2000; at <= 6000; at += 1000) meter.update(500 + at * 4, at)
  assert.equal(meter.update(500 + 7000 * 4, 7000), 4000)
  const line = formatProgress({ done: 512, total: 1024, unit: 'bytes', at: '/a/very/long/path/that/does/not/fit', extra: '1 error' }, 256, 70)
  assert.match(line, /^50% · 512 B of 1\.00 KiB · 256 B\/s · 2\.00 s left · 1 error · ….*fit$/)
  assert.ok(line.length < 70)
})
