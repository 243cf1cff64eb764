/** Messages between the main thread and the scanning thread. Nothing large is copied: arenas and counters are shared memory (an
 *  arena belongs to whoever was sent it last), the rest is transferred. */
import type { ChunkerParameters } from '../src/core/messages.js'
import type { PlainError } from '../src/protocol/client-errors.js'
import type { SourceConfig } from './scan-source.js'
import type { ArenaUse } from './upload/arena.js'
import type { ScanCounters, SourceProblem } from './upload/chunk-sink.js'

export interface ScanJob {
  readonly source: SourceConfig
  /** 64 hex digits. */
  readonly dedupKey: string
  readonly chunker: ChunkerParameters
  /** The parent snapshot's root (chunk id in hex), and when its scan began by this host's clock. */
  readonly parent?: { readonly root: string; readonly startedAtMs: number }
  /** Arenas that may exist at once. */
  readonly arenasMax: Readonly<Record<ArenaUse, number>>
  readonly counters: SharedArrayBuffer
  readonly limitReadBytesPerSecond?: number
}

export type FromScanner =
  | { readonly type: 'arena'; readonly use: ArenaUse; readonly buffer: SharedArrayBuffer; readonly count: number }
  /** Bodies of nodes of the parent, please; `ids` are packed. */
  | { readonly type: 'read'; readonly request: number; readonly ids: ArrayBuffer }
  | { readonly type: 'problem'; readonly problem: SourceProblem }
  | { readonly type: 'note'; readonly text: string }
  | { readonly type: 'at'; readonly path: string }
  | { readonly type: 'done'; readonly root: string; readonly description: Record<string, unknown> | undefined; readonly chunks: number }
  | { readonly type: 'failed'; readonly error: PlainError }

export type ToScanner =
  | { readonly type: 'arena'; readonly use: ArenaUse; readonly buffer: SharedArrayBuffer }
  | { readonly type: 'nodes'; readonly request: number; readonly bytes: ArrayBuffer; readonly lengths: readonly number[] }
  | { readonly type: 'read-failed'; readonly request: number; readonly error: PlainError }
  | { readonly type: 'abort'; readonly error: PlainError }

const COUNTERS = ['files', 'directories', 'others', 'sourceBytes', 'bytesRead', 'filesUnchanged', 'errors'] as const satisfies
  readonly (keyof ScanCounters)[]

export const newSharedCounters = (): SharedArrayBuffer => new SharedArrayBuffer(COUNTERS.length * 8)
/** Counters that another thread sees as they move. One thread writes; a reader may see values of slightly different moments. */
export function sharedCounters(memory: SharedArrayBuffer): ScanCounters {
  const cells = new Float64Array(memory)
  const counters = {} as ScanCounters
  COUNTERS.forEach((name, i) => Object.defineProperty(counters, name, {
    get: () => cells[i], set: (value: number) => { cells[i] = value }, enumerable: true,
  }))
  return counters
}
