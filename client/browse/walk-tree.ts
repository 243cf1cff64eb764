/** Entries of a snapshot with their paths, depth first, in order of names. */
import { RoostError } from '../../src/core/errors.js'
import type { ChunkId } from '../../src/core/ids.js'
import type { SessionNodeSource } from '../session-nodes.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'

export const BROWSE_DEPTH_MAX = 4_096
const PREFETCH_DIRECTORIES = 48
const SLASH = Buffer.from('/')

/** `path`: names from the snapshot's root, without a leading '/'. */
export interface TreeItem { readonly path: Buffer; readonly entry: Entry }

export const joinPath = (parent: Buffer, name: Buffer): Buffer =>
  parent.byteLength === 0 ? name : Buffer.concat([parent, SLASH, name])

/** Memory: one leaf a level. @throws {RoostError} LIMIT_EXCEEDED below BROWSE_DEPTH_MAX levels; what reading nodes throws */
export async function* walkTree(nodes: SessionNodeSource, root: ChunkId, below: Buffer, isRecursive: boolean): AsyncGenerator<TreeItem> {
  const levels: AsyncGenerator<TreeItem>[] = [readDirectory(nodes, root, below)]
  try {
    for (let level = levels.at(-1); level !== undefined; level = levels.at(-1)) {
      const { value, done } = await level.next()
      if (done === true) { levels.pop(); continue }
      yield value
      if (!isRecursive || value.entry.type !== ENTRY_TYPES.directory) continue
      if (levels.length > BROWSE_DEPTH_MAX)
        throw new RoostError('LIMIT_EXCEEDED', `Directories nest deeper than ${BROWSE_DEPTH_MAX} levels.`, { limit: BROWSE_DEPTH_MAX })
      levels.push(readDirectory(nodes, value.entry.subtree!, value.path))
    }
  } finally { await Promise.all(levels.map((level) => level.return(undefined))) }
}
async function* readDirectory(nodes: SessionNodeSource, root: ChunkId, path: Buffer): AsyncGenerator<TreeItem> {
  for await (const leaf of new DirectoryReader(nodes, root).leaves()) {
    const subtrees = leaf.filter((entry) => entry.type === ENTRY_TYPES.directory).map((entry) => entry.subtree!)
    let seen = 0
    for (const entry of leaf) {
      if (entry.type === ENTRY_TYPES.directory && seen++ % PREFETCH_DIRECTORIES === 0)
        nodes.prefetch(subtrees.slice(seen - 1, seen - 1 + PREFETCH_DIRECTORIES))
      yield { path: joinPath(path, entry.name), entry }
    }
  }
}
