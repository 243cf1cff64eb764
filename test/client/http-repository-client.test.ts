/** The wire's binary replies against a server over real sockets. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { hasClientCode } from '../../src/protocol/client-errors.js'
import { HttpRepositoryClient } from '../../client/http-repository-client.js'
import type { ReadChunk } from '../../client/repository-client.js'
import { parseRepositoryUrl, Transport } from '../../src/protocol/transport.js'
import { hasCode } from '../../src/core/errors.js'
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, parseSessionId, type SessionId } from '../../src/core/ids.js'
import { encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import { FakeRepositoryServer } from '../support/fake-repository-server.js'
import { evenRandom, instantClock } from '../support/instant-clock.js'

async function open(t: TestContext): Promise<{ fake: FakeRepositoryServer; client: HttpRepositoryClient }> {
  const fake = await FakeRepositoryServer.start(t)
  const client = new HttpRepositoryClient(new Transport({ baseUrl: fake.baseUrl, clock: instantClock(), random: evenRandom }), 'r')
  t.after(() => client.close())
  return { fake, client }
}
async function collect(chunks: AsyncIterable<ReadChunk>): Promise<ReadChunk[]> {
  const all: ReadChunk[] = []
  for await (const chunk of chunks) all.push(chunk)
  return all.sort((a, b) => a.index - b.index)
}
/** A snapshot of one node that lists three chunks, read up to its root. */
async function readSession(fake: FakeRepositoryServer, client: HttpRepositoryClient): Promise<{ session: SessionId; ids: Buffer; bodies: Buffer[] }> {
  const bodies = [Buffer.alloc(200_000, 'large'), Buffer.from('small'), Buffer.alloc(70_000, 'x')]
  const leaves = bodies.map((body) => fake.repository.put(body, CHUNK_KINDS.data))
  const root = fake.repository.put(encodeNode(NODE_TYPES.directory, leaves.map((id) => ({ kind: CHUNK_KINDS.data, id })), Buffer.alloc(0)), CHUNK_KINDS.node)
  const { id } = fake.repository.addSnapshot(root)
  const session = parseSessionId((await client.openSession({ kind: 'read', snapshot: id })).sessionId)
  assert.equal((await collect(client.readChunks(session, root)))[0]!.status, 'ok')
  return { session, ids: Buffer.concat(leaves), bodies }
}

for (const codec of ['raw', 'zstd'] as const) {
  test(`chunks are read back in any order (${codec})`, async (t) => {
    const { fake, client } = await open(t)
    const { session, ids, bodies } = await readSession(fake, client)
    fake.readFramesAsZstd = codec === 'zstd'
    const chunks = await collect(client.readChunks(session, ids))
    assert.deepEqual(chunks.map(({ bytes }) => bytes), bodies)
  })
}
test('a read reply that was cut is a typed error, wherever the cut is', async (t) => {
  const { fake, client } = await open(t)
  const { session, ids } = await readSession(fake, client)
  for (const bytes of [0, 10, 16, 5_000, 70_016, 70_016 + 21]) {
    fake.cutReadAfterBytes = bytes
    await assert.rejects(collect(client.readChunks(session, ids)), (error) => hasCode(error, 'BODY_TRUNCATED'), `cut at ${bytes}`)
  }
})
test('unreadable and lost chunks are told apart', async (t) => {
  const { fake, client } = await open(t)
  const { session, ids } = await readSession(fake, client)
  fake.repository.lose(ids.subarray(32, 64))
  const foreign = hashChunk(fake.repository.dedupKey, Buffer.from('other'), CHUNK_KINDS.data).subarray(0, 32)
  const chunks = await collect(client.readChunks(session, Buffer.concat([ids.subarray(32, 64), foreign])))
  assert.deepEqual(chunks.map(({ status }) => status), ['missing', 'not-readable'])
})
test('leaving a read early lets the connection go', async (t) => {
  const { fake, client } = await open(t)
  const { session, ids } = await readSession(fake, client)
  for await (const chunk of client.readChunks(session, ids)) {
    assert.equal(chunk.status, 'ok')
    break
  }
  assert.equal((await client.info()).name, 'memory')
})
test('a bitmap or verdict list of the wrong length is refused', async (t) => {
  const { fake, client } = await open(t)
  const { session } = await readSession(fake, client)
  const answer = (body: Buffer): void => { fake.interfere((request, response) => { request.resume(); response.end(body); return true }) }
  answer(Buffer.alloc(1))
  await assert.rejects(client.findMissing(session, Buffer.alloc(48 * 9)), (error) => hasClientCode(error, 'REPLY_MALFORMED'))
  answer(Buffer.from([0, 9]))
  await assert.rejects(client.putChunks(session, [Buffer.alloc(44)], 2), (error) => hasClientCode(error, 'REPLY_MALFORMED'))
})
test('events of a check arrive as lines', async (t) => {
  const { client } = await open(t)
  const types: string[] = []
  for await (const event of client.check({ readDataPercent: 5 })) types.push(event.type)
  assert.deepEqual(types, ['progress', 'done'])
})
test('a session that is lost counts as closed', async (t) => {
  const { client } = await open(t)
  await client.closeSession(parseSessionId('0'.repeat(32)))
})
test('a repository URL names server and repository', () => {
  assert.deepEqual(parseRepositoryUrl('https://h:1/team%20a'), { baseUrl: 'https://h:1', repository: 'team a' })
  assert.deepEqual(parseRepositoryUrl('http://h/pre/fix/name/'), { baseUrl: 'http://h/pre/fix', repository: 'name' })
  for (const wrong of ['http://h:1', 'h:1/name', 'ftp://h/name', 'http://h/n?x=1'])
    assert.throws(() => parseRepositoryUrl(wrong), (error) => hasClientCode(error, 'URL_MALFORMED'), wrong)
})
