/** File trees through real processes: everything that went in comes out, also for an ordinary user. */
import assert from 'node:assert/strict'
import { appendFileSync, chmodSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, test } from 'node:test'
import { compareTrees } from '../support/compare-trees.js'
import { makeOddTree, rsyncDifferences } from '../support/odd-tree.js'
import { hasTool, isRoot, openWorld, readToken, roostCommand, tool, type RoostWorld } from '../support/run-roost.js'

const statisticsOf = (lines: readonly Record<string, unknown>[]): Record<string, number> =>
  lines.find((line) => line['type'] === 'snapshot')!['statistics'] as Record<string, number>

function assertSame(source: string, restored: string, owners = true): void {
  const comparison = compareTrees(source, restored, { owners })
  assert.deepEqual(comparison.differences, [])
  assert.ok(comparison.files > 3000, 'the comparison saw the tree')
  if (hasTool('rsync')) assert.equal(rsyncDifferences(source, restored), '', 'rsync finds no difference')
}
async function backUp(world: RoostWorld, tree: string, extra: readonly string[] = []): Promise<Record<string, number>> {
  return statisticsOf(await world.json(['backup', tree, '--source', 'tree', ...extra]))
}

/** A file changed within two seconds before a scan may change again unseen within its time stamp, so the next backup reads it once more.
 *  The tree must be older than that for a test of what is not read. */
async function untilOlderThanTimestamps(path: string): Promise<void> {
  const ageMs = (): number => Date.now() - statSync(path).ctimeMs
  while (ageMs() < 2_500) await new Promise((resolve) => setTimeout(resolve, 100))
}

describe('a tree of odd things', () => {
  test('comes back identical, and a second backup reads and sends only what changed', async (t) => {
    const world = await openWorld(t)
    const { path: tree, skipped } = makeOddTree(world.path('tree'))
    for (const what of skipped) t.diagnostic(`SKIPPED: ${what}`)
    await untilOlderThanTimestamps(tree)
    const first = await backUp(world, tree)
    assert.ok(first['files']! > 3000)
    assert.ok(first['bytesRead']! < 20_000_000, 'holes are not read')
    await world.ok(['restore', 'latest', '--target', world.path('one')])
    assertSame(tree, join(world.path('one'), tree), isRoot)
    await world.ok(['restore', `latest:${tree}`, '--target', world.path('part')])
    assertSame(tree, world.path('part'), isRoot)
    assert.ok(statSync(join(world.path('one'), tree, 'sparse')).blocks * 512 < 1_000_000, 'the sparse file stays sparse')

    const unchanged = await backUp(world, tree)
    assert.equal(unchanged['bytesRead'], 4095, 'only the file with a time in the future is read again: its time cannot vouch for it')
    assert.ok(unchanged['chunksSent']! <= dirname(tree).split('/').length, 'at most the folders above the tree are new: others make files beside it')

    appendFileSync(join(tree, 'sizes', '5000000'), 'one more line')
    rmSync(join(tree, 'many', 'file-77'))
    renameSync(join(tree, 'many', 'file-78'), join(tree, 'many', 'renamed'))
    writeFileSync(join(tree, 'new'), 'new')
    const changed = await backUp(world, tree)
    assert.ok(changed['bytesSent']! < 3_000_000, `sent ${changed['bytesSent']!} for a small change`)
    assert.ok(changed['bytesRead']! < 5_100_000, `read ${changed['bytesRead']!} for a small change`)
    await world.ok(['restore', 'latest', '--target', world.path('two')])
    assertSame(tree, join(world.path('two'), tree), isRoot)
    await world.ok(['check', '--read-data'])
  })

  test('comes back identical for an ordinary user', async (t) => {
    if (!isRoot || !hasTool('setpriv')) { t.skip('SKIPPED GROUP: needs root and setpriv to become an ordinary user'); return }
    const nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--']
    const world = await openWorld(t)
    chmodSync(world.directory, 0o755)
    const [node, main] = roostCommand([])
    try { tool('setpriv', [...nobody.slice(1), node!, '--check', main!]) } catch {
      t.skip('SKIPPED GROUP: an ordinary user cannot read this checkout')
      return
    }
    mkdirSync(world.path('mine'))
    tool('chown', ['65534:65534', world.path('mine')])
    const maker = `import(${JSON.stringify(new URL('../support/odd-tree.js', import.meta.url).href)}).then((m) => m.makeOddTree(${JSON.stringify(world.path('mine', 'tree'))}))`
    tool('setpriv', [...nobody.slice(1), node!, '-e', maker])
    const options = { through: nobody, environment: { ROOST_TOKEN: readToken(world.adminTokenFile), ROOST_TOKEN_FILE: '', HOME: world.path('mine') } }
    await world.ok(['backup', world.path('mine', 'tree'), '--source', 'mine'], options)
    await world.ok(['restore', 'latest', '--target', world.path('mine', 'back')], options)
    assertSame(world.path('mine', 'tree'), join(world.path('mine', 'back'), world.path('mine', 'tree')))
  })

  test('an unreadable file is told and the rest is saved', async (t) => {
    if (!isRoot || !hasTool('setpriv')) { t.skip('SKIPPED GROUP: needs root and setpriv to become an ordinary user'); return }
    const world = await openWorld(t)
    chmodSync(world.directory, 0o755)
    mkdirSync(world.path('tree'))
    writeFileSync(world.path('tree', 'secret'), 'for root', { mode: 0o600 })
    writeFileSync(world.path('tree', 'public'), 'for all')
    const result = await world.run(['backup', world.path('tree')], {
      through: ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--'],
      environment: { ROOST_TOKEN: readToken(world.adminTokenFile), ROOST_TOKEN_FILE: '' },
    })
    if (/EACCES.*dist|Cannot find/.test(result.stderr)) { t.skip('SKIPPED GROUP: an ordinary user cannot read this checkout'); return }
    assert.equal(result.code, 3, result.stderr)
    assert.match(result.stderr, /tree\/secret: could not be read/)
    await world.ok(['restore', 'latest', '--target', world.path('back')])
    assert.equal(readFileSync(join(world.path('back'), world.path('tree', 'public')), 'utf8'), 'for all')
    assert.equal(existsSync(join(world.path('back'), world.path('tree', 'secret'))), false)
  })
})

describe('which paths', () => {
  test('a path that is not UTF-8 can be named on the command line', async (t) => {
    const world = await openWorld(t)
    const odd = Buffer.concat([Buffer.from(`${world.path()}/odd-`), Buffer.from([0xff])])
    mkdirSync(odd)
    writeFileSync(Buffer.concat([odd, Buffer.from('/inside')]), 'found')
    await world.ok(['backup', '--source', 'odd'], { through: ['sh', '-c', 'exec "$@" "$(printf "odd-\\377")"', 'sh'] })
    await world.ok(['restore', 'latest', '--target', world.path('back')])
    const inside = Buffer.concat([Buffer.from(world.path('back')), odd, Buffer.from('/inside')])
    assert.equal(readFileSync(inside, 'utf8'), 'found')
  })
  test('excluded and cache-marked paths stay out', async (t) => {
    const world = await openWorld(t)
    const tree = world.path('tree')
    for (const directory of ['', 'cache', 'build', 'kept']) mkdirSync(join(tree, directory), { recursive: true })
    writeFileSync(join(tree, 'cache', 'CACHEDIR.TAG'), 'Signature: 8a477f597d28d172789f06886806bc55\n')
    writeFileSync(join(tree, 'cache', 'big'), 'x')
    writeFileSync(join(tree, 'build', 'out.o'), 'x')
    writeFileSync(join(tree, 'kept', 'a.tmp'), 'x')
    writeFileSync(join(tree, 'kept', 'a.txt'), 'x')
    writeFileSync(world.path('patterns'), '# comment\nbuild/\n')
    await world.ok(['backup', tree, '--exclude', '*.tmp', '--exclude-file', world.path('patterns'), '--exclude-caches'])
    await world.ok(['restore', 'latest', '--target', world.path('back')])
    const back = join(world.path('back'), tree)
    assert.deepEqual(['cache/big', 'cache/CACHEDIR.TAG', 'build', 'kept/a.tmp', 'kept/a.txt'].map((name) => existsSync(join(back, name))),
      [false, true, false, false, true])
  })
})
