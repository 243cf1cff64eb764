/** One run of maintenance: pulls its events, knows how far it is, tells everyone who watches, ends when told to.
 *
 *  Who asked for a run that ends with him gets every event, and holds it back by reading slowly. Everyone else only looks on: who reads slowly misses events,
 *  and the run does not notice. What was found is kept for those who come later, up to NOTES_MAX.
 */
import type { Clock } from '../../core/clock.js'
import { RoostError, isAbort, type ErrorCode } from '../../core/errors.js'
import type { JobKind, JobOptions, JobRunInfo, JobState, MaintenanceEvent } from '../../core/messages.js'
import { toErrorReply } from '../error-handler.js'

const NOTES_MAX = 1_000
const QUEUE_MAX = 256

export interface JobFacts {
  readonly id: string
  readonly repository: string
  readonly kind: JobKind
  readonly options: JobOptions
  readonly trigger: 'schedule' | 'hand'
  /** The configured job. */
  readonly job?: string
  /** It ends with the connection that asked for it. */
  readonly isAttended: boolean
}
type Progress = Extract<MaintenanceEvent, { type: 'progress' }>
type Done = Extract<MaintenanceEvent, { type: 'done' }>
/** Why a run was told to end: by a person, by whoever asked for it going away, by the server's end. */
export type StopCause = 'cancelled' | 'asker-gone' | 'server-ends'

export class JobRun {
  readonly #clock: Clock
  readonly #startedAtMs: number
  readonly #stop = new AbortController()
  readonly #watchers = new Set<Watcher>()
  readonly #notes: MaintenanceEvent[] = []
  #progress: Progress | undefined
  #problems = 0
  #healed = 0
  #done: Done | undefined
  #failure: Error | undefined
  #stopCause: StopCause | undefined
  #state: JobState = 'running'
  #endedAtMs: number | undefined
  /** Resolves when the run has ended, however it did. */
  readonly ended: Promise<void>

  constructor(readonly facts: JobFacts, clock: Clock, start: (signal: AbortSignal) => AsyncIterable<MaintenanceEvent>) {
    this.#clock = clock
    this.#startedAtMs = clock.now()
    this.ended = this.#run(start)
  }
  get isRunning(): boolean { return this.#state === 'running' }
  /** Of a run that ended without having done its work. */
  get failure(): Error | undefined { return this.#failure }

  /** The run ends at its next wait. The first cause counts. */
  stop(cause: StopCause): void {
    if (this.#stopCause !== undefined || !this.isRunning) return
    this.#stopCause = cause
    // An abort like any other for the work: only this class knows what it means.
    this.#stop.abort(new DOMException('the run was told to end', 'AbortError'))
    for (const watcher of this.#watchers) watcher.wake() // one that reads slowly holds nothing back any more
  }

  async #run(start: (signal: AbortSignal) => AsyncIterable<MaintenanceEvent>): Promise<void> {
    try {
      for await (const event of start(this.#stop.signal)) {
        this.#note(event)
        if (event.type !== 'done' && event.type !== 'failed') await this.#tell(event)
      }
      if (this.#done === undefined) throw new Error(`the ${this.facts.kind} ended without saying how`)
      this.#end('done')
    } catch (error) {
      const failure = error instanceof Error ? error : new Error('The run failed.', { cause: error })
      const meaning = this.#stopCause === undefined ? undefined : STOPPED[this.#stopCause]
      this.#failure = meaning === undefined ? failure : new RoostError(meaning.code, meaning.message, { job: this.facts.id }, { cause: failure })
      this.#end(meaning?.state ?? 'failed')
    }
  }
  #note(event: MaintenanceEvent): void {
    switch (event.type) {
      case 'progress': this.#progress = event; return
      case 'done': this.#done = event; return
      case 'failed': throw new RoostError(event.error.code, event.error.message, event.error.details)
      case 'problem': this.#problems++; break
      case 'healed': this.#healed++; break
      default: return // one a pack or a snapshot: for those who watch, not to be kept
    }
    if (this.#notes.length < NOTES_MAX) this.#notes.push(event)
  }
  async #tell(event: MaintenanceEvent): Promise<void> {
    await Promise.all([...this.#watchers].map((watcher) => watcher.put(event, this.#stop.signal)))
  }
  #end(state: JobState): void {
    this.#state = state
    this.#endedAtMs = this.#clock.now()
    for (const watcher of this.#watchers) watcher.wake()
  }

  /** For the connection that asked, as `lookOn`; of an attended run it misses nothing. */
  watch(signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> { return this.#watch(signal, this.facts.isAttended) }
  /** What was found so far, where it is, and then what happens; the last is `done`. A signal that aborts only ends the watching.
   *  @throws what made the run fail; JOB_CANCELLED, SERVER_DRAINING when it was told to end */
  lookOn(signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> { return this.#watch(signal, false) }
  async *#watch(signal: AbortSignal, missesNothing: boolean): AsyncGenerator<MaintenanceEvent, void, undefined> {
    const watcher = new Watcher(missesNothing)
    const before = [...this.#notes, ...(this.#progress === undefined ? [] : [this.#progress])]
    this.#watchers.add(watcher)
    const leave = (): void => { this.#watchers.delete(watcher); watcher.close() }
    signal.addEventListener('abort', leave, { once: true })
    try {
      yield* before
      for (;;) {
        signal.throwIfAborted()
        const event = watcher.take()
        if (event !== undefined) yield event
        else if (this.isRunning) await watcher.nextChange()
        else break
      }
      if (this.#failure !== undefined) throw this.#failure
      yield this.#done!
    } finally {
      signal.removeEventListener('abort', leave)
      leave()
    }
  }

  info(): JobRunInfo {
    const { id, kind, options, trigger, job } = this.facts
    const progress = this.#progress, failure = this.#failure
    return {
      id, kind, options, trigger, ...(job === undefined ? {} : { job }), state: this.#state, startedAtMs: this.#startedAtMs,
      ...(this.#endedAtMs === undefined ? {} : { endedAtMs: this.#endedAtMs }),
      ...(progress === undefined ? {} : { progress: { phase: progress.phase, done: progress.done, total: progress.total } }),
      problems: this.#done?.problems ?? this.#problems, healed: this.#healed, counts: this.#done?.counts ?? {},
      ...(failure === undefined ? {} : { error: describeFailure(failure) }),
    }
  }
}

const STOPPED: Readonly<Record<StopCause, { readonly state: JobState; readonly code: ErrorCode; readonly message: string }>> = {
  cancelled: { state: 'cancelled', code: 'JOB_CANCELLED', message: 'The run was cancelled.' },
  'asker-gone': { state: 'cancelled', code: 'JOB_CANCELLED', message: 'Whoever asked for the run went away.' },
  'server-ends': { state: 'interrupted', code: 'SERVER_DRAINING', message: 'The server is stopping; the next run does what is left.' },
}
function describeFailure(failure: Error): { code: ErrorCode; message: string } {
  if (isAbort(failure)) return { code: 'JOB_CANCELLED', message: 'The run ended early.' }
  const { code, message } = toErrorReply(failure, '', true).body // administrators alone see runs
  return { code, message }
}

/** The events of a run on their way to one watcher. */
class Watcher {
  readonly #queue: MaintenanceEvent[] = []
  #waiting: (() => void)[] = []
  #isClosed = false
  constructor(readonly missesNothing: boolean) {}

  /** Resolves when there is room for more, or nobody reads any more. A progress that nobody has read yet is replaced. */
  async put(event: MaintenanceEvent, stop: AbortSignal): Promise<void> {
    if (this.#isClosed) return
    const last = this.#queue.at(-1)
    if (event.type === 'progress' && last?.type === 'progress' && last.phase === event.phase) this.#queue.pop()
    if (this.#queue.length >= QUEUE_MAX && !this.missesNothing) return
    this.#queue.push(event)
    this.wake()
    if (!this.missesNothing) return
    while (this.#queue.length >= QUEUE_MAX && !this.#isClosed && !stop.aborted) await this.nextChange()
  }
  take(): MaintenanceEvent | undefined {
    const event = this.#queue.shift()
    if (event !== undefined && this.#queue.length === QUEUE_MAX - 1) this.wake()
    return event
  }
  nextChange(): Promise<void> { return new Promise((resolve) => { this.#waiting.push(resolve) }) }
  wake(): void { for (const resolve of this.#waiting.splice(0)) resolve() }
  close(): void { this.#isClosed = true; this.wake() }
}

