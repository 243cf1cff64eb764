/** Replication between servers that die, over a network that harms what passes: it ends right, and what is damaged never stays. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { seeded } from '../support/odd-tree.js'
import { aDayLater, addPull, makeReplica, proxyTo, replicatedIds, snapshotIds } from '../support/replica-world.js'
import { openWorld, SLOW } from '../support/run-roost.js'
import { assertRestores, backup, makeTree, MiB, patience } from '../support/target-world.js'

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
