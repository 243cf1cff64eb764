/** What clients back up: trees made of a small stock of chunks and subtrees, so that everything is shared, dropped and needed again. */
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, type ChunkKind } from '../../src/core/ids.js'
import { encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import { SeededRandom } from './seeded-random.js'

export interface Item {
  readonly kind: ChunkKind
  readonly bytes: Buffer
  readonly idProof: Buffer
  readonly id: Buffer
  /** The id in hex: the key of maps. */
  readonly key: string
  readonly children: readonly Item[]
  readonly label: string
}

const CHUNKS = 40, DIRECTORIES = 18, GROUPS = 7

export class Content {
  readonly #chunks: Item[]
  readonly #directories: Item[]
  readonly #groups: Item[]
  readonly #closures = new Map<string, ReadonlyMap<string, Item>>()
  readonly #roots = new Map<string, Item>()

  constructor(readonly dedupKey: Buffer) {
    const random = new SeededRandom(77)
    this.#chunks = Array.from({ length: CHUNKS }, (_, i) => {
      const bytes = random.bytes(random.between(60, 700))
      // Some compress well, some not at all.
      return this.#item(CHUNK_KINDS.data, i % 3 === 0 ? Buffer.concat([bytes, Buffer.alloc(400, i)]) : bytes, [], `chunk${i}`)
    })
    this.#directories = Array.from({ length: DIRECTORIES }, (_, i) => this.#node(some(random, this.#chunks, 1, 5), `directory${i}`))
    this.#groups = Array.from({ length: GROUPS }, (_, i) =>
      this.#node([...some(random, this.#directories, 1, 3), ...(i % 2 === 0 ? some(random, this.#chunks, 1, 1) : [])], `group${i}`))
  }
  #item(kind: ChunkKind, bytes: Buffer, children: readonly Item[], label: string): Item {
    const idProof = hashChunk(this.dedupKey, bytes, kind)
    const id = idProof.subarray(0, 32)
    return { kind, bytes, idProof, id, key: id.toString('hex'), children, label }
  }
  #node(children: readonly Item[], label: string): Item {
    return this.#item(CHUNK_KINDS.node, encodeNode(NODE_TYPES.directory, children.map(({ kind, id }) => ({ kind, id })), Buffer.from(label)), children, label)
  }

  /** A tree to back up, near `parent` when there is one. */
  makeTree(random: SeededRandom, parent: Item | undefined, name: string): Item {
    const kept = (parent?.children ?? []).filter(() => random.chance(0.7))
    const added = [...some(random, this.#groups, 0, 2), ...some(random, this.#directories, 0, 2), ...some(random, this.#chunks, 0, 2)]
    const children = [...new Set([...kept, ...added])]
    // Half of the roots are nobody else's; the others may be made again by another client, or later.
    const root = this.#node(children.length > 0 ? children : some(random, this.#directories, 1, 1), random.chance(0.5) ? name : 'root')
    const known = this.#roots.get(root.key)
    if (known === undefined) this.#roots.set(root.key, root)
    return known ?? root
  }
  root(key: string): Item | undefined { return this.#roots.get(key) }

  /** Everything that a tree needs, by id. */
  closure(root: Item): ReadonlyMap<string, Item> {
    let closure = this.#closures.get(root.key)
    if (closure === undefined) {
      const all = new Map<string, Item>([[root.key, root]])
      for (const child of root.children) for (const [key, item] of this.closure(child)) all.set(key, item)
      closure = all
      this.#closures.set(root.key, closure)
    }
    return closure
  }
  /** Between runs: roots are made anew by each. */
  forgetRoots(): void {
    for (const key of this.#roots.keys()) this.#closures.delete(key)
    this.#roots.clear()
  }
}
function some<T>(random: SeededRandom, items: readonly T[], least: number, most: number): T[] {
  return random.shuffled(items).slice(0, random.between(least, most))
}
