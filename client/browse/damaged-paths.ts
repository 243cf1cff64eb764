/** Which paths of a snapshot need chunks that the repository lacks? Walks the whole tree, around whatever cannot be read. */
import { RoostError, hasCode, type ErrorCode } from '../../src/core/errors.js'
import { chunkKey, type ChunkId, type ChunkKey } from '../../src/core/ids.js'
import { contentExtents } from '../restore/content-extents.js'
import type { SessionNodeSource } from '../session-nodes.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'
import { BROWSE_DEPTH_MAX, joinPath } from './walk-tree.js'

/** `path`: names from the snapshot's root, without a leading '/'; empty for the root. `directory`: what it lists is lost, in part or whole. */
export interface DamagedPath { readonly path: Buffer; readonly what: 'file' | 'directory' }

const DAMAGES: readonly ErrorCode[] = ['CHUNK_MISSING', 'CHUNK_CORRUPT', 'CHUNK_NOT_READABLE', 'TREE_MALFORMED']
interface Level { readonly path: Buffer; readonly leaves: AsyncGenerator<Entry[]>; leaf: readonly Entry[]; at: number }

/** Memory: one leaf a level. @throws {RoostError} LIMIT_EXCEEDED below BROWSE_DEPTH_MAX levels; what makes the server unreachable */
export async function* damagedPaths(nodes: SessionNodeSource, root: ChunkId, lacking: ReadonlySet<ChunkKey>): AsyncGenerator<DamagedPath> {
  const enter = (path: Buffer, id: ChunkId): Level => ({ path, leaves: new DirectoryReader(nodes, id).leaves(), leaf: [], at: 0 })
  const levels = [enter(Buffer.alloc(0), root)]
  try {
    for (let level = levels.at(-1); level !== undefined; level = levels.at(-1)) {
      const entry = level.leaf[level.at++]
      if (entry === undefined) {
        const next = await nextLeaf(level)
        if (next === 'damaged') yield { path: level.path, what: 'directory' }
        if (next === 'damaged' || next === 'end') levels.pop()
        continue
      }
      const path = joinPath(level.path, entry.name)
      if (entry.content !== undefined && await isDamaged(nodes, entry, lacking)) yield { path, what: 'file' }
      if (entry.type !== ENTRY_TYPES.directory) continue
      if (levels.length > BROWSE_DEPTH_MAX)
        throw new RoostError('LIMIT_EXCEEDED', `Directories nest deeper than ${BROWSE_DEPTH_MAX} levels.`, { limit: BROWSE_DEPTH_MAX })
      levels.push(enter(path, entry.subtree!))
    }
  } finally { await Promise.all(levels.map(({ leaves }) => leaves.return(undefined))) }
}
async function nextLeaf(level: Level): Promise<'leaf' | 'end' | 'damaged'> {
  try {
    const { value, done } = await level.leaves.next()
    if (done === true) return 'end'
    level.leaf = value
    level.at = 0
    return 'leaf'
  } catch (error) {
    if (!isDamage(error)) throw error
    return 'damaged'
  }
}
async function isDamaged(nodes: SessionNodeSource, { content }: Entry, lacking: ReadonlySet<ChunkKey>): Promise<boolean> {
  try {
    for await (const { id } of contentExtents(nodes, content!)) if (id !== undefined && lacking.has(chunkKey(id))) return true
    return false
  } catch (error) {
    if (!isDamage(error)) throw error
    return true
  }
}
const isDamage = (error: unknown): boolean => DAMAGES.some((code) => hasCode(error, code))
