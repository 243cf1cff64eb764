/** Deletes the objects of packs that left the index, on every target, however long a target stays away (docs/gc.md G8).
 *
 *  A doomed pack is needed by nobody: the transaction that doomed it saw to that, and nothing can refer to it any more. What is remembered is
 *  only which targets may still hold it. A target that refuses a deletion (a retention lock, read-only credentials) keeps its pack and is
 *  asked again at the next occasion: a start, its recovery, a collection.
 */
import { isAbort, RoostError } from '../core/errors.js'
import type { PackId } from '../core/ids.js'
import type { ChunkIndex, DoomedPack } from '../index/chunk-index.js'
import { packKey } from './layout.js'
import type { Target } from './targets/target.js'
import { isTargetFailure } from './targets/target.js'
import { maskOf, type TargetSet } from './targets/target-set.js'

/** One bulk deletion of Swift or S3 takes a thousand; a smaller one repeats less when it fails. */
const PACKS_PER_ROUND = 200

export interface DoomedPacksDeps {
  readonly index: ChunkIndex
  readonly targets: TargetSet
  report(error: RoostError, packId: PackId): void
}
export interface DeletionCounts { readonly objects: number; readonly refused: number }

export class DoomedPacks {
  readonly #deps: DoomedPacksDeps
  readonly #stop = new AbortController()
  #running: Promise<DeletionCounts> | undefined

  constructor(deps: DoomedPacksDeps) { this.#deps = deps }

  /** In the background; whatever fails is tried again at the next occasion. */
  wake(): void { void this.deleteAll().catch(() => undefined) } // its target's health says why

  /** Resolves when every target that answers was asked for all of them. One run at a time: a second caller waits for the first, then asks for
   *  what came meanwhile. */
  async deleteAll(): Promise<DeletionCounts> {
    while (this.#running !== undefined) await this.#running.catch(() => undefined)
    this.#running = this.#deleteAll().finally(() => { this.#running = undefined })
    return await this.#running
  }
  async #deleteAll(): Promise<DeletionCounts> {
    const { index, targets } = this.#deps
    const { signal } = this.#stop
    let objects = 0, refused = 0
    const failed = new Set<Target>()
    for (let after: PackId | undefined; ;) {
      signal.throwIfAborted()
      const packs = await index.listDoomed(after, PACKS_PER_ROUND)
      if (packs.length === 0) return { objects, refused }
      after = packs.at(-1)!.packId
      await this.#settleForeign(packs)
      for (const target of targets.readable) {
        const here = packs.filter(({ pending }) => (pending & target.bit) !== 0).map(({ packId }) => packId)
        if (here.length === 0 || failed.has(target)) continue
        try {
          const left = await this.#deleteFrom(target, here, signal)
          await index.settleDoomed(here.filter((packId) => !left.has(packId)), target.bit)
          objects += here.length - left.size
          refused += left.size
        } catch (error) {
          if (isAbort(error)) throw error
          failed.add(target)
        }
      }
    }
  }
  /** Targets that left the repository meanwhile keep their objects, as they are told. */
  async #settleForeign(packs: readonly DoomedPack[]): Promise<void> {
    const known = maskOf(this.#deps.targets.all)
    const foreign = packs.filter(({ pending }) => (pending & ~known) !== 0).map(({ packId }) => packId)
    if (foreign.length > 0) await this.#deps.index.settleDoomed(foreign, ~known >>> 0)
  }
  /** @returns those that the target refused to delete. @throws what says that the target itself fails */
  async #deleteFrom(target: Target, packIds: readonly PackId[], signal: AbortSignal): Promise<ReadonlySet<PackId>> {
    const refused = new Set<PackId>()
    try {
      await target.change((store) => store.deleteMany(packIds.map(packKey), { signal }))
    } catch (error) {
      if (isAbort(error) || !(error instanceof RoostError) || isTargetFailure(error)) throw error
      // One of them is held there: the others must not wait for it.
      for (const packId of packIds)
        await target.change((store) => store.delete(packKey(packId), { signal })).catch((failure: unknown) => {
          if (!(failure instanceof RoostError) || isTargetFailure(failure)) throw failure
          refused.add(packId)
          this.#deps.report(failure, packId)
        })
    }
    return refused
  }

  async close(): Promise<void> {
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    await this.#running?.catch(() => undefined)
  }
}
