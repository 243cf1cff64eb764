/** Who may do what, over every endpoint. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ERROR_CATALOGUE } from '../../src/core/errors.js'
import type { TokenGrant, WireError } from '../../src/core/messages.js'
import { MEDIA, ROUTES, routePath } from '../../src/protocol/routes.js'
import { ENDPOINTS, type Endpoint, type EndpointName } from '../../src/server/endpoints.js'
import { parseJobFile } from '../../src/server/jobs/job-file.js'
import { serverUnderTest, type ServerUnderTest } from '../support/server-under-test.js'

const HEX64 = 'ab'.repeat(32)
const STATISTICS = { files: 1, directories: 1, others: 0, sourceBytes: 1, bytesRead: 1, chunksTotal: 1, chunksSent: 1, bytesSent: 1, bytesOnWire: 1, errors: 0, durationMs: 1.5, cpuMs: 0.5 }
const BODIES: Partial<Record<EndpointName, unknown>> = {
  createRepository: { name: 'gamma' },
  attachRepository: { name: 'alpha', target: 'file:/x' },
  createToken: { label: 'l', grants: [{ repository: 'alpha', scopes: ['push'] }] },
  openSession: { kind: 'push', source: 'web', mode: 'files', parent: null },
  commit: { root: HEX64, host: 'h', user: '', paths: ['/'], tags: [], startedAtMs: 1, statistics: STATISTICS, description: { any: { thing: 1 } } },
  addKeySlot: { kind: 'passphrase', label: 'l', passphrase: 'p' },
  changeRepository: { durability: 'spool' },
  addTarget: { name: 'second', url: 'file:/second' },
  changeTarget: { mode: 'active' },
  check: { readDataPercent: 10 },
  gc: { dryRun: true, repackBelow: 0.5 },
  setPolicy: { policy: { daily: 7, within: '1m', tags: [['a']], timeZone: 'Europe/Berlin' } },
  lockSnapshot: { forMs: 1000 },
  forget: { dryRun: true },
  stateFamily: { publicKey: HEX64 },
  openPeerSession: { kind: 'send', snapshot: HEX64, challenge: HEX64 },
  receiveSnapshot: { id: HEX64, record: 'e30=', signature: 'c2ln' },
  trustOrigin: { repositoryId: '0'.repeat(32), verifyKey: HEX64 },
  setReplication: { direction: 'pull', peer: 'http://127.0.0.1:1/other', verifyKey: HEX64, selection: {}, mirror: false, bytesPerSecondMax: 0, allowPlainHttp: false, token: 't' },
}

interface Target { readonly repository?: string; readonly session?: string; readonly snapshot?: string }
/** A well-formed request to an endpoint; answers its status and, of an error, the code. */
async function call(server: ServerUnderTest, name: EndpointName, bearer: string | undefined, target: Target = {}) {
  const endpoint: Endpoint = ENDPOINTS[name]
  const params = { repository: 'alpha', session: '0'.repeat(32), snapshot: HEX64, token: '0'.repeat(16), slot: 'slot-1', target: 'main', job: 'nightly', replication: 'away', ...target }
  const body = endpoint.octets === undefined ? BODIES[name] : Buffer.alloc(endpoint.octets.unitBytes, 1)
  const reply = await server.app.inject({
    method: endpoint.method, url: routePath(endpoint.path, params),
    headers: {
      ...(bearer === undefined ? {} : { authorization: bearer }),
      ...(body === undefined ? {} : { 'content-type': endpoint.octets?.media ?? 'application/json' }),
    },
    ...(body === undefined ? {} : { payload: Buffer.isBuffer(body) ? body : JSON.stringify(body) }),
  })
  const code = reply.statusCode >= 400 ? reply.json<WireError>().code : undefined
  return { status: reply.statusCode, code, reply }
}

const NAMES = Object.keys(ENDPOINTS) as EndpointName[]
const PROTECTED = NAMES.filter((name) => ENDPOINTS[name].access !== 'public')

test('without a valid token nothing but health and the description answers', async (t) => {
  for (const bearer of [undefined, 'Bearer roost_x', 'Basic abc', `Bearer roost_${'0'.repeat(16)}_${'0'.repeat(64)}`]) {
    for (let at = 0; at < PROTECTED.length; at += 20) {
      const server = await serverUnderTest(t) // a fresh one now and then: it slows down whoever fails too often
      for (const name of PROTECTED.slice(at, at + 20)) {
        const { status, code } = await call(server, name, bearer)
        assert.deepEqual([status, code], [401, 'AUTH_REQUIRED'], name)
      }
    }
  }
})

test('a token of another repository gets AUTH_FORBIDDEN everywhere, whether the repository exists or not', async (t) => {
  const server = await serverUnderTest(t)
  const { bearer } = await server.token({ repository: 'beta', scopes: ['push', 'read', 'delete', 'admin'] })
  for (const name of PROTECTED.filter((one) => one !== 'listRepositories')) {
    for (const repository of ['alpha', 'no-such']) {
      const { code } = await call(server, name, bearer, { repository })
      assert.equal(code, 'AUTH_FORBIDDEN', `${name} ${repository}`)
    }
  }
  assert.equal(server.host.get('alpha').calls.length, 0)
  const listed = await call(server, 'listRepositories', bearer)
  assert.deepEqual(listed.reply.json<{ name: string }[]>().map(({ name }) => name), ['beta'])
})

/** Endpoints that each scope alone opens, sessions and single snapshots aside. */
const OPENED: Record<TokenGrant['scopes'][number], readonly EndpointName[]> = {
  push: ['getRepository', 'openSession', 'listSnapshots'],
  read: ['getRepository', 'listSnapshots'],
  delete: ['getRepository', 'forget'],
  admin: ['getRepository', 'getRetention', 'setPolicy', 'forget', 'unprotectSnapshot', 'lockSnapshot', 'changeRepository', 'listTargets', 'changeTarget', 'removeTarget', 'backfillTarget', 'drainTarget', 'stats', 'gc', 'check', 'rebuild', 'listKeySlots', 'addKeySlot', 'removeKeySlot', 'rotateKeyfile',
    'listJobs', 'runJob', 'listOrigins', 'trustOrigin', 'listReplications'],
  replicate: ['getRepository', 'stateFamily', 'outlineSnapshots', 'openPeerSession', 'receiveSnapshot'],
}
const BOUND_TO_THINGS: readonly EndpointName[] =
  ['closeSession', 'findMissing', 'putChunks', 'readChunks', 'commit', 'getSnapshot', 'deleteSnapshot', 'protectSnapshot', 'listRepositories',
    'getJob', 'cancelJob', 'watchJob', 'fetchGroups', 'holdChunks', 'inheritChildren', 'putGroups', 'removeReplication', 'runReplication']

test('each scope opens its endpoints and no other', async (t) => {
  for (const [scope, opened] of Object.entries(OPENED)) {
    const server = await serverUnderTest(t, { definitions: parseJobFile('jobs: [{ name: nightly, kind: check, cron: "0 3 * * *" }]', 'jobs.yaml', 0) })
    const { bearer } = await server.token({ repository: 'alpha', scopes: [scope as 'push'] })
    for (const name of PROTECTED.filter((one) => !BOUND_TO_THINGS.includes(one))) {
      const { status, code } = await call(server, name, bearer)
      if (opened.includes(name)) assert.equal(status, ENDPOINTS[name].status, `${scope} ${name} ${code}`)
      else assert.equal(code, 'AUTH_FORBIDDEN', `${scope} ${name}`)
    }
  }
})

test('an administrator of the server creates repositories and tokens; of one repository, neither', async (t) => {
  const server = await serverUnderTest(t)
  const root = await server.token({ repository: '*', scopes: ['admin'] })
  assert.equal((await call(server, 'createRepository', root.bearer)).status, 201)
  assert.equal((await call(server, 'createRepository', root.bearer)).code, 'REPOSITORY_EXISTS')
  const made = await call(server, 'createToken', root.bearer)
  assert.equal(made.status, 201)
  const { token, tokenId } = made.reply.json<{ token: string; tokenId: string }>()
  assert.equal((await call(server, 'openSession', `Bearer ${token}`)).status, 201)
  const revoked = await server.app.inject({ method: 'DELETE', url: routePath(ROUTES.token, { token: tokenId }), headers: { authorization: root.bearer } })
  assert.equal(revoked.statusCode, 204)
  assert.equal((await call(server, 'openSession', `Bearer ${token}`)).code, 'AUTH_REQUIRED')
  assert.equal((await call(server, 'revokeToken', root.bearer)).code, 'TOKEN_UNKNOWN')
})

test('where a repository lies is told to its administrators only', async (t) => {
  const server = await serverUnderTest(t)
  const pusher = await server.token({ repository: 'alpha', scopes: ['push'] })
  const owner = await server.token({ repository: 'alpha', scopes: ['admin'] })
  const targets = async (bearer: string) => (await call(server, 'getRepository', bearer)).reply.json<{ targets: string[] }>().targets
  assert.deepEqual(await targets(pusher.bearer), [])
  assert.deepEqual(await targets(owner.bearer), ['file:/secret/place'])
})

test('a session answers only to the token that opened it, and a reading one takes nothing', async (t) => {
  const server = await serverUnderTest(t)
  const owner = await server.token({ repository: 'alpha', scopes: ['push', 'read'] })
  const other = await server.token({ repository: '*', scopes: ['push', 'read', 'delete', 'admin'] })
  const repository = server.host.get('alpha')
  const session = repository.addSession({ tokenId: owner.tokenId })
  const reading = repository.addSession({ tokenId: owner.tokenId, kind: 'read' })
  const bound = ['findMissing', 'putChunks', 'readChunks', 'commit', 'closeSession'] as const
  for (const name of bound) assert.equal((await call(server, name, other.bearer, { session })).code, 'AUTH_FORBIDDEN', name)
  for (const name of ['findMissing', 'putChunks', 'commit'] as const)
    assert.equal((await call(server, name, owner.bearer, { session: reading })).code, 'AUTH_FORBIDDEN', name)
  assert.equal(repository.calls.length, 0)
  for (const name of bound) assert.equal((await call(server, name, owner.bearer, { session })).status, ENDPOINTS[name].status, name)
  assert.equal((await call(server, 'findMissing', owner.bearer, { session })).code, 'SESSION_LOST', 'it was closed')
  assert.equal((await call(server, 'findMissing', owner.bearer, { session: 'x' })).code, 'ID_MALFORMED')
})

test('a token limited to one source pushes, reads, sees and deletes that source only', async (t) => {
  const server = await serverUnderTest(t)
  const { bearer, tokenId } = await server.token({ repository: 'alpha', scopes: ['push', 'read', 'delete'], source: 'web' })
  const repository = server.host.get('alpha')
  const own = repository.addSnapshot('web'), foreign = repository.addSnapshot('db')
  const open = async (payload: object) => {
    const reply = await server.app.inject({ method: 'POST', url: '/v1/repositories/alpha/sessions', headers: { authorization: bearer }, payload })
    return reply.statusCode === 201 ? 'opened' : reply.json<WireError>().code
  }
  const push = { kind: 'push', source: 'web', mode: 'files', parent: null }
  assert.equal(await open(push), 'opened')
  assert.equal(await open({ ...push, source: 'db' }), 'AUTH_FORBIDDEN')
  assert.equal(await open({ ...push, parent: own.id }), 'opened')
  assert.equal(await open({ ...push, parent: foreign.id }), 'AUTH_FORBIDDEN')
  assert.equal(await open({ kind: 'read', snapshot: own.id }), 'opened')
  assert.equal(await open({ kind: 'read', snapshot: foreign.id }), 'AUTH_FORBIDDEN')
  assert.equal(await open({ kind: 'read', snapshot: HEX64 }), 'SNAPSHOT_UNKNOWN')
  assert.ok(repository.callsOf('openSession').every(([, caller]) => assert.deepEqual(caller, { tokenId, sourceLimit: 'web' }) === undefined))

  await call(server, 'listSnapshots', bearer)
  assert.deepEqual(repository.callsOf('listSnapshots').at(-1), [{ limit: 100, source: 'web' }])
  const asked = await server.app.inject({ url: '/v1/repositories/alpha/snapshots?source=db', headers: { authorization: bearer } })
  assert.equal(asked.statusCode, 403)
  for (const name of ['getSnapshot', 'deleteSnapshot'] as const) {
    assert.equal((await call(server, name, bearer, { snapshot: foreign.id })).code, 'AUTH_FORBIDDEN', name)
    assert.equal((await call(server, name, bearer, { snapshot: own.id })).status, ENDPOINTS[name].status, name)
  }
  assert.deepEqual(repository.callsOf('deleteSnapshot'), [[own.id]])
})

test('a token limited to one source applies policies to that source only, protects there, and unprotects and locks nowhere', async (t) => {
  const server = await serverUnderTest(t)
  const { bearer } = await server.token({ repository: 'alpha', scopes: ['delete'], source: 'web' })
  const repository = server.host.get('alpha')
  const own = repository.addSnapshot('web').id, foreign = repository.addSnapshot('db').id
  const forget = async (payload: object) => {
    const reply = await server.app.inject({ method: 'POST', url: '/v1/repositories/alpha/forget', headers: { authorization: bearer }, payload })
    return reply.statusCode === 200 ? 'done' : reply.json<WireError>().code
  }
  assert.equal(await forget({}), 'AUTH_FORBIDDEN', 'all sources')
  assert.equal(await forget({ source: 'db' }), 'AUTH_FORBIDDEN')
  assert.equal(await forget({ source: 'web', policy: { last: 1 } }), 'done')
  assert.deepEqual(repository.callsOf('forget'), [[{ source: 'web', policy: { last: 1 } }]])
  assert.equal((await call(server, 'protectSnapshot', bearer, { snapshot: foreign })).code, 'AUTH_FORBIDDEN')
  assert.equal((await call(server, 'protectSnapshot', bearer, { snapshot: own })).status, 204)
  assert.deepEqual(repository.callsOf('protectSnapshot'), [[own, true]])
  for (const name of ['unprotectSnapshot', 'lockSnapshot', 'setPolicy', 'getRetention'] as const)
    assert.equal((await call(server, name, bearer, { snapshot: own })).code, 'AUTH_FORBIDDEN', name)
})

test('a policy that is none, is beyond reason or names what is no rule is refused before the repository hears of it', async (t) => {
  const server = await serverUnderTest(t)
  const { bearer } = await server.token({ repository: 'alpha', scopes: ['admin'] })
  for (const policy of [{ last: -2 }, { last: 1.5 }, { within: '3 days' }, { within: '' }, { within: '1h1d' }, { tags: [[]] }, { minutely: 3 }, { timeZone: 'a b' }, []]) {
    const reply = await server.app.inject({ method: 'POST', url: '/v1/repositories/alpha/forget', headers: { authorization: bearer }, payload: { policy } })
    assert.equal(reply.json<WireError>().code, 'REQUEST_MALFORMED', JSON.stringify(policy))
  }
  assert.deepEqual(server.host.get('alpha').calls, [])
})

test('a token that only pushes cannot open a read session or delete', async (t) => {
  const server = await serverUnderTest(t)
  const { bearer } = await server.token({ repository: 'alpha', scopes: ['push'] })
  const snapshot = server.host.get('alpha').addSnapshot('web').id
  const reply = await server.app.inject({ method: 'POST', url: '/v1/repositories/alpha/sessions', headers: { authorization: bearer }, payload: { kind: 'read', snapshot } })
  assert.equal(reply.statusCode, ERROR_CATALOGUE.AUTH_FORBIDDEN.http)
  assert.equal((await call(server, 'deleteSnapshot', bearer, { snapshot })).code, 'AUTH_FORBIDDEN')
  assert.equal((await call(server, 'getSnapshot', bearer, { snapshot })).status, 200)
})

test('the media type of a body is exactly the endpoint’s', async (t) => {
  const server = await serverUnderTest(t)
  const { bearer, tokenId } = await server.token({ repository: 'alpha', scopes: ['push', 'admin'] })
  const session = server.host.get('alpha').addSession({ tokenId })
  const url = routePath(ROUTES.sessionChunks, { repository: 'alpha', session })
  for (const type of ['application/octet-stream', 'application/json', MEDIA.ids, `${MEDIA.frames}; v=1`]) {
    const reply = await server.app.inject({ method: 'POST', url, headers: { authorization: bearer, 'content-type': type }, payload: Buffer.from('{}') })
    assert.equal(reply.json<WireError>().code, 'MEDIA_TYPE_UNSUPPORTED', type)
  }
  const check = routePath(ROUTES.check, { repository: 'alpha' })
  for (const type of [MEDIA.frames, 'text/plain', 'application/x-www-form-urlencoded']) {
    const reply = await server.app.inject({ method: 'POST', url: check, headers: { authorization: bearer, 'content-type': type }, payload: Buffer.from('{}') })
    assert.equal(reply.json<WireError>().code, 'MEDIA_TYPE_UNSUPPORTED', type)
  }
  assert.deepEqual(server.host.get('alpha').calls, [])
})
