/** Tests of machines by schedule: what the test is handed, for how long, and what it comes to. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { bootTestArguments } from '../../../src/cli/boot-test-job.js'
import { RoostError } from '../../../src/core/errors.js'
import type { MaintenanceEvent } from '../../../src/core/messages.js'
import { systemRandom } from '../../../src/core/random.js'
import type { Repository } from '../../../src/repo/repository.js'
import { bootTest, revokeOldBootTokens, type BootTester } from '../../../src/server/jobs/boot-test-job.js'
import { parseJobFile } from '../../../src/server/jobs/job-file.js'
import { TokenStore } from '../../../src/server/token-store.js'
import { ManualClock } from '../../support/manual-clock.js'

async function scene(t: TestContext, tester: BootTester | undefined, url = 'http://127.0.0.1:8470'): Promise<{ tokens: TokenStore; run(options: Record<string, unknown>): Promise<MaintenanceEvent[]> }> {
  const directory = mkdtempSync(join(tmpdir(), 'roost-boot-job-'))
  t.after(() => { rmSync(directory, { recursive: true, force: true }) })
  const clock = new ManualClock()
  const tokens = await TokenStore.open({ path: join(directory, 'tokens.json'), clock, random: systemRandom })
  return { tokens, run: async (options) => {
    const events: MaintenanceEvent[] = []
    for await (const event of bootTest({ name: 'main' } as Repository, options, new AbortController().signal, { tokens, clock, url: () => url, tester })) events.push(event)
    return events
  } }
}
const done: MaintenanceEvent = { type: 'done', problems: 0, counts: {} }

test('the test reads one repository, with a token that is gone afterwards, whatever happened', async (t) => {
  let during: unknown
  const { tokens, run } = await scene(t, async function* ({ repositoryUrl, token, options }) {
    during = [repositoryUrl, options, tokens.verify(token)?.grants, tokens.list().length]
    yield done
    if (options['source'] === 'bad') throw new RoostError('BOOT_FAILED', 'no')
  }, 'http://0.0.0.0:8470')
  assert.deepEqual(await run({ source: 'web1', waitAgent: true }), [done])
  assert.deepEqual(during, ['http://127.0.0.1:8470/main', { source: 'web1', waitAgent: true }, [{ repository: 'main', scopes: ['read'] }], 1])
  assert.deepEqual(tokens.list(), [])
  await assert.rejects(run({ source: 'bad' }), { code: 'BOOT_FAILED' })
  assert.deepEqual(tokens.list(), [])
  await run({ server: 'https://backup.example:8470/' })
  assert.equal((during as unknown[])[0], 'https://backup.example:8470/main')
})
test('a server that cannot test says so; tokens that a killed one left are removed', async (t) => {
  const { tokens, run } = await scene(t, undefined)
  await assert.rejects(run({}), { code: 'BOOT_FAILED' })
  await tokens.create({ label: 'boot-test job of main', grants: [] })
  await tokens.create({ label: 'mine', grants: [] })
  await revokeOldBootTokens(tokens)
  assert.deepEqual(tokens.list().map(({ label }) => label), ['mine'])
})
test('options become arguments, none of which can be taken for another', () => {
  assert.deepEqual(bootTestArguments({ source: '--wait-time', waitSerial: 'login:', timeoutSeconds: 60, memoryBytes: 1024, cpus: 2, accel: 'kvm' }),
    ['boot-test', 'latest', '--source=--wait-time', '--wait-serial=login:', '--timeout=60', '--memory=1024', '--cpus=2', '--accel=kvm', '--json'])
  assert.deepEqual(bootTestArguments({ waitAgent: true, waitSeconds: 5 }), ['boot-test', 'latest', '--wait-agent', '--wait-time=5', '--json'])
})
test('the job file wants one criterion, and options of the right kind', () => {
  const parse = (options: string): unknown => parseJobFile(`jobs: [{ name: web1-starts, kind: boot-test, repository: main, cron: "@daily", options: ${options} }]`, 'jobs.yaml', 0)
  assert.ok(parse('{ source: web1, waitAgent: true }'))
  for (const [options, says] of [['{ source: web1 }', /waitAgent: true, waitSerial or waitSeconds/], ['{ waitAgent: true, waitSeconds: 5 }', /one of them/], ['{ waitAgent: false }', /one of them/],
    ['{ waitSeconds: 1.5 }', /whole number of seconds/], ['{ waitAgent: true, accel: "kvm -daemonize" }', /a word/], ['{ waitAgent: true, firmware: OVMF.fd }', /absolute path/],
    ['{ waitAgent: true, qemu: /bin/sh }', /no option of boot-test/]] as const) assert.throws(() => parse(options), says)
})
