/** roost boot-test: a real guest that comes up, and ways not to. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { truncateSync, writeFileSync } from 'node:fs'
import { describe, test, type TestContext } from 'node:test'
import { guestImages } from '../support/guest-lab.js'
import { leftBehind, machinesOf, until, worldWithMachine } from '../support/machine-world.js'
import { noise } from '../support/odd-tree.js'
import { jsonLines, type RoostWorld } from '../support/run-roost.js'

const { directory: images, skip } = guestImages()
const SMALL = ['--memory', '160M', '--source', 'web1'] as const
const MiB = 1024 * 1024

describe('boot-test', { skip }, () => {
  let shared: RoostWorld | undefined
  const run = async (t: TestContext, args: readonly string[]): Promise<{ code: number | null; report: Record<string, unknown>; stderr: string; world: RoostWorld }> => {
    const world = shared ??= await worldWithMachine(t, images)
    const { code, stdout, stderr } = await world.run(['boot-test', 'latest', ...SMALL, ...args, '--json'])
    assert.deepEqual([leftBehind(world), machinesOf(world)], [[], []], 'nothing is left')
    return { code, stderr, world, report: jsonLines(stdout).find(({ type }) => type === 'boot-test') ?? jsonLines(stdout).at(-1) ?? {} }
  }
  test('a machine that comes up: by its agent, by its console, by time; one that does not: by time, by its end, by a disk that cannot boot', async (t) => {
    const agent = await run(t, ['--wait-agent', '--timeout', '90'])
    assert.deepEqual([agent.code, agent.report['result'], agent.report['criterion']], [0, 'ok', 'agent'], agent.stderr)
    const console = await run(t, ['--wait-serial', '/^GUEST: (ready|never)$/', '--timeout', '90'])
    assert.deepEqual([console.code, console.report['result']], [0, 'ok'])
    assert.ok((console.report['serial'] as string[]).includes('GUEST: ready') && (console.report['seconds'] as number) > 0)
    assert.equal((await run(t, ['--wait-time', '2'])).code, 0)
    const late = await run(t, ['--wait-serial', 'no guest says this', '--timeout', '3'])
    assert.deepEqual([late.code, late.report['result']], [1, 'failed'])
    assert.match(late.report['reason'] as string, /within 3 s/)
    const wrong = await run(t, ['--wait-agent', '--', '-no-such-option'])
    assert.deepEqual([wrong.code, wrong.report['code']], [1, 'QEMU_FAILED'])
    assert.match(wrong.stderr, /no-such-option/)
    const gone = await run(t, ['--wait-agent', '--qemu', 'qemu-that-is-not-there'])
    assert.deepEqual([gone.code, gone.report['code']], [1, 'QEMU_FAILED'])
    for (const [args, says] of [[[], /Say when it is up/], [['--wait-agent', '--wait-time', '5'], /one of them/], [['--wait-time', '400'], /less than --timeout/], [['--wait-serial', '/[/'], /regular expression/],
      [['--wait-agent', '--memory', '1K'], /at least/], [['--wait-agent', '--scratch', '/nowhere'], /not there/]] as const) {
      const usage = await run(t, args)
      assert.equal(usage.code, 2)
      assert.match(usage.stderr, says)
    }
    const { world } = agent
    writeFileSync(world.path('junk.img'), noise(MiB, 1))
    truncateSync(world.path('junk.img'), 8 * MiB)
    await world.ok(['backup', '--image', world.path('junk.img'), '--source', 'junk'])
    const junk = await world.run(['boot-test', 'latest', '--source', 'junk', '--memory', '64M', '--wait-agent', '--timeout', '4'])
    assert.equal(junk.code, 1)
    assert.match(junk.stdout, /did NOT come up/)

    const child = world.start(['boot-test', 'latest', ...SMALL, '--wait-serial', 'never', '--json'], 'pipe')
    t.after(() => { child.kill('SIGKILL') })
    await until(() => machinesOf(world).length === 1)
    child.kill('SIGINT')
    assert.deepEqual(await once(child, 'exit'), [130, null])
    assert.deepEqual([leftBehind(world), machinesOf(world)], [[], []])
  })
  test('by the server\'s schedule: the run tells whether the machine came up, and leaves no token', async (t) => {
    const world = await worldWithMachine(t, images)
    await world.stopServer()
    const jobs = [['starts', { source: 'web1', waitAgent: true, memoryBytes: 160 * MiB, timeoutSeconds: 90 }], ['starts-not', { source: 'web1', waitSerial: 'no guest says this', memoryBytes: 160 * MiB, timeoutSeconds: 3 }],
      ['none', { source: 'nobody', waitAgent: true }]] as const
    writeFileSync(world.path('jobs.json'), JSON.stringify({ jobs: jobs.map(([name, options]) => ({ name, kind: 'boot-test', repository: 'main', cron: '0 3 1 1 *', options })) }))
    await world.startServer(['--jobs', world.path('jobs.json')])
    const up = await world.run(['jobs', 'run', 'starts', '--wait', '--json'])
    assert.equal(up.code, 0, up.stderr)
    const down = await world.run(['jobs', 'run', 'starts-not', '--wait', '--json'])
    assert.equal(down.code, 3, down.stderr)
    const problem = jsonLines(down.stdout).find(({ type }) => type === 'problem')!
    assert.deepEqual([problem['code'], problem['source']], ['BOOT_FAILED', 'web1'])
    assert.match(problem['message'] as string, /within 3 s/)
    const none = await world.run(['jobs', 'run', 'none', '--wait'])
    assert.equal(none.code, 1)
    assert.match(none.stderr, /There is no snapshot yet.*BOOT_FAILED/)
    assert.deepEqual((await world.json(['token', 'list'])).map(({ label }) => label), ['first administrator'])
    assert.deepEqual([leftBehind(world), machinesOf(world)], [[], []])
    const child = world.start(['jobs', 'run', 'starts-not', '--wait'])
    t.after(() => { child.kill('SIGKILL') })
    await until(() => machinesOf(world).length === 1)
    await world.stopServer()
    assert.deepEqual([leftBehind(world), machinesOf(world)], [[], []], 'it ends with the server')
  })
})
