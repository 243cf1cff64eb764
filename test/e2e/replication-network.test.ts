/** Replication over a bad network and between servers that die: what is whole arrives, what is damaged never stays, and nothing is done twice. */
import assert from 'node:assert/strict'
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { seeded } from '../support/odd-tree.js'
import { OddProxy, type OddProxyOptions } from '../support/odd-proxy.js'
import { addPull, makeReplica, replicaToken, replicatedIds, snapshotIds, verifyKeyOf } from '../support/replica-world.js'
import { openWorld, SLOW, type RoostWorld } from '../support/run-roost.js'
import { assertRestores, backup, makeTree, MiB, patience, targetsOf } from '../support/target-world.js'

const portOf = (world: RoostWorld): number => Number(new URL(world.url).port)
async function proxyTo(t: TestContext, world: RoostWorld, options: Omit<OddProxyOptions, 'port'> = {}): Promise<{ proxy: OddProxy; address: string }> {
  const proxy = new OddProxy({ port: portOf(world), ...options })
  const port = await proxy.listen()
  t.after(() => proxy.close())
  return { proxy, address: `http://127.0.0.1:${port}/main` }
}
const storedBytes = async (world: RoostWorld): Promise<number> => (await targetsOf(world)).reduce((sum, target) => sum + target.storedBytes, 0)
/** Some bytes of one file in ten, and a new file: a day's work. */
function aDayLater(tree: string, seed: number): void {
  const next = seeded(seed)
  for (let file = 0; file < 20; file++) {
    const path = join(tree, `d${file % 7}`, `f${file}`)
    if (next() > 0.3) continue
    const content = readFileSync(path)
    content.writeUInt32LE(Math.floor(next() * 2 ** 32), Math.floor(next() * (content.byteLength - 4)))
    writeFileSync(path, content)
  }
  appendFileSync(join(tree, 'd0', `of-day-${seed}`), Buffer.from(Array.from({ length: 100_000 }, () => Math.floor(next() * 256))))
}

for (const direction of ['pull', 'push'] as const) {
  test(`at a latency of 100 ms, ${direction} moves no more bytes than what was missing takes on the other side`, async (t) => {
    const north = await openWorld(t)
    const tree = makeTree(north, 'tree', (SLOW ? 5_000 : 60) * MiB)
    const ids = [await backup(north, tree, '--source', 'db')]
    const south = await makeReplica(t, north)
    const { proxy, address } = await proxyTo(t, direction === 'pull' ? north : south, { latencyMs: 50 })
    const [near, far] = direction === 'pull' ? [south, north] : [north, south]
    await near.ok(['replicate', 'add', 'away', '--direction', direction, '--peer', address, '--peer-token-file', await replicaToken(far), '--peer-verify-key', await verifyKeyOf(far)])
    let stored = await storedBytes(south)
    for (const day of [0, 1]) {
      if (day > 0) {
        aDayLater(tree, day)
        ids.push(await backup(north, tree, '--source', 'db'))
      }
      const before = proxy.counts.bytes
      assert.deepEqual(replicatedIds(await near.json(['replicate', 'run', 'away'])), ids.slice(-1))
      const missing = await storedBytes(south) - stored
      const onWire = proxy.counts.bytes - before
      t.diagnostic(`day ${day}: ${onWire} bytes on the wire for ${missing} stored: ${(onWire / missing).toFixed(3)}`)
      // Of a day's few chunks, the fixed cost of opening and closing is part: 8 KiB are granted.
      assert.ok(onWire <= 1.05 * missing + 8192, `${onWire} bytes on the wire for ${missing} stored`)
      stored += missing
    }
    await assertRestores(south, ids.at(-1)!, tree)
    await south.ok(['check', '--read-data'])
  })
}

test('either side is killed at any moment, again and again: it ends right, and what had arrived is not moved again', async (t) => {
  const north = await openWorld(t)
  const tree = makeTree(north, 'tree', 30 * MiB)
  const ids = [await backup(north, tree, '--source', 'db')]
  for (const day of [1, 2, 3]) {
    aDayLater(tree, day)
    ids.push(await backup(north, tree, '--source', 'db'))
  }
  const south = await makeReplica(t, north)
  const { proxy, address } = await proxyTo(t, north, { latencyMs: 5 })
  await addPull(south, north, 'pull', address, '--limit', '30M')
  const next = seeded(7)
  const kills = SLOW ? 20 : 5
  for (let kill = 0; kill < kills; kill++) {
    const running = south.run(['replicate', 'run', 'pull'], { environment: { ROOST_RETRY_SECONDS: '1' } })
    await patience(150 + next() * 900)
    const victim = next() < 0.5 ? north : south
    await victim.killServer()
    await patience(next() * 300)
    await victim.startServer()
    if (victim === south) await running
    else if (next() < 0.5) proxy.cutAll()
    await running
  }
  await south.ok(['replicate', 'run', 'pull'])
  assert.deepEqual(new Set(await snapshotIds(south)), new Set(ids))
  await assertRestores(south, ids.at(-1)!, tree)
  await south.ok(['check', '--read-data'])
  const before = proxy.counts.bytes
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [])
  assert.ok(proxy.counts.bytes - before < 20_000, 'a run without anything to do costs a listing')
})

test('a run that was cut goes on where it was: what had arrived is not moved again', async (t) => {
  const north = await openWorld(t)
  const tree = makeTree(north, 'tree', 40 * MiB)
  const id = await backup(north, tree, '--source', 'db')
  const south = await makeReplica(t, north)
  const { proxy, address } = await proxyTo(t, north)
  await addPull(south, north, 'pull', address, '--limit', '8M')
  const running = south.start(['replicate', 'run', 'pull'])
  while (proxy.counts.bytes < 14 * MiB) await patience(20)
  // An orderly stop seals what has come; the next start, or the next run, finds it.
  await south.stopServer()
  running.kill()
  await south.startServer()
  const before = proxy.counts.bytes
  await addPull(south, north, 'pull', address)
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [id])
  const total = await storedBytes(south)
  assert.ok(proxy.counts.bytes - before < total - 4 * MiB, `${proxy.counts.bytes - before} bytes moved of ${total}, after 14 MiB had come`)
  await assertRestores(south, id, tree)
})

test('a network that changes, cuts, truncates, repeats and reorders what passes: refused, asked for again, never kept', async (t) => {
  const north = await openWorld(t)
  const south = await makeReplica(t, north)
  const { proxy, address } = await proxyTo(t, north, { seed: 11 })
  await addPull(south, north, 'pull', address)
  for (const [at, harm] of (['flip', 'truncate', 'repeat', 'reorder', 'cut'] as const).entries()) {
    const tree = makeTree(north, `tree-${harm}`, 12 * MiB, at + 1)
    const id = await backup(north, tree, '--source', harm)
    const { harmed } = proxy.counts
    proxy.harm = [harm]
    proxy.rate = 0.02
    for (let run = 0; run < 20 && !(await snapshotIds(south)).includes(id); run++) {
      const waiting = south.run(['replicate', 'run', 'pull'])
      const late = setTimeout(() => { proxy.rate = 0.002; proxy.cutAll() }, 8_000) // what hangs by its own silence is not waited for
      await waiting
      clearTimeout(late)
    }
    proxy.rate = 0
    assert.ok((await snapshotIds(south)).includes(id), harm)
    assert.ok(proxy.counts.harmed > harmed, `the network did its worst: ${harm}`)
    await assertRestores(south, id, tree)
  }
  await south.ok(['check', '--read-data'])
  assert.equal((await south.json(['replicate', 'run', 'pull'])).find(({ type }) => type === 'done')!['problems'], 0)
})
