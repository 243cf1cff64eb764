/** All runs of maintenance of one server: each is started here, whoever asks, so that none meets another that it excludes.
 *
 *  Concurrency: `start` decides and registers in one step; what it refuses names the run in the way.
 */
import { join } from 'node:path'
import type { Clock } from '../../core/clock.js'
import { RoostError, describeCause } from '../../core/errors.js'
import type { JobKind, JobOptions, JobRunInfo, MaintenanceEvent } from '../../core/messages.js'
import type { Random } from '../../core/random.js'
import type { Repository } from '../../repo/repository.js'
import type { Logger } from '../logger.js'
import { JOB_KIND_TRAITS, excludeEachOther, type JobServices } from './job-kinds.js'
import { JobLog } from './job-log.js'
import { JobRun } from './job-run.js'

export interface JobRegistryDeps {
  /** Where the logs are, a file a repository. */
  readonly directory: string
  readonly clock: Clock
  readonly random: Random
  readonly log: Logger
  readonly services: JobServices
}
export interface JobRequest {
  readonly repository: Repository
  readonly kind: JobKind
  readonly options: JobOptions
  readonly trigger: 'schedule' | 'hand'
  readonly job?: string
}

export class JobRegistry {
  readonly #deps: JobRegistryDeps
  readonly #running = new Map<string, JobRun>()
  readonly #logs = new Map<string, JobLog>()
  readonly #endWatchers = new Set<() => void>()
  #isClosing = false
  constructor(deps: JobRegistryDeps) { this.#deps = deps }

  get running(): readonly JobRun[] { return [...this.#running.values()] }
  /** Called after every end of a run. */
  onEnd(call: () => void): void { this.#endWatchers.add(call) }

  logOf(repository: string): JobLog {
    let log = this.#logs.get(repository)
    if (log === undefined) {
      log = new JobLog(join(this.#deps.directory, `${repository}.json`),
        (error) => { this.#deps.log.warn({ repository, cause: describeCause(error) }, 'log of jobs not read or written') })
      this.#logs.set(repository, log)
    }
    return log
  }

  /** A run that has begun; with a kind that goes on by itself, perhaps one that was under way.
   *  @param asker when it aborts, the run ends if its kind does so
   *  @throws {RoostError} REPOSITORY_BUSY naming the run in the way; SERVER_DRAINING */
  start(request: JobRequest, asker?: AbortSignal): JobRun {
    if (this.#isClosing) throw new RoostError('SERVER_DRAINING', 'The server is shutting down.')
    const { repository, kind, options, trigger, job } = request
    const traits = JOB_KIND_TRAITS[kind]
    const inTheWay = this.running.find(({ facts }) => facts.repository === repository.name && excludeEachOther(facts, request))
    if (inTheWay !== undefined) {
      if (traits.goesOnByItself && inTheWay.facts.kind === kind) return inTheWay
      throw new RoostError('REPOSITORY_BUSY', `A ${inTheWay.facts.kind} of this repository is running (job ${inTheWay.facts.id}${
        inTheWay.facts.job === undefined ? '' : `, ${inTheWay.facts.job}`}).`, { job: inTheWay.facts.id, kind: inTheWay.facts.kind })
    }
    const id = this.#deps.random.bytes(8).toString('hex')
    const isAttended = asker !== undefined && traits.endsWithAsker(options)
    const run = new JobRun({ id, repository: repository.name, kind, options, trigger, isAttended, ...(job === undefined ? {} : { job }) }, this.#deps.clock,
      (signal) => traits.run(repository, options, signal, this.#deps.services))
    this.#running.set(id, run)
    if (isAttended) endWith(run, asker)
    this.#deps.log.info({ repository: repository.name, job: id, kind, name: job, trigger }, 'job started')
    const log = this.logOf(repository.name)
    log.noteRun(run.info())
    void run.ended.then(() => { this.#ended(run, log) })
    return run
  }
  #ended(run: JobRun, log: JobLog): void {
    this.#running.delete(run.facts.id)
    const { state, startedAtMs, endedAtMs, problems, counts, error } = run.info()
    const facts = { repository: run.facts.repository, job: run.facts.id, kind: run.facts.kind, name: run.facts.job, state, problems, counts,
      elapsedMs: (endedAtMs ?? startedAtMs) - startedAtMs }
    if (state === 'failed') this.#deps.log.error({ ...facts, code: error?.code, cause: describeCause(run.failure) }, 'job failed')
    else this.#deps.log[problems > 0 ? 'warn' : 'info'](facts, 'job ended')
    log.noteRun(run.info())
    for (const call of this.#endWatchers) call()
  }

  /** Those under way, then those that ended, newest first. */
  async runsOf(repository: string): Promise<JobRunInfo[]> {
    const log = this.logOf(repository)
    await log.loaded
    const live = this.running.filter(({ facts }) => facts.repository === repository).map((run) => run.info())
    return [...live.reverse(), ...log.runs.filter(({ state }) => state !== 'running')]
  }
  /** The run of that id, or the latest of the configured job of that name. @throws {RoostError} JOB_UNKNOWN */
  async find(repository: string, idOrName: string): Promise<JobRunInfo> {
    const found = (await this.runsOf(repository)).find(({ id, job }) => id === idOrName || job === idOrName)
    if (found === undefined) throw unknownJob(idOrName)
    return found
  }
  live(repository: string, idOrName: string): JobRun | undefined {
    return this.running.find(({ facts }) => facts.repository === repository && (facts.id === idOrName || facts.job === idOrName))
  }
  /** The events of a run under way; of one that has ended, what it came to. @throws {RoostError} JOB_UNKNOWN */
  async watch(repository: string, idOrName: string, signal: AbortSignal): Promise<AsyncIterable<MaintenanceEvent>> {
    return this.live(repository, idOrName)?.lookOn(signal) ?? outcomeOf(await this.find(repository, idOrName))
  }
  /** Resolves when the run has ended. One that had ended before is answered as it is. @throws {RoostError} JOB_UNKNOWN; JOB_NOT_CANCELLABLE */
  async cancel(repository: string, idOrName: string): Promise<JobRunInfo> {
    const run = this.live(repository, idOrName)
    if (run === undefined) return await this.find(repository, idOrName)
    if (JOB_KIND_TRAITS[run.facts.kind].goesOnByItself)
      throw new RoostError('JOB_NOT_CANCELLABLE', `A ${run.facts.kind} goes on in the background; it cannot be cancelled.`, { job: run.facts.id })
    run.stop('cancelled')
    await run.ended
    return run.info()
  }

  /** Nothing is started any more, and what nobody is connected to is told to end: all of it is resumed by its next run. */
  beginClose(): void {
    this.#isClosing = true
    for (const run of this.running) if (!run.facts.isAttended) run.stop('server-ends')
  }
  /** Ends every run. Resolves when they have ended, or after `patienceMs`: a step that cannot be cut ends with its repository. */
  async stop(patienceMs: number): Promise<void> {
    this.beginClose()
    for (const run of this.running) run.stop('server-ends')
    if (this.running.length === 0) return
    const waiting = new AbortController()
    await Promise.race([Promise.all(this.running.map(({ ended }) => ended)), this.#deps.clock.sleep(patienceMs, waiting.signal).catch(() => undefined)])
    waiting.abort()
  }
  /** Resolves when every run has ended and the logs are on disk. */
  async close(): Promise<void> {
    await this.stop(0)
    await Promise.all(this.running.map(({ ended }) => ended))
    await Promise.all([...this.#logs.values()].map((log) => log.settled()))
  }
}

export function unknownJob(idOrName: string): RoostError {
  return new RoostError('JOB_UNKNOWN', `There is no job or run "${idOrName.slice(0, 64)}" of this repository.`)
}
async function* outcomeOf({ state, error, problems, counts }: JobRunInfo): AsyncGenerator<MaintenanceEvent, void, undefined> {
  if (state === 'done') yield { type: 'done', problems, counts }
  else throw error === undefined ? new RoostError('SERVER_DRAINING', 'The server ended before the run did.') : new RoostError(error.code, error.message)
}
function endWith(run: JobRun, asker: AbortSignal): void {
  const stop = (): void => { run.stop(asker.reason instanceof RoostError && asker.reason.code === 'SERVER_DRAINING' ? 'server-ends' : 'asker-gone') }
  if (asker.aborted) stop()
  else asker.addEventListener('abort', stop, { once: true })
  void run.ended.then(() => { asker.removeEventListener('abort', stop) })
}
