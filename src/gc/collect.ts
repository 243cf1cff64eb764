/** Collects garbage while clients push and restore (docs/gc.md). Top-down: begin, mark, plan, drop, repack, delete, end.
 *
 *  A dry run marks and plans, and prints. A run that is cut at any step leaves a whole repository: what was condemned is doomed in the index and
 *  deleted later, what was copied and not switched is garbage of the next run, and marks are made anew.
 */
import { orAborted } from '../core/concurrency.js'
import { CHUNK_KINDS, type PackNumber } from '../core/ids.js'
import { RoostError } from '../core/errors.js'
import type { CollectOptions, MaintenanceEvent } from '../core/messages.js'
import { rateLimiter } from '../core/rate-limit.js'
import type { CondemnResult, PackRow } from '../index/chunk-index.js'
import type { RepositoryParts } from '../repo/repository-parts.js'
import { rebuildNeeded } from '../repo/sessions.js'
import { maskOf } from '../repo/targets/target-set.js'
import { markReachable, type MarkResult } from './mark.js'
import type { MarkSet } from './mark-set.js'
import { entriesByIndex, entriesOf } from './pack-entries.js'
import { judge, liveShare, PLAN_DEFAULTS, type PackFacts, type PlanPolicy, SmallPackCounter, type SmallPacks, type Verdict } from './plan.js'
import { Repacker, type RepackResult } from './repack.js'

const ROWS_PER_PAGE = 500

interface Counts {
  packs: number; chunks: number; chunksReached: number; nodesRead: number; references: number; snapshots: number; brokenNodes: number; memoryBytes: number
  packsDropped: number; packsRepacked: number; packsKept: number; packsNeeded: number; packsSkipped: number
  droppedBytes: number; repackedBytes: number; copiedBytes: number; objectsDeleted: number; deletionsRefused: number; packsDoomed: number
}

/** @throws {RoostError} INDEX_REBUILD_NEEDED; STORE_UNAVAILABLE; CHUNK_MISSING when nodes are damaged (unless that is accepted) */
export async function* collectGarbage(parts: RepositoryParts, options: CollectOptions, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  await requireReady(parts)
  const { index } = parts
  const epoch = options.dryRun === true ? undefined : await index.beginCollection() // G1
  try {
    const marked = yield* markReachable(parts, signal) // G2, G3
    requireWhole(marked, options)
    if (epoch !== undefined) await parts.lineage.advance(index) // an older index relies on what is deleted from here on
    yield* new Collection(parts, options, marked, signal).run(epoch)
  } finally {
    // G9. After an abort the repository may be closed already: the next opening of its index ends the collection.
    if (epoch !== undefined) await index.endCollection(epoch).catch((error: unknown) => { if (!signal.aborted) throw error })
  }
}

async function requireReady({ index, name, pending }: RepositoryParts): Promise<void> {
  if (!await index.isComplete()) throw rebuildNeeded(name)
  // Snapshots may lie on a target that the index does not know of yet.
  if (pending.recovery !== undefined)
    throw new RoostError('STORE_UNAVAILABLE', 'A target could not be asked since the start what it holds; nothing is collected before that.')
}
function requireWhole({ brokenNodes }: MarkResult, { acceptDamage }: CollectOptions): void {
  if (brokenNodes === 0 || acceptDamage === true) return
  throw new RoostError('CHUNK_MISSING', `${brokenNodes} nodes of snapshots are missing or damaged: what lies below them is not known, and could be taken for garbage. ` +
    'Run `roost check --heal`, back up their sources again or forget the snapshots that it names; or collect all the same with --accept-damage.', { nodes: brokenNodes })
}

class Collection {
  readonly #counts: Counts
  readonly #policy: PlanPolicy
  readonly #marks: MarkSet
  #small: SmallPacks = {}

  constructor(readonly parts: RepositoryParts, readonly options: CollectOptions, marked: MarkResult, readonly signal: AbortSignal) {
    const { marks, brokenNodes, nodes, references, snapshots } = marked
    this.#marks = marks
    this.#policy = { ...PLAN_DEFAULTS, ...(options.repackBelow === undefined ? {} : { repackBelow: options.repackBelow }) }
    this.#counts = { packs: marks.packs, chunks: marks.chunks, chunksReached: 0, nodesRead: nodes, references, snapshots, brokenNodes, memoryBytes: marks.memoryBytes,
      packsDropped: 0, packsRepacked: 0, packsKept: 0, packsNeeded: 0, packsSkipped: 0, droppedBytes: 0, repackedBytes: 0, copiedBytes: 0, objectsDeleted: 0,
      deletionsRefused: 0, packsDoomed: 0 }
  }

  async *run(epoch: number | undefined): AsyncGenerator<MaintenanceEvent, void, undefined> {
    const counts = this.#counts
    this.#small = await this.#countSmall()
    if (epoch === undefined) {
      for await (const verdict of this.#verdicts()) {
        this.#note(verdict)
        yield fateOf(verdict)
      }
    } else {
      yield* this.#drop(epoch) // G5
      yield* this.#repack(epoch) // G6
      yield* this.#delete() // G8
    }
    counts.packsDoomed = (await this.parts.index.totals()).doomedPacks
    yield { type: 'done', problems: counts.brokenNodes, counts: { ...counts } }
  }

  async #countSmall(): Promise<SmallPacks> {
    const counter = new SmallPackCounter(this.#policy)
    for await (const pack of this.#everyFacts()) counter.add(pack)
    return counter.counts
  }
  async *#everyFacts(): AsyncGenerator<PackFacts, void, undefined> {
    for (let after = 0; ;) {
      const rows = await this.parts.index.listPacks(after, ROWS_PER_PAGE)
      if (rows.length === 0) return
      after = rows.at(-1)!.packNumber
      this.signal.throwIfAborted()
      for (const row of rows) yield this.#factsOf(row)
    }
  }
  #factsOf(row: PackRow): PackFacts {
    const { packNumber, packId, kind, storedBytes, rawBytes, entryCount } = row
    const reached = this.#marks.reachedOf(packNumber)
    const held = !this.#marks.covers(packNumber) ? 'it came after the collection began'
      : row.state === 'spooled' || this.parts.uploads.isWaiting(packNumber) ? 'it is on its way to its targets' : undefined
    return { packNumber, packId, kind, storedBytes, rawBytes, entryCount, liveEntries: reached.entries, liveRawBytes: reached.rawBytes, ...(held === undefined ? {} : { held }) }
  }
  async *#verdicts(): AsyncGenerator<Verdict, void, undefined> {
    for await (const pack of this.#everyFacts()) yield judge(pack, this.#policy, this.#small)
  }
  #note({ pack, fate }: Verdict): void {
    const counts = this.#counts
    counts.chunksReached += pack.liveEntries
    if (fate === 'keep') counts.packsKept++
    else if (fate === 'drop') { counts.packsDropped++; counts.droppedBytes += pack.storedBytes }
    else { counts.packsRepacked++; counts.repackedBytes += pack.storedBytes }
  }

  async *#drop(epoch: number): AsyncGenerator<MaintenanceEvent, void, undefined> {
    let done = 0
    for await (const verdict of this.#verdicts()) {
      if (++done % ROWS_PER_PAGE === 0) yield { type: 'progress', phase: 'sweep', done, total: this.#counts.packs }
      this.#counts.chunksReached += verdict.pack.liveEntries
      if (verdict.fate === 'keep') this.#counts.packsKept++
      if (verdict.fate !== 'drop') continue
      yield fateOf(verdict)
      const result = await this.#condemn(epoch, verdict.pack.packNumber)
      if (result === 'condemned') { this.#counts.packsDropped++; this.#counts.droppedBytes += verdict.pack.storedBytes }
      else this.#noteStaying(result)
    }
    yield { type: 'progress', phase: 'sweep', done, total: done }
  }
  async #condemn(epoch: number, packNumber: PackNumber): Promise<CondemnResult | 'busy'> {
    const { index, claims, targets } = this.parts
    const release = claims.claimForRemoval(packNumber)
    if (release === undefined) return 'busy'
    try {
      const row = await index.getPack(packNumber)
      if (row === undefined) return 'gone'
      const entries = await entriesOf(this.parts, packNumber, this.signal) ?? await entriesByIndex(this.parts, row, this.signal)
      return await targets.removePack(packNumber, () => index.condemnPack({ epoch, packNumber, entries, marked: this.#marks.bitmapOf(packNumber), slots: maskOf(targets.all) }))
    } finally {
      release()
    }
  }
  #noteStaying(result: RepackResult): void {
    if (result === 'needed') this.#counts.packsNeeded++
    else if (result !== 'gone') this.#counts.packsSkipped++
  }

  async *#repack(epoch: number): AsyncGenerator<MaintenanceEvent, void, undefined> {
    const { parts, options, signal } = this
    const limiter = options.bytesPerSecondMax === undefined ? undefined : rateLimiter(options.bytesPerSecondMax, parts.clock)
    const problems: MaintenanceEvent[] = []
    const repacker = new Repacker({ parts, epoch, limiter, signal, bitmapOf: (pack) => this.#marks.bitmapOf(pack), onResult: (row, result) => {
      if (result === 'condemned') { this.#counts.packsRepacked++; this.#counts.repackedBytes += row.storedBytes }
      else this.#noteStaying(result)
      if (result === 'damaged') problems.push({ type: 'problem', code: 'PACK_CORRUPT', message: 'A pack cannot be read whole and was left as it is; run `roost check`.', pack: row.packId })
    } })
    try {
      // Kinds apart: chunks of one pack stay neighbours, and each batch fills packs of one kind.
      for (const kind of [CHUNK_KINDS.node, CHUNK_KINDS.data])
        for await (const verdict of this.#verdicts()) {
          if (verdict.fate !== 'repack' || verdict.pack.kind !== kind) continue
          yield fateOf(verdict)
          await repacker.take(verdict.pack.packNumber)
          yield* problems.splice(0)
          yield { type: 'progress', phase: 'repack', done: repacker.copiedBytes, total: 0 }
        }
      await repacker.settle()
      yield* problems.splice(0)
    } finally {
      repacker.close()
      this.#counts.copiedBytes = repacker.copiedBytes
    }
  }
  async *#delete(): AsyncGenerator<MaintenanceEvent, void, undefined> {
    const { doomedPacks } = await this.parts.index.totals()
    yield { type: 'progress', phase: 'delete', done: 0, total: doomedPacks }
    // Deletions are remembered and go on by themselves: a cancelled run need not wait for a target that hangs.
    const { objects, refused } = await orAborted(this.parts.doomed.deleteAll(), this.signal)
    this.#counts.objectsDeleted = objects
    this.#counts.deletionsRefused = refused
    yield { type: 'progress', phase: 'delete', done: doomedPacks, total: doomedPacks }
  }
}

function fateOf({ pack, fate, reason }: Verdict): MaintenanceEvent {
  return { type: 'fate', pack: pack.packId, kind: pack.kind === CHUNK_KINDS.node ? 'node' : 'data', fate, reason, storedBytes: pack.storedBytes, liveShare: liveShare(pack) }
}
