import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ROUTES } from '../../src/protocol/routes.js'
import { ENDPOINTS } from '../../src/server/endpoints.js'
import { describeApi, openApiPath } from '../../src/server/openapi.js'
import { serverUnderTest } from '../support/server-under-test.js'

test('the description and the application have the same routes', async (t) => {
  const { app } = await serverUnderTest(t)
  const served: string[] = []
  app.addHook('onRoute', ({ method, url }) => { served.push(...[method].flat().map((one) => `${one} ${openApiPath(url)}`)) })
  await app.ready()
  const reply = await app.inject({ url: ROUTES.openapi })
  const { paths } = reply.json<ReturnType<typeof describeApi>>()
  const described = Object.entries(paths).flatMap(([path, methods]) => Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`))
  assert.ok(served.length > 20, 'the probe itself works')
  assert.deepEqual(served.sort(), described.sort())
})

test('every path of the protocol is served by some endpoint', () => {
  const served = new Set<string>(Object.values(ENDPOINTS).map(({ path }) => path))
  assert.deepEqual(Object.values(ROUTES).filter((path) => !served.has(path)), [])
})
