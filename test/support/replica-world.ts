/** Servers of one family: a second world whose repository is a replica of the first's. */
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { OddProxy, type OddProxyOptions } from './odd-proxy.js'
import { seeded } from './odd-tree.js'
import { RoostWorld } from './run-roost.js'

export async function verifyKeyOf(world: RoostWorld): Promise<string> { return (await world.json(['repo', 'show']))[0]!['verifyKey'] as string }
export async function repositoryIdOf(world: RoostWorld): Promise<string> { return (await world.json(['repo', 'show']))[0]!['repositoryId'] as string }

/** A file with a token of `world` for peers. */
export async function replicaToken(world: RoostWorld, scopes: readonly string[] = ['replicate']): Promise<string> {
  const made = (await world.json(['token', 'create', '--label', 'peer', '--repo', world.name, ...scopes.flatMap((scope) => ['--scope', scope])]))[0]!
  const path = world.path(`peer-${made['tokenId'] as string}.token`)
  writeFileSync(path, `${made['token'] as string}\n`, { mode: 0o600 })
  return path
}
export interface ReplicaOptions { readonly server?: readonly string[]; readonly address?: string }
/** A running server with a replica of the origin's repository, of the same name. */
export async function makeReplica(t: TestContext, origin: RoostWorld, options: ReplicaOptions = {}): Promise<RoostWorld> {
  const world = new RoostWorld()
  t.after(() => world.close())
  await world.startServer(options.server)
  await world.ok(['repo', 'create', world.name, '--replica-of', options.address ?? addressOf(origin), '--origin-token-file', await replicaToken(origin),
    '--origin-verify-key', await verifyKeyOf(origin)])
  return world
}
export const addressOf = (world: RoostWorld): string => `${world.url}/${world.name}`
export async function addPull(sink: RoostWorld, source: RoostWorld, name = 'pull', address = addressOf(source), ...more: readonly string[]): Promise<void> {
  await sink.ok(['replicate', 'add', name, '--peer', address, '--peer-token-file', await replicaToken(source, ['replicate', 'delete']), '--peer-verify-key', await verifyKeyOf(source), ...more])
}
export const replicatedIds = (lines: readonly Record<string, unknown>[]): string[] =>
  lines.filter(({ type }) => type === 'replicated').map(({ snapshot }) => snapshot as string)
export async function snapshotIds(world: RoostWorld): Promise<string[]> {
  return (await world.json(['snapshots'])).filter(({ type }) => type === 'snapshot').map(({ id }) => id as string)
}
/** A way to the world's repository that can be made worse. */
export async function proxyTo(t: TestContext, world: RoostWorld, options: Omit<OddProxyOptions, 'port'> = {}): Promise<{ proxy: OddProxy; address: string }> {
  const proxy = new OddProxy({ port: Number(new URL(world.url).port), ...options })
  const port = await proxy.listen()
  t.after(() => proxy.close())
  return { proxy, address: `http://127.0.0.1:${port}/main` }
}
/** Some bytes of one file in ten, and a new file: a day's work. */
export function aDayLater(tree: string, seed: number): void {
  const next = seeded(seed)
  for (let file = 0; file < 20; file++) {
    const path = join(tree, `d${file % 7}`, `f${file}`)
    if (next() > 0.3) continue
    const content = readFileSync(path)
    content.writeUInt32LE(Math.floor(next() * 2 ** 32), Math.floor(next() * (content.byteLength - 4)))
    writeFileSync(path, content)
  }
  appendFileSync(join(tree, 'd0', `of-day-${seed}`), Buffer.from(Array.from({ length: 100_000 }, () => Math.floor(next() * 256))))
}
