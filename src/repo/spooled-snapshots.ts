/** Snapshots that are committed here and not on their targets yet: whole, signed, fsynced in the spool beside their packs.
 *
 *  They go to the targets, in order, as soon as every pack before them is stored; a target never holds a snapshot without its packs.
 *  Their file is their state: it is there until the targets hold the snapshot (docs/durability.md, "In the spool").
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../core/clock.js'
import type { KeyedMutex } from '../core/concurrency.js'
import { isErrno } from '../core/errors.js'
import { parseSnapshotId, type SnapshotId } from '../core/ids.js'
import { bytesBody } from '../store/bytes-body.js'
import type { FileEffects } from '../store/file-effects.js'
import type { ObjectStore } from '../store/object-store.js'
import { replaceFile } from '../store/replace-file.js'
import { snapshotKey } from './layout.js'
import type { PackUploads } from './pack-uploads.js'

const RETRY_AFTER_MS = 5_000

export interface SpooledSnapshotsDeps {
  readonly spoolDirectory: string
  readonly effects: FileEffects
  readonly clock: Clock
  readonly uploads: PackUploads
  readonly store: ObjectStore
  retainUntilMs(): number | undefined
  readonly locks: KeyedMutex<SnapshotId>
}

export class SpooledSnapshots {
  readonly #deps: SpooledSnapshotsDeps
  readonly #waiting = new Set<SnapshotId>()
  readonly #watchers = new Set<() => void>()
  readonly #stop = new AbortController()
  #uploading: Promise<void> | undefined
  #pause = new AbortController()
  lastFailure: Error | undefined
  /** Files were removed that a power cut would bring back: harmless while their snapshots exist. A start makes all of that durable. */
  #hasUnsynced = false

  constructor(deps: SpooledSnapshotsDeps) { this.#deps = deps }
  has(id: SnapshotId): boolean { return this.#waiting.has(id) }
  get count(): number { return this.#waiting.size }
  #file(id: SnapshotId): string { return join(this.#deps.spoolDirectory, `${id}.snapshot`) }
  /** The id of a spool file's name, or undefined. */
  static idOfFile(name: string): SnapshotId | undefined {
    const match = /^([0-9a-f]{64})\.snapshot$/.exec(name)
    return match === null ? undefined : parseSnapshotId(match[1]!)
  }

  /** Durable when it resolves. `wake` sends it on its way, once its row is in the index. */
  async add(id: SnapshotId, object: Buffer): Promise<void> {
    await replaceFile(this.#file(id), object, this.#deps.effects)
    this.#waiting.add(id)
  }
  /** At start-up: the file is there. */
  found(id: SnapshotId): void { this.#waiting.add(id) }
  object(id: SnapshotId): Promise<Buffer> { return readFile(this.#file(id)) }

  /** Starts uploading, or ends the pause after a failure. */
  wake(): void {
    this.#pause.abort()
    if (this.#waiting.size === 0 || this.#stop.signal.aborted) return
    this.#uploading ??= this.#uploadAll().finally(() => { this.#uploading = undefined })
  }
  async #uploadAll(): Promise<void> {
    const { signal } = this.#stop
    while (this.#waiting.size > 0 && !signal.aborted) {
      this.#pause = new AbortController()
      const [id] = this.#waiting
      try {
        await this.#upload(id!, signal)
        this.lastFailure = undefined
      } catch (error) {
        if (signal.aborted) return // it stays in the spool; the next start uploads it
        this.lastFailure = error instanceof Error ? error : new Error('upload failed')
        this.#notify()
        await this.#deps.clock.sleep(RETRY_AFTER_MS, AbortSignal.any([signal, this.#pause.signal])).catch(() => undefined) // woken, or stopping
      }
    }
  }
  async #upload(id: SnapshotId, signal: AbortSignal): Promise<void> {
    const { uploads, store, effects, locks } = this.#deps
    const retainUntilMs = this.#deps.retainUntilMs()
    await uploads.settled(Infinity, signal)
    await locks.run(id, async () => {
      if (!this.#waiting.has(id)) return
      await store.put(snapshotKey(id), bytesBody(await this.object(id)), { signal, ...(retainUntilMs && { retainUntilMs }) })
      this.#waiting.delete(id)
      await effects.unlink(this.#file(id))
      this.#hasUnsynced = true
    })
    this.#notify()
  }
  /** For a snapshot that is being deleted, under its lock: durably, its file is gone. A power cut would bring it back otherwise, and the next start
   *  would take it in. */
  async drop(id: SnapshotId): Promise<void> {
    const { effects, spoolDirectory } = this.#deps
    if (this.#waiting.delete(id)) {
      await effects.unlink(this.#file(id)).catch((error: unknown) => {
        if (!isErrno(error, 'ENOENT')) throw error // it left in this moment
      })
      this.#hasUnsynced = true
      this.#notify()
    }
    if (!this.#hasUnsynced) return
    this.#hasUnsynced = false
    await effects.fsyncDirectory(spoolDirectory).catch((error: unknown) => {
      this.#hasUnsynced = true
      throw error
    })
  }
  #notify(): void { for (const wake of [...this.#watchers]) wake() }

  /** True once the targets hold it; false after `waitMs`. Rejects with `signal.reason`. */
  async settled(id: SnapshotId, waitMs: number, signal: AbortSignal): Promise<boolean> {
    this.wake()
    const timer = new AbortController()
    const timeout = this.#deps.clock.sleep(waitMs, AbortSignal.any([timer.signal, signal])).then(() => 'late' as const, () => 'late' as const)
    try {
      while (this.#waiting.has(id)) {
        let wake: () => void
        const changed = new Promise<'changed'>((resolve) => { wake = () => { resolve('changed') } })
        this.#watchers.add(wake!)
        const what = await Promise.race([changed, timeout])
        this.#watchers.delete(wake!)
        signal.throwIfAborted()
        if (what === 'late') return !this.#waiting.has(id)
      }
      return true
    } finally {
      timer.abort()
    }
  }
  async close(): Promise<void> {
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    this.#pause.abort()
    await this.#uploading
  }
}
