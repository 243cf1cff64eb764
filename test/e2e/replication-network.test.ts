/** Replication over a network with latency: how many bytes move, and that none moves twice. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { aDayLater, addPull, makeReplica, proxyTo, replicaToken, replicatedIds, verifyKeyOf } from '../support/replica-world.js'
import { openWorld, SLOW, type RoostWorld } from '../support/run-roost.js'
import { assertRestores, backup, makeTree, MiB, patience, targetsOf } from '../support/target-world.js'

const storedBytes = async (world: RoostWorld): Promise<number> => (await targetsOf(world)).reduce((sum, target) => sum + target.storedBytes, 0)

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
