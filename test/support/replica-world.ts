/** Servers of one family: a second world whose repository is a replica of the first's. */
import { writeFileSync } from 'node:fs'
import type { TestContext } from 'node:test'
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
