/** Verifies a repository while it serves: packs against the index on every target, (a share of) all bytes, every entry of the index, and snapshots with
 *  their trees (docs/scrub.md).
 *
 *  Reports, and marks what is whole nowhere, so that clients bring it again; with `heal` it then writes damaged and missing copies anew from whole ones, and
 *  says which. Unreachable is not damaged: STORE_UNAVAILABLE ends the check with a failure instead of a verdict.
 */
import { RoostError } from '../core/errors.js'
import { parseChunkId, parsePackId } from '../core/ids.js'
import type { CheckOptions, MaintenanceEvent } from '../core/messages.js'
import { rateLimiter } from '../core/rate-limit.js'
import type { PackRow, SnapshotRow } from '../index/chunk-index.js'
import { checkEntries } from './care/check-entries.js'
import { checkPack, type PackCheck, type Problem } from './care/check-pack.js'
import { walkForDamage, type Lacking } from './care/damage-walk.js'
import { readNode } from './care/snapshot-judge.js'
import { packsToRead } from './care/scrub-order.js'
import { everySnapshot } from './every-snapshot.js'
import { readSnapshot } from './read-snapshot.js'
import type { RepositoryParts } from './repository-parts.js'
import { parseRecord } from './snapshot-format.js'
import { checkSmallObjects } from './check-small-objects.js'
import { watchRun } from './targets/catch-up.js'
import { isWholeOn } from './targets/copy-pack.js'
import { PlaceSet } from './verify-tree.js'

const PAGE = 500
const CHUNKS_PER_LINE = 500
const READ_ALL = 100

export async function* checkRepository(parts: RepositoryParts, options: CheckOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const counts = { packs: 0, packsRead: 0, chunks: 0, snapshots: 0, nodes: 0, bytesRead: 0, healed: 0, lost: 0 }
  const { heal = false, mark = true } = options
  const hasSeveral = parts.targets.all.length > 1
  const tally = new Tally(counts)
  const limiter = options.bytesPerSecondMax === undefined ? undefined : rateLimiter(options.bytesPerSecondMax, parts.clock)
  const check: PackCheck = { parts, counts, mark, limiter, signal }
  for await (const event of checkPacks(check, options)) yield tally.note(event)
  for (const entries = checkEntries(parts, mark, signal); ;) {
    const step = await entries.next()
    if (step.done === true) { tally.problems += step.value; break }
    yield tally.note(step.value)
  }
  if (hasSeveral || heal) for await (const event of checkSmallObjects(parts, heal, signal)) yield tally.note(event)
  if (heal) {
    for await (const event of healPacks(parts, signal)) yield tally.note(event)
    for await (const event of mendedMeanwhile(parts, tally, signal)) yield tally.note(event)
    await tally.settle(parts)
  }
  for await (const event of checkSnapshots(check)) yield tally.note(event)
  await parts.index.flush()
  yield { type: 'done', problems: tally.total, counts }
}

/** What is wrong at the end: copies found bad and healed again do not count. */
class Tally {
  /** Pack and target → what to ask for. */
  readonly #badCopies = new Map<string, { readonly pack: string; readonly target: string }>()
  problems = 0
  constructor(readonly counts: { healed: number }) {}
  hasBad(packId?: string, target?: string): boolean { return packId === undefined ? this.#badCopies.size > 0 : this.#badCopies.has(`pack ${packId}@${target}`) }
  get total(): number { return this.problems + this.#badCopies.size }
  note(event: MaintenanceEvent): MaintenanceEvent {
    if (event.type === 'problem') {
      if (event.pack !== undefined && event.target !== undefined) this.#badCopies.set(`pack ${event.pack}@${event.target}`, { pack: event.pack, target: event.target })
      else this.problems++
    } else if (event.type === 'healed') {
      this.counts.healed++
      if (event.object.startsWith('pack')) this.#badCopies.delete(`${event.object}@${event.target}`)
      else if (event.target !== 'index') this.problems--
    }
    return event
  }
  /** Another catching-up, which a read that stumbled had begun, may have mended some of them. */
  async settle({ index, targets }: RepositoryParts): Promise<void> {
    for (const [key, { pack, target }] of this.#badCopies)
      if ((((await index.findPack(parsePackId(pack)))?.heldBy ?? 0) & (targets.all.find(({ name }) => name === target)?.bit ?? 0)) !== 0) this.#badCopies.delete(key)
  }
}

/** When all bytes are to be read, reading a pack is also its check; else every pack is looked at first. */
async function* checkPacks(check: PackCheck, { readDataPercent, maxDurationMs }: CheckOptions): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const { parts, signal } = check
  const counts = check.counts as PackCheck['counts'] & { packs: number; chunks: number }
  const { packs, storedBytes } = await parts.index.totals()
  const isFull = readDataPercent >= READ_ALL && maxDurationMs === undefined
  const startedMs = parts.clock.monotonicMs()
  const wrong = new Set<number>()
  if (!isFull) for await (const row of allPacks(parts)) {
    signal.throwIfAborted()
    counts.packs++
    counts.chunks += row.entryCount
    for await (const event of checkPack(check, row, false)) {
      wrong.add(row.packNumber)
      yield event
    }
    if (counts.packs % 8 === 0 || counts.packs === packs) yield { type: 'progress', phase: 'packs', done: counts.packs, total: Math.max(packs, counts.packs) }
  }
  const totalBytes = Math.ceil(storedBytes * Math.min(readDataPercent, READ_ALL) / READ_ALL)
  let doneBytes = 0
  for await (const row of packsToRead(parts.index, readDataPercent, storedBytes)) {
    signal.throwIfAborted()
    if (maxDurationMs !== undefined && parts.clock.monotonicMs() - startedMs >= maxDurationMs) break
    if (isFull) {
      counts.packs++
      counts.chunks += row.entryCount
    }
    if (!wrong.has(row.packNumber)) yield* checkPack(check, row, true)
    doneBytes += row.storedBytes
    yield { type: 'progress', phase: 'data', done: doneBytes, total: Math.max(doneBytes, totalBytes) }
  }
}

/** Copies that the check found bad are not in the index any more: catching up brings them back. Packs that were merely behind come too, and
 *  are no problem that was solved. */
async function* healPacks(parts: RepositoryParts, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  for (const target of parts.targets.active) {
    if (target.damagedPacks === 0 && !await parts.catchUp.isBehind(target)) continue
    for await (const event of watchRun(parts.catchUp.start(target), 'heal', signal))
      if (event.type === 'healed' || event.type === 'progress') yield event
  }
}

/** A copy that was found bad, and that reads or the background's catching up wrote anew before the healing came to it. */
async function* mendedMeanwhile(parts: RepositoryParts, tally: Tally, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  if (tally.hasBad()) for await (const row of allPacks(parts)) for (const target of parts.targets.active)
    if ((row.heldBy & target.bit) !== 0 && tally.hasBad(row.packId, target.name) && await isWholeOn(target, row, signal)) yield { type: 'healed', object: `pack ${row.packId}`, target: target.name,
      from: parts.targets.all.find((one) => one !== target && (row.heldBy & one.bit) !== 0)?.name ?? 'the spool' }
}

async function* allPacks(parts: RepositoryParts): AsyncIterable<PackRow> {
  for (let after = 0; ;) {
    const rows = await parts.index.listPacks(after, PAGE)
    if (rows.length === 0) return
    yield* rows
    after = rows.at(-1)!.packNumber
  }
}

/** Every snapshot's record and tree. One that lacks nothing is whole as far as is known; when all are, nothing needs what is damaged. */
async function* checkSnapshots(check: PackCheck): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const { parts, mark } = check
  const { index } = parts
  const counts = check.counts as PackCheck['counts'] & { snapshots: number; nodes: number }
  const { snapshots: total } = await index.totals()
  const start = await index.damageState()
  const whole = new PlaceSet()
  let areAllWhole = true
  for await (const row of everySnapshot(index)) {
    const { snapshotId, source, receivedAtMs } = row
    counts.snapshots++
    const problemOf = (error: RoostError): Problem => ({ type: 'problem', code: error.code, message: error.message, snapshot: snapshotId, source, receivedAtMs })
    const { generation } = await index.damageState()
    // Between changes of it: one that is being deleted has lost its object before its row.
    const signed = await parts.snapshotLocks.run(snapshotId, async () =>
      await index.getSnapshot(snapshotId) === undefined || parts.spooledSnapshots.has(snapshotId) ? undefined : await readSnapshot(parts, snapshotId))
    const lacking = await lackingOf(check, row, whole, counts)
    if (await index.getSnapshot(snapshotId) === undefined) continue // deleted meanwhile: nobody promises its chunks any more
    if (signed instanceof RoostError) yield problemOf(signed)
    if (lacking instanceof RoostError) {
      areAllWhole = false
      yield problemOf(lacking)
    } else if (lacking.count > 0) {
      areAllWhole = false
      if (mark) check.counts.lost += await index.markDamaged(0, Buffer.concat(lacking.ids))
      yield problemOf(new RoostError('CHUNK_MISSING', `A snapshot lacks ${lacking.count} of the chunks that it needs: they are damaged or missing.`))
      for (let at = 0; at < lacking.ids.length; at += CHUNKS_PER_LINE)
        yield { type: 'lacking', snapshot: snapshotId, chunks: lacking.ids.slice(at, at + CHUNKS_PER_LINE).map((id) => id.toString('hex')) }
    } else if (start.chunks > 0) await index.noteWhole(snapshotId, generation)
    yield { type: 'progress', phase: 'snapshots', done: counts.snapshots, total: Math.max(total, counts.snapshots) }
  }
  if (mark && areAllWhole && start.chunks > 0) await index.forgetDamage(start.generation)
}

async function lackingOf({ parts, mark, signal }: PackCheck, row: SnapshotRow, whole: PlaceSet, counts: { nodes: number }): Promise<Lacking | RoostError> {
  const { index, reader, mender } = parts
  const read = async (id: Buffer): Promise<Buffer | undefined> => {
    const bytes = await readNode(reader, id, signal)
    if (bytes !== undefined || !mark) return bytes
    // It is marked before the snapshot is judged; or its pack moved, and it is there after all.
    const { packNumbers } = await index.locate(id)
    if (packNumbers[0] === 0) return undefined
    await mender.mend(packNumbers[0] as PackRow['packNumber'], signal)
    return (await index.locate(id)).packNumbers[0] === 0 ? undefined : await readNode(reader, id, signal)
  }
  try {
    return await walkForDamage({ index, whole, readNode: read, onNode: () => { counts.nodes++ }, signal }, parseChunkId(parseRecord(row).root))
  } catch (error) {
    if (!(error instanceof RoostError) || signal.aborted || error.code === 'STORE_UNAVAILABLE' || error.code === 'STORE_REFUSED') throw error
    return error
  }
}
