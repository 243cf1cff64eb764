/** Bug class: an answer that was lost on the way makes a client do everything again, or a quiet client lose its session. Against a real repository. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { CHUNK_KINDS } from '../../src/core/ids.js'
import { encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import type { TokenScope } from '../../src/core/messages.js'
import { commitOf, PushSession, realServer, type RealServer } from '../support/real-server.js'

async function committed(t: TestContext): Promise<{ server: RealServer; push: PushSession; root: Buffer; snapshot: string; tokenOf: (scopes: TokenScope[], source?: string) => Promise<string> }> {
  const server = await realServer(t)
  const tokenOf = async (scopes: TokenScope[], source?: string): Promise<string> =>
    (await server.token({ repository: 'alpha', scopes, ...(source === undefined ? {} : { source }) })).token
  const push = await PushSession.open(server.client(await tokenOf(['push'], 'web')), 'web')
  const root = push.put(encodeNode(NODE_TYPES.directory, [], Buffer.from('empty')), CHUNK_KINDS.node)
  const { id } = await push.commit(root)
  return { server, push, root, snapshot: id, tokenOf }
}

test('a commit whose answer was lost is answered again with the same snapshot', async (t) => {
  const { server, push, root, snapshot, tokenOf } = await committed(t)
  const again = await push.client.commit(push.session, commitOf(root))
  assert.deepEqual([again.snapshot.id, again.alreadyCommitted], [snapshot, true])
  await assert.rejects(push.client.commit(push.session, commitOf(Buffer.alloc(32, 7))), { code: 'COMMIT_CONFLICT' })
  for (const token of [await tokenOf(['push'], 'other'), await tokenOf(['read'])])
    await assert.rejects(server.client(token).commit(push.session, commitOf(root)), { code: 'AUTH_FORBIDDEN' })
  assert.equal((await server.client(await tokenOf(['read'])).listSnapshots({})).snapshots.length, 1)
})

test('a commit sent twice at once makes one snapshot', async (t) => {
  const { server, tokenOf } = await committed(t)
  const push = await PushSession.open(server.client(await tokenOf(['push'])), 'twice')
  const root = push.put(encodeNode(NODE_TYPES.directory, [], Buffer.from('twice')), CHUNK_KINDS.node)
  await push.flush()
  const [one, two] = await Promise.all([push.client.commit(push.session, commitOf(root)), push.client.commit(push.session, commitOf(root))])
  assert.equal(one.snapshot.id, two.snapshot.id)
  assert.deepEqual([one.alreadyCommitted, two.alreadyCommitted].sort(), [false, true])
})

test('a client that has nothing to ask keeps its session by asking for nothing', async (t) => {
  const { server, tokenOf } = await committed(t)
  const push = await PushSession.open(server.client(await tokenOf(['push'])), 'quiet')
  assert.equal((await push.client.findMissing(push.session, Buffer.alloc(0))).byteLength, 0)
})
