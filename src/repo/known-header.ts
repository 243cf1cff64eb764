/** Local copies of what opens the repository: its header and the key slot of the server's keyfile. With them a server starts, and takes
 *  pushes into its spool, while every target is down. They hold nothing that the targets do not, and open nothing without the keyfile.
 */
import { mkdir, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { isErrno } from '../core/errors.js'
import type { FileEffects } from '../store/file-effects.js'
import { createMemoryStore } from '../store/memory-store.js'
import type { ObjectKey, ObjectStore } from '../store/object-store.js'
import { replaceFile } from '../store/replace-file.js'
import { HEADER_KEY, keySlotKey, slotIdOfKey } from './layout.js'

const FOLDER = 'known'
const fileOf = (directory: string, key: ObjectKey): string => join(directory, FOLDER, key.replace('/', '-'))

/** A store of the copies, or undefined when they are not all there. */
export async function openKnown(directory: string): Promise<ObjectStore | undefined> {
  const store = createMemoryStore(`the server's own copy in ${directory}`)
  const names = await readdir(join(directory, FOLDER)).catch((error: unknown) => {
    if (isErrno(error, 'ENOENT')) return []
    throw error
  })
  for (const name of names) {
    const key = name === HEADER_KEY ? HEADER_KEY : name.replace('-', '/')
    if (key === HEADER_KEY || slotIdOfKey(key) !== undefined) store.objects.set(key, await readFile(join(directory, FOLDER, name)))
  }
  return store.objects.has(HEADER_KEY) && store.objects.size > 1 ? store : undefined
}

/** Keeps the header and this one slot; other slots' copies go. Writes only what changed. */
export async function rememberHeader(directory: string, from: ObjectStore, slotId: string, effects: FileEffects): Promise<void> {
  await mkdir(join(directory, FOLDER), { recursive: true, mode: 0o700 })
  const kept = [HEADER_KEY, keySlotKey(slotId)]
  for (const key of kept) {
    const facts = await from.head(key)
    const bytes = facts === undefined ? undefined : await from.getRange(key, { offset: 0, bytes: facts.bytes })
    const known = await readFile(fileOf(directory, key)).catch((error: unknown) => {
      if (isErrno(error, 'ENOENT')) return undefined
      throw error
    })
    if (bytes !== undefined && known?.equals(bytes) !== true) await replaceFile(fileOf(directory, key), bytes, effects)
  }
  for (const name of await readdir(join(directory, FOLDER)))
    if (!kept.some((key) => fileOf(directory, key).endsWith(`/${name}`))) await rm(join(directory, FOLDER, name), { force: true })
}
