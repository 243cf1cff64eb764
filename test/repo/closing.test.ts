/** A server that stops or dies in the middle of a commit leaves a snapshot or none, never a record on its targets that no index knows of: nothing would pin
 *  its tree, a collection would take it apart, and a later start would take it in.
 */
import assert from 'node:assert/strict'
import { rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { parseSnapshotId } from '../../src/core/ids.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { buildTree, buildWorld, chunksOf, commitRequest, frameBody, never, openPush, pushTree, restoreTree } from '../support/repository-world.js'
import { eventually, twoTargets } from '../support/two-targets.js'

const DATA = [Buffer.from('pushed as the server stops'), Buffer.alloc(4000, 'c')]

test('closing waits for a commit whose record is on its way to the target', async (t) => {
  let release: () => void = () => undefined, arrived: () => void = () => undefined
  const held = new Promise<void>((resolve) => { release = resolve }), isThere = new Promise<void>((resolve) => { arrived = resolve })
  const slow = (store: ObjectStore): ObjectStore => new Proxy(store, { get: (target, name: keyof ObjectStore) => {
    const method: unknown = target[name]
    if (typeof method !== 'function') return method
    if (name === 'list') return method.bind(target) as unknown
    return async (...args: unknown[]) => {
      if (name === 'put' && String(args[0]).startsWith('snapshots/')) { arrived(); await held }
      return await (method as (...rest: unknown[]) => Promise<unknown>).apply(target, args)
    }
  } })
  const world = await buildWorld(t, slow)
  await world.create()
  const repository = await world.open(true)
  const { session, key } = await openPush(repository)
  const tree = buildTree(key, DATA)
  await repository.putChunks(session, frameBody(key, chunksOf(tree)), never)
  const committing = repository.commit(session, commitRequest(key, tree), never)
  await isThere
  const closing = repository.close()
  release()
  const { snapshot } = await committing
  await closing
  const reopened = await world.open(true)
  assert.deepEqual(await restoreTree(reopened, snapshot.id), DATA)
  assert.equal((await reopened.listSnapshots({ limit: 10 })).snapshots.length, 1)
  await reopened.close()
})

test('a record that a crash left on one target comes to the others', async (t) => {
  const scene = await twoTargets(t)
  const id = await pushTree(scene.repository, DATA)
  const { root } = JSON.parse(Buffer.from((await scene.repository.getSnapshot(parseSnapshotId(id))).record, 'base64').toString('utf8')) as { root: string }
  await scene.repository.close()
  // As after a death between the put on the first target and the one on the second.
  const index = await scene.world.index.open(true)
  await index.deleteSnapshot(parseSnapshotId(id), Buffer.from(root, 'hex'))
  const object = join(scene.pathOf('b'), 'snapshots', id)
  await rm(object)
  const reopened = await scene.world.open(false)
  t.after(() => reopened.close())
  assert.deepEqual(await restoreTree(reopened, id), DATA)
  await eventually('the other target has it', async () => await stat(object).then(() => true, () => false))
})
