/** A pack that is whole nowhere: what is readable of it moves to new packs, the rest is marked damaged, so that it is "missing" and the next client
 *  that has it brings it again (docs/scrub.md).
 *
 *  Unreachable is never damage: every place that may hold the pack must have answered, and a place without the repository's header is no witness of
 *  absence (a file system that is not mounted). The pack itself is kept as long as a chunk of it is lost: should its bytes turn out to be readable
 *  after all, they come back. Only then are its objects deleted.
 */
import { hasCode, isAbort, RoostError } from '../../core/errors.js'
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, type ChunkKind, type PackNumber } from '../../core/ids.js'
import { ENTRY_STATES, type EvacuateRequest, type Locations, type PackEntries, type PackRow } from '../../index/chunk-index.js'
import { HEADER_KEY, packKey } from '../layout.js'
import { chunkInBlock } from '../pack-format.js'
import { isPackDamage, packSources } from '../pack-sources.js'
import { readPackSelf } from '../read-trailer.js'
import type { RepositoryParts } from '../repository-parts.js'
import { isWholeOn } from '../targets/copy-pack.js'
import { maskOf } from '../targets/target-set.js'
import { ChunkCopier } from './chunk-copier.js'

const ROWS_PER_PAGE = 4_096
/** Packs that reads stumbled on and that wait for their turn. More are found again by the next read or check. */
const WAITING_MAX = 10_000

export type MendOutcome =
  /** `whole`: it is whole somewhere. `gone`: it left the index. `waiting`: it lies in the spool, or somebody has it in hand. `unneeded`: nothing lives in it and nothing is lost with it.
   *  `unknown`: a place that may hold it could not be asked, or is no witness; nothing was changed. */
  | { readonly outcome: 'whole' | 'gone' | 'waiting' | 'unneeded' | 'unknown' }
  /** `lost`: chunks known as damaged with it, old and new. `fresh`: those not known before. `moved`: chunks that have copies now. */
  | { readonly outcome: 'mended'; readonly lost: number; readonly fresh: number; readonly moved: number }

type MenderParts = Omit<RepositoryParts, 'mender' | 'checkpoints'>

interface Inside {
  /** Packed ids of what lives in the pack, and where. */
  readonly live: { readonly ids: Buffer; readonly locations: Locations }
  /** Undefined when no place has a readable trailer. */
  readonly entries: PackEntries | undefined
  readonly lost: number
}

export class PackMender {
  readonly #parts: MenderParts
  readonly #waiting = new Set<PackNumber>()
  readonly #mending = new Map<PackNumber, Promise<MendOutcome>>()
  readonly #stop = new AbortController()
  #running: Promise<void> | undefined
  constructor(parts: MenderParts) { this.#parts = parts }

  /** In the background, one after the other. Who mends it already reads it, and stumbles itself. */
  request(number: PackNumber): void {
    if (this.#stop.signal.aborted || this.#mending.has(number) || this.#waiting.size >= WAITING_MAX) return
    this.#waiting.add(number)
    this.#running ??= this.#run().finally(() => { this.#running = undefined })
  }
  async #run(): Promise<void> {
    for (const number of this.#waiting) {
      this.#waiting.delete(number)
      if (this.#stop.signal.aborted) return
      await this.mend(number, this.#stop.signal).catch((error: unknown) => {
        // A target that is away, a full spool: the next read or check finds it again.
        if (isAbort(error)) return
        if (!(error instanceof RoostError)) throw error
        this.#parts.report({ type: 'damage', error, pack: '' })
      })
    }
  }
  /** Resolves when nothing waits. */
  async settled(): Promise<void> { while (this.#running !== undefined) await this.#running }

  /** One at a time for each pack. @throws {RoostError} STORE_UNAVAILABLE; STORE_REFUSED; SPOOL_FULL */
  mend(number: PackNumber, signal: AbortSignal): Promise<MendOutcome> {
    const running = this.#mending.get(number)
    if (running !== undefined) return running
    const mending = this.#mend(number, signal).finally(() => { this.#mending.delete(number) })
    this.#mending.set(number, mending)
    return mending
  }

  /** A collection or a copy that has it in hand goes first. */
  async #mend(number: PackNumber, signal: AbortSignal): Promise<MendOutcome> {
    const release = this.#parts.claims.claimForRemoval(number)
    if (release === undefined) return { outcome: 'waiting' }
    try { return await this.#mendClaimed(number, signal) } finally { release() }
  }
  async #mendClaimed(number: PackNumber, signal: AbortSignal): Promise<MendOutcome> {
    const { index, uploads, targets } = this.#parts
    const row = await index.getPack(number)
    if (row === undefined) return { outcome: 'gone' }
    if (row.state === 'spooled' || uploads.isWaiting(number)) return { outcome: 'waiting' }
    if (targets.readable.length === 0 || targets.all.some((target) => !target.isReadable && (row.heldBy & target.bit) !== 0)) return { outcome: 'unknown' }
    const isPresent = await this.#isAnywhere(row, signal)
    if (!isPresent && !await this.#areWitnesses(signal)) return { outcome: 'unknown' }
    const inside = await this.#lookInside(row, isPresent, signal)
    return isPresent ? await this.#mendPresent(row, inside, signal) : await this.#giveUp(row, inside)
  }

  async #isAnywhere(row: PackRow, signal: AbortSignal): Promise<boolean> {
    for (const target of this.#parts.targets.readable)
      if (await target.use((store) => store.head(packKey(row.packId), { signal })) !== undefined) return true
    return false
  }
  async #areWitnesses(signal: AbortSignal): Promise<boolean> {
    const { targets, headerBytes } = this.#parts
    for (const target of targets.readable) {
      const header = await target.use((store) => store.getRange(HEADER_KEY, { offset: 0, bytes: headerBytes.byteLength }, { signal }))
        .catch((error: unknown) => { if (hasCode(error, 'OBJECT_TOO_SHORT')) return undefined; throw error })
      if (header?.equals(headerBytes) !== true) return false
    }
    return true
  }

  async #lookInside(row: PackRow, isPresent: boolean, signal: AbortSignal): Promise<Inside> {
    const { index } = this.#parts
    const entries = isPresent ? await this.#trailerOf(row, signal) : undefined
    if (entries === undefined) return { live: await this.#scanFor(row.packNumber), entries, lost: await this.#countLost(row.packNumber) }
    const states = await index.inspectEntries(row.packNumber, entries)
    const live = [...states.keys()].filter((entry) => states[entry] === ENTRY_STATES.live || states[entry] === ENTRY_STATES.differs)
    const ids = Buffer.concat(live.map((entry) => entries.idProofs.subarray(entry * ID_PROOF_BYTES, entry * ID_PROOF_BYTES + CHUNK_ID_BYTES)))
    return { live: { ids, locations: await index.locate(ids) }, entries, lost: states.reduce((sum, state) => sum + Number(state === ENTRY_STATES.lost), 0) }
  }
  async #trailerOf(row: PackRow, signal: AbortSignal): Promise<PackEntries | undefined> {
    const { keys, repositoryId } = this.#parts
    for (const source of packSources(row, this.#parts)) {
      try {
        const self = await readPackSelf(row.storedBytes, (range) => source.read(range, signal), keys.packKey, repositoryId)
        if (self.header.kind === row.kind && self.trailer.entries.count === row.entryCount) return self.trailer.entries
      } catch (error) {
        if (!isPackDamage(error)) throw error
      }
    }
    return undefined
  }
  /** The index knows what lives where, only not in this order: all of it is looked at, page by page. */
  async #scanFor(number: PackNumber): Promise<Inside['live']> {
    const { index } = this.#parts
    const found: Buffer[] = []
    for (let after: Buffer | undefined; ;) {
      const { ids, locations } = await index.scanChunks(after, ROWS_PER_PAGE)
      if (locations.count === 0) break
      for (let i = 0; i < locations.count; i++)
        if (locations.packNumbers[i] === number) found.push(ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))
      after = ids.subarray((locations.count - 1) * CHUNK_ID_BYTES)
    }
    const ids = Buffer.concat(found)
    return { ids, locations: await index.locate(ids) }
  }
  async #countLost(number: PackNumber): Promise<number> {
    let lost = 0
    for (let after: Buffer | undefined; ;) {
      const rows = await this.#parts.index.listDamaged(after, ROWS_PER_PAGE)
      if (rows.length === 0) return lost
      for (const { packNumber } of rows) if (packNumber === number) lost++
      after = rows.at(-1)!.id
    }
  }

  /** It is on no target: what lived in it is lost. Nothing is deleted anywhere: should the pack come back, a rebuild takes it in. */
  async #giveUp(row: PackRow, { live, lost }: Inside): Promise<MendOutcome> {
    const fresh = await this.#parts.index.markDamaged(row.packNumber, live.ids)
    await this.#evacuate({ packNumber: row.packNumber, ids: live.ids, copies: [], then: 'forget', slots: 0 })
    return fresh + lost === 0 ? { outcome: 'unneeded' } : { outcome: 'mended', lost: lost + fresh, fresh, moved: 0 }
  }

  async #mendPresent(row: PackRow, inside: Inside, signal: AbortSignal): Promise<MendOutcome> {
    const { index } = this.#parts
    const isWhole = await this.#isWholeSomewhere(row, signal)
    const request = { packNumber: row.packNumber, ids: inside.live.ids, slots: maskOf(this.#parts.targets.all) }
    // With nothing copied yet, this changes something only where nothing lives: it tells whether a collection runs, which wants packs to stay.
    const mayMove = !isWhole && await index.evacuatePack({ ...request, copies: [], then: 'keep' }) !== 'collecting'
    const copier = new ChunkCopier(this.#parts)
    const read = await this.#readAll(row, inside.live, mayMove ? copier : undefined, signal)
    if (read === undefined) return { outcome: 'gone' }
    // The bytes are as they were written, and still not what they should be: they were sealed wrong. Only those are lost.
    if (isWhole) {
      const fresh = await index.markDamaged(row.packNumber, read.lost)
      return fresh + inside.lost === 0 ? { outcome: 'whole' } : { outcome: 'mended', lost: inside.lost + fresh, fresh, moved: 0 }
    }
    const copies = await copier.finish(signal)
    const fresh = await index.markDamaged(row.packNumber, read.lost)
    const lost = inside.lost + fresh
    if (mayMove) await this.#evacuate({ ...request, copies, then: lost > 0 ? 'keep' : 'doom' })
    return lost + read.whole === 0 ? { outcome: 'unneeded' } : { outcome: 'mended', lost, fresh, moved: read.whole }
  }
  async #evacuate(request: EvacuateRequest): Promise<void> {
    const { index, targets, doomed, lineage } = this.#parts
    if (request.then === 'doom') await lineage.advance(index) // before anything is deleted that an older index relies on
    await targets.removePack(request.packNumber, async () => {
      const result = await index.evacuatePack(request)
      return result !== 'evacuated' ? 'needed' : request.then === 'keep' ? 'kept' : 'condemned'
    })
    if (request.then === 'doom') doomed.wake()
  }
  async #isWholeSomewhere(row: PackRow, signal: AbortSignal): Promise<boolean> {
    for (const target of this.#parts.targets.readable) if (await isWholeOn(target, row, signal)) return true
    return false
  }

  /** Every live chunk, from whichever place has it. @returns undefined when the pack left the index meanwhile. */
  async #readAll(row: PackRow, { ids, locations }: Inside['live'], copier: ChunkCopier | undefined, signal: AbortSignal): Promise<{ whole: number; lost: Buffer } | undefined> {
    const { reader, keys } = this.#parts
    const idOf = (i: number): Buffer => ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES)
    const lost: Buffer[] = []
    let whole = 0
    for await (const { bytes, rows } of reader.blocks(locations, Array.from({ length: locations.count }, (_, i) => i), signal)) {
      if (await this.#parts.index.getPack(row.packNumber) === undefined) return undefined
      for (const i of rows) {
        const chunk = bytes === undefined ? undefined : wholeChunk(bytes, locations, i, keys.dedupKey, idOf(i))
        if (chunk === undefined) { lost.push(idOf(i)); continue }
        await copier?.add(idOf(i), row.kind, chunk)
        whole++
      }
    }
    return { whole, lost: Buffer.concat(lost) }
  }

  async close(): Promise<void> {
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    await this.#running
    await Promise.allSettled(this.#mending.values())
  }
}

function wholeChunk(block: Buffer, locations: Locations, i: number, dedupKey: Buffer, id: Buffer): Buffer | undefined {
  try {
    return chunkInBlock(block, { offset: locations.offsetsInBlock[i]!, rawBytes: locations.rawBytes[i]! }, dedupKey, locations.kinds[i] as ChunkKind, id)
  } catch (error) {
    if (!hasCode(error, 'CHUNK_CORRUPT')) throw error
    return undefined
  }
}
