import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CronError, parseCron } from '../../../src/server/jobs/cron-schedule.js'

const at = (text: string): number => Date.parse(text)
/** The next `count` times after `from`, as UTC. */
function times(cron: string, timeZone: string, from: string, count: number): string[] {
  const schedule = parseCron(cron, timeZone, at(from))
  const found: string[] = []
  for (let ms = at(from); found.length < count;) {
    ms = schedule.next(ms)!
    found.push(new Date(ms).toISOString().slice(0, 16))
  }
  return found
}

test('a cron expression means wall time of its zone, and the next time is strictly later', () => {
  assert.deepEqual(times('30 3 * * *', 'UTC', '2026-03-10T03:30:00Z', 2), ['2026-03-11T03:30', '2026-03-12T03:30'])
  assert.deepEqual(times('30 3 * * *', 'UTC', '2026-03-10T03:29:59.999Z', 1), ['2026-03-10T03:30'])
  assert.deepEqual(times('30 3 * * *', 'Asia/Kolkata', '2026-03-10T00:00:00Z', 1), ['2026-03-10T22:00'])
  assert.deepEqual(times('0 4 * * 0', 'UTC', '2026-12-30T00:00:00Z', 2), ['2027-01-03T04:00', '2027-01-10T04:00'])
  assert.deepEqual(times('0 4 1 * MON', 'UTC', '2026-10-31T00:00:00Z', 3), ['2026-11-01T04:00', '2026-11-02T04:00', '2026-11-09T04:00'], 'as crontab: either day')
  assert.deepEqual(times('0 0 29 2 *', 'UTC', '2026-01-01T00:00:00Z', 1), ['2028-02-29T00:00'])
  assert.deepEqual(times('@weekly', 'UTC', '2026-11-25T00:00:00Z', 1), ['2026-11-29T00:00'])
})

test('a time that spring skips comes due once the clock has skipped it, every day once', () => {
  assert.deepEqual(times('30 2 * * *', 'Europe/Berlin', '2026-03-28T00:00:00Z', 3), ['2026-03-28T01:30', '2026-03-29T01:00', '2026-03-30T00:30'])
})

test('a time that autumn shows twice comes due once; what repeats by the half hour follows real time', () => {
  assert.deepEqual(times('30 2 * * *', 'Europe/Berlin', '2026-10-24T12:00:00Z', 2), ['2026-10-25T00:30', '2026-10-26T01:30'])
  assert.deepEqual(times('*/30 * * * *', 'Europe/Berlin', '2026-10-25T00:00:00Z', 4), ['2026-10-25T00:30', '2026-10-25T01:00', '2026-10-25T01:30', '2026-10-25T02:00'])
  assert.deepEqual(times('15 1 * * *', 'America/New_York', '2026-10-31T12:00:00Z', 2), ['2026-11-01T05:15', '2026-11-02T06:15'])
})

test('what is no cron expression is refused, and so is one that never comes due', () => {
  for (const cron of ['', 'daily', '* * * *', '* * * * * *', '61 * * * *', '* 24 * * *', '@reboot', '2026-12-01T00:00:00', 'a b c d e', '0 0 31 2 *'])
    assert.throws(() => parseCron(cron, 'UTC', 0), CronError, cron)
  assert.throws(() => parseCron('0 3 * * *', 'Mars/Phobos', 0), /"Mars\/Phobos" is no time zone/)
})
