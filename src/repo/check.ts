/** Verifies a repository while it serves: packs against the index, snapshots and their trees, and (a share of) all bytes, on every target.
 *
 *  Reports; with `heal` it then writes damaged and missing copies anew from whole ones, and says which. Unreachable is not damaged:
 *  STORE_UNAVAILABLE ends the check with a failure instead of a verdict.
 */
import { hasCode, RoostError } from '../core/errors.js'
import { hashChunk, streamingDigest } from '../core/hash.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, parseChunkId } from '../core/ids.js'
import type { MaintenanceEvent } from '../core/messages.js'
import type { NodeRefs } from '../core/node-format.js'
import type { PackRow } from '../index/chunk-index.js'
import { everySnapshot } from './every-snapshot.js'
import { packKey } from './layout.js'
import { openBlock, PACK_HEADER_BYTES, packCorrupt } from './pack-format.js'
import { isPackDamage, packSources, type PackSource } from './pack-sources.js'
import { readPackSelf, type PackSelf } from './read-trailer.js'
import { readSnapshot } from './read-snapshot.js'
import type { CheckOptions } from './repository.js'
import type { RepositoryParts } from './repository-parts.js'
import { parseRecord } from './snapshot-format.js'
import { checkSmallObjects } from './check-small-objects.js'
import { watchRun } from './targets/catch-up.js'
import { isWholeOn } from './targets/copy-pack.js'
import { PlaceSet, walkTree } from './verify-tree.js'

type Problem = MaintenanceEvent & { type: 'problem' }
const PAGE = 500

export async function* checkRepository(parts: RepositoryParts, options: CheckOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const counts = { packs: 0, packsRead: 0, chunks: 0, snapshots: 0, nodes: 0, bytesRead: 0, healed: 0 }
  const heal = options.heal === true
  const hasSeveral = parts.targets.all.length > 1
  /** Copies found bad and not healed; everything else that is wrong counts by itself. */
  const badCopies = new Set<string>()
  let problems = 0
  const note = (event: MaintenanceEvent): MaintenanceEvent => {
    if (event.type === 'problem') {
      if (event.pack !== undefined && event.target !== undefined) badCopies.add(`pack ${event.pack}@${event.target}`)
      else problems++
    } else if (event.type === 'healed') {
      counts.healed++
      if (event.object.startsWith('pack')) badCopies.delete(`${event.object}@${event.target}`)
      else problems--
    }
    return event
  }
  const totals = await parts.index.totals()
  for await (const row of allPacks(parts)) {
    signal.throwIfAborted()
    counts.packs++
    counts.chunks += row.entryCount
    for (const problem of await checkPack(parts, row, sampled(row, options.readDataPercent), counts, signal)) yield note(problem)
    if (counts.packs % 8 === 0 || counts.packs === totals.packs) yield { type: 'progress', phase: 'packs', done: counts.packs, total: totals.packs }
  }
  if (hasSeveral || heal) for await (const event of checkSmallObjects(parts, heal, signal)) yield note(event)
  if (heal) for await (const event of healPacks(parts, signal)) yield note(event)
  let seen = new PlaceSet()
  for await (const { snapshotId } of everySnapshot(parts.index)) {
    counts.snapshots++
    const problem = await checkSnapshot(parts, snapshotId, seen, counts, signal)
    if (problem !== undefined) {
      seen = new PlaceSet() // what was seen below the damage must be walked again for the next snapshot that shares it
      yield note(problem)
    }
    yield { type: 'progress', phase: 'snapshots', done: counts.snapshots, total: totals.snapshots }
  }
  yield { type: 'done', problems: problems + badCopies.size, counts }
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

async function* allPacks(parts: RepositoryParts): AsyncIterable<PackRow> {
  for (let after = 0; ;) {
    const rows = await parts.index.listPacks(after, PAGE)
    if (rows.length === 0) return
    yield* rows
    after = rows.at(-1)!.packNumber
  }
}
/** A stable share of packs: by the first bits of their (uniform) ids. */
const sampled = (row: PackRow, percent: number): boolean => percent >= 100 || parseInt(row.packId.slice(0, 8), 16) % 10_000 < percent * 100

/** Every place that should hold the pack is asked. The first whole copy is held against the index, chunk by chunk when its bytes are read;
 *  other copies must have the same bytes. A copy that is missing or damaged is forgotten by the index, so that it is written anew. */
async function checkPack(parts: RepositoryParts, row: PackRow, readData: boolean, counts: { packsRead: number; bytesRead: number },
  signal: AbortSignal): Promise<Problem[]> {
  const problems: Problem[] = []
  const places = placesOf(parts, row)
  let isCompared = false
  for (const source of places) {
    const note = (error: RoostError, chunk?: string): void => {
      problems.push({ type: 'problem', code: error.code, message: error.message, pack: row.packId, ...(chunk === undefined ? {} : { chunk }),
        ...(parts.targets.all.length > 1 && source.target !== undefined ? { target: source.target.name } : {}) })
    }
    const before = problems.length
    try {
      await requireLength(row, source, signal)
      // Chunks are opened once: further copies need only have the same bytes.
      await checkAgainstIndex(parts, row, source, readData && !isCompared, note, signal)
      if (readData && isCompared && source.target !== undefined && !await isWholeOn(source.target, row, signal)) throw packCorrupt('its bytes do not match its name', 0)
      if (readData) {
        counts.packsRead++
        counts.bytesRead += row.storedBytes
      }
    } catch (error) {
      if (!isPackDamage(error) && !hasCode(error, 'INDEX_CORRUPT')) throw error
      // It left the spool for its targets in this moment: ask those.
      const now = source.target === undefined && hasCode(error, 'CHUNK_MISSING') ? await parts.index.getPack(row.packNumber) : undefined
      if (now !== undefined && now.heldBy !== row.heldBy) return await checkPack(parts, now, readData, counts, signal)
      note(error)
    }
    // A pack that does not say what the index says may be another one in its place.
    if (problems.length > before && source.target !== undefined && problems.slice(before).every(({ code }) => code === 'INDEX_CORRUPT') && !await isWholeOn(source.target, row, signal)) {
      problems.length = before
      note(packCorrupt('its bytes do not match its name', 0))
    }
    const isDamaged = problems.slice(before).some(({ code }) => code !== 'INDEX_CORRUPT')
    if (!isDamaged) isCompared = true
    else if (source.target !== undefined && parts.targets.all.length > 1) {
      await parts.targets.place(row.packNumber, { remove: source.target.bit })
      source.target.damagedPacks++
    }
  }
  return problems
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
async function checkAgainstIndex(parts: RepositoryParts, row: PackRow, source: PackSource, readData: boolean,
  note: (error: RoostError, chunk?: string) => void, signal: AbortSignal): Promise<void> {
  const self = await readPackSelf(row.storedBytes, (range) => source.read(range, signal), parts.keys.packKey, parts.repositoryId)
  await compareWithIndex(parts, row, self, note)
  if (readData) await readWholePack(parts, row, source, self, note, signal)
}
/** Every entry must be found in the index: here, or in another pack that brought the same chunk first. */
async function compareWithIndex(parts: RepositoryParts, row: PackRow, self: PackSelf, note: (error: RoostError, chunk?: string) => void): Promise<void> {
  const { entries } = self.trailer
  if (entries.count !== row.entryCount || self.header.kind !== row.kind)
    throw new RoostError('INDEX_CORRUPT', 'The index and a pack disagree about what the pack holds; run `roost rebuild`.', { pack: row.packId })
  const ids = Buffer.allocUnsafe(entries.count * CHUNK_ID_BYTES)
  for (let i = 0; i < entries.count; i++) entries.idProofs.copy(ids, i * CHUNK_ID_BYTES, i * ID_PROOF_BYTES, i * ID_PROOF_BYTES + CHUNK_ID_BYTES)
  const found = await parts.index.locate(ids)
  for (let i = 0; i < entries.count; i++) {
    const here = found.packNumbers[i] === row.packNumber
    const agrees = found.packNumbers[i] !== 0 && found.rawBytes[i] === entries.rawBytes[i] && (!here || (found.entryNumbers[i] === i &&
      found.blockOffsets[i] === entries.blockOffsets[i] && found.blockStoredBytes[i] === entries.blockStoredBytes[i] &&
      found.offsetsInBlock[i] === entries.offsetsInBlock[i]))
    if (!agrees)
      note(new RoostError('INDEX_CORRUPT', 'The index and a pack disagree about a chunk; run `roost rebuild`.'), ids.toString('hex', i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))
  }
}

/** Streams the pack once: its name from all bytes, every block opened, every id and proof recomputed. */
async function readWholePack(parts: RepositoryParts, row: PackRow, source: PackSource, self: PackSelf, note: (error: RoostError, chunk?: string) => void, signal: AbortSignal): Promise<void> {
  const digest = streamingDigest()
  digest.update(self.secret.header)
  const { blocks, entries } = self.trailer
  let offset = PACK_HEADER_BYTES, entry = 0
  for (const block of blocks) {
    const sealed = await source.read({ offset, bytes: block.storedBytes }, signal)
    digest.update(sealed)
    const first = entry
    entry += block.entryCount
    try {
      const plain = openBlock(self.secret, offset, sealed)
      for (let i = first; i < entry; i++) {
        const bytes = plain.subarray(entries.offsetsInBlock[i], entries.offsetsInBlock[i]! + entries.rawBytes[i]!)
        const idProof = entries.idProofs.subarray(i * ID_PROOF_BYTES, (i + 1) * ID_PROOF_BYTES)
        if (!hashChunk(parts.keys.dedupKey, bytes, row.kind).equals(idProof))
          note(new RoostError('CHUNK_CORRUPT', 'A chunk does not match its id and proof.'), idProof.toString('hex', 0, CHUNK_ID_BYTES))
      }
    } catch (error) {
      if (!hasCode(error, 'PACK_CORRUPT')) throw error
      note(error)
    }
    offset += block.storedBytes
  }
  digest.update(await source.read({ offset, bytes: row.storedBytes - offset }, signal))
  if (digest.hex() !== row.packId) note(packCorrupt('its bytes do not match its name', 0))
}

async function checkSnapshot(parts: RepositoryParts, snapshotId: Parameters<typeof readSnapshot>[1], seen: PlaceSet, counts: { nodes: number },
  signal: AbortSignal): Promise<Problem | undefined> {
  const problemOf = (error: RoostError): Problem => ({ type: 'problem', code: error.code, message: error.message, snapshot: snapshotId })
  const signed = await readSnapshot(parts, snapshotId)
  if (signed instanceof RoostError) return problemOf(signed)
  const missing = (id: Buffer): RoostError =>
    new RoostError('CHUNK_MISSING', 'A chunk that a snapshot needs is missing or damaged.', { chunk: id.toString('hex') })
  const visit = async (refs: NodeRefs): Promise<Buffer> => {
    counts.nodes++
    const found = await parts.index.locate(refs.ids())
    const nodes: Buffer[] = []
    for (let i = 0; i < refs.count; i++) {
      if (found.packNumbers[i] === 0 || found.kinds[i] !== refs.kind(i)) throw missing(refs.id(i))
      if (refs.kind(i) === CHUNK_KINDS.node) nodes.push(refs.id(i))
    }
    return Buffer.concat(nodes)
  }
  try {
    const root = parseChunkId(parseRecord(signed).root)
    if ((await parts.index.locate(root)).packNumbers[0] === 0) throw missing(root)
    await walkTree({ index: parts.index, seen, signal, visit, readNode: async (id) => {
      const bytes = await parts.reader.readChunk(id, signal)
      if (bytes === undefined) throw missing(id)
      return bytes
    } }, root)
    return undefined
  } catch (error) {
    if (!(error instanceof RoostError) || error.code === 'STORE_UNAVAILABLE') throw error
    return problemOf(error)
  }
}
