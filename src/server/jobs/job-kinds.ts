/** What kinds of maintenance there are: what each takes, how it runs, what it must not run beside, what ends it. A new kind is a row here. */
import type { CheckOptions, CollectOptions, ForgetRequest, JobKind, JobOptions, MaintenanceEvent, TargetMode } from '../../core/messages.js'
import type { Repository } from '../../repo/repository.js'
import { BOOT_TIMEOUT_SECONDS_MAX } from './boot-test-job.js'

/** Takes a value of an option, or says what it should have been. */
type OptionRule = (value: unknown) => string | undefined
const flag: OptionRule = (value) => typeof value === 'boolean' ? undefined : 'true or false'
const share: OptionRule = (value) => typeof value === 'number' && value >= 0 && value <= 1 ? undefined : 'a number from 0 to 1'
const bytes: OptionRule = (value) => typeof value === 'number' && Number.isSafeInteger(value) && value > 0 ? undefined : 'a whole number of bytes'
const percent: OptionRule = (value) => typeof value === 'number' && value >= 0 && value <= 100 ? undefined : 'a number from 0 to 100'
const seconds: OptionRule = (value) => typeof value === 'number' && Number.isSafeInteger(value) && value > 0 && value <= BOOT_TIMEOUT_SECONDS_MAX ? undefined
  : `a whole number of seconds up to ${BOOT_TIMEOUT_SECONDS_MAX}`
const word: OptionRule = (value) => typeof value === 'string' && /^[A-Za-z0-9][A-Za-z0-9,=._-]*$/.test(value) ? undefined : 'a word such as tcg or kvm'
const path: OptionRule = (value) => typeof value === 'string' && value.startsWith('/') ? undefined : 'an absolute path'
const address: OptionRule = (value) => typeof value === 'string' && /^https?:\/\/[^/]+/.test(value) ? undefined : 'an address such as https://backup.example:8470'
const name: OptionRule = (value) => typeof value === 'string' && value !== '' ? undefined : 'a name'

/** What runs need besides their repository. */
export interface JobServices {
  replicate(repository: Repository, options: JobOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent>
  bootTest(repository: Repository, options: JobOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent>
}
export interface JobKindTraits {
  /** What the configuration may set; requests have schemas of their own. */
  readonly options: Readonly<Record<string, OptionRule>>
  /** What is wrong with the options as a whole; absent: nothing can be. */
  refuses?(options: JobOptions): string | undefined
  run(repository: Repository, options: JobOptions, signal: AbortSignal, services: JobServices): AsyncIterable<MaintenanceEvent>
  /** Kinds that must not run on the same repository meanwhile, besides its own. Said on one side, meant on both. */
  readonly excludes: readonly JobKind[]
  /** Runs with different values of it are apart. */
  readonly apartBy?: string
  /** Asked for by hand, it ends when whoever asked goes away. */
  endsWithAsker(options: JobOptions): boolean
  /** The work goes on in the background by itself: cancelling is impossible, and asking again watches what runs. */
  readonly goesOnByItself: boolean
  /** Started by the schedule too; the others take a decision of a person. */
  readonly schedulable: boolean
}

export const JOB_KIND_TRAITS: Readonly<Record<JobKind, JobKindTraits>> = {
  gc: {
    options: { repackBelow: share, bytesPerSecondMax: bytes, acceptDamage: flag }, excludes: ['rebuild'],
    // Hours of work are not to end with a terminal; a dry run is for whoever reads it.
    endsWithAsker: ({ dryRun }) => dryRun === true, goesOnByItself: false, schedulable: true,
    run: (repository, options, signal) => repository.collect(options as CollectOptions, signal),
  },
  forget: {
    // On schedule the stored policies decide.
    options: { source: name, tag: name }, excludes: ['rebuild'], endsWithAsker: () => true, goesOnByItself: false, schedulable: true,
    run: (repository, options, signal) => repository.forget(options as ForgetRequest, signal),
  },
  check: {
    options: { readDataPercent: percent, heal: flag, mark: flag, bytesPerSecondMax: bytes, maxDurationMs: bytes },
    excludes: ['rebuild'], endsWithAsker: () => true, goesOnByItself: false, schedulable: true,
    run: (repository, options, signal) => repository.check({ readDataPercent: 0, ...options } as CheckOptions, signal),
  },
  rebuild: {
    options: {}, excludes: [], endsWithAsker: () => true, goesOnByItself: false, schedulable: false,
    run: (repository, _options, signal) => repository.rebuild(signal),
  },
  backfill: {
    options: { target: name }, excludes: [], apartBy: 'target', endsWithAsker: () => false, goesOnByItself: true, schedulable: true,
    run: (repository, { target }, signal) => typeof target === 'string' ? repository.backfillTarget(target, signal) : backfillAll(repository, signal),
  },
  drain: {
    options: { target: name }, excludes: [], apartBy: 'target', endsWithAsker: () => false, goesOnByItself: true, schedulable: false,
    run: (repository, { target }, signal) => repository.drainTarget(target as string, signal),
  },
  replicate: {
    options: { replication: name }, excludes: ['rebuild'], apartBy: 'replication', endsWithAsker: () => false, goesOnByItself: false, schedulable: true,
    run: (repository, options, signal, services) => services.replicate(repository, options, signal),
  },
  'boot-test': {
    options: { source: name, waitAgent: flag, waitSerial: name, waitSeconds: seconds, timeoutSeconds: seconds, memoryBytes: bytes, cpus: bytes, accel: word, firmware: path,
      scratch: path, server: address },
    refuses: ({ waitAgent, waitSerial, waitSeconds }) => [waitAgent === true, waitSerial !== undefined, waitSeconds !== undefined].filter(Boolean).length === 1 ? undefined
      : 'say when the machine is up: waitAgent: true, waitSerial or waitSeconds (one of them).',
    excludes: ['rebuild'], apartBy: 'source', endsWithAsker: () => true, goesOnByItself: false, schedulable: true,
    run: (repository, options, signal, services) => services.bootTest(repository, options, signal),
  },
}

export function excludeEachOther(one: { kind: JobKind; options: JobOptions }, other: { kind: JobKind; options: JobOptions }): boolean {
  if (one.kind !== other.kind) return JOB_KIND_TRAITS[one.kind].excludes.includes(other.kind) || JOB_KIND_TRAITS[other.kind].excludes.includes(one.kind)
  const { apartBy } = JOB_KIND_TRAITS[one.kind]
  return apartBy === undefined || one.options[apartBy] === other.options[apartBy]
}

/** Every active target, one after the other. */
async function* backfillAll(repository: Repository, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const active: TargetMode = 'active'
  const { targets } = await repository.listTargets()
  let problems = 0
  const counts: Record<string, number> = {}
  for (const target of targets.filter(({ mode }) => mode === active)) {
    for await (const event of repository.backfillTarget(target.name, signal)) {
      if (event.type !== 'done') { yield event; continue }
      problems += event.problems
      for (const [what, count] of Object.entries(event.counts)) counts[what] = (counts[what] ?? 0) + count
    }
  }
  yield { type: 'done', problems, counts }
}
