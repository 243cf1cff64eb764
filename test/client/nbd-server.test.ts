/** The NBD server as honest clients meet it: every option and command of the specification that it answers, on both kinds of reply. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { startNbdServer, type NbdServer, type NbdServerOptions } from '../../client/nbd/server.js'
import { systemClock } from '../../src/core/clock.js'
import { RoostError } from '../../src/core/errors.js'
import { MemoryImage } from '../support/memory-image.js'
import { infoData, metaContextData, NbdTestClient } from '../support/nbd-client.js'
import { noise } from '../support/odd-tree.js'

const KiB = 1024
/** 64 KiB data, 128 KiB hole, 64 KiB + 100 data. */
const CONTENT = Buffer.concat([noise(64 * KiB, 1), Buffer.alloc(128 * KiB), noise(64 * KiB + 100, 2)])

function directory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'roost-nbd-'))
  t.after(() => rmSync(path, { recursive: true, force: true }))
  return path
}
async function start(t: TestContext, options: Partial<NbdServerOptions> = {}): Promise<{ server: NbdServer; image: MemoryImage }> {
  const image = new MemoryImage(CONTENT)
  const server = await startNbdServer({ exports: [{ name: 'disk.img', description: 'web1', image }], address: { kind: 'unix', path: join(directory(t), 's') }, clock: systemClock, ...options })
  t.after(() => server.close())
  return { server, image }
}
const types = (replies: readonly { readonly type: number }[]): number[] => replies.map(({ type }) => type)

test('LIST, INFO and GO tell the name, the size, that it is read-only and that several connections see the same', async (t) => {
  const { server } = await start(t)
  const client = await NbdTestClient.connect(server.address)
  await client.greet()
  const [listed, done] = await client.option(3)
  assert.equal(listed!.data.toString('utf8', 4), 'disk.img')
  assert.equal(done!.type, 1)
  const infos = await client.option(6, infoData('disk.img', [1, 2, 3]))
  assert.deepEqual(types(infos), [3, 3, 3, 3, 1])
  const [about, name, description, sizes] = infos.map(({ data }) => data)
  assert.equal(Number(about!.readBigUInt64BE(2)), CONTENT.byteLength)
  assert.equal(about!.readUInt16BE(10), 1 | 2 | 4 | 0x100 | 0x400, 'flags; no DF without structured replies')
  assert.equal(name!.toString('utf8', 2), 'disk.img')
  assert.equal(description!.toString('utf8', 2), 'web1')
  assert.deepEqual([2, 6, 10].map((at) => sizes!.readUInt32BE(at)), [1, 4096, 32 * 1024 * KiB])
  assert.deepEqual(types(await client.option(8)), [1])
  const [again] = await client.option(7, infoData(''))
  assert.equal(again!.data.readUInt16BE(10) & 0x80, 0x80, 'DF with structured replies')
  assert.ok((await client.bytes(0, 1000)).equals(CONTENT.subarray(0, 1000)), 'after GO requests are served')
  client.destroy()
})
test('EXPORT_NAME begins transmission at once, with the 124 zeroes that old clients wait for', async (t) => {
  const { server } = await start(t)
  for (const [flags, bytes] of [[1, 134], [3, 10]] as const) {
    const client = await NbdTestClient.connect(server.address)
    await client.greet(flags)
    client.socket.write(Buffer.concat([Buffer.from('IHAVEOPT'), Buffer.from([0, 0, 0, 1, 0, 0, 0, 8]), Buffer.from('disk.img')]))
    const reply = await client.read(bytes)
    assert.equal(Number(reply.readBigUInt64BE(0)), CONTENT.byteLength)
    assert.ok((await client.bytes(70_000, 5)).equals(Buffer.alloc(5)), 'simple replies')
    client.destroy()
  }
})
test('an export that is not here is refused and another may be chosen; by EXPORT_NAME the connection ends', async (t) => {
  const { server } = await start(t)
  const client = await NbdTestClient.connect(server.address)
  await client.greet()
  assert.deepEqual(types(await client.option(7, infoData('other'))), [0x8000_0006])
  assert.deepEqual(types(await client.option(7, infoData('disk.img'))), [3, 1])
  client.destroy()
  const old = await NbdTestClient.connect(server.address)
  await old.greet()
  await assert.rejects(old.option(1, Buffer.from('other')), /ended the connection/)
})
test('with several exports each is chosen by its name, and the empty name is none', async (t) => {
  const [one, two] = [new MemoryImage(noise(1000, 1)), new MemoryImage(noise(2000, 2))]
  const { server } = await start(t, { exports: [{ name: 'vda', description: '', image: one }, { name: 'vdb', description: '', image: two }] })
  const client = await NbdTestClient.connect(server.address)
  await client.greet()
  assert.deepEqual((await client.option(3)).slice(0, 2).map(({ data }) => data.toString('utf8', 4)), ['vda', 'vdb'])
  assert.deepEqual(types(await client.option(6, infoData(''))), [0x8000_0006])
  await client.option(7, infoData('vdb'))
  assert.ok((await client.bytes(0, 2000)).equals(two.content))
  client.destroy()
})
test('ABORT is acknowledged and ends the connection; DISC too, after what was asked before', async (t) => {
  const { server } = await start(t)
  const client = await NbdTestClient.connect(server.address)
  await client.greet()
  assert.deepEqual(types(await client.option(2)), [1])
  await client.gone()
  const other = await NbdTestClient.ready(server.address)
  other.send(0, 0, 100)
  other.send(2, 0, 0)
  assert.equal((await other.reply()).error, 0)
  await other.gone()
})

test('reads are answered by data and holes, whole where the client asks for that, by plain bytes where it knows no structure', async (t) => {
  const { server } = await start(t)
  const client = await NbdTestClient.ready(server.address)
  const whole = await client.ask(0, 0, CONTENT.byteLength)
  assert.deepEqual(whole.pieces.map(({ offset, bytes, data }) => [offset, bytes, data === undefined]),
    [[0, 64 * KiB, false], [64 * KiB, 128 * KiB, true], [192 * KiB, 64 * KiB + 100, false]])
  const unbroken = await client.ask(0, 10, CONTENT.byteLength - 10, 4)
  assert.equal(unbroken.pieces.length, 1)
  assert.ok(unbroken.pieces[0]!.data!.equals(CONTENT.subarray(10)))
  for (const [offset, length] of [[0, 1], [65_535, 2], [1, 200_000], [CONTENT.byteLength - 1, 1], [196_607, 70]] as const)
    assert.ok((await client.bytes(offset, length)).equals(CONTENT.subarray(offset, offset + length)), `${length} at ${offset}`)
  assert.deepEqual((await client.ask(0, 5, 0)).pieces, [])
  const simple = await NbdTestClient.ready(server.address, { structured: false })
  assert.ok((await simple.bytes(1, 250_000)).equals(CONTENT.subarray(1, 250_001)))
  client.destroy()
  simple.destroy()
})
test('many reads at once are all answered, each with its cookie', async (t) => {
  const { server } = await start(t)
  const client = await NbdTestClient.ready(server.address)
  const asked = new Map(Array.from({ length: 200 }, (_, i) => [client.send(0, i * 1000, 1500), i * 1000]))
  for (let i = 0; i < 200; i++) {
    const { cookie, pieces } = await client.reply()
    const offset = asked.get(cookie)!
    assert.ok(Buffer.concat(pieces.map(({ data, bytes }) => data ?? Buffer.alloc(bytes))).equals(CONTENT.subarray(offset, offset + 1500)))
    assert.ok(asked.delete(cookie))
  }
  client.destroy()
})
test('BLOCK_STATUS tells holes once base:allocation was agreed on for the same export, one block where one is asked for', async (t) => {
  const { server } = await start(t)
  const client = await NbdTestClient.connect(server.address)
  await client.greet()
  assert.deepEqual(types(await client.option(10, metaContextData('', ['base:allocation']))), [0x8000_0003], 'only with structured replies')
  await client.option(8)
  assert.deepEqual((await client.option(9, metaContextData('', []))).map(({ type, data }) => [type, data.toString('utf8', 4)]), [[4, 'base:allocation'], [1, '']])
  assert.deepEqual(types(await client.option(9, metaContextData('', ['base:']))), [4, 1])
  assert.deepEqual(types(await client.option(10, metaContextData('', ['base:', 'qemu:dirty-bitmap:x']))), [1], 'nothing of these is set')
  assert.deepEqual(types(await client.option(10, metaContextData('other', ['base:allocation']))), [0x8000_0006])
  assert.deepEqual(types(await client.option(10, metaContextData('', ['base:allocation']))), [4, 1])
  await client.option(7, infoData(''))
  const { blocks } = await client.ask(7, 0, CONTENT.byteLength)
  assert.deepEqual(blocks, [{ bytes: 64 * KiB, flags: 0 }, { bytes: 128 * KiB, flags: 3 }, { bytes: 64 * KiB + 100, flags: 0 }])
  assert.deepEqual((await client.ask(7, 1000, 100_000, 8)).blocks, [{ bytes: 64 * KiB - 1000, flags: 0 }])
  assert.equal((await client.ask(7, 0, 0)).error, 22)
  client.destroy()
  const without = await NbdTestClient.ready(server.address)
  assert.equal((await without.ask(7, 0, 100)).error, 22, 'nothing was agreed on')
  without.destroy()
})
test('FLUSH and CACHE are done; writing in any form is not permitted and hurts nothing', async (t) => {
  const { server } = await start(t)
  for (const structured of [true, false]) {
    const client = await NbdTestClient.ready(server.address, { structured })
    assert.equal((await client.ask(3, 0, 0)).error, 0)
    assert.equal((await client.ask(5, 0, 100_000)).error, 0)
    assert.equal((await client.ask(1, 0, 100_000, 0, noise(100_000, 3))).error, 1, 'WRITE, its payload swallowed')
    assert.equal((await client.ask(4, 0, 4096)).error, 1, 'TRIM')
    assert.equal((await client.ask(6, 0, 4096)).error, 1, 'WRITE_ZEROES')
    assert.equal((await client.ask(99, 0, 4096)).error, 22, 'no such command')
    assert.ok((await client.bytes(0, 100)).equals(CONTENT.subarray(0, 100)))
    client.destroy()
  }
})
test('a read that fails says why, is reported, and the connection goes on', async (t) => {
  const problems: unknown[] = []
  const { server, image } = await start(t, { events: { problem: (_name, error) => problems.push(error) } })
  image.failAt = { offset: 5000, error: new RoostError('CHUNK_MISSING', 'The repository lacks chunk 17.') }
  const client = await NbdTestClient.ready(server.address)
  const { error, message } = await client.ask(0, 0, 10_000)
  assert.deepEqual([error, message], [5, 'The repository lacks chunk 17.'])
  assert.equal(problems.length, 1)
  assert.equal((await client.bytes(6000, 10)).byteLength, 10)
  const simple = await NbdTestClient.ready(server.address, { structured: false })
  assert.equal((await simple.ask(0, 0, 10_000)).error, 5)
  client.destroy()
  simple.destroy()
})

test('the unix socket is its owner\'s, is gone after closing, and a stale one is replaced where a living one is not', async (t) => {
  const path = join(directory(t), 'nbd.sock')
  const { server } = await start(t, { address: { kind: 'unix', path } })
  assert.equal(statSync(path).mode & 0o777, 0o600)
  await assert.rejects(startNbdServer({ exports: [], address: { kind: 'unix', path }, clock: systemClock }), { code: 'EADDRINUSE' })
  const client = await NbdTestClient.ready(server.address)
  await server.close()
  await client.gone()
  assert.ok(!existsSync(path))
  const killed = spawnSync(process.execPath, ['-e', `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`])
  assert.equal(killed.signal, 'SIGKILL')
  assert.ok(existsSync(path), 'the killed one left its socket')
  const after = await start(t, { address: { kind: 'unix', path } })
  const next = await NbdTestClient.ready(after.server.address)
  assert.equal((await next.bytes(0, 10)).byteLength, 10)
  next.destroy()
  writeFileSync(join(path, '..', 'file'), 'not a socket')
  await assert.rejects(startNbdServer({ exports: [], address: { kind: 'unix', path: join(path, '..', 'file') }, clock: systemClock }), { code: 'EADDRINUSE' })
  assert.ok(existsSync(join(path, '..', 'file')), 'a file in the way stays')
})
test('over TCP a free port is found, and another server on it is told of', async (t) => {
  const { server } = await start(t, { address: { kind: 'tcp', host: '127.0.0.1', port: 0 } })
  assert.ok(server.address.kind === 'tcp' && server.address.port > 0)
  const client = await NbdTestClient.ready(server.address)
  assert.equal((await client.bytes(3, 4)).byteLength, 4)
  await assert.rejects(startNbdServer({ exports: [], address: server.address, clock: systemClock }), { code: 'EADDRINUSE' })
  client.destroy()
})

function certificate(path: string, name: string): { cert: string; key: string } {
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', `/CN=${name}`,
    '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1', '-keyout', join(path, `${name}.key`), '-out', join(path, `${name}.pem`)], { stdio: 'ignore' })
  return { cert: readFileSync(join(path, `${name}.pem`), 'utf8'), key: readFileSync(join(path, `${name}.key`), 'utf8') }
}
test('with a certificate nothing is told before TLS; then all is as without, the agreements made anew', async (t) => {
  const tls = certificate(directory(t), 'server')
  const { server } = await start(t, { tls })
  const client = await NbdTestClient.connect(server.address)
  await client.greet()
  for (const option of [3, 6, 7, 8, 9, 10]) assert.deepEqual(types(await client.option(option)), [0x8000_0005], `option ${option}`)
  assert.deepEqual(types(await client.option(5)), [1])
  await client.secure({ ca: tls.cert, host: 'localhost', servername: 'localhost' })
  assert.deepEqual(types(await client.option(5)), [0x8000_0003], 'TLS once')
  await client.option(8)
  await client.option(7, infoData(''))
  assert.ok((await client.bytes(0, CONTENT.byteLength)).equals(CONTENT))
  client.destroy()
  const plain = await NbdTestClient.connect(server.address)
  await plain.greet()
  await assert.rejects(plain.option(1), /ended the connection/, 'EXPORT_NAME without TLS')
})
test('with an authority only clients with a certificate of it get through', async (t) => {
  const path = directory(t)
  const [ours, theirs] = [certificate(path, 'ours'), certificate(path, 'theirs')]
  const { server } = await start(t, { tls: { ...ours, ca: ours.cert } })
  const attempt = async (own: Record<string, string>): Promise<Buffer> => {
    const client = await NbdTestClient.connect(server.address)
    await client.greet()
    await client.option(5)
    await client.secure({ ca: ours.cert, host: 'localhost', servername: 'localhost', ...own })
    await client.option(8)
    await client.option(7, infoData(''))
    return await client.bytes(0, 100)
  }
  assert.ok((await attempt(ours)).equals(CONTENT.subarray(0, 100)))
  await assert.rejects(attempt({}))
  await assert.rejects(attempt(theirs))
  assert.ok((await attempt(ours)).equals(CONTENT.subarray(0, 100)), 'and the server goes on')
})
test('without a certificate STARTTLS is refused by policy', async (t) => {
  const { server } = await start(t)
  const client = await NbdTestClient.connect(server.address)
  await client.greet()
  assert.deepEqual(types(await client.option(5)), [0x8000_0002])
  client.destroy()
})
