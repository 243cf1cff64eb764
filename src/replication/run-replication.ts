/** One run of a replication: what is missing on the other side, several sources at a time, each from its oldest snapshot to its newest. */
import type { Clock } from '../core/clock.js'
import { Semaphore } from '../core/concurrency.js'
import { hasCode, isAbort, RoostError, type ErrorCode } from '../core/errors.js'
import { parseSnapshotId } from '../core/ids.js'
import type { MaintenanceEvent } from '../core/messages.js'
import type { ReplicationLag, ReplicationProgress, ReplicationSelection, SnapshotOutline } from '../core/peer-messages.js'
import { rateLimiter } from '../core/rate-limit.js'
import { EventQueue } from './event-queue.js'
import { isGone, replicateSnapshot, type SnapshotDeps } from './replicate-snapshot.js'
import { chooseSnapshots, lagOf } from './select.js'
import type { NearSide, ReplicationSide } from './side.js'
import { BODIES_IN_FLIGHT_MAX, Pace, REQUESTS_IN_FLIGHT_MAX } from './transfer.js'

/** Sources under way at once: opening and committing waits for the network, too. */
const SOURCES_IN_FLIGHT_MAX = 4
/** Snapshots that are named as bases besides the parent. */
const BASES_MAX = 4

export interface ReplicationRun {
  readonly source: ReplicationSide
  readonly sink: ReplicationSide
  readonly near: NearSide
  readonly selection: ReplicationSelection
  readonly mirror: boolean
  readonly bytesPerSecondMax: number
  readonly brought: Brought
  readonly clock: Clock
  onLag(lag: ReplicationLag): void
  onProgress(progress: ReplicationProgress): void
}
/** Ids of snapshots that a replication has brought: what its sink's retention dropped is not brought again, and nothing else is ever mirrored away. */
export interface Brought {
  has(id: string): boolean
  add(id: string): Promise<void>
  /** Forgets those that `isListed` does not hold for. */
  keepOnly(isListed: (id: string) => boolean): Promise<void>
  list(): readonly string[]
}
/** What is wrong with one snapshot and does not keep the others from coming. */
const ALARMS: readonly ErrorCode[] = ['REPLICA_CONFLICT', 'SIGNER_UNKNOWN', 'SNAPSHOT_CORRUPT', 'CHUNK_MISSING', 'CHUNK_CORRUPT', 'TREE_MALFORMED', 'LIMIT_EXCEEDED']

/** @throws {RoostError} REPLICA_CONFLICT after all else was done, when two snapshots differ that must be one; what the sides throw */
export async function* runReplication(run: ReplicationRun, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const { listed, pending, there } = await compare(run, signal)
  const total = [...pending.values()].reduce((sum, list) => sum + list.length, 0)
  const counts = { chunks: 0, wireBytes: 0, rawBytes: 0, damaged: 0 }
  const state = { done: 0, problems: 0, conflict: undefined as RoostError | undefined, snapshot: undefined as string | undefined }
  const left = new Set([...pending.values()].flat())
  const tellProgress = (): void => {
    run.onProgress({ snapshotsDone: state.done, snapshotsTotal: total, chunks: counts.chunks, wireBytes: counts.wireBytes, rawBytes: counts.rawBytes,
      ...(state.snapshot === undefined ? {} : { snapshot: state.snapshot }) })
  }
  const events = new EventQueue<MaintenanceEvent>()
  const deps: SnapshotDeps = { source: run.source, sink: run.sink, near: run.near, counts, pace: new Pace(),
    slots: { requests: new Semaphore(REQUESTS_IN_FLIGHT_MAX), bodies: new Semaphore(BODIES_IN_FLIGHT_MAX) },
    limiter: run.bytesPerSecondMax > 0 ? rateLimiter(run.bytesPerSecondMax, run.clock) : undefined,
    onProgress: () => { tellProgress(); events.replace({ type: 'progress', phase: 'bytes', done: counts.wireBytes, total: counts.wireBytes }) } }
  const one = async (outline: SnapshotOutline, bases: readonly string[], stop: AbortSignal): Promise<boolean> => {
    state.snapshot = outline.id
    try {
      const isNew = await replicateSnapshot(deps, outline, bases, stop)
      await run.brought.add(outline.id)
      if (isNew) events.push({ type: 'replicated', snapshot: outline.id, source: outline.source, receivedAtMs: outline.receivedAtMs })
    } catch (error) {
      if (isGone(error)) return false // deleted meanwhile
      if (!(error instanceof RoostError) || !ALARMS.includes(error.code)) throw error
      state.problems++
      if (hasCode(error, 'REPLICA_CONFLICT')) state.conflict ??= error
      events.push({ type: 'problem', code: error.code, message: error.message, snapshot: outline.id, source: outline.source, receivedAtMs: outline.receivedAtMs })
      return false
    } finally {
      state.done++
    }
    left.delete(outline)
    run.onLag(lagOf([...left], run.clock.now()))
    tellProgress()
    events.push({ type: 'progress', phase: 'snapshots', done: state.done, total })
    return true
  }
  events.push({ type: 'progress', phase: 'snapshots', done: 0, total })
  tellProgress()
  yield* events.whileRunning(bySource(pending, there, one, signal))
  const deleted = run.mirror ? yield* mirrorDeletions(run, listed, there, signal) : 0
  // After the mirroring, which goes by what was brought.
  const wasThere = new Set([...there.values()].flat().map(({ id }) => id))
  await run.brought.keepOnly((id) => listed.has(id) || wasThere.has(id))
  if (state.conflict !== undefined) throw state.conflict
  const { chunks, rawBytes: bytes, wireBytes, damaged } = counts
  yield { type: 'done', problems: state.problems, counts: { snapshots: state.done - state.problems, chunks, bytes, wireBytes, damaged, deleted } }
}

interface Comparison {
  /** What the source has. */
  readonly listed: ReadonlySet<string>
  /** By source, oldest first: chosen, not on the sink, and never brought. */
  readonly pending: ReadonlyMap<string, readonly SnapshotOutline[]>
  /** What the sink has, by source, oldest first. */
  readonly there: ReadonlyMap<string, readonly SnapshotOutline[]>
}
async function compare(run: ReplicationRun, signal: AbortSignal): Promise<Comparison> {
  const { source, sink, selection, clock, brought } = run
  const [all, onSink] = await Promise.all([collect(source.outlines(signal)), collect(sink.outlines(signal))])
  const nowMs = clock.now()
  const isThere = new Set(onSink.map(({ id }) => id))
  // Whoever lost the list of what was brought knows it again of what the source itself signed.
  for (const { id, signer } of onSink) if (signer === source.verifyKey && !brought.has(id)) await brought.add(id)
  const pending = new Map<string, SnapshotOutline[]>()
  for (const [name, list] of chooseSnapshots(all, selection, nowMs)) {
    const missing = list.filter(({ id }) => !isThere.has(id) && !brought.has(id))
    if (missing.length > 0) pending.set(name, missing)
  }
  run.onLag(lagOf([...pending.values()].flat(), nowMs))
  return { listed: new Set(all.map(({ id }) => id)), pending, there: chooseSnapshots(onSink, {}, nowMs) }
}
async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}

/** The first failure ends what the others do. */
async function bySource(pending: Comparison['pending'], there: Comparison['there'],
  one: (outline: SnapshotOutline, bases: readonly string[], signal: AbortSignal) => Promise<boolean>, signal: AbortSignal): Promise<void> {
  const failing = new AbortController()
  const stop = AbortSignal.any([signal, failing.signal])
  const queue = [...pending]
  let failure: unknown
  const work = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined && !stop.aborted; next = queue.shift()) {
      const [name, outlines] = next
      const known = (there.get(name) ?? []).map(({ id }) => id)
      for (const outline of outlines) {
        stop.throwIfAborted()
        const bases = [...new Set([...(outline.parent === null ? [] : [outline.parent]), ...known.slice(-BASES_MAX).reverse()])]
        if (await one(outline, bases, stop)) known.push(outline.id)
      }
    }
  }
  await Promise.all(Array.from({ length: SOURCES_IN_FLIGHT_MAX }, () => work().catch((error: unknown) => {
    if (failure === undefined || (isAbort(failure) && !isAbort(error))) failure = error
    failing.abort(error)
  })))
  if (failure !== undefined) throw failure
  signal.throwIfAborted()
}

/** Only what this replication brought, and never everything: a source that lists nothing is more likely broken than empty. */
async function* mirrorDeletions({ sink, brought }: ReplicationRun, listed: ReadonlySet<string>, there: Comparison['there'], signal: AbortSignal):
  AsyncGenerator<MaintenanceEvent, number, undefined> {
  const isThere = new Set([...there.values()].flat().map(({ id }) => id))
  const gone = brought.list().filter((id) => !listed.has(id) && isThere.has(id))
  if (gone.length === 0) return 0
  if (listed.size === 0) {
    yield { type: 'problem', code: 'POLICY_KEEPS_NOTHING', message: 'The source lists no snapshot at all: nothing is mirrored away.' }
    return 0
  }
  let deleted = 0
  for (const id of gone) {
    signal.throwIfAborted()
    try {
      await sink.deleteSnapshot(parseSnapshotId(id), signal)
      deleted++
      yield { type: 'deleted', snapshot: id }
    } catch (error) {
      if (isGone(error)) continue
      // Kept here on purpose: protections and locks are this side's own.
      if (!hasCode(error, 'SNAPSHOT_PROTECTED') && !hasCode(error, 'RETENTION_LOCKED')) throw error
    }
  }
  return deleted
}

/** What is not replicated yet, without replicating it. */
export async function measureLag(run: Pick<ReplicationRun, 'source' | 'sink' | 'selection' | 'brought' | 'clock'>, signal: AbortSignal): Promise<ReplicationLag> {
  let measured: ReplicationLag | undefined
  await compare({ ...run, onLag: (lag: ReplicationLag) => { measured = lag } } as ReplicationRun, signal)
  return measured!
}
