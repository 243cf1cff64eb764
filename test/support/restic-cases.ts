/** Dates and policies on which Roost's retention and restic's must agree, and how restic is asked. */
import type { RetentionPolicy } from '../../src/core/messages.js'
import { RETENTION_COUNTS, RETENTION_WITHIN } from '../../src/core/messages.js'
import type { Restic } from './restic.js'

export interface DatedCase { readonly time: string; readonly tags?: readonly string[] }
export interface Group { readonly timeZone: 'Europe/Berlin' | 'America/New_York'; readonly snapshots: readonly DatedCase[] }
const at = (...times: readonly string[]): DatedCase[] => times.map((time) => ({ time: `${time}Z` }))

export const GROUPS: Readonly<Record<string, Group>> = {
  // The clocks of Berlin go from 02:00 to 03:00 on 31 March 2024, 01:00Z.
  spring: { timeZone: 'Europe/Berlin', snapshots: at('2024-03-29T12:00:00', '2024-03-30T12:00:00', '2024-03-30T22:59:00', '2024-03-30T23:01:00', '2024-03-31T00:30:00',
    '2024-03-31T01:00:00', '2024-03-31T01:30:00', '2024-03-31T21:59:00', '2024-03-31T22:01:00', '2024-04-01T01:30:00') },
  // And from 03:00 back to 02:00 on 27 October 2024, 01:00Z: the hour from 02:00 comes twice.
  autumn: { timeZone: 'Europe/Berlin', snapshots: at('2024-10-26T21:59:00', '2024-10-26T22:01:00', '2024-10-27T00:10:00', '2024-10-27T00:50:00', '2024-10-27T01:10:00',
    '2024-10-27T01:50:00', '2024-10-27T02:10:00', '2024-10-27T22:59:00', '2024-10-27T23:01:00', '2024-10-28T01:30:00') },
  // ISO weeks across years (2020 has 53; 30 December 2019 and 2024 are of week 1), leap days, a year that begins in Berlin before it does in London.
  years: { timeZone: 'Europe/Berlin', snapshots: at('2019-12-29T12:00:00', '2019-12-30T12:00:00', '2020-02-29T12:00:00', '2020-12-31T22:59:00', '2020-12-31T23:01:00', '2021-01-03T12:00:00',
    '2021-01-04T12:00:00', '2023-02-28T12:00:00', '2024-02-29T12:00:00', '2024-03-31T12:00:00', '2024-12-30T12:00:00', '2025-01-01T12:00:00') },
  equal: { timeZone: 'Europe/Berlin', snapshots: at('2024-05-03T05:05:05', '2024-05-03T05:05:05', '2024-05-05T05:05:05', '2024-05-05T05:05:05', '2024-05-05T05:05:05') },
  tagged: { timeZone: 'Europe/Berlin', snapshots: [{ time: '2024-06-01T10:00:00Z', tags: ['a'] }, { time: '2024-06-02T10:00:00Z', tags: ['a', 'b'] }, { time: '2024-06-03T10:00:00Z' },
    { time: '2024-06-03T11:00:00Z', tags: ['b'] }, { time: '2024-06-10T10:00:00Z', tags: ['b', 'a'] }, { time: '2024-07-01T10:00:00Z', tags: ['c'] }] },
  single: { timeZone: 'Europe/Berlin', snapshots: at('2024-08-31T10:00:00') },
  newYork: { timeZone: 'America/New_York', snapshots: at('2025-03-08T12:00:00', '2025-03-09T06:30:00', '2025-03-09T07:30:00', '2025-03-10T03:59:00', '2025-03-10T04:01:00', '2025-11-01T12:00:00',
    '2025-11-02T05:30:00', '2025-11-02T06:30:00', '2025-11-03T04:59:00', '2025-11-03T05:01:00') },
}
const ALL = -1
export const POLICIES: readonly RetentionPolicy[] = [
  { last: 1 }, { last: 3 }, { last: 1000 }, { hourly: 1 }, { hourly: 4 }, { hourly: ALL }, { daily: 1 }, { daily: 2 }, { daily: 3 }, { daily: ALL }, { weekly: 1 }, { weekly: 3 }, { weekly: ALL },
  { monthly: 2 }, { monthly: ALL }, { yearly: 1 }, { yearly: 3 }, { yearly: ALL }, { daily: 2, weekly: 2, monthly: 2, yearly: 2 }, { last: 2, hourly: 3, yearly: 4 },
  { within: '1h' }, { within: '23h' }, { within: '24h' }, { within: '25h' }, { within: '1d' }, { within: '2d' }, { within: '1m' }, { within: '1y' }, { within: '12m' }, { within: '1y1m2d3h' },
  { within: '10m1d' }, { within: '4y1d' }, { withinHourly: '1d' }, { withinDaily: '2d' }, { withinDaily: '1m' }, { withinWeekly: '3m' }, { withinMonthly: '2y' }, { withinYearly: '5y' },
  { tags: [['a']] }, { tags: [['a', 'b']] }, { tags: [['c'], ['b']], daily: 1 }, { last: 1, within: '1d', withinDaily: '1m', monthly: 3, tags: [['a']] },
]

/** Makes every group's snapshots, each with the offset of its place at that time, as restic itself stores them. */
export async function backUpCases(restic: Restic, lanes: number): Promise<void> {
  const waiting = Object.entries(GROUPS).flatMap(([host, { timeZone, snapshots }]) => snapshots.map((snapshot) => ({ host, timeZone, ...snapshot })))
  await inLanes(lanes, waiting, async ({ host, timeZone, time, tags = [] }) => {
    const hours = offsetHours(timeZone, time)
    const wall = new Date(Date.parse(time) + hours * 3_600_000).toISOString().slice(0, 19).replace('T', ' ')
    // POSIX counts hours west of Greenwich.
    await restic.run(['backup', '-q', '--host', host, '--time', wall, ...tags.flatMap((tag) => ['--tag', tag]), 'f'], `Etc/GMT${hours <= 0 ? '+' : '-'}${Math.abs(hours)}`)
  })
}
function offsetHours(timeZone: string, time: string): number {
  const name = new Intl.DateTimeFormat('en-US', { timeZone, timeZoneName: 'longOffset' }).formatToParts(new Date(time)).find(({ type }) => type === 'timeZoneName')!.value
  return Number(/^GMT([+-]\d\d):00$/.exec(name)![1])
}

/** What restic keeps of each group, as ascending times. */
export async function askRestic(restic: Restic, policy: RetentionPolicy): Promise<Record<string, string[]>> {
  const flags = [
    ...RETENTION_COUNTS.flatMap((name) => policy[name] === undefined ? [] : [`--keep-${name}`, String(policy[name] === ALL ? 1_000_000 : policy[name])]),
    ...RETENTION_WITHIN.flatMap((name) => policy[name] === undefined ? [] : [`--keep-${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`, policy[name]]),
    ...(policy.tags ?? []).flatMap((tags) => ['--keep-tag', tags.join(',')]),
  ]
  const kept: Record<string, string[]> = {}
  for (const timeZone of ['Europe/Berlin', 'America/New_York']) {
    const hosts = Object.keys(GROUPS).filter((host) => GROUPS[host]!.timeZone === timeZone)
    const told = JSON.parse(await restic.run(['forget', '--dry-run', '--no-lock', '--json', '--group-by', 'host', ...hosts.flatMap((host) => ['--host', host]), ...flags], timeZone)) as
      { host: string; keep: { time: string }[] | null }[]
    for (const { host, keep } of told) kept[host] = (keep ?? []).map(({ time }) => `${new Date(time).toISOString().slice(0, 19)}Z`).sort()
  }
  return kept
}

export async function inLanes<T>(lanes: number, items: readonly T[], work: (item: T, place: number) => Promise<void>): Promise<void> {
  let next = 0
  await Promise.all(Array.from({ length: lanes }, async () => { while (next < items.length) { const place = next++; await work(items[place]!, place) } }))
}
