/** Where sources put their chunks: space to read into, and `take` to claim what was read.
 *
 *  Zero copies: a source reads straight into the sink's current arena, cuts there, and takes each chunk. A full arena is
 *  handed to the uploader (missing-query, then the frames that the server lacks) while the source goes on in the next one;
 *  when all arenas are in flight, `space` waits: that is the back-pressure and the bound on memory.
 */
import type { ChunkId, ChunkKind } from '../../src/core/ids.js'
import type { RateLimiter } from '../../src/core/rate-limit.js'

export interface ChunkSink {
  /** Contiguous writable space of at least `bytesMin` (≤ LIMITS.chunkBytesMax), usually more: the free rest of the current
   *  arena. Bytes in it that were written but not taken stay at its start across calls, as long as `keepBytes` says how many
   *  to keep (they are moved when a new arena must be started). Valid until the next space() or take(). */
  space(bytesMin: number, keepBytes?: number): Buffer | Promise<Buffer>
  /** Claims the first `bytes` of the current space as one chunk: hashes it and queues it for the server.
   *  When its id equals `inherited` (an id that a node of the parent lists), the space is free again and nothing is queued.
   *  The remaining written bytes begin right after the taken ones: continue in `space(min, keepBytes)`. */
  take(bytes: number, kind: ChunkKind, inherited?: Uint8Array): ChunkId
  /** A chunk from memory of the caller (nodes): copies it in. */
  put(bytes: Uint8Array, kind: ChunkKind, inherited?: Uint8Array): ChunkId | Promise<ChunkId>
}

/** Chunks of the snapshot that a session reads: nodes of the parent, for comparing. */
export interface NodeSource {
  /** Bodies in the order of `ids`. Nodes whose parents were not read in this session are refused (CHUNK_NOT_READABLE). */
  readNodes(ids: readonly ChunkId[]): Promise<Buffer[]>
}

/** What a scan tells while it runs; counters are cumulative. */
export interface ScanCounters {
  files: number; directories: number; others: number; sourceBytes: number; bytesRead: number; filesUnchanged: number
  errors: number
}
/** A path that could not be saved, or not as it was: reported, counted, never fatal. `path` is display text. */
export interface SourceProblem {
  readonly path: string
  /** `map-wrong`: a disk's dirty map missed writes; the disk was read in full instead. */
  readonly reason: 'vanished' | 'changed' | 'unreadable' | 'unsupported' | 'map-wrong'
  readonly message: string
}

export interface ScanContext {
  readonly sink: ChunkSink
  /** `startedAtMs`: when the parent's scan began; files touched since then are read again, for their times may hide a change. */
  readonly parent: { readonly root: ChunkId; readonly nodes: NodeSource; readonly startedAtMs: number } | undefined
  readonly counters: ScanCounters
  report(problem: SourceProblem): void
  /** Worth a line to the user, and no problem. */
  note(text: string): void
  /** Name of what is being read now, for progress. */
  at(path: string): void
  readonly signal: AbortSignal
  /** What --limit-read allows: taken before bytes are read. */
  readonly limitRead?: RateLimiter
}
/** The root (a directory or directory-index node) of what was scanned; description goes into the snapshot. */
export interface ScanResult { readonly root: ChunkId; readonly description?: Record<string, unknown> }
