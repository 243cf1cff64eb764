import assert from 'node:assert/strict'
import { PassThrough } from 'node:stream'
import { test } from 'node:test'
import { hasCode, type ErrorCode } from '../../src/core/errors.js'
import { PACE, receiveBody, requireContentLength } from '../../src/server/raw-body.js'
import { ManualClock } from '../support/manual-clock.js'

function receive(bytes: number, options: { isPressed?: boolean; signal?: AbortSignal } = {}) {
  const source = new PassThrough(), target = new Uint8Array(bytes), clock = new ManualClock()
  const watch = { clock, isPressed: () => options.isPressed ?? false, signal: options.signal ?? new AbortController().signal }
  return { source, target, clock, done: receiveBody(source, target, watch) }
}
const code = (expected: ErrorCode) => (error: unknown): boolean => hasCode(error, expected)
const written = (source: PassThrough, bytes: number): Promise<void> =>
  new Promise((resolve) => { source.write(Buffer.alloc(bytes, 7), () => { setImmediate(resolve) }) })

test('a body of the declared length fills its memory, in whatever pieces it comes', async () => {
  const { source, target, done, clock } = receive(10)
  source.write(Buffer.from('abc'))
  source.write(Buffer.from('defghi'))
  source.end(Buffer.from('j'))
  await done
  assert.equal(Buffer.from(target).toString(), 'abcdefghij')
  assert.equal(clock.sleeping, 0)
})

test('a body that ends early, breaks, or says more than it declared is refused by its own code', async () => {
  const short = receive(10)
  short.source.end(Buffer.alloc(9))
  await assert.rejects(short.done, code('BODY_TRUNCATED'))
  const broken = receive(10)
  broken.source.destroy(new Error('reset'))
  await assert.rejects(broken.done, (error) => hasCode(error, 'BODY_TRUNCATED') && error.cause instanceof Error)
  const vanished = receive(10)
  vanished.source.destroy()
  await assert.rejects(vanished.done, code('BODY_TRUNCATED'))
  const long = receive(10)
  long.source.write(Buffer.alloc(11))
  await assert.rejects(long.done, code('REQUEST_MALFORMED'))
})

test('a body that stands still is given up', async () => {
  const { clock, done } = receive(10)
  const refused = assert.rejects(done, code('REQUEST_TIMEOUT'))
  await clock.advance(PACE.windows * PACE.windowMs)
  await refused
})

test('a body that trickles below the minimum is given up, one just above it is not', async () => {
  const rate = (bytesPerSecond: number) => bytesPerSecond * PACE.windowMs / 1000
  const slow = receive(1_000_000)
  const refused = assert.rejects(slow.done, code('REQUEST_TIMEOUT'))
  for (let window = 0; window < PACE.windows; window++) {
    await written(slow.source, rate(PACE.bytesPerSecondMin) - 1)
    await slow.clock.advance(PACE.windowMs)
  }
  await refused
  const steady = receive(rate(PACE.bytesPerSecondMin) * 20)
  for (let window = 0; window < 20; window++) {
    await written(steady.source, rate(PACE.bytesPerSecondMin))
    await steady.clock.advance(PACE.windowMs)
  }
  steady.source.end()
  await steady.done
})

test('while others wait, a body that is merely slow makes room after one window', async () => {
  const { source, clock, done } = receive(9_000_000, { isPressed: true })
  const refused = assert.rejects(done, code('REQUEST_TIMEOUT'))
  await written(source, PACE.bytesPerSecondMin * PACE.windowMs / 1000)
  await clock.advance(PACE.windowMs)
  await refused
})

test('a client that goes away ends the reading with its reason', async () => {
  const leaving = new AbortController()
  const { done } = receive(10, { signal: leaving.signal })
  const refused = assert.rejects(done, { name: 'AbortError' })
  leaving.abort(new DOMException('gone', 'AbortError'))
  await refused
})

test('a length is required, bounded, and a plain number; encodings are refused', () => {
  assert.equal(requireContentLength({ 'content-length': '10' }, 10), 10)
  for (const headers of [{}, { 'content-length': '-1' }, { 'content-length': '1e3' }, { 'transfer-encoding': 'chunked' }])
    assert.throws(() => requireContentLength(headers, 10), code('LENGTH_REQUIRED'))
  assert.throws(() => requireContentLength({ 'content-length': '11' }, 10), code('BODY_TOO_LARGE'))
  assert.throws(() => requireContentLength({ 'content-length': '1', 'content-encoding': 'gzip' }, 10), code('MEDIA_TYPE_UNSUPPORTED'))
})
