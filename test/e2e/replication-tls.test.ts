/** Replication over TLS: a peer whose certificate fits the named authority is spoken to, any other is not. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, type AddressInfo, type Socket } from 'node:net'
import { test, type TestContext } from 'node:test'
import { createServer } from 'node:tls'
import { addPull, replicaToken, replicatedIds, verifyKeyOf } from '../support/replica-world.js'
import { openWorld, RoostWorld } from '../support/run-roost.js'
import { assertRestores, backup, makeTree, MiB } from '../support/target-world.js'

/** An authority, and a certificate of it for `name`. */
function makeCertificate(world: RoostWorld, name: string): { readonly ca: string; readonly cert: Buffer; readonly key: Buffer } {
  const pki = world.path(`pki-${name}`)
  mkdirSync(pki)
  const openssl = (...args: readonly string[]): void => { execFileSync('openssl', [...args], { cwd: pki, stdio: 'ignore' }) }
  const key = ['-newkey', 'rsa:2048', '-nodes']
  writeFileSync(`${pki}/extensions`, `subjectAltName=DNS:${name}\n`)
  openssl('req', '-x509', ...key, '-days', '2', '-subj', '/CN=authority', '-keyout', 'ca-key.pem', '-out', 'ca.pem')
  openssl('req', ...key, '-subj', `/CN=${name}`, '-keyout', 'key.pem', '-out', 'request.pem')
  openssl('x509', '-req', '-in', 'request.pem', '-CA', 'ca.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial', '-days', '2', '-extfile', 'extensions', '-out', 'cert.pem')
  return { ca: `${pki}/ca.pem`, cert: readFileSync(`${pki}/cert.pem`), key: readFileSync(`${pki}/key.pem`) }
}
/** Ends TLS before the world's server, as a proxy in front of it does. */
async function tlsInFrontOf(t: TestContext, world: RoostWorld, { cert, key }: { readonly cert: Buffer; readonly key: Buffer }): Promise<number> {
  const sockets = new Set<Socket>()
  const server = createServer({ cert, key }, (client) => {
    const upstream = connect(Number(new URL(world.url).port), '127.0.0.1')
    for (const [one, other] of [[client, upstream], [upstream, client]] as const) {
      sockets.add(one)
      one.on('error', () => other.destroy()).on('close', () => { sockets.delete(one); other.destroy() })
      one.pipe(other)
    }
  })
  server.on('tlsClientError', () => undefined)
  server.listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

test('a replica is made and pulls over TLS; a certificate of another authority or name is refused', async (t) => {
  const north = await openWorld(t)
  const tree = makeTree(north, 'tree', 4 * MiB)
  const id = await backup(north, tree, '--source', 'db')
  const trusted = makeCertificate(north, 'localhost')
  const stranger = makeCertificate(north, 'elsewhere')
  const port = await tlsInFrontOf(t, north, trusted)
  const address = `https://localhost:${port}/${north.name}`
  const south = new RoostWorld()
  t.after(() => south.close())
  await south.startServer()
  const tokenFile = await replicaToken(north)
  const create = ['repo', 'create', south.name, '--replica-of', address, '--origin-token-file', tokenFile, '--origin-verify-key', await verifyKeyOf(north)]
  const refused = await south.run([...create, '--origin-ca-file', stranger.ca])
  assert.equal(refused.code, 1)
  assert.match(refused.stderr, /certificate/i)
  await south.ok([...create, '--origin-ca-file', trusted.ca])

  await addPull(south, north, 'pull', address, '--peer-ca-file', trusted.ca)
  assert.deepEqual(replicatedIds(await south.json(['replicate', 'run', 'pull'])), [id])
  await assertRestores(south, id, tree)

  // A peer is looked at when it is named, not in the first night.
  await assert.rejects(addPull(south, north, 'other-authority', address, '--peer-ca-file', stranger.ca), /PEER_REFUSED/)
  await assert.rejects(addPull(south, north, 'other-name', `https://127.0.0.1:${port}/${north.name}`, '--peer-ca-file', trusted.ca), /PEER_REFUSED/)
})
