/** Bug class: a client that gives up, or hammers, while the server tells it to wait. */
import assert from 'node:assert/strict'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test, type TestContext } from 'node:test'
import { Transport } from '../../src/protocol/transport.js'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { systemRandom } from '../../src/core/random.js'

/** Answers `refusals` times with the error, then with success. */
async function refusingServer(t: TestContext, code: string, status: number, refusals: number): Promise<{ url: string; asked: () => number }> {
  let asked = 0
  const server: Server = createServer((request, response) => {
    request.resume().on('end', () => {
      if (asked++ >= refusals) { response.writeHead(200, { 'content-type': 'application/json' }).end('{"ok":true}'); return }
      response.writeHead(status, { 'content-type': 'application/json', 'retry-after': '10' })
        .end(JSON.stringify({ code, message: 'not now', retry: 'later', requestId: '1', details: {} }))
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => { server.closeAllConnections(); server.close() })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked: () => asked }
}
/** Time passes only by waiting. */
function waitingClock(): Clock & { waitedMs: number } {
  const clock = { ...systemClock, waitedMs: 0, monotonicMs: () => clock.waitedMs, sleep: async (ms: number) => { clock.waitedMs += ms } }
  return clock
}
const ask = (url: string, clock: Clock): Promise<unknown> => {
  const transport = new Transport({ baseUrl: url, clock, random: systemRandom, retryForMs: 60_000 })
  return transport.json({ method: 'POST', path: '/chunks' }, {}).finally(() => { transport.close() })
}

test('a full spool is waited for far beyond the patience for failures, as long as the server said', async (t) => {
  const clock = waitingClock()
  const { url, asked } = await refusingServer(t, 'SPOOL_FULL', 503, 100)
  assert.deepEqual(await ask(url, clock), { ok: true })
  assert.equal(asked(), 101)
  assert.ok(clock.waitedMs >= 100 * 10_000, `${clock.waitedMs} ms`)
})
test('a full spool that never empties ends the waiting after an hour, with its own error', async (t) => {
  const clock = waitingClock()
  const { url } = await refusingServer(t, 'SPOOL_FULL', 503, Infinity)
  await assert.rejects(ask(url, clock), { code: 'SPOOL_FULL' })
  assert.ok(clock.waitedMs > 3_000_000 && clock.waitedMs <= 3_600_000, `${clock.waitedMs} ms`)
})
test('"not yet durable" is asked again until the patience ends, and then said', async (t) => {
  const clock = waitingClock()
  const { url, asked } = await refusingServer(t, 'NOT_YET_DURABLE', 503, Infinity)
  await assert.rejects(ask(url, clock), { code: 'NOT_YET_DURABLE' })
  assert.ok(asked() > 2 && clock.waitedMs <= 60_000)
})
