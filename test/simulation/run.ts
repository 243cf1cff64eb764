/** Replays one run: `node dist/test/simulation/run.js --seed N [--steps M] [--trace]`; `--runs K` goes on with the seeds that follow. */
import { parseArgs } from 'node:util'
import { simulate } from './simulate.js'

const { values } = parseArgs({ options: { seed: { type: 'string', default: '1' }, steps: { type: 'string' }, trace: { type: 'boolean', default: false }, runs: { type: 'string', default: '1' } } })
const first = Number(values.seed)
const sum = new Map<string, number>()
let failed = 0, steps = 0
const startedMs = performance.now(), cpu = process.cpuUsage()
for (let seed = first; seed < first + Number(values.runs); seed++) {
  const result = await simulate(seed, { ...(values.steps === undefined ? {} : { steps: Number(values.steps) }),
    ...(values.trace ? { trace: (step: number, text: string) => { console.log(`${String(step).padStart(6)}  ${text}`) } } : {}) })
  steps += result.steps
  for (const counts of [result.counts, result.fired, result.deathsAt]) for (const [name, count] of counts) sum.set(name, (sum.get(name) ?? 0) + count)
  if (result.failure !== undefined) {
    failed++
    console.log(`seed ${seed} fails at step ${result.steps}: ${result.failure.message}\n  again: node dist/test/simulation/run.js --seed ${seed}${values.steps === undefined ? '' : ` --steps ${values.steps}`} --trace`)
    if (values.runs === '1') console.log(result.failure.stack)
  } else if (values.runs === '1') console.log(`seed ${seed}: ${result.steps} steps, history ${result.history}`)
}
const seconds = (performance.now() - startedMs) / 1_000
const { user, system } = process.cpuUsage(cpu)
for (const [name, count] of [...sum].sort(([a], [b]) => (a < b ? -1 : 1))) console.log(`  ${String(count).padStart(7)}  ${name}`)
console.log(`${values.runs} runs, ${failed} failed, ${steps} steps, ${seconds.toFixed(1)} s (${(Number(values.runs) / seconds).toFixed(1)} runs a second, ${((user + system) / 1_000 / Number(values.runs)).toFixed(0)} ms of processor a run)`)
process.exit(failed === 0 ? 0 : 1)
