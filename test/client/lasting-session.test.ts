/** A read session that outlives the server's: what is shown to the next one, in which order, and that reading again and again costs no memory. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LastingSession } from '../../client/lasting-session.js'
import type { ReadingClient } from '../../client/repository-client.js'
import { CHUNK_ID_BYTES } from '../../src/core/ids.js'
import type { OpenSessionReply } from '../../src/core/messages.js'
import { fakeId } from '../support/entries.js'

const sessionName = (i: number): string => i.toString(16).padStart(32, '0')

test('each node is shown to the next session once, parents first, however often it was read', async () => {
  let opened = 1
  const shown: { readonly session: string; readonly ids: string[] }[] = []
  const client = {
    openSession: async () => ({ sessionId: sessionName(++opened) }),
    readChunks: async function* (session: string, ids: Buffer) {
      const names: string[] = []
      for (let at = 0; at < ids.byteLength; at += CHUNK_ID_BYTES) names.push(ids.toString('hex', at, at + CHUNK_ID_BYTES))
      shown.push({ session, ids: names })
    },
  } as unknown as ReadingClient
  const session = new LastingSession(client, 'snapshot', { sessionId: sessionName(1), dedupKey: '00'.repeat(32) } as unknown as OpenSessionReply, {})
  const [root, left, right, late] = [fakeId(1), fakeId(2), fakeId(3), fakeId(4)]
  const [first, second] = [{}, {}]
  session.noteServed(first, root, session.sessionId)
  session.noteServed(second, left, session.sessionId)
  session.noteServed(second, right, session.sessionId)
  for (let i = 0; i < 1_000; i++) session.noteServed({}, i % 2 === 0 ? left : root, session.sessionId)
  const lost = session.sessionId
  await Promise.all([session.reopen(lost), session.reopen(lost)])
  assert.equal(session.sessionId, sessionName(2))
  const names = (...ids: readonly Buffer[]): string[] => ids.map((id) => id.toString('hex'))
  assert.deepEqual(shown, [{ session: sessionName(2), ids: names(root) }, { session: sessionName(2), ids: names(left, right) }])

  session.noteServed({}, late, lost)
  session.noteServed({}, left, lost)
  await session.ready()
  assert.deepEqual(shown.slice(2), [{ session: sessionName(2), ids: names(late) }], 'what the old one still delivered is shown before the next request')
  await session.reopen(lost)
  assert.equal(opened, 2, 'a session that was replaced already is not replaced again')
})
