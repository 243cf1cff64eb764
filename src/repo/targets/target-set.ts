/** All targets of one repository: which are there, who holds which pack, and when a pack counts as durable.
 *
 *  Every change of a pack's places goes through `place`, so that the index, the counters and the write policy agree.
 */
import type { Clock } from '../../core/clock.js'
import { Mutex } from '../../core/concurrency.js'
import { RoostError } from '../../core/errors.js'
import type { PackNumber } from '../../core/ids.js'
import type { TargetInfo, TargetsReply } from '../../core/messages.js'
import type { ChunkIndex, CondemnResult, PackRow } from '../../index/chunk-index.js'
import { holderCount } from '../../index/pack-places.js'
import { bytesBody } from '../../store/bytes-body.js'
import type { ObjectStore } from '../../store/object-store.js'
import { HEADER_KEY, PROBE_KEY } from '../layout.js'
import { Target } from './target.js'
import { holdersNeeded, type TargetConfig, type TargetList } from './target-list.js'

const PROBE_FIRST_MS = 2_000
const PROBE_MS_MAX = 60_000
const PROBE_BYTES = Buffer.from('roost asks whether this place takes objects again\n')
const ROWS_PER_PAGE = 1_000

export interface TargetSetDeps {
  readonly clock: Clock
  open(config: TargetConfig): Promise<ObjectStore>
}
export interface HealthWatcher { targetFailed(target: Target): void; targetAnswers(target: Target): void }

export class TargetSet {
  readonly #deps: TargetSetDeps
  #list: TargetList
  #targets: Target[]
  #index: ChunkIndex | undefined
  readonly #placing = new Mutex()
  readonly #watchers: HealthWatcher[] = []
  readonly #stop = new AbortController()
  readonly #probing = new Set<Target>()

  constructor(list: TargetList, deps: TargetSetDeps) {
    this.#deps = deps
    this.#list = list
    this.#targets = list.targets.map((config) => this.#target(config))
  }
  #target(config: TargetConfig): Target {
    return new Target(config, (now) => this.#deps.open(now), this.#deps.clock, (target) => { this.#healthChanged(target) })
  }

  get list(): TargetList { return this.#list }
  get all(): readonly Target[] { return this.#targets }
  get active(): readonly Target[] { return this.#targets.filter((target) => target.isActive) }
  get readable(): readonly Target[] { return this.#targets.filter((target) => target.isReadable) }
  /** @throws {RoostError} TARGET_UNKNOWN */
  named(name: string): Target {
    const target = this.#targets.find((one) => one.name === name)
    if (target === undefined) throw new RoostError('TARGET_UNKNOWN', `This repository has no target named "${name.slice(0, 64)}".`)
    return target
  }
  get holdersNeeded(): number { return holdersNeeded(this.#list) }
  isDurable(heldBy: number): boolean { return holderCount(heldBy, maskOf(this.active)) >= this.holdersNeeded }
  watch(watcher: HealthWatcher): void { this.#watchers.push(watcher) }

  /** Who to ask for a pack, best first: known holders that answer, others that answer, then those that fail. */
  readersOf({ heldBy }: Pick<PackRow, 'heldBy'>): readonly Target[] {
    const rank = (target: Target): number => (target.failure === undefined ? 0 : 2) + ((heldBy & target.bit) !== 0 ? 0 : 1)
    return [...this.readable].sort((a, b) => rank(a) - rank(b))
  }

  /** Counts what each target holds. From here on `place` keeps the counts. */
  async countHoldings(index: ChunkIndex): Promise<void> {
    this.#index = index
    for (const target of this.#targets) target.heldPacks = target.heldBytes = 0
    for (let after = 0; ;) {
      const rows = await index.listPacks(after, ROWS_PER_PAGE)
      if (rows.length === 0) return
      for (const row of rows) this.#count(0, row)
      after = rows.at(-1)!.packNumber
    }
  }
  /** Counts a pack that came into the index with holders. */
  noteAdded(row: PackRow): void { this.#count(0, row) }
  noteForgotten(row: PackRow): void { this.#count(row.heldBy, { ...row, heldBy: 0 }) }
  #count(before: number, row: PackRow): void {
    for (const target of this.#targets) {
      const change = Number((row.heldBy & target.bit) !== 0) - Number((before & target.bit) !== 0)
      target.heldPacks += change
      target.heldBytes += change * row.storedBytes
    }
  }

  /** Durable. @returns the row as it is now: `stored` as soon as the write policy is met; undefined when the pack is not in the index any more. */
  place(number: PackNumber, change: { readonly add?: number; readonly remove?: number }): Promise<PackRow | undefined> {
    return this.#placing.run(async () => {
      const index = this.#index!
      const before = await index.getPack(number)
      const heldBy = before === undefined ? 0 : (before.heldBy | (change.add ?? 0)) & ~(change.remove ?? 0)
      const row = await index.placePack(number, { ...change, ...(this.isDurable(heldBy) ? { stored: true as const } : {}) })
      if (row !== undefined) this.#count(before?.heldBy ?? 0, row)
      return row
    })
  }

  /** Runs what takes a pack out of the index, between changes of its places. */
  removePack<Result extends CondemnResult | 'kept'>(number: PackNumber, remove: () => Promise<Result>): Promise<Result> {
    return this.#placing.run(async () => {
      const before = await this.#index!.getPack(number)
      const result = await remove()
      if (result === 'condemned' && before !== undefined) this.noteForgotten(before)
      return result
    })
  }

  async reply(): Promise<TargetsReply> {
    const { packs, storedBytes } = await this.#index!.totals()
    return { targets: this.#targets.map((target) => infoOf(target, packs, storedBytes)), writePolicy: this.#list.writePolicy, durability: this.#list.durability }
  }

  /** Takes over a changed list, which the caller has made durable. Targets that stay keep their connections. */
  async adopt(list: TargetList): Promise<void> {
    const known = new Map(this.#targets.map((target) => [target.config.slot, target]))
    this.#list = list
    this.#targets = list.targets.map((config) => {
      const target = known.get(config.slot)
      known.delete(config.slot)
      if (target === undefined) return this.#target(config)
      target.configure(config)
      return target
    })
    for (const gone of known.values()) await gone.close()
  }

  #healthChanged(target: Target): void {
    if (this.#stop.signal.aborted || !this.#targets.includes(target)) return
    if (target.anyFailure === undefined) {
      for (const watcher of this.#watchers) watcher.targetAnswers(target)
      return
    }
    for (const watcher of this.#watchers) watcher.targetFailed(target)
    if (!this.#probing.has(target)) void this.#probe(target)
  }
  /** Asks a failing target, with growing pauses, until it answers; any other call that succeeds ends it too. */
  async #probe(target: Target): Promise<void> {
    const { signal } = this.#stop
    this.#probing.add(target)
    try {
      for (let pauseMs = PROBE_FIRST_MS; target.anyFailure !== undefined && this.#targets.includes(target); pauseMs = Math.min(pauseMs * 2, PROBE_MS_MAX)) {
        await this.#deps.clock.sleep(pauseMs, signal)
        if (target.isReadable) await this.#ask(target, signal).catch(() => undefined) // its health says why
      }
    } catch (error) {
      if (!signal.aborted) throw error
    } finally {
      this.#probing.delete(target)
    }
  }

  async #ask(target: Target, signal: AbortSignal): Promise<void> {
    const call = { signal, attemptsMax: 1 }
    if (target.failure !== undefined) await target.use((store) => store.head(HEADER_KEY, call))
    if (target.writeFailure !== undefined) await target.change((store) => store.put(PROBE_KEY, bytesBody(PROBE_BYTES), { ...call, replace: true }))
  }

  async close(): Promise<void> {
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    for (const target of this.#targets) await target.close()
  }
}

export const maskOf = (targets: readonly Target[]): number => targets.reduce((mask, target) => mask | target.bit, 0)

export function infoOf(target: Target, packs: number, storedBytes: number): TargetInfo {
  const { name, url, mode, uploadBytesPerSecondMax } = target.config
  const { anyFailure: failure, remark } = target
  return { name, url, mode, uploadBytesPerSecondMax, health: target.health,
    ...(failure === undefined ? {} : { failingSinceMs: failure.sinceMs, failure: failure.error.message }),
    ...(remark === undefined ? {} : { remark }), packs: target.heldPacks, storedBytes: target.heldBytes, lagPacks: packs - target.heldPacks, lagBytes: storedBytes - target.heldBytes,
    damagedPacks: target.damagedPacks }
}
