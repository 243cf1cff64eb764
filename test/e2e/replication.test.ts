/** Two real servers that replicate: what arrives is what was, either way, by hand and on schedule. */
import assert from 'node:assert/strict'
import { appendFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { addPull, addressOf, makeReplica, replicaToken, replicatedIds, snapshotIds, verifyKeyOf } from '../support/replica-world.js'
import { openWorld, readToken } from '../support/run-roost.js'
import { assertRestores, backup, makeTree, MiB } from '../support/target-world.js'

const doneOf = (lines: readonly Record<string, unknown>[]): { problems: number; counts: Record<string, number> } =>
  lines.find(({ type }) => type === 'done') as never

test('a replica is made and pulls: restores are the same, the next day costs what changed, and nothing is brought twice', async (t) => {
  const north = await openWorld(t)
  const tree = makeTree(north, 'tree', 20 * MiB)
  const first = await backup(north, tree, '--source', 'db')
  const south = await makeReplica(t, north)
  await addPull(south, north)
  assert.equal((await south.json(['replicate', 'status'])).find(({ type }) => type === 'replication')!['brought'], 0)
  const [before] = await south.json(['replicate', 'status'])
  assert.equal((before!['lag'] as { snapshots: number }).snapshots, 1)
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [first])
  await assertRestores(south, first, tree)

  appendFileSync(join(tree, 'd1', 'f1'), 'the next day')
  writeFileSync(join(tree, 'd2', 'new'), 'a new file')
  const second = await backup(north, tree, '--source', 'db')
  const lines = await south.json(['replicate', 'run', 'pull'])
  assert.deepEqual(replicatedIds(lines), [second])
  assert.ok(doneOf(lines).counts['wireBytes']! < 200_000, `${doneOf(lines).counts['wireBytes']} bytes for a small change`)
  await assertRestores(south, second, tree)
  await south.ok(['check', '--read-data'])
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [])

  // What the south forgets is not brought again; what the north forgets stays.
  await south.ok(['snapshot', 'delete', first])
  await north.ok(['snapshot', 'delete', second])
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [])
  assert.deepEqual(await snapshotIds(south), [second])
  const [status] = await south.json(['replicate', 'status'])
  assert.deepEqual([(status!['lag'] as { snapshots: number }).snapshots, status!['lastFailure']], [0, undefined])
})

test('push brings the same, and --mirror takes away what this replication brought and nothing else', async (t) => {
  const north = await openWorld(t)
  const tree = makeTree(north, 'tree', 8 * MiB)
  const ids = [await backup(north, tree, '--source', 'db', '--tag', 'keep')]
  const south = await makeReplica(t, north)
  await north.ok(['replicate', 'add', 'to-south', '--direction', 'push', '--peer', addressOf(south), '--peer-token-file', await replicaToken(south, ['replicate', 'delete']),
    '--peer-verify-key', await verifyKeyOf(south), '--mirror', '--source', 'd*'])
  for (const change of ['one', 'two']) {
    writeFileSync(join(tree, 'd1', change), change)
    ids.push(await backup(north, tree, '--source', 'db'))
  }
  await backup(north, tree, '--source', 'other')
  assert.deepEqual(replicatedIds(await north.json(['replicate', 'run', 'to-south'])), ids)
  for (const id of ids) if (id === ids.at(-1)) await assertRestores(south, id, tree)
  await south.ok(['check', '--read-data'])
  const own = await backup(south, tree, '--source', 'db-of-south')
  await north.ok(['snapshot', 'delete', ids[1]!])
  await south.ok(['snapshot', 'protect', ids[0]!])
  await north.ok(['snapshot', 'delete', ids[0]!])
  const lines = await north.json(['replicate', 'run', 'to-south'])
  assert.equal(doneOf(lines).counts['deleted'], 1)
  assert.deepEqual(new Set(await snapshotIds(south)), new Set([ids[0], ids[2], own]))
})

test('on schedule, with figures for monitoring; a token of a peer does nothing else', async (t) => {
  const north = await openWorld(t)
  const tree = makeTree(north, 'tree', 3 * MiB)
  const id = await backup(north, tree, '--source', 'db')
  const south = await makeReplica(t, north)
  await addPull(south, north)
  const metrics = async (): Promise<string> => await (await fetch(`${south.url}/metrics`, { headers: { authorization: `Bearer ${readToken(south.adminTokenFile)}` } })).text()
  await south.ok(['replicate', 'status'])
  assert.match(await metrics(), /roost_replication_lag_snapshots\{repository="main",replication="pull"\} 1\n/)
  assert.equal((await fetch(`${south.url}/metrics`)).status, 401)
  writeFileSync(south.path('jobs.yaml'), 'jobs: [{ name: bring, kind: replicate, cron: "0 0 1 1 *", options: { replication: pull } }, { name: all, kind: replicate, cron: "0 0 1 1 *" }]\n')
  await south.stopServer()
  await south.startServer(['--jobs', south.path('jobs.yaml')])
  await south.ok(['jobs', 'run', 'bring', '--wait'])
  assert.deepEqual(await snapshotIds(south), [id])
  assert.match(await metrics(), /roost_replication_lag_snapshots\{repository="main",replication="pull"\} 0\n[^]*roost_replication_failing\{[^}]*\} 0\n/)
  assert.deepEqual(replicatedIds(await south.json(['jobs', 'run', 'all', '--wait'])), [])
  // A peer's token is of no use to a client.
  const peer = { environment: { ROOST_TOKEN_FILE: await replicaToken(north) } }
  assert.match((await north.run(['restore', id, '--target', north.path('x')], peer)).stderr, /AUTH_FORBIDDEN/)
  assert.match((await north.run(['backup', tree], peer)).stderr, /AUTH_FORBIDDEN/)
  await north.ok(['replicate', 'list'])
  await south.ok(['replicate', 'remove', 'pull'])
  assert.match((await south.run(['replicate', 'run', 'pull'])).stderr, /REPLICATION_UNKNOWN/)
})
