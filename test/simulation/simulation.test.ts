/** Runs of the simulation: whatever clients, operators, targets, clocks and crashes do, what was acknowledged restores bit-identical, and what
 *  nobody needs goes.
 *
 *  A failing seed prints the command that replays it. Faults that never happened are a failure, too: they would prove nothing.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Batch } from './batch.js'
import { simulate } from './simulate.js'

/** `npm run test:slow` runs ten thousand: long.ts. */
const isSlow = process.env['ROOST_TEST_SLOW'] === '1'
const RUNS = 240

test('the same seed makes the same history', async () => {
  for (const seed of [1, 2, 3, 4, 5, 6]) {
    const [first, second] = [await simulate(seed, { steps: 400 }), await simulate(seed, { steps: 400 })]
    assert.equal(first.history, second.history)
    assert.equal(first.steps, second.steps)
  }
})

test(`${RUNS} runs keep every promise, and every kind of fault happened in them`, { skip: isSlow && 'the long batches say more' }, async () => {
  const batch = new Batch()
  await batch.run(1, RUNS)
  batch.assertSound()
  batch.assertEverythingHappened()
})
