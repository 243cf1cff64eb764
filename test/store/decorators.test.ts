/** What each decorator adds: retries, a bound, counts; and the stack in its order. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { test } from 'node:test'
import type { Clock } from '../../src/core/clock.js'
import { RoostError, hasCode } from '../../src/core/errors.js'
import type { Random } from '../../src/core/random.js'
import { boundedStore } from '../../src/store/bounded-store.js'
import { bytesBody } from '../../src/store/bytes-body.js'
import { createMemoryStore } from '../../src/store/memory-store.js'
import { createStoreCounters, observedStore } from '../../src/store/observed-store.js'
import { openStore } from '../../src/store/open-store.js'
import { retryingStore } from '../../src/store/retrying-store.js'
import { pattern } from '../conformance/object-store.js'
import { faultyStore, type StoreFault } from '../support/faulty-store.js'

const unavailable = (error: unknown): boolean => hasCode(error, 'STORE_UNAVAILABLE')
const refuse = (): Error => new RoostError('STORE_REFUSED', 'The target is full.')

/** Sleeps at once, and remembers how long it should have been. */
function instantClock(): Clock & { readonly sleptMs: number[] } {
  const sleptMs: number[] = []
  return {
    sleptMs, now: () => 0, monotonicMs: () => 0,
    sleep: async (ms, signal) => { signal?.throwIfAborted(); sleptMs.push(ms) },
  }
}
const fixedRandom = (fraction: number): Random => ({ bytes: (count) => Buffer.alloc(count, 7), fraction: () => fraction })

function retryingOver(script: readonly StoreFault[], fraction = 0) {
  const memory = createMemoryStore()
  const faults = faultyStore(memory, script)
  const clock = instantClock()
  return { memory, faults, clock, store: retryingStore(faults, { clock, random: fixedRandom(fraction) }) }
}

test('a put whose acknowledgement was lost is repeated and resolves', async () => {
  const { store, faults, memory } = retryingOver([{ operation: 'put', call: 1, how: 'after' }])
  await store.put('k', bytesBody(pattern(100)))
  assert.ok(memory.objects.get('k')?.equals(pattern(100)))
  assert.equal(faults.calls.put, 2)
  faults.assertAllFired()
})
test('a put that was torn reads its body again from the start', async () => {
  const { store, faults, memory } = retryingOver([{ operation: 'put', call: 1, calls: 2, how: 'torn' }])
  let opened = 0
  await store.put('k', { bytes: 100, open: () => { opened++; return Readable.from([pattern(100)]) } })
  assert.equal(opened, 3)
  assert.ok(memory.objects.get('k')?.equals(pattern(100)))
  faults.assertAllFired()
})
test('a put that fails for good deletes nothing, for it may have landed', async () => {
  const { store, faults, memory } = retryingOver([{ operation: 'put', call: 1, calls: Infinity, how: 'after' }])
  await assert.rejects(store.put('k', bytesBody(pattern(100))), unavailable)
  assert.equal(faults.calls.put, 5)
  assert.equal(faults.calls.delete, 0)
  assert.ok(memory.objects.has('k'))
})
test('every kind of call is repeated', async () => {
  const script = (['getRange', 'get', 'head', 'list', 'delete'] as const).map((operation) => ({ operation, call: 1, how: 'before' as const }))
  const { store, faults, memory } = retryingOver(script)
  memory.objects.set('k', pattern(10))
  assert.equal((await store.head('k'))?.bytes, 10)
  assert.equal((await store.getRange('k', { offset: 1, bytes: 2 }))?.byteLength, 2)
  assert.equal((await buffer((await store.get('k'))!)).byteLength, 10)
  for await (const { key } of store.list('')) assert.equal(key, 'k')
  await store.delete('k')
  assert.ok(!memory.objects.has('k'))
  faults.assertAllFired()
})
test('what needs a person, and what is unknown, is not repeated', async () => {
  for (const error of [refuse, () => new TypeError('a mistake of ours')]) {
    const { store, faults, clock } = retryingOver([{ operation: 'head', call: 1, how: 'before', error }])
    await assert.rejects(store.head('k'), (thrown) => !unavailable(thrown))
    assert.equal(faults.calls.head, 1)
    assert.deepEqual(clock.sleptMs, [])
  }
})
test('delays double from the first to the ceiling, half of each left to chance', async () => {
  for (const fraction of [0, 0.5]) {
    const clock = instantClock()
    const dead = faultyStore(createMemoryStore(), [{ operation: 'head', call: 1, calls: Infinity, how: 'before' }])
    const store = retryingStore(dead, { clock, random: fixedRandom(fraction), attemptsMax: 6, firstDelayMs: 100, delayMsMax: 500 })
    await assert.rejects(store.head('k'), unavailable)
    assert.deepEqual(clock.sleptMs, [100, 200, 400, 500, 500].map((ms) => ms * (0.5 + fraction / 2)))
  }
})
test('an abort during the delay ends the call with its reason', async () => {
  const reason = new Error('enough')
  const abort = new AbortController()
  const clock: Clock = { ...instantClock(), sleep: async (_ms, signal) => { abort.abort(reason); signal?.throwIfAborted() } }
  const dead = faultyStore(createMemoryStore(), [{ operation: 'put', call: 1, how: 'before' }])
  const store = retryingStore(dead, { clock, random: fixedRandom(0) })
  await assert.rejects(store.put('k', bytesBody(pattern(1)), { signal: abort.signal }), (error) => error === reason)
  assert.equal(dead.calls.put, 1)
})
test('a listing that breaks again and again goes on behind its last entry', async () => {
  const { store, faults, memory } = retryingOver([])
  for (const key of ['a', 'b', 'c']) memory.objects.set(key, pattern(1))
  let breaks = 0
  const breaking = { ...faults, list: async function* (prefix: string) {
    for await (const facts of memory.list(prefix)) {
      yield facts
      if (breaks++ < 2) throw new RoostError('STORE_UNAVAILABLE', 'The listing broke.')
    }
  } }
  const repeated = retryingStore(breaking, { clock: instantClock(), random: fixedRandom(0) })
  const keys: string[] = []
  for await (const { key } of repeated.list('')) keys.push(key)
  assert.deepEqual(keys, ['a', 'b', 'c'])
  await store.close()
})

test('no more calls are under way than the bound, and all get their turn', async () => {
  const memory = createMemoryStore()
  let underWay = 0
  let most = 0
  const store = boundedStore({ ...memory, head: async (key) => {
    most = Math.max(most, ++underWay)
    await new Promise((resolve) => { setImmediate(resolve) })
    underWay--
    return await memory.head(key)
  } }, { callsInFlightMax: 3 })
  await Promise.all(Array.from({ length: 20 }, (_, at) => store.head(`k${at}`)))
  assert.equal(most, 3)
})
test('a read stream holds its place until it closes, and a waiting call can be aborted', async () => {
  const memory = createMemoryStore()
  memory.objects.set('k', pattern(10))
  const store = boundedStore(memory, { callsInFlightMax: 1 })
  const stream = await store.get('k')
  const abort = new AbortController()
  const waiting = store.head('k', { signal: abort.signal })
  const reason = new Error('not worth the wait')
  abort.abort(reason)
  await assert.rejects(waiting, (error) => error === reason)
  const next = store.head('k')
  await buffer(stream!)
  assert.equal((await next)?.bytes, 10)
})
test('failed calls give their place back', async () => {
  const dead = faultyStore(createMemoryStore())
  const store = boundedStore(dead, { callsInFlightMax: 1 })
  dead.isDown = true
  for (let round = 0; round < 3; round++) {
    await assert.rejects(store.get('k'), unavailable)
    await assert.rejects(store.head('k'), unavailable)
    await assert.rejects(async () => { for await (const _ of store.list('')) assert.fail('an entry came') }, unavailable)
  }
  dead.isDown = false
  assert.equal(await store.get('k'), undefined)
  assert.equal(await store.head('k'), undefined)
})

test('calls, bytes, failures and cancellations are counted apart', async () => {
  const counters = createStoreCounters()
  const faults = faultyStore(createMemoryStore(), [{ operation: 'head', call: 2, how: 'before' }, { operation: 'get', call: 2, how: 'torn' }])
  const store = observedStore(faults, counters)
  await store.put('k', bytesBody(pattern(100)))
  await store.head('k')
  await assert.rejects(store.head('k'), unavailable)
  await assert.rejects(store.head('k', { signal: AbortSignal.abort(new Error('enough')) }))
  await store.getRange('k', { offset: 0, bytes: 7 })
  await buffer((await store.get('k'))!)
  await assert.rejects(buffer((await store.get('k'))!), unavailable)
  ;(await store.get('k'))!.destroy()
  for await (const _ of store.list('')) { /* one entry */ }
  await store.delete('k')
  assert.deepEqual(counters.calls, { put: 1, getRange: 1, getRanges: 0, get: 3, head: 3, list: 1, delete: 1, deleteMany: 0 })
  assert.deepEqual(counters.failures, { put: 0, getRange: 0, getRanges: 0, get: 1, head: 1, list: 0, delete: 0, deleteMany: 0 })
  assert.equal(counters.cancelled, 1)
  assert.equal(counters.bytesWritten, 100)
  assert.equal(counters.bytesRead, 7 + 100 + 100)
  faults.assertAllFired()
})

test('a target is opened by its URL, and an unknown one is told what is supported', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'roost-open-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const deps = { clock: instantClock(), random: fixedRandom(0) }
  const store = await openStore(`file:${directory}`, deps)
  assert.equal(store.description, `file:${directory}`)
  await store.put('k', bytesBody(pattern(10)))
  assert.equal((await (await openStore(`file://${directory}`, { ...deps, create: false })).head('k'))?.bytes, 10)
  for (const url of ['', 'x', '/srv/roost', 'ftp:/x', 'FILE:/x', 'file:', 'file:x', 'file:../x', 'file://host/x', 'file:/a\0b'])
    await assert.rejects(openStore(url, deps), (error) =>
      hasCode(error, 'REQUEST_MALFORMED') && error.message.includes('file:/absolute/path'), url)
  await assert.rejects(openStore(`file:${directory}/elsewhere`, { ...deps, create: false }), unavailable)
})
test('a fault that never fires fails its test', () => {
  const faults = faultyStore(createMemoryStore(), [{ operation: 'put', call: 1, how: 'before' }])
  assert.throws(() => { faults.assertAllFired() }, /put 1 before/)
})
