/** From verified bodies to durable packs: what is pending, what is being added to the index, what waits for its targets.
 *
 *  A stored chunk is first *pending*: written to an open pack of the spool, known only here. When the pack is sealed it is added
 *  to the index together with the pins it gathered, then uploaded, then its spool file goes. Order: docs/durability.md W1–W3.
 *  Memory: pending chunks are bounded by the entries of the open packs (threads × kinds × packEntriesMax).
 */
import { timingSafeEqual } from 'node:crypto'
import { statfs } from 'node:fs/promises'
import { setBit } from '../core/frames.js'
import { assert } from '../core/assert.js'
import { RoostError } from '../core/errors.js'
import {
  CHUNK_ID_BYTES, chunkKey, ID_PROOF_BYTES, type ChunkKey, type PackNumber, type RepositoryId, type SessionId,
} from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { ChunkIndex, PackPins, PackRow } from '../index/chunk-index.js'
import type { PackUploads } from './pack-uploads.js'
import type { SealedPack } from './pack-writer.js'
import type { StoreResult } from './seal-job.js'
import type { SealPool } from './seal-pool.js'

interface PendingChunk { readonly pack: OpenPack; readonly entry: number; readonly proof: Buffer }
interface OpenPack {
  readonly number: PackNumber
  readonly keys: ChunkKey[]
  readonly pins: Map<SessionId, Uint8Array>
  /** Set once the pack is being added to the index: its pins are being written, so late comers must ask the index. */
  adding: Promise<void> | undefined
}
const SPARE_NUMBERS = 64

export interface PackIntakeOptions {
  readonly repositoryId: RepositoryId
  readonly index: ChunkIndex
  readonly pool: SealPool
  readonly uploads: PackUploads
  readonly spoolDirectory: string
  readonly spoolBytesMax: number
  readonly spoolReserveBytes: number
  /** An open pack had to be given up; clients send its chunks again. */
  onLost(error: Error): void
}

export class PackIntake {
  readonly #options: PackIntakeOptions
  readonly #pending = new Map<ChunkKey, PendingChunk>()
  readonly #open = new Map<PackNumber, OpenPack>()
  readonly #adding = new Set<Promise<void>>()
  #spare: PackNumber[] = []
  #reserving: Promise<void> | undefined
  /** A flush that a full disk asked for. */
  #flushing: Promise<void> | undefined
  /** The first failure to add a pack: the push path stops until the repository is reopened (nothing acknowledged is lost). */
  #failure: Error | undefined

  constructor(options: PackIntakeOptions) { this.#options = options }

  isPending(key: ChunkKey): boolean { return this.#pending.has(key) }
  get openBytesEstimate(): number { return this.#open.size * LIMITS.dataPackBytesTarget }

  /** @throws {RoostError} SPOOL_FULL before any byte is accepted over the limit or into the reserve. */
  async requireRoom(): Promise<void> {
    this.#throwIfFailed()
    const { uploads, spoolBytesMax, spoolReserveBytes, spoolDirectory } = this.#options
    const { bavail, bsize } = await statfs(spoolDirectory)
    const diskIsFull = bavail * bsize < spoolReserveBytes
    if (uploads.waitingBytes <= spoolBytesMax && !diskIsFull) return
    // What fills the disk may be the open packs themselves, and no further body will come to complete them: as they are, they
    // can be uploaded and make room. Once sealed there is none left to seal, so waiting clients do not cause small packs.
    if (diskIsFull && this.#open.size > 0 && this.#flushing === undefined)
      this.#flushing = this.flush().catch((error: unknown) => { this.#options.onLost(error as Error) })
        .finally(() => { this.#flushing = undefined })
    throw new RoostError('SPOOL_FULL', 'The server has accepted as much as it can hold until its storage target takes packs again.',
      { waitingBytes: uploads.waitingBytes, spoolBytesMax })
  }

  /** One number per kind, reserved durably: never handed out twice, even if the body opens no pack. */
  async spareNumbers(): Promise<readonly [PackNumber, PackNumber]> {
    while (this.#spare.length < 2) {
      this.#reserving ??= this.#options.index.reservePackNumbers(SPARE_NUMBERS)
        .then((first) => { for (let i = 0; i < SPARE_NUMBERS; i++) this.#spare.push((first + i) as PackNumber) })
        .finally(() => { this.#reserving = undefined })
      await this.#reserving
    }
    return [this.#spare.pop()!, this.#spare.pop()!]
  }

  /** Takes in what a body stored, pinned for `session`. Call in the same turn in which the pool's reply arrived: the pack's
   *  `sealed` message can only come later. */
  accept(session: SessionId, result: StoreResult, spare: readonly PackNumber[]): void {
    for (const number of spare) if (!result.opened.includes(number)) this.#spare.push(number)
    const { packNumbers, entryNumbers, idProofs } = result
    for (let i = 0; i < packNumbers.length; i++) {
      const number = packNumbers[i]! as PackNumber
      if (number === 0) continue
      const pack = this.#packOf(number)
      const idProof = Buffer.from(idProofs.buffer, idProofs.byteOffset + i * ID_PROOF_BYTES, ID_PROOF_BYTES)
      const key = chunkKey(idProof)
      pack.keys.push(key)
      this.#pending.set(key, { pack, entry: entryNumbers[i]!, proof: Buffer.from(idProof.subarray(CHUNK_ID_BYTES)) })
      pin(pack, session, entryNumbers[i]!)
    }
  }
  /** Takes note of what a collection stored: copies of chunks that the index knows elsewhere, needed by no session here. */
  acceptCopies(result: StoreResult, spare: readonly PackNumber[]): void {
    for (const number of spare) if (!result.opened.includes(number)) this.#spare.push(number)
    for (const number of result.opened) this.#packOf(number)
  }
  #packOf(number: PackNumber): OpenPack {
    let pack = this.#open.get(number)
    if (pack === undefined) this.#open.set(number, pack = { number, keys: [], pins: new Map(), adding: undefined })
    return pack
  }

  /** Pins a pending chunk when id and proof match. `wait`: it is on its way into the index; ask there after it settles. */
  pinPending(session: SessionId, idProof: Buffer): 'pinned' | 'absent' | { wait: Promise<void> } {
    const pending = this.#pending.get(chunkKey(idProof))
    if (pending === undefined || !timingSafeEqual(pending.proof, idProof.subarray(CHUNK_ID_BYTES, ID_PROOF_BYTES))) return 'absent'
    return this.#pinPending(session, pending)
  }
  /** The same by id alone, for peers. */
  pinPendingId(session: SessionId, id: Buffer): 'pinned' | 'absent' | { wait: Promise<void> } {
    const pending = this.#pending.get(chunkKey(id))
    return pending === undefined ? 'absent' : this.#pinPending(session, pending)
  }
  #pinPending(session: SessionId, pending: PendingChunk): 'pinned' | { wait: Promise<void> } {
    if (pending.pack.adding !== undefined) return { wait: pending.pack.adding }
    pin(pending.pack, session, pending.entry)
    return 'pinned'
  }

  /** From the pool: the pack is durable in the spool (W1). Adds it to the index (W2), then queues it for its targets (W3). */
  onSealed(pack: SealedPack): void {
    const open = this.#packOf(pack.number)
    const pins: PackPins[] = [...open.pins].map(([sessionId, bitmap]) => ({ sessionId, bitmap }))
    const row: PackRow = { packNumber: pack.number, packId: pack.packId, kind: pack.kind, state: 'spooled',
      storedBytes: pack.storedBytes, rawBytes: pack.rawBytes, entryCount: pack.entries.count, heldBy: 0 }
    this.#options.uploads.announce(row)
    open.adding = this.#options.index.addPack(row, pack.entries, pins).then(
      () => {
        this.#forget(open)
        this.#options.uploads.enqueue({ row, file: pack.file })
      },
      (error: unknown) => {
        this.#failure ??= error instanceof Error ? error : new Error('the index refused a pack')
        this.#forget(open)
      })
    const adding = open.adding
    this.#adding.add(adding)
    void adding.finally(() => this.#adding.delete(adding))
  }
  onLost(number: PackNumber, error: Error): void {
    // The chunks were never promised: a commit that needs them is told COMMIT_INCOMPLETE and its client sends them again.
    this.#options.onLost(error)
    const open = this.#open.get(number)
    if (open !== undefined) this.#forget(open)
  }
  #forget(open: OpenPack): void {
    for (const key of open.keys) if (this.#pending.get(key)?.pack === open) this.#pending.delete(key)
    this.#open.delete(open.number)
  }
  #throwIfFailed(): void {
    if (this.#failure !== undefined)
      throw new RoostError('INDEX_CORRUPT', 'The index refused a pack; restart the server to recover from its spool.', {}, { cause: this.#failure })
  }

  /** Seals every open pack and waits until all are in the index (W1, W2). */
  async flush(): Promise<void> {
    await this.#options.pool.flush(this.#options.repositoryId)
    await Promise.all(this.#adding)
    this.#throwIfFailed()
  }
}

function pin(pack: OpenPack, session: SessionId, entry: number): void {
  assert(entry < LIMITS.packEntriesMax, 'an entry number is within its pack')
  let bitmap = pack.pins.get(session)
  const bytes = (entry >> 3) + 1
  if (bitmap === undefined || bitmap.length < bytes) {
    const larger = new Uint8Array(Math.min(LIMITS.packEntriesMax / 8, Math.max(64, bytes * 2)))
    if (bitmap !== undefined) larger.set(bitmap)
    pack.pins.set(session, bitmap = larger)
  }
  setBit(bitmap, entry)
}

