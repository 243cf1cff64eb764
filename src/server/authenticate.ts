/** Who calls: the bearer token of a request, and a light brake on addresses that keep presenting false ones. */
import type { Clock } from '../core/clock.js'
import { RoostError } from '../core/errors.js'
import type { Principal, TokenStore } from './token-store.js'

/** Secrets have 256 bits, so the brake is for the log and the processor, not against guessing. */
const FAILURES_MAX = 30
const WINDOW_MS = 60_000
const ADDRESSES_MAX = 4_096

/** Counts failures an address within fixed windows. Bounded: the address noted longest ago makes room. */
export class FailureBrake {
  readonly #clock: Clock
  readonly #counts = new Map<string, { failures: number; startedMs: number }>()
  constructor(clock: Clock) { this.#clock = clock }
  get addresses(): number { return this.#counts.size }

  /** Notes a failure. Answers how long the address should wait, ms; 0 while it is within its allowance. */
  note(address: string): number {
    const now = this.#clock.monotonicMs()
    const known = this.#counts.get(address)
    const current = known !== undefined && now - known.startedMs < WINDOW_MS ? known : { failures: 0, startedMs: now }
    current.failures++
    this.#counts.delete(address)
    this.#counts.set(address, current)
    if (this.#counts.size > ADDRESSES_MAX) this.#counts.delete(this.#counts.keys().next().value!)
    return current.failures <= FAILURES_MAX ? 0 : current.startedMs + WINDOW_MS - now
  }
}

export interface Credentials { readonly authorization: string | undefined; readonly address: string }

/** @throws {RoostError} AUTH_REQUIRED; TOO_MANY_REQUESTS when the address failed too often (a valid token always passes) */
export function authenticate(tokens: TokenStore, brake: FailureBrake, credentials: Credentials): Principal {
  const bearer = /^Bearer ([\x21-\x7e]{1,256})$/i.exec(credentials.authorization ?? '')?.[1]
  const principal = bearer === undefined ? undefined : tokens.verify(bearer)
  if (principal !== undefined) return principal
  const waitMs = brake.note(credentials.address)
  if (waitMs > 0) {
    throw new RoostError('TOO_MANY_REQUESTS', 'Too many requests without a valid token.', { retryAfterSeconds: Math.ceil(waitMs / 1000) })
  }
  throw new RoostError('AUTH_REQUIRED', bearer === undefined ? 'A bearer token is required.' : 'The token is not valid.')
}
