/** Ten thousand runs in four files, each within the time that a test file has; they take turns on the machine's processors. */
import { test } from 'node:test'
import { Batch } from './batch.js'

const RUNS = 2_500, FIRST_SEED = 1_000_000

/** @param part 0–3 */
export function longBatch(part: number): void {
  const first = FIRST_SEED + part * RUNS
  test(`seeds ${first} to ${first + RUNS - 1} keep every promise`, { skip: process.env['ROOST_TEST_SLOW'] !== '1' && 'run `npm run test:slow`' }, async () => {
    const batch = new Batch()
    await batch.run(first, RUNS, (text) => { console.log(text) })
    batch.assertSound()
    batch.assertEverythingHappened()
  })
}
