/** The real command line and server: what stays, what goes, and what nobody can delete. */
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { describe, test, type TestContext } from 'node:test'
import { RoostWorld } from '../support/run-roost.js'

async function worldWith(t: TestContext, backups: number): Promise<{ world: RoostWorld; ids: string[] }> {
  const world = new RoostWorld()
  t.after(() => world.close())
  await world.startServer()
  await world.ok(['repo', 'create', 'main'])
  const source = world.path('source')
  mkdirSync(source)
  const ids: string[] = []
  for (let i = 0; i < backups; i++) {
    writeFileSync(`${source}/f`, `content ${i}`)
    ids.push((await world.json(['backup', source, '--tag', `n${i}`, '--source', 'web'])).find(({ type }) => type === 'snapshot')!['id'] as string)
  }
  return { world, ids }
}
const idsOf = async (world: RoostWorld): Promise<string[]> => (await world.json(['snapshots'])).map(({ id }) => id as string).sort()

describe('roost forget, policy and locks', () => {
  test('a preview names every snapshot with its reason; stored policies then do what it said', async (t) => {
    const { world, ids } = await worldWith(t, 3)
    const shown = await world.ok(['forget', '--keep-last', '1', '--no-keep-oldest', '--dry-run'])
    for (const [place, words] of [[2, /keep +last snapshot/], [1, /would drop +no rule keeps it/], [0, /would drop +no rule keeps it/]] as const)
      assert.match(shown.stdout.split('\n').find((line) => line.startsWith(ids[place]!.slice(0, 12)))!, words)
    assert.deepEqual(await idsOf(world), [...ids].sort())
    await world.ok(['policy', 'set', '--keep-last', '1', '--no-keep-oldest'])
    await world.ok(['policy', 'set', '--source', 'web', '--keep-tag', 'n0', '--keep-last', '1', '--no-keep-oldest'])
    assert.match((await world.ok(['policy', 'show'])).stdout, /web +last 1, tag n0, not the oldest besides/)
    await world.ok(['forget'])
    assert.deepEqual(await idsOf(world), [ids[0]!, ids[2]!].sort())
    await world.ok(['policy', 'remove', '--source', 'web'])
    const lines = await world.json(['forget'])
    assert.deepEqual(lines.filter(({ type }) => type === 'deleted').map(({ snapshot }) => snapshot), [ids[0]])
  })
  test('what is protected or locked is refused by name, kept by rules, and shown; exit codes and hints say so', async (t) => {
    const { world, ids } = await worldWith(t, 3)
    await world.ok(['snapshot', 'protect', ids[0]!])
    await world.ok(['snapshot', 'lock', ids[1]!, '--for', '90d'])
    for (const [id, code] of [[ids[0]!, 'SNAPSHOT_PROTECTED'], [ids[1]!, 'RETENTION_LOCKED']] as const) {
      const refused = await world.run(['snapshot', 'delete', id])
      assert.equal(refused.code, 1)
      assert.match(refused.stderr, new RegExp(code))
    }
    const listed = (await world.ok(['snapshots'])).stdout
    assert.match(listed, /\(protected\) n0/)
    assert.match(listed, /\(locked until [\d: -]+\) n1/)
    const shortened = await world.run(['snapshot', 'lock', ids[1]!, '--for', '1d'])
    assert.deepEqual([shortened.code, /never shortened/.test(shortened.stderr)], [1, true])
    const shown = await world.ok(['forget', '--keep-last', '1'])
    assert.match(shown.stdout, /keep +protected/)
    assert.match(shown.stdout, /keep +locked until /)
    assert.equal((await idsOf(world)).length, 3)
    await world.ok(['snapshot', 'unprotect', ids[0]!])
    await world.ok(['forget', ids[0]!])
    assert.deepEqual(await idsOf(world), [ids[1]!, ids[2]!].sort())
    assert.match((await world.ok(['repo', 'set', '--retention-lock', '30d'])).stdout, /locked for +30 days/)
    assert.equal((await world.run(['repo', 'set', '--retention-lock', '29d'])).code, 1)
  })
  test('a policy that keeps nothing is refused, and rules that make no sense are wrong usage', async (t) => {
    const { world, ids } = await worldWith(t, 1)
    assert.equal((await world.run(['forget', '--keep-last', '0'])).code, 1)
    assert.equal((await world.run(['forget', '--keep-tag', 'none'])).code, 3)
    for (const wrong of [['forget', '--keep-daily', 'x'], ['forget', '--keep-within', '3 days'], ['forget', ids[0]!, '--keep-last', '1'], ['forget', '--time-zone', 'UTC'], ['policy', 'set'],
      ['snapshot', 'lock', ids[0]!], ['repo', 'set', '--retention-lock', 'long']]) assert.equal((await world.run(wrong)).code, 2, wrong.join(' '))
    assert.deepEqual(await idsOf(world), ids)
  })
})
