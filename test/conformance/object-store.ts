/** The contract of src/store/object-store.ts as tests: every adapter, every decorator and the whole stack run them. */
import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { test, type TestContext } from 'node:test'
import { hasCode, isErrorCode, RoostError } from '../../src/core/errors.js'
import { bytesBody } from '../../src/store/bytes-body.js'
import type { ObjectStore, ReplayableBody } from '../../src/store/object-store.js'

export interface StoreSubject {
  readonly name: string
  open(t: TestContext): Promise<ObjectStore>
  /** Default true: of several that create one key at once, exactly one succeeds. */
  readonly hasAtomicCreate?: boolean
}

const tooShort = (error: unknown): boolean => hasCode(error, 'OBJECT_TOO_SHORT')
const refused = (error: unknown): boolean => hasCode(error, 'STORE_REFUSED')
const REASON = new Error('the caller changed its mind')
const isReason = (error: unknown): boolean => error === REASON
const ILLEGAL_KEYS = ['', '/', 'a/', '/a', 'a//b', '.', '..', '../a', 'a/../b', 'a/./b', 'A', 'a b', 'a\\b', 'ä', 'a\0b', '+tmp',
  '+tmp/x', '+roost-store', 'a'.repeat(201)]
const LEGAL_KEYS = ['a', 'a/b', '...', 'a/.b', '-', '_', '0/1/2.3-4_5', 'a'.repeat(200)]

export function pattern(bytes: number, seed = 1): Buffer {
  const out = Buffer.allocUnsafe(bytes)
  let state = seed >>> 0 || 1
  for (let at = 0; at < bytes; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    out[at] = state >>> 24
  }
  return out
}
/** A body in several parts that claims `claimed` bytes. */
function partedBody(parts: readonly Buffer[], claimed: number): ReplayableBody {
  return { bytes: claimed, open: () => Readable.from(parts) }
}
/** A body that gives one part and then waits for ever. */
function stallingBody(bytes: number, onStall: () => void): ReplayableBody {
  let given = false
  return {
    bytes,
    open: () => new Readable({
      read() {
        if (given) { onStall(); return }
        given = true
        this.push(pattern(10))
      },
    }),
  }
}
async function keysOf(store: ObjectStore, prefix: string): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of store.list(prefix)) keys.push(key)
  return keys
}
async function readAll(store: ObjectStore, key: string): Promise<Buffer | undefined> {
  const stream = await store.get(key)
  return stream === undefined ? undefined : await buffer(stream)
}
async function assertAbsent(store: ObjectStore, key: string): Promise<void> {
  assert.equal(await store.head(key), undefined)
  assert.equal(await store.get(key), undefined)
  assert.equal(await store.getRange(key, { offset: 0, bytes: 1 }), undefined)
  assert.ok(!(await keysOf(store, '')).includes(key))
}

export function describeObjectStore(subject: StoreSubject): void {
  const check = (title: string, body: (store: ObjectStore, t: TestContext) => Promise<void>): void => {
    test(`${subject.name}: ${title}`, async (t) => {
      const store = await subject.open(t)
      await body(store, t)
      await store.close()
      await store.close()
    })
  }

  check('a stored object is read back whole, in ranges and by its facts', async (store) => {
    const bytes = pattern(3_000_000)
    await store.put('packs/ab/x', bytesBody(bytes))
    assert.deepEqual(await store.head('packs/ab/x'), { key: 'packs/ab/x', bytes: bytes.byteLength })
    assert.ok((await readAll(store, 'packs/ab/x'))?.equals(bytes))
    for (const [offset, count] of [[0, 0], [0, 1], [17, 1_000_000], [2_999_999, 1], [3_000_000, 0], [0, 3_000_000]] as const)
      assert.ok((await store.getRange('packs/ab/x', { offset, bytes: count }))?.equals(bytes.subarray(offset, offset + count)))
  })
  check('an empty object is an object', async (store) => {
    await store.put('empty', bytesBody(Buffer.alloc(0)))
    assert.deepEqual(await store.head('empty'), { key: 'empty', bytes: 0 })
    assert.equal((await readAll(store, 'empty'))?.byteLength, 0)
    assert.equal((await store.getRange('empty', { offset: 0, bytes: 0 }))?.byteLength, 0)
  })
  check('what was never stored is absent, not an error', async (store) => {
    await assertAbsent(store, 'nothing')
    await assertAbsent(store, 'deep/er/nothing')
    await store.put('leaf', bytesBody(pattern(3)))
    assert.equal(await store.head('leaf/below'), undefined)
    assert.deepEqual(await keysOf(store, 'nowhere/'), [])
  })
  check('a range past the end is refused, never short', async (store) => {
    await store.put('k', bytesBody(pattern(100)))
    await assert.rejects(store.getRange('k', { offset: 90, bytes: 11 }), tooShort)
    await assert.rejects(store.getRange('k', { offset: 101, bytes: 0 }), tooShort)
  })

  check('several ranges come in order, absence is undefined, and one past the end is named', async (store) => {
    const bytes = pattern(300_000)
    await store.put('k', bytesBody(bytes))
    const ranges = [{ offset: 0, bytes: 10 }, { offset: 64, bytes: 100_000 }, { offset: 200_000, bytes: 1 }, { offset: 299_999, bytes: 1 }]
    const parts = await store.getRanges('k', ranges)
    assert.deepEqual(parts?.map((part) => part.byteLength), ranges.map((range) => range.bytes))
    parts.forEach((part, at) => { assert.ok(part.equals(bytes.subarray(ranges[at]!.offset, ranges[at]!.offset + ranges[at]!.bytes))) })
    assert.deepEqual(await store.getRanges('k', []), [])
    assert.ok((await store.getRanges('k', [ranges[1]!]))?.[0]?.equals(parts[1]!))
    assert.equal(await store.getRanges('absent', ranges), undefined)
    await assert.rejects(store.getRanges('k', [ranges[0]!, { offset: 299_999, bytes: 2 }]), tooShort)
  })
  check('many keys are deleted at once, absent ones among them', async (store) => {
    const keys = Array.from({ length: 12 }, (_, at) => `many/k${at}`)
    for (const key of keys.slice(0, 10)) await store.put(key, bytesBody(pattern(5)))
    await store.put('many-kept', bytesBody(pattern(5)))
    await store.deleteMany(keys)
    await store.deleteMany([])
    assert.deepEqual(await keysOf(store, ''), ['many-kept'])
    await assert.rejects(store.deleteMany(['many-kept', '../x']), refused)
  })

  check('a body that ends early is refused and leaves nothing', async (store) => {
    await assert.rejects(store.put('short', partedBody([pattern(10), pattern(9)], 20)), refused)
    await assertAbsent(store, 'short')
  })
  check('a body that goes on too long is refused and leaves nothing', async (store) => {
    await assert.rejects(store.put('long', partedBody([pattern(10), pattern(11)], 20)), refused)
    await assertAbsent(store, 'long')
  })
  check('a body that fails midway rejects the put with its cause and leaves nothing', async (store) => {
    const cause = new Error('the spool is unreadable')
    const body = { bytes: 20, open: () => Readable.from((async function* () { yield pattern(10); throw cause })()) }
    await assert.rejects(store.put('broken', body), (error) => error instanceof RoostError && isErrorCode(error.code) && error.cause === cause)
    await assert.rejects(store.put('unopened', { bytes: 1, open: () => { throw cause } }), (error) => refused(error))
    await assertAbsent(store, 'broken')
    await assertAbsent(store, 'unopened')
    await store.put('broken', bytesBody(pattern(20)))
    assert.ok((await readAll(store, 'broken'))?.equals(pattern(20)))
  })
  check('a put aborted before it starts rejects with the reason and does not read its body', async (store) => {
    const body = { bytes: 1, open: () => assert.fail('the body was opened') }
    await assert.rejects(store.put('k', body, { signal: AbortSignal.abort(REASON) }), isReason)
    await assertAbsent(store, 'k')
  })
  check('a put aborted while its body stalls settles with the reason and leaves nothing', async (store) => {
    const abort = new AbortController()
    await assert.rejects(store.put('k', stallingBody(20, () => { abort.abort(REASON) }), { signal: abort.signal }), isReason)
    await assertAbsent(store, 'k')
  })
  check('every other call aborted before it starts rejects with the reason', async (store) => {
    await store.put('k', bytesBody(pattern(5)))
    const call = { signal: AbortSignal.abort(REASON) }
    await assert.rejects(store.getRange('k', { offset: 0, bytes: 1 }, call), isReason)
    await assert.rejects(store.get('k', call), isReason)
    await assert.rejects(store.head('k', call), isReason)
    await assert.rejects(store.delete('k', call), isReason)
    await assert.rejects(async () => { for await (const _ of store.list('', call)) assert.fail('an entry came') }, isReason)
    assert.equal((await store.head('k'))?.bytes, 5)
  })
  check('a read stream that is aborted ends with the reason', async (store) => {
    await store.put('k', bytesBody(pattern(8_000_000)))
    const abort = new AbortController()
    const stream = await store.get('k', { signal: abort.signal })
    assert.ok(stream !== undefined)
    await assert.rejects(async () => { for await (const _ of stream) abort.abort(REASON) }, isReason)
  })
  check('a read stream that is left early can be destroyed, before and after its first byte', async (store) => {
    await store.put('k', bytesBody(pattern(4_000_000)))
    for (let round = 0; round < 20; round++) (await store.get('k'))?.destroy()
    const stream = await store.get('k')
    for await (const _ of stream!) break
    assert.ok((await readAll(store, 'k'))?.equals(pattern(4_000_000)))
  })

  check('repeating a put with the same bytes resolves', async (store) => {
    for (let round = 0; round < 3; round++) await store.put('k', bytesBody(pattern(1000)))
    assert.ok((await readAll(store, 'k'))?.equals(pattern(1000)))
    assert.deepEqual(await keysOf(store, ''), ['k'])
  })
  check('an object is never overwritten with fewer or more bytes', async (store) => {
    await store.put('k', bytesBody(pattern(1000)))
    await assert.rejects(store.put('k', bytesBody(pattern(999))), refused)
    await assert.rejects(store.put('k', bytesBody(pattern(1001))), refused)
    assert.ok((await readAll(store, 'k'))?.equals(pattern(1000)))
  })
  check('replace overwrites, as a whole', async (store) => {
    await store.put('k', bytesBody(pattern(1000)))
    await store.put('k', bytesBody(pattern(10, 2)), { replace: true })
    assert.ok((await readAll(store, 'k'))?.equals(pattern(10, 2)))
    await assert.rejects(store.put('k', partedBody([pattern(5)], 6), { replace: true }), refused)
    assert.ok((await readAll(store, 'k'))?.equals(pattern(10, 2)))
    await store.put('new', bytesBody(pattern(3)), { replace: true })
    assert.equal((await store.head('new'))?.bytes, 3)
  })
  check('concurrent puts of one key with the same bytes all resolve', async (store) => {
    await Promise.all(Array.from({ length: 8 }, () => store.put('a/b/k', bytesBody(pattern(200_000)))))
    assert.ok((await readAll(store, 'a/b/k'))?.equals(pattern(200_000)))
    assert.deepEqual(await keysOf(store, ''), ['a/b/k'])
  })
  check('concurrent replacements of one key settle, and one of them is there whole', async (store) => {
    await store.put('k', bytesBody(pattern(10)))
    const outcomes = await Promise.allSettled(Array.from({ length: 6 }, (_, at) => store.put('k', bytesBody(pattern(50_000 + at, at + 1)), { replace: true })))
    // A target may ask for another attempt when two came in the same moment.
    for (const outcome of outcomes) if (outcome.status === 'rejected') assert.ok(hasCode(outcome.reason, 'STORE_UNAVAILABLE'), String((outcome.reason as Error).stack))
    const stored = await readAll(store, 'k')
    assert.ok(outcomes.some((outcome, at) => outcome.status === 'fulfilled' && stored?.equals(pattern(50_000 + at, at + 1))))
  })
  check('of concurrent puts of one key with different lengths one wins whole and the others are refused', async (store) => {
    // Targets without an atomic create keep one of them whole; content-derived keys need no more.
    const outcomes = await Promise.allSettled(Array.from({ length: 6 }, (_, at) => store.put('k', bytesBody(pattern(100_000 + at, at + 1)))))
    const stored = await readAll(store, 'k')
    assert.ok(stored !== undefined)
    if (subject.hasAtomicCreate === false) {
      assert.ok(outcomes.some((outcome, at) => outcome.status === 'fulfilled' && stored.equals(pattern(100_000 + at, at + 1))))
      return
    }
    outcomes.forEach((outcome, at) => {
      const isWinner = stored.equals(pattern(100_000 + at, at + 1))
      assert.equal(outcome.status, isWinner ? 'fulfilled' : 'rejected')
      if (outcome.status === 'rejected') assert.ok(refused(outcome.reason))
    })
    assert.equal(outcomes.filter((outcome) => outcome.status === 'fulfilled').length, 1)
  })
  check('the caller may reuse its buffers once put settled', async (store) => {
    const bytes = pattern(1000)
    await store.put('k', bytesBody(bytes))
    bytes.fill(0)
    assert.ok((await readAll(store, 'k'))?.equals(pattern(1000)))
  })

  check('delete removes, and an absent key resolves', async (store) => {
    await store.delete('never/was')
    await store.put('a/k', bytesBody(pattern(10)))
    await store.delete('a/k')
    await assertAbsent(store, 'a/k')
    await store.delete('a/k')
    await store.put('a/k', bytesBody(pattern(11)))
    assert.equal((await store.head('a/k'))?.bytes, 11)
  })
  check('illegal keys are refused by every call', async (store) => {
    for (const key of ILLEGAL_KEYS) {
      await assert.rejects(store.put(key, bytesBody(pattern(1))), refused, key)
      await assert.rejects(store.getRange(key, { offset: 0, bytes: 0 }), refused, key)
      await assert.rejects(store.get(key), refused, key)
      await assert.rejects(store.head(key), refused, key)
      await assert.rejects(store.delete(key), refused, key)
    }
    for (const prefix of ['a', '/', '../', 'a//', 'A/', '+tmp/'])
      await assert.rejects(async () => { for await (const _ of store.list(prefix)) assert.fail('an entry came') }, refused, prefix)
    assert.deepEqual(await keysOf(store, ''), [])
  })
  check('legal keys at the edges of the rule are taken', async (store) => {
    for (const key of LEGAL_KEYS.filter((one) => one !== 'a')) await store.put(key, bytesBody(Buffer.from(key)))
    for (const key of LEGAL_KEYS.filter((one) => one !== 'a')) assert.equal((await readAll(store, key))?.toString(), key)
  })
  check('a listing holds the keys below its prefix, in ascending order of bytes, with their bytes', async (store) => {
    const keys = ['a/b/c', 'a-b', 'a.b', 'a/b-c', 'a/b0', 'a0', 'b/a', 'ab/c', '0', 'a/b/b', '_a', 'z/z/z/z']
    for (const [at, key] of keys.entries()) await store.put(key, bytesBody(pattern(at)))
    assert.deepEqual(await keysOf(store, ''), [...keys].sort())
    assert.deepEqual(await keysOf(store, 'a/'), ['a/b-c', 'a/b/b', 'a/b/c', 'a/b0'])
    assert.deepEqual(await keysOf(store, 'a/b/'), ['a/b/b', 'a/b/c'])
    for await (const { key, bytes } of store.list('')) assert.equal(bytes, keys.indexOf(key))
  })
  check('a listing can be left early, and its reader may change the store meanwhile', async (store) => {
    for (let at = 0; at < 10; at++) await store.put(`k${at}`, bytesBody(pattern(1)))
    for await (const _ of store.list('')) break
    let seen = 0
    for await (const { key } of store.list('')) { await store.delete(key); seen++ }
    assert.equal(seen, 10)
    assert.deepEqual(await keysOf(store, ''), [])
  })

  check('a body that is an immutable file is stored with exactly its bytes, and outlives the file', async (store, t) => {
    const directory = await mkdtemp(join(tmpdir(), 'roost-body-'))
    t.after(() => rm(directory, { recursive: true, force: true }))
    const file = join(directory, 'pack')
    const bytes = pattern(500_000)
    await writeFile(file, bytes, { mode: 0o600 })
    const body: ReplayableBody = { ...bytesBody(bytes), file }
    await Promise.all([store.put('p/one', body), store.put('p/one', body), store.put('p/two', body)])
    await store.put('p/one', body)
    await rm(file)
    assert.ok((await readAll(store, 'p/one'))?.equals(bytes))
    assert.ok((await readAll(store, 'p/two'))?.equals(bytes))
    assert.deepEqual(await keysOf(store, ''), ['p/one', 'p/two'])
    await store.put('p/one', body) // there already: the file is not needed
  })
}
