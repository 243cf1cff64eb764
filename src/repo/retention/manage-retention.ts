/** Use cases over a repository's retention: policies, protected snapshots, locks. Each is durable on the targets when it resolves. */
import { RoostError } from '../../core/errors.js'
import type { SnapshotId } from '../../core/ids.js'
import { LIMITS } from '../../core/limits.js'
import type { LockSnapshotRequest, RetentionInfo, SetPolicyRequest } from '../../core/messages.js'
import type { RepositoryParts } from '../repository-parts.js'
import { unknownSnapshot } from '../sessions.js'
import { describeInstant, Holds } from './locks.js'
import { isEmptyPolicy, requirePolicy } from './policy.js'
import type { RetentionSettings } from './settings-format.js'

type RetentionParts = Pick<RepositoryParts, 'retention' | 'index'>

export async function retentionInfo({ retention }: RetentionParts): Promise<RetentionInfo> {
  const settings = await retention.current()
  const holds = await Holds.of(settings, retention.time)
  const { lockMs, policy, sources } = settings
  return { lockMs, policy, sources, protected: settings.protected,
    locks: settings.locks.flatMap(({ snapshot }) => {
      const leftMs = holds.ownLockLeftMs(snapshot)
      return leftMs > 0 ? [{ snapshot, untilMs: holds.nowMs + leftMs }] : []
    }) }
}

/** @throws {RoostError} POLICY_KEEPS_NOTHING; REQUEST_MALFORMED; LIMIT_EXCEEDED */
export async function setPolicy(parts: RetentionParts, { source, policy }: SetPolicyRequest): Promise<RetentionInfo> {
  if (policy !== null) {
    requirePolicy(policy)
    if (isEmptyPolicy(policy)) throw new RoostError('POLICY_KEEPS_NOTHING', 'A stored policy must state at least one rule; removing it keeps everything.')
  }
  await parts.retention.change((settings) => {
    if (source === undefined) return { ...settings, policy }
    const others = settings.sources.filter((one) => one.source !== source)
    return { ...settings, sources: policy === null ? others : [...others, { source, policy }].sort((a, b) => a.source < b.source ? -1 : 1) }
  })
  return await retentionInfo(parts)
}

/** @throws {RoostError} SNAPSHOT_UNKNOWN; LIMIT_EXCEEDED */
export async function protectSnapshot(parts: RetentionParts, id: SnapshotId, isProtected: boolean): Promise<void> {
  await parts.retention.change(async (settings) => {
    if (isProtected) await requireSnapshot(parts, id)
    if (settings.protected.includes(id) === isProtected) return settings
    return { ...settings, protected: isProtected ? [...settings.protected, id] : settings.protected.filter((one) => one !== id) }
  })
}

/** @throws {RoostError} SNAPSHOT_UNKNOWN; RETENTION_LOCKED when it would end a lock sooner; REQUEST_MALFORMED; LIMIT_EXCEEDED */
export async function lockSnapshot(parts: RetentionParts, id: SnapshotId, request: LockSnapshotRequest): Promise<void> {
  await parts.retention.change(async (settings) => {
    await requireSnapshot(parts, id)
    const holds = await Holds.of(settings, parts.retention.time)
    if ((request.forMs === undefined) === (request.untilMs === undefined)) throw new RoostError('REQUEST_MALFORMED', 'A lock has either a length or an end.')
    const forMs = request.forMs ?? request.untilMs! - holds.nowMs
    if (!(forMs > 0 && forMs <= LIMITS.retentionLockMsMax)) throw new RoostError('REQUEST_MALFORMED', 'A lock ends in the future, within a hundred years.')
    const leftMs = holds.ownLockLeftMs(id)
    if (leftMs > forMs) throw new RoostError('RETENTION_LOCKED', `This snapshot is locked until ${describeInstant(holds.nowMs + leftMs)}; a lock can be lengthened, never shortened.`,
      { snapshot: id, lockedUntilMs: holds.nowMs + leftMs })
    const others = withoutEnded(settings, holds)
    return { ...others, locks: [...others.locks.filter(({ snapshot }) => snapshot !== id), { snapshot: id, setAtMs: holds.nowMs, untilMs: holds.nowMs + forMs }] }
  })
}

/** @throws {RoostError} RETENTION_LOCKED when it would be shorter; REQUEST_MALFORMED */
export async function setRetentionLock({ retention }: RetentionParts, lockMs: number): Promise<void> {
  if (lockMs > LIMITS.retentionLockMsMax) throw new RoostError('REQUEST_MALFORMED', 'A retention lock is at most a hundred years.')
  await retention.change((settings) => {
    if (lockMs < settings.lockMs)
      throw new RoostError('RETENTION_LOCKED', 'The retention lock of this repository can be lengthened, never shortened.', { lockMs: settings.lockMs })
    return lockMs === settings.lockMs ? settings : { ...settings, lockMs }
  })
}

async function requireSnapshot({ index }: RetentionParts, id: SnapshotId): Promise<void> {
  if (await index.getSnapshot(id) === undefined) throw unknownSnapshot(id)
}
/** Ended locks go when something else is written; what stands for a snapshot that cannot be found now may be needed again. */
const withoutEnded = (settings: RetentionSettings, holds: Holds): RetentionSettings =>
  ({ ...settings, locks: settings.locks.filter(({ snapshot }) => holds.ownLockLeftMs(snapshot) > 0) })
