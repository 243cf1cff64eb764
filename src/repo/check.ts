/** Verifies a repository while it serves: packs against the index, snapshots and their trees, and (a share of) all bytes.
 *
 *  Reports, never repairs. Unreachable is not damaged: STORE_UNAVAILABLE ends the check with a failure instead of a verdict.
 */
import { hasCode, RoostError } from '../core/errors.js'
import { hashChunk, streamingDigest } from '../core/hash.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, parseChunkId } from '../core/ids.js'
import type { MaintenanceEvent } from '../core/messages.js'
import type { NodeRefs } from '../core/node-format.js'
import type { PackRow } from '../index/chunk-index.js'
import { packKey } from './layout.js'
import { openBlock, PACK_HEADER_BYTES, packCorrupt } from './pack-format.js'
import { readPackSelf, type PackSelf } from './read-trailer.js'
import { readSnapshotObject } from './read-snapshot.js'
import type { CheckOptions } from './repository.js'
import type { RepositoryParts } from './repository-parts.js'
import { parseRecord } from './snapshot-format.js'
import { PlaceSet, walkTree } from './verify-tree.js'

type Problem = MaintenanceEvent & { type: 'problem' }
const PAGE = 500

export async function* checkRepository(parts: RepositoryParts, options: CheckOptions, signal: AbortSignal): AsyncIterable<MaintenanceEvent> {
  const counts = { packs: 0, packsRead: 0, chunks: 0, snapshots: 0, nodes: 0, bytesRead: 0 }
  let problems = 0
  const totals = await parts.index.totals()
  for await (const row of allPacks(parts)) {
    signal.throwIfAborted()
    counts.packs++
    counts.chunks += row.entryCount
    for (const problem of await checkPack(parts, row, sampled(row, options.readDataPercent), counts, signal)) {
      problems++
      yield problem
    }
    if (counts.packs % 8 === 0 || counts.packs === totals.packs) yield { type: 'progress', phase: 'packs', done: counts.packs, total: totals.packs }
  }
  let seen = new PlaceSet()
  for (let before: number | undefined; ;) {
    const rows = await parts.index.listSnapshots({ limit: PAGE, ...(before === undefined ? {} : { before }) })
    if (rows.length === 0) break
    for (const row of rows) {
      before = row.sequence
      counts.snapshots++
      const problem = await checkSnapshot(parts, row.snapshotId, seen, counts, signal)
      if (problem !== undefined) {
        problems++
        seen = new PlaceSet() // what was seen below the damage must be walked again for the next snapshot that shares it
        yield problem
      }
      yield { type: 'progress', phase: 'snapshots', done: counts.snapshots, total: totals.snapshots }
    }
  }
  yield { type: 'done', problems, counts }
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

async function checkPack(parts: RepositoryParts, row: PackRow, readData: boolean, counts: { packsRead: number; bytesRead: number }, signal: AbortSignal): Promise<Problem[]> {
  const problems: Problem[] = []
  const note = (error: RoostError, chunk?: string): void => {
    problems.push({ type: 'problem', code: error.code, message: error.message, pack: row.packId, ...(chunk === undefined ? {} : { chunk }) })
  }
  try {
    if (parts.uploads.spoolFile(row.packNumber) === undefined) {
      const facts = await parts.store.head(packKey(row.packId), { signal })
      if (facts === undefined) throw new RoostError('CHUNK_MISSING', 'A pack that the index names is not on its target.', { pack: row.packId })
      if (facts.bytes !== row.storedBytes) throw packCorrupt(`it has ${facts.bytes} bytes instead of ${row.storedBytes}`, 0)
    }
    const self = await readPackSelf(row.storedBytes, (range) => parts.reader.readPackRange(row, range, signal), parts.keys.packKey, parts.repositoryId)
    await compareWithIndex(parts, row, self, note)
    if (readData) {
      await readWholePack(parts, row, self, note, signal)
      counts.packsRead++
      counts.bytesRead += row.storedBytes
    }
  } catch (error) {
    if (!(error instanceof RoostError) || !['PACK_CORRUPT', 'CHUNK_MISSING', 'INDEX_CORRUPT'].includes(error.code)) throw error
    note(error)
  }
  return problems
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
async function readWholePack(parts: RepositoryParts, row: PackRow, self: PackSelf, note: (error: RoostError, chunk?: string) => void, signal: AbortSignal): Promise<void> {
  const digest = streamingDigest()
  digest.update(self.secret.header)
  const { blocks, entries } = self.trailer
  let offset = PACK_HEADER_BYTES, entry = 0
  for (const block of blocks) {
    const sealed = await parts.reader.readPackRange(row, { offset, bytes: block.storedBytes }, signal)
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
  digest.update(await parts.reader.readPackRange(row, { offset, bytes: row.storedBytes - offset }, signal))
  if (digest.hex() !== row.packId) note(packCorrupt('its bytes do not match its name', 0))
}

async function checkSnapshot(parts: RepositoryParts, snapshotId: Parameters<typeof readSnapshotObject>[1], seen: PlaceSet, counts: { nodes: number },
  signal: AbortSignal): Promise<Problem | undefined> {
  const problemOf = (error: RoostError): Problem => ({ type: 'problem', code: error.code, message: error.message, snapshot: snapshotId })
  const signed = await readSnapshotObject(parts, snapshotId)
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
