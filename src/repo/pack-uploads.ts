/** Sealed packs on their way from the spool to the target (docs/durability.md W3).
 *
 *  Bounded parallelism; a target that is down delays, it loses nothing: the packs stay in the spool, are read from there, and
 *  the next start queues them again. A pack's spool file is deleted only after the index durably says `stored`.
 */
import { createReadStream } from 'node:fs'
import type { Clock } from '../core/clock.js'
import { isAbort } from '../core/errors.js'
import type { PackNumber } from '../core/ids.js'
import type { ChunkIndex, PackRow } from '../index/chunk-index.js'
import type { FileEffects } from '../store/file-effects.js'
import type { ObjectStore, ReplayableBody } from '../store/object-store.js'
import { packKey } from './layout.js'

export interface SpooledPack { readonly row: PackRow; readonly file: string }
const UPLOADS_IN_FLIGHT_MAX = 2
/** Between attempts of one pack after the store's own retries have given up. */
const RETRY_AFTER_MS = 5_000

export class PackUploads {
  readonly #waiting: SpooledPack[] = []
  /** Announced and not yet stored: number → spool file (once sealed and in the index). */
  readonly #unstored = new Map<PackNumber, { bytes: number; file: string | undefined }>()
  readonly #watchers = new Set<() => void>()
  readonly #running = new Set<Promise<void>>()
  readonly #stop = new AbortController()
  #waitingBytes = 0
  /** Why the last attempt failed, until one succeeds. */
  lastFailure: Error | undefined

  constructor(readonly deps: { readonly store: ObjectStore; readonly index: ChunkIndex; readonly effects: FileEffects; readonly clock: Clock }) {}

  get waitingBytes(): number { return this.#waitingBytes }
  get waitingPacks(): number { return this.#unstored.size }
  /** Where a pack that is not on its target yet can be read. */
  spoolFile(number: PackNumber): string | undefined { return this.#unstored.get(number)?.file }

  /** From here on `settled` waits for this pack. */
  announce(row: PackRow): void {
    if (this.#unstored.has(row.packNumber)) return
    this.#unstored.set(row.packNumber, { bytes: row.storedBytes, file: undefined })
    this.#waitingBytes += row.storedBytes
  }
  enqueue(pack: SpooledPack): void {
    this.announce(pack.row)
    this.#unstored.set(pack.row.packNumber, { bytes: pack.row.storedBytes, file: pack.file })
    this.#waiting.push(pack)
    this.#pump()
  }
  #pump(): void {
    while (this.#running.size < UPLOADS_IN_FLIGHT_MAX && this.#waiting.length > 0 && !this.#stop.signal.aborted) {
      const upload = this.#upload(this.#waiting.shift()!).finally(() => { this.#running.delete(upload); this.#pump() })
      this.#running.add(upload)
    }
  }
  async #upload(pack: SpooledPack): Promise<void> {
    const { store, index, effects, clock } = this.deps
    const { signal } = this.#stop
    for (;;) {
      try {
        await store.put(packKey(pack.row.packId), packBody(pack), { signal })
        await index.placePack(pack.row.packNumber, { add: 1, stored: true })
        break
      } catch (error) {
        if (signal.aborted || isAbort(error)) return // it stays in the spool; the next start uploads it
        this.lastFailure = error instanceof Error ? error : new Error('upload failed')
        this.#notify()
        await clock.sleep(RETRY_AFTER_MS, signal).catch(() => undefined) // aborted: the loop's next put sees it
        if (signal.aborted) return
      }
    }
    this.lastFailure = undefined
    await effects.unlink(pack.file).catch((error: unknown) => {
      // Only space is lost: start-up finds the pack stored and deletes the file then.
      if (!(error instanceof Error)) throw error
    })
    const known = this.#unstored.get(pack.row.packNumber)
    this.#unstored.delete(pack.row.packNumber)
    this.#waitingBytes -= known?.bytes ?? 0
    this.#notify()
  }
  #notify(): void { for (const wake of [...this.#watchers]) wake() }

  /** Resolves when every pack announced before the call is on its target. Rejects with the target's last failure after `waitMs`
   *  without completion, or with `signal.reason`. */
  async settled(waitMs: number, signal?: AbortSignal): Promise<void> {
    const awaited = new Set(this.#unstored.keys())
    const done = (): boolean => ![...awaited].some((number) => this.#unstored.has(number))
    const startedMs = this.deps.clock.monotonicMs()
    while (!done()) {
      signal?.throwIfAborted()
      const leftMs = waitMs - (this.deps.clock.monotonicMs() - startedMs)
      if (leftMs <= 0) throw this.lastFailure ?? new Error('the target did not take the packs in time')
      await this.#nextChange(leftMs, signal)
    }
  }
  async #nextChange(waitMs: number, signal?: AbortSignal): Promise<void> {
    const timer = new AbortController()
    let wake: () => void
    const changed = new Promise<void>((resolve) => { wake = resolve })
    this.#watchers.add(wake!)
    signal?.addEventListener('abort', wake!, { once: true })
    const timeout = this.deps.clock.sleep(waitMs, timer.signal).catch(() => undefined)
    await Promise.race([changed, timeout])
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

function packBody(pack: SpooledPack): ReplayableBody {
  return { bytes: pack.row.storedBytes, file: pack.file, open: () => createReadStream(pack.file, { highWaterMark: 1024 * 1024 }) }
}
