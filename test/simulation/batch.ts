/** Many runs, added up. */
import assert from 'node:assert/strict'
import { simulate } from './simulate.js'

/** What a batch must have seen, or it proves less than it says. */
const MUST_HAPPEN = [
  'acknowledged', 'restored', 'forgotten', 'pushes abandoned', 'clients that vanished', 'clients that came back late', 'sessions lost',
  'crash', 'crash-in-write', 'crash-in-collection', 'crash-at-call', 'power-loss', 'restart', 'outage', 'damage', 'clock', 'suspension',
  'check done', 'check and heal done', 'rebuild done', 'collection done', 'last collection done',
  'death between two synchronous file effects', 'target away', 'call failed', 'torn put', 'torn get', 'torn list', 'lost answer of put', 'lost answer of delete', 'refused delete',
  'pack lost', 'pack cut', 'pack flipped', 'pack another',
  'condemnPack: condemned', 'condemnPack: needed', 'movePack: condemned',
  'collector of a replaced process resumed', 'collector of a replaced process refused its condemnPack',
]
/** A process died with such a write at its gate. */
const MUST_BE_DIED_AT = ['index.addPack', 'index.placePack', 'index.commitSnapshot', 'index.pinPresent', 'index.inheritRefs', 'index.openSession', 'index.condemnPack', 'index.movePack',
  'index.beginCollection', 'index.deleteSnapshot', 'main.put', 'other.put', 'main.delete', 'main.deleteMany', 'file.fsync', 'file.rename', 'file.unlink', 'file.fsyncDirectory']

const FAILURES_MAX = 3

export class Batch {
  readonly sums = new Map<string, number>()
  readonly failures: string[] = []
  runs = 0
  steps = 0

  async run(firstSeed: number, count: number, say: (text: string) => void = () => undefined): Promise<void> {
    // After some failures the rest says the same.
    for (let seed = firstSeed; seed < firstSeed + count && this.failures.length < FAILURES_MAX; seed++) {
      const { failure, steps, counts, fired, deathsAt } = await simulate(seed)
      this.runs++
      this.steps += steps
      for (const one of [counts, fired, deathsAt]) for (const [name, times] of one) this.sums.set(name, (this.sums.get(name) ?? 0) + times)
      if (failure === undefined) continue
      this.failures.push(`seed ${seed} fails at step ${steps}: ${failure.message}\n  again: node dist/test/simulation/run.js --seed ${seed} --trace`)
      say(this.failures.at(-1)!)
    }
  }
  assertSound(): void { assert.equal(this.failures.length, 0, `${this.failures.length} of ${this.runs} runs failed:\n${this.failures.slice(0, 10).join('\n')}`) }
  assertEverythingHappened(): void {
    const silent = MUST_HAPPEN.filter((name) => !this.sums.has(name))
    const undied = MUST_BE_DIED_AT.filter((name) => !this.sums.has(`before ${name}`) && !this.sums.has(`after ${name}`))
    assert.deepEqual([silent, undied], [[], []], 'these never happened in the whole batch')
  }
}
