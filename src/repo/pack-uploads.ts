/** Sealed packs on their way from the spool to the targets (docs/durability.md W3).
 *
 *  Each active target has a lane of its own, so that a slow one holds up nobody. A pack counts as stored when the write policy is met;
 *  its spool file goes once no lane that still answers wants it: a target that fails meanwhile is caught up later, from the others.
 *  A target that is down delays, it loses nothing: the packs stay in the spool, are read from there, and the next start queues them
 *  again. A spool file is deleted only after the index durably says `stored`.
 */
import type { Clock } from '../core/clock.js'
import { hasCode, isAbort, RoostError } from '../core/errors.js'
import type { PackNumber } from '../core/ids.js'
import type { PackRow } from '../index/chunk-index.js'
import type { FileEffects } from '../store/file-effects.js'
import { packKey } from './layout.js'
import { isWholeOn } from './targets/copy-pack.js'
import { spoolBody } from './targets/pack-body.js'
import { isTargetFailure, type Target } from './targets/target.js'
import type { TargetSet } from './targets/target-set.js'

export interface SpooledPack { readonly row: PackRow; readonly file: string }
const LANE_UPLOADS_MAX = 2
/** Before the next try of a pack whose failure was not its target's. */
const RETRY_AFTER_MS = 5_000

interface Spooled {
  row: PackRow
  /** Unset until the pack is in the index; for ever when its file is lost. */
  file: string | undefined
  isStored: boolean
  /** Lanes that are to take it. */
  readonly wanted: Set<Target>
}
interface Lane { readonly waiting: PackNumber[]; running: number }

export interface PackUploadsDeps {
  readonly targets: TargetSet
  readonly effects: FileEffects
  readonly clock: Clock
  /** Past half of it, lanes that are behind give way: their packs are caught up from other targets. */
  readonly spoolBytesMax: number
  /** Until when a target that can is to let nobody delete what is written now. */
  retainUntilMs(): number | undefined
  /** A spool file is not what was sealed. */
  onDamage(error: RoostError, pack: PackRow): void
}

export class PackUploads {
  readonly #packs = new Map<PackNumber, Spooled>()
  readonly #lanes = new Map<Target, Lane>()
  readonly #watchers = new Set<() => void>()
  readonly #running = new Set<Promise<void>>()
  readonly #stop = new AbortController()
  #waitingBytes = 0
  #unstored = 0
  /** Why the last attempt failed, until one succeeds. */
  lastFailure: Error | undefined

  constructor(readonly deps: PackUploadsDeps) {
    deps.targets.watch({ targetFailed: (target) => { this.#giveWay(target) }, targetAnswers: (target) => { this.#pump(target) } })
  }

  /** Bytes of the spool. */
  get waitingBytes(): number { return this.#waitingBytes }
  /** Packs that are not durable yet. */
  get waitingPacks(): number { return this.#unstored }
  /** Where a pack that is not on its targets yet can be read. */
  spoolFile(number: PackNumber): string | undefined { return this.#packs.get(number)?.file }
  isWaiting(number: PackNumber): boolean { return this.#packs.has(number) }

  /** From here on `settled` waits for this pack. */
  announce(row: PackRow): void {
    if (this.#packs.has(row.packNumber)) return
    this.#packs.set(row.packNumber, { row, file: undefined, isStored: row.state === 'stored', wanted: new Set() })
    this.#waitingBytes += row.storedBytes
    if (row.state !== 'stored') this.#unstored++
  }
  enqueue({ row, file }: SpooledPack): void {
    this.announce(row)
    const pack = this.#packs.get(row.packNumber)!
    pack.file = file
    this.#want(pack)
  }
  /** What was announced turned out to be on its targets, or nowhere. */
  withdraw(number: PackNumber): void {
    const pack = this.#packs.get(number)
    if (pack !== undefined) this.#drop(pack)
  }
  /** After targets or the write policy changed. */
  async reconsider(): Promise<void> {
    for (const pack of [...this.#packs.values()]) {
      for (const target of pack.wanted) if (!target.isActive) pack.wanted.delete(target)
      if (pack.file !== undefined) this.#want(pack)
      if (!pack.isStored && pack.row.heldBy !== 0) await this.#placed(pack, await this.deps.targets.place(pack.row.packNumber, {}))
      else await this.#releaseIfDone(pack)
    }
    for (const target of this.deps.targets.active) this.#pump(target)
  }

  #want(pack: Spooled): void {
    for (const target of this.deps.targets.active) {
      if ((pack.row.heldBy & target.bit) !== 0 || pack.wanted.has(target)) continue
      if (pack.isStored && target.anyFailure !== undefined) continue
      pack.wanted.add(target)
      this.#lane(target).waiting.push(pack.row.packNumber)
      this.#pump(target)
    }
  }
  #lane(target: Target): Lane {
    let lane = this.#lanes.get(target)
    if (lane === undefined) this.#lanes.set(target, lane = { waiting: [], running: 0 })
    return lane
  }
  #pump(target: Target): void {
    const lane = this.#lane(target)
    while (lane.running < LANE_UPLOADS_MAX && lane.waiting.length > 0 && target.takesPacks && !this.#stop.signal.aborted) {
      const pack = this.#packs.get(lane.waiting.shift()!)
      if (pack?.file === undefined || !pack.wanted.has(target)) continue
      lane.running++
      const upload = this.#upload(target, pack, pack.file).finally(() => { lane.running--; this.#running.delete(upload); this.#pump(target) })
      this.#running.add(upload)
    }
  }

  async #upload(target: Target, pack: Spooled, file: string): Promise<void> {
    const { signal } = this.#stop
    const { row } = pack
    try {
      await this.#put(target, row, file)
      if (!this.#packs.has(row.packNumber)) return // withdrawn meanwhile
      await this.#placed(pack, await this.deps.targets.place(row.packNumber, { add: target.bit }))
      pack.wanted.delete(target)
      await this.#releaseIfDone(pack)
      this.lastFailure = undefined
    } catch (error) {
      if (signal.aborted || isAbort(error)) return // it stays in the spool; the next start uploads it
      this.lastFailure = error instanceof Error ? error : new Error('upload failed')
      if (hasCode(error, 'PACK_CORRUPT')) {
        this.deps.onDamage(error, row)
        pack.wanted.delete(target)
      } else if (pack.wanted.has(target)) {
        if (target.anyFailure === undefined) await this.deps.clock.sleep(RETRY_AFTER_MS, signal).catch(() => undefined) // aborted: #pump sees it
        this.#lane(target).waiting.unshift(row.packNumber)
      }
    } finally {
      this.#notify()
    }
  }
  async #put(target: Target, row: PackRow, file: string): Promise<void> {
    const { signal } = this.#stop
    const body = spoolBody(row, file, target.limiter, signal)
    const retainUntilMs = this.deps.retainUntilMs()
    const options = { signal, ...(retainUntilMs && { retainUntilMs }) }
    try {
      await target.change((store) => store.put(packKey(row.packId), body, options))
    } catch (error) {
      // Something else is under this name, which stands for these bytes alone: what a broken upload or a fault of the target left.
      if (!hasCode(error, 'STORE_REFUSED') || isTargetFailure(error)) throw error
      if (await isWholeOn(target, row, signal)) return
      await target.change((store) => store.put(packKey(row.packId), body, { ...options, replace: true }))
    }
  }

  async #placed(pack: Spooled, row: PackRow | undefined): Promise<void> {
    if (row === undefined) return // forgotten meanwhile, and withdrawn with it
    pack.row = row
    if (!pack.isStored && row.state === 'stored') {
      pack.isStored = true
      this.#unstored--
    }
    await this.#releaseIfDone(pack)
    this.#notify()
  }
  async #releaseIfDone(pack: Spooled): Promise<void> {
    if (!pack.isStored || this.#packs.get(pack.row.packNumber) !== pack) return
    const isTight = this.#waitingBytes > this.deps.spoolBytesMax / 2
    for (const target of pack.wanted) if (target.anyFailure !== undefined || isTight || (pack.row.heldBy & target.bit) !== 0) pack.wanted.delete(target)
    if (pack.wanted.size > 0) return
    this.#drop(pack)
    if (pack.file !== undefined) await this.deps.effects.unlink(pack.file).catch((error: unknown) => {
      // Only space is lost: start-up finds the pack stored and deletes the file then.
      if (!(error instanceof Error)) throw error
    })
  }
  #drop(pack: Spooled): void {
    if (!this.#packs.delete(pack.row.packNumber)) return
    this.#waitingBytes -= pack.row.storedBytes
    if (!pack.isStored) this.#unstored--
    this.#notify()
  }
  /** A failing target's share of stored packs waits for the catch-up, not in the spool. */
  #giveWay(target: Target): void {
    for (const pack of this.#packs.values()) if (pack.isStored && pack.wanted.has(target)) void this.#releaseIfDone(pack)
  }
  #notify(): void { for (const wake of [...this.#watchers]) wake() }

  /** Resolves when every pack announced before the call is stored. Rejects with the last failure after `waitMs` without completion,
   *  or with `signal.reason`. */
  async settled(waitMs: number, signal?: AbortSignal): Promise<void> {
    const awaited = [...this.#packs.values()].filter((pack) => !pack.isStored)
    const done = (): boolean => awaited.every((pack) => pack.isStored || this.#packs.get(pack.row.packNumber) !== pack)
    const startedMs = this.deps.clock.monotonicMs()
    while (!done()) {
      signal?.throwIfAborted()
      const leftMs = waitMs - (this.deps.clock.monotonicMs() - startedMs)
      if (leftMs <= 0) throw this.lastFailure ?? new Error('the targets did not take the packs in time')
      await this.#nextChange(leftMs, signal)
    }
  }
  async #nextChange(waitMs: number, signal?: AbortSignal): Promise<void> {
    const timer = new AbortController()
    let wake: () => void
    const changed = new Promise<void>((resolve) => { wake = resolve })
    this.#watchers.add(wake!)
    signal?.addEventListener('abort', wake!, { once: true })
    const waits = [changed]
    if (waitMs !== Infinity) waits.push(this.deps.clock.sleep(waitMs, timer.signal).catch(() => undefined))
    await Promise.race(waits)
    this.#watchers.delete(wake!)
    signal?.removeEventListener('abort', wake!)
    timer.abort()
  }

  /** Stops starting uploads and waits for those running. */
  async close(): Promise<void> {
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    await Promise.all(this.#running)
  }
}
