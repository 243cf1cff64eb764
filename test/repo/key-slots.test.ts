/** Key slots: what opens them, what must not, and what a hostile target may put there. */
import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { Clock } from '../../src/core/clock.js'
import { describeCause, hasCode, RoostError, type ErrorCode } from '../../src/core/errors.js'
import { systemRandom } from '../../src/core/random.js'
import {
  addKeyfileSlot, addPassphraseSlot, addRecoverySlot, attachSecretOf, listKeySlots, readKeyfile, removeKeySlot, unlockMasterKey,
  writeKeyfile,
} from '../../src/repo/key-slots.js'
import { createRecoveryKey, parseRecoveryPublicKey, parseRecoverySecretKey } from '../../src/repo/recovery-key.js'
import { createMasterKey, deriveCheckValue, deriveRepositoryKeys } from '../../src/repo/repository-keys.js'
import { nodeFileEffects } from '../../src/store/file-effects.js'
import { createMemoryStore, type MemoryStore } from '../../src/store/memory-store.js'
import { CUT_MODES, SimulatedCrash, cutEffects } from '../support/cut-effects.js'
import { faultyStore } from '../support/faulty-store.js'

const PASSPHRASE = 'correct horse battery staple'
let nowMs = 1_700_000_000_000
const clock: Clock = { now: () => nowMs++, monotonicMs: () => 0, sleep: async () => undefined }
const options = (label = 'test') => ({ label, clock, random: systemRandom })
const code = (expected: ErrorCode) => (error: unknown): boolean => hasCode(error, expected)

async function temporary(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'roost-keys-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  return directory
}
async function storeWithKeyfile(): Promise<{ store: MemoryStore; masterKey: Buffer; keyfile: Buffer; slotId: string }> {
  const store = createMemoryStore()
  const masterKey = createMasterKey(systemRandom)
  const keyfile = systemRandom.bytes(32)
  const { slotId } = await addKeyfileSlot(store, masterKey, keyfile, options('server'))
  return { store, masterKey, keyfile, slotId }
}
/** Changes fields of the stored slot. */
function editSlot(store: MemoryStore, slotId: string, change: (slot: Record<string, unknown>) => void): void {
  const slot = JSON.parse(store.objects.get(`keys/${slotId}`)!.toString()) as Record<string, unknown>
  change(slot)
  store.objects.set(`keys/${slotId}`, Buffer.from(JSON.stringify(slot)))
}

test('the subkeys of one master key are the same for ever', () => {
  const keys = deriveRepositoryKeys(Buffer.alloc(32, 1))
  const again = deriveRepositoryKeys(Buffer.alloc(32, 1))
  const other = deriveRepositoryKeys(Buffer.alloc(32, 2))
  const flat = (one: typeof keys): string[] =>
    [one.dedupKey, one.packKey, one.snapshotKey, one.gearSeed, one.signing.publicKey].map((key) => key.toString('hex'))
  assert.deepEqual(flat(keys), flat(again))
  assert.equal(new Set([...flat(keys), ...flat(other)]).size, 10)
  // Frozen: a change of any context string would orphan every existing repository.
  assert.deepEqual(flat(keys).map((hex) => hex.slice(0, 16)), FROZEN_SUBKEYS)
  assert.notEqual(deriveCheckValue(Buffer.alloc(32, 1)), deriveCheckValue(Buffer.alloc(32, 2)))
})
const FROZEN_SUBKEYS = ['79397b8bdea3bf8a', 'c1acef1e63aecdba', '2c639c0b0b271ad8', '5523a2cc09861764', '9ed18a1b8b36db95']

test('a keyfile, a passphrase and a recovery key each give the same master key back', async () => {
  const { store, masterKey, keyfile } = await storeWithKeyfile()
  const recovery = createRecoveryKey()
  await addPassphraseSlot(store, masterKey, PASSPHRASE, options('admin'))
  await addRecoverySlot(store, masterKey, recovery.publicKey, options('safe'))
  assert.ok((await unlockMasterKey(store, { keyfile })).equals(masterKey))
  assert.ok((await unlockMasterKey(store, { passphrase: PASSPHRASE })).equals(masterKey))
  assert.ok((await unlockMasterKey(store, { recoverySecretKey: ` ${recovery.secretKey.toUpperCase()}\n` })).equals(masterKey))
  assert.deepEqual((await listKeySlots(store)).map(({ kind, label }) => [kind, label]),
    [['keyfile', 'server'], ['passphrase', 'admin'], ['recovery', 'safe']])
})
test('one passphrase opens however its characters were composed', async () => {
  const { store, masterKey } = await storeWithKeyfile()
  await addPassphraseSlot(store, masterKey, 'Zürich', options())
  assert.ok((await unlockMasterKey(store, { passphrase: 'Zu\u0308rich' })).equals(masterKey))
})
test('what a slot stores holds neither the secret nor the master key', async () => {
  const { store, masterKey, keyfile } = await storeWithKeyfile()
  await addPassphraseSlot(store, masterKey, PASSPHRASE, options())
  for (const bytes of store.objects.values()) {
    for (const form of ['hex', 'base64', 'latin1'] as const)
      for (const secret of [masterKey, keyfile, Buffer.from(PASSPHRASE)]) assert.ok(!bytes.includes(secret.toString(form)))
  }
})
test('a wrong secret is refused, names the slots that were tried, and is not repeated in the error', async () => {
  const { store, masterKey, slotId } = await storeWithKeyfile()
  const passphrases = await addPassphraseSlot(store, masterKey, PASSPHRASE, options())
  const wrongKeyfile = systemRandom.bytes(32)
  const stranger = createRecoveryKey()
  for (const [secret, tried, given] of [
    [{ keyfile: wrongKeyfile }, [slotId], wrongKeyfile.toString('hex')],
    [{ passphrase: 'wrong horse' }, [passphrases.slotId], 'wrong horse'],
    [{ recoverySecretKey: stranger.secretKey }, [], stranger.secretKey],
  ] as const) {
    await assert.rejects(unlockMasterKey(store, secret), (error) => {
      assert.ok(error instanceof RoostError && error.code === 'KEY_UNLOCK_FAILED')
      assert.deepEqual(error.details['tried'], tried)
      for (const id of tried) assert.ok(error.message.includes(id))
      assert.ok(!describeCause(error).includes(given) && !JSON.stringify(error.details).includes(given))
      return true
    })
  }
})
test('a slot that was made for another repository is recognised', async () => {
  const { store, masterKey, keyfile, slotId } = await storeWithKeyfile()
  editSlot(store, slotId, (slot) => { slot['checkValue'] = deriveCheckValue(createMasterKey(systemRandom)) })
  await assert.rejects(unlockMasterKey(store, { keyfile }), code('REPOSITORY_CORRUPT'))
  editSlot(store, slotId, (slot) => { slot['checkValue'] = deriveCheckValue(masterKey) })
  assert.ok((await unlockMasterKey(store, { keyfile })).equals(masterKey))
})

test('the last slot cannot be removed, and an unknown one is told', async () => {
  const { store, masterKey, slotId } = await storeWithKeyfile()
  await assert.rejects(removeKeySlot(store, slotId), code('KEY_SLOT_LAST'))
  for (const unknown of ['0'.repeat(32), '', '../roost.json', slotId.toUpperCase() + 'x'])
    await assert.rejects(removeKeySlot(store, unknown), code('KEY_SLOT_UNKNOWN'))
  const second = await addPassphraseSlot(store, masterKey, PASSPHRASE, options())
  await removeKeySlot(store, slotId)
  assert.deepEqual((await listKeySlots(store)).map((slot) => slot.slotId), [second.slotId])
  await assert.rejects(removeKeySlot(store, second.slotId), code('KEY_SLOT_LAST'))
})
test('a damaged slot does not count as another one, and can itself be removed', async () => {
  const { store, masterKey, keyfile, slotId } = await storeWithKeyfile()
  const second = await addKeyfileSlot(store, masterKey, systemRandom.bytes(32), options())
  store.objects.set(`keys/${second.slotId}`, Buffer.from('{'))
  await assert.rejects(removeKeySlot(store, slotId), code('KEY_SLOT_LAST'))
  assert.ok((await unlockMasterKey(store, { keyfile })).equals(masterKey))
  await assert.rejects(listKeySlots(store), code('REPOSITORY_CORRUPT'))
  await removeKeySlot(store, second.slotId)
  assert.equal((await listKeySlots(store)).length, 1)
})
test('every malformed slot is reported as damage, quickly and without what it holds', async () => {
  const { store, masterKey } = await storeWithKeyfile()
  const { slotId } = await addPassphraseSlot(store, masterKey, PASSPHRASE, options())
  const intact = Buffer.from(store.objects.get(`keys/${slotId}`)!)
  const wrapped = (JSON.parse(intact.toString()) as { wrapped: string }).wrapped
  const scryptOf = (change: object) => (slot: Record<string, unknown>): void => { slot['scrypt'] = { ...slot['scrypt'] as object, ...change } }
  const set = (field: string, value: unknown) => (slot: Record<string, unknown>): void => { slot[field] = value }
  const changes = [
    set('format', 2), set('slotId', '0'.repeat(32)), set('kind', 'magic'), set('label', 7), set('label', 'x'.repeat(300)), set('createdAtMs', -1),
    set('createdAtMs', 1.5), set('checkValue', 'xyz'), set('wrapped', undefined), set('wrapped', ''), set('wrapped', '!!'), set('scrypt', undefined),
    set('scrypt', 'N=1'), scryptOf({ N: 2 ** 40 }), scryptOf({ N: 2 ** 19 }), scryptOf({ N: 1000 }), scryptOf({ N: 0 }), scryptOf({ N: -2 }),
    scryptOf({ N: '131072' }), scryptOf({ r: 1e9 }), scryptOf({ r: 0 }), scryptOf({ p: 1e6 }), scryptOf({ salt: '' }), scryptOf({ salt: 'AAAA' }),
    scryptOf({ salt: Buffer.alloc(65).toString('base64') }),
  ]
  const bodies = changes.map((change) => () => { editSlot(store, slotId, change) })
  for (const text of ['', 'null', '[]', '"x"', '{', '{}', '\xff', `{"wrapped":"${wrapped}"`, ' '.repeat(9000)])
    bodies.push(() => { store.objects.set(`keys/${slotId}`, Buffer.from(text, 'latin1')) })
  for (const damage of bodies) {
    store.objects.set(`keys/${slotId}`, Buffer.from(intact))
    damage()
    const isReported = (error: unknown): boolean => {
      assert.ok(hasCode(error, 'REPOSITORY_CORRUPT'), describeCause(error))
      assert.ok(error.message.includes(slotId) && !describeCause(error).includes(wrapped.slice(0, 12)))
      return true
    }
    await assert.rejects(listKeySlots(store), isReported)
    await assert.rejects(unlockMasterKey(store, { passphrase: PASSPHRASE }), isReported)
  }
})
test('a target that holds a flood of slots is refused, and foreign names are left alone', async () => {
  const { store, keyfile, masterKey } = await storeWithKeyfile()
  store.objects.set('keys/readme.txt', Buffer.from('x'))
  store.objects.set('keys/sub/' + '0'.repeat(32), Buffer.from('x'))
  assert.ok((await unlockMasterKey(store, { keyfile })).equals(masterKey))
  for (let at = 0; at < 64; at++) store.objects.set(`keys/${at.toString(16).padStart(32, '0')}`, Buffer.from('x'))
  await assert.rejects(unlockMasterKey(store, { keyfile }), code('REPOSITORY_CORRUPT'))
})
test('a target that does not answer is not taken for one without slots', async () => {
  const { store, keyfile } = await storeWithKeyfile()
  const faults = faultyStore(store, [{ operation: 'head', call: 1, how: 'before' }, { operation: 'list', call: 2, how: 'before' }])
  await assert.rejects(unlockMasterKey(faults, { keyfile }), code('STORE_UNAVAILABLE'))
  await assert.rejects(unlockMasterKey(faults, { keyfile }), code('STORE_UNAVAILABLE'))
  faults.assertAllFired()
})
test('passphrases and labels out of bounds, and more slots than allowed, are refused', async () => {
  const { store, masterKey } = await storeWithKeyfile()
  await assert.rejects(addPassphraseSlot(store, masterKey, '', options()), code('REQUEST_MALFORMED'))
  await assert.rejects(addPassphraseSlot(store, masterKey, 'x'.repeat(1025), options()), code('REQUEST_MALFORMED'))
  await assert.rejects(addKeyfileSlot(store, masterKey, systemRandom.bytes(32), options('x'.repeat(257))), code('REQUEST_MALFORMED'))
  assert.equal(store.objects.size, 1)
  for (let at = 1; at < 64; at++) await addKeyfileSlot(store, masterKey, systemRandom.bytes(32), options())
  await assert.rejects(addKeyfileSlot(store, masterKey, systemRandom.bytes(32), options()), code('LIMIT_EXCEEDED'))
})
test('an attach request brings exactly one secret', () => {
  const request = { name: 'n', target: 'file:/x' }
  assert.deepEqual(attachSecretOf({ ...request, passphrase: 'p' }), { passphrase: 'p' })
  assert.deepEqual(attachSecretOf({ ...request, recoverySecretKey: 'r' }), { recoverySecretKey: 'r' })
  assert.throws(() => attachSecretOf(request), code('REQUEST_MALFORMED'))
  assert.throws(() => attachSecretOf({ ...request, passphrase: 'p', recoverySecretKey: 'r' }), code('REQUEST_MALFORMED'))
})

test('a recovery key survives its text, and any mistyped character is found', () => {
  const { publicKey, secretKey } = createRecoveryKey()
  assert.match(publicKey, /^roost-recovery-public-[a-z2-7]{58}$/)
  assert.match(secretKey, /^roost-recovery-secret-[a-z2-7]{58}$/)
  assert.equal(parseRecoveryPublicKey(publicKey).byteLength, 32)
  for (let at = 0; at < secretKey.length; at++) {
    const typed = secretKey.slice(0, at) + (secretKey[at] === 'a' ? 'b' : 'a') + secretKey.slice(at + 1)
    assert.throws(() => parseRecoverySecretKey(typed), (error) => hasCode(error, 'REQUEST_MALFORMED') && !error.message.includes(secretKey.slice(30, 50)))
  }
  for (const typed of ['', secretKey.slice(0, -1), `${secretKey}a`, secretKey.replace('secret', 'public'), publicKey])
    assert.throws(() => parseRecoverySecretKey(typed), code('REQUEST_MALFORMED'))
  assert.throws(() => parseRecoveryPublicKey(secretKey), code('REQUEST_MALFORMED'))
})

test('a keyfile is written for its owner alone and read back', async (t) => {
  const path = join(await temporary(t), 'keyfile')
  const keyfile = systemRandom.bytes(32)
  await writeKeyfile(path, keyfile, nodeFileEffects)
  assert.equal(fs.statSync(path).mode & 0o777, 0o600)
  assert.ok((await readKeyfile(path)).equals(keyfile))
})
test('a keyfile that others can read, that is damaged, missing or no file is refused with advice', async (t) => {
  const directory = await temporary(t)
  const path = join(directory, 'keyfile')
  const keyfile = systemRandom.bytes(32)
  await writeKeyfile(path, keyfile, nodeFileEffects)
  for (const mode of [0o640, 0o604, 0o620]) {
    fs.chmodSync(path, mode)
    await assert.rejects(readKeyfile(path), (error) => hasCode(error, 'KEY_UNLOCK_FAILED') && error.message.includes('chmod 600'))
  }
  fs.chmodSync(path, 0o600)
  for (const bytes of [keyfile.subarray(1), Buffer.concat([keyfile, Buffer.alloc(1)]), Buffer.alloc(0)]) {
    fs.writeFileSync(path, bytes)
    await assert.rejects(readKeyfile(path), code('KEY_UNLOCK_FAILED'))
  }
  await assert.rejects(readKeyfile(join(directory, 'missing')), code('KEY_UNLOCK_FAILED'))
  await assert.rejects(readKeyfile(directory), code('KEY_UNLOCK_FAILED'))
})
test('replacing a keyfile that dies at any step, with the power, leaves the old or the new one', async (t) => {
  const directory = await temporary(t)
  const probe = cutEffects()
  await writeKeyfile(join(directory, 'probe'), Buffer.alloc(32, 1), probe)
  const stepCount = probe.steps.length
  for (let step = 0; step < stepCount; step++) {
    for (const mode of CUT_MODES) {
      const path = join(directory, 'keyfile')
      await writeKeyfile(path, Buffer.alloc(32, 1), nodeFileEffects)
      const effects = cutEffects()
      effects.arm({ step, mode })
      await assert.rejects(writeKeyfile(path, Buffer.alloc(32, 2), effects), SimulatedCrash)
      effects.loseUnsynced(directory)
      const found = await readKeyfile(path)
      assert.ok(found.equals(Buffer.alloc(32, 1)) || found.equals(Buffer.alloc(32, 2)), `${mode} step ${step}`)
    }
  }
})
