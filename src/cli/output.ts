/** Where the command line writes: results to stdout (text, or one JSON object a line), everything else to stderr.
 *
 *  Progress is redrawn on one line of a terminal and absent in a pipe; any other line clears it first.
 */
import type { Clock } from '../core/clock.js'
import { formatProgress, RateMeter, type ProgressState } from './progress.js'

export interface OutputStream { write(text: string): unknown; readonly isTTY?: boolean; readonly columns?: number }
export interface OutputOptions {
  readonly json: boolean
  readonly quiet: boolean
  readonly verbose: boolean
  readonly stdout: OutputStream
  readonly stderr: OutputStream
  readonly clock: Clock
}

const REDRAW_MS = 100

export class Output {
  #meter = new RateMeter()
  #drawnAtMs = Number.NEGATIVE_INFINITY
  #drawn = false
  constructor(readonly options: OutputOptions) {}
  get json(): boolean { return this.options.json }
  get verbose(): boolean { return this.options.verbose }

  /** A result for people; with --json it is not printed, `record` is. */
  line(text: string): void {
    if (this.options.json) return
    this.clearProgress()
    this.options.stdout.write(`${text}\n`)
  }
  /** A result for machines. */
  record(value: Readonly<Record<string, unknown>>): void {
    if (!this.options.json) return
    this.clearProgress()
    this.options.stdout.write(`${JSON.stringify(value)}\n`)
  }
  /** A summary or remark: stderr, silenced by --quiet and by --json. */
  note(text: string): void {
    if (!this.options.quiet && !this.options.json) this.#err(text)
  }
  detail(text: string): void {
    if (this.options.verbose && !this.options.json) this.#err(text)
  }
  /** Something that must be seen whatever the options say. */
  warn(text: string): void { this.#err(text) }

  progress(state: ProgressState): void {
    const { stderr, quiet, json, clock } = this.options
    if (quiet || json || stderr.isTTY !== true) return
    const nowMs = clock.monotonicMs()
    if (nowMs - this.#drawnAtMs < REDRAW_MS) return
    this.#drawnAtMs = nowMs
    const line = formatProgress(state, this.#meter.update(state.done, nowMs), stderr.columns ?? 80)
    stderr.write(`\r\u001b[2K${line}`)
    this.#drawn = true
  }
  /** Ends one task's progress: the next begins with a fresh rate. */
  endProgress(): void {
    this.clearProgress()
    this.#meter = new RateMeter()
    this.#drawnAtMs = Number.NEGATIVE_INFINITY
  }
  clearProgress(): void {
    if (!this.#drawn) return
    this.options.stderr.write('\r\u001b[2K')
    this.#drawn = false
  }
  #err(text: string): void {
    this.clearProgress()
    this.options.stderr.write(`${text}\n`)
  }
}
