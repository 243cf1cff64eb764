/** Who goes next: every call that the simulated parts make waits at a gate, and one at a time is let through, by the seed.
 *
 *  Nothing of the simulated world waits for anything real, so between two gates the program runs until it can run no further, and the
 *  same seed makes the same history. A process that dies leaves its calls at the gates: they had their effect or not, and nobody hears.
 */
import type { SeededRandom } from './seeded-random.js'

/** One process of the server. What it has not been told when it ends, it is never told. */
export class Life {
  isDead = false
  /** It was suspended, another process took its place, and now it goes on as if nothing had been: it reaches what this says. */
  zombie: ((kind: string, name: string) => boolean) | undefined
  readonly died: Promise<never>
  /** Rejects when nobody is connected to it any more: at its end, or shortly before. */
  readonly disconnected: Promise<never>
  #end: (error: Error) => void = () => undefined
  #hangUp: (error: Error) => void = () => undefined
  constructor(readonly number: number) {
    this.died = new Promise((_resolve, reject) => { this.#end = reject })
    this.died.catch(() => undefined)
    this.disconnected = new Promise((_resolve, reject) => { this.#hangUp = reject })
    this.disconnected.catch(() => undefined)
  }
  hangUp(error: Error): void { this.#hangUp(error) }
  end(error: Error): void {
    this.isDead = true
    this.#end(error)
    this.hangUp(error)
  }
}

export interface CallOptions {
  /** It changes something that outlives the process: a crash comes before or after it. */
  readonly isWrite?: boolean
  /** It waits for something real (LMDB's own thread): nobody else goes meanwhile. */
  readonly isReal?: boolean
}
interface Call {
  readonly life: Life | undefined
  readonly label: string
  readonly kind: string
  readonly name: string
  readonly options: CallOptions
  run(): Promise<void>
  /** Runs it with nobody to hear the answer. */
  runUnheard(): Promise<void>
}
interface Sleeper { readonly life: Life | undefined; readonly wakeAtMs: number; readonly label: string; wake(): void }

export class SimulationFailure extends Error { override readonly name = 'SimulationFailure' }

export interface SchedulerOptions {
  readonly random: SeededRandom
  /** How eagerly calls of a kind (`index`, `main`, `file`, `client` …) are let through. Default 1. */
  readonly weights?: ReadonlyMap<string, number>
  /** How often a reply arrives later than its effect. */
  readonly lateReplies?: number
  readonly timeWeight?: number
  trace?(step: number, text: string): void
}

/** Everything that is under way has come to its next gate. */
const turn = (): Promise<void> => new Promise((resolve) => { setImmediate(resolve) })

export class Scheduler {
  readonly #options: SchedulerOptions
  readonly #calls: Call[] = []
  #suspended: Call[] = []
  readonly #sleepers = new Set<Sleeper>()
  #exclusive: Promise<void> | undefined
  #failure: { readonly error: unknown } | undefined
  step = 0
  monotonicMs = 1_000
  /** How eagerly the next pause ends although others could go. */
  timeWeight: number
  /** After each step. */
  afterStep: ((label: string, isWrite: boolean) => Promise<void>) | undefined
  /** Labels of calls at whose gate a process died → how often. */
  readonly deathsAt = new Map<string, number>()

  constructor(options: SchedulerOptions) {
    this.#options = options
    this.timeWeight = options.timeWeight ?? 0.05
  }
  get random(): SeededRandom { return this.#options.random }

  fail(error: unknown): void { this.#failure ??= { error } }
  note(text: string): void { this.#options.trace?.(this.step, text) }

  /** Settles once the call was let through. Of a dead process: never. */
  call<T>(life: Life | undefined, kind: string, name: string, work: () => T | Promise<T>, options: CallOptions = {}): Promise<T> {
    const isGone = (): boolean => life?.isDead === true && life.zombie?.(kind, name) !== true
    if (isGone()) return new Promise(() => undefined)
    return new Promise<T>((resolve, reject) => {
      const answer = (settle: () => void): void => {
        if (isGone()) return
        if (!this.random.chance(this.#options.lateReplies ?? 0)) { settle(); return }
        const reply = async (): Promise<void> => { settle() }
        this.#calls.push({ life, kind, name, label: `${kind}.${name} answers`, options: {}, run: reply, runUnheard: async () => undefined })
      }
      this.#calls.push({ life, kind, name, label: `${kind}.${name}`, options,
        run: async () => {
          try {
            const result = await work()
            answer(() => { resolve(result) })
          } catch (error) {
            answer(() => { reject(error as Error) })
          }
        },
        runUnheard: async () => { try { await work() } catch { /* nobody hears it */ } } })
    })
  }
  /** A pause of somebody who is no part of the server. */
  pause(kind: string, name: string): Promise<void> { return this.call(undefined, kind, name, () => undefined) }

  sleep(life: Life | undefined, ms: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      if (life?.isDead === true) return
      if (signal?.aborted === true) { reject(signal.reason as Error); return }
      const onAbort = (): void => { this.#sleepers.delete(sleeper); reject(signal!.reason as Error) }
      const sleeper: Sleeper = { life, label: `a pause of ${Math.round(ms)} ms ends`, wakeAtMs: this.monotonicMs + ms, wake: () => {
        signal?.removeEventListener('abort', onAbort)
        resolve()
      } }
      signal?.addEventListener('abort', onAbort, { once: true })
      if (ms !== Infinity) this.#sleepers.add(sleeper)
    })
  }

  /** Nobody goes while this is done. */
  exclusively(work: () => Promise<void>): Promise<void> {
    const done = (this.#exclusive ?? Promise.resolve()).then(work)
    const mine = this.#exclusive = done.catch(() => undefined).then(() => { if (this.#exclusive === mine) this.#exclusive = undefined })
    return done
  }
  /** Ends a process: each of its writes that waits at a gate happens, or does not, and nobody is told. Within `exclusively`. */
  async kill(life: Life, error: Error, isSuspended: (kind: string, name: string) => boolean = () => false): Promise<void> {
    life.end(error)
    const waiting = this.#calls.filter((call) => call.life === life)
    for (const call of waiting.filter(({ kind, name }) => isSuspended(kind, name))) {
      waiting.splice(waiting.indexOf(call), 1)
      this.#calls.splice(this.#calls.indexOf(call), 1)
      this.#suspended.push(call)
    }
    for (const call of waiting) this.#calls.splice(this.#calls.indexOf(call), 1)
    for (const sleeper of this.#sleepers) if (sleeper.life === life) this.#sleepers.delete(sleeper)
    for (const call of waiting) {
      const happens = call.options.isWrite === true && this.random.chance(0.5)
      this.note(`dies ${happens ? 'after' : 'before'} ${call.label}`)
      const where = `${happens ? 'after' : 'before'} ${call.label.split(' ')[0]}`
      if (call.options.isWrite === true) this.deathsAt.set(where, (this.deathsAt.get(where) ?? 0) + 1)
      // A body may wait for a call of the dead process: then nothing came of it.
      const running = happens ? call.runUnheard() : undefined
      if (call.options.isReal === true) await running
      await turn()
    }
  }
  /** A suspended process goes on: with what it was about, and what it comes to, as far as it reaches. */
  resume(life: Life, reaches: (kind: string, name: string) => boolean): void {
    life.zombie = reaches
    for (const call of this.#suspended) if (call.life === life) this.#calls.push(call)
    this.#suspended = this.#suspended.filter((call) => call.life !== life)
  }
  /** Whether such a call of the process waits at its gate. */
  isWaiting(life: Life, label: RegExp): boolean { return this.#calls.some((call) => call.life === life && label.test(call.label)) }

  /** Waits until nobody moves any more without a step. */
  settle(): Promise<void> { return turn() }

  /** Lets calls through until `isDone`. @throws what failed; SimulationFailure when nothing can move, or there is no end. */
  async run(isDone: () => boolean, stepsMax: number): Promise<void> {
    const last = this.step + stepsMax
    for (;;) {
      do await turn()
      while (await this.#afterExclusive())
      if (this.#failure !== undefined) throw this.#failure.error
      if (isDone()) return
      if (this.step >= last) throw new SimulationFailure(`no end after ${stepsMax} steps; waiting: ${this.#waiting()}`)
      let choice = this.#choose()
      // Somebody may let others go first by turns of its own.
      for (let i = 0; i < 5 && choice === undefined; i++) { await turn(); choice = this.#choose() }
      if (choice === undefined && isDone()) return
      if (choice === undefined) throw new SimulationFailure('nothing can move, and not everybody is done: somebody waits for ever')
      this.step++
      if ('wake' in choice) {
        this.#sleepers.delete(choice)
        this.monotonicMs = Math.max(this.monotonicMs, choice.wakeAtMs)
        this.note(choice.label)
        choice.wake()
        continue
      }
      this.#calls.splice(this.#calls.indexOf(choice), 1)
      this.note(choice.label)
      const running = choice.run()
      if (choice.options.isReal === true) await running
      if (this.afterStep !== undefined) {
        do await turn()
        while (await this.#afterExclusive())
        await this.afterStep(choice.label, choice.options.isWrite === true)
      }
    }
  }
  async #afterExclusive(): Promise<boolean> {
    if (this.#exclusive === undefined) return false
    await this.#exclusive
    return true
  }
  #choose(): Call | Sleeper | undefined {
    const next = [...this.#sleepers].reduce<Sleeper | undefined>((best, one) => (best === undefined || one.wakeAtMs < best.wakeAtMs ? one : best), undefined)
    if (this.#calls.length === 0) return next
    const weightOf = (one: Call | Sleeper): number => ('wake' in one ? this.timeWeight : this.#options.weights?.get(one.kind) ?? 1)
    return this.random.weighted<Call | Sleeper>(next === undefined ? this.#calls : [...this.#calls, next], weightOf)
  }
  #waiting(): string { return [...this.#calls.map(({ label }) => label), ...[...this.#sleepers].map(({ label }) => label)].slice(0, 20).join(', ') }
}
