/** Marks everything that a snapshot or a session needs (docs/gc.md G2, G3): from roots over the references of nodes, in bounded memory.
 *
 *  Order matters: the collection has begun, then the packs are listed, then snapshots, then pins, those held for it last. Whatever slips from one
 *  list into the next while they are read is found in the later one.
 *  References are gathered and looked up many at once in the order of ids, as the index lies on disk; between slices others have their turn.
 */
import { setImmediate } from 'node:timers/promises'
import { RoostError } from '../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, parseChunkId, type PackNumber } from '../core/ids.js'
import type { MaintenanceEvent } from '../core/messages.js'
import { decodeNode } from '../core/node-format.js'
import type { PackEntries, PinCursor } from '../index/chunk-index.js'
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
  await walk.reachSnapshots()
  yield* expandAll(walk, marks, parts)
  await walk.reachPins()
  yield* expandAll(walk, marks, parts)
  return { marks, brokenNodes: walk.brokenNodes, snapshots: walk.snapshots, nodes: walk.nodes, references: walk.references }
}
async function* expandAll(walk: Walk, marks: MarkSet, { index }: RepositoryParts): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const { nodeChunks } = await index.totals()
  for (let pack = marks.nextPack(); pack !== undefined; pack = marks.nextPack()) {
    await walk.expandPack(pack)
    yield { type: 'progress', phase: 'mark', done: Math.min(walk.nodes, nodeChunks), total: nodeChunks }
    // References to data are looked up when they are many; those to nodes must be, before nothing seems left to expand.
    if (marks.nextPack() === undefined) await walk.settle()
  }
  await walk.settle()
}

class Walk {
  nodes = 0
  references = 0
  /** Of snapshots. */
  brokenNodes = 0
  snapshots = 0
  #isOfSnapshots = true
  readonly #batch: ReferenceBatch

  constructor(readonly parts: RepositoryParts, readonly marks: MarkSet, readonly signal: AbortSignal) {
    this.#batch = new ReferenceBatch(parts.index, {
      found: (kind, number, entry, rawBytes) => { marks.reach(number, entry, rawBytes) },
      absent: (kind) => { if (kind === CHUNK_KINDS.node) this.#noteBroken(1) },
    }, signal)
  }

  #noteBroken(nodes: number): void { if (this.#isOfSnapshots) this.brokenNodes += nodes }

  async reachSnapshots(): Promise<void> {
    for await (const row of everySnapshot(this.parts.index)) {
      this.snapshots++
      await this.#batch.add(CHUNK_KINDS.node, parseChunkId(parseRecord(row).root), 0)
    }
    await this.#batch.settle()
  }
  /** After everything of the snapshots was expanded. What only sessions reach may be incomplete and nothing is wrong: a client sends a node before
   *  its children, or found one present that nobody needed any more; its commit asks for all that it lists. */
  async reachPins(): Promise<void> {
    this.#isOfSnapshots = false
    for (let after: PinCursor | undefined; ;) {
      const { pins, next } = await this.parts.index.listPins(after, PINS_PER_PAGE)
      for (const { packNumber, pinned } of pins)
        for (let entry = 0; entry < pinned.length * 8; entry++)
          if (hasBit(pinned, entry) && this.marks.covers(packNumber)) this.marks.reach(packNumber, entry, 0)
      if (next === undefined) return
      after = next
      this.signal.throwIfAborted()
    }
  }

  /** Follows the references of every node of the pack that was reached and not expanded. */
  async expandPack(number: PackNumber): Promise<void> {
    const { parts, signal } = this
    const wanted = this.marks.takeToExpand(number)
    const entries = await entriesOf(parts, number, signal)
    if (entries === undefined) {
      this.#noteBroken(wanted.length)
      return
    }
    const locations = locationsIn({ packNumber: number, kind: CHUNK_KINDS.node }, entries)
    for await (const { bytes, rows } of parts.reader.blocks(locations, wanted, signal)) {
      for (const row of rows) {
        const node = bytes === undefined ? undefined : nodeAt(parts, bytes, entries, row)
        if (node === undefined) { this.#noteBroken(1); continue }
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
