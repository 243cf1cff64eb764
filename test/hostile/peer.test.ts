/** Peers that attack: a real server is given malformed groups, bombs, other people's sessions and ids, and answers with typed errors; nothing stays. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { encodeGroup, GROUP_CODECS } from '../../src/core/chunk-groups.js'
import { LIMITS } from '../../src/core/limits.js'
import type { TokenScope, WireError } from '../../src/core/messages.js'
import type { PeerSessionReply } from '../../src/core/peer-messages.js'
import { isProvenPeer } from '../../src/core/peer-proof.js'
import { zstdEncoder } from '../../src/core/zstd.js'
import { MEDIA, ROUTES, routePath } from '../../src/protocol/routes.js'
import { realServer } from '../support/real-server.js'

const CHALLENGE = 'ab'.repeat(32)
test('malformed groups, bombs, foreign sessions and forged snapshots', async (t) => {
  const server = await realServer(t)
  const mint = async (scopes: readonly TokenScope[], source?: string): Promise<string> =>
    (await server.tokens.create({ label: 'peer', grants: [{ repository: 'alpha', scopes, ...(source === undefined ? {} : { source }) }] })).token
  const token = await mint(['replicate']), other = await mint(['replicate'])
  const call = async (path: string, body: unknown, media = 'application/json', as = token): Promise<{ status: number; code: string | undefined; body: Buffer }> => {
    const reply = await fetch(`http://127.0.0.1:${server.port}${path}`, { method: 'POST', headers: { authorization: `Bearer ${as}`, 'content-type': media },
      body: Buffer.isBuffer(body) ? new Uint8Array(body) : JSON.stringify(body) })
    const bytes = Buffer.from(await reply.arrayBuffer())
    return { status: reply.status, code: reply.status >= 400 ? (JSON.parse(bytes.toString()) as WireError).code : undefined, body: bytes }
  }
  const path = (pattern: string, session = ''): string => routePath(pattern, { repository: 'alpha', session })
  const receive = { kind: 'receive', source: 's', bases: [], challenge: CHALLENGE }

  // Who may open a session of a peer: nobody else, and not with a part of the repository.
  for (const scopes of [['push', 'read', 'delete', 'admin'] as const]) assert.equal((await call(path(ROUTES.peerSessions), receive, undefined, await mint(scopes))).code, 'AUTH_FORBIDDEN')
  assert.equal((await call(path(ROUTES.peerSessions), receive, undefined, await mint(['replicate'], 's'))).code, 'AUTH_FORBIDDEN')
  const opened = await call(path(ROUTES.peerSessions), receive)
  assert.equal(opened.status, 201)
  const reply = JSON.parse(opened.body.toString()) as PeerSessionReply
  assert.ok(isProvenPeer(CHALLENGE, reply, server.host.get('alpha').info().verifyKey))
  assert.ok(!isProvenPeer('cd'.repeat(32), reply, server.host.get('alpha').info().verifyKey), 'a proof is for one challenge')
  assert.ok(!isProvenPeer(CHALLENGE, { ...reply, sessionId: '00'.repeat(16) }, server.host.get('alpha').info().verifyKey))
  assert.equal('dedupKey' in reply, false, 'no key of the family is told')
  const { sessionId } = reply
  assert.equal((await call(path(ROUTES.peerHold, sessionId), Buffer.alloc(32), MEDIA.ids, other)).code, 'AUTH_FORBIDDEN')
  assert.equal((await call(path(ROUTES.peerFetch, sessionId), Buffer.alloc(32), MEDIA.ids)).code, 'AUTH_FORBIDDEN', 'it receives')

  // Groups.
  const put = (body: Buffer) => call(path(ROUTES.peerGroups, sessionId), body, MEDIA.groups)
  const group = (rawBytes: number, payload: Buffer, codec: 0 | 1 = GROUP_CODECS.raw): Buffer =>
    Buffer.concat(encodeGroup({ kind: 1, codec, ids: Buffer.alloc(32, 7), rawBytes: Uint32Array.of(rawBytes), payload }))
  for (const body of [Buffer.alloc(5), Buffer.alloc(4096, 0xff), group(10, Buffer.alloc(9)), group(10, Buffer.alloc(10)).subarray(0, 30)])
    assert.equal((await put(body)).code, 'FRAME_MALFORMED')
  assert.deepEqual([...(await put(group(10, Buffer.alloc(10)))).body], [2], 'bytes that are not of the id')
  assert.deepEqual([...(await put(group(10, Buffer.from('no zstd at all'), GROUP_CODECS.zstd))).body], [2])
  const bomb = Buffer.from(zstdEncoder(1).encode(Buffer.alloc(LIMITS.chunkBytesMax)))
  const bombs = await Promise.all(Array.from({ length: 12 }, () => put(Buffer.concat([group(LIMITS.chunkBytesMax, bomb, 1), group(LIMITS.chunkBytesMax, bomb, 1)]))))
  for (const answer of bombs) assert.ok(answer.status === 200 || answer.code === 'TOO_MANY_REQUESTS', answer.code)
  assert.equal((await put(Buffer.concat(Array.from({ length: 3 }, () => group(LIMITS.chunkBytesMax, bomb, 1))))).code, 'LIMIT_EXCEEDED')
  assert.equal((await server.host.get('alpha').stats()).chunks, 0)

  // What nobody signed, and what only a push may do.
  const snapshot = { id: 'ab'.repeat(32), record: Buffer.from('{}').toString('base64'), signature: Buffer.alloc(64).toString('base64'), signer: 'cd'.repeat(32) }
  assert.equal((await call(path(ROUTES.peerReceive, sessionId), snapshot)).code, 'SNAPSHOT_CORRUPT')
  assert.equal((await call(path(ROUTES.peerReceive, sessionId), { ...snapshot, signer: 'no' })).code, 'REQUEST_MALFORMED')
  assert.equal((await call(path(ROUTES.peerSessions), { ...receive, signer: { repositoryId: '00'.repeat(16), verifyKey: 'cd'.repeat(32) } })).code, 'SIGNER_UNKNOWN')
  assert.equal((await call(path(ROUTES.peerSessions), { ...receive, bases: Array.from({ length: 17 }, () => 'ab'.repeat(32)) })).code, 'REQUEST_MALFORMED')
  assert.equal((await call(path(ROUTES.peerFamily), { publicKey: 'short' })).code, 'REQUEST_MALFORMED')
  assert.equal((await call(path(ROUTES.peerHold, sessionId), Buffer.alloc(31), MEDIA.ids)).code, 'REQUEST_MALFORMED')
  // Alive and well.
  assert.deepEqual([...(await call(path(ROUTES.peerHold, sessionId), Buffer.alloc(64), MEDIA.ids)).body], [3])
})
