/** Whom a server speaks to when it replicates: certificates, plain HTTP, and peers that cannot prove who they are. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import { signingKeysFromSeed } from '../../src/core/nacl.js'
import { provePeer } from '../../src/core/peer-proof.js'
import { systemRandom } from '../../src/core/random.js'
import { Transport } from '../../src/protocol/transport.js'
import { asPeerError, HttpSide } from '../../src/replication/http-side.js'
import { never } from '../support/repository-world.js'
import { temporaryDirectory } from '../support/server-under-test.js'

const NAMED = signingKeysFromSeed(Buffer.alloc(32, 1)), OTHER = signingKeysFromSeed(Buffer.alloc(32, 2))
const PROVEN = { sessionId: '11'.repeat(16), repositoryId: '22'.repeat(16), familyId: '33'.repeat(16) }

test('a peer is spoken to over TLS by its authority only, and believed only if it signs this challenge with the key that was pinned', async (t) => {
  const directory = await temporaryDirectory(t)
  const certFile = join(directory, 'cert.pem'), keyFile = join(directory, 'key.pem')
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', '/CN=peer', '-addext', 'subjectAltName=IP:127.0.0.1',
    '-keyout', keyFile, '-out', certFile], { stdio: 'ignore' })
  const cert = readFileSync(certFile)
  let prove: (challenge: string) => object = () => ({})
  let asked = 0
  const server = createServer({ cert, key: readFileSync(keyFile) }, (request, response) => {
    asked++
    let text = ''
    request.on('data', (bytes: Buffer) => { text += bytes.toString() }).on('end', () => {
      response.writeHead(201, { 'content-type': 'application/json' })
      response.end(JSON.stringify({ ...PROVEN, verifyKey: NAMED.publicKey.toString('hex'), limits: {}, ...prove((JSON.parse(text) as { challenge: string }).challenge) }))
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const baseUrl = `https://127.0.0.1:${(server.address() as AddressInfo).port}`
  const open = async (ca?: string): Promise<string> => {
    const transport = new Transport({ baseUrl, token: 't', clock: systemClock, random: systemRandom, retryForMs: 0, ...(ca === undefined ? {} : { ca }) })
    const side = new HttpSide({ transport, repository: 'main', verifyKey: NAMED.publicKey.toString('hex'), clock: { ...systemClock, sleep: () => Promise.resolve() }, random: systemRandom })
    try {
      return (await side.open({ kind: 'receive', source: 's', bases: [] }, never)).sessionId
    } catch (error) {
      return (error as { code: string }).code
    } finally {
      transport.close()
    }
  }
  t.after(() => { server.closeAllConnections(); server.close() })

  assert.equal(await open(), 'PEER_REFUSED', 'nobody vouches for the certificate')
  assert.equal(asked, 0, 'the token never left')
  const ca = cert.toString()
  assert.equal(await open(ca), 'PEER_REFUSED', 'no proof at all')
  prove = (challenge) => ({ proof: provePeer(challenge, PROVEN, OTHER.secretKey) })
  assert.equal(await open(ca), 'PEER_REFUSED', 'another key')
  const replayed = provePeer('ab'.repeat(32), PROVEN, NAMED.secretKey)
  prove = () => ({ proof: replayed })
  assert.equal(await open(ca), 'PEER_REFUSED', 'a proof that was overheard')
  prove = (challenge) => ({ proof: provePeer(challenge, PROVEN, NAMED.secretKey), familyId: '44'.repeat(16) })
  assert.equal(await open(ca), 'PEER_REFUSED', 'another family than was signed')
  prove = (challenge) => ({ proof: provePeer(challenge, PROVEN, NAMED.secretKey) })
  assert.equal(await open(ca), PROVEN.sessionId)
})
test('a token does not travel unencrypted to another machine unless that was said', () => {
  const to = (allowPlainHttp: boolean): Transport => new Transport({ baseUrl: 'http://backup.north', token: 't', clock: systemClock, random: systemRandom, allowPlainHttp })
  let refused: unknown
  try { to(false) } catch (error) { refused = asPeerError(error) }
  assert.equal((refused as { code: string }).code, 'PEER_REFUSED')
  to(true).close()
})
