/** Walks a snapshot's tree top-down over references, finds what the sink lacks, and stops at subtrees that it has whole.
 *
 *  What is whole there is known from a base: an earlier snapshot that both have. The walk goes down both trees in step; what is in both at one level is the
 *  base's, inherited by the receiving session, and not looked into. A node that merely *is there* (of a push that never ended) is no proof of what is below it:
 *  it is read where it is near, and its references are looked at like any other's.
 *  Memory: a bounded stack of ids, the keys of the base's level, and a bounded number of keys seen lately. */
import { hasBit } from '../core/frames.js'
import { RoostError } from '../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, chunkKey, chunkKeyToId, type ChunkKey, type SessionId } from '../core/ids.js'
import { LIMITS, MiB } from '../core/limits.js'
import { decodeNode, type NodeRefs } from '../core/node-format.js'
import type { NearSide, ReplicationSide } from './side.js'
import { moveChunks, type Transfer, type TransferDeps } from './transfer.js'

const NODES_PER_STEP = 512
/** Children of one level that are gone into at once. */
const CHILDREN_TOGETHER = 65_536
/** Data chunks that the sink is asked about at once. */
const HELD_TOGETHER = 2_048
/** Fewer wait for those of the nodes to come, so that small directories do not cost a request each. */
const HELD_AT_LEAST = 128
/** Of pending node ids over all levels, as of a commit's own walk. */
const STACK_BYTES_MAX = 64 * MiB
/** Keys of bases on the stack, all levels together; beyond them a level is walked without its base: more is looked at, nothing more is sent. */
const BASE_KEYS_MAX = 400_000
/** Chunks met lately: shared subtrees and repeated data are not asked about again. */
const SEEN_KEYS_MAX = 262_144

export interface WalkDeps extends TransferDeps {
  readonly near: NearSide
  readonly sink: ReplicationSide
  readonly receiving: SessionId
}
/** What a level of the base lists: nodes and data. */
interface BaseLevel { readonly keys: ReadonlySet<ChunkKey>; readonly nodes: readonly ChunkKey[] }
interface Level {
  readonly pending: ChunkKey[]
  /** Nodes of the base at this level that the snapshot does not share. */
  readonly baseNodes: readonly ChunkKey[]
  /** What is below those; made when the first node is opened. */
  below: BaseLevel | undefined
  children: Set<ChunkKey>
}
const NO_BASE: BaseLevel = { keys: new Set(), nodes: [] }

/** Resolves when every node is on the sink and everything else that it lacks was handed to `transfer`.
 *  @throws {RoostError} TREE_MALFORMED; LIMIT_EXCEEDED; what sides throw */
export async function walkTree(deps: WalkDeps, transfer: Transfer, root: Buffer, baseRoot: Buffer | undefined, signal: AbortSignal): Promise<void> {
  const seen = new RecentKeys()
  const data = new DataQueue(deps, transfer, signal)
  const top = baseRoot === undefined ? NO_BASE : { keys: new Set([chunkKey(baseRoot)]), nodes: [chunkKey(baseRoot)] }
  const stack: Level[] = [levelOf(new Set([chunkKey(root)]), top)]
  for (let level = stack.at(-1); level !== undefined; level = stack.at(-1)) {
    signal.throwIfAborted()
    const { pending, children } = level
    if (pending.length > 0 && children.size < CHILDREN_TOGETHER) {
      const keys = pending.splice(-NODES_PER_STEP).filter((key) => seen.add(key))
      if (keys.length > 0) await openLevelNodes(deps, level, keys, stack, data, seen, signal)
    } else if (children.size > 0) {
      level.children = new Set()
      stack.push(levelOf(children, level.below ?? NO_BASE))
      const stackBytes = stack.reduce((sum, one) => sum + one.pending.length * CHUNK_ID_BYTES, 0)
      if (stack.length > LIMITS.treeDepthMax || stackBytes > STACK_BYTES_MAX)
        throw new RoostError('LIMIT_EXCEEDED', `A tree is at most ${LIMITS.treeDepthMax} levels deep.`, { limit: LIMITS.treeDepthMax })
    } else stack.pop()
  }
  await data.flush()
}
function levelOf(keys: ReadonlySet<ChunkKey>, base: BaseLevel): Level {
  return { pending: [...keys].filter((key) => !base.keys.has(key)), baseNodes: base.nodes.filter((key) => !keys.has(key)), below: undefined, children: new Set() }
}
async function openLevelNodes(deps: WalkDeps, level: Level, keys: readonly ChunkKey[], stack: readonly Level[], data: DataQueue, seen: RecentKeys, signal: AbortSignal): Promise<void> {
  const below = level.below ??= await belowOf(deps, level, stack, signal)
  await openNodes(deps, keys, async (refs) => {
    for (let i = 0; i < refs.count; i++) {
      const key = chunkKey(refs.id(i))
      if (below.keys.has(key)) continue // the base's: inherited
      if (refs.kind(i) === CHUNK_KINDS.node) level.children.add(key)
      else if (seen.add(key)) data.add(key)
    }
    await data.settle(HELD_TOGETHER)
  }, signal)
  await data.settle(HELD_AT_LEAST)
}

/** What the base has one level further down, beside what this level shares with it. */
async function belowOf({ near, sink, receiving }: WalkDeps, { baseNodes }: Level, stack: readonly Level[], signal: AbortSignal): Promise<BaseLevel> {
  if (baseNodes.length === 0) return NO_BASE
  const room = BASE_KEYS_MAX - stack.reduce((sum, { below }) => sum + (below?.keys.size ?? 0), 0)
  const keys = new Set<ChunkKey>()
  const nodes: ChunkKey[] = []
  for (let at = 0; at < baseNodes.length && keys.size < room; at += NODES_PER_STEP) {
    const ids = Buffer.concat(baseNodes.slice(at, at + NODES_PER_STEP).map(chunkKeyToId))
    await sink.inherit(receiving, ids, signal)
    for await (const { bytes } of near.readNodes(ids, signal)) {
      const { refs } = decodeNode(bytes)
      for (let i = 0; i < refs.count; i++) {
        const key = chunkKey(refs.id(i))
        if (keys.has(key)) continue
        keys.add(key)
        if (refs.kind(i) === CHUNK_KINDS.node) nodes.push(key)
      }
    }
  }
  return { keys, nodes }
}

/** Brings over what is missing of these nodes, and tells the references of all of them. */
async function openNodes(deps: WalkDeps, keys: readonly ChunkKey[], tell: (refs: NodeRefs) => Promise<void>, signal: AbortSignal): Promise<void> {
  const { near, source } = deps
  const missing = new Set(await missingOf(deps, keys, signal))
  // Near the source all are read here; near the sink, those that it has.
  const isNearSource = near === source
  const here = isNearSource ? keys : keys.filter((key) => !missing.has(key))
  const unread = new Set(keys)
  if (isNearSource) await moveChunks(deps, [...missing], signal)
  for await (const { index, bytes } of near.readNodes(Buffer.concat(here.map(chunkKeyToId)), signal)) {
    unread.delete(here[index]!)
    await tell(decodeNode(bytes).refs)
  }
  if (unread.size === 0) return
  if (isNearSource) throw new RoostError('CHUNK_MISSING', 'A node of a snapshot is missing or damaged; run `roost check`.', { chunk: chunkKeyToId([...unread][0]!).toString('hex') })
  await moveChunks(deps, [...unread], signal, async (nodes) => { for (const bytes of nodes) await tell(decodeNode(bytes).refs) })
}

/** Data chunks on their way to the transfer: asked about together. */
class DataQueue {
  #keys: ChunkKey[] = []
  constructor(readonly deps: WalkDeps, readonly transfer: Transfer, readonly signal: AbortSignal) {}
  add(key: ChunkKey): void { this.#keys.push(key) }
  async settle(atLeast: number): Promise<void> { if (this.#keys.length >= atLeast) await this.flush() }
  async flush(): Promise<void> {
    while (this.#keys.length > 0) await this.transfer.add(await missingOf(this.deps, this.#keys.splice(0, LIMITS.missingIdsMax), this.signal))
  }
}

async function missingOf({ sink, receiving }: WalkDeps, keys: readonly ChunkKey[], signal: AbortSignal): Promise<ChunkKey[]> {
  if (keys.length === 0) return []
  const missing = await sink.hold(receiving, Buffer.concat(keys.map(chunkKeyToId)), signal)
  return keys.filter((_key, i) => hasBit(missing, i))
}

/** The last so many keys, and perhaps some more. */
class RecentKeys {
  #young = new Set<ChunkKey>()
  #old = new Set<ChunkKey>()
  /** True for one that is not among them. */
  add(key: ChunkKey): boolean {
    if (this.#young.has(key) || this.#old.has(key)) return false
    this.#young.add(key)
    if (this.#young.size >= SEEN_KEYS_MAX / 2) {
      this.#old = this.#young
      this.#young = new Set()
    }
    return true
  }
}
