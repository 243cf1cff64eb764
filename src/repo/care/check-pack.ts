/** Checks one pack wherever it should be: its trailer against the index, and, when its bytes are to be read, every block, id and proof, and its name.
 *
 *  Every place is asked. The first whole copy is held against the index, chunk by chunk when its bytes are read; other copies must have the same bytes.
 *  A copy that is missing or damaged where another is whole is forgotten by the index, so that it is written anew; a pack that is whole nowhere goes to the
 *  mender. A pack that moved or left the index meanwhile (an upload, a collection) is no problem.
 */
import { hasCode, RoostError } from '../../core/errors.js'
import { hashChunk, streamingDigest } from '../../core/hash.js'
import { CHUNK_ID_BYTES, ID_PROOF_BYTES } from '../../core/ids.js'
import type { MaintenanceEvent } from '../../core/messages.js'
import type { RateLimiter } from '../../core/rate-limit.js'
import { ENTRY_STATES, type PackEntries, type PackRow } from '../../index/chunk-index.js'
import { packKey } from '../layout.js'
import { PACK_HEADER_BYTES, packCorrupt } from '../pack-format.js'
import { isPackDamage, packSources, type PackSource } from '../pack-sources.js'
import { readPackSelf, type PackSelf } from '../read-trailer.js'
import type { RepositoryParts } from '../repository-parts.js'
import { isWholeOn } from '../targets/copy-pack.js'

export type Problem = MaintenanceEvent & { type: 'problem' }
export interface PackCheck {
  readonly parts: RepositoryParts
  readonly counts: { packsRead: number; bytesRead: number; lost: number }
  readonly mark: boolean
  readonly limiter: RateLimiter | undefined
  readonly signal: AbortSignal
}
type Note = (error: RoostError, chunk?: string) => void
/** What was found in all places. */
interface Found {
  readonly problems: Problem[]
  readonly badPlaces: PackSource[]
  isWholeSomewhere: boolean
  /** Entries of the whole copy that the index lacks though it should not: reading them all proved them. */
  comesBack: PackEntries | undefined
}

export async function* checkPack(check: PackCheck, listed: PackRow, readData: boolean): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const { parts, mark, signal } = check
  let row = listed
  let found = await lookEverywhere(check, row, readData)
  // It left the spool for its targets, or changed places, while it was looked at: the row of before says nothing any more.
  for (let turn = 0; found.problems.length > 0 && turn < 3; turn++) {
    const now = await parts.index.getPack(row.packNumber)
    if (now === undefined) return
    if (now.heldBy === row.heldBy && now.state === row.state) break
    row = now
    found = await lookEverywhere(check, row, readData)
  }
  if (found.problems.length > 0 && await parts.index.getPack(row.packNumber) === undefined) return
  if (found.isWholeSomewhere) {
    if (mark) await forgetCopies(parts, row, found.badPlaces)
    yield* found.problems
    if (mark && found.comesBack !== undefined && await parts.index.reviveEntries(row.packNumber, found.comesBack) > 0)
      yield { type: 'healed', object: `lost chunks of pack ${row.packId}`, target: 'index', from: 'the pack' }
    if (readData && found.problems.length === 0) await parts.index.noteVerified(row.packNumber, parts.clock.now())
    return
  }
  const mended = mark ? await parts.mender.mend(row.packNumber, signal) : { outcome: 'unknown' as const }
  if (mended.outcome === 'gone' || mended.outcome === 'waiting' || mended.outcome === 'unneeded') return
  // Known damage is told by the snapshots that need it; when none does, it is forgotten, and the pack goes with the next check.
  if (mended.outcome === 'mended' && mended.fresh + mended.moved === 0) return
  yield* found.problems
  // In a place that the index did not know of.
  if (mended.outcome === 'whole') await forgetCopies(parts, row, found.badPlaces)
  if (mended.outcome !== 'mended') return
  check.counts.lost += mended.fresh
  yield { type: 'mended', pack: row.packId, lost: mended.lost, moved: mended.moved }
}

async function forgetCopies(parts: RepositoryParts, row: PackRow, places: readonly PackSource[]): Promise<void> {
  for (const { target } of places) {
    if (target === undefined || parts.targets.all.length === 1) continue
    await parts.targets.place(row.packNumber, { remove: target.bit })
    target.damagedPacks++
  }
}

async function lookEverywhere(check: PackCheck, row: PackRow, readData: boolean): Promise<Found> {
  const { parts, counts, limiter, signal } = check
  const found: Found = { problems: [], badPlaces: [], isWholeSomewhere: false, comesBack: undefined }
  const hasSeveral = parts.targets.all.length > 1
  for (const source of placesOf(parts, row)) {
    const problems: Problem[] = []
    const note: Note = (error, chunk) => {
      problems.push({ type: 'problem', code: error.code, message: error.message, pack: row.packId, ...(chunk === undefined ? {} : { chunk }),
        ...(hasSeveral && source.target !== undefined ? { target: source.target.name } : {}) })
    }
    try {
      await requireLength(row, source, signal)
      const self = await readPackSelf(row.storedBytes, (range) => source.read(range, signal), parts.keys.packKey, parts.repositoryId)
      const states = await compareWithIndex(parts, row, self, note)
      if (readData) {
        // Chunks are opened once: further copies need only have the same bytes.
        if (!found.isWholeSomewhere) await readWholePack(check, row, source, self, states, note)
        else if (source.target !== undefined) {
          await limiter?.take(row.storedBytes, signal)
          if (!await isWholeOn(source.target, row, signal)) throw packCorrupt('its bytes do not match its name', 0)
        }
        counts.packsRead++
        counts.bytesRead += row.storedBytes
        if (problems.length === 0 && states.some((state) => state === ENTRY_STATES.lost || state === ENTRY_STATES.spare)) found.comesBack = self.trailer.entries
      }
    } catch (error) {
      if (!isPackDamage(error) && !hasCode(error, 'INDEX_CORRUPT')) throw error
      note(error)
    }
    // A pack that does not say what the index says may be another one in its place.
    if (problems.length > 0 && source.target !== undefined && problems.every(({ code }) => code === 'INDEX_CORRUPT') && !await isWholeOn(source.target, row, signal)) {
      problems.length = 0
      note(packCorrupt('its bytes do not match its name', 0))
    }
    found.problems.push(...problems)
    if (problems.some(({ code }) => code !== 'INDEX_CORRUPT')) found.badPlaces.push(source)
    else found.isWholeSomewhere = true
  }
  return found
}

/** Where it should be; when that is nowhere, wherever it might be. */
function placesOf(parts: RepositoryParts, row: PackRow): PackSource[] {
  const sources = packSources(row, parts)
  const known = sources.filter(({ target }) => target === undefined || (row.heldBy & target.bit) !== 0)
  return known.length > 0 ? known : sources
}
async function requireLength(row: PackRow, { target }: PackSource, signal: AbortSignal): Promise<void> {
  if (target === undefined) return
  const facts = await target.use((store) => store.head(packKey(row.packId), { signal }))
  if (facts === undefined) throw new RoostError('CHUNK_MISSING', 'A pack that the index names is not on its target.', { pack: row.packId })
  if (facts.bytes !== row.storedBytes) throw packCorrupt(`it has ${facts.bytes} bytes instead of ${row.storedBytes}`, 0)
}
/** Every entry must be known to the index: live here, passed over for another pack's, or lost. */
async function compareWithIndex(parts: RepositoryParts, row: PackRow, self: PackSelf, note: Note): Promise<Uint8Array> {
  const { entries } = self.trailer
  if (entries.count !== row.entryCount || self.header.kind !== row.kind)
    throw new RoostError('INDEX_CORRUPT', 'The index and a pack disagree about what the pack holds; run `roost rebuild`.', { pack: row.packId })
  const states = await parts.index.inspectEntries(row.packNumber, entries)
  states.forEach((state, entry) => {
    if (state === ENTRY_STATES.absent || state === ENTRY_STATES.differs)
      note(new RoostError('INDEX_CORRUPT', 'The index and a pack disagree about a chunk; run `roost rebuild`.'), idOf(entries, entry).toString('hex'))
  })
  return states
}
/** Nobody reads them here. */
const UNUSED: ReadonlySet<number> = new Set([ENTRY_STATES.elsewhere, ENTRY_STATES.superseded, ENTRY_STATES.unneeded])
const idOf = (entries: PackEntries, entry: number): Buffer => entries.idProofs.subarray(entry * ID_PROOF_BYTES, entry * ID_PROOF_BYTES + CHUNK_ID_BYTES)

/** Streams the pack once: its name from all bytes, every block opened, every id and proof recomputed. What is wrong with a chunk that nobody reads
 *  here is told by the name alone. */
async function readWholePack(check: PackCheck, row: PackRow, source: PackSource, self: PackSelf, states: Uint8Array, note: Note): Promise<void> {
  const { parts, limiter, signal } = check
  const digest = streamingDigest()
  digest.update(self.secret.header)
  const { blocks, entries } = self.trailer
  const isUsed = (entry: number): boolean => !UNUSED.has(states[entry]!)
  const read = async (offset: number, bytes: number): Promise<Buffer> => {
    await limiter?.take(bytes, signal)
    return await source.read({ offset, bytes }, signal)
  }
  let offset = PACK_HEADER_BYTES, entry = 0
  for (const block of blocks) {
    const sealed = await read(offset, block.storedBytes)
    digest.update(sealed)
    const first = entry
    entry += block.entryCount
    try {
      const plain = await parts.pool.decode(parts.keys.packKey, self.secret.header, offset, Buffer.from(new Uint8Array(sealed).buffer))
      for (let i = first; i < entry; i++) {
        const bytes = plain.subarray(entries.offsetsInBlock[i], entries.offsetsInBlock[i]! + entries.rawBytes[i]!)
        if (!hashChunk(parts.keys.dedupKey, bytes, row.kind).equals(entries.idProofs.subarray(i * ID_PROOF_BYTES, (i + 1) * ID_PROOF_BYTES)) && isUsed(i))
          note(new RoostError('CHUNK_CORRUPT', 'A chunk does not match its id and proof.'), idOf(entries, i).toString('hex'))
      }
    } catch (error) {
      if (!hasCode(error, 'PACK_CORRUPT')) throw error
      note(error)
    }
    offset += block.storedBytes
  }
  digest.update(await read(offset, row.storedBytes - offset))
  if (digest.hex() !== row.packId) note(packCorrupt('its bytes do not match its name', 0))
}
