/** What a file system inside an image holds below a path. */
import { RoostError } from '../../src/core/errors.js'
import { BROWSE_DEPTH_MAX, joinPath, type TreeItem } from '../browse/walk-tree.js'
import { ENTRY_TYPES } from '../tree/entry.js'
import { unreadable } from './byte-window.js'
import type { Ext4Volume, VolumeItem } from './ext4/volume.js'
import type { Inode } from './ext4/inode.js'

export interface VolumeProblem { readonly path: Buffer; readonly error: unknown }

/** @throws {RoostError} SNAPSHOT_UNKNOWN when nothing is there */
export async function requireItem(volume: Ext4Volume, names: readonly Buffer[]): Promise<VolumeItem> {
  const item = await volume.find(names)
  if (item === undefined) throw new RoostError('SNAPSHOT_UNKNOWN', 'The file system in the image has no such path. Symlinks are not followed; `roost ls -l` shows where they lead.')
  return item
}
/** A directory's entries, with all below when recursive; or the one item. Paths from the file system's root; depth first.
 *  Memory: the iterators of one path, and the number of each directory seen, since none may be entered twice. */
export async function* listVolume(volume: Ext4Volume, names: readonly Buffer[], isRecursive: boolean, onProblem: (problem: VolumeProblem) => void,
  signal: AbortSignal): AsyncGenerator<TreeItem> {
  const item = await requireItem(volume, names)
  const path = names.reduce<Buffer>(joinPath, Buffer.alloc(0))
  if (item.entry.type !== ENTRY_TYPES.directory) { yield { path, entry: item.entry }; return }
  const entered = new Set<number>([item.inode.number])
  const read = (inode: Inode, at: Buffer): { at: Buffer; items: AsyncGenerator<VolumeItem> } =>
    ({ at, items: volume.list(inode, (name, error) => { onProblem({ path: joinPath(at, name), error }) }) })
  const levels = [read(item.inode, path)]
  for (let level = levels.at(-1); level !== undefined; level = levels.at(-1)) {
    signal.throwIfAborted()
    let next: VolumeItem | undefined
    try {
      next = (await level.items.next()).value as VolumeItem | undefined
    } catch (error) {
      onProblem({ path: level.at, error })
    }
    if (next === undefined) { levels.pop(); continue }
    const below = joinPath(level.at, next.entry.name)
    yield { path: below, entry: next.entry }
    if (!isRecursive || next.entry.type !== ENTRY_TYPES.directory) continue
    if (entered.has(next.inode.number) || levels.length > BROWSE_DEPTH_MAX) onProblem({ path: below, error: unreadable('The directory is in two places, or too deep.') })
    else {
      entered.add(next.inode.number)
      levels.push(read(next.inode, below))
    }
  }
}
