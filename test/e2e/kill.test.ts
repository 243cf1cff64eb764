/** Servers and clients killed in the middle of a push: nothing acknowledged is lost, what arrived is not sent twice, the store stays whole. */
import assert from 'node:assert/strict'
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { compareTrees } from '../support/compare-trees.js'
import { noise, seeded } from '../support/odd-tree.js'
import { openWorld, SLOW, type RoostWorld } from '../support/run-roost.js'

const MiB = 1024 * 1024
const ROUNDS = SLOW ? 25 : 3
const SEED = 20_240_229

/** New content each round, so that each push has something to send. */
function makeTree(world: RoostWorld, round: number): { path: string; bytes: number } {
  const path = world.path(`tree-${round}`)
  let bytes = 0
  for (let directory = 0; directory < 8; directory++) {
    mkdirSync(join(path, `d${directory}`), { recursive: true })
    for (let file = 0; file < 40; file++) {
      const content = noise(file % 10 === 0 ? MiB : 20_000, SEED + round * 10_000 + directory * 100 + file)
      writeFileSync(join(path, `d${directory}`, `f${file}`), content)
      bytes += content.length
    }
  }
  return { path, bytes }
}
/** Waits a random part of a push's usual time. The moment is chance; what must hold afterwards does not depend on it. */
const someMoment = (next: () => number): Promise<void> => new Promise((resolve) => setTimeout(resolve, 150 + next() * 700))

async function snapshotIds(world: RoostWorld): Promise<string[]> {
  return (await world.json(['snapshots'])).map((line) => line['id'] as string)
}
async function assertRestores(world: RoostWorld, snapshot: string, source: string): Promise<void> {
  const target = world.path(`back-${snapshot.slice(0, 12)}`)
  await world.ok(['restore', snapshot, '--target', target])
  assert.deepEqual(compareTrees(source, join(target, source)).differences, [])
  rmSync(target, { recursive: true })
}
async function assertWhole(t: TestContext, world: RoostWorld, acknowledged: ReadonlyMap<string, string>): Promise<void> {
  await world.ok(['check', '--read-data'])
  const ids = await snapshotIds(world)
  for (const [id, source] of acknowledged) {
    assert.ok(ids.includes(id), 'an acknowledged snapshot is listed')
    await assertRestores(world, id, source)
  }
  t.diagnostic(`${acknowledged.size} acknowledged snapshots, all restored`)
}

describe('kill -9', () => {
  test('of the client at any moment: the next run completes and sends no chunk that had arrived whole', async (t) => {
    const world = await openWorld(t)
    const next = seeded(SEED)
    mkdirSync(world.path('empty'))
    const acknowledged = new Map<string, string>()
    for (let round = 0; round < ROUNDS; round++) {
      const tree = makeTree(world, round)
      const client = world.start(['backup', tree.path, '--source', 'killed', '--limit-upload', '20M'])
      const ended = new Promise((resolve) => client.once('exit', resolve))
      await someMoment(next)
      client.kill('SIGKILL')
      await ended
      await world.ok(['backup', world.path('empty'), '--source', 'flush']) // its commit seals what the killed client left in open packs
      const before = (await world.json(['stats']))[0]!['rawBytes'] as number
      const report = (await world.json(['backup', tree.path, '--source', 'killed'])).find((line) => line['type'] === 'snapshot')!
      const statistics = report['statistics'] as Record<string, number>
      acknowledged.set(report['id'] as string, tree.path)
      const after = (await world.json(['stats']))[0]!['rawBytes'] as number
      assert.equal(statistics['bytesSent'], after - before, 'all that was sent was new to the server')
      const again = (await world.json(['backup', tree.path, '--source', 'again', '--no-parent'])).find((line) => line['type'] === 'snapshot')!
      assert.ok((again['statistics'] as Record<string, number>)['bytesSent']! < 1000, 'at most the folders above the tree: others make files beside it')
    }
    await assertWhole(t, world, acknowledged)
  })

  test('of the server at any moment: the running backup goes on by itself once the server is back', async (t) => {
    const world = await openWorld(t)
    const next = seeded(SEED + 1)
    const acknowledged = new Map<string, string>()
    for (let round = 0; round < ROUNDS; round++) {
      const tree = makeTree(world, round)
      const running = world.json(['backup', tree.path, '--source', 'killed', '--limit-upload', '20M'])
      running.catch(() => undefined) // awaited below
      await someMoment(next)
      await world.killServer()
      await world.startServer()
      const report = (await running).find((line) => line['type'] === 'snapshot')!
      acknowledged.set(report['id'] as string, tree.path)
    }
    await assertWhole(t, world, acknowledged)
    await world.killServer()
    await world.startServer()
    await assertWhole(t, world, acknowledged)
  })

  test('Ctrl-C ends a backup cleanly with 130, and the same command completes it', async (t) => {
    const world = await openWorld(t)
    const tree = makeTree(world, 0)
    const client = world.start(['backup', tree.path, '--source', 'interrupted', '--limit-upload', '2M'])
    const ended = new Promise<number | null>((resolve) => client.once('exit', resolve))
    await someMoment(seeded(SEED + 2))
    client.kill('SIGINT')
    const code = await ended
    assert.ok(code === 130 || code === null, `ended with ${code}`) // null: the signal came before Node was up
    await world.ok(['backup', tree.path, '--source', 'interrupted'])
    await world.ok(['check', '--read-data'])
  })
})

describe('the index lost', () => {
  const lose = (world: RoostWorld): void => {
    const repository = join(world.dataDirectory, 'repositories', world.name)
    const directories = readdirSync(repository).filter((name) => /index|lmdb/.test(name))
    assert.ok(directories.length > 0, `no index in ${readdirSync(repository).join(', ')}`)
    for (const name of directories) rmSync(join(repository, name), { recursive: true })
  }
  test('is made anew from the packs, through the server', async (t) => {
    const world = await openWorld(t)
    const tree = makeTree(world, 0)
    const report = (await world.json(['backup', tree.path])).find((line) => line['type'] === 'snapshot')!
    await world.stopServer()
    lose(world)
    await world.startServer()
    const refused = await world.run(['backup', tree.path])
    assert.equal(refused.code, 1)
    assert.match(refused.stderr, /\[INDEX_REBUILD_NEEDED\]/)
    await world.ok(['rebuild'])
    assert.deepEqual(await snapshotIds(world), [report['id']])
    await assertRestores(world, report['id'] as string, tree.path)
    const again = (await world.json(['backup', tree.path, '--no-parent'])).find((line) => line['type'] === 'snapshot')!
    const sent = (again['statistics'] as Record<string, number>)['bytesSent']!
    assert.ok(sent < 10_000, `the rebuilt index knows every chunk but those of the directories above, which changed: ${sent} bytes sent`)
    await world.ok(['check', '--read-data'])
  })
  test('is made anew with the server stopped, and only then', async (t) => {
    const world = await openWorld(t)
    const tree = makeTree(world, 0)
    const report = (await world.json(['backup', tree.path])).find((line) => line['type'] === 'snapshot')!
    const refused = await world.run(['check', '--data', world.dataDirectory, 'main'])
    assert.equal(refused.code, 2)
    await world.stopServer()
    lose(world)
    await world.ok(['rebuild', '--data', world.dataDirectory, 'main'])
    await world.ok(['check', '--read-data', '--data', world.dataDirectory, 'main'])
    await world.startServer()
    await assertRestores(world, report['id'] as string, tree.path)
  })
  test('with the whole server: the repository is attached by passphrase or recovery key', async (t) => {
    const world = await openWorld(t)
    const target = `file://${world.path('elsewhere')}`
    await world.ok(['repo', 'create', 'kept', '--target', target])
    const options = { environment: { ROOST_REPOSITORY: `${world.url}/kept` } }
    writeFileSync(world.path('passphrase'), 'correct horse battery staple\n', { mode: 0o600 })
    await world.ok(['key', 'add', 'passphrase', '--label', 'safe', '--passphrase-file', world.path('passphrase')], options)
    const publicKey = (await world.ok(['key', 'generate-recovery', '--output', world.path('recovery')])).stdout.trim()
    await world.ok(['key', 'add', 'recovery', '--label', 'vault', '--public-key', publicKey], options)
    const tree = makeTree(world, 0)
    await world.ok(['backup', tree.path], options)
    for (const [name, secret] of [['one', ['--passphrase-file', world.path('passphrase')]], ['two', ['--recovery-key-file', world.path('recovery')]]] as const) {
      await world.stopServer()
      rmSync(world.dataDirectory, { recursive: true })
      await world.startServer()
      const again = { environment: { ROOST_REPOSITORY: `${world.url}/${name}` } }
      await world.ok(['repo', 'attach', name, '--target', target, ...secret])
      await world.ok(['rebuild'], again)
      await world.ok(['check', '--read-data'], again)
      await world.ok(['restore', 'latest', '--target', world.path(name)], again)
      assert.deepEqual(compareTrees(tree.path, join(world.path(name), tree.path)).differences, [])
    }
    writeFileSync(world.path('wrong'), 'wrong passphrase\n')
    await world.stopServer()
    rmSync(world.dataDirectory, { recursive: true })
    await world.startServer()
    const refused = await world.run(['repo', 'attach', 'three', '--target', target, '--passphrase-file', world.path('wrong')])
    assert.equal(refused.code, 1)
    assert.match(refused.stderr, /\[KEY_UNLOCK_FAILED\]/)
  })
})
