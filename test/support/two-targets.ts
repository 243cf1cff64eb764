/** A repository on two file targets, a and b, whose calls can be made to fail; pauses are short. */
import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { systemClock, type Clock } from '../../src/core/clock.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { faultyStore, type FaultyStore } from './faulty-store.js'
import { buildWorld, type World, type WorldOptions } from './repository-world.js'

export const hastyClock: Clock = { ...systemClock, sleep: (ms, signal) => systemClock.sleep(Math.min(ms, 5), signal) }

export interface Scene { readonly world: World; readonly repository: LocalRepository; readonly places: Map<string, FaultyStore>; readonly pathOf: (name: string) => string }
export async function twoTargets(t: TestContext, options: WorldOptions & { wrap?: (store: ObjectStore, url: string) => ObjectStore } = {}): Promise<Scene> {
  const places = new Map<string, FaultyStore>()
  const world = await buildWorld(t, (store, url) => {
    const faulty = faultyStore(options.wrap?.(store, url) ?? store)
    faulty.isDown = places.get(url.split('/').at(-1)!)?.isDown ?? false
    places.set(url.split('/').at(-1)!, faulty)
    return faulty
  }, { clock: hastyClock, commitWaitMs: 2_000, ...options })
  const pathOf = (name: string): string => join(world.directory, 'places', name)
  await world.create({ target: `file:${pathOf('a')}` })
  const repository = await world.open(true)
  t.after(() => repository.close())
  await repository.addTarget({ name: 'b', url: `file:${pathOf('b')}` })
  await caughtUp(repository)
  return { world, repository, places, pathOf }
}
export async function eventually(what: string, isSo: () => Promise<boolean>): Promise<void> {
  for (let turns = 0; turns < 2_000; turns++) {
    if (await isSo()) return
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  assert.fail(`never: ${what}`)
}
export const caughtUp = (repository: LocalRepository): Promise<void> => eventually('all targets healthy and caught up', async () =>
  (await repository.listTargets()).targets.every(({ lagPacks, health, damagedPacks }) => lagPacks === 0 && health === 'healthy' && damagedPacks === 0))

export async function objectsOf(directory: string): Promise<Map<string, Buffer>> {
  const found = new Map<string, Buffer>()
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true }))
    if (entry.isFile() && !entry.name.startsWith('+')) {
      const path = join(entry.parentPath, entry.name)
      const key = path.slice(directory.length + 1)
      if (/^(roost\.json|keys\/|packs\/|snapshots\/|tombstones\/)/.test(key)) found.set(key, await readFile(path))
    }
  return found
}
export async function assertAlike(scene: Scene): Promise<void> {
  const [a, b] = [await objectsOf(scene.pathOf('a')), await objectsOf(scene.pathOf('b'))]
  assert.deepEqual([...b.keys()].sort(), [...a.keys()].sort())
  for (const [key, bytes] of a) if (!key.startsWith('snapshots/')) assert.ok(b.get(key)!.equals(bytes), key)
}
