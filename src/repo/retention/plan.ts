/** What a run of retention would do to every snapshot, and why. Pure.
 *
 *  Beyond what the policies say: the newest snapshot of a source stays, whatever a policy says; so do protected and locked ones; and a policy that
 *  would keep nothing of a source is not applied to it unless that was asked for by name.
 */
import type { ForgetRequest, RetentionPolicy } from '../../core/messages.js'
import { judgeGroup, newestFirst, type DatedSnapshot, type Verdict } from './policy.js'
import { describeInstant } from './locks.js'

export interface RetainedSnapshot extends DatedSnapshot { readonly source: string; readonly isProtected: boolean; readonly lockedUntilMs: number | undefined }
export interface PlanInput {
  readonly snapshots: readonly RetainedSnapshot[]
  readonly policyOf: (source: string) => RetentionPolicy | null
  readonly options: Pick<ForgetRequest, 'source' | 'tag' | 'keepNone'>
  readonly nowMs: number
}
export interface GroupPlan {
  readonly source: string
  readonly verdicts: readonly Verdict<RetainedSnapshot>[]
  /** The policy would have kept nothing and was not applied. */
  readonly wasRefused: boolean
}

export function planRetention({ snapshots, policyOf, options, nowMs }: PlanInput): GroupPlan[] {
  const groups = new Map<string, RetainedSnapshot[]>()
  for (const snapshot of snapshots) {
    const group = groups.get(snapshot.source)
    if (group === undefined) groups.set(snapshot.source, [snapshot])
    else group.push(snapshot)
  }
  const plans: GroupPlan[] = []
  for (const [source, all] of [...groups].sort(([a], [b]) => a < b ? -1 : 1)) {
    if (options.source !== undefined && options.source !== source) continue
    const asked = options.tag === undefined ? all : all.filter(({ tags }) => tags.includes(options.tag!))
    if (asked.length > 0) plans.push(planGroup(source, all, asked, policyOf(source), options.keepNone === true, nowMs))
  }
  return plans
}

function planGroup(source: string, all: readonly RetainedSnapshot[], asked: readonly RetainedSnapshot[], policy: RetentionPolicy | null, keepNone: boolean, nowMs: number): GroupPlan {
  const keepAll = (reason: string): Verdict<RetainedSnapshot>[] =>
    [...asked].sort(newestFirst).map((snapshot) => ({ snapshot, keep: true, reasons: [reason, ...holdsOf(snapshot)] }))
  if (policy === null) return { source, verdicts: keepAll('there is no policy'), wasRefused: false }
  const judged = judgeGroup(asked, policy, nowMs)
  if (!keepNone && judged.every(({ keep }) => !keep)) return { source, verdicts: keepAll('the policy would keep nothing'), wasRefused: true }
  const newest = newestOf(all)
  return { source, wasRefused: false, verdicts: judged.map((verdict): Verdict<RetainedSnapshot> => {
    const holds = [...(newest.has(verdict.snapshot) ? ['newest of its source'] : []), ...holdsOf(verdict.snapshot)]
    if (holds.length === 0) return verdict
    return { snapshot: verdict.snapshot, keep: true, reasons: verdict.keep ? [...verdict.reasons, ...holds.filter((one) => !one.startsWith('newest'))] : holds }
  }) }
}
function holdsOf({ isProtected, lockedUntilMs }: RetainedSnapshot): string[] {
  return [...(isProtected ? ['protected'] : []), ...(lockedUntilMs === undefined ? [] : [`locked until ${describeInstant(lockedUntilMs)}`])]
}
/** By time, and by order of commit: where the clock went back, these are two. */
function newestOf(all: readonly RetainedSnapshot[]): ReadonlySet<RetainedSnapshot> {
  const byTime = all.reduce((best, one) => newestFirst(one, best) < 0 ? one : best)
  const byCommit = all.reduce((best, one) => one.sequence > best.sequence ? one : best)
  return new Set([byTime, byCommit])
}
