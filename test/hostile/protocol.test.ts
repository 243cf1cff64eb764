/** A client that lies, against the whole server over real sockets: each lie gets a typed error or a refusal by frame, costs no more memory
 *  than was admitted, and others are served meanwhile.
 */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { FRAME_VERDICTS, hasBit, READ_FRAME_HEADER_BYTES } from '../../src/core/frames.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, parseSessionId } from '../../src/core/ids.js'
import { LIMITS, MiB } from '../../src/core/limits.js'
import type { WireError } from '../../src/core/messages.js'
import { encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import { zstdDecode, zstdEncoder } from '../../src/core/zstd.js'
import { MEDIA, ROUTES, routePath } from '../../src/protocol/routes.js'
import { PACE } from '../../src/server/raw-body.js'
import { ManualClock } from '../support/manual-clock.js'
import { noise } from '../support/odd-tree.js'
import {
  assertServesOthers, commitOf, frameOf, PushSession, readSession, readStatuses, realServer, rootOf, type RealServer, type RealServerOptions,
} from '../support/real-server.js'

async function pusher(t: TestContext, options?: RealServerOptions) {
  const server = await realServer(t, options)
  const { token, tokenId } = await server.token({ repository: 'alpha', scopes: ['push', 'read'] })
  const client = server.client(token)
  return { server, token, tokenId, client, push: await PushSession.open(client) }
}
const directoryOf = (...ids: readonly Uint8Array[]): Buffer =>
  encodeNode(NODE_TYPES.directory, ids.map((id) => ({ kind: CHUNK_KINDS.data, id })), Buffer.alloc(0))
const verdictsOf = async (push: PushSession, server: RealServer, token: string, ...frames: Buffer[]): Promise<number[]> => {
  const reply = await push.putRaw(server, token, Buffer.concat(frames))
  assert.equal(reply.status, 200, reply.body.toString())
  return [...reply.body]
}

// ---- ids without proofs

test('an id without its proof is missing, gives nothing to read, and cannot be committed', async (t) => {
  const { server, token, client } = await pusher(t)
  const victim = await PushSession.open(client, 'victim')
  const secret = Buffer.from('what only the victim has'), other = Buffer.from('something else of the victim')
  const secretId = victim.put(secret, CHUNK_KINDS.data), otherId = victim.put(other, CHUNK_KINDS.data)
  const victimRoot = directoryOf(secretId, otherId)
  const rootId = victim.put(victimRoot, CHUNK_KINDS.node)
  await victim.commit(rootId)

  const thief = await PushSession.open(client, 'thief')
  const right = thief.idProof(secret, CHUNK_KINDS.data)
  const proofs = {
    zeros: Buffer.alloc(16), ones: Buffer.alloc(16, 0xff), 'of another chunk': thief.idProof(other, CHUNK_KINDS.data).subarray(CHUNK_ID_BYTES),
    'of the same bytes as a node': thief.idProof(secret, CHUNK_KINDS.node).subarray(CHUNK_ID_BYTES), 'the id itself': secretId.subarray(0, 16),
  }
  const wrong = [...Object.values(proofs), ...Array.from({ length: 128 }, (_, bit) => {
    const proof = Buffer.from(right.subarray(CHUNK_ID_BYTES))
    proof[bit >> 3]! ^= 1 << (bit & 7)
    return proof
  })].map((proof) => Buffer.concat([secretId, proof]))
  wrong.push(Buffer.concat([rootId, proofs.zeros]), Buffer.concat([otherId, right.subarray(CHUNK_ID_BYTES)]))
  const missing = await client.findMissing(thief.session, Buffer.concat(wrong))
  wrong.forEach((_, i) => { assert.ok(hasBit(missing, i), `pair ${i} is missing`) })

  assert.deepEqual(await readStatuses(client, thief.session, [secretId, otherId, rootId]), ['not-readable', 'not-readable', 'not-readable'])
  await assert.rejects(thief.commit(rootId), { code: 'COMMIT_INCOMPLETE' })
  await assert.rejects(thief.commit(thief.put(directoryOf(secretId), CHUNK_KINDS.node)), { code: 'COMMIT_INCOMPLETE' })
  const own = thief.put(Buffer.from('own'), CHUNK_KINDS.data)
  await assert.rejects(thief.commit(thief.put(directoryOf(own, otherId), CHUNK_KINDS.node)), { code: 'COMMIT_INCOMPLETE' })
  // A body under the victim's id teaches nothing either: it is judged by its bytes.
  assert.deepEqual(await verdictsOf(thief, server, token, frameOf(thief.dedupKey, Buffer.alloc(secret.byteLength), CHUNK_KINDS.data, { id: secretId })),
    [FRAME_VERDICTS.digestMismatch])
  await assert.rejects(thief.commit(rootId), { code: 'COMMIT_INCOMPLETE' })

  assert.deepEqual([...await client.findMissing(thief.session, right)], [0], 'with its proof it is there')
  await thief.commit(thief.put(directoryOf(own, secretId), CHUNK_KINDS.node))
  await assertServesOthers(server)
})

test('chunks that another session is just sending are no more visible than stored ones', async (t) => {
  const { client, push } = await pusher(t)
  const id = push.put(Buffer.from('on its way'), CHUNK_KINDS.data)
  await push.flush() // pending: in an open pack, in no index yet
  const thief = await PushSession.open(client, 'thief')
  assert.deepEqual([...await client.findMissing(thief.session, Buffer.concat([id, Buffer.alloc(16)]))], [1])
  await assert.rejects(thief.commit(thief.put(directoryOf(id), CHUNK_KINDS.node)), { code: 'COMMIT_INCOMPLETE' })
  assert.deepEqual([...await client.findMissing(thief.session, thief.idProof(Buffer.from('on its way'), CHUNK_KINDS.data))], [0])
  await thief.commit(thief.put(directoryOf(id), CHUNK_KINDS.node))
})

test('pins end with their session and are of one session only', async (t) => {
  const { client, push } = await pusher(t)
  const id = push.put(Buffer.from('pinned'), CHUNK_KINDS.data)
  await push.commit(push.put(directoryOf(id), CHUNK_KINDS.node))
  const idProof = push.idProof(Buffer.from('pinned'), CHUNK_KINDS.data)
  const proven = await PushSession.open(client)
  assert.deepEqual([...await client.findMissing(proven.session, idProof)], [0])
  const unproven = await PushSession.open(client)
  await assert.rejects(unproven.commit(unproven.put(directoryOf(id), CHUNK_KINDS.node)), { code: 'COMMIT_INCOMPLETE' })
  await client.closeSession(proven.session)
  await assert.rejects(proven.client.findMissing(proven.session, idProof), { code: 'SESSION_LOST' })
  await assert.rejects(client.commit(proven.session, commitOf(id)), { code: 'SESSION_LOST' })
})

test('a read session reads what its snapshot lists, in the order of listing, and nothing beside', async (t) => {
  const { client, push } = await pusher(t)
  const mine = push.put(Buffer.from('mine'), CHUNK_KINDS.data)
  const snapshot = await push.commit(push.put(directoryOf(mine), CHUNK_KINDS.node))
  const other = await PushSession.open(client, 'other')
  const theirs = other.put(Buffer.from('theirs'), CHUNK_KINDS.data)
  const theirRoot = other.put(directoryOf(theirs), CHUNK_KINDS.node)
  const otherSnapshot = await other.commit(theirRoot)
  const { session } = await readSession(client, snapshot.id)
  assert.deepEqual(await readStatuses(client, session, [mine]), ['not-readable'], 'its node was not read yet')
  assert.deepEqual(await readStatuses(client, session, [theirs, theirRoot, rootOf(otherSnapshot)]), ['not-readable', 'not-readable', 'not-readable'])
  assert.deepEqual(await readStatuses(client, session, [rootOf(snapshot)]), ['ok'])
  assert.deepEqual(await readStatuses(client, session, [mine, theirs, theirRoot]), ['ok', 'not-readable', 'not-readable'])
})

test('a push session reads nodes of its parent and no data, of its own source only', async (t) => {
  const { client, push } = await pusher(t)
  const data = push.put(Buffer.from('content'), CHUNK_KINDS.data)
  const root = push.put(directoryOf(data), CHUNK_KINDS.node)
  const snapshot = await push.commit(root)
  const child = await PushSession.open(client, 's', snapshot.id)
  assert.deepEqual(await readStatuses(client, child.session, [root, data]), ['ok', 'not-readable'])
  assert.deepEqual(await readStatuses(client, child.session, [data]), ['not-readable'], 'also once it is listed')
  await assert.rejects(PushSession.open(client, 'elsewhere', snapshot.id), { code: 'SNAPSHOT_UNKNOWN' })
})

// ---- frames

test('frames whose bytes are not what they claim are judged one by one; the honest among them are kept', async (t) => {
  const { server, token, push } = await pusher(t)
  const { dedupKey } = push
  const zstd = zstdEncoder(3)
  const bytes = Buffer.alloc(50_000, 'compressible '), packed = zstd.encode(bytes)
  const larger = zstd.encode(Buffer.alloc(bytes.byteLength + 1, 'compressible '))
  const claims = (payload: Buffer, rawBytes = bytes.byteLength): Buffer => frameOf(dedupKey, bytes, CHUNK_KINDS.data, { payload, rawBytes, codec: 1 })
  const bomb = zstd.encode(Buffer.alloc(64 * MiB))
  const cut = Buffer.from(packed.subarray(0, -3)), flipped = Buffer.from(packed)
  flipped[packed.byteLength >> 1]! ^= 4
  const streamBomb = withoutContentSize(bomb)
  const verdicts = await verdictsOf(push, server, token,
    frameOf(dedupKey, Buffer.from('honest one')),
    frameOf(dedupKey, Buffer.from('a'), CHUNK_KINDS.data, { id: Buffer.alloc(32) }),
    frameOf(dedupKey, Buffer.from('data under a node\'s id'), CHUNK_KINDS.node, { id: push.idProof(Buffer.from('data under a node\'s id'), CHUNK_KINDS.data).subarray(0, 32) }),
    claims(bomb), // 2 KB that claim 50 KB and are 64 MiB
    claims(larger), claims(packed, bytes.byteLength - 1), claims(cut), claims(Buffer.alloc(60, 7)),
    claims(Buffer.concat([packed, bomb])), // a second frame behind the right one
    claims(Buffer.concat([packed, streamBomb])), // whose size is not even told
    claims(streamBomb), claims(flipped), claims(packed),
    frameOf(dedupKey, Buffer.from('honest two')),
  )
  const { stored, digestMismatch, undecodable } = FRAME_VERDICTS
  const [one, wrongId, wrongKind, ...rest] = verdicts
  assert.deepEqual([one, wrongId, wrongKind], [stored, digestMismatch, digestMismatch])
  assert.deepEqual(rest.slice(0, 8), Array(8).fill(undecodable))
  assert.ok(rest[8] === undecodable || rest[8] === digestMismatch, 'a flipped byte')
  assert.deepEqual(rest.slice(9), [stored, stored])
  await assertServesOthers(server)
})

test('small compressed frames cannot unfold to more than a body may hold', async (t) => {
  const { server, token, push } = await pusher(t)
  const zstd = zstdEncoder(3)
  const frames = [1, 2, 3].map((n) => {
    const bytes = Buffer.alloc(LIMITS.chunkBytesMax, n)
    return frameOf(push.dedupKey, bytes, CHUNK_KINDS.data, { payload: zstd.encode(bytes), codec: 1 })
  })
  assert.ok(Buffer.concat(frames).byteLength < 4_000, 'a few bytes on the wire')
  const refused = await push.putRaw(server, token, Buffer.concat(frames))
  assert.deepEqual([refused.status, refused.code], [422, 'LIMIT_EXCEEDED'])
  assert.deepEqual(await verdictsOf(push, server, token, ...frames.slice(0, 2)), [FRAME_VERDICTS.stored, FRAME_VERDICTS.stored])
})

test('decoding takes the memory that was claimed, whatever is inside', (t) => {
  const zstd = zstdEncoder(3)
  const right = zstd.encode(Buffer.alloc(50_000, 'compressible ')), bomb = zstd.encode(Buffer.alloc(64 * MiB))
  const allocated = t.mock.method(Buffer, 'allocUnsafe')
  for (const [wire, raw] of [[bomb, 50_000], [Buffer.concat([right, bomb]), 50_000], [Buffer.concat([right, withoutContentSize(bomb)]), 50_000],
    [Buffer.concat([right, ...Array<Buffer>(50).fill(bomb)]), 50_000], [withoutContentSize(bomb), 50_000]] as const) {
    allocated.mock.resetCalls()
    assert.equal(zstdDecode(wire, raw), undefined)
    assert.ok(allocated.mock.calls.reduce((sum, call) => sum + call.arguments[0], 0) <= raw)
  }
  assert.equal(zstdDecode(right, 50_000)?.byteLength, 50_000)
})

test('headers that lie about lengths, kinds or codecs refuse the whole body', async (t) => {
  const { server, token, push } = await pusher(t)
  const { dedupKey } = push
  const bytes = Buffer.alloc(100, 'x'), good = frameOf(dedupKey, bytes)
  const patched = (at: number, ...values: number[]): Buffer => { const frame = Buffer.from(good); values.forEach((value, i) => { frame[at + i] = value }); return frame }
  const lies: Record<string, Buffer> = {
    'no raw bytes': patched(0, 0, 0, 0, 0),
    'raw bytes over the chunk limit': frameOf(dedupKey, bytes, CHUNK_KINDS.data, { rawBytes: LIMITS.chunkBytesMax + 1, codec: 1 }),
    'raw bytes of 4 GiB': frameOf(dedupKey, bytes, CHUNK_KINDS.data, { rawBytes: 0xffff_ffff, codec: 1 }),
    'a node over the node limit': frameOf(dedupKey, bytes, CHUNK_KINDS.node, { rawBytes: LIMITS.nodeBytesMax + 1, codec: 1 }),
    'wire bytes beyond the body': frameOf(dedupKey, bytes, CHUNK_KINDS.data, { rawBytes: 101, wireBytes: 101 }),
    'wire bytes of 4 GiB': frameOf(dedupKey, bytes, CHUNK_KINDS.data, { rawBytes: LIMITS.chunkBytesMax, wireBytes: 0xffff_ffff, codec: 1 }),
    'more wire than raw bytes': frameOf(dedupKey, bytes, CHUNK_KINDS.data, { rawBytes: 50, wireBytes: 100, codec: 1 }),
    'raw lengths that differ': frameOf(dedupKey, bytes, CHUNK_KINDS.data, { rawBytes: 99 }),
    'kind 0': patched(8, 0), 'kind 3': patched(8, 3), 'kind 255': patched(8, 255), 'codec 2': patched(9, 2), 'reserved bytes': patched(10, 1),
    'half a header': good.subarray(0, 20), 'a header alone': good.subarray(0, 44), 'a payload cut short': good.subarray(0, 143),
    'a good frame and half of another': Buffer.concat([good, good.subarray(0, 43)]), 'one byte too many': Buffer.concat([good, Buffer.alloc(1)]),
  }
  for (const [what, body] of Object.entries(lies)) {
    const refused = await push.putRaw(server, token, body)
    assert.deepEqual([refused.status, refused.code], [400, 'FRAME_MALFORMED'], what)
  }
  const tiny = frameOf(dedupKey, Buffer.from([1]))
  const many = await push.putRaw(server, token, Buffer.concat(Array<Buffer>(LIMITS.bodyFramesMax + 1).fill(tiny)))
  assert.deepEqual([many.status, many.code], [422, 'LIMIT_EXCEEDED'])
  assert.deepEqual(await verdictsOf(push, server, token, good), [FRAME_VERDICTS.stored], 'none of the refused bodies left it behind')
  await assertServesOthers(server)
})

test('a frame repeated thousands of times, in one body and in many, is stored once', async (t) => {
  const { server, token, push } = await pusher(t)
  const frame = frameOf(push.dedupKey, Buffer.from('again and again'))
  const verdicts = await verdictsOf(push, server, token, ...Array<Buffer>(10_000).fill(frame))
  assert.equal(verdicts.filter((verdict) => verdict === FRAME_VERDICTS.stored).length, 1)
  assert.ok(verdicts.every((verdict) => verdict <= FRAME_VERDICTS.duplicate))
  const bodies = await Promise.all(Array.from({ length: 6 }, () => verdictsOf(push, server, token, frame, frame)))
  assert.ok(bodies.flat().every((verdict) => verdict === FRAME_VERDICTS.duplicate))
  await push.commit(push.put(directoryOf(push.idProof(Buffer.from('again and again'), CHUNK_KINDS.data).subarray(0, 32)), CHUNK_KINDS.node))
  assert.equal((await server.host.get('alpha').stats()).dataChunks, 1)
})

test('the same new chunk from two sessions at once is stored once, and both may rely on it', async (t) => {
  const { server, token, client, push } = await pusher(t)
  const second = await PushSession.open(client, 'second')
  const bytes = noise(MiB, 5), frame = frameOf(push.dedupKey, bytes)
  const answers = await Promise.all([push, second, push, second].map((session) => verdictsOf(session, server, token, frame)))
  const { stored, duplicate } = FRAME_VERDICTS
  assert.deepEqual(answers.flat().sort(), [stored, duplicate, duplicate, duplicate])
  for (const session of [push, second])
    await session.commit(session.put(directoryOf(session.idProof(bytes, CHUNK_KINDS.data).subarray(0, 32)), CHUNK_KINDS.node))
  assert.equal((await server.host.get('alpha').stats()).dataChunks, 1)
})

test('bodies that two connections send to one session, byte by byte in turns, arrive each whole', async (t) => {
  const { server, token, push } = await pusher(t)
  const path = routePath(ROUTES.sessionChunks, { repository: 'alpha', session: push.session })
  const contents = ['first connection', 'second connection'].map((text) => Buffer.from(text))
  const requests = contents.map((bytes) => {
    const frame = frameOf(push.dedupKey, bytes)
    return Buffer.concat([Buffer.from(`POST ${path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\ncontent-type: ${MEDIA.frames}\r\n` +
      `content-length: ${frame.byteLength}\r\nconnection: close\r\n\r\n`), frame])
  })
  const connections = contents.map(() => server.connect())
  for (let at = 0; at < Math.max(...requests.map(({ byteLength }) => byteLength)); at += 7) {
    for (const [i, request] of requests.entries()) await connections[i]!.write(request.subarray(at, at + 7))
    if (at === 350) await assertServesOthers(server)
  }
  for (const connection of connections) {
    const reply = await connection.reply()
    assert.deepEqual([reply.status, reply.body], [200, '\0'])
  }
  await push.commit(push.put(directoryOf(...contents.map((bytes) => push.idProof(bytes, CHUNK_KINDS.data).subarray(0, 32))), CHUNK_KINDS.node))
})

// ---- bodies and pace

test('bodies that trickle hold neither memory nor other clients for longer than the pace allows', async (t) => {
  const clock = new ManualClock()
  const { server, token, push } = await pusher(t, { clock, admission: { bytesMax: 3 * LIMITS.bodyBytesMax } })
  const path = routePath(ROUTES.sessionChunks, { repository: 'alpha', session: push.session })
  const head = `POST ${path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\ncontent-type: ${MEDIA.frames}\r\ncontent-length: ${LIMITS.bodyBytesMax - 100}\r\n\r\n`
  const trickling = [server.connect(), server.connect()]
  for (const connection of trickling) await connection.write(`${head}x`)
  await clock.someoneSleeps(PACE.windowMs)
  while (server.admission.bytesFree > LIMITS.bodyBytesMax) await new Promise((resolve) => { setImmediate(resolve) })
  await assertServesOthers(server) // what they hold is theirs; the rest serves
  for (let window = 0; window < PACE.windows; window++) {
    for (const connection of trickling) await connection.write('x')
    await clock.advance(PACE.windowMs)
  }
  await clock.someoneSleeps(2_000)
  await clock.advance(2_000)
  for (const connection of trickling) {
    const reply = await connection.reply()
    assert.deepEqual([reply.status, (JSON.parse(reply.body) as WireError).code], [408, 'REQUEST_TIMEOUT'])
  }
  assert.equal(server.admission.bytesFree, server.admission.bytesMax)
  await assertServesOthers(server)
})

test('bodies that are too large, unmeasured, encoded, of another kind or of no whole units are refused by their headers', async (t) => {
  const { server, token: bearer, push } = await pusher(t)
  const at = (pattern: string): string => routePath(pattern, { repository: 'alpha', session: push.session })
  const small = Buffer.alloc(48)
  const refusals = [
    [at(ROUTES.sessionChunks), { type: MEDIA.frames, body: Buffer.alloc(LIMITS.bodyBytesMax + 1) }, 413, 'BODY_TOO_LARGE'],
    [at(ROUTES.sessionMissing), { type: MEDIA.idProofs, body: Buffer.alloc((LIMITS.missingIdsMax + 1) * ID_PROOF_BYTES) }, 413, 'BODY_TOO_LARGE'],
    [at(ROUTES.sessionRead), { type: MEDIA.ids, body: Buffer.alloc((LIMITS.readIdsMax + 1) * 32) }, 413, 'BODY_TOO_LARGE'],
    [at(ROUTES.sessionMissing), { type: MEDIA.idProofs, body: small.subarray(1) }, 400, 'REQUEST_MALFORMED'],
    [at(ROUTES.sessionMissing), { type: MEDIA.frames, body: small }, 415, 'MEDIA_TYPE_UNSUPPORTED'],
    [at(ROUTES.sessionChunks), { type: 'application/json', body: small }, 415, 'MEDIA_TYPE_UNSUPPORTED'],
    [at(ROUTES.sessionChunks), { body: small }, 415, 'MEDIA_TYPE_UNSUPPORTED'],
    [at(ROUTES.sessionChunks), { type: MEDIA.frames, body: small, headers: { 'content-encoding': 'gzip' } }, 415, 'MEDIA_TYPE_UNSUPPORTED'],
    [at(ROUTES.sessionCommit), { type: 'text/json', body: Buffer.from('{}') }, 415, 'MEDIA_TYPE_UNSUPPORTED'],
    [at(ROUTES.sessionCommit), { type: 'application/json', body: Buffer.from('{"root":') }, 400, 'REQUEST_MALFORMED'],
    [at(ROUTES.sessionCommit), { type: 'application/json', body: Buffer.from(JSON.stringify({ ...commitOf(Buffer.alloc(32)), root: '../../roost.json' })) }, 400, 'REQUEST_MALFORMED'],
    [at(ROUTES.sessionCommit), { type: 'application/json', body: Buffer.from([0x22, 0xff, 0xfe, 0x22]) }, 400, 'REQUEST_MALFORMED'],
  ] as const
  for (const [path, ask, status, code] of refusals) {
    const refused = await server.ask(path, { bearer, ...ask })
    assert.deepEqual([refused.status, refused.code], [status, code], `${path} ${JSON.stringify(ask).slice(0, 80)}`)
  }
  const unmeasured = server.connect()
  await unmeasured.write(`POST ${at(ROUTES.sessionChunks)} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${bearer}\r\ncontent-type: ${MEDIA.frames}\r\n` +
    'transfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n')
  assert.equal((await unmeasured.reply()).status, 411)
  await assertServesOthers(server)
})

test('requests that smuggle, overflow or break HTTP get a typed answer and lose their connection', async (t) => {
  const { server, token } = await pusher(t)
  const auth = `authorization: Bearer ${token}\r\n`
  const requests: Record<string, string> = {
    'a header of 64 KiB': `GET /v1/repositories HTTP/1.1\r\nhost: x\r\n${auth}x-filler: ${'y'.repeat(64 * 1024)}\r\n\r\n`,
    'ten thousand headers': `GET /v1/repositories HTTP/1.1\r\nhost: x\r\n${auth}${Array.from({ length: 10_000 }, (_, i) => `h${i}: v\r\n`).join('')}\r\n`,
    'a target of 64 KiB': `GET /${'a'.repeat(64 * 1024)} HTTP/1.1\r\nhost: x\r\n\r\n`,
    'two lengths': `POST /v1/repositories HTTP/1.1\r\nhost: x\r\n${auth}content-type: application/json\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}x`,
    'a length and chunks': `POST /v1/repositories HTTP/1.1\r\nhost: x\r\n${auth}content-type: application/json\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`,
    'a negative length': `POST /v1/repositories HTTP/1.1\r\nhost: x\r\n${auth}content-type: application/json\r\ncontent-length: -1\r\n\r\n{}`,
    'a length beyond numbers': `POST /v1/repositories HTTP/1.1\r\nhost: x\r\n${auth}content-type: application/json\r\ncontent-length: 99999999999999999999999\r\n\r\n{}`,
    'a header with a bare line feed': `GET /healthz HTTP/1.1\nhost: x\nbad header\n\n`,
    'binary noise': `\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n`,
  }
  for (const [what, request] of Object.entries(requests)) {
    const connection = server.connect()
    await connection.write(Buffer.from(request, 'latin1'))
    const reply = await connection.reply()
    assert.ok(reply.status >= 400 && reply.status < 500, `${what}: ${reply.status} ${reply.head}`)
    assert.equal((JSON.parse(reply.body) as WireError).code, 'REQUEST_MALFORMED', what)
  }
  await assertServesOthers(server)
})

test('paths that climb, hide or confuse reach no other route, repository or file', async (t) => {
  const server = await realServer(t)
  const { token: bearer } = await server.token({ repository: 'alpha', scopes: ['push', 'read', 'admin'] })
  const paths = [
    '/v1/repositories/alpha/../beta/stats', '/v1/repositories/alpha%2f..%2fbeta/stats', '/v1/repositories/..%2fbeta/stats', '/v1/repositories/beta%00/stats',
    '/v1/repositories/%2e%2e/stats', '/v1/repositories/../../etc/passwd', '//v1/repositories/beta/stats', '/v1//repositories/beta/stats',
    '/v1/repositories/beta/stats/', '/v1/repositories/BETA/stats', '/v1/repositories/alpha;beta/stats', '/v1/repositories/beta/stats?repository=alpha',
    '/v1/repositories/__proto__/stats', '/v1/repositories/constructor/stats', '/v1/repositories/alpha/stats%0d%0ax-injected:1', '/v1/repositories/%ff/stats',
    '/v1/repositories/alpha/snapshots/..%2f..%2froost.json', '/v1/repositories/alpha/snapshots/__proto__', '/v1/repositories/alpha/keys/..%2f..%2froost.json',
    'http://elsewhere/v1/repositories/beta/stats', '/v1/repositories/alpha/sessions/../snapshots', '*',
  ]
  for (const path of paths) for (const method of ['GET', 'DELETE'] as const) {
    const reply = await server.ask(path, { method, bearer })
    assert.ok(reply.status >= 400 && reply.status < 500, `${method} ${path}: ${reply.status}`)
    assert.ok(['ROUTE_UNKNOWN', 'AUTH_FORBIDDEN', 'ID_MALFORMED', 'REQUEST_MALFORMED', 'SNAPSHOT_UNKNOWN', 'KEY_SLOT_UNKNOWN'].includes(reply.code!), `${method} ${path}: ${reply.code}`)
  }
  assert.equal((await server.ask('/v1/repositories/alpha/stats', { method: 'GET', bearer })).status, 200)
  const { token: root } = await server.token({ repository: '*', scopes: ['admin'] })
  for (const name of ['../escape', '..', '.hidden', 'a/b', 'a\0b', '', 'UPPER', 'x'.repeat(65), '-', '__proto__']) {
    const refused = await server.ask(ROUTES.repositories, { bearer: root, type: 'application/json', body: Buffer.from(JSON.stringify({ name })) })
    assert.deepEqual([refused.status, refused.code], [400, 'REQUEST_MALFORMED'], name)
  }
  assert.deepEqual(server.host.list().map(({ name }) => name).sort(), ['alpha', 'beta'])
})

// ---- tokens

test('wrong, missing, revoked, foreign and limited tokens get exactly what they give', async (t) => {
  const { server, client, push, token: owner } = await pusher(t)
  const root = push.put(directoryOf(push.put(Buffer.from('x'), CHUNK_KINDS.data)), CHUNK_KINDS.node)
  const snapshot = await push.commit(root)
  const session = (await PushSession.open(client)).session
  const reading = (await readSession(client, snapshot.id)).session
  const chunks = (id: string): string => routePath(ROUTES.sessionChunks, { repository: 'alpha', session: id })
  const frame = frameOf(push.dedupKey, Buffer.from('y'))
  const codeOf = async (bearer: string | undefined, path: string, method = 'POST', body: Buffer | object | undefined = undefined, type = 'application/json') =>
    (await server.ask(path, { method, ...(bearer === undefined ? {} : { bearer }), ...(body === undefined ? {} : { type, body: Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body)) }) })).code
  const open = (bearer: string, request: object, repository = 'alpha') => codeOf(bearer, routePath(ROUTES.sessions, { repository }), 'POST', request)
  const pushRequest = { kind: 'push', source: 's', mode: 'files', parent: null }

  const halfSecret = `${owner.slice(0, -1)}${owner.endsWith('0') ? '1' : '0'}`
  for (const wrong of [undefined, '', 'x', halfSecret, owner.toUpperCase(), `${owner}0`, owner.slice(0, -1), `${owner}\t${owner}`])
    assert.equal(await codeOf(wrong, chunks(session), 'POST', frame, MEDIA.frames), 'AUTH_REQUIRED', String(wrong).slice(0, 12))

  const revoked = await server.token({ repository: 'alpha', scopes: ['push'] })
  assert.equal(await open(revoked.token, pushRequest), undefined)
  const left = parseSessionId((await server.client(revoked.token).openSession({ kind: 'push', source: 's', mode: 'files', parent: null })).sessionId)
  await server.tokens.revoke(revoked.tokenId)
  assert.equal(await codeOf(revoked.token, chunks(left), 'POST', frame, MEDIA.frames), 'AUTH_REQUIRED', 'its open session ends with it')

  const beta = (await server.token({ repository: 'beta', scopes: ['push', 'read', 'delete', 'admin'] })).token
  for (const id of [session, reading]) assert.equal(await codeOf(beta, chunks(id), 'POST', frame, MEDIA.frames), 'AUTH_FORBIDDEN')
  assert.equal(await open(beta, pushRequest), 'AUTH_FORBIDDEN')
  assert.equal(await codeOf(beta, routePath(ROUTES.sessionChunks, { repository: 'beta', session }), 'POST', frame, MEDIA.frames), 'SESSION_LOST', 'sessions are of one repository')
  assert.equal(await open(beta, { kind: 'read', snapshot: snapshot.id }, 'beta'), 'SNAPSHOT_UNKNOWN')

  const pushOnly = (await server.token({ repository: 'alpha', scopes: ['push'] })).token
  assert.equal(await open(pushOnly, { kind: 'read', snapshot: snapshot.id }), 'AUTH_FORBIDDEN')
  assert.equal(await codeOf(pushOnly, routePath(ROUTES.snapshot, { repository: 'alpha', snapshot: snapshot.id }), 'DELETE'), 'AUTH_FORBIDDEN')
  assert.equal(await codeOf(pushOnly, chunks(session), 'POST', frame, MEDIA.frames), 'AUTH_FORBIDDEN', "another token's session")
  assert.equal(await codeOf(owner, chunks(reading), 'POST', frame, MEDIA.frames), 'AUTH_FORBIDDEN', 'a read session takes nothing')

  const limited = (await server.token({ repository: 'alpha', scopes: ['push', 'read'], source: 'mine' })).token
  assert.equal(await open(limited, pushRequest), 'AUTH_FORBIDDEN')
  assert.equal(await open(limited, { kind: 'read', snapshot: snapshot.id }), 'AUTH_FORBIDDEN')
  assert.equal(await open(limited, { ...pushRequest, source: 'mine', parent: snapshot.id }), 'AUTH_FORBIDDEN')
  const own = await PushSession.open(server.client(limited), 'mine')
  assert.deepEqual(await readStatuses(own.client, own.session, [root]), ['not-readable'])
  await assert.rejects(own.commit(root), { code: 'COMMIT_INCOMPLETE' })
  await assertServesOthers(server)
})

// ---- reads

test('one chunk asked for again and again gathers no more memory than one large chunk', async (t) => {
  const { server, client, push } = await pusher(t)
  const small = push.put(noise(60_000, 3), CHUNK_KINDS.data), large = push.put(noise(LIMITS.chunkBytesMax, 3), CHUNK_KINDS.data)
  const snapshot = await push.commit(push.put(directoryOf(small, large), CHUNK_KINDS.node))
  const { session } = await readSession(client, snapshot.id)
  await readStatuses(client, session, [rootOf(snapshot)])
  const repository = server.host.get('alpha')
  for (const [id, times, rawBytes] of [[small, 400, 60_000], [large, 40, LIMITS.chunkBytesMax]] as const) {
    let largest = 0, total = 0
    for await (const part of repository.readChunks(session, Buffer.concat(Array<Buffer>(times).fill(id)), new AbortController().signal)) {
      largest = Math.max(largest, part.byteLength)
      total += part.byteLength
    }
    assert.equal(total, times * (rawBytes + READ_FRAME_HEADER_BYTES) + READ_FRAME_HEADER_BYTES, 'all of it came')
    assert.ok(largest <= LIMITS.chunkBytesMax + 100 * READ_FRAME_HEADER_BYTES, `${largest} bytes were gathered at once`)
  }
  assert.deepEqual(await readStatuses(client, session, [large, small, large]), ['ok', 'ok', 'ok'])
})

/** The same compressed data without the size of its content in the header: decoders must guess. */
function withoutContentSize(frame: Buffer): Buffer {
  const descriptor = frame[4]!
  const flag = descriptor >> 6, isSingle = (descriptor & 0x20) !== 0
  const sizeBytes = [isSingle ? 1 : 0, 2, 4, 8][flag]!
  const window = isSingle ? Buffer.from([0x80]) : frame.subarray(5, 6) // 64 MiB
  return Buffer.concat([frame.subarray(0, 4), Buffer.from([descriptor & 0x1f]), window, frame.subarray(5 + (isSingle ? 0 : 1) + sizeBytes)])
}
