/** Regions that are lost, chains, strangers: who is believed, and what goes on when an origin is gone. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { OddProxy } from '../support/odd-proxy.js'
import { addPull, addressOf, makeReplica, replicaToken, replicatedIds, repositoryIdOf, snapshotIds, verifyKeyOf } from '../support/replica-world.js'
import { derivedSecrets, masterKeysOf } from '../support/repository-secrets.js'
import { openWorld, type RoostWorld } from '../support/run-roost.js'
import { assertRestores, backup, makeTree, MiB, patience } from '../support/target-world.js'

test('region A destroyed: restore from B, go on with B incrementally, rebuild A from B, and B follows the new A', async (t) => {
  const a = await openWorld(t)
  const tree = makeTree(a, 'tree', 20 * MiB)
  await patience(3_100) // younger files are read again in any case
  const first = await backup(a, tree, '--source', 'db')
  const b = await makeReplica(t, a)
  await addPull(b, a, 'from-a')
  await b.ok(['replicate', 'run', 'from-a'])
  const keyOfA = await verifyKeyOf(a)
  await a.killServer()
  rmSync(a.dataDirectory, { recursive: true })

  await assertRestores(b, first, tree)
  writeFileSync(join(tree, 'd1', 'after'), 'written after the loss of A')
  const report = (await b.json(['backup', tree, '--source', 'db', '--verify-key', `${keyOfA},${await verifyKeyOf(b)}`])).find(({ type }) => type === 'snapshot')!
  const { statistics, parent } = report as unknown as { statistics: { bytesRead: number; bytesSent: number }; parent: string }
  assert.equal(parent, first)
  assert.ok(statistics.bytesRead < MiB, `${statistics.bytesRead} bytes were read for one small file`)
  const second = report['id'] as string
  await assertRestores(b, second, tree)
  // Whoever pins A's key alone is told, instead of trusting B.
  const refused = await b.run(['restore', second, '--target', b.path('pinned'), '--verify-key', keyOfA])
  assert.match(refused.stderr, /SNAPSHOT_KEY_MISMATCH/)
  await b.ok(['restore', first, '--target', b.path('pinned'), '--verify-key', keyOfA])

  const again = await makeReplica(t, b)
  await addPull(again, b, 'from-b')
  assert.deepEqual(new Set(replicatedIds(await again.json(['replicate', 'run', 'from-b']))), new Set([first, second]))
  await assertRestores(again, second, tree)
  await again.ok(['check', '--read-data'])

  // Clients return to A; B takes in what A signs, once it is told who A is now.
  writeFileSync(join(tree, 'd2', 'home'), 'home again')
  const third = await backup(again, tree, '--source', 'db')
  await addPull(b, again, 'from-new-a')
  assert.deepEqual(replicatedIds(await b.json(['replicate', 'run', 'from-new-a'])), [third])
  await assertRestores(b, third, tree)
  // Both ways: nothing goes round.
  assert.deepEqual(replicatedIds(await again.json(['replicate', 'run', 'from-b'])), [])
  // From the targets alone, everything of everybody is there again.
  await b.stopServer()
  rmSync(join(b.dataDirectory, 'repositories', 'main', 'index'), { recursive: true })
  await b.startServer()
  await b.ok(['rebuild'])
  assert.deepEqual(new Set(await snapshotIds(b)), new Set([first, second, third]))
  await assertRestores(b, third, tree)
})

test('a chain of three: the last has what the first signed, and refuses what it was never told of', async (t) => {
  const north = await openWorld(t)
  const tree = makeTree(north, 'tree', 6 * MiB)
  const first = await backup(north, tree, '--source', 'db')
  const middle = await makeReplica(t, north)
  await addPull(middle, north)
  await middle.ok(['replicate', 'run', 'pull'])
  const south = await makeReplica(t, middle)
  await addPull(south, middle)
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [first])
  await assertRestores(south, first, tree)
  const trusted = (await south.json(['replicate', 'origins'])).map(({ repositoryId }) => repositoryId)
  assert.deepEqual(new Set(trusted), new Set([await repositoryIdOf(middle), await repositoryIdOf(north)]))
  // A fourth joins the middle only: its snapshots reach the south when the south trusts it.
  const fourth = await makeReplica(t, middle)
  const own = await backup(fourth, tree, '--source', 'fourth')
  await addPull(middle, fourth, 'from-fourth')
  await middle.ok(['replicate', 'run', 'from-fourth'])
  const refused = await south.run(['replicate', 'run', 'pull', '--json'])
  assert.equal(refused.code, 3)
  assert.match(refused.stdout, /SIGNER_UNKNOWN/)
  await south.ok(['replicate', 'trust', await repositoryIdOf(fourth), '--peer-verify-key', await verifyKeyOf(fourth)])
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [own])
})

test('a peer that is not who it says is refused, and so is one of another family', async (t) => {
  const north = await openWorld(t)
  await backup(north, makeTree(north, 'tree', 3 * MiB), '--source', 'db')
  const south = await makeReplica(t, north)
  const stranger = await openWorld(t)
  await backup(stranger, makeTree(stranger, 'tree', 3 * MiB), '--source', 'db')
  const add = async (peer: RoostWorld, key: string): Promise<string> => (await south.run(['replicate', 'add', 'pull', '--peer', addressOf(peer),
    '--peer-token-file', await replicaToken(peer), '--peer-verify-key', key])).stderr
  assert.match(await add(stranger, await verifyKeyOf(north)), /cannot prove.*PEER_REFUSED/s)
  assert.match(await add(stranger, await verifyKeyOf(stranger)), /not of one family.*PEER_REFUSED/s)
  const impostor = new OddProxy({ port: Number(new URL(north.url).port) })
  const port = await impostor.listen()
  t.after(() => impostor.close())
  await addPull(south, north, 'pull', `http://127.0.0.1:${port}/main`)
  await south.ok(['replicate', 'run', 'pull'])
  // The address is taken over by somebody else, who even takes the token.
  await impostor.close()
  const taken = new OddProxy({ port: Number(new URL(stranger.url).port) })
  t.after(() => taken.close())
  await taken.listen(port)
  const refused = await south.run(['replicate', 'run', 'pull'])
  assert.notEqual(refused.code, 0)
  assert.match(refused.stderr, /AUTH_REQUIRED|PEER_REFUSED/)
  // A token that only reads is no peer's.
  const reader = await south.run(['replicate', 'add', 'other', '--peer', addressOf(north), '--peer-token-file', await replicaToken(north, ['read']), '--peer-verify-key', await verifyKeyOf(north)])
  assert.match(reader.stderr, /AUTH_FORBIDDEN/)
})

test("a replica's storage and keys reveal nothing of its origin's keys", async (t) => {
  const north = await openWorld(t)
  await backup(north, makeTree(north, 'tree', 3 * MiB), '--source', 'db')
  const south = await makeReplica(t, north)
  await addPull(south, north)
  await south.ok(['replicate', 'run', 'pull'])
  const folder = (world: RoostWorld): string => join(world.dataDirectory, 'repositories', 'main')
  const [ofNorth, ofSouth] = [await masterKeysOf(folder(north)), await masterKeysOf(folder(south))]
  const secrets = derivedSecrets(ofNorth)
  const shared = ['dedupKey', 'gearSeed']
  for (const [name, secret] of Object.entries(secrets))
    assert.equal(secret.equals(derivedSecrets(ofSouth)[name]!), shared.includes(name), `${name} is ${shared.includes(name) ? 'the family\'s' : 'the repository\'s own'}`)
  let files = 0
  for (const entry of readdirSync(south.dataDirectory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    files++
    const bytes = readFileSync(join(entry.parentPath ?? entry.path, entry.name))
    for (const [name, secret] of [...Object.entries(secrets), ['masterKey', ofNorth] as const])
      for (const form of [secret, Buffer.from(secret.toString('hex')), Buffer.from(secret.toString('base64').replace(/=+$/, ''))])
        assert.equal(bytes.includes(form), false, `${entry.name} holds the origin's ${name}`)
  }
  assert.ok(files > 5)
})
