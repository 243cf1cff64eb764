import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hasCode } from '../../src/core/errors.js'
import { LIMITS } from '../../src/core/limits.js'
import { Admission } from '../../src/server/admission.js'
import { BodyBuffers } from '../../src/server/body-buffers.js'
import { ManualClock } from '../support/manual-clock.js'

const { signal } = new AbortController()

test('a body waits for room, and is let in when another is released', async () => {
  const admission = new Admission(new ManualClock(), { bytesMax: 100 })
  const release = await admission.enter({ bytes: 80, signal })
  const second = admission.enter({ bytes: 40, signal })
  assert.equal(admission.waiting, 1)
  release()
  release() // idempotent
  const releaseSecond = await second
  assert.equal(admission.bytesFree, 60)
  releaseSecond()
  assert.equal(admission.bytesFree, 100)
})

test('a wait ends with SERVER_BUSY at its deadline, and the queue is short', async () => {
  const clock = new ManualClock()
  const admission = new Admission(clock, { bytesMax: 100, waitersMax: 1, waitMs: 2_000 })
  await admission.enter({ bytes: 100, signal })
  const waiting = assert.rejects(admission.enter({ bytes: 1, session: 's', signal }), (error) => hasCode(error, 'SERVER_BUSY'))
  assert.equal(admission.isPressed, true)
  await assert.rejects(admission.enter({ bytes: 1, signal }), (error) => hasCode(error, 'SERVER_BUSY'))
  await clock.advance(2_000)
  await waiting
  assert.equal(admission.waiting, 0)
  assert.equal(clock.sleeping, 0)
  assert.equal(admission.isPressed, true, 'pressure outlasts the refusal')
  await clock.advance(10_000)
  assert.equal(admission.isPressed, false)
})

test('a session has its share, counts waiting bodies too, and gets it back', async () => {
  const admission = new Admission(new ManualClock(), { bytesMax: 100, sessionBodiesMax: 2 })
  const release = await admission.enter({ bytes: 100, session: 'a', signal })
  const left = new AbortController()
  const waiting = admission.enter({ bytes: 10, session: 'a', signal: left.signal })
  await assert.rejects(admission.enter({ bytes: 1, session: 'a', signal }), (error) => hasCode(error, 'TOO_MANY_REQUESTS'))
  left.abort(new DOMException('gone', 'AbortError'))
  await assert.rejects(waiting, { name: 'AbortError' })
  release()
  const again = await admission.enter({ bytes: 1, session: 'a', signal })
  again()
  assert.equal(admission.bytesFree, 100)
})

test('large bodies reuse a few full-size buffers, small ones have exactly their own', () => {
  const buffers = new BodyBuffers()
  assert.equal(buffers.take(1_000).byteLength, 1_000)
  assert.equal(buffers.capacityFor(1_000), 1_000)
  const large = buffers.take(LIMITS.bodyBytesMax - 5)
  assert.equal(large.byteLength, LIMITS.bodyBytesMax)
  assert.equal(buffers.capacityFor(LIMITS.bodyBytesMax - 5), LIMITS.bodyBytesMax)
  buffers.giveBack(large)
  assert.equal(buffers.take(LIMITS.bodyBytesMax), large)
  buffers.giveBack(new SharedArrayBuffer(1_000))
  assert.equal(buffers.kept, 0, 'a small buffer is not kept')
})
