/** Admission: bytes of bodies are reserved before the first of them is read, so memory is bounded by configuration.
 *
 *  A body that finds no room waits briefly in a short queue, then is told to come back (503); a session that has too many
 *  bodies at once is told so (429). The reservation lasts until the use case has let go of the body.
 */
import type { Clock } from '../core/clock.js'
import { Semaphore } from '../core/concurrency.js'
import { RoostError } from '../core/errors.js'
import { LIMITS } from '../core/limits.js'

export const ADMISSION_DEFAULTS = Object.freeze({
  /** Bodies that may wait for room; their connections are open but nothing of them is held. */
  waitersMax: 64,
  waitMs: 2_000,
  sessionBodiesMax: LIMITS.sessionBodiesInFlightMax,
  /** After a refusal, slow bodies are under pressure for this long (raw-body.ts). */
  pressureMs: 10_000,
})

export interface AdmissionOptions {
  readonly bytesMax: number
  readonly waitersMax?: number
  readonly waitMs?: number
  readonly sessionBodiesMax?: number
}
export interface AdmissionRequest {
  readonly bytes: number
  /** Whose share it takes; JSON bodies have none. */
  readonly session?: string
  readonly signal: AbortSignal
}
/** Gives the reservation back. Idempotent. */
export type Release = () => void

export class Admission {
  readonly #clock: Clock
  readonly #room: Semaphore
  readonly #waitersMax: number
  readonly #waitMs: number
  readonly #sessionBodiesMax: number
  readonly #sessions = new Map<string, number>()
  #refusedAtMs = -Infinity
  constructor(clock: Clock, options: AdmissionOptions) {
    this.#clock = clock
    this.#room = new Semaphore(options.bytesMax)
    this.#waitersMax = options.waitersMax ?? ADMISSION_DEFAULTS.waitersMax
    this.#waitMs = options.waitMs ?? ADMISSION_DEFAULTS.waitMs
    this.#sessionBodiesMax = options.sessionBodiesMax ?? ADMISSION_DEFAULTS.sessionBodiesMax
  }
  get bytesFree(): number { return this.#room.free }
  get bytesMax(): number { return this.#room.capacity }
  get waiting(): number { return this.#room.waiting }
  /** Someone waits, or was turned away just now. */
  get isPressed(): boolean {
    return this.#room.waiting > 0 || this.#clock.monotonicMs() - this.#refusedAtMs < ADMISSION_DEFAULTS.pressureMs
  }

  /** @throws {RoostError} TOO_MANY_REQUESTS; SERVER_BUSY. Rejects with `signal.reason` when aborted. */
  async enter(request: AdmissionRequest): Promise<Release> {
    const leaveSession = this.#enterSession(request.session)
    try {
      await this.#reserve(request.bytes, request.signal)
    } catch (error) {
      leaveSession()
      throw error
    }
    let held = true
    return () => {
      if (!held) return
      held = false
      this.#room.release(request.bytes)
      leaveSession()
    }
  }

  #enterSession(session: string | undefined): () => void {
    if (session === undefined) return () => undefined
    const bodies = this.#sessions.get(session) ?? 0
    if (bodies >= this.#sessionBodiesMax) {
      const limit = this.#sessionBodiesMax
      throw new RoostError('TOO_MANY_REQUESTS', `A session sends at most ${limit} bodies at once.`, { limit })
    }
    this.#sessions.set(session, bodies + 1)
    return () => {
      const remaining = this.#sessions.get(session)! - 1
      if (remaining === 0) this.#sessions.delete(session)
      else this.#sessions.set(session, remaining)
    }
  }

  async #reserve(bytes: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (this.#room.tryAcquire(bytes)) return
    if (this.#room.waiting >= this.#waitersMax) throw this.#refusal()
    const waiting = new AbortController()
    const giveUp = (): void => { waiting.abort(signal.reason) }
    signal.addEventListener('abort', giveUp, { once: true })
    const patience = new AbortController()
    this.#clock.sleep(this.#waitMs, patience.signal).then(
      () => { waiting.abort(this.#refusal()) },
      () => undefined, // the wait ended first
    )
    try {
      await this.#room.acquire(bytes, waiting.signal)
    } finally {
      patience.abort()
      signal.removeEventListener('abort', giveUp)
    }
  }
  #refusal(): RoostError {
    this.#refusedAtMs = this.#clock.monotonicMs()
    return new RoostError('SERVER_BUSY', 'The server holds as many bytes as it may; try again shortly.')
  }
}
