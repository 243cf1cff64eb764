/** What bounds a target and what the server says of it: upload limits, lag, states, and moves that are killed in the middle. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer, request as httpRequest, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { test, type TestContext } from 'node:test'
import { systemRandom } from '../../src/core/random.js'
import { openWorld, RoostWorld } from '../support/run-roost.js'
import { assertRestores, backup, caughtUp, filePlace, MiB, patience, targetsOf } from '../support/target-world.js'

function randomTree(world: RoostWorld, name: string, mebibytes: number): string {
  const path = world.path(name)
  mkdirSync(path)
  for (let at = 0; at < mebibytes; at++) writeFileSync(join(path, `f${at}`), systemRandom.bytes(MiB))
  return path
}
const seconds = (sinceMs: number): number => (performance.now() - sinceMs) / 1000

test('a target\'s upload limit holds for pushes and for catching up, delays no other target, and its lag is shown meanwhile', async (t) => {
  const world = await openWorld(t)
  await world.ok(['repo', 'set', '--write-policy', '1'])
  await world.ok(['target', 'add', 'slow', `file:${world.path('slow')}`, '--limit-upload', '4M'])
  await caughtUp(world)
  const startMs = performance.now()
  await backup(world, randomTree(world, 'tree', 16))
  // It has ended and the slow one is not there yet.
  const slow = (await targetsOf(world)).find(({ name }) => name === 'slow')!
  assert.deepEqual([slow.health, slow.lagPacks > 0], ['healthy', true])
  assert.match((await world.ok(['target', 'status'])).stdout, /slow +active +healthy .* \d+ packs, [\d.]+ MiB/)
  await caughtUp(world)
  const took = seconds(startMs)
  assert.ok(took >= 16 / 4 * 0.9, `16 MiB in ${took} s at 4 MiB/s`)
  const againMs = performance.now()
  await world.ok(['target', 'add', 'third', `file:${world.path('third')}`, '--limit-upload', '8M'])
  await world.ok(['target', 'backfill', 'third'])
  assert.ok(seconds(againMs) >= 16 / 8 * 0.9, `16 MiB in ${seconds(againMs)} s at 8 MiB/s`)
})

test('target status tells healthy, unreachable since when and why, refused, and disabled targets apart', async (t) => {
  const world = await openWorld(t)
  await world.ok(['repo', 'set', '--write-policy', '1'])
  for (const name of ['away', 'off']) await world.ok(['target', 'add', name, `file:${world.path(name)}`])
  await caughtUp(world)
  await world.ok(['target', 'set', 'off', '--disable'])
  renameSync(world.path('away'), world.path('elsewhere'))
  await backup(world, randomTree(world, 'tree', 1))
  let text = ''
  for (let turns = 0; turns < 50 && !/unreachable|refused/.test(text); turns++) {
    text = (await world.ok(['target', 'status'])).stdout
    await patience(100)
  }
  assert.match(text, /main +active +healthy +\d+ +[\d.]+ MiB +[^\d\s]+$/m)
  assert.match(text, /away +active +unreachable .* \d+ packs, [\d.]+ MiB$/m)
  assert.match(text, /^away since \d{4}-\d\d-\d\d \d\d:\d\d.*: \S/m)
  assert.match(text, /off +disabled .* \d+ packs, [\d.]+ MiB$/m)
  renameSync(world.path('elsewhere'), world.path('away'))
  await world.ok(['target', 'set', 'off', '--enable'])
  await caughtUp(world)
})

test('a drain that is killed with the server goes on where it was: no pack is copied twice, and the old place can go', async (t) => {
  const world = await openWorld(t)
  const trees = new Map<string, string>()
  for (let at = 0; at < 6; at++) {
    const tree = randomTree(world, `tree${at}`, 3)
    trees.set(await backup(world, tree), tree)
  }
  await world.ok(['target', 'add', 'new', `file:${world.path('new')}`, '--limit-upload', '2M'])
  const place = filePlace('new', world.path('new'))
  const copied = async (): Promise<Map<string, number>> =>
    new Map((await place.names()).filter((name) => name.startsWith('packs/')).map((name) => [name, statSync(world.path('new', name)).ino]))
  const drain = world.run(['target', 'drain', 'main'], { environment: { ROOST_RETRY_SECONDS: '1' } })
  const isDraining = async (): Promise<boolean> => (await targetsOf(world)).some(({ name, mode }) => name === 'main' && mode === 'draining')
  for (let turns = 0; turns < 100 && !(await isDraining() && (await copied()).size >= 2); turns++) await patience(50)
  await world.killServer()
  assert.notEqual((await drain).code, 0)
  const before = await copied()
  const packs = (await filePlace('main', join(world.dataDirectory, 'repositories', 'main', 'store')).names()).filter((name) => name.startsWith('packs/'))
  assert.ok(before.size > 0 && before.size < packs.length, `${before.size} of ${packs.length} packs were copied`)
  await world.startServer()
  assert.ok(await isDraining())
  await world.ok(['target', 'set', 'new', '--limit-upload', '0'])
  await world.ok(['target', 'drain', 'main'])
  const after = await copied()
  assert.deepEqual([...after.keys()].sort(), packs.sort())
  // Of the two that were under way the last notes may be lost.
  assert.ok([...before].filter(([name, inode]) => after.get(name) !== inode).length <= 2)
  await world.ok(['target', 'remove', 'main'])
  rmSync(join(world.dataDirectory, 'repositories', 'main', 'store'), { recursive: true })
  for (const [id, tree] of trees) await assertRestores(world, id, tree)
  await world.ok(['check', '--read-data'])
})

/** Between client and server: what the server answered to each request. */
async function listeningProxy(t: TestContext, world: RoostWorld): Promise<{ url: string; answers: { status: number; headers: IncomingHttpHeaders; text: string }[] }> {
  const answers: { status: number; headers: IncomingHttpHeaders; text: string }[] = []
  const proxy = createServer((request, response) => {
    const onward = httpRequest(`${world.url}${request.url}`, { method: request.method!, headers: request.headers }, (answer) => {
      void buffer(answer).then((body) => {
        answers.push({ status: answer.statusCode!, headers: answer.headers, text: body.toString() })
        response.writeHead(answer.statusCode!, answer.headers).end(body)
      })
    })
    onward.on('error', () => { response.destroy() })
    request.pipe(onward)
  })
  proxy.listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  t.after(() => { proxy.closeAllConnections(); proxy.close() })
  return { url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, answers }
}
test('at the spool\'s limit pushes get 503 with Retry-After and a sentence; the client waits, says so, and goes on', async (t) => {
  const world = await openWorld(t, { server: ['--spool-max', '4M'] })
  await world.ok(['repo', 'create', 'bounded', '--target', `file:${world.path('place')}`])
  const { url, answers } = await listeningProxy(t, world)
  const through = { environment: { ROOST_REPOSITORY: `${url}/bounded` } }
  await world.ok(['repo', 'set', '--durability', 'spool'], through)
  renameSync(world.path('place'), world.path('place-away'))
  await world.ok(['backup', randomTree(world, 'first', 6)], through) // fills the spool, and is acknowledged
  const running = world.run(['backup', randomTree(world, 'second', 6)], through)
  for (let turns = 0; turns < 300 && !answers.some(({ status }) => status === 503); turns++) await patience(100)
  renameSync(world.path('place-away'), world.path('place'))
  const result = await running
  assert.equal(result.code, 0, result.stderr)
  assert.match(result.stderr, /waiting:/)
  const refusals = answers.filter(({ status }) => status === 503)
  assert.ok(refusals.length > 0)
  for (const { headers, text } of refusals) {
    assert.ok(Number(headers['retry-after']) > 0)
    assert.match(text, /"code":"SPOOL_FULL".*has accepted as much as it can hold until its storage target takes packs again/)
  }
  await world.ok(['restore', 'latest', '--target', world.path('back')], through)
  await world.ok(['check', '--read-data'], through)
})
