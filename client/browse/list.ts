/** What a snapshot holds below a path. */
import { RoostError } from '../../src/core/errors.js'
import type { Call, RepositoryClient } from '../repository-client.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'
import { findEntry, openSnapshot, splitPath, type SnapshotChoice } from './open-snapshot.js'
import { pathToJson } from './render-path.js'
import { joinPath, walkTree, type TreeItem } from './walk-tree.js'

export interface ListOptions extends SnapshotChoice { readonly path?: Buffer; readonly isRecursive?: boolean }

/** A directory's entries, or the one entry that the path names; nested ones too when recursive.
 *  @throws {RoostError} SNAPSHOT_UNKNOWN, also when the path is not in the snapshot */
export async function* listPath(client: RepositoryClient, options: ListOptions, call: Call = {}): AsyncGenerator<TreeItem> {
  const open = await openSnapshot(client, options, call)
  try {
    const path = splitPath(options.path ?? Buffer.alloc(0)).reduce<Buffer>(joinPath, Buffer.alloc(0))
    const entry = await findEntry(open, path)
    if (entry === undefined) throw new RoostError('SNAPSHOT_UNKNOWN', 'The snapshot has no such path.')
    if (entry === 'root') yield* walkTree(open.nodes, open.root, path, options.isRecursive ?? false)
    else if (entry.type === ENTRY_TYPES.directory) yield* walkTree(open.nodes, entry.subtree!, path, options.isRecursive ?? false)
    else yield { path, entry }
  } finally { await open.close() }
}

const TYPE_LETTERS: Readonly<Record<Entry['type'], string>> = { 1: '-', 2: 'd', 3: 'l', 4: 'p', 5: 'c', 6: 'b', 7: 's', 8: 'i' }
const TYPE_NAMES: Readonly<Record<Entry['type'], string>> = {
  1: 'file', 2: 'directory', 3: 'symlink', 4: 'fifo', 5: 'character-device', 6: 'block-device', 7: 'socket', 8: 'image',
}
export const typeName = (type: Entry['type']): string => TYPE_NAMES[type]

/** As ls -l shows it: type, rwx for three, set-id and sticky bits. */
export function formatMode({ type, mode }: Pick<Entry, 'type' | 'mode'>): string {
  const bits = [...'rwxrwxrwx'].map((letter, i) => (mode & (0o400 >> i)) !== 0 ? letter : '-')
  const special = (bit: number, at: number, letter: string): void => {
    if ((mode & bit) !== 0) bits[at] = bits[at] === 'x' ? letter : letter.toUpperCase()
  }
  special(0o4000, 2, 's')
  special(0o2000, 5, 's')
  special(0o1000, 8, 't')
  return TYPE_LETTERS[type] + bits.join('')
}

/** One line of JSON output. Numbers beyond 2^53 go as text. */
export function itemToJson({ path, entry }: TreeItem): Record<string, unknown> {
  const { type, mode, uid, gid, user, group, mtimeNs, inode, linkCount } = entry
  return {
    ...pathToJson(path), type: typeName(type), mode: mode.toString(8).padStart(4, '0'), uid, gid, user, group,
    mtimeNs: String(mtimeNs), inode: String(inode), linkCount,
    ...(entry.content === undefined ? {} : { bytes: entry.content.bytes }),
    ...(entry.symlinkTarget === undefined ? {} : { target: pathToJson(entry.symlinkTarget) }),
    ...(entry.deviceMajor === undefined ? {} : { device: `${entry.deviceMajor}:${entry.deviceMinor ?? 0}` }),
    ...(entry.xattrs.length === 0 ? {} : { xattrs: entry.xattrs.map(({ name }) => name.toString('utf8')) }),
  }
}
