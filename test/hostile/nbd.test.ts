/** Bug class: a stranger on the NBD socket who brings the server down, holds its memory or its connections, or reads what was never given.
 *  After every attack an honest client is served.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import fc from 'fast-check'
import { decodeInfoRequest, decodeMetaContextRequest, decodeOptionHeader, decodeRequest, NbdBreak } from '../../client/nbd/protocol.js'
import { startNbdServer, type NbdLimits, type NbdServer } from '../../client/nbd/server.js'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { ManualClock } from '../support/manual-clock.js'
import { MemoryImage } from '../support/memory-image.js'
import { infoData, metaContextData, NbdTestClient, optionBytes, requestBytes, u32 } from '../support/nbd-client.js'
import { noise } from '../support/odd-tree.js'
import { SLOW } from '../support/run-roost.js'

const MiB = 1024 * 1024
const CONTENT = noise(3 * MiB + 5, 1)
const EINVAL = 22

interface Scene { readonly server: NbdServer; readonly image: MemoryImage; honest(): Promise<void> }
async function start(t: TestContext, limits: Partial<NbdLimits> = {}, clock: Clock = systemClock, content = CONTENT): Promise<Scene> {
  const directory = mkdtempSync(join(tmpdir(), 'roost-nbd-'))
  t.after(() => rmSync(directory, { recursive: true, force: true }))
  const image = new MemoryImage(content)
  const server = await startNbdServer({ exports: [{ name: 'disk', description: '', image }], address: { kind: 'unix', path: join(directory, 's') }, clock, limits })
  t.after(() => server.close())
  const honest = async (): Promise<void> => {
    const client = await NbdTestClient.ready(server.address)
    assert.ok((await client.bytes(7, 1000)).equals(content.subarray(7, 1007)))
    client.socket.end()
    await client.gone()
  }
  return { server, image, honest }
}
async function stranger({ server }: Scene, ...parts: readonly Uint8Array[]): Promise<NbdTestClient> {
  const client = await NbdTestClient.connect(server.address)
  await client.read(18)
  client.socket.write(Buffer.concat(parts))
  return client
}

test('what is no NBD ends the connection: other flags, another magic, HTTP', async (t) => {
  const scene = await start(t)
  for (const bytes of [u32(0x80), Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'), Buffer.concat([u32(3), Buffer.alloc(16, 0xff)])])
    await (await stranger(scene, bytes)).gone()
  const late = await NbdTestClient.ready(scene.server.address)
  late.socket.write(Buffer.alloc(28, 1))
  await late.gone()
  await scene.honest()
})
test('an option of gigabytes ends the connection unread; one of a megabyte is read past and refused', async (t) => {
  const scene = await start(t)
  for (const length of [0xffff_ffff, 0x7fff_ffff, MiB + 1]) await (await stranger(scene, u32(3), optionBytes(7, Buffer.alloc(0), length))).gone()
  const client = await NbdTestClient.connect(scene.server.address)
  await client.greet()
  assert.deepEqual((await client.option(7, Buffer.alloc(MiB))).map(({ type }) => type), [0x8000_0009])
  assert.deepEqual((await client.option(7, infoData(''))).map(({ type }) => type), [3, 1], 'and the next one is answered')
  client.destroy()
})
test('malformed options and unknown ones are refused one by one, and the connection goes on', async (t) => {
  const scene = await start(t)
  const client = await NbdTestClient.connect(scene.server.address)
  await client.greet()
  const invalid = 0x8000_0003
  assert.equal((await client.option(8, Buffer.alloc(1))).at(-1)!.type, invalid)
  await client.option(8)
  for (const [option, data] of [[3, Buffer.alloc(4)], [7, Buffer.alloc(0)], [7, u32(0xffff_ffff)], [7, Buffer.concat([u32(4097), Buffer.alloc(4099)])],
    [6, Buffer.concat([infoData('disk', [3]), Buffer.alloc(1)])], [10, Buffer.concat([u32(0), u32(0xffff_ffff)])], [10, metaContextData('disk', ['base:allocation']).subarray(0, 20)],
    [9, Buffer.alloc(3)]] as const) assert.equal((await client.option(option, data)).at(-1)!.type, invalid, `option ${option}`)
  for (const option of [0, 4, 11, 12, 77, 0xffff_ffff]) assert.equal((await client.option(option, Buffer.alloc(9))).at(-1)!.type, 0x8000_0001)
  await client.option(7, infoData(''))
  assert.equal((await client.bytes(0, 10)).byteLength, 10)
  client.destroy()
})
test('option after option without end ends the connection', async (t) => {
  const scene = await start(t)
  const client = await NbdTestClient.connect(scene.server.address)
  await client.greet()
  await assert.rejects(async () => { for (let i = 0; i < 1000; i++) await client.option(77) }, /ended the connection/)
  await scene.honest()
})
test('reads and questions past the end, from the end of numbers, too long or with unknown flags are EINVAL', async (t) => {
  const scene = await start(t)
  const client = await NbdTestClient.ready(scene.server.address, { allocation: true })
  const size = CONTENT.byteLength
  for (const command of [0, 7]) {
    for (const [offset, length] of [[size, 1], [size - 1, 2], [2n ** 64n - 1n, 1], [2n ** 63n, 4096], [2 ** 53, 1], [0, 0xffff_ffff], [size + 1, 0]] as const)
      assert.equal((await client.ask(command, offset, length)).error, EINVAL, `${command}: ${length} at ${offset}`)
    assert.equal((await client.ask(command, 0, 1, 0x8000)).error, EINVAL)
  }
  assert.equal((await client.ask(5, 2n ** 64n - 1n, 1)).error, EINVAL)
  assert.equal((await client.ask(3, 0, 0, 0xffff)).error, EINVAL)
  assert.equal((await client.bytes(size - 1, 1)).byteLength, 1)
  client.destroy()
})
test('a write of gigabytes ends the connection', async (t) => {
  const scene = await start(t)
  const client = await NbdTestClient.ready(scene.server.address)
  client.send(1, 0, 0xffff_ffff)
  await client.gone()
  await scene.honest()
})
test('whoever stops in the middle is cut off: before the flags, in an option, between options, in a request, in a payload', async (t) => {
  const clock = new ManualClock()
  const scene = await start(t, { stallMs: 60_000 }, clock)
  const clients = [
    await stranger(scene), await stranger(scene, u32(3), Buffer.from('IHAVE')), await stranger(scene, u32(3), optionBytes(7, Buffer.alloc(3), 100)), await stranger(scene, u32(3)),
  ]
  for (const part of [requestBytes(0, 1n, 0, 100).subarray(0, 27), Buffer.concat([requestBytes(1, 1n, 0, 100_000), Buffer.alloc(99_999)])]) {
    const client = await NbdTestClient.ready(scene.server.address)
    client.socket.write(part)
    clients.push(client)
  }
  const idle = await NbdTestClient.ready(scene.server.address)
  while (clients.some((client) => !client.isGone)) await clock.advance(60_001)
  assert.ok((await idle.bytes(0, 10)).byteLength === 10, 'silence between requests is no offence')
  idle.destroy()
  await scene.honest()
})
test('a client that takes no answers is cut off, and its memory is free again', async (t) => {
  const clock = new ManualClock()
  const content = noise(24 * MiB, 5)
  const scene = await start(t, { stallMs: 60_000, roomBytes: 40 * MiB }, clock, content)
  const client = await NbdTestClient.ready(scene.server.address)
  client.socket.pause()
  for (let i = 0; i < 8; i++) client.send(0, 0, 24 * MiB)
  while (scene.server.connections > 0) await clock.advance(60_001)
  assert.equal(scene.server.roomFree, 40 * MiB)
  client.destroy()
  await scene.honest()
})
test('connections, requests of one and bytes of all are bounded, and those who wait are served', async (t) => {
  const scene = await start(t, { connectionsMax: 3, requestsInFlightMax: 8, roomBytes: 4 * MiB })
  const { image, server } = scene
  const clients = [await NbdTestClient.ready(server.address), await NbdTestClient.ready(server.address), await NbdTestClient.ready(server.address)]
  await assert.rejects(NbdTestClient.ready(server.address), /ended the connection|ECONNRESET|EPIPE/, 'one too many')
  image.shutGate()
  for (let i = 0; i < 100; i++) clients[0]!.send(0, i, 1000)
  await image.untilReading(8)
  for (let i = 0; i < 20; i++) clients[1]!.send(0, 0, 2 * MiB)
  await image.untilReading(9)
  image.openGate()
  for (let i = 0; i < 100; i++) assert.equal((await clients[0]!.reply()).error, 0)
  for (let i = 0; i < 20; i++) assert.equal((await clients[1]!.reply()).error, 0)
  assert.ok(image.running.costMax <= 4 * MiB, `${image.running.costMax} bytes`)
  assert.ok(image.running.readsMax <= 16)
  for (const client of clients) client.destroy()
})
test('going away in the middle of reads frees what they held', async (t) => {
  const scene = await start(t, { roomBytes: 8 * MiB, connectionsMax: 4 })
  const { image, server } = scene
  for (let round = 0; round < 5; round++) {
    image.shutGate()
    const client = await NbdTestClient.ready(server.address)
    for (let i = 0; i < 20; i++) client.send(0, 0, MiB)
    await image.untilReading(7)
    client.destroy()
    image.openGate()
    await image.untilReading(0)
  }
  await scene.honest()
  while (server.connections > 0) await new Promise<void>((resolve) => { setImmediate(resolve) })
  assert.equal(server.roomFree, 8 * MiB)
})

const bytesOf = (max: number): fc.Arbitrary<Buffer> => fc.uint8Array({ maxLength: max }).map((bytes) => Buffer.from(bytes))
test('decoders take any bytes: an answer, undefined or NbdBreak', () => {
  const orBreak = (work: () => unknown): void => { try { work() } catch (error) { assert.ok(error instanceof NbdBreak) } }
  fc.assert(fc.property(bytesOf(200), (bytes) => { decodeInfoRequest(bytes); decodeMetaContextRequest(bytes) }), { numRuns: 2_000 })
  fc.assert(fc.property(fc.uint8Array({ minLength: 28, maxLength: 28 }), (bytes) => {
    orBreak(() => decodeOptionHeader(Buffer.from(bytes)))
    orBreak(() => decodeRequest(Buffer.from(bytes)))
  }), { numRuns: 2_000 })
  fc.assert(fc.property(fc.string({ maxLength: 50 }), fc.array(fc.integer({ min: 0, max: 65_535 }), { maxLength: 9 }), fc.array(fc.string({ maxLength: 30 }), { maxLength: 9 }), (name, infos, queries) => {
    const told = Buffer.from(name).toString()
    assert.deepEqual(decodeInfoRequest(infoData(name, infos)), { name: told, infos })
    assert.deepEqual(decodeMetaContextRequest(metaContextData(name, queries)), { name: told, queries: queries.map((query) => Buffer.from(query).toString()) })
  }))
})
test('any sequence of options, requests and garbage, cut anywhere, leaves the server whole and within its bounds', async (t) => {
  const roomBytes = 4 * MiB
  const scene = await start(t, { roomBytes, connectionsMax: 8, requestsInFlightMax: 4 })
  const any32 = fc.oneof(fc.integer({ min: 0, max: 0xffff_ffff }), fc.constantFrom(0, 1, 4096, 32 * MiB, 0xffff_ffff))
  const option = fc.tuple(fc.integer({ min: 0, max: 12 }), fc.oneof(bytesOf(64), fc.constant(infoData('disk', [1, 3])), fc.constant(metaContextData('disk', ['base:allocation'])),
    fc.constant(Buffer.alloc(0)))).map(([type, data]) => optionBytes(type, data))
  const lyingOption = fc.tuple(fc.integer({ min: 0, max: 12 }), bytesOf(20), any32).map(([type, data, length]) => optionBytes(type, data, length))
  const request = fc.tuple(fc.integer({ min: 0, max: 9 }), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.oneof(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.bigInt({ min: 0n, max: 4_000_000n })),
    any32, fc.constantFrom(0, 0, 0, 4, 8, 0xffff)).map(([command, cookie, offset, length, flags]) => requestBytes(command, cookie, offset, length, flags))
  const go = fc.constantFrom(optionBytes(8, Buffer.alloc(0)), optionBytes(7, infoData('disk')), optionBytes(10, metaContextData('disk', ['base:allocation'])))
  const session = fc.tuple(fc.constantFrom(u32(3), u32(1), u32(3), u32(4)), fc.array(fc.oneof(option, go, lyingOption, bytesOf(40)), { maxLength: 6 }),
    fc.boolean(), fc.array(fc.oneof(request, request, bytesOf(40)), { maxLength: 12 }), fc.nat(), fc.boolean())
  await fc.assert(fc.asyncProperty(session, async ([flags, options, goes, requests, cut, resets]) => {
    const all = Buffer.concat([flags, ...options, ...(goes ? [optionBytes(7, infoData('disk'))] : []), ...requests])
    const client = await stranger(scene, cut % 3 === 0 ? all.subarray(0, cut % (all.byteLength + 1)) : all)
    client.socket.resume()
    if (resets) client.destroy()
    else client.socket.end()
    await client.gone()
    assert.ok(scene.image.running.costMax <= roomBytes, `${scene.image.running.costMax} bytes held`)
  }), { numRuns: SLOW ? 3_000 : 250 })
  await scene.honest()
  while (scene.server.connections > 0) await new Promise<void>((resolve) => { setImmediate(resolve) })
  assert.equal(scene.server.roomFree, roomBytes)
})
