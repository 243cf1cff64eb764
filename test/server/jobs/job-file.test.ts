import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ServerConfigError } from '../../../src/server/config.js'
import { localTimeZone } from '../../../src/server/jobs/cron-schedule.js'
import { JITTER_SECONDS_DEFAULT, parseJobFile, readJobFile } from '../../../src/server/jobs/job-file.js'

const parse = (text: string) => parseJobFile(text, 'jobs.yaml', 0)

test('a file of jobs is YAML or JSON; what is left out has a default', () => {
  const [check, fill] = parse(`
jobs:
  - name: nightly-check   # comments are why it is YAML
    kind: check
    repository: main
    cron: "30 3 * * *"
    timeZone: Europe/Berlin
    jitterSeconds: 60
    options: { readDataPercent: 10, heal: true }
  - { name: fill, kind: backfill, cron: "@hourly" }
`)
  assert.deepEqual({ ...check, schedule: [check!.schedule.cron, check!.schedule.timeZone] }, { name: 'nightly-check', kind: 'check', repository: 'main',
    schedule: ['30 3 * * *', 'Europe/Berlin'], jitterSeconds: 60, options: { readDataPercent: 10, heal: true } })
  assert.deepEqual([fill!.repository, fill!.schedule.timeZone, fill!.jitterSeconds, fill!.options], [undefined, localTimeZone(), JITTER_SECONDS_DEFAULT, {}])
  assert.equal(parse('jobs: [{ name: f, kind: forget, cron: "@daily", options: { source: web } }, { name: g, kind: gc, cron: "@daily", options: { repackBelow: 0.5 } }]').length, 2)
  assert.equal(parse('{"jobs":[{"name":"a","kind":"check","cron":"0 1 * * *"}]}').length, 1)
  assert.deepEqual([parse(''), parse('jobs:'), parse('jobs: []')], [[], [], []])
})

test('a mistake is refused with its place, never passed over', () => {
  const job = (fields: string): string => `jobs: [{ name: a, kind: check, cron: "0 1 * * *", ${fields} }]`
  const wrong: readonly (readonly [string, RegExp])[] = [
    ['- a', /must hold `jobs:`/], ['jobs: 7', /must be a list/], ['job: []', /"job" is not a setting/], ['jobs: [', /is not YAML/], ['jobs: [7]', /job 1: it must have/],
    [job('crontab: x'), /job 1 \(a\): "crontab" is not a setting/], [job('repository: "*"'), /leave it out for all/], [job('timeZone: Mars'), /no time zone/],
    [job('jitterSeconds: -1'), /"jitterSeconds"/], [job('jitterSeconds: 10m'), /"jitterSeconds"/], [job('options: { readDataPercent: 101 }'), /from 0 to 100/],
    [job('options: { heal: "yes" }'), /true or false/], [job('options: { read: 1 }'), /no option of check/], [job('options: { __proto__: 1 }'), /options|no option/],
    ['jobs: [{ name: A, kind: check, cron: "0 1 * * *" }]', /a name has/], ['jobs: [{ name: 0123456789abcdef, kind: check, cron: "0 1 * * *" }]', /a name has/],
    ['jobs: [{ name: a, kind: rebuild, cron: "0 1 * * *" }]', /"kind" must be/], ['jobs: [{ name: a, kind: check, cron: 0 }]', /in quotes/],
    ['jobs: [{ name: a, kind: check, cron: "0 1 * *" }]', /no cron expression/],
    ['jobs: [{ name: a, kind: check, cron: "0 1 * * *" }, { name: a, kind: backfill, cron: "0 1 * * *" }]', /two jobs are named "a"/],
  ]
  for (const [text, told] of wrong) assert.throws(() => parse(text), (error) => error instanceof ServerConfigError && told.test(error.message) && error.message.startsWith('jobs.yaml'), text)
})

test('a file that is named must be there', async () => {
  await assert.rejects(readJobFile('/nowhere/jobs.yaml', 0), ServerConfigError)
})
