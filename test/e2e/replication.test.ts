/** Two and three real servers that replicate: what arrives is what was, and clients of a dead region go on with the replica. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { addPull, makeReplica, replicatedIds } from '../support/replica-world.js'
import { openWorld } from '../support/run-roost.js'
import { assertRestores, backup, makeTree } from '../support/target-world.js'

const MiB = 1024 * 1024

test('a replica is made, pulls, restores the same, and pulls again only what changed', async (t) => {
  const north = await openWorld(t)
  const tree = makeTree(north, 'tree', 20 * MiB)
  const first = await backup(north, tree, '--source', 'db')
  const south = await makeReplica(t, north)
  await addPull(south, north)
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [first])
  await assertRestores(south, first, tree)
  await south.ok(['check', '--read-data'])
})
