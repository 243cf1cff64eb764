/** Replication between two servers with latency between them, beside a plain copy of the same packs (docs/benchmarks.md).
 *
 *  Run: npm run bench -- --only replication [--megabytes N] [--rounds N] [--json]
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { OddProxy } from '../test/support/odd-proxy.js'
import { seeded } from '../test/support/odd-tree.js'
import { replicaToken, verifyKeyOf } from '../test/support/replica-world.js'
import { RoostWorld } from '../test/support/run-roost.js'

const { values } = parseArgs({ options: { megabytes: { type: 'string', default: '600' }, rounds: { type: 'string', default: '1' }, json: { type: 'boolean', default: false }, only: { type: 'string' } } })
const MiB = 1024 * 1024
const LATENCIES_MS = [0, 20, 100]
type Way = 'pull' | 'push'
interface Figures { readonly way: Way; readonly latencyMs: number; readonly seconds: number; readonly chunks: number; readonly rawBytes: number; readonly wireBytes: number; readonly proxyBytes: number }
const tell = (text: string): void => { if (!values.json) console.log(text) }
const nowSeconds = (): number => performance.now() / 1000
const median = (numbers: readonly number[]): number => [...numbers].sort((a, b) => a - b)[numbers.length >> 1]!

/** Large and small files; about half of each compresses. */
function writeData(path: string, bytes: number): void {
  const next = seeded(5)
  for (let at = 0, file = 0; at < bytes; file++) {
    const size = file % 4 === 0 ? 16 * MiB : file % 4 === 1 ? MiB : 20_000
    const content = Buffer.alloc(size)
    for (let i = 0; i + 16 <= size; i += 16) content.writeUInt32LE(Math.floor(next() * 2 ** 32), i), content.writeUInt32LE(Math.floor(next() * 2 ** 32), i + 4)
    mkdirSync(join(path, `d${file % 31}`), { recursive: true })
    writeFileSync(join(path, `d${file % 31}`, `f${file}`), content)
    at += size
  }
}

const north = new RoostWorld('origin'), south = new RoostWorld('origin')
const proxies: OddProxy[] = []
try {
  const tree = north.path('tree')
  writeData(tree, Number(values.megabytes) * MiB)
  await north.startServer(['--log-level', 'error'])
  await north.createRepository()
  await north.ok(['backup', tree, '--source', 'data'])
  await south.startServer(['--log-level', 'error'])
  const verifyKey = await verifyKeyOf(north), token = await replicaToken(north)
  const store = join(north.dataDirectory, 'repositories', 'origin', 'store', 'packs')
  const storedBytes = Number(execFileSync('du', ['-sb', store], { encoding: 'utf8' }).split('\t')[0])
  const copies: number[] = []
  const all: Figures[] = []
  for (let round = 0; round < Number(values.rounds); round++) {
    const copyTo = south.path(`copy-${round}`)
    execFileSync('sync')
    const from = nowSeconds()
    execFileSync('cp', ['-r', store, copyTo])
    execFileSync('sync')
    copies.push(nowSeconds() - from)
    for (const way of ['pull', 'push'] as const) for (const latencyMs of LATENCIES_MS) {
      const name = `${way}-${latencyMs}-${round}`
      const at = { environment: { ROOST_REPOSITORY: `${south.url}/${name}` } }
      await south.ok(['repo', 'create', name, '--replica-of', `${north.url}/origin`, '--origin-token-file', token, '--origin-verify-key', verifyKey])
      const proxy = new OddProxy({ port: Number(new URL(way === 'pull' ? north.url : south.url).port), latencyMs: latencyMs / 2 })
      proxies.push(proxy)
      const peer = `http://127.0.0.1:${await proxy.listen()}/${way === 'pull' ? 'origin' : name}`
      const near = way === 'pull' ? { world: south, options: at } : { world: north, options: {} }
      const peerToken = way === 'pull' ? token : south.path(`${name}.token`)
      if (way === 'push') await south.ok(['token', 'create', '--repo', name, '--scope', 'replicate', '--output', peerToken], at)
      const peerKey = way === 'pull' ? verifyKey : (await south.json(['repo', 'show'], at))[0]!['verifyKey'] as string
      await near.world.ok(['replicate', 'add', name, '--direction', way, '--peer', peer, '--peer-token-file', peerToken, '--peer-verify-key', peerKey], near.options)
      execFileSync('sync')
      const before = proxy.counts.bytes
      const started = nowSeconds()
      const lines = await near.world.json(['replicate', 'run', name], near.options)
      const seconds = nowSeconds() - started
      const { counts } = lines.find(({ type }) => type === 'done') as unknown as { counts: Record<string, number> }
      all.push({ way, latencyMs, seconds, chunks: counts['chunks']!, rawBytes: counts['bytes']!, wireBytes: counts['wireBytes']!, proxyBytes: proxy.counts.bytes - before })
      await proxy.close()
    }
  }
  const copySeconds = median(copies)
  tell(`\nReplication of ${(storedBytes / MiB).toFixed(0)} MiB in packs; a plain copy of them (cp -r, sync) takes ${copySeconds.toFixed(2)} s: ${(storedBytes / MiB / copySeconds).toFixed(0)} MiB/s\n`)
  tell('| way | latency ms | s | chunks/s | raw MiB/s | wire MiB/s | × plain copy | × no latency | wire / stored |\n|---|---|---|---|---|---|---|---|---|')
  const rows = (['pull', 'push'] as const).flatMap((way) => LATENCIES_MS.map((latencyMs) => {
    const runs = all.filter((one) => one.way === way && one.latencyMs === latencyMs)
    const seconds = median(runs.map((one) => one.seconds)), [{ chunks, rawBytes, proxyBytes }] = runs as [Figures]
    const without = median(all.filter((one) => one.way === way && one.latencyMs === 0).map((one) => one.seconds))
    return { way, latencyMs, seconds, chunksPerSecond: chunks / seconds, rawPerSecond: rawBytes / seconds, wirePerSecond: proxyBytes / seconds,
      ofCopy: storedBytes / seconds / (storedBytes / copySeconds), ofNoLatency: without / seconds, wireOfStored: proxyBytes / storedBytes }
  }))
  for (const row of rows) {
    if (values.json) console.log(JSON.stringify({ type: 'replication', ...row }))
    tell(`| ${row.way} | ${row.latencyMs} | ${row.seconds.toFixed(2)} | ${row.chunksPerSecond.toFixed(0)} | ${(row.rawPerSecond / MiB).toFixed(1)} | ${(row.wirePerSecond / MiB).toFixed(1)} | ${
      row.ofCopy.toFixed(2)} | ${row.ofNoLatency.toFixed(2)} | ${row.wireOfStored.toFixed(3)} |`)
  }
} finally {
  for (const proxy of proxies) await proxy.close().catch(() => undefined)
  await north.close()
  await south.close()
}
