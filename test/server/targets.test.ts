/** Bug class: administration of targets that reaches the wrong repository, drops a field, or tells strangers where the bytes are. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { RoostError } from '../../src/core/errors.js'
import { serverUnderTest } from '../support/server-under-test.js'

test('every call on targets reaches the repository with what was asked', async (t) => {
  const server = await serverUnderTest(t)
  const { bearer } = await server.token({ repository: '*', scopes: ['admin'] })
  const call = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, payload?: object) =>
    server.app.inject({ method, url: `/v1/repositories/alpha${path}`, headers: { authorization: bearer }, ...(payload === undefined ? {} : { payload }) })
  const added = await call('POST', '/targets', { name: 'second', url: 'swift:c?cloud=x', uploadBytesPerSecondMax: 5 })
  assert.deepEqual([added.statusCode, added.json<{ name: string }>().name], [201, 'second'])
  assert.equal((await call('GET', '/targets')).json<{ targets: unknown[] }>().targets.length, 1)
  await call('PATCH', '/targets/second', { mode: 'disabled', position: 0 })
  assert.equal((await call('POST', '/targets/second/backfill')).body.trim().split('\n').length, 1)
  await call('POST', '/targets/second/drain')
  assert.equal((await call('DELETE', '/targets/second')).statusCode, 204)
  await call('PATCH', '', { writePolicy: 2, durability: 'spool' })
  const asked = server.host.get('alpha').calls.filter(({ method }) => method !== 'info').map(({ method, args }) => [method, ...args])
  assert.deepEqual(asked, [['addTarget', { name: 'second', url: 'swift:c?cloud=x', uploadBytesPerSecondMax: 5 }], ['listTargets'],
    ['changeTarget', 'second', { mode: 'disabled', position: 0 }], ['backfillTarget', 'second'], ['drainTarget', 'second'], ['removeTarget', 'second'],
    ['change', { writePolicy: 2, durability: 'spool' }]])
})

test('malformed targets and settings are refused before the repository hears of them', async (t) => {
  const server = await serverUnderTest(t)
  const { bearer } = await server.token({ repository: '*', scopes: ['admin'] })
  for (const [method, path, payload] of [['POST', '/targets', { name: 'UPPER', url: 'file:/x' }], ['POST', '/targets', { name: 'a' }], ['PATCH', '', { writePolicy: 0 }],
    ['PATCH', '', { writePolicy: 'some' }], ['PATCH', '', { durability: 'never' }], ['PATCH', '/targets/a', { mode: 'draining' }]] as const) {
    const reply = await server.app.inject({ method, url: `/v1/repositories/alpha${path}`, headers: { authorization: bearer }, payload })
    assert.equal(reply.statusCode, 400, JSON.stringify(payload))
  }
  assert.deepEqual(server.host.get('alpha').calls, [])
})

test('a target\'s own words go to administrators, and to nobody else', async (t) => {
  const server = await serverUnderTest(t)
  const ask = async (scope: 'admin' | 'push'): Promise<string> => {
    const { bearer } = await server.token({ repository: 'alpha', scopes: [scope, 'push'] })
    server.host.get('alpha').failNext('openSession', new RoostError('STORE_UNAVAILABLE', 'Swift at http://10.0.0.1 refuses connections.'))
    const reply = await server.app.inject({ method: 'POST', url: '/v1/repositories/alpha/sessions', headers: { authorization: bearer },
      payload: { kind: 'push', source: 'web', mode: 'files', parent: null } })
    return reply.json<{ message: string }>().message
  }
  assert.match(await ask('admin'), /10\.0\.0\.1 refuses connections/)
  assert.doesNotMatch(await ask('push'), /10\.0\.0\.1/)
})
