/** Starts configured jobs when they come due. One loop for all; no timer lasts longer than TICK_MS_MAX, so that a clock that jumps, a machine that slept and
 *  a repository made meanwhile are noticed.
 *
 *  When: at the first time of the cron expression after the last run began (or the job was first seen), plus jitter. If that time has passed — the server was
 *  down, the clock jumped — the job runs once, now; how many times passed does not matter. So does one that an orderly stop of the server cut short. A job whose
 *  repository is busy waits, and runs once.
 *  A clock that jumps about cannot make it run again and again: between two starts of a job lies half of its period, an hour at most, by the monotonic clock.
 */
import type { Clock } from '../../core/clock.js'
import { describeCause, hasCode } from '../../core/errors.js'
import type { JobInfo, JobRunInfo } from '../../core/messages.js'
import type { Random } from '../../core/random.js'
import type { RepositoryHost } from '../../repo/repository-host-contract.js'
import type { Repository } from '../../repo/repository.js'
import type { Logger } from '../logger.js'
import type { JobDefinition } from './job-file.js'
import { unknownJob, type JobRegistry } from './job-registry.js'
import type { JobRun } from './job-run.js'

/** Runs that the schedule has under way at once, over all repositories; the others wait their turn. */
export const SCHEDULED_RUNS_MAX = 2
const TICK_MS_MAX = 30_000
/** Wall and monotonic clock may drift apart by this much between two ticks before it counts as a jump. */
const JUMP_MS = 60_000
const REST_MS_MAX = 3_600_000

export interface SchedulerDeps {
  readonly definitions: readonly JobDefinition[]
  readonly host: RepositoryHost
  readonly registry: JobRegistry
  readonly clock: Clock
  readonly random: Random
  readonly log: Logger
}
/** One definition on one repository. */
interface Plan {
  nextAtMs: number
  waitingFor?: string
}

export class Scheduler {
  readonly #deps: SchedulerDeps
  readonly #plans = new Map<string, Plan>()
  /** Monotonic times before which a job does not start again. */
  readonly #restsUntilMs = new Map<string, number>()
  #seen: { readonly wallMs: number; readonly monotonicMs: number } | undefined
  #waking = new AbortController()

  constructor(deps: SchedulerDeps) {
    this.#deps = deps
    deps.registry.onEnd(() => { this.#waking.abort() })
  }

  /** Resolves when `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    if (this.#deps.definitions.length === 0) return
    while (!signal.aborted) {
      this.#waking = new AbortController()
      const waitMs = this.#tickSafely()
      await this.#deps.clock.sleep(waitMs, AbortSignal.any([signal, this.#waking.signal])).catch(() => undefined) // awake early, or over
    }
  }

  /** One job that cannot be planned must not end the schedule of all. */
  #tickSafely(): number {
    try {
      return this.tick()
    } catch (error) {
      this.#deps.log.error({ cause: describeCause(error), err: error }, 'jobs not planned')
      return TICK_MS_MAX
    }
  }
  /** Starts what is due. Answers how long nothing else will be. */
  tick(): number {
    const { clock, definitions, host, registry } = this.#deps
    const wallMs = clock.now(), monotonicMs = clock.monotonicMs()
    if (this.#seen !== undefined && Math.abs(wallMs - this.#seen.wallMs - (monotonicMs - this.#seen.monotonicMs)) > JUMP_MS) this.#replanAll(wallMs - this.#seen.wallMs)
    this.#seen = { wallMs, monotonicMs }
    const due: { repository: Repository; definition: JobDefinition; plan: Plan }[] = []
    let waitMs = TICK_MS_MAX
    for (const repository of host.list()) {
      for (const definition of definitionsOf(definitions, repository.name)) {
        const plan = this.#planOf(repository.name, definition)
        if (plan === undefined) { waitMs = Math.min(waitMs, 1_000); continue } // its log is being read
        const untilMs = Math.max(plan.nextAtMs - wallMs, (this.#restsUntilMs.get(keyOf(repository.name, definition)) ?? monotonicMs) - monotonicMs)
        if (untilMs <= 0) due.push({ repository, definition, plan })
        else waitMs = Math.min(waitMs, untilMs)
      }
    }
    due.sort((one, other) => one.plan.nextAtMs - other.plan.nextAtMs)
    for (const { repository, definition, plan } of due) {
      if (registry.running.filter(({ facts }) => facts.trigger === 'schedule').length >= SCHEDULED_RUNS_MAX) break // its end wakes this loop
      if (plan.waitingFor !== undefined && registry.live(repository.name, plan.waitingFor) !== undefined) continue // likewise
      this.#launch(repository, definition, plan)
    }
    return waitMs
  }
  #launch(repository: Repository, definition: JobDefinition, plan: Plan): void {
    try {
      this.#start(repository, definition, 'schedule')
    } catch (error) {
      if (hasCode(error, 'REPOSITORY_BUSY') && typeof error.details.job === 'string') plan.waitingFor = error.details.job
      else if (!hasCode(error, 'SERVER_DRAINING'))
        this.#deps.log.error({ repository: repository.name, name: definition.name, cause: describeCause(error) }, 'job not started')
    }
  }
  #start(repository: Repository, definition: JobDefinition, trigger: 'schedule' | 'hand'): JobRun {
    const { registry, clock } = this.#deps
    const { name, kind, options, schedule } = definition
    const run = registry.start({ repository, kind, options, trigger, job: name })
    const nowMs = clock.now()
    const log = registry.logOf(repository.name)
    log.noteTimes(name, { sinceMs: log.timesOf(name)?.sinceMs ?? nowMs, lastStartedAtMs: nowMs })
    const key = keyOf(repository.name, definition)
    this.#plans.delete(key)
    const periodMs = (schedule.next(nowMs) ?? nowMs + REST_MS_MAX) - nowMs
    this.#restsUntilMs.set(key, clock.monotonicMs() + Math.min(periodMs / 2, REST_MS_MAX))
    return run
  }

  /** Undefined while what is remembered of the repository is being read. */
  #planOf(repository: string, definition: JobDefinition): Plan | undefined {
    const key = keyOf(repository, definition)
    const known = this.#plans.get(key)
    if (known !== undefined) return known
    const log = this.#deps.registry.logOf(repository)
    if (!log.isLoaded) return undefined
    const nowMs = this.#deps.clock.now()
    let times = log.timesOf(definition.name)
    if (times === undefined) log.noteTimes(definition.name, times = { sinceMs: nowMs })
    const wasCut = isCutByStop(log.lastRunOf(definition.name))
    const plan: Plan = { nextAtMs: this.#nextAt(definition, times.lastStartedAtMs ?? times.sinceMs, nowMs, wasCut) }
    this.#plans.set(key, plan)
    return plan
  }
  /** @param lastMs may lie in the future, when the clock was set back since */
  #nextAt({ schedule, jitterSeconds }: JobDefinition, lastMs: number, nowMs: number, isOwed: boolean): number {
    const due = isOwed ? nowMs : schedule.next(Math.min(lastMs, nowMs))
    if (due === undefined) return Number.MAX_SAFE_INTEGER
    const startMs = Math.max(due, nowMs) // one that was missed: now, once
    const roomMs = ((schedule.next(startMs) ?? Infinity) - startMs) / 2
    return startMs + Math.floor(this.#deps.random.fraction() * Math.min(jitterSeconds * 1000, roomMs))
  }
  #replanAll(byMs: number): void {
    this.#deps.log.warn({ byMs }, 'the clock jumped; jobs are planned anew')
    this.#plans.clear()
  }

  /** The configured jobs of a repository, in the order of the file. */
  async jobsOf(repository: string): Promise<JobInfo[]> {
    const log = this.#deps.registry.logOf(repository)
    await log.loaded
    return definitionsOf(this.#deps.definitions, repository).map((definition) => {
      const { name, kind, schedule: { cron, timeZone }, jitterSeconds, options } = definition
      const plan = this.#planOf(repository, definition)
      const lastRun = this.#deps.registry.live(repository, name)?.info() ?? log.lastRunOf(name)
      return { name, kind, cron, timeZone, jitterSeconds, options, nextRunAtMs: plan?.nextAtMs ?? null,
        ...(plan?.waitingFor === undefined ? {} : { waitingFor: plan.waitingFor }), ...(lastRun === undefined ? {} : { lastRun }) }
    })
  }
  /** Counts as the job's latest run. @throws {RoostError} JOB_UNKNOWN; REPOSITORY_BUSY; SERVER_DRAINING */
  runNow(repository: Repository, name: string): JobRun {
    const definition = definitionsOf(this.#deps.definitions, repository.name).find((one) => one.name === name)
    if (definition === undefined) throw unknownJob(name)
    return this.#start(repository, definition, 'hand')
  }
}

/** Ended by an orderly stop of the server. One that died with the server is not begun at once again: it may be what the server died of. */
const isCutByStop = (run: JobRunInfo | undefined): boolean => run?.state === 'interrupted' && run.endedAtMs !== undefined

const definitionsOf = (definitions: readonly JobDefinition[], repository: string): JobDefinition[] =>
  definitions.filter((definition) => definition.repository === undefined || definition.repository === repository)
const keyOf = (repository: string, { name }: JobDefinition): string => `${repository} ${name}`
