/** The parent snapshot's directories, read alongside a walk of the present ones, in few calls.
 *
 *  A call costs a round trip, whatever it asks for; so a miss fetches, with the wanted node, the directories that the walk
 *  comes to next: following siblings, then what is below what was read, level by level, up to a bound of memory. A parent that cannot
 *  be read somewhere (damaged, lost) is a parent that has nothing there: the backup then reads those files, which heals them.
 */
import { hasCode, type ErrorCode } from '../../src/core/errors.js'
import { asChunkId, chunkKey, type ChunkId, type ChunkKey } from '../../src/core/ids.js'
import { MiB } from '../../src/core/limits.js'
import { decodeDirectoryNode, type DirectoryNode } from '../tree/directory-node.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import type { NodesByPlace } from '../tree/directory-writer.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'
import type { NodeSource } from '../upload/chunk-sink.js'

/** Encoded bytes of nodes read ahead; decoded they take some six times as much. */
const AHEAD_BYTES_MAX = 3 * MiB
/** Ids of one call, and of one miss. */
const CALL_NODES_MAX = 256
const MISS_NODES_MAX = 2_048
/** Forgotten ones are fetched when the walk comes to them. */
const WANTED_MAX = 16_384
const DAMAGES: readonly ErrorCode[] = ['CHUNK_MISSING', 'CHUNK_CORRUPT', 'PACK_CORRUPT', 'TREE_MALFORMED']

export class ParentTree {
  readonly #ahead = new Map<ChunkKey, { readonly node: DirectoryNode; readonly bytes: number }>()
  #aheadBytes = 0
  /** Directories that are known of and not fetched, in the order they were seen: what fills up a call. */
  readonly #wanted = new Set<ChunkKey>()

  constructor(readonly nodes: NodeSource) {}

  /** The former state of a directory; `next` are directories that will be wanted soon, nearest first.
   *  Undefined where the parent is damaged. */
  async open(id: ChunkId, next: Iterable<ChunkId>): Promise<ParentDirectory | undefined> {
    try {
      const node = this.#take(id) ?? await this.#fetch(id, next)
      return new ParentDirectory(new DirectoryReader(this.nodes, id, node))
    } catch (error) {
      if (!isDamage(error)) throw error
      return undefined
    }
  }

  #take(id: ChunkId): DirectoryNode | undefined {
    const key = chunkKey(id)
    const kept = this.#ahead.get(key)
    if (kept === undefined) return undefined
    const { node, bytes } = kept
    if ('entries' in node && node.entries.length === 0) return node // all empty directories are this one node
    this.#ahead.delete(key)
    this.#aheadBytes -= bytes
    return node
  }
  async #fetch(id: ChunkId, next: Iterable<ChunkId>): Promise<DirectoryNode> {
    if (this.#aheadBytes >= AHEAD_BYTES_MAX) { // full of directories that are gone from the disk
      this.#ahead.clear()
      this.#wanted.clear()
      this.#aheadBytes = 0
    }
    await this.#readAhead(id, next)
    const node = this.#take(id)
    if (node !== undefined) return node
    const [bytes] = await this.nodes.readNodes([id]) // one of its neighbours is damaged; it may not be
    return decodeDirectoryNode(bytes!)
  }
  async #readAhead(id: ChunkId, next: Iterable<ChunkId>): Promise<void> {
    const wave = new Map([[chunkKey(id), id]])
    for (const sibling of next) {
      if (wave.size >= CALL_NODES_MAX) break
      if (!this.#ahead.has(chunkKey(sibling))) wave.set(chunkKey(sibling), sibling)
    }
    for (let count = 0; count < MISS_NODES_MAX && this.#aheadBytes < AHEAD_BYTES_MAX;) {
      for (const key of this.#wanted) {
        if (wave.size >= CALL_NODES_MAX) break
        wave.set(key, asChunkId(Buffer.from(key, 'latin1')))
      }
      if (wave.size === 0) return
      const ids = [...wave.values()]
      for (const key of wave.keys()) this.#wanted.delete(key)
      try {
        const bodies = await this.nodes.readNodes(ids)
        bodies.forEach((bytes, i) => { this.#keep(ids[i]!, bytes) })
      } catch (error) {
        if (!isDamage(error)) throw error
        return // which one it is shows when the walk comes to it
      }
      count += ids.length
      wave.clear()
    }
  }
  #keep(id: ChunkId, bytes: Buffer): void {
    const key = chunkKey(id)
    if (this.#ahead.has(key)) return
    const node = decodeDirectoryNode(bytes)
    this.#ahead.set(key, { node, bytes: bytes.byteLength })
    this.#aheadBytes += bytes.byteLength
    if ('children' in node) return
    for (const { subtree } of node.entries)
      if (subtree !== undefined && this.#wanted.size < WANTED_MAX && !this.#ahead.has(chunkKey(subtree)))
        this.#wanted.add(chunkKey(subtree))
  }
}

/** One former directory, asked for names in ascending order. */
export class ParentDirectory {
  readonly #leaves: AsyncGenerator<Entry[]>
  #leaf: Entry[] = []
  #at = 0
  #isAtEnd = false
  constructor(readonly reader: DirectoryReader) { this.#leaves = reader.leaves() }

  /** Its nodes, as far as read: what a directory that did not change inherits. */
  get nodes(): NodesByPlace { return this.reader.nodesRead }
  /** The former entry of this name; the names asked for ascend. */
  find(name: Buffer): Entry | undefined | Promise<Entry | undefined> {
    for (; this.#at < this.#leaf.length; this.#at++) {
      const order = this.#leaf[this.#at]!.name.compare(name)
      if (order === 0) return this.#leaf[this.#at]
      if (order > 0) return undefined
    }
    return this.#isAtEnd ? undefined : this.#findInNextLeaf(name)
  }
  /** Directories after the last one found, as far as their leaf is read. */
  *nextSubtrees(): Generator<ChunkId> {
    for (let at = this.#at + 1; at < this.#leaf.length; at++) {
      const { type, subtree } = this.#leaf[at]!
      if (type === ENTRY_TYPES.directory && subtree !== undefined) yield subtree
    }
  }

  async #findInNextLeaf(name: Buffer): Promise<Entry | undefined> {
    try {
      const { value, done } = await this.#leaves.next()
      this.#isAtEnd = done === true
      this.#leaf = done === true ? [] : value
    } catch (error) {
      if (!isDamage(error)) throw error
      this.#isAtEnd = true
      this.#leaf = []
    }
    this.#at = 0
    return await this.find(name)
  }
}

function isDamage(error: unknown): boolean {
  return DAMAGES.some((code) => hasCode(error, code))
}
