/** What a restore tells while it runs and at its end. */
import type { SnapshotRecord } from '../../src/core/messages.js'

/** `damaged`: the repository has not all of it. `blocked`: something else is in the way and was to stay.
 *  `refused`: the operating system did not allow it. `metadata`: restored, but not every attribute. */
export type RestoreProblemReason = 'damaged' | 'blocked' | 'refused' | 'metadata' | 'changed'
/** `path` is raw bytes, relative to the destination. */
export interface RestoreProblem { readonly path: Buffer; readonly reason: RestoreProblemReason; readonly message: string; readonly cause?: unknown }

export interface RestoreCounters {
  files: number; directories: number; others: number
  /** Left as they were: `never`, or unchanged under `if-changed`. */
  skipped: number
  /** Content written, holes not counted. */
  bytes: number
  /** Sizes of the files done, holes counted: comparable with the snapshot's sourceBytes. */
  bytesDone: number
  problems: number
}
export interface RestoreEvents {
  /** The snapshot was opened and its signature is right. */
  started?(record: SnapshotRecord, snapshotId: string): void
  problem?(problem: RestoreProblem): void
  /** Cumulative; the same object each time. Called often: throttle the drawing. */
  progress?(counters: Readonly<RestoreCounters>): void
}
export interface RestoreReport extends Readonly<RestoreCounters> {
  readonly snapshotId: string
  readonly durationMs: number
  /** Not root: owners, groups or attributes that only root may set were left. */
  readonly privilegesLacked: boolean
}
export const emptyCounters = (): RestoreCounters =>
  ({ files: 0, directories: 0, others: 0, skipped: 0, bytes: 0, bytesDone: 0, problems: 0 })
