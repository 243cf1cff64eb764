/** The rules of retention against restic's, on the same dates: its answers as they were recorded, and a living restic where there is one. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { RoostError } from '../../../src/core/errors.js'
import type { RetentionPolicy } from '../../../src/core/messages.js'
import { isEmptyPolicy, judgeGroup, requirePolicy, type DatedSnapshot } from '../../../src/repo/retention/policy.js'
import { askRestic, backUpCases, GROUPS, inLanes, POLICIES } from '../../support/restic-cases.js'
import { Restic, resticVersion } from '../../support/restic.js'

const LATER = Date.parse('2026-01-01T00:00:00Z')
/** One entry a policy: of each group, the places of what restic 0.14 keeps. */
const RECORDED = JSON.parse(readFileSync(new URL('../../../../test/repo/retention/restic-answers.json', import.meta.url), 'utf8')) as Record<string, number[]>[]

function snapshotsOf(group: string): DatedSnapshot[] {
  return GROUPS[group]!.snapshots.map(({ time, tags = [] }, place) => ({ id: String(place), receivedAtMs: Date.parse(time), sequence: place + 1, tags }))
}
const timesOf = (group: string, places: readonly number[]): string[] => places.map((place) => GROUPS[group]!.snapshots[place]!.time).sort()
function ourAnswer(group: string, policy: RetentionPolicy, keepOldest: boolean): string[] {
  const verdicts = judgeGroup(snapshotsOf(group), { ...policy, keepOldest, timeZone: GROUPS[group]!.timeZone }, LATER)
  return timesOf(group, verdicts.filter(({ keep }) => keep).map(({ snapshot }) => Number(snapshot.id)))
}
/** Kept with reasons, newest first: `id: reason; reason`. */
function told(snapshots: readonly DatedSnapshot[], policy: RetentionPolicy, nowMs = LATER): string[] {
  return judgeGroup(snapshots, policy, nowMs).map(({ snapshot, keep, reasons }) => `${snapshot.id} ${keep ? 'keep' : 'drop'}: ${reasons.join('; ')}`)
}
function days(...ofMonth: readonly string[]): DatedSnapshot[] {
  return ofMonth.map((text, place) => ({ id: text.slice(5, 10), receivedAtMs: Date.parse(`${text}:00Z`), sequence: place + 1, tags: [] }))
}

describe('what is kept is what restic keeps', () => {
  test('the table is large, and the recorded answers fit it', () => {
    assert.ok(POLICIES.length * Object.keys(GROUPS).length >= 30)
    assert.equal(RECORDED.length, POLICIES.length)
  })
  for (const group of Object.keys(GROUPS))
    test(`on the dates of ${group}, in ${GROUPS[group]!.timeZone}`, () => {
      for (const [place, policy] of POLICIES.entries())
        assert.deepEqual(ourAnswer(group, policy, false), timesOf(group, RECORDED[place]![group]!), `${group} ${JSON.stringify(policy)}`)
    })
})

test('a living restic answers the same for every policy and group', { skip: resticVersion === undefined ? 'SKIPPED: restic is not installed' : false }, async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'roost-restic-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  await writeFile(join(directory, 'f'), 'x')
  const restic = await Restic.init(directory)
  await backUpCases(restic, 2)
  const [major, minor] = resticVersion!
  const keepsOldest = major > 0 || minor >= 16
  await inLanes(2, POLICIES, async (policy) => {
    const answer = await askRestic(restic, policy)
    for (const group of Object.keys(GROUPS)) assert.deepEqual(ourAnswer(group, policy, keepsOldest), answer[group] ?? [], `${group} ${JSON.stringify(policy)}`)
  })
})

test('the oldest is all that restic since 0.16 keeps besides, and only while a counting rule has count left', () => {
  for (const group of Object.keys(GROUPS))
    for (const policy of POLICIES) {
      const before = ourAnswer(group, policy, false), oldest = GROUPS[group]!.snapshots.map(({ time }) => time).sort()[0]!
      const since = ourAnswer(group, policy, true)
      if (since.length === before.length) assert.deepEqual(since, before)
      else assert.deepEqual(since, [...before, oldest].sort(), `${group} ${JSON.stringify(policy)}`)
      const counts = [policy.last, policy.hourly, policy.daily, policy.weekly, policy.monthly, policy.yearly]
      if (counts.every((count) => count === undefined)) assert.deepEqual(since, before)
      if (counts.includes(-1)) assert.ok(since.includes(oldest))
    }
})

describe('the reasons', () => {
  test('a snapshot has every reason that keeps it, and one that goes is told so', () => {
    assert.deepEqual(told(days('2024-05-01T10:00', '2024-05-02T10:00', '2024-05-02T12:00', '2024-05-03T10:00').map((one, i) => ({ ...one, id: String(i) })), { last: 1, daily: 2, within: '1d' }), [
      '3 keep: within 1d; last snapshot; daily snapshot', '2 keep: within 1d; daily snapshot', '1 drop: no rule keeps it', '0 drop: no rule keeps it'])
  })
  test('the oldest is kept while a rule has count left, and that is its reason', () => {
    assert.deepEqual(told(days('2024-05-01T10:00', '2024-05-01T12:00', '2024-05-02T10:00').map((one, i) => ({ ...one, id: String(i) })), { daily: 5 }),
      ['2 keep: daily snapshot', '1 keep: daily snapshot', '0 keep: oldest, daily snapshots left'])
  })
  test('tags are named', () => {
    const [one] = days('2024-05-01T10:00')
    assert.deepEqual(told([{ ...one!, tags: ['b', 'a', 'x'] }], { tags: [['a', 'b'], ['z']] }), ['05-01 keep: has tag a and b'])
  })
})

describe('time', () => {
  test('of equal times the later commit counts as the newer', () => {
    const same = [1, 2, 3].map((sequence) => ({ id: String(sequence), receivedAtMs: 5, sequence, tags: [] }))
    assert.deepEqual(told(same, { last: 1 }), ['3 keep: last snapshot', '2 drop: no rule keeps it', '1 drop: no rule keeps it'])
  })
  test('a snapshot of a clock that was ahead is not what "within" is counted from', () => {
    const group = days('2024-05-01T10:00', '2024-05-02T10:00', '2031-01-01T10:00')
    assert.deepEqual(told(group, { within: '2d' }, Date.parse('2024-05-02T11:00:00Z')), ['01-01 keep: within 2d', '05-02 keep: within 2d', '05-01 keep: within 2d'])
  })
  test('when every snapshot is of a later time, "within" keeps all', () => {
    assert.equal(judgeGroup(days('2031-05-01T10:00', '2032-05-01T10:00'), { within: '1h' }, LATER).every(({ keep }) => keep), true)
  })
  test('days are those of the policy\'s time zone, UTC when it names none', () => {
    const group = days('2024-05-01T22:30', '2024-05-02T21:30')
    assert.equal(judgeGroup(group, { daily: -1, timeZone: 'Europe/Berlin' }, LATER).filter(({ keep }) => keep).length, 2) // the oldest stays by its count
    assert.deepEqual(told(group, { daily: 1, timeZone: 'Europe/Berlin' })[1], '05-01 drop: no rule keeps it')
    assert.deepEqual(told(group, { daily: 2 }), ['05-02 keep: daily snapshot', '05-01 keep: daily snapshot'])
  })
})

describe('what is a policy', () => {
  test('one without a rule is empty: zeros count for nothing', () => {
    for (const policy of [{}, { last: 0 }, { within: '0h' }, { tags: [] }, { timeZone: 'UTC' }]) assert.equal(isEmptyPolicy(policy), true, JSON.stringify(policy))
    for (const policy of [{ last: 1 }, { daily: -1 }, { within: '1h' }, { tags: [['a']] }]) assert.equal(isEmptyPolicy(policy), false, JSON.stringify(policy))
  })
  test('a zone or duration that is none is refused', () => {
    for (const policy of [{ timeZone: 'Mars/Olympus' }, { within: 'soon' }, { withinDaily: '1d1y' }, { within: '' }, { last: -2 }])
      assert.throws(() => { requirePolicy(policy) }, (error: unknown) => error instanceof RoostError && error.code === 'REQUEST_MALFORMED', JSON.stringify(policy))
  })
  test('an empty group is judged without complaint', () => { assert.deepEqual(judgeGroup([], { last: 1, within: '1d' }, LATER), []) })
})
