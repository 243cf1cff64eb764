/** What is remembered of one repository's jobs: the latest runs, and since when and when last each configured job ran. A file of its own in the data
 *  directory, replaced whole. Written when a run starts, so that a run which the server's end cut short is known as such, and when it ends.
 *
 *  It is for people and for not running twice; no data depends on it. So a file that cannot be read or written is reported and does not keep a server down.
 */
import { RoostError } from '../../core/errors.js'
import { JOB_KINDS, type JobRunInfo } from '../../core/messages.js'
import { readJsonFile, writeJsonFile } from '../atomic-json-file.js'

/** Of one repository. */
export const RUNS_KEPT_MAX = 50
const FORMAT = 1

export interface JobTimes {
  /** When the configured job was seen first. */
  readonly sinceMs: number
  readonly lastStartedAtMs?: number
}
interface LogFile { readonly format: number; readonly times: Readonly<Record<string, JobTimes>>; readonly runs: readonly JobRunInfo[] }

export class JobLog {
  readonly #path: string
  readonly #report: (error: unknown) => void
  /** Newest first. */
  #runs: JobRunInfo[] = []
  readonly #times = new Map<string, JobTimes>()
  #isLoaded = false
  #dirty = false
  #writing: Promise<void> | undefined
  /** Resolves when what an earlier process left is here. */
  readonly loaded: Promise<void>

  constructor(path: string, report: (error: unknown) => void) {
    this.#path = path
    this.#report = report
    this.loaded = this.#load()
  }
  get isLoaded(): boolean { return this.#isLoaded }
  get runs(): readonly JobRunInfo[] { return this.#runs }
  timesOf(job: string): JobTimes | undefined { return this.#times.get(job) }
  lastRunOf(job: string): JobRunInfo | undefined { return this.#runs.find((run) => run.job === job) }

  noteTimes(job: string, times: JobTimes): void {
    this.#times.set(job, times)
    this.#save()
  }
  /** Adds a run, or brings it up to date. */
  noteRun(run: JobRunInfo): void {
    const at = this.#runs.findIndex(({ id }) => id === run.id)
    if (at >= 0) this.#runs[at] = run
    else this.#runs.unshift(run)
    this.#trim()
    this.#save()
  }
  /** Resolves when everything noted is on disk, or was reported as not. */
  async settled(): Promise<void> {
    await this.loaded
    while (this.#writing !== undefined) await this.#writing
  }

  /** The last run of every configured job stays, however many others came after it. */
  #trim(): void {
    if (this.#runs.length <= RUNS_KEPT_MAX) return
    const lastOfJob = new Set([...this.#times.keys()].map((job) => this.lastRunOf(job)?.id))
    this.#runs = this.#runs.filter(({ id }, place) => place < RUNS_KEPT_MAX || lastOfJob.has(id))
  }
  async #load(): Promise<void> {
    try {
      const file = await readJsonFile(this.#path)
      if (file !== undefined) this.#adopt(readLog(file))
    } catch (error) {
      this.#report(error)
    } finally {
      this.#isLoaded = true
    }
  }
  #adopt({ times, runs }: LogFile): void {
    for (const [job, one] of Object.entries(times)) if (!this.#times.has(job)) this.#times.set(job, one)
    // Whatever ran then does not run now.
    const left = runs.map((run) => run.state === 'running' ? { ...run, state: 'interrupted' as const } : run)
    this.#runs.push(...left.filter(({ id }) => !this.#runs.some((run) => run.id === id)))
    this.#trim()
  }
  #save(): void {
    this.#dirty = true
    this.#writing ??= this.#write().finally(() => { this.#writing = undefined })
  }
  async #write(): Promise<void> {
    await this.loaded
    while (this.#dirty) {
      this.#dirty = false
      const file: LogFile = { format: FORMAT, times: Object.fromEntries(this.#times), runs: this.#runs }
      try {
        await writeJsonFile(this.#path, file)
      } catch (error) {
        this.#report(error)
      }
    }
  }
}

function readLog(value: unknown): LogFile {
  const file = value as Partial<LogFile> | null
  if (typeof file !== 'object' || file === null || file.format !== FORMAT || !Array.isArray(file.runs) || typeof file.times !== 'object')
    throw new RoostError('INTERNAL', 'The log of jobs is not of this version; it is begun anew.')
  return { format: FORMAT, times: file.times as Record<string, JobTimes>, runs: (file.runs as JobRunInfo[]).filter(({ kind }) => JOB_KINDS.includes(kind)) }
}
