/** The small objects (header, key slots, snapshots) on all targets, as one store: written to as many as the write policy asks for,
 *  read from the first that has them. Packs do not go through here: their places are kept in the index.
 *
 *  Absence is only believed when every target said so; one that cannot be asked makes it STORE_UNAVAILABLE.
 */
import type { Readable } from 'node:stream'
import { isAbort, RoostError } from '../../core/errors.js'
import type { ByteRange, Call, ObjectFacts, ObjectKey, ObjectStore, PutOptions, ReplayableBody } from '../../store/object-store.js'
import { deleteOneByOne, rangesOneByOne } from '../../store/one-by-one.js'
import type { Target } from './target.js'
import type { TargetSet } from './target-set.js'

export class MirroredStore implements ObjectStore {
  constructor(readonly targets: TargetSet) {}
  get description(): string { return this.targets.all.map(({ config }) => config.url).join(', ') }

  /** Resolves when the write policy is met; targets that fail meanwhile are behind, and caught up later. */
  async put(key: ObjectKey, body: ReplayableBody, options?: PutOptions): Promise<void> {
    const failures: unknown[] = []
    let held = 0
    const putOn = async (target: Target): Promise<void> => {
      try {
        await target.change((store) => store.put(key, body, options))
        if (target.isActive) held++
      } catch (error) {
        if (isAbort(error)) throw error
        target.isBehind = true
        failures.push(error)
      }
    }
    const writable = this.targets.readable
    await Promise.all(writable.filter(({ anyFailure }) => anyFailure === undefined).map(putOn))
    const failing = writable.filter(({ anyFailure, isActive }) => anyFailure !== undefined && isActive)
    // One that just failed above has been tried.
    if (held < this.targets.holdersNeeded && failures.length === 0) await Promise.all(failing.map(putOn))
    else for (const target of failing) target.isBehind = true
    if (held < this.targets.holdersNeeded) throw failures[0] ?? unavailable(key)
  }

  head(key: ObjectKey, call?: Call): Promise<ObjectFacts | undefined> { return this.#first(key, call, (store, once) => store.head(key, once)) }
  getRange(key: ObjectKey, range: ByteRange, call?: Call): Promise<Buffer | undefined> {
    return this.#first(key, call, (store, once) => store.getRange(key, range, once))
  }
  getRanges(key: ObjectKey, ranges: readonly ByteRange[], call?: Call): Promise<Buffer[] | undefined> { return rangesOneByOne(this, key, ranges, call) }
  get(key: ObjectKey, call?: Call): Promise<Readable | undefined> { return this.#first(key, call, (store, once) => store.get(key, once)) }

  async #first<T>(key: ObjectKey, call: Call | undefined, ask: (store: ObjectStore, call: Call | undefined) => Promise<T | undefined>): Promise<T | undefined> {
    const readers = this.targets.readersOf({ heldBy: 0 })
    const once = readers.length > 1 ? { ...call, attemptsMax: 1 } : call
    let failure: unknown
    for (const target of readers) {
      try {
        const found = await target.use((store) => ask(store, once))
        if (found !== undefined) return found
      } catch (error) {
        if (isAbort(error) || call?.signal?.aborted === true) throw error
        failure ??= error
      }
    }
    if (failure !== undefined) throw failure
    if (readers.length === 0) throw unavailable(key)
    return undefined
  }

  /** What any target that answers lists; fails only when none does. A listing is never the truth. */
  async *list(prefix: string, call?: Call): AsyncGenerator<ObjectFacts, void, undefined> {
    const readers = this.targets.readersOf({ heldBy: 0 })
    const listings = readers.map((target) => ({ target, entries: undefined as AsyncIterator<ObjectFacts> | undefined, next: undefined as ObjectFacts | undefined }))
    let failure: unknown
    let answered = 0
    const advance = async (one: typeof listings[number]): Promise<boolean> => {
      try {
        const step = await one.target.use(async (store) => {
          one.entries ??= store.list(prefix, listings.length > 1 ? { ...call, attemptsMax: 1 } : call)[Symbol.asyncIterator]()
          return await one.entries.next()
        })
        one.next = step.done === true ? undefined : step.value
        return true
      } catch (error) {
        if (isAbort(error) || call?.signal?.aborted === true) throw error
        failure ??= error
        one.next = undefined
        return false
      }
    }
    try {
      for (const one of listings) if (await advance(one)) answered++
      if (answered === 0) throw failure ?? unavailable(prefix)
      for (;;) {
        const least = listings.reduce<ObjectFacts | undefined>((best, { next }) => next !== undefined && (best === undefined || next.key < best.key) ? next : best, undefined)
        if (least === undefined) break
        yield least
        for (const one of listings) if (one.next?.key === least.key) await advance(one)
      }
      // Every listing broke: what came may be a part only.
      if (failure !== undefined && listings.length === 1) throw failure
    } finally {
      for (const { entries } of listings) await entries?.return?.()
    }
  }

  /** From every target; fails when one could not be asked, after deleting on the others. */
  async delete(key: ObjectKey, call?: Call): Promise<void> {
    let failure: unknown
    for (const target of this.targets.readable)
      await target.change((store) => store.delete(key, call)).catch((error: unknown) => {
        if (isAbort(error)) throw error
        failure ??= error
      })
    if (failure !== undefined) throw failure
  }
  deleteMany(keys: readonly ObjectKey[], call?: Call): Promise<void> { return deleteOneByOne(this, keys, call) }
  close(): Promise<void> { return this.targets.close() }
}

const unavailable = (key: string): RoostError =>
  new RoostError('STORE_UNAVAILABLE', `No target of this repository can be asked for ${key === '' ? 'its objects' : key}: enable one, or wait until one answers.`)
