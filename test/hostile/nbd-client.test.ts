/** Bug class: an NBD server that lies, stalls, drops or fails, and a backup that believes it. Whatever it does, there is an error that says so, or the image is right.
 */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import fc from 'fast-check'
import { ImageTreeReader } from '../../client/image/image-tree.js'
import { scanDisk } from '../../client/image/scan-disk.js'
import type { NbdClientLimits } from '../../client/nbd/client.js'
import { openNbdSource } from '../../client/nbd/nbd-source.js'
import type { ScanContext } from '../../client/upload/chunk-sink.js'
import type { Clock } from '../../src/core/clock.js'
import { ClientError, type ClientErrorCode } from '../../src/protocol/client-errors.js'
import { systemClock } from '../../src/core/clock.js'
import { instantClock } from '../support/instant-clock.js'
import {
  bytesOf, chunk, contextId, dataChunk, errorChunk, exportInfo, GREETING, optionReply, simple, startLyingServer, statusChunk,
  type Asked, type Deed, type LyingServer, type NbdScript,
} from '../support/lying-nbd-server.js'
import { MemoryChunks, MemoryNodes, MemorySink } from '../support/memory-sink.js'
import { noise } from '../support/odd-tree.js'

const { u16, u32, u64 } = bytesOf
const KiB = 1024
const CHUNK = 64 * KiB
const CONTENT = noise(40 * CHUNK + 512, 1)
CONTENT.fill(0, 10 * CHUNK, 14 * CHUNK)
const READ = 0, STATUS = 7

interface Outcome { readonly code: ClientErrorCode | 'right'; readonly message: string; readonly server: LyingServer }
/** Waits between tries end at once; silence never does, so tests of it bring a clock that runs. */
const IMPATIENT: { readonly clock: Clock; readonly limits?: Partial<NbdClientLimits> } = { clock: instantClock(10_000) }
const QUICK = { clock: systemClock, limits: { stallMs: 60, lossesMax: 3 } }

/** Backs the export up. Fails when the image is not the content. */
async function backUp(t: TestContext, script: Partial<NbdScript>, { clock, limits } = IMPATIENT): Promise<Outcome> {
  const server = await startLyingServer(t, { content: CONTENT, ...script })
  const chunks = new MemoryChunks()
  const { signal } = new AbortController()
  const context: ScanContext = {
    sink: new MemorySink(chunks), parent: undefined, report: () => undefined, note: () => undefined, at: () => undefined, signal,
    counters: { files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, filesUnchanged: 0, errors: 0 },
  }
  try {
    const source = await openNbdSource({ kind: 'nbd', address: { kind: 'unix', path: server.path }, exportName: '' }, { signal, clock, ...(limits === undefined ? {} : { limits }) })
    try {
      const shape = { imageBytes: source.bytes, chunkBytes: CHUNK }
      const { content } = await scanDisk({ name: 'disk', source, shape, context, parent: undefined, mapRefusal: undefined, usesMap: false, audit: undefined, limit: undefined })
      const parts: Buffer[] = []
      for await (const { bytes, id } of new ImageTreeReader(new MemoryNodes(chunks), content).extents())
        parts.push(id === undefined ? Buffer.alloc(bytes) : chunks.get(id).bytes)
      assert.ok(Buffer.concat(parts).equals(script.content ?? CONTENT), 'THE IMAGE IS WRONG')
      return { code: 'right', message: '', server }
    } finally { await source.close() }
  } catch (error) {
    if (!(error instanceof ClientError)) throw error
    return { code: error.code, message: error.message, server }
  }
}
/** Instead of the answer to one read in the middle. */
const atRead = (deed: (asked: Asked) => Deed, nth = 2): NonNullable<NbdScript['request']> => {
  let reads = 0
  return (asked) => asked.command === READ && reads++ === nth ? deed(asked) : 'honest'
}
const always = (command: number, deed: (asked: Asked) => Deed): NonNullable<NbdScript['request']> => (asked) => asked.command === command ? deed(asked) : 'honest'

async function expectAll(t: TestContext, cases: readonly (readonly [string, Partial<NbdScript>, ClientErrorCode | 'right'])[]): Promise<void> {
  const found: string[] = []
  for (const [what, script, wanted] of cases) {
    const { code, message } = await backUp(t, script)
    if (code !== wanted) found.push(`${what}: ${code} ${message}, not ${wanted}`)
  }
  assert.deepEqual(found, [])
}

test('an honest server is read right, with and without structured replies, contexts or GO, answers in any order', async (t) => {
  await expectAll(t, [
    ['plain', {}, 'right'],
    ['without structure', { isStructured: false }, 'right'],
    ['without contexts', { contexts: [] }, 'right'],
    ['contexts refused', { option: (option) => option === 10 ? optionReply(10, 0x8000_0001) : 'honest' }, 'right'],
    ['without GO', { option: (option) => option === 7 ? optionReply(7, 0x8000_0001) : 'honest' }, 'right'],
    ['out of order', { gathers: 2, content: CONTENT.subarray(0, 16 * CHUNK), contexts: [] }, 'right'],
    ['empty', { content: Buffer.alloc(0) }, 'right'],
    ['holes told', { status: (_context, { offset, length }) => offset < 10 * CHUNK ? [{ bytes: 10 * CHUNK - offset, flags: 0 }]
      : offset < 14 * CHUNK ? [{ bytes: Math.min(length, 14 * CHUNK - offset), flags: 3 }] : [{ bytes: length, flags: 0 }] }, 'right'],
    ['a hole that does not read as zeroes', { status: (_context, { length }) => [{ bytes: length, flags: 1 }] }, 'right'],
    ['data in parts, last first', { request: always(READ, (asked) => Buffer.concat([
      dataChunk(asked, CONTENT, asked.offset + 4096, asked.length - 4096, 0), dataChunk(asked, CONTENT, asked.offset, 1024, 0), dataChunk(asked, CONTENT, asked.offset + 1024, 3072, 1)])),
      content: CONTENT.subarray(0, 40 * CHUNK) }, 'right'],
    ['a hole in an answer', { content: Buffer.alloc(4 * CHUNK), request: always(READ, ({ cookie, offset, length }) =>
      Buffer.concat([chunk(cookie, 2, Buffer.concat([u64(offset), u32(length)]), 0), chunk(cookie, 0, Buffer.alloc(0))])) }, 'right'],
  ])
})
test('memory that is used again shows nothing of what it held: holes are zeroes, in answers too', async (t) => {
  const half = 256 * KiB
  const content = noise(64 * half, 9)
  for (let at = 40 * half; at < content.byteLength; at += 2 * half) content.fill(0, at, at + half)
  const { code, message } = await backUp(t, { content, contexts: [], request: (asked) => {
    if (asked.command !== READ || asked.offset < 40 * half) return 'honest'
    return Buffer.concat([dataChunk(asked, content, asked.offset + half, asked.length - half, 0), chunk(asked.cookie, 2, Buffer.concat([u64(asked.offset), u32(half)]))])
  } })
  assert.deepEqual([code, message], ['right', ''])
})
test('a handshake that is none, or promises what cannot be, is refused', async (t) => {
  const go = (...replies: readonly Buffer[]): Partial<NbdScript> => ({ option: (option) => option === 7 ? Buffer.concat([...replies, optionReply(7, 1)]) : 'honest' })
  await expectAll(t, [
    ['HTTP', { greeting: () => Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n') }, 'NBD_BROKEN'],
    ['the old style', { greeting: () => Buffer.concat([Buffer.from('NBDMAGIC'), u64(0x00420281861253n), u64(1024), Buffer.alloc(128)]) }, 'NBD_REFUSED'],
    ['not fixed', { greeting: () => Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), u16(0)]) }, 'NBD_REFUSED'],
    ['gone after the greeting', { greeting: () => ({ thenDrop: GREETING }) }, 'NBD_UNREACHABLE'],
    ['gone in the greeting', { greeting: () => ({ thenDrop: GREETING.subarray(0, 7) }) }, 'NBD_UNREACHABLE'],
    ['an answer of another magic', { option: () => Buffer.alloc(20, 1) }, 'NBD_BROKEN'],
    ['an answer to another option', { option: (option) => optionReply(option + 1, 1) }, 'NBD_BROKEN'],
    ['an answer of gigabytes', { option: (option) => Buffer.concat([u64(0x3e889045565a9n), u32(option), u32(3), u32(0xffff_ffff)]) }, 'NBD_BROKEN'],
    ['answers without end', { option: (option) => Buffer.concat(Array.from({ length: 100 }, () => optionReply(option, 3, exportInfo(512)))) }, 'NBD_BROKEN'],
    ['TLS wanted', { option: (option) => optionReply(option, 0x8000_0005) }, 'NBD_REFUSED'],
    ['no such export', { option: (option) => option === 7 ? optionReply(7, 0x8000_0006, Buffer.from('no\u001b[31m\nsuch export')) : 'honest' }, 'NBD_REFUSED'],
    ['no length', go(), 'NBD_BROKEN'],
    ['a length past anything', go(optionReply(7, 3, exportInfo(2n ** 63n))), 'NBD_BROKEN'],
    ['a length cut short', go(optionReply(7, 3, exportInfo(5).subarray(0, 9))), 'NBD_BROKEN'],
    ['no flags', go(optionReply(7, 3, exportInfo(512, 0))), 'NBD_BROKEN'],
    ['blocks of 3 bytes', go(optionReply(7, 3, exportInfo(512)), optionReply(7, 3, Buffer.concat([u16(3), u32(3), u32(4096), u32(4096)]))), 'NBD_BROKEN'],
    ['blocks of gigabytes', go(optionReply(7, 3, exportInfo(512)), optionReply(7, 3, Buffer.concat([u16(3), u32(2 ** 30), u32(2 ** 30), u32(2 ** 31)]))), 'NBD_BROKEN'],
    ['a context that nobody asked for', { option: (option) => option === 10 ? Buffer.concat([optionReply(10, 4, Buffer.concat([u32(1), Buffer.from('x:y')])), optionReply(10, 1)]) : 'honest' }, 'NBD_BROKEN'],
    ['a context twice', { option: (option) => option === 10 ? Buffer.concat([...[1, 2].map((id) => optionReply(10, 4, Buffer.concat([u32(id), Buffer.from('base:allocation')]))), optionReply(10, 1)]) : 'honest' }, 'NBD_BROKEN'],
  ])
  const { message } = await backUp(t, { option: (option) => option === 7 ? optionReply(7, 0x8000_0006, Buffer.from('no\u001b[31m\nsuch export')) : 'honest' })
  assert.match(message, /cannot be read: no \[31m such export\.$/, 'what a server says cannot act on a terminal')
})
test('an answer that is not exactly what was asked for is not believed', async (t) => {
  await expectAll(t, [
    ['no answer', { request: atRead(() => Buffer.alloc(64, 7)) }, 'NBD_BROKEN'],
    ['a cookie of nobody', { request: atRead(({ length }) => chunk(12345n, 1, Buffer.alloc(8 + length))) }, 'NBD_BROKEN'],
    ['a cookie that was answered', { request: atRead((asked) => Buffer.concat([dataChunk(asked, CONTENT, asked.offset, asked.length), dataChunk(asked, CONTENT, asked.offset, asked.length)])) }, 'NBD_BROKEN'],
    ['too few bytes', { request: atRead((asked) => dataChunk(asked, CONTENT, asked.offset, asked.length - 1)) }, 'NBD_BROKEN'],
    ['no bytes', { request: atRead(({ cookie }) => chunk(cookie, 0, Buffer.alloc(0))) }, 'NBD_BROKEN'],
    ['too many bytes', { request: atRead((asked) => dataChunk(asked, CONTENT, asked.offset, asked.length + 1)) }, 'NBD_BROKEN'],
    ['bytes of before', { request: atRead((asked) => dataChunk(asked, CONTENT, asked.offset - 512, asked.length)) }, 'NBD_BROKEN'],
    ['bytes from 2^63', { request: atRead(({ cookie, length }) => chunk(cookie, 1, Buffer.concat([u64(2n ** 63n), Buffer.alloc(length)]))) }, 'NBD_BROKEN'],
    ['bytes twice', { request: atRead((asked) => Buffer.concat([dataChunk(asked, CONTENT, asked.offset, 1024, 0), dataChunk(asked, CONTENT, asked.offset + 512, asked.length - 512)])) }, 'NBD_BROKEN'],
    ['a gap', { request: atRead((asked) => Buffer.concat([dataChunk(asked, CONTENT, asked.offset, 512, 0), dataChunk(asked, CONTENT, asked.offset + 1024, asked.length - 1024)])) }, 'NBD_BROKEN'],
    ['a hole over data', { request: atRead((asked) => Buffer.concat([dataChunk(asked, CONTENT, asked.offset, asked.length, 0),
      chunk(asked.cookie, 2, Buffer.concat([u64(asked.offset), u32(512)]))])) }, 'NBD_BROKEN'],
    ['a hole of no bytes', { request: atRead(({ cookie, offset }) => chunk(cookie, 2, Buffer.concat([u64(offset), u32(0)]))) }, 'NBD_BROKEN'],
    ['a hole past the request', { request: atRead(({ cookie, offset, length }) => chunk(cookie, 2, Buffer.concat([u64(offset), u32(length + 1)]))) }, 'NBD_BROKEN'],
    ['data without data', { request: atRead(({ cookie, offset }) => chunk(cookie, 1, u64(offset))) }, 'NBD_BROKEN'],
    ['a length of gigabytes', { request: atRead(({ cookie, offset }) => chunk(cookie, 1, u64(offset), 1, 0xffff_ffff)) }, 'NBD_BROKEN'],
    ['a part of no known type', { request: atRead(({ cookie }) => chunk(cookie, 77, Buffer.alloc(4))) }, 'NBD_BROKEN'],
    ['a status for a read', { request: atRead((asked) => statusChunk(asked, contextId(0), [{ bytes: 512, flags: 0 }])) }, 'NBD_BROKEN'],
    ['flags that there are not', { request: atRead(({ cookie }) => chunk(cookie, 0, Buffer.alloc(0), 0x81)) }, 'NBD_BROKEN'],
    ['no structure', { request: atRead(({ cookie, offset, length }) => simple(cookie, 0, CONTENT.subarray(offset, offset + length))) }, 'NBD_BROKEN'],
    ['structure that was not agreed on', { isStructured: false, request: atRead((asked) => dataChunk(asked, CONTENT, asked.offset, asked.length)) }, 'NBD_BROKEN'],
    ['parts without end', { request: atRead(({ cookie, offset, length }) => Buffer.concat(Array.from({ length: length / 64 },
      (_, i) => chunk(cookie, 1, Buffer.concat([u64(offset + 64 * i), Buffer.alloc(64)]), 0)))) }, 'NBD_BROKEN'],
    ['an error that is none', { request: atRead((asked) => errorChunk(asked, 0)) }, 'NBD_BROKEN'],
    ['an error longer than itself', { request: atRead(({ cookie }) => chunk(cookie, 0x8001, Buffer.concat([u32(5), u16(100)]))) }, 'NBD_BROKEN'],
    ['an error of gigabytes', { request: atRead(({ cookie }) => chunk(cookie, 0x8001, Buffer.alloc(0), 1, 0x4000_0000)) }, 'NBD_BROKEN'],
    ['another\'s bytes', { gathers: 2, contexts: [], content: CONTENT.subarray(0, 16 * CHUNK), request: swapped() }, 'NBD_BROKEN'],
  ])
  function swapped(): NonNullable<NbdScript['request']> {
    return (asked) => dataChunk({ ...asked, cookie: asked.cookie % 2n === 0n ? asked.cookie - 1n : asked.cookie + 1n }, CONTENT, asked.offset, asked.length)
  }
})
test('a map of holes that is none is not believed; one that the server cannot tell costs reading only', async (t) => {
  const told = (...blocks: { bytes: number; flags: number }[]): NonNullable<NbdScript['request']> => always(STATUS, (asked) => statusChunk(asked, contextId(0), blocks))
  await expectAll(t, [
    ['extents of no bytes', { request: told({ bytes: 0, flags: 0 }) }, 'NBD_BROKEN'],
    ['no extents', { request: told() }, 'NBD_BROKEN'],
    ['extents past the request', { request: told({ bytes: CONTENT.byteLength, flags: 0 }, { bytes: 1, flags: 0 }) }, 'NBD_BROKEN'],
    ['a last extent past the request', { request: told({ bytes: 0xffff_fe00, flags: 0 }) }, 'right'],
    ['another context', { request: always(STATUS, (asked) => statusChunk(asked, 7, [{ bytes: 512, flags: 0 }])) }, 'NBD_BROKEN'],
    ['a context twice', { request: always(STATUS, (asked) => Buffer.concat([0, 1].map((flags) => statusChunk(asked, contextId(0), [{ bytes: 512, flags: 0 }], flags)))) }, 'NBD_BROKEN'],
    ['no context', { request: always(STATUS, ({ cookie }) => chunk(cookie, 0, Buffer.alloc(0))) }, 'NBD_BROKEN'],
    ['half an extent', { request: always(STATUS, ({ cookie }) => chunk(cookie, 5, Buffer.concat([u32(contextId(0)), u32(512)]))) }, 'NBD_BROKEN'],
    ['data for a status', { request: always(STATUS, (asked) => dataChunk(asked, CONTENT, 0, 512)) }, 'NBD_BROKEN'],
    ['done without saying', { request: always(STATUS, ({ cookie }) => simple(cookie, 0)) }, 'NBD_BROKEN'],
    ['an error', { request: always(STATUS, (asked) => errorChunk(asked, 22, 'not here')) }, 'right'],
    ['an error without structure', { request: always(STATUS, ({ cookie }) => simple(cookie, 95)) }, 'right'],
  ])
})
test('an error for a range is asked again a few times, and then named', async (t) => {
  let times = 0
  const once = await backUp(t, { request: (asked) => asked.command === READ && asked.offset === 8 * CHUNK && times++ < 2 ? errorChunk(asked, 5, 'bad sector') : 'honest' })
  assert.deepEqual([once.code, times], ['right', 3])
  for (const answer of [(asked: Asked) => errorChunk(asked, 5, 'bad sector'), ({ cookie }: Asked) => simple(cookie, 5)]) {
    const { code, message, server } = await backUp(t, { request: (asked) => asked.command === READ && asked.offset === 8 * CHUNK ? answer(asked) : 'honest' })
    assert.equal(code, 'NBD_FAILED')
    assert.match(message, /cannot read 524288 bytes at 524288 of "": .*error 5/)
    assert.equal(server.asked.filter(({ offset, command }) => command === READ && offset === 8 * CHUNK).length, 4)
    assert.equal(server.connections(), 1, 'an error is no reason to connect anew')
  }
  const partly = await backUp(t, { request: atRead((asked) => Buffer.concat([dataChunk(asked, CONTENT, asked.offset, 512, 0), chunk(asked.cookie, 0x8002, Buffer.concat([u32(5), u16(0), u64(asked.offset + 512)]))])) })
  assert.equal(partly.code, 'right', 'half an answer and an error are an error: it is asked again')
})
test('a connection that is lost is made again, and what was under way is asked again', async (t) => {
  for (const [what, deed] of [
    ['before an answer', () => 'drop'], ['in a header', (asked) => ({ thenDrop: dataChunk(asked, CONTENT, asked.offset, asked.length).subarray(0, 9) })],
    ['in the data', (asked) => ({ thenDrop: dataChunk(asked, CONTENT, asked.offset, asked.length).subarray(0, 3000) })],
    ['between parts', (asked) => ({ thenDrop: dataChunk(asked, CONTENT, asked.offset, 512, 0) })],
    ['by a shutdown', (asked) => errorChunk(asked, 108)],
  ] as readonly (readonly [string, (asked: Asked) => Deed])[]) {
    let lost = 0
    const { code, server, message } = await backUp(t, { request: (asked, nth) => nth % 3 === 2 && lost++ < 4 ? deed(asked) : 'honest' })
    assert.deepEqual([code, message], ['right', ''], what)
    assert.ok(server.connections() > 1, what)
  }
})
test('a server that comes back as another one, or never, is given up with an error', async (t) => {
  const first = (connection: number): boolean => connection === 0
  await expectAll(t, [
    ['drops all', { request: () => 'drop' }, 'NBD_UNREACHABLE'],
    ['drops one range, always', { request: (asked) => asked.offset === 8 * CHUNK && asked.command === READ ? 'drop' : 'honest' }, 'NBD_UNREACHABLE'],
    ['shuts down, always', { request: always(READ, (asked) => errorChunk(asked, 108)) }, 'NBD_UNREACHABLE'],
    ['another length', { request: (_asked, nth, connection) => first(connection) && nth === 3 ? 'drop' : 'honest',
      option: (option, _data, connection) => option === 7 && !first(connection) ? Buffer.concat([optionReply(7, 3, exportInfo(512)), optionReply(7, 1)]) : 'honest' }, 'NBD_FAILED'],
    ['another set of contexts', { request: (_asked, nth, connection) => first(connection) && nth === 3 ? 'drop' : 'honest',
      option: (option, _data, connection) => option === 10 && !first(connection) ? optionReply(10, 1) : 'honest' }, 'NBD_FAILED'],
    ['no export any more', { request: (_asked, nth, connection) => first(connection) && nth === 3 ? 'drop' : 'honest',
      option: (option, _data, connection) => option === 7 && !first(connection) ? optionReply(7, 0x8000_0006) : 'honest' }, 'NBD_REFUSED'],
    ['nonsense in the second greeting', { request: (_asked, nth, connection) => first(connection) && nth === 3 ? 'drop' : 'honest',
      greeting: (connection) => first(connection) ? 'honest' : Buffer.alloc(18, 1) }, 'NBD_BROKEN'],
  ])
})
test('a server that falls silent is given up after a while: in the handshake, before an answer, in the middle of one', async (t) => {
  const cases: readonly (readonly [string, Partial<NbdScript>, ClientErrorCode | 'right'])[] = [
    ['greeting', { greeting: () => 'silence' }, 'NBD_UNREACHABLE'],
    ['option', { option: (option) => option === 7 ? 'silence' : 'honest' }, 'NBD_UNREACHABLE'],
    ['once', { request: atRead(() => 'silence', 0) }, 'right'],
    ['half an answer, once', { request: atRead((asked) => dataChunk(asked, CONTENT, asked.offset, asked.length).subarray(0, 5000), 1) }, 'NBD_BROKEN'],
    ['always', { request: always(READ, () => 'silence') }, 'NBD_UNREACHABLE'],
  ]
  for (const [what, script, wanted] of cases) {
    // After half an answer, what comes next is taken for the rest of it: its length then fits nothing, or the silence is noticed.
    const { code, message } = await backUp(t, script, QUICK)
    assert.ok(code === wanted || wanted === 'NBD_BROKEN' && code === 'right', `${what}: ${code} ${message}`)
  }
})
test('a backup that is cancelled while a server is silent ends at once', async (t) => {
  const server = await startLyingServer(t, { content: CONTENT, request: () => 'silence' })
  const abort = new AbortController()
  const source = await openNbdSource({ kind: 'nbd', address: { kind: 'unix', path: server.path }, exportName: '' }, { signal: abort.signal })
  const { reads } = source
  assert.ok(reads.kind === 'queued')
  const reading = [reads.read(0, 4096), reads.read(4096, 4096)]
  const reason = new Error('enough')
  abort.abort(reason)
  for (const one of reading) await assert.rejects(one, reason)
  await source.close()
})
test('whatever is changed in the headers of its answers, the image is right or there is an error', async (t) => {
  const content = CONTENT.subarray(0, 24 * CHUNK)
  await fc.assert(fc.asyncProperty(fc.integer({ min: 0, max: 8 }), fc.integer({ min: 0, max: 27 }), fc.integer({ min: 1, max: 255 }), fc.boolean(), async (nth, at, flip, isCut) => {
    await backUp(t, { content, request: (asked, count) => {
      if (count !== nth) return 'honest'
      const answer = asked.command === STATUS ? statusChunk(asked, contextId(0), [{ bytes: asked.length, flags: 0 }]) : dataChunk(asked, content, asked.offset, asked.length)
      answer[at]! ^= flip
      return isCut ? { thenDrop: answer.subarray(0, at + 1) } : answer
    } }, { clock: systemClock, limits: { stallMs: 150, lossesMax: 3 } })
  }), { numRuns: 60 })
})
