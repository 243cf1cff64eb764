/** What kind of a run a seed makes: how many clients, which faults, how things are set up. Half of it is left out of every run, so that
 *  rare things meet each other undisturbed.
 */
import type { Durability, WritePolicy } from '../../src/core/messages.js'
import { SeededRandom } from './seeded-random.js'
import { NO_FAULTS, type FaultRates } from './target.js'

export interface Profile {
  readonly index: 'memory' | 'lmdb'
  readonly targets: 1 | 2
  readonly config: { readonly writePolicy: WritePolicy; readonly durability: Durability } | undefined
  readonly clients: number
  /** Steps until everybody is told to come to an end. */
  readonly steps: number
  readonly sealers: number
  readonly spoolBytesMax: number
  readonly commitWaitMs: number
  readonly retries: boolean
  readonly readsAtOnce: number
  readonly lateReplies: number
  readonly timeWeight: number
  readonly weights: ReadonlyMap<string, number>
  readonly faults: FaultRates
  /** What happens to the world, and how often relative to the rest. */
  readonly environment: ReadonlyMap<EnvironmentEvent, number>
}
export const ENVIRONMENT_EVENTS = ['crash', 'crash-in-write', 'power-loss', 'restart', 'outage', 'damage', 'clock', 'check', 'heal', 'rebuild', 'collect', 'crash-in-collection', 'crash-at-call', 'suspension'] as const
export type EnvironmentEvent = (typeof ENVIRONMENT_EVENTS)[number]

export function profileOf(seed: number, steps: number | undefined): Profile {
  const random = new SeededRandom(seed, 1)
  const targets = random.chance(0.75) ? 2 : 1
  const weights = new Map<string, number>()
  for (const kind of ['index', 'main', 'other', 'file', 'pool', 'client', 'operator']) if (random.chance(0.4)) weights.set(kind, random.pick([0.05, 0.2, 3]))
  const environment = new Map<EnvironmentEvent, number>()
  for (const event of ENVIRONMENT_EVENTS) if (random.chance(0.5)) environment.set(event, random.pick([1, 1, 3]))
  if (targets === 1) environment.delete('damage')
  if (random.chance(0.8)) environment.set('collect', 5)
  return {
    index: random.chance(0.35) ? 'lmdb' : 'memory', targets,
    config: { writePolicy: targets === 2 && random.chance(0.3) ? 1 : 'all', durability: random.chance(0.3) ? 'spool' : 'remote' },
    clients: random.between(2, 5), steps: steps ?? random.pick([600, 1_000, 1_500]), sealers: random.pick([1, 1, 2]), spoolBytesMax: random.chance(0.15) ? 6_000 : 2 ** 30,
    commitWaitMs: random.pick([1_000, 10_000, 60_000]), retries: random.chance(0.4), readsAtOnce: random.pick([0, 0.5, 0.9]), lateReplies: random.pick([0, 0.1, 0.3]),
    timeWeight: random.pick([0.01, 0.1, 0.5]), weights,
    faults: random.chance(0.5) ? NO_FAULTS : { before: random.pick([0, 0.02]), lostAnswer: random.pick([0, 0.04]), torn: random.pick([0, 0.03]), refusedDelete: random.pick([0, 0.1]) },
    environment,
  }
}
