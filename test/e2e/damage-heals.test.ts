/** Damage by hand, through the real command line: the right snapshots and paths are named, what is whole is restored, and the next ordinary backup of the
 *  same data heals the repository without knowing.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { CHUNK_KINDS } from '../../src/core/ids.js'
import { compareTrees } from '../support/compare-trees.js'
import { jsonLines, openWorld, type RoostWorld } from '../support/run-roost.js'

const KIND_AT = 10
const storeOf = (world: RoostWorld): string => join(world.dataDirectory, 'repositories', 'main', 'store')
function packsOf(world: RoostWorld): Map<string, number> {
  const root = join(storeOf(world), 'packs')
  if (!existsSync(root)) return new Map()
  const files = readdirSync(root, { recursive: true, encoding: 'utf8' }).map((name) => join(root, name)).filter((path) => statSync(path).isFile())
  return new Map(files.map((path) => [path, readFileSync(path)[KIND_AT]!]))
}
function flip(path: string, at: number): void {
  const bytes = readFileSync(path)
  bytes[at < 0 ? bytes.byteLength + at : at]! ^= 0x10
  rmSync(path) // the spool may share the file
  writeFileSync(path, bytes)
}
async function backup(world: RoostWorld, tree: string, ...more: string[]): Promise<string> {
  return (await world.json(['backup', tree, ...more])).find((line) => line['type'] === 'snapshot')!['id'] as string
}
async function assertRestores(world: RoostWorld, id: string, tree: string): Promise<void> {
  const into = world.path(`back-${randomBytes(4).toString('hex')}`)
  await world.ok(['restore', id, '--target', into])
  assert.deepEqual(compareTrees(tree, join(into, tree)).differences, [])
  rmSync(into, { recursive: true })
}

interface Scene { readonly tree: string; readonly id: string; readonly data: string; readonly nodes: string }
/** A tree of its own, in packs of its own: two large files, each in blocks of its own, and a small one in a directory. */
async function scene(world: RoostWorld, name: string): Promise<Scene> {
  const tree = world.path(name)
  mkdirSync(join(tree, 'deep', 'er'), { recursive: true })
  writeFileSync(join(tree, 'first.bin'), randomBytes(2_200_000))
  writeFileSync(join(tree, 'second.bin'), randomBytes(2_200_000))
  writeFileSync(join(tree, 'deep', 'er', 'small.txt'), `of ${name}`)
  const before = packsOf(world)
  const id = await backup(world, tree)
  const fresh = [...packsOf(world)].filter(([path]) => !before.has(path))
  const ofKind = (kind: number): string => fresh.find(([, its]) => its === kind)![0]
  return { tree, id, data: ofKind(CHUNK_KINDS.data), nodes: ofKind(CHUNK_KINDS.node) }
}

interface Case {
  damage(scene: Scene): void
  /** Paths of the damaged snapshot that check must name; undefined: nothing is lost. */
  readonly paths: readonly RegExp[] | undefined
  /** The directories above the source change from one backup to the next: their nodes of before do not come back. */
  readonly staysHurt?: true
}
const FILES = [/first\.bin/, /second\.bin/, /deep\/er\/small\.txt/]
const CASES: Record<string, Case> = {
  'a data pack deleted': { damage: ({ data }) => { rmSync(data) }, paths: FILES },
  'a data pack truncated': { damage: ({ data }) => { const bytes = readFileSync(data); rmSync(data); writeFileSync(data, bytes); truncateSync(data, Math.floor(bytes.byteLength / 2)) }, paths: [/second\.bin|small\.txt/] },
  'a byte flipped in the payload of a data pack': { damage: ({ data }) => { flip(data, Math.floor(statSync(data).size / 2)) }, paths: [/(first|second)\.bin/] },
  'a byte flipped in the trailer of a data pack': { damage: ({ data }) => { flip(data, -60) }, paths: undefined },
  'a byte flipped in the footer of a data pack': { damage: ({ data }) => { flip(data, -5) }, paths: undefined },
  'a byte flipped in the header of a data pack': { damage: ({ data }) => { flip(data, 40) }, paths: FILES },
  'a node pack deleted': { damage: ({ nodes }) => { rmSync(nodes) }, paths: [/: \/ \(a directory/], staysHurt: true },
  'a byte flipped in a node pack': { damage: ({ nodes }) => { flip(nodes, 100) }, paths: [/: \/ \(a directory/], staysHurt: true },
}

describe('damage by hand', () => {
  test('check names what needs it, other data is restored, and the next ordinary backup heals', { timeout: 300_000 }, async (t) => {
    const world = await openWorld(t)
    const other = await scene(world, 'other')
    for (const [at, [name, { damage, paths, staysHurt }]] of Object.entries(CASES).entries())
      await t.test(name, async () => {
        const hurt = await scene(world, `hurt${at}`)
        damage(hurt)
        if (staysHurt === true) { // what a commit read of them is still in the server's memory, and would be saved from there
          await world.stopServer()
          await world.startServer()
        }
        const check = await world.run(['check', '--read-data'])
        assert.equal(check.code, 3, check.stderr)
        const told = `${check.stdout}\n${check.stderr}`
        const short = hurt.id.slice(0, 12)
        if (paths === undefined) assert.ok(!told.includes(`snapshot ${short}`), told)
        else {
          assert.match(told, new RegExp(`snapshot ${short} of .*hurt${at} \\(\\d{4}-\\d\\d-\\d\\d`), told)
          for (const path of paths) assert.match(told, path, told)
        }
        assert.ok(!told.includes(other.id.slice(0, 12)), told)
        await assertRestores(world, other.id, other.tree)
        if (paths === undefined) await assertRestores(world, hurt.id, hurt.tree)
        else await assertPartialRestore(world, hurt)

        const healed = await world.ok(['backup', hurt.tree, '--json'])
        await assertRestores(world, jsonLines(healed.stdout).find((line) => line['type'] === 'snapshot')!['id'] as string, hurt.tree)
        if (staysHurt === true) {
          assert.equal((await world.run(['check'])).code, 3)
          await world.ok(['snapshot', 'delete', hurt.id])
        } else await assertRestores(world, hurt.id, hurt.tree)
        const again = await world.run(['check', '--read-data'])
        assert.equal(again.code, 0, `${again.stdout}\n${again.stderr}`)
        assert.equal((await world.json(['stats']))[0]!['damagedChunks'], 0)
      })
    // The parent counts again.
    assert.doesNotMatch((await world.ok(['backup', other.tree])).stderr, /lost data/)
  })

  test('a byte flipped in a snapshot record: check names the snapshot, heal writes it anew, and its data was never in doubt', async (t) => {
    const world = await openWorld(t)
    const other = await scene(world, 'other')
    const hurt = await scene(world, 'hurt')
    flip(join(storeOf(world), 'snapshots', hurt.id), 70)
    const check = await world.run(['check'])
    assert.equal(check.code, 3)
    assert.match(check.stderr, new RegExp(`SNAPSHOT_CORRUPT.*snapshot ${hurt.id}, of .*hurt`))
    assert.ok(!check.stderr.includes(other.id))
    assert.equal((await world.run(['check', '--heal'])).code, 0)
    assert.equal((await world.run(['check'])).code, 0)
    await assertRestores(world, hurt.id, hurt.tree)
  })

  test('a read that stumbles is enough: the next backup heals though nobody ran a check', async (t) => {
    const world = await openWorld(t)
    const hurt = await scene(world, 'hurt')
    flip(hurt.data, Math.floor(statSync(hurt.data).size / 2))
    await assertPartialRestore(world, hurt)
    await untilMarked(world)
    await world.ok(['backup', hurt.tree])
    assert.equal((await world.run(['check', '--read-data'])).code, 0)
    await assertRestores(world, hurt.id, hurt.tree)
  })

  test('check works offline as well, and --no-mark only looks', async (t) => {
    const world = await openWorld(t)
    const hurt = await scene(world, 'hurt')
    flip(hurt.data, Math.floor(statSync(hurt.data).size / 2))
    await world.stopServer()
    const looked = await world.run(['check', '--read-data', '--no-mark', '--data', world.dataDirectory, 'main'])
    assert.equal(looked.code, 3)
    assert.ok(!looked.stderr.includes('first.bin') && !looked.stderr.includes('second.bin'), 'nothing was marked, so no path is known to be hurt')
    const marked = await world.run(['check', '--read-data', '--data', world.dataDirectory, 'main', '--json'])
    assert.equal(marked.code, 3, marked.stderr)
    const paths = jsonLines(marked.stdout).filter((line) => line['type'] === 'damaged-path')
    assert.ok(paths.length > 0 && paths.every((line) => line['snapshot'] === hurt.id && /(first|second)\.bin/.test(line['path'] as string)), marked.stdout)
  })
})

async function assertPartialRestore(world: RoostWorld, { id, tree }: Scene): Promise<void> {
  const into = world.path(`part-${randomBytes(4).toString('hex')}`)
  const restored = await world.run(['restore', id, '--target', into, '--continue-on-damage'])
  // A snapshot without its root cannot even be opened.
  assert.ok(restored.code === 3 ? /: damaged:/.test(restored.stderr) : restored.code === 1 && /CHUNK_MISSING|root of this snapshot/.test(restored.stderr), `${restored.code}: ${restored.stderr}`)
  if (restored.code === 3) for (const name of ['first.bin', 'second.bin', join('deep', 'er', 'small.txt')])
    if (!restored.stderr.includes(name) && !/\/(deep|er)?: damaged|^\S*hurt: damaged/m.test(restored.stderr))
      assert.ok(readFileSync(join(into, tree, name)).equals(readFileSync(join(tree, name))), name)
}
async function untilMarked(world: RoostWorld): Promise<void> {
  for (let turns = 0; turns < 200; turns++) {
    if ((await world.json(['stats']))[0]!['damagedChunks'] !== 0) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  assert.fail('nothing was marked')
}
