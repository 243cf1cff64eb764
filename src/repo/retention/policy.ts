/** Which snapshots a policy keeps, and why. Pure; the semantics are restic's (docs/retention.md), proved against it by
 *  test/repo/restic-policy.test.ts.
 *
 *  Within a group, newest first, each rule keeps the newest snapshot of each of its periods (hour, day, ISO week, month, year of the policy's time zone) as
 *  long as its count lasts, and the oldest snapshot of all while there is count left (as restic does since 0.16). `within` reaches back from the newest snapshot of the
 *  group. A snapshot goes only when no rule keeps it. The time of a snapshot is when the server received it.
 */
import { RoostError } from '../../core/errors.js'
import { RETENTION_COUNTS, RETENTION_WITHIN, type RetentionPolicy } from '../../core/messages.js'
import { Calendar } from './calendar.js'
import { isZero, parseDuration } from './duration.js'

export interface DatedSnapshot {
  readonly id: string
  readonly receivedAtMs: number
  /** Order of commit: decides between equal times. */
  readonly sequence: number
  readonly tags: readonly string[]
}
/** `reasons` is never empty. */
export interface Verdict<T extends DatedSnapshot = DatedSnapshot> { readonly snapshot: T; readonly keep: boolean; readonly reasons: readonly string[] }

const UNLIMITED = -1
export const NO_RULE = 'no rule keeps it'

/** True when the policy states no rule at all. */
export function isEmptyPolicy(policy: RetentionPolicy): boolean {
  return RETENTION_COUNTS.every((name) => (policy[name] ?? 0) === 0) && (policy.tags ?? []).length === 0 &&
    RETENTION_WITHIN.every((name) => policy[name] === undefined || isZero(parseDuration(policy[name])))
}
/** @throws {RoostError} REQUEST_MALFORMED when a duration or the time zone is none. */
export function requirePolicy(policy: RetentionPolicy): void {
  for (const name of RETENTION_WITHIN) if (policy[name] !== undefined) parseDuration(policy[name])
  for (const name of RETENTION_COUNTS) if ((policy[name] ?? 0) < UNLIMITED) throw new RoostError('REQUEST_MALFORMED', `${name} is a count, or -1 for all.`)
  new Calendar(policy.timeZone ?? 'UTC')
}

interface Rule { left: number; readonly afterMs: number; readonly period: (ms: number, place: number) => number; last: number; readonly reason: string; readonly counted: boolean }

/** Newest first; of equal times, the later commit. */
export const newestFirst = (a: DatedSnapshot, b: DatedSnapshot): number => b.receivedAtMs - a.receivedAtMs || b.sequence - a.sequence

/** Judges one group. An empty policy keeps nothing: whether that is wanted is the caller's question. `nowMs`: a snapshot that claims to be from
 *  later than that is not what `within` is counted from. */
export function judgeGroup<T extends DatedSnapshot>(group: readonly T[], policy: RetentionPolicy, nowMs: number): Verdict<T>[] {
  const sorted = [...group].sort(newestFirst)
  const calendar = new Calendar(policy.timeZone ?? 'UTC')
  const latest = sorted.find(({ receivedAtMs }) => receivedAtMs <= nowMs)?.receivedAtMs
  const within = durationRule(policy.within, latest, calendar)
  const rules = rulesOf(policy, latest, calendar)
  return sorted.map((snapshot, place) => {
    const { receivedAtMs: ms } = snapshot
    const isOldest = place === sorted.length - 1 && policy.keepOldest !== false
    const reasons: string[] = []
    for (const tags of policy.tags ?? []) if (hasTags(snapshot, tags)) reasons.push(`has tag ${tags.join(' and ')}`)
    if (within !== undefined && ms > within) reasons.push(`within ${policy.within!}`)
    for (const rule of rules) {
      if (rule.left === 0 || ms <= rule.afterMs) continue
      const period = rule.period(ms, place)
      if (period === rule.last && !(isOldest && rule.counted)) continue
      reasons.push(period === rule.last ? `oldest, ${rule.reason}s left` : rule.reason)
      rule.last = period
      if (rule.left > 0 && rule.counted) rule.left--
    }
    return { snapshot, keep: reasons.length > 0, reasons: reasons.length > 0 ? reasons : [NO_RULE] }
  })
}

function rulesOf(policy: RetentionPolicy, latest: number | undefined, calendar: Calendar): Rule[] {
  const periods: Record<string, (ms: number, place: number) => number> = {
    Last: (_ms, place) => place, Hourly: (ms) => calendar.hourOf(ms), Daily: (ms) => calendar.dayOf(ms), Weekly: (ms) => calendar.weekOf(ms),
    Monthly: (ms) => calendar.monthOf(ms), Yearly: (ms) => calendar.yearOf(ms),
  }
  const counts = RETENTION_COUNTS.map((name): Rule => {
    const kind = name[0]!.toUpperCase() + name.slice(1)
    return { left: policy[name] ?? 0, afterMs: -Infinity, period: periods[kind]!, last: -1, reason: `${name} snapshot`, counted: true }
  })
  const withins = RETENTION_WITHIN.filter((name) => name !== 'within').flatMap((name): Rule[] => {
    const afterMs = durationRule(policy[name], latest, calendar)
    const kind = name.slice('within'.length)
    return afterMs === undefined ? [] : [{ left: UNLIMITED, afterMs, period: periods[kind]!, last: -1, reason: `${kind.toLowerCase()} snapshot within ${policy[name]!}`, counted: false }]
  })
  return [...counts, ...withins]
}
/** What is newer than this is within; undefined when there is no such rule. When every snapshot is from later than now, all are within. */
function durationRule(text: string | undefined, latest: number | undefined, calendar: Calendar): number | undefined {
  const duration = text === undefined ? undefined : parseDuration(text)
  if (duration === undefined || isZero(duration)) return undefined
  return latest === undefined ? -Infinity : calendar.before(latest, duration)
}
const hasTags = ({ tags }: DatedSnapshot, wanted: readonly string[]): boolean => wanted.every((tag) => tags.includes(tag))
