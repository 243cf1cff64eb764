/** Bug class: one client (or one stolen token) that opens sessions without end and so keeps all others out. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LIMITS } from '../../src/core/limits.js'
import { buildWorld } from '../support/repository-world.js'

test('a token has its share of the sessions, and leaves the rest to others', async (t) => {
  const world = await buildWorld(t)
  await world.create()
  const repository = await world.open(true)
  const open = async (tokenId: string): Promise<unknown> => await repository.openSession({ kind: 'push', source: 's', mode: 'files', parent: null }, { tokenId })
  for (let i = 0; i < LIMITS.sessionsOfTokenMax; i++) await open('greedy')
  await assert.rejects(open('greedy'), { code: 'TOO_MANY_REQUESTS' })
  await open('other')
  await repository.close()
})
