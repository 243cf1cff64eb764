import assert from 'node:assert/strict'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { hasCode } from '../../src/core/errors.js'
import { systemRandom } from '../../src/core/random.js'
import { FailureBrake, authenticate } from '../../src/server/authenticate.js'
import { requireAdministrator, requireScope, requireSource, sourcesWithin } from '../../src/server/authorize.js'
import { TokenStore } from '../../src/server/token-store.js'
import { ManualClock } from '../support/manual-clock.js'
import { temporaryDirectory } from '../support/server-under-test.js'

async function openStore(t: TestContext) {
  const path = join(await temporaryDirectory(t), 'tokens.json'), clock = new ManualClock()
  const reopen = (): Promise<TokenStore> => TokenStore.open({ path, clock, random: systemRandom })
  return { path, clock, reopen, store: await reopen() }
}
const PUSH = [{ repository: 'alpha', scopes: ['push'] }] as const

test('a token names its holder after a restart, and its file holds neither secret nor loose permissions', async (t) => {
  const { path, store, reopen } = await openStore(t)
  const { token, tokenId } = await store.create({ label: 'host', grants: PUSH })
  const reopened = await reopen()
  assert.deepEqual(reopened.verify(token), { tokenId, grants: PUSH })
  assert.equal((await stat(path)).mode & 0o777, 0o600)
  assert.ok(!(await readFile(path, 'utf8')).includes(token.split('_')[2]!))
  assert.ok(!JSON.stringify(reopened.list()).includes('secretHash'))
})

test('a token with one digit changed, of another id, or in another shape names nobody', async (t) => {
  const { store } = await openStore(t)
  const { token } = await store.create({ label: 'host', grants: PUSH })
  const other = await store.create({ label: 'other', grants: PUSH })
  const last = token.at(-1) === '0' ? '1' : '0'
  for (const wrong of [token.slice(0, -1) + last, token + '0', token.toUpperCase(), token.replace(/_[0-9a-f]{16}_/, `_${other.tokenId}_`), '', 'roost__'])
    assert.equal(store.verify(wrong), undefined, wrong)
})

test('a token ends at its expiry, and at once when revoked', async (t) => {
  const { store, clock, reopen } = await openStore(t)
  const brief = await store.create({ label: 'brief', grants: PUSH, expiresAtMs: clock.now() + 1_000 })
  const lasting = await store.create({ label: 'lasting', grants: PUSH })
  assert.ok(store.verify(brief.token))
  await clock.advance(1_000)
  assert.equal(store.verify(brief.token), undefined)
  await store.revoke(lasting.tokenId)
  assert.equal(store.verify(lasting.token), undefined)
  assert.equal((await reopen()).verify(lasting.token), undefined)
  await assert.rejects(store.revoke(lasting.tokenId), (error) => hasCode(error, 'TOKEN_UNKNOWN'))
})

test('a token file that cannot be understood stops the start instead of being replaced', async (t) => {
  const { path, reopen } = await openStore(t)
  for (const content of ['{', '{"format":2,"tokens":[]}', '{"format":1,"tokens":[{}]}']) {
    await writeFile(path, content)
    await assert.rejects(reopen(), /tokens\.json/)
  }
})

test('a change that cannot be stored does not take effect', async (t) => {
  const path = join(await temporaryDirectory(t), 'absent', 'tokens.json')
  const store = await TokenStore.open({ path, clock: new ManualClock(), random: systemRandom })
  await assert.rejects(store.create({ label: 'x', grants: PUSH }))
  assert.deepEqual(store.list(), [])
})

test('a right exists only where a grant states it', () => {
  const principal = { tokenId: 't', grants: [
    { repository: 'alpha', scopes: ['push'], source: 'web' }, { repository: 'alpha', scopes: ['push', 'delete'], source: 'db' },
    { repository: 'beta', scopes: ['admin'] },
  ] } as const
  const refused = (work: () => void): void => { assert.throws(work, (error) => hasCode(error, 'AUTH_FORBIDDEN')) }
  assert.deepEqual(sourcesWithin(principal, 'alpha', ['push']), ['web', 'db'])
  assert.deepEqual(sourcesWithin(principal, 'alpha', ['read']), [])
  requireSource(principal, 'alpha', ['push'], 'web')
  refused(() => requireSource(principal, 'alpha', ['push'], 'mail'))
  refused(() => requireSource(principal, 'alpha', ['delete'], 'web'))
  refused(() => requireScope(principal, 'beta', ['read', 'push', 'delete']))
  refused(() => requireScope(principal, 'gamma', ['push']))
  requireAdministrator(principal, 'beta')
  refused(() => requireAdministrator(principal, '*'))
  refused(() => requireAdministrator({ tokenId: 't', grants: [{ repository: '*', scopes: ['admin'], source: 'web' }] }, '*'))
})

test('an address that keeps failing is told to wait, a valid token passes all the same, and memory stays bounded', async (t) => {
  const { store, clock } = await openStore(t)
  const { token } = await store.create({ label: 'host', grants: PUSH })
  const brake = new FailureBrake(clock)
  const attempt = (bearer: string, address: string) => authenticate(store, brake, { authorization: `Bearer ${bearer}`, address })
  for (let i = 0; i < 30; i++) assert.throws(() => attempt('nonsense', 'a'), (error) => hasCode(error, 'AUTH_REQUIRED'))
  assert.throws(() => attempt('nonsense', 'a'), (error) => hasCode(error, 'TOO_MANY_REQUESTS') && error.details.retryAfterSeconds === 60)
  assert.throws(() => attempt('nonsense', 'b'), (error) => hasCode(error, 'AUTH_REQUIRED'))
  assert.ok(attempt(token, 'a').tokenId)
  await clock.advance(60_000)
  assert.throws(() => attempt('nonsense', 'a'), (error) => hasCode(error, 'AUTH_REQUIRED'))
  for (let i = 0; i < 5_000; i++) brake.note(`address-${i}`)
  assert.ok(brake.addresses <= 4_096)
})
