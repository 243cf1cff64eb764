/** The login that all calls share: renewed before it runs out and when a service rejects it, once for all who wait. */
import type { Clock } from '../core/clock.js'

/** A token is renewed when a fifth of its life is left, or two minutes. */
const RENEW_SHARE = 0.2
const RENEW_MS_MAX = 120_000
/** While the identity service is away and the token still good, how often it is asked. */
const ASK_AGAIN_MS = 10_000
/** How long to trust a token that nobody gave a life. */
const LIFE_MS_DEFAULT = 3_600_000

/** `livesMs`: how long the token is good for, from now; undefined when nobody says. */
export interface Lasting { readonly livesMs: number | undefined }

export class TokenSession<Login extends Lasting> {
  #login: Login | undefined
  #renewAtMs = 0
  #deadAtMs = 0
  #renewing: Promise<Login> | undefined
  constructor(readonly clock: Clock, readonly logIn: () => Promise<Login>) {}

  /** A token that should work now. @throws what logging in throws; `signal.reason` */
  async current(signal?: AbortSignal): Promise<Login> {
    const nowMs = this.clock.monotonicMs()
    const login = this.#login
    if (login !== undefined && nowMs < this.#renewAtMs) return login
    if (login !== undefined && nowMs < this.#deadAtMs) {
      // It is still good: an identity service that is away now delays nobody.
      this.#renewAtMs = Math.min(this.#deadAtMs, nowMs + ASK_AGAIN_MS)
      this.#renew().catch(() => undefined) // the next one who needs it hears of it
      return login
    }
    return await abortable(this.#renew(), signal)
  }
  /** A service rejected this login: another one. @throws as `current` */
  async replace(rejected: Login, signal?: AbortSignal): Promise<Login> {
    if (this.#login !== undefined && this.#login !== rejected) return this.#login // somebody was faster
    return await abortable(this.#renew(), signal)
  }
  #renew(): Promise<Login> {
    this.#renewing ??= this.logIn().then((login) => {
      const lifeMs = login.livesMs ?? LIFE_MS_DEFAULT
      const nowMs = this.clock.monotonicMs()
      this.#login = login
      this.#deadAtMs = nowMs + lifeMs
      this.#renewAtMs = nowMs + lifeMs - Math.min(lifeMs * RENEW_SHARE, RENEW_MS_MAX)
      return login
    }).finally(() => { this.#renewing = undefined })
    return this.#renewing
  }
}

/** One caller's abort ends its own wait, not the others'. */
async function abortable<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await work
  signal.throwIfAborted()
  let onAbort: () => void
  const aborted = new Promise<never>((_resolve, reject) => {
    onAbort = () => { reject(signal.reason as Error) }
    signal.addEventListener('abort', onAbort, { once: true })
  })
  try { return await Promise.race([work, aborted]) } finally {
    signal.removeEventListener('abort', onAbort!)
    aborted.catch(() => undefined) // lost the race
  }
}
