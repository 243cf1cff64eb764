/** One target as the repository sees it: opened when first needed, its health learnt from every call, its holdings counted.
 *
 *  Health is about the target, never about an object: a missing or damaged object leaves it healthy, and an unreachable target says
 *  nothing about its objects.
 */
import type { Clock } from '../../core/clock.js'
import { hasCode, isAbort, RoostError } from '../../core/errors.js'
import { rateLimiter, type RateLimiter } from '../../core/rate-limit.js'
import type { ObjectStore } from '../../store/object-store.js'
import type { TargetConfig } from './target-list.js'

export interface TargetFailure {
  /** `refused` needs a person; `unreachable` may pass. */
  readonly kind: 'unreachable' | 'refused'
  readonly sinceMs: number
  readonly error: Error
}

export class Target {
  #config: TargetConfig
  #store: Promise<ObjectStore> | undefined
  #hasAnswered = false
  #limiter: RateLimiter | undefined
  failure: TargetFailure | undefined
  /** Of packs in the index. Kept by the TargetSet. */
  heldPacks = 0
  heldBytes = 0
  /** Copies found missing or damaged here and not mended yet. */
  damagedPacks = 0
  /** Header, key slots, snapshots or deletions may be behind here. */
  isBehind = false

  /** @param onHealth called after each change between failing and answering. */
  constructor(config: TargetConfig, readonly open: (config: TargetConfig) => Promise<ObjectStore>, readonly clock: Clock,
    readonly onHealth: (target: Target) => void) {
    this.#config = config
    this.configure(config)
  }
  get config(): TargetConfig { return this.#config }
  get name(): string { return this.#config.name }
  get bit(): number { return 2 ** this.#config.slot }
  get isActive(): boolean { return this.#config.mode === 'active' }
  get isReadable(): boolean { return this.#config.mode !== 'disabled' }
  get limiter(): RateLimiter | undefined { return this.#limiter }
  get health(): 'unknown' | 'healthy' | 'unreachable' | 'refused' {
    return this.failure?.kind ?? (this.#hasAnswered ? 'healthy' : 'unknown')
  }
  configure(config: TargetConfig): void {
    this.#config = config
    const limit = config.uploadBytesPerSecondMax
    if (limit !== (this.#limiter?.bytesPerSecond ?? 0)) this.#limiter = limit === 0 ? undefined : rateLimiter(limit, this.clock)
  }

  /** Does something with the store and learns the target's health from how it ends. */
  async use<T>(work: (store: ObjectStore) => Promise<T>): Promise<T> {
    try {
      this.#store ??= this.open(this.#config)
      const store = await this.#store.catch((error: unknown) => {
        this.#store = undefined // the next call opens it again
        throw error
      })
      const result = await work(store)
      this.answered()
      return result
    } catch (error) {
      this.failed(error)
      throw error
    }
  }
  answered(): void {
    this.#hasAnswered = true
    if (this.failure === undefined) return
    this.failure = undefined
    this.onHealth(this)
  }
  /** Also for what fails later in a stream. Failures of one object, of a body or by cancellation say nothing of the target. */
  failed(error: unknown): void {
    if (isAbort(error) || !(error instanceof Error)) return
    if (error instanceof RoostError && !isTargetFailure(error)) { this.answered(); return }
    const was = this.failure
    const kind = hasCode(error, 'STORE_REFUSED') ? 'refused' : 'unreachable'
    this.failure = { kind, error, sinceMs: was?.sinceMs ?? this.clock.now() }
    if (was === undefined) this.onHealth(this)
  }
  async close(): Promise<void> {
    const store = await this.#store?.catch(() => undefined) // what did not open needs no closing
    await store?.close()
  }
}

/** A refusal that names a key concerns that object alone. */
export function isTargetFailure(error: unknown): boolean {
  return hasCode(error, 'STORE_UNAVAILABLE') || (hasCode(error, 'STORE_REFUSED') && error.details['key'] === undefined)
}
