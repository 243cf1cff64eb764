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
  #opened: ObjectStore | undefined
  #hasAnswered = false
  #limiter: RateLimiter | undefined
  /** Why it cannot be asked anything. */
  failure: TargetFailure | undefined
  /** Why it takes nothing: reading from it may go on meanwhile (read-only credentials, a full disk, too few replicas). */
  writeFailure: TargetFailure | undefined
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
  get anyFailure(): TargetFailure | undefined { return this.failure ?? this.writeFailure }
  get takesPacks(): boolean { return this.isActive && this.anyFailure === undefined }
  get limiter(): RateLimiter | undefined { return this.#limiter }
  get health(): 'unknown' | 'healthy' | 'unreachable' | 'refused' {
    return this.anyFailure?.kind ?? (this.#hasAnswered ? 'healthy' : 'unknown')
  }
  get remark(): string | undefined { return this.#opened?.remark }
  configure(config: TargetConfig): void {
    this.#config = config
    const limit = config.uploadBytesPerSecondMax
    if (limit !== (this.#limiter?.bytesPerSecond ?? 0)) this.#limiter = limit === 0 ? undefined : rateLimiter(limit, this.clock)
  }

  /** Asks the store something and learns the target's health from how it ends. */
  use<T>(work: (store: ObjectStore) => Promise<T>): Promise<T> { return this.#use(work, false) }
  /** The same for what changes the store: a place that can be read is not always one that takes something. */
  change<T>(work: (store: ObjectStore) => Promise<T>): Promise<T> { return this.#use(work, true) }

  async #use<T>(work: (store: ObjectStore) => Promise<T>, isWrite: boolean): Promise<T> {
    try {
      this.#store ??= this.open(this.#config)
      const store = await this.#store.catch((error: unknown) => {
        this.#store = undefined // the next call opens it again
        throw error
      })
      this.#opened = store
      const result = await work(store)
      this.#answered(isWrite)
      return result
    } catch (error) {
      this.failed(error, isWrite)
      throw error
    }
  }
  #answered(isWrite: boolean): void {
    this.#hasAnswered = true
    const was = this.anyFailure
    this.failure = undefined
    if (isWrite) this.writeFailure = undefined
    if (was !== undefined && this.anyFailure === undefined) this.onHealth(this)
  }
  /** Also for what fails later in a stream. Failures of one object, of a body or by cancellation say nothing of the target. */
  failed(error: unknown, isWrite = false): void {
    if (isAbort(error) || !(error instanceof Error)) return
    if (error instanceof RoostError && !isTargetFailure(error)) return
    const was = this.anyFailure
    const kind = hasCode(error, 'STORE_REFUSED') ? 'refused' : 'unreachable'
    const failure = { kind, error, sinceMs: was?.sinceMs ?? this.clock.now() } as const
    if (isWrite) this.writeFailure = failure
    else this.failure = failure
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
