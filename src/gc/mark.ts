/** Marks everything that a snapshot or a session needs (docs/gc.md G2, G3): from roots over the references of nodes, in bounded memory.
 *
 *  Order matters: the collection has begun, then the packs are listed, then snapshots, then inherited pins, those held for it last. Whatever slips
 *  from one list into the next while they are read is found in the later one.
 *  References are gathered and looked up many at once in the order of ids, as the index lies on disk; between slices others have their turn.
 */
import { setImmediate } from 'node:timers/promises'
import { RoostError } from '../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, parseChunkId, type PackNumber } from '../core/ids.js'
import type { MaintenanceEvent } from '../core/messages.js'
import { decodeNode } from '../core/node-format.js'
import type { PackEntries, PackPinned, PinCursor } from '../index/chunk-index.js'
import { positionOf } from '../index/positions.js'
import { hasBit } from '../core/frames.js'
import { chunkInBlock } from '../repo/pack-format.js'
import type { RepositoryParts } from '../repo/repository-parts.js'
import { parseRecord } from '../repo/snapshot-format.js'
import { everySnapshot } from '../repo/every-snapshot.js'
import { MarkSet } from './mark-set.js'
import { entriesOf, locationsIn } from './pack-entries.js'
import { ReferenceBatch } from './reference-batch.js'

const PACKS_PER_PAGE = 1_000
const PINS_PER_PAGE = 64

export interface MarkResult {
  readonly marks: MarkSet
  /** References to nodes that are missing or damaged on every target: what lies below them is not known. */
  readonly brokenNodes: number
  readonly snapshots: number
  readonly nodes: number
  readonly references: number
}

/** @throws {RoostError} STORE_UNAVAILABLE when a node cannot be asked for now: unreachable is not garbage. */
export async function* markReachable(parts: RepositoryParts, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, MarkResult, undefined> {
  const marks = new MarkSet()
  for (let after = 0; ;) {
    const rows = await parts.index.listPacks(after, PACKS_PER_PAGE)
    if (rows.length === 0) break
    for (const row of rows) marks.add(row)
    after = rows.at(-1)!.packNumber
    await setImmediate()
    signal.throwIfAborted()
  }
  marks.seal()
  const walk = new Walk(parts, marks, signal)
  yield { type: 'progress', phase: 'roots', done: 0, total: 0 }
  await walk.reachRoots()
  const { nodeChunks } = await parts.index.totals()
  for (let pack = walk.nextPack(); pack !== undefined; pack = walk.nextPack()) {
    await walk.expandPack(pack)
    yield { type: 'progress', phase: 'mark', done: Math.min(walk.nodes, nodeChunks), total: nodeChunks }
    // References to data are looked up when they are many; those to nodes must be, before nothing seems left to expand.
    if (walk.nextPack() === undefined) await walk.settle()
  }
  await walk.settle()
  await walk.keepPinned()
  return { marks, brokenNodes: walk.brokenNodes, snapshots: walk.snapshots, nodes: walk.nodes, references: walk.references }
}

/** Nodes to expand in packs that are not part of the collection: few, as few as were pushed since it began. */
class NewNodes {
  readonly #seen = new Set<number>()
  readonly #toExpand = new Map<number, number[]>()
  add(packNumber: number, entry: number): void {
    const position = positionOf(packNumber, entry)
    if (this.#seen.has(position)) return
    this.#seen.add(position)
    const entries = this.#toExpand.get(packNumber)
    if (entries === undefined) this.#toExpand.set(packNumber, [entry])
    else entries.push(entry)
  }
  nextPack(): PackNumber | undefined { return this.#toExpand.keys().next().value as PackNumber | undefined }
  takeToExpand(packNumber: number): number[] {
    const entries = this.#toExpand.get(packNumber) ?? []
    this.#toExpand.delete(packNumber)
    return entries.sort((a, b) => a - b)
  }
}

class Walk {
  nodes = 0
  references = 0
  brokenNodes = 0
  snapshots = 0
  readonly #batch: ReferenceBatch
  /** In packs that came after the beginning: an old node that was lost, and pushed again meanwhile. */
  readonly #newNodes = new NewNodes()

  constructor(readonly parts: RepositoryParts, readonly marks: MarkSet, readonly signal: AbortSignal) {
    this.#batch = new ReferenceBatch(parts.index, {
      found: (kind, number, entry, rawBytes) => { if (!marks.reach(number, entry, rawBytes) && kind === CHUNK_KINDS.node) this.#newNodes.add(number, entry) },
      absent: (kind) => { if (kind === CHUNK_KINDS.node) this.brokenNodes++ },
    }, signal)
  }

  async reachRoots(): Promise<void> {
    for await (const row of everySnapshot(this.parts.index)) {
      this.snapshots++
      await this.#batch.add(CHUNK_KINDS.node, parseChunkId(parseRecord(row).root), 0)
    }
    await this.#batch.settle()
    const { node } = CHUNK_KINDS
    for await (const { packNumber, inherited } of this.#pins()) {
      const { kind } = await this.parts.index.getPack(packNumber) ?? {}
      for (let entry = 0; entry < inherited.length * 8; entry++)
        if (hasBit(inherited, entry) && !this.marks.reach(packNumber, entry, 0) && kind === node) this.#newNodes.add(packNumber, entry)
    }
  }
  /** What is pinned, and not inherited, is kept for itself: a session must pin all else that it needs. So a dead node that a push was told of may lack
   *  what it refers to without anything being damaged. */
  async keepPinned(): Promise<void> {
    for await (const { packNumber, pinned } of this.#pins())
      for (let entry = 0; entry < pinned.length * 8; entry++) if (hasBit(pinned, entry)) this.marks.keep(packNumber, entry)
  }
  async *#pins(): AsyncGenerator<PackPinned, void, undefined> {
    for (let after: PinCursor | undefined; ;) {
      const { pins, next } = await this.parts.index.listPins(after, PINS_PER_PAGE)
      yield* pins
      if (next === undefined) return
      after = next
      this.signal.throwIfAborted()
    }
  }
  nextPack(): PackNumber | undefined { return this.marks.nextPack() ?? this.#newNodes.nextPack() }

  /** Follows the references of every node of the pack that was reached and not expanded. */
  async expandPack(number: PackNumber): Promise<void> {
    const { parts, signal } = this
    const wanted = this.marks.covers(number) ? this.marks.takeToExpand(number) : this.#newNodes.takeToExpand(number)
    const entries = await entriesOf(parts, number, signal)
    if (entries === undefined) {
      this.brokenNodes += wanted.length
      return
    }
    const locations = locationsIn({ packNumber: number, kind: CHUNK_KINDS.node }, entries)
    for await (const { bytes, rows } of parts.reader.blocks(locations, wanted, signal)) {
      for (const row of rows) {
        const node = bytes === undefined ? undefined : nodeAt(parts, bytes, entries, row)
        if (node === undefined) { this.brokenNodes++; continue }
        const { refs } = node
        this.nodes++
        this.references += refs.count
        await this.#batch.addPacked(refs.packed)
      }
      signal.throwIfAborted()
    }
    await this.#batch.settleNodes()
  }
  settle(): Promise<void> { return this.#batch.settle() }
}

function nodeAt({ keys }: RepositoryParts, block: Buffer, entries: PackEntries, entry: number): ReturnType<typeof decodeNode> | undefined {
  const id = entries.idProofs.subarray(entry * ID_PROOF_BYTES, entry * ID_PROOF_BYTES + CHUNK_ID_BYTES)
  try {
    return decodeNode(chunkInBlock(block, { offset: entries.offsetsInBlock[entry]!, rawBytes: entries.rawBytes[entry]! }, keys.dedupKey, CHUNK_KINDS.node, id))
  } catch (error) {
    // Not what its id stands for, or no node at all: its references are not known.
    if (error instanceof RoostError) return undefined
    throw error
  }
}
