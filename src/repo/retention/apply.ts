/** One run of retention: judges every snapshot, says why, and deletes what no rule keeps. */
import { isAbort, RoostError } from '../../core/errors.js'
import type { SnapshotId } from '../../core/ids.js'
import type { ForgetRequest, MaintenanceEvent } from '../../core/messages.js'
import { deleteSnapshot } from '../delete-snapshot.js'
import { everySnapshot } from '../every-snapshot.js'
import type { RepositoryParts } from '../repository-parts.js'
import { rebuildNeeded } from '../sessions.js'
import { Holds } from './locks.js'
import { planRetention, type RetainedSnapshot } from './plan.js'
import { isEmptyPolicy, requirePolicy } from './policy.js'

/** Verdicts on all snapshots that were asked about, then the deletions, then `done`. Without `options.policy`, the stored policies decide, and sources
 *  without one keep everything. What cannot be deleted is a problem, and the run goes on. Repeating a run that was cut short finishes it.
 *  @throws {RoostError} POLICY_KEEPS_NOTHING; REQUEST_MALFORMED; REPOSITORY_BUSY; INDEX_REBUILD_NEEDED; STORE_UNAVAILABLE while the settings cannot be read */
export async function* applyRetention(parts: RepositoryParts, options: ForgetRequest, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const { retention } = parts
  if (options.policy !== undefined) {
    requirePolicy(options.policy)
    if (isEmptyPolicy(options.policy) && options.keepNone !== true) throw keepsNothing()
  }
  if (!await parts.index.isComplete()) throw rebuildNeeded(parts.name)
  if (retention.isForgetting) throw new RoostError('REPOSITORY_BUSY', 'Retention is being applied to this repository already.')
  retention.isForgetting = true
  try {
    yield* run(parts, options, signal)
  } finally {
    retention.isForgetting = false
  }
}
const keepsNothing = (): RoostError =>
  new RoostError('POLICY_KEEPS_NOTHING', 'This policy keeps nothing: state a rule, such as --keep-daily 7, or consent with --keep-none.')

async function* run(parts: RepositoryParts, options: ForgetRequest, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const counts = { snapshots: 0, kept: 0, dropped: 0, deleted: 0 }
  let problems = 0
  const settings = await parts.retention.current()
  const stored = new Map(settings.sources.map(({ source, policy }) => [source, policy]))
  const holds = await Holds.of(settings, parts.retention.time)
  const plans = planRetention({
    snapshots: await readSnapshots(parts, holds, signal), options, nowMs: holds.nowMs,
    policyOf: (source) => options.policy ?? stored.get(source) ?? settings.policy,
  })
  const drops: RetainedSnapshot[] = []
  for (const { source, verdicts, wasRefused } of plans) {
    if (wasRefused) {
      problems++
      yield { type: 'problem', code: 'POLICY_KEEPS_NOTHING', message: `The policy would keep nothing of the source ${source}; all of it was kept.` }
    }
    for (const { snapshot, keep, reasons } of verdicts) {
      counts.snapshots++
      if (keep) counts.kept++
      else { counts.dropped++; drops.push(snapshot) }
      const { id, receivedAtMs, tags } = snapshot
      yield { type: 'verdict', snapshot: id, source, receivedAtMs, tags, keep, reasons }
    }
  }
  for (const { id } of options.dryRun === true ? [] : drops.reverse()) {
    signal.throwIfAborted()
    try {
      await deleteSnapshot(parts, id as SnapshotId)
      counts.deleted++
      yield { type: 'deleted', snapshot: id }
    } catch (error) {
      if (isAbort(error) || !(error instanceof RoostError)) throw error
      if (error.code === 'SNAPSHOT_UNKNOWN') continue // somebody else deleted it meanwhile
      problems++
      yield { type: 'problem', code: error.code, message: error.message, snapshot: id }
    }
    yield { type: 'progress', phase: 'deleting', done: counts.deleted, total: drops.length }
  }
  yield { type: 'done', problems, counts }
}

/** What judging takes, without the records. */
async function readSnapshots(parts: RepositoryParts, holds: Holds, signal: AbortSignal): Promise<RetainedSnapshot[]> {
  const found: RetainedSnapshot[] = []
  for await (const row of everySnapshot(parts.index)) {
    signal.throwIfAborted()
    const { snapshotId, source, receivedAtMs, sequence, tags } = row
    found.push({ id: snapshotId, source, receivedAtMs, sequence, tags, isProtected: holds.isProtected(snapshotId), lockedUntilMs: holds.lockedUntilMs(row) })
  }
  return found
}
