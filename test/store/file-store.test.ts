/** What is the folder store's own: crash safety at every step, vanished disks, its names, modes and fallbacks. */
import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import { mkdtemp, readdir, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { test, type TestContext } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import { RoostError, hasCode } from '../../src/core/errors.js'
import { bytesBody } from '../../src/store/bytes-body.js'
import { nodeFileEffects, type FileEffects } from '../../src/store/file-effects.js'
import { openFileStore } from '../../src/store/file-store.js'
import type { ObjectStore, ReplayableBody } from '../../src/store/object-store.js'
import { pattern } from '../conformance/object-store.js'
import { CUT_MODES, SimulatedCrash, cutEffects, type CutEffects } from '../support/cut-effects.js'

const KEY = 'packs/ab/pack'
const BYTES = pattern(150_000)

async function temporary(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'roost-file-store-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  return directory
}
async function bytesOf(store: ObjectStore, key: string): Promise<Buffer | undefined> {
  const stream = await store.get(key)
  return stream === undefined ? undefined : await buffer(stream)
}
const failing = (code: string) => async (): Promise<never> => { throw Object.assign(new Error(`told to fail: ${code}`), { code }) }
const unavailable = (error: unknown): boolean => hasCode(error, 'STORE_UNAVAILABLE')
const refused = (error: unknown): boolean => hasCode(error, 'STORE_REFUSED')

interface Scenario {
  readonly name: string
  prepare?(store: ObjectStore): Promise<void>
  body(directory: string): Promise<ReplayableBody>
  readonly effects?: Partial<FileEffects>
  readonly replace?: boolean
  /** What the key may hold after a crash. */
  readonly before: Buffer | undefined
}
const SCENARIOS: readonly Scenario[] = [
  { name: 'a put of a new object', body: async () => bytesBody(BYTES), before: undefined },
  { name: 'a put where the file system cannot link', body: async () => bytesBody(BYTES), effects: { link: failing('EPERM') }, before: undefined },
  {
    name: 'a put of a file that is linked', before: undefined,
    body: async (directory) => {
      const file = join(directory, 'spooled')
      fs.writeFileSync(file, BYTES)
      return { ...bytesBody(BYTES), file }
    },
  },
  {
    name: 'a replacing put', replace: true, before: pattern(70_000, 2), body: async () => bytesBody(BYTES),
    prepare: (store) => store.put(KEY, bytesBody(pattern(70_000, 2))),
  },
]

/** Runs the scenario's put in a fresh folder, cut where told. */
async function crashOnce(t: TestContext, scenario: Scenario, arm: (effects: CutEffects) => void): Promise<{
  directory: string; effects: CutEffects; acknowledged: boolean }> {
  const outside = await temporary(t)
  const directory = join(outside, 'store')
  const effects = cutEffects({ ...nodeFileEffects, ...scenario.effects })
  const store = await openFileStore({ directory, effects })
  await scenario.prepare?.(store)
  const body = await scenario.body(outside)
  arm(effects)
  const outcome = await store.put(KEY, body, { replace: scenario.replace === true }).then(() => undefined, (error: unknown) => error)
  if (outcome !== undefined && !(outcome instanceof SimulatedCrash)) throw outcome
  return { directory, effects, acknowledged: outcome === undefined }
}

for (const scenario of SCENARIOS) {
  for (const isPowerLost of [false, true]) {
    test(`${scenario.name} that dies at any step${isPowerLost ? ' with the power' : ''} leaves the object absent or whole`, async (t) => {
      const whole = await crashOnce(t, scenario, (effects) => { effects.arm() })
      const stepCount = whole.effects.steps.length
      assert.ok(whole.acknowledged && stepCount >= 2, 'the probe itself works')
      if (isPowerLost) whole.effects.loseUnsynced(whole.directory)
      const survived = await openFileStore({ directory: whole.directory, create: false })
      assert.ok((await bytesOf(survived, KEY))?.equals(BYTES), 'what was acknowledged survives')
      for (let step = 0; step < stepCount; step++) {
        for (const mode of CUT_MODES) {
          const { directory, effects, acknowledged } = await crashOnce(t, scenario, (one) => { one.arm({ step, mode }) })
          assert.ok(effects.isDead, 'the cut was reached')
          if (isPowerLost) effects.loseUnsynced(directory)
          const reopened = await openFileStore({ directory, create: false })
          const found = await bytesOf(reopened, KEY)
          const isBefore = scenario.before === undefined ? found === undefined : found?.equals(scenario.before) === true
          assert.ok(found?.equals(BYTES) === true || isBefore, `${mode} step ${step}: torn object of ${found?.byteLength} bytes`)
          assert.ok(!acknowledged || found?.equals(BYTES) === true, `${mode} step ${step}: acknowledged, then lost`)
          await reopened.put(KEY, bytesBody(BYTES), { replace: scenario.replace === true })
          assert.ok((await bytesOf(reopened, KEY))?.equals(BYTES), 'and the put can be repeated')
        }
      }
    })
  }
}

test('repeating a put whose first attempt died before its name was durable makes the name durable', async (t) => {
  const probe = await crashOnce(t, SCENARIOS[0]!, (effects) => { effects.arm() })
  const step = probe.effects.steps.lastIndexOf('fsync-directory')
  const { directory } = await crashOnce(t, SCENARIOS[0]!, (effects) => { effects.arm({ step, mode: 'before' }) })
  const effects = cutEffects()
  const reopened = await openFileStore({ directory, effects })
  effects.arm()
  await reopened.put(KEY, bytesBody(BYTES))
  assert.deepEqual(effects.steps.filter((one) => one === 'fsync-directory').length >= 1, true)
  assert.ok(!effects.steps.includes('write'), 'the bytes are not written again')
})

test('opening that dies at any step can be repeated, and keeps one identity', async (t) => {
  const probe = cutEffects()
  await openFileStore({ directory: join(await temporary(t), 'a', 'store'), effects: probe })
  const stepCount = probe.steps.length
  assert.ok(stepCount > 5)
  for (let step = 0; step < stepCount; step++) {
    for (const mode of CUT_MODES) {
      const directory = join(await temporary(t), 'a', 'store')
      const effects = cutEffects()
      effects.arm({ step, mode })
      await assert.rejects(openFileStore({ directory, effects }), SimulatedCrash)
      const store = await openFileStore({ directory })
      await store.put(KEY, bytesBody(BYTES))
      assert.ok((await bytesOf(await openFileStore({ directory, create: false }), KEY))?.equals(BYTES))
    }
  }
})

test('two openings of one new folder at once agree on one store', async (t) => {
  const directory = join(await temporary(t), 'store')
  const [one, two] = await Promise.all([openFileStore({ directory }), openFileStore({ directory })])
  await one.put(KEY, bytesBody(BYTES))
  assert.ok((await bytesOf(two, KEY))?.equals(BYTES))
  assert.equal(await two.head('absent'), undefined)
})

test('a disk that is gone makes the store unavailable, and nothing absent', async (t) => {
  const outside = await temporary(t)
  const directory = join(outside, 'mount')
  const store = await openFileStore({ directory })
  await store.put(KEY, bytesBody(BYTES))
  for (const leftBehind of ['an empty folder', 'nothing', 'another store']) {
    await rename(directory, join(outside, 'unmounted'))
    if (leftBehind === 'an empty folder') fs.mkdirSync(directory)
    if (leftBehind === 'another store') await openFileStore({ directory })
    await assert.rejects(store.head(KEY), unavailable, leftBehind)
    await assert.rejects(store.get(KEY), unavailable, leftBehind)
    await assert.rejects(store.getRange(KEY, { offset: 0, bytes: 1 }), unavailable, leftBehind)
    await assert.rejects(store.delete(KEY), unavailable, leftBehind)
    await assert.rejects(store.put('packs/cd/other', bytesBody(BYTES)), unavailable, leftBehind)
    await assert.rejects(async () => { for await (const _ of store.list('packs/')) assert.fail('an entry came') }, unavailable, leftBehind)
    if (leftBehind === 'an empty folder') {
      await assert.rejects(openFileStore({ directory, create: false }), unavailable)
      assert.deepEqual(await readdir(directory), [], 'nothing was written below the mount point')
    }
    await rm(directory, { recursive: true, force: true })
    await rename(join(outside, 'unmounted'), directory)
    assert.ok((await bytesOf(store, KEY))?.equals(BYTES))
  }
})

test('what a crashed put left in the private folder is removed once it is old, and not before', async (t) => {
  const directory = await temporary(t)
  await openFileStore({ directory })
  const leftover = join(directory, '+tmp', 'leftover')
  fs.writeFileSync(leftover, 'half a pack')
  await openFileStore({ directory })
  assert.ok(fs.existsSync(leftover), 'another process may be writing it')
  await openFileStore({ directory, clock: { ...systemClock, now: () => fs.statSync(leftover).mtimeMs + 3_600_000 } })
  assert.ok(!fs.existsSync(leftover))
})

test('a put leaves nothing in the private folder, whether it succeeds or fails', async (t) => {
  const directory = await temporary(t)
  const store = await openFileStore({ directory })
  await store.put(KEY, bytesBody(BYTES))
  await store.put(KEY, bytesBody(BYTES), { replace: true })
  await assert.rejects(store.put('short', { ...bytesBody(BYTES), bytes: BYTES.byteLength + 1 }), refused)
  assert.deepEqual(await readdir(join(directory, '+tmp')), [])
})

test('objects and the folders above them are readable by their owner alone', async (t) => {
  const directory = join(await temporary(t), 'store')
  const store = await openFileStore({ directory })
  await store.put(KEY, bytesBody(BYTES))
  assert.equal(fs.statSync(join(directory, KEY)).mode & 0o777, 0o600)
  assert.equal(fs.statSync(join(directory, 'packs')).mode & 0o777, 0o700)
})

test('a file on the same file system is linked, and copied where it cannot be', async (t) => {
  const outside = await temporary(t)
  const file = join(outside, 'spooled')
  fs.writeFileSync(file, BYTES)
  const body: ReplayableBody = { ...bytesBody(BYTES), file }
  const linking = await openFileStore({ directory: join(outside, 'linking') })
  await linking.put(KEY, body)
  assert.equal(fs.statSync(join(outside, 'linking', KEY)).ino, fs.statSync(file).ino)
  for (const code of ['EXDEV', 'EPERM']) {
    const directory = join(outside, code.toLowerCase())
    const copying = await openFileStore({ directory, effects: { ...nodeFileEffects, link: failing(code) } })
    await copying.put(KEY, body)
    await copying.put(KEY, body)
    assert.notEqual(fs.statSync(join(directory, KEY)).ino, fs.statSync(file).ino)
    assert.ok((await bytesOf(copying, KEY))?.equals(BYTES))
    await assert.rejects(copying.put(KEY, bytesBody(pattern(3))), refused)
  }
})

test('a file that has not the promised bytes, or is not there, is refused', async (t) => {
  const outside = await temporary(t)
  const store = await openFileStore({ directory: join(outside, 'store') })
  fs.writeFileSync(join(outside, 'short'), 'x')
  for (const name of ['short', 'missing'])
    await assert.rejects(store.put(KEY, { ...bytesBody(BYTES), file: join(outside, name) }), refused)
  assert.equal(await store.head(KEY), undefined)
})

test('errors of the disk become catalogued ones that keep their cause and say what to do', async (t) => {
  const outside = await temporary(t)
  const cases = [['ENOSPC', 'STORE_REFUSED', /free space/], ['EROFS', 'STORE_REFUSED', /read-only/], ['EIO', 'STORE_REFUSED', /check the disk/],
    ['EACCES', 'STORE_REFUSED', /permission/], ['ESTALE', 'STORE_UNAVAILABLE', /mounted/], ['EMFILE', 'STORE_UNAVAILABLE', /EMFILE/]] as const
  for (const [errno, code, advice] of cases) {
    for (const step of ['open', 'write', 'fsync'] as const) {
      const store = await openFileStore({ directory: outside })
      await store.close()
      const broken = await openFileStore({ directory: outside, effects: { ...nodeFileEffects, [step]: failing(errno) } })
      await assert.rejects(broken.put('k', bytesBody(BYTES)), (error) => {
        assert.ok(error instanceof RoostError)
        assert.equal(error.code, code)
        assert.match(error.message, advice)
        assert.equal((error.cause as NodeJS.ErrnoException).code, errno)
        return true
      })
      assert.equal(await store.head('k'), undefined)
    }
  }
})

test('a foreign folder where an object should be, or a file where a folder should be, is refused with advice', async (t) => {
  const directory = await temporary(t)
  const store = await openFileStore({ directory })
  fs.mkdirSync(join(directory, 'k'))
  assert.equal(await store.head('k'), undefined)
  await assert.rejects(store.put('k', bytesBody(BYTES)), refused)
  await assert.rejects(store.put('k', bytesBody(BYTES), { replace: true }), refused)
  await store.put('leaf', bytesBody(BYTES))
  await assert.rejects(store.put('leaf/below', bytesBody(BYTES)), refused)
  assert.ok((await bytesOf(store, 'leaf'))?.equals(BYTES))
})

test('an object cut short below a running stream breaks the stream, and never ends it early', async (t) => {
  const directory = await temporary(t)
  const store = await openFileStore({ directory })
  await store.put('k', bytesBody(pattern(3_000_000)))
  const stream = await store.get('k')
  fs.truncateSync(join(directory, 'k'), 10)
  await assert.rejects(buffer(stream!), (error) => hasCode(error, 'OBJECT_TOO_SHORT'))
})

test('names that are no keys are not listed', async (t) => {
  const directory = await temporary(t)
  const store = await openFileStore({ directory })
  await store.put('packs/k', bytesBody(pattern(1)))
  for (const name of ['README', 'packs/.k.swp~', 'lost+found']) fs.writeFileSync(join(directory, name), 'x')
  const keys: string[] = []
  for await (const { key } of store.list('')) keys.push(key)
  assert.deepEqual(keys, ['packs/k'])
})

test('a damaged marker is told, and not replaced by a new one', async (t) => {
  const directory = await temporary(t)
  await openFileStore({ directory })
  fs.writeFileSync(join(directory, '+roost-store'), '{}')
  await assert.rejects(openFileStore({ directory }), refused)
  assert.equal(fs.readFileSync(join(directory, '+roost-store'), 'utf8'), '{}')
})
