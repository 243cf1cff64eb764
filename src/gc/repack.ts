/** Writes what is needed of half-dead packs into new ones, then gives the old ones up (docs/gc.md G6).
 *
 *  Copies go the way of every push: verified, compressed, sealed in the spool, added to the index, stored on the targets. They change nothing
 *  until one transaction a pack switches its entries; whatever ends the work before leaves copies that nobody refers to, for the next run to find.
 *  Memory: one body, the reader's windows, and the lists of entries of one batch of packs.
 */
import { FRAME_HEADER_BYTES, FRAME_VERDICTS, hasBit, writeFrameHeader } from '../core/frames.js'
import { hasCode, RoostError } from '../core/errors.js'
import { ID_PROOF_BYTES, type PackNumber } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { RateLimiter } from '../core/rate-limit.js'
import type { CondemnResult, PackEntries, PackRow } from '../index/chunk-index.js'
import type { RepositoryParts } from '../repo/repository-parts.js'
import { FRAME_ACTIONS } from '../repo/seal-job.js'
import { maskOf } from '../repo/targets/target-set.js'
import { entriesOf, locationsIn } from './pack-entries.js'
import { REPACK_BATCH_BYTES } from './plan.js'

/** Entry lists of a batch: 76 bytes an entry. */
const BATCH_ENTRIES_MAX = 2 ** 19

interface Copied {
  readonly row: PackRow
  readonly entries: PackEntries
  readonly marked: Uint8Array
  /** Numbers of the packs that took its chunks. */
  readonly into: Set<PackNumber>
  release(): void
}
/** `busy`: somebody has the pack in hand; `damaged`: it cannot be read whole. The pack stays as it is. */
export type RepackResult = CondemnResult | 'busy' | 'damaged'

export interface RepackDeps {
  readonly parts: RepositoryParts
  readonly epoch: number
  readonly limiter: RateLimiter | undefined
  readonly signal: AbortSignal
  bitmapOf(pack: PackNumber): Uint8Array
  onResult(row: PackRow, result: RepackResult): void
}

export class Repacker {
  readonly #deps: RepackDeps
  readonly #batch: Copied[] = []
  #batchBytes = 0
  #batchEntries = 0
  #body = Buffer.from(new SharedArrayBuffer(LIMITS.bodyBytesMax))
  #frames = 0
  #bodyBytes = 0
  #rawBytes = 0
  /** Of chunks, before compression. */
  copiedBytes = 0

  constructor(deps: RepackDeps) { this.#deps = deps }

  /** Copies what is needed of the pack. The old one goes when its batch is complete. */
  async take(packNumber: PackNumber): Promise<void> {
    const { parts, signal, limiter } = this.#deps
    // A wait for the limit may be long, or be the last: nobody else's hands are tied meanwhile.
    await limiter?.take((await parts.index.getPack(packNumber))?.storedBytes ?? 0, signal)
    const release = parts.claims.claimForRemoval(packNumber)
    const row = await parts.index.getPack(packNumber)
    if (row === undefined || release === undefined) {
      release?.()
      if (row !== undefined) this.#deps.onResult(row, 'busy')
      return
    }
    const entries = await entriesOf(parts, packNumber, signal).catch((error: unknown) => { release(); throw error })
    if (entries === undefined) {
      release()
      this.#deps.onResult(row, 'damaged')
      return
    }
    const copied: Copied = { row, entries, marked: this.#deps.bitmapOf(packNumber), into: new Set(), release }
    this.#batch.push(copied)
    this.#batchEntries += entries.count
    if (!await this.#copy(copied)) {
      this.#batch.pop()
      release()
      this.#deps.onResult(row, 'damaged')
    } else if (this.#batchBytes >= REPACK_BATCH_BYTES || this.#batchEntries >= BATCH_ENTRIES_MAX) await this.settle()
  }

  /** False when a part of it cannot be read. */
  async #copy(copied: Copied): Promise<boolean> {
    const { parts, signal } = this.#deps
    const { row, entries, marked } = copied
    const wanted: number[] = []
    for (let entry = 0; entry < entries.count; entry++) if (hasBit(marked, entry)) wanted.push(entry)
    const locations = locationsIn(row, entries)
    for await (const { bytes, rows } of parts.reader.blocks(locations, wanted, signal)) {
      signal.throwIfAborted()
      if (bytes === undefined) return false
      for (const entry of [...rows].sort((a, b) => a - b)) {
        const offset = entries.offsetsInBlock[entry]!, rawBytes = entries.rawBytes[entry]!
        if (this.#bodyBytes + FRAME_HEADER_BYTES + rawBytes > LIMITS.bodyBytesMax || this.#frames === LIMITS.bodyFramesMax) if (!await this.#store(copied)) return false
        const id = entries.idProofs.subarray(entry * ID_PROOF_BYTES, (entry + 1) * ID_PROOF_BYTES)
        writeFrameHeader(this.#body, this.#bodyBytes, { rawBytes, wireBytes: rawBytes, kind: row.kind, codec: 0 }, id.subarray(0, 32))
        bytes.copy(this.#body, this.#bodyBytes + FRAME_HEADER_BYTES, offset, offset + rawBytes)
        this.#bodyBytes += FRAME_HEADER_BYTES + rawBytes
        this.#rawBytes += rawBytes
        this.#frames++
      }
    }
    return await this.#store(copied)
  }
  async #store(copied: Copied): Promise<boolean> {
    if (this.#frames === 0) return true
    const { parts: { intake, pool, repositoryId } } = this.#deps
    const frames = this.#frames, bytes = this.#bodyBytes
    this.#frames = this.#bodyBytes = 0
    await this.#requireRoom()
    const spare = await intake.spareNumbers()
    const job = { buffer: this.#body.buffer as SharedArrayBuffer, bytes, actions: new Uint8Array(frames).fill(FRAME_ACTIONS.store), sparePackNumbers: spare }
    const { result } = await pool.store(repositoryId, job, (stored) => { intake.acceptCopies(stored, spare) })
    this.copiedBytes += this.#rawBytes
    this.#batchBytes += this.#rawBytes
    this.#rawBytes = 0
    for (const number of result.packNumbers) if (number !== 0) copied.into.add(number as PackNumber)
    // A chunk that is not what its id says fails here and not at a restore: the pack is left for a check.
    return result.verdicts.every((verdict) => verdict === FRAME_VERDICTS.stored)
  }
  /** The spool is the pushes' first: what is copied already is finished before more is asked for. */
  async #requireRoom(): Promise<void> {
    const { intake } = this.#deps.parts
    try { await intake.requireRoom() } catch (error) {
      if (!hasCode(error, 'SPOOL_FULL')) throw error
      await this.#storeOnTargets()
      await intake.requireRoom()
    }
  }
  /** @throws {RoostError} STORE_UNAVAILABLE when the targets do not take the copies in time */
  async #storeOnTargets(): Promise<void> {
    const { parts, signal } = this.#deps
    await parts.intake.flush()
    try { await parts.uploads.settled(parts.commitWaitMs, signal) } catch (error) {
      signal.throwIfAborted()
      throw new RoostError('STORE_UNAVAILABLE', 'Too few targets take packs now; what was repacked so far stays as it was.', {}, { cause: error })
    }
  }

  /** Stores the copies of the batch, reads back what they hold, and gives up the old packs. */
  async settle(): Promise<void> {
    const { parts, epoch, signal } = this.#deps
    if (this.#batch.length === 0) return
    await this.#storeOnTargets()
    const copies = new Map<PackNumber, PackEntries>()
    for (const number of new Set(this.#batch.flatMap(({ into }) => [...into]))) {
      if ((await parts.index.getPack(number))?.state !== 'stored') continue // lost while it was sealed: the old packs stay
      const entries = await entriesOf(parts, number, signal)
      if (entries !== undefined) copies.set(number, entries)
    }
    for (const { row, entries, marked, into, release } of this.#batch.splice(0)) {
      try {
        const result = await parts.targets.removePack(row.packNumber, () => parts.index.movePack({ epoch, packNumber: row.packNumber, entries, marked,
          slots: maskOf(parts.targets.all), copies: [...into].flatMap((packNumber) => { const held = copies.get(packNumber); return held === undefined ? [] : [{ packNumber, entries: held }] }) }))
        this.#deps.onResult(row, result)
      } finally {
        release()
      }
    }
    this.#batchBytes = this.#batchEntries = 0
  }
  /** What was not settled is given back. */
  close(): void { for (const { release } of this.#batch.splice(0)) release() }
}
