/** The network that other tests are carried over does what it says: late but not one after the other, and every fault shows. */
import assert from 'node:assert/strict'
import { createServer, connect, type AddressInfo, type Socket } from 'node:net'
import { once } from 'node:events'
import { test, type TestContext } from 'node:test'
import { startNetwork, type FaultKind, type NetworkOptions } from '../support/network-proxy.js'

const SENT = Buffer.from(Array.from({ length: 300_000 }, (_, i) => i % 251))

/** A server that sends SENT to whoever comes, through the network. */
async function received(t: TestContext, options: Omit<NetworkOptions, 'serverPort'>): Promise<{ bytes: Buffer; fired: number }> {
  const server = createServer((socket: Socket) => { socket.on('error', () => undefined); socket.end(SENT) })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const network = await startNetwork({ ...options, serverPort: (server.address() as AddressInfo).port })
  t.after(async () => { await network.close(); server.close() })
  const socket = connect(network.port, '127.0.0.1')
  const parts: Buffer[] = []
  socket.on('data', (bytes: Buffer) => { parts.push(bytes) })
  await once(socket, 'close').catch(() => undefined)
  return { bytes: Buffer.concat(parts), fired: network.fired.length }
}

test('bytes arrive whole and in order over a late and lossy network', async (t) => {
  const { bytes } = await received(t, { delayMs: 20, lossShare: 0.01 })
  assert.ok(bytes.equals(SENT))
})
for (const kind of ['flip', 'truncate', 'cut', 'repeat', 'reorder'] as const satisfies readonly FaultKind[]) {
  test(`a scripted ${kind} shows, once`, async (t) => {
    const { bytes, fired } = await received(t, { faults: [{ kind, direction: 'to-client', atByte: 100_000 }] })
    assert.equal(fired, 1)
    assert.ok(!bytes.equals(SENT))
    switch (kind) {
      case 'flip': assert.equal(bytes.filter((byte, i) => byte !== SENT[i]).byteLength, 1); break
      case 'truncate':
      case 'cut': assert.ok(bytes.byteLength < SENT.byteLength && bytes.equals(SENT.subarray(0, bytes.byteLength))); break
      case 'repeat': assert.ok(bytes.byteLength > SENT.byteLength); break
      case 'reorder': assert.equal(bytes.byteLength, SENT.byteLength)
    }
  })
}
