/** A repository's targets as end-to-end tests see them: trees to back up, what the server says of its targets, and the places themselves, to be
 *  damaged behind its back.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { compareTrees } from './compare-trees.js'
import { seeded } from './odd-tree.js'
import type { RoostWorld } from './run-roost.js'

export const MiB = 1024 * 1024
export const patience = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

export function makeTree(world: RoostWorld, name: string, bytes: number, seed = 1): string {
  const path = world.path(name)
  const next = seeded(seed)
  mkdirSync(path, { recursive: true })
  for (let at = 0, file = 0; at < bytes; file++) {
    const size = Math.min(bytes - at, file % 3 === 0 ? MiB * 2 : 50_000)
    const content = Buffer.alloc(size)
    // Half of it compresses.
    for (let i = 0; i < size; i += 8) content.writeUInt32LE(Math.floor(next() * 2 ** 32), Math.min(i, size - 4 < 0 ? 0 : Math.min(i, size - 4)))
    mkdirSync(join(path, `d${file % 7}`), { recursive: true })
    writeFileSync(join(path, `d${file % 7}`, `f${file}`), content)
    at += size
  }
  return path
}
export async function backup(world: RoostWorld, path: string, ...more: string[]): Promise<string> {
  return (await world.json(['backup', path, ...more])).find((line) => line['type'] === 'snapshot')!['id'] as string
}
export async function assertRestores(world: RoostWorld, id: string, path: string): Promise<void> {
  const into = world.path(`restored-${createHash('md5').update(`${id}${process.hrtime.bigint()}`).digest('hex')}`)
  await world.ok(['restore', id, '--target', into])
  assert.deepEqual(compareTrees(path, join(into, path)).differences, [])
  rmSync(into, { recursive: true })
}
export interface TargetLine { type: string; name: string; mode: string; health: string; lagPacks: number; packs: number; storedBytes: number; failure?: string; damagedPacks: number }
export async function targetsOf(world: RoostWorld): Promise<TargetLine[]> {
  return (await world.json(['target', 'status'])).filter((line) => line['type'] === 'target') as unknown as TargetLine[]
}
export async function caughtUp(world: RoostWorld): Promise<void> {
  for (let turns = 0; turns < 600; turns++) {
    if ((await targetsOf(world)).every(({ lagPacks, health }) => lagPacks === 0 && health === 'healthy')) return
    await patience(200)
  }
  assert.fail(`the targets never caught up: ${JSON.stringify(await targetsOf(world))}`)
}

/** What lies on a target, by names below the repository's prefix. */
export interface Place {
  /** The target's name. */
  readonly target: string
  names(): Promise<string[]>
  read(name: string): Promise<Buffer>
  write(name: string, bytes: Buffer): Promise<void>
  remove(name: string): Promise<void>
}
export interface SwiftLogin { readonly token: string; readonly storageUrl: string }
export async function tempAuthLogin(authUrl: string): Promise<SwiftLogin> {
  const { headers } = await fetch(authUrl, { headers: { 'x-auth-user': 'test:tester', 'x-auth-key': 'testing' } })
  return { token: headers.get('x-auth-token')!, storageUrl: headers.get('x-storage-url')! }
}
/** Also for a bucket of Swift's s3api, which is a container of the same name. */
export function swiftPlace(target: string, { token, storageUrl }: SwiftLogin, container: string, prefix = ''): Place {
  const ask = async (path: string, init: RequestInit = {}): Promise<Response> => {
    const answer = await fetch(`${storageUrl}/${container}${path}`, { ...init, headers: { 'x-auth-token': token } })
    assert.ok(answer.ok, `${init.method ?? 'GET'} ${path}: ${answer.status}`)
    return answer
  }
  return {
    target,
    names: async () => (await (await ask(`?format=json&prefix=${prefix}`)).json() as { name: string }[]).map(({ name }) => name.slice(prefix.length)),
    read: async (name) => Buffer.from(await (await ask(`/${prefix}${name}`)).arrayBuffer()),
    write: async (name, bytes) => { await ask(`/${prefix}${name}`, { method: 'PUT', body: bytes }) },
    remove: async (name) => { await ask(`/${prefix}${name}`, { method: 'DELETE' }) },
  }
}
export function filePlace(target: string, directory: string): Place {
  return {
    target,
    names: async () => readdirSync(directory, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(directory.length + 1)).filter((name) => !name.startsWith('+')).sort(),
    read: async (name) => readFileSync(join(directory, name)),
    // Removed first: the file may be a link to another target's.
    write: async (name, bytes) => {
      rmSync(join(directory, name), { force: true })
      mkdirSync(dirname(join(directory, name)), { recursive: true })
      writeFileSync(join(directory, name), bytes)
    },
    remove: async (name) => { rmSync(join(directory, name)) },
  }
}
