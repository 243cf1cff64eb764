import assert from 'node:assert/strict'
import { test } from 'node:test'
import { orAborted } from '../../src/core/concurrency.js'

test('work is waited for until it ends or the signal aborts, whichever comes first, and its late failure harms nobody', async () => {
  const never = new AbortController().signal
  assert.equal(await orAborted(Promise.resolve(7), never), 7)
  await assert.rejects(orAborted(Promise.reject(new Error('broken')), never), /broken/)
  const stop = new AbortController(), reason = new DOMException('enough', 'AbortError')
  let fail = (): void => undefined
  const waiting = orAborted(new Promise<never>((_resolve, reject) => { fail = () => { reject(new Error('too late')) } }), stop.signal)
  stop.abort(reason)
  await assert.rejects(waiting, reason)
  fail()
  await assert.rejects(orAborted(Promise.resolve(7), stop.signal), reason)
  await new Promise((resolve) => { setImmediate(resolve) })
})
