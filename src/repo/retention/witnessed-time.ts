/** Time that this server has itself lived through: what retention locks are counted in (docs/retention.md, "Whose clock").
 *
 *  A wall clock can be set forward by whoever administers the machine, or by a false time server; locks must not end by that. So a lock
 *  ends when the wall clock says so *and* the process has run for as long since. The stopwatch of a process (monotonic, stops while the
 *  machine sleeps) is the only thing credited; time in which the server did not run is not.
 *
 *  Kept are stretches: "from here on the wall clock and the stopwatch went side by side for so long". A new one begins when a process starts,
 *  or when the two part. A wall time then has a place on the stopwatch: the latest one at which the clock may have shown it. Whatever is
 *  lost (a crash before a note, the whole file, the oldest stretches) makes that place later, and locks longer; never shorter.
 */
import { timingSafeEqual } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { Clock } from '../../core/clock.js'
import { Mutex } from '../../core/concurrency.js'
import { isErrno, RoostError } from '../../core/errors.js'
import { keyedDigest } from '../../core/hash.js'
import type { FileEffects } from '../../store/file-effects.js'
import { replaceFile } from '../../store/replace-file.js'

export interface Stretch {
  /** What the wall clock showed at its beginning. */
  readonly wallMs: number
  lastedMs: number
  /** False: it may have gone on unnoted, to any wall time; nothing of that is credited. */
  hasEnded: boolean
}
/** Clocks that are corrected gently stay within this of the stopwatch; so much is taken off every credit. */
export const DRIFT_MS = 60_000
const NOTE_EVERY_MS = 600_000
const STRETCHES_MAX = 256
const FORMAT = 1

export interface WitnessedTimeDeps { readonly path: string; readonly key: Buffer; readonly clock: Clock; readonly effects: FileEffects }

export class WitnessedTime {
  readonly #deps: WitnessedTimeDeps
  readonly #stretches: Stretch[]
  readonly #writing = new Mutex()
  #beganAt: { readonly wallMs: number; readonly stopwatchMs: number }
  #notedAtMs: number
  /** That the last stretch began is durable. */
  #isNoted = false
  private constructor(deps: WitnessedTimeDeps, stretches: Stretch[]) {
    this.#deps = deps
    this.#stretches = stretches
    this.#beganAt = this.#begin()
    this.#notedAtMs = this.#beganAt.stopwatchMs
  }
  static async open(deps: WitnessedTimeDeps): Promise<WitnessedTime> {
    const time = new WitnessedTime(deps, await readStretches(deps))
    await time.#tryNote()
    return time
  }

  #begin(): { wallMs: number; stopwatchMs: number } {
    const { clock } = this.#deps
    const began = { wallMs: clock.now(), stopwatchMs: clock.monotonicMs() }
    this.#stretches.push({ wallMs: began.wallMs, lastedMs: 0, hasEnded: false })
    if (this.#stretches.length > STRETCHES_MAX) this.#stretches.splice(0, this.#stretches.length - STRETCHES_MAX)
    return began
  }

  /** The wall clock now, for a record that is to keep it: the place of this time is durable before this resolves.
   *  @throws {RoostError} SPOOL_FULL when the local disk does not take the note */
  async stamp(): Promise<number> {
    const wallMs = await this.observe()
    if (!this.#isNoted)
      await this.#note().catch((error: unknown) => {
        if (!isErrno(error)) throw error
        throw new RoostError('SPOOL_FULL', 'The server cannot note the time on its disk; nothing was committed.', {}, { cause: error })
      })
    return wallMs
  }
  /** The wall clock now. */
  async observe(): Promise<number> {
    const { clock } = this.#deps
    const wallMs = clock.now(), stopwatchMs = clock.monotonicMs()
    const last = this.#stretches.at(-1)!
    last.lastedMs = stopwatchMs - this.#beganAt.stopwatchMs
    const hasParted = Math.abs(wallMs - this.#beganAt.wallMs - last.lastedMs) > DRIFT_MS
    if (hasParted) {
      last.hasEnded = true
      this.#beganAt = this.#begin()
      this.#isNoted = false
    }
    if (!this.#isNoted || stopwatchMs - this.#notedAtMs >= NOTE_EVERY_MS) await this.#tryNote()
    return wallMs
  }
  /** How long the server has run, at the least, since its clock showed `wallMs`. Call after `observe`. */
  creditedSince(wallMs: number): number {
    const current = this.#stretches.at(-1)! // what this process has stamped in it, it knows
    return creditedSince([...this.#stretches.slice(0, -1), { ...current, hasEnded: true }], wallMs)
  }

  async close(): Promise<void> {
    await this.observe()
    this.#stretches.at(-1)!.hasEnded = true
    await this.#tryNote()
  }
  /** A full disk costs credit, not service. */
  async #tryNote(): Promise<void> {
    await this.#note().catch((error: unknown) => { if (!isErrno(error)) throw error })
  }
  #note(): Promise<void> {
    return this.#writing.run(async () => {
      this.#notedAtMs = this.#deps.clock.monotonicMs()
      const content = JSON.stringify({ format: FORMAT, stretches: this.#stretches })
      await replaceFile(this.#deps.path, Buffer.from(`${JSON.stringify({ content, mac: keyedDigest(this.#deps.key, Buffer.from(content)).toString('hex') })}\n`), this.#deps.effects)
      this.#isNoted = true
    })
  }
}

/** Exported for its tests. */
export function creditedSince(stretches: readonly Stretch[], wallMs: number): number {
  let total = 0
  let sure = -1, possible = 0
  for (const { wallMs: fromMs, lastedMs, hasEnded } of stretches) {
    if (wallMs >= fromMs - DRIFT_MS) {
      const place = total + Math.min(Math.max(0, wallMs - fromMs), lastedMs)
      possible = Math.max(possible, place)
      if (!hasEnded || wallMs <= fromMs + lastedMs + DRIFT_MS) sure = Math.max(sure, place)
    }
    total += lastedMs
  }
  return Math.max(0, total - (sure >= 0 ? sure : possible) - DRIFT_MS)
}

/** A file that is absent, damaged or another repository's credits nothing. */
async function readStretches({ path, key }: WitnessedTimeDeps): Promise<Stretch[]> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return []
    throw error
  }
  try {
    const { content, mac } = JSON.parse(text) as { content: string; mac: string }
    const expected = keyedDigest(key, Buffer.from(content)), given = Buffer.from(mac, 'hex')
    if (given.byteLength !== expected.byteLength || !timingSafeEqual(given, expected)) return []
    const { format, stretches } = JSON.parse(content) as { format: number; stretches: Stretch[] }
    return format === FORMAT ? stretches : []
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return []
    throw error
  }
}
