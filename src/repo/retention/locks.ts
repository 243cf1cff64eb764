/** What keeps a snapshot from being deleted by anybody: its protection, its lock, the repository's lock. */
import { dateOf } from '../../core/clock.js'
import { RoostError } from '../../core/errors.js'
import type { SnapshotRow } from '../../index/chunk-index.js'
import type { RetentionSettings, SnapshotLock } from './settings-format.js'
import type { WitnessedTime } from './witnessed-time.js'

type Dated = Pick<SnapshotRow, 'snapshotId' | 'receivedAtMs' | 'arrivedAtMs'>

/** The settings of one moment, ready for many snapshots. */
export class Holds {
  readonly #lockMs: number
  readonly #protected: ReadonlySet<string>
  readonly #locks: ReadonlyMap<string, SnapshotLock>
  private constructor(settings: RetentionSettings, readonly time: WitnessedTime, readonly nowMs: number) {
    this.#lockMs = settings.lockMs
    this.#protected = new Set(settings.protected)
    this.#locks = new Map(settings.locks.map((lock) => [lock.snapshot, lock]))
  }
  static async of(settings: RetentionSettings, time: WitnessedTime): Promise<Holds> { return new Holds(settings, time, await time.observe()) }

  isProtected(id: string): boolean { return this.#protected.has(id) }
  /** When the lock ends, if the server runs until then; undefined when none holds. */
  lockedUntilMs({ snapshotId, receivedAtMs, arrivedAtMs }: Dated): number | undefined {
    // Of a replicated one: by this server's clock, when it came. Another's clock must not shorten a lock here.
    const leftMs = Math.max(this.#lockMs === 0 ? 0 : this.#leftMs(arrivedAtMs ?? receivedAtMs, this.#lockMs), this.ownLockLeftMs(snapshotId))
    return leftMs > 0 ? this.nowMs + leftMs : undefined
  }
  /** Of the snapshot's own lock, the repository's aside. */
  ownLockLeftMs(id: string): number {
    const lock = this.#locks.get(id)
    return lock === undefined ? 0 : Math.max(0, this.#leftMs(lock.setAtMs, lock.untilMs - lock.setAtMs))
  }
  /** The wall clock and the stopwatch must both have gone so far. */
  #leftMs(fromMs: number, forMs: number): number {
    return Math.max(fromMs + forMs - this.nowMs, forMs - this.time.creditedSince(fromMs))
  }
}

/** @throws {RoostError} SNAPSHOT_PROTECTED; RETENTION_LOCKED */
export function requireDeletable(holds: Holds, row: Dated): void {
  if (holds.isProtected(row.snapshotId))
    throw new RoostError('SNAPSHOT_PROTECTED', 'This snapshot is protected: it is not deleted until somebody unprotects it.', { snapshot: row.snapshotId })
  const untilMs = holds.lockedUntilMs(row)
  if (untilMs !== undefined)
    throw new RoostError('RETENTION_LOCKED', `This snapshot is locked until ${describeInstant(untilMs)}; nobody can delete it before.`, { snapshot: row.snapshotId, lockedUntilMs: untilMs })
}

/** `2025-03-30T01:00:00Z`. */
export const describeInstant = (ms: number): string => dateOf(ms).toISOString().replace(/\.\d+Z$/, 'Z')
