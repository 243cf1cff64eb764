/** Reads a directory of any size: leaves in order, a few ahead, or one entry by name.
 *  What the nodes claim of each other (levels, first names, order) is checked against what they are.
 */
import { RoostError } from '../../src/core/errors.js'
import type { ChunkId } from '../../src/core/ids.js'
import type { NodeSource } from '../upload/chunk-sink.js'
import { decodeDirectoryNode, type DirectoryNode, type IndexChild } from './directory-node.js'
import { nodePlace, type NodesByPlace } from './directory-writer.js'
import type { Entry } from './entry.js'

/** Nodes of one request; twice as many are held a level: the ones in use and the ones on their way. */
const PREFETCH_NODES = 8
const NO_NAME = Buffer.alloc(0)

export class DirectoryReader {
  readonly #nodesRead = new Map<string, ChunkId>()
  readonly #rootNode: DirectoryNode | undefined
  #lastName: Buffer | undefined

  /** `rootNode`: where the caller has read it already. */
  constructor(readonly nodes: NodeSource, readonly root: ChunkId, rootNode?: DirectoryNode) {
    this.#rootNode = rootNode
    if (rootNode !== undefined) this.#nodesRead.set(nodePlace(rootNode.level, firstNameOf(rootNode) ?? NO_NAME), root)
  }
  /** Grows as leaves() goes on. */
  get nodesRead(): NodesByPlace { return this.#nodesRead }

  async *entries(): AsyncGenerator<Entry> {
    for await (const leaf of this.leaves()) yield* leaf
  }
  /** The entries leaf by leaf, ascending throughout. @throws {RoostError} TREE_MALFORMED, or what `nodes` throws */
  async *leaves(): AsyncGenerator<Entry[]> {
    this.#lastName = undefined
    const root = await this.#readRoot()
    yield* this.#walk(this.root, root)
  }
  async find(name: Buffer): Promise<Entry | undefined> {
    let node = await this.#readRoot()
    while ('children' in node) {
      const child = lastNotAfter(node.children, name)
      if (child === undefined) return undefined
      const [bytes] = await this.nodes.readNodes([child.id])
      node = requireChild(decodeDirectoryNode(bytes!), node.level - 1, child.firstName)
    }
    return node.entries.find((entry) => entry.name.equals(name))
  }

  async #readRoot(): Promise<DirectoryNode> {
    if (this.#rootNode !== undefined) return this.#rootNode
    const [bytes] = await this.nodes.readNodes([this.root])
    return decodeDirectoryNode(bytes!)
  }
  async *#walk(id: ChunkId, node: DirectoryNode): AsyncGenerator<Entry[]> {
    const first = firstNameOf(node)
    this.#nodesRead.set(nodePlace(node.level, first ?? NO_NAME), id)
    if ('children' in node) {
      for await (const { child, bytes } of this.#readAhead(node.children)) {
        const next = requireChild(decodeDirectoryNode(bytes), node.level - 1, child.firstName)
        yield* this.#walk(child.id, next)
      }
      return
    }
    if (first !== undefined && this.#lastName !== undefined && this.#lastName.compare(first) >= 0)
      throw new RoostError('TREE_MALFORMED', 'The leaves of a directory overlap.')
    this.#lastName = node.entries.at(-1)?.name
    yield node.entries
  }
  async *#readAhead(children: readonly IndexChild[]): AsyncGenerator<{ child: IndexChild; bytes: Buffer }> {
    const request = async (at: number): Promise<Buffer[]> =>
      at >= children.length ? [] : await this.nodes.readNodes(children.slice(at, at + PREFETCH_NODES).map(({ id }) => id))
    let coming = request(0)
    for (let at = 0; at < children.length; at += PREFETCH_NODES) {
      const batch = await coming
      coming = request(at + PREFETCH_NODES)
      coming.catch(() => undefined) // seen by the next round's await; until then nobody listens
      for (let i = 0; i < batch.length; i++) yield { child: children[at + i]!, bytes: batch[i]! }
    }
  }
}

/** The node, if it is what its index says it is. */
function requireChild(node: DirectoryNode, level: number, firstName: Buffer): DirectoryNode {
  if (node.level !== level) throw new RoostError('TREE_MALFORMED', 'A directory index lists a node of the wrong level.')
  const first = firstNameOf(node)
  if (first === undefined || !first.equals(firstName))
    throw new RoostError('TREE_MALFORMED', 'A directory index names another first entry than its child has.')
  return node
}
/** Undefined for an empty directory. */
function firstNameOf(node: DirectoryNode): Buffer | undefined {
  return 'children' in node ? node.children[0]!.firstName : node.entries[0]?.name
}
function lastNotAfter(children: readonly IndexChild[], name: Buffer): IndexChild | undefined {
  let low = 0
  let high = children.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (children[middle]!.firstName.compare(name) <= 0) low = middle + 1
    else high = middle
  }
  return children[low - 1]
}
