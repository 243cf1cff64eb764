/** Time that locks are counted in: what is credited, what is not, and that whatever is lost makes locks longer. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import fc from 'fast-check'
import { nodeFileEffects as fileEffects } from '../../../src/store/file-effects.js'
import { creditedSince, DRIFT_MS, WitnessedTime, type Stretch } from '../../../src/repo/retention/witnessed-time.js'
import { SteppingClock } from '../../support/stepping-clock.js'

const HOUR = 3_600_000, DAY = 24 * HOUR
const KEY = Buffer.alloc(32, 7)

async function scene(t: TestContext) {
  const directory = await mkdtemp(join(tmpdir(), 'roost-time-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const clock = new SteppingClock(1_700_000_000_000)
  const path = join(directory, 'time.json')
  return { clock, path, open: (key = KEY) => WitnessedTime.open({ path, key, clock, effects: fileEffects }) }
}
const near = (actual: number, expected: number): void => { assert.ok(actual <= expected && actual >= expected - 2 * DRIFT_MS - 1, `${actual} is not just below ${expected}`) }

test('a server that runs is credited the time that passes', async (t) => {
  const { clock, open } = await scene(t)
  const time = await open()
  const then = await time.stamp()
  clock.run(3 * DAY)
  await time.observe()
  near(time.creditedSince(then), 3 * DAY)
})
test('a clock that jumps forward credits nothing', async (t) => {
  const { clock, open } = await scene(t)
  const time = await open()
  const then = await time.stamp()
  clock.run(HOUR)
  clock.jump(365 * DAY)
  await time.observe()
  near(time.creditedSince(then), HOUR)
  clock.run(HOUR)
  await time.observe()
  near(time.creditedSince(then), 2 * HOUR)
})
test('a clock that jumps forward while the server is down credits nothing', async (t) => {
  const { clock, open } = await scene(t)
  const first = await open()
  const then = await first.stamp()
  clock.run(HOUR)
  await first.close()
  clock.jump(365 * DAY)
  const second = await open()
  clock.run(HOUR)
  await second.observe()
  near(second.creditedSince(then), 2 * HOUR)
})
test('what is stamped while the clock is ahead has its place: where it was made', async (t) => {
  const { clock, open } = await scene(t)
  const time = await open()
  clock.jump(30 * DAY)
  const ahead = await time.stamp()
  clock.run(HOUR)
  await time.observe()
  clock.jump(-30 * DAY)
  await time.observe()
  clock.run(10 * DAY)
  await time.observe()
  near(time.creditedSince(ahead), 10 * DAY + HOUR)
})
test('what is stamped while the clock is behind is not old: its place is where it was made', async (t) => {
  const { clock, open } = await scene(t)
  const time = await open()
  clock.run(400 * DAY)
  await time.observe()
  clock.jump(-365 * DAY)
  const behind = await time.stamp()
  clock.jump(365 * DAY)
  await time.observe()
  clock.run(DAY)
  await time.observe()
  near(time.creditedSince(behind), DAY)
})
test('that the clock has jumped is durable before anything is stamped with its new time', async (t) => {
  const { clock, open } = await scene(t)
  const time = await open()
  clock.run(400 * DAY)
  await time.observe()
  clock.jump(-365 * DAY)
  const behind = await time.stamp() // and here the process dies
  clock.jump(365 * DAY)
  const next = await open()
  clock.run(DAY)
  await next.observe()
  near(next.creditedSince(behind), DAY)
})
test('a crash loses credit, at most what was not noted', async (t) => {
  const { clock, open } = await scene(t)
  const time = await open()
  const then = await time.stamp()
  clock.run(2 * HOUR)
  await time.observe()
  clock.run(300_000) // not noted: then the process dies
  await time.observe()
  const next = await open()
  await next.observe()
  near(next.creditedSince(then), 2 * HOUR)
})
test('a lost, damaged or foreign file credits nothing of before', async (t) => {
  const { clock, path, open } = await scene(t)
  for (const spoil of [() => rm(path), async () => { await writeFile(path, (await readFile(path, 'utf8')).replace('lastedMs', 'lastedMz')) }, () => writeFile(path, 'null'), () => writeFile(path, '{')]) {
    const time = await open()
    const then = await time.stamp()
    clock.run(5 * DAY)
    await time.close()
    await spoil()
    const next = await open()
    clock.run(DAY)
    await next.observe()
    near(next.creditedSince(then), DAY)
  }
  const time = await open()
  const then = await time.stamp()
  clock.run(5 * DAY)
  await time.close()
  const foreign = await open(Buffer.alloc(32, 8))
  assert.equal(foreign.creditedSince(then), 0)
})
test('however the clock is set and the server stopped, killed and started: never more is credited than the server has run', async () => {
  const steps = fc.array(fc.oneof(
    fc.record({ kind: fc.constantFrom('run' as const), ms: fc.integer({ min: 0, max: 10 * DAY }) }),
    fc.record({ kind: fc.constantFrom('jump' as const), ms: fc.integer({ min: -40 * DAY, max: 40 * DAY }) }),
    fc.record({ kind: fc.constantFrom('stamp' as const, 'restart' as const, 'kill' as const), ms: fc.integer({ min: 0, max: 5 * DAY }) }),
  ), { maxLength: 30 })
  await fc.assert(fc.asyncProperty(steps, async (plan) => {
    const clock = new SteppingClock(1_700_000_000_000)
    // The file in memory: a write either is there whole or not at all.
    const directory = await mkdtemp(join(tmpdir(), 'roost-time-'))
    try {
      const open = (): Promise<WitnessedTime> => WitnessedTime.open({ path: join(directory, 'f'), key: KEY, clock, effects: fileEffects })
      let time = await open()
      let ranMs = 0
      const stamps: { wallMs: number; ranMs: number }[] = []
      for (const { kind, ms } of plan) {
        if (kind === 'run') { clock.run(ms); ranMs += ms; await time.observe() }
        else if (kind === 'jump') clock.jump(ms)
        else if (kind === 'stamp') stamps.push({ wallMs: await time.stamp(), ranMs })
        else {
          if (kind === 'restart') await time.close()
          clock.jump(ms) // time passes without it
          time = await open()
        }
        await time.observe()
        for (const stamp of stamps) assert.ok(time.creditedSince(stamp.wallMs) <= ranMs - stamp.ranMs, `credited ${time.creditedSince(stamp.wallMs)} of ${ranMs - stamp.ranMs}`)
      }
    } finally {
      await rm(directory, { recursive: true, force: true })
    }
  }), { numRuns: 60, seed: 42 })
})
test('what was before the first stretch, or in a stretch that is not kept any more, is credited from there', () => {
  const stretches: Stretch[] = [{ wallMs: 10 * DAY, lastedMs: 2 * DAY, hasEnded: true }, { wallMs: 20 * DAY, lastedMs: DAY, hasEnded: false }]
  assert.equal(creditedSince(stretches, 0), 3 * DAY - DRIFT_MS)
  assert.equal(creditedSince(stretches, 15 * DAY), DAY - DRIFT_MS)
  assert.equal(creditedSince(stretches, 30 * DAY), 0)
})
