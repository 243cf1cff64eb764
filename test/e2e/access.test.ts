/** Who may do what, and how refusals are told: exit codes, codes, hints. */
import assert from 'node:assert/strict'
import { mkdirSync, statSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { jsonLines, openWorld, RoostWorld, type CommandResult } from '../support/run-roost.js'

function assertRefused(result: CommandResult, code: string): void {
  assert.equal(result.code, 1, result.stderr)
  assert.match(result.stderr, new RegExp(`\\[${code}\\]`))
}
async function tokenFor(world: RoostWorld, ...grant: readonly string[]): Promise<{ token: string; tokenId: string }> {
  const [line] = await world.json(['token', 'create', ...grant])
  return { token: line!['token'] as string, tokenId: line!['tokenId'] as string }
}

describe('tokens', () => {
  test('the first administrator\'s token is in a file that only its owner reads', async (t) => {
    const world = await openWorld(t)
    assert.equal(statSync(world.adminTokenFile).mode & 0o777, 0o600)
  })
  test('a wrong, a revoked and a missing token are refused with what to do', async (t) => {
    const world = await openWorld(t)
    const { token, tokenId } = await tokenFor(world, '--repo', 'main', '--scope', 'read')
    await world.ok(['snapshots'], { environment: { ROOST_TOKEN: token } })
    await world.ok(['token', 'revoke', tokenId])
    for (const wrong of [token, 'roost_0000000000000000_00', 'nonsense'])
      assertRefused(await world.run(['snapshots'], { environment: { ROOST_TOKEN: wrong } }), 'AUTH_REQUIRED')
    const none = await world.run(['snapshots'], { environment: { ROOST_TOKEN_FILE: '' } })
    assert.equal(none.code, 2)
    assert.match(none.stderr, /ROOST_TOKEN_FILE/)
  })
  test('a push-only token of one source can push that source and nothing else', async (t) => {
    const world = await openWorld(t)
    mkdirSync(world.path('tree'))
    writeFileSync(world.path('tree', 'file'), 'content')
    const { token } = await tokenFor(world, '--repo', 'main', '--scope', 'push', '--source', 'web1')
    const environment = { ROOST_TOKEN: token, ROOST_TOKEN_FILE: '' }
    await world.ok(['backup', world.path('tree'), '--source', 'web1'], { environment })
    await world.ok(['backup', world.path('tree'), '--source', 'web1'], { environment })
    assertRefused(await world.run(['backup', world.path('tree'), '--source', 'web2'], { environment }), 'AUTH_FORBIDDEN')
    const [snapshot] = await world.json(['snapshots'])
    const id = snapshot!['id'] as string
    assertRefused(await world.run(['restore', id, '--target', world.path('back')], { environment }), 'AUTH_FORBIDDEN')
    assertRefused(await world.run(['snapshot', 'delete', id], { environment }), 'AUTH_FORBIDDEN')
    assertRefused(await world.run(['stats'], { environment }), 'AUTH_FORBIDDEN')
    assertRefused(await world.run(['repo', 'create', 'other'], { environment }), 'AUTH_FORBIDDEN')
  })
  test('a token of one repository does not open another', async (t) => {
    const world = await openWorld(t)
    await world.ok(['repo', 'create', 'other'])
    const { token } = await tokenFor(world, '--grant', 'other:push,read,delete,admin')
    assertRefused(await world.run(['snapshots'], { environment: { ROOST_TOKEN: token } }), 'AUTH_FORBIDDEN')
  })
})

describe('what goes wrong is told', () => {
  test('an unknown repository, snapshot and key slot have codes of their own', async (t) => {
    const world = await openWorld(t)
    assertRefused(await world.run(['snapshots', '-r', `${world.url}/absent`]), 'REPOSITORY_UNKNOWN')
    assertRefused(await world.run(['restore', 'latest', '--target', world.path('back')]), 'SNAPSHOT_UNKNOWN')
    assertRefused(await world.run(['snapshot', 'show', 'abcdef']), 'SNAPSHOT_UNKNOWN')
    assertRefused(await world.run(['key', 'remove', '0'.repeat(16)]), 'KEY_SLOT_UNKNOWN')
  })
  test('wrong usage is told before anything is attempted', async (t) => {
    const world = await openWorld(t)
    for (const args of [['backup'], ['backup', '/etc', '--stdin'], ['nonsense'], ['backup', '--frobnicate'], ['backup', '/etc', '--limit-upload', 'fast'],
      ['snapshot', 'show', 'abc'], ['restore', 'latest'], ['check', '--read-data', '200']])
      assert.equal((await world.run(args)).code, 2, args.join(' '))
  })
  test('a server that is not there is named as the cause', async (t) => {
    const world = await openWorld(t)
    await world.stopServer()
    const result = await world.run(['snapshots', '--json'])
    assert.equal(result.code, 1)
    assert.match(result.stderr, /roost server/)
    assert.equal(jsonLines(result.stdout).at(-1)!['type'], 'error')
  })
  test('a wrong verify key stops a backup and a restore', async (t) => {
    const world = await openWorld(t)
    mkdirSync(world.path('tree'))
    writeFileSync(world.path('tree', 'file'), 'content')
    await world.ok(['backup', world.path('tree')])
    const environment = { ROOST_VERIFY_KEY: 'ab'.repeat(32) }
    assert.equal((await world.run(['backup', world.path('tree')], { environment })).code, 1)
    assert.equal((await world.run(['restore', 'latest', '--target', world.path('back')], { environment })).code, 1)
  })
  test('help is given with examples, and its exit code is 0', async (t) => {
    const world = new RoostWorld()
    t.after(() => world.close())
    for (const command of [['--help'], ['backup', '--help'], ['restore', '--help'], ['token', 'create', '--help']]) {
      const result = await world.run(command)
      assert.equal(result.code, 0)
      assert.match(result.stdout, /Examples:/)
    }
  })
  test('a second server on the same data directory refuses to start', async (t) => {
    const world = await openWorld(t)
    const second = await world.run(['server', '--data', world.dataDirectory, '--listen', '127.0.0.1:0'])
    assert.equal(second.code, 2)
    assert.match(second.stderr, /in use by process/)
  })
})
