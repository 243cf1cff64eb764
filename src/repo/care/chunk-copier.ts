/** Copies chunks into new packs by the path that pushed ones take: verified, grouped, sealed, in the spool, on the targets. For chunks whose pack must
 *  go: once `finish` resolves, the copies are as durable as the write policy asks for, and were read back.
 */
import { FRAME_HEADER_BYTES, FRAME_VERDICTS, WIRE_CODECS, writeFrameHeader } from '../../core/frames.js'
import { RoostError } from '../../core/errors.js'
import type { ChunkKind, PackNumber } from '../../core/ids.js'
import { LIMITS } from '../../core/limits.js'
import type { PackEntries } from '../../index/chunk-index.js'
import { isPackDamage, packSources } from '../pack-sources.js'
import { readPackSelf } from '../read-trailer.js'
import type { RepositoryParts } from '../repository-parts.js'
import { FRAME_ACTIONS } from '../seal-job.js'

type CopierParts = Pick<RepositoryParts, 'intake' | 'pool' | 'uploads' | 'targets' | 'index' | 'keys' | 'repositoryId' | 'commitWaitMs'>
export interface PackCopy { readonly packNumber: PackNumber; readonly entries: PackEntries }

export class ChunkCopier {
  readonly #parts: CopierParts
  readonly #packs = new Set<PackNumber>()
  #body = new SharedArrayBuffer(LIMITS.bodyBytesMax)
  #bytes = 0
  #frames = 0
  constructor(parts: CopierParts) { this.#parts = parts }

  /** `bytes` may be reused once it resolves. @throws {RoostError} SPOOL_FULL */
  async add(id: Buffer, kind: ChunkKind, bytes: Buffer): Promise<void> {
    if (this.#bytes + FRAME_HEADER_BYTES + bytes.byteLength > LIMITS.bodyBytesMax || this.#frames === LIMITS.bodyFramesMax) await this.#send()
    const body = Buffer.from(this.#body)
    writeFrameHeader(body, this.#bytes, { rawBytes: bytes.byteLength, wireBytes: bytes.byteLength, kind, codec: WIRE_CODECS.raw }, id)
    body.set(bytes, this.#bytes + FRAME_HEADER_BYTES)
    this.#bytes += FRAME_HEADER_BYTES + bytes.byteLength
    this.#frames++
  }

  async #send(): Promise<void> {
    if (this.#frames === 0) return
    const { intake, pool, repositoryId } = this.#parts
    await intake.requireRoom()
    const spare = await intake.spareNumbers()
    const job = { buffer: this.#body, bytes: this.#bytes, actions: new Uint8Array(this.#frames).fill(FRAME_ACTIONS.store), sparePackNumbers: spare }
    const { result, buffer } = await pool.store(repositoryId, job, (stored) => { intake.acceptCopies(stored, spare) })
    this.#body = buffer
    this.#bytes = this.#frames = 0
    if (result.verdicts.some((verdict) => verdict !== FRAME_VERDICTS.stored && verdict !== FRAME_VERDICTS.duplicate))
      throw new RoostError('CHUNK_CORRUPT', 'A chunk changed while it was copied.')
    for (const number of result.packNumbers) if (number !== 0) this.#packs.add(number as PackNumber)
  }

  /** @throws {RoostError} STORE_UNAVAILABLE when the copies are not on enough targets in time */
  async finish(signal: AbortSignal): Promise<PackCopy[]> {
    await this.#send()
    if (this.#packs.size === 0) return []
    const { intake, uploads, index, commitWaitMs } = this.#parts
    await intake.flush()
    await uploads.settled(commitWaitMs, signal)
    const copies: PackCopy[] = []
    for (const number of this.#packs) {
      const row = await index.getPack(number)
      if (row?.state !== 'stored') throw new RoostError('STORE_UNAVAILABLE', 'Copied chunks did not reach enough targets.', { pack: number })
      copies.push({ packNumber: number, entries: await this.#readBack(row, signal) })
    }
    return copies
  }
  async #readBack(row: Parameters<typeof packSources>[0], signal: AbortSignal): Promise<PackEntries> {
    const { keys, repositoryId } = this.#parts
    let damage: unknown
    for (const source of packSources(row, this.#parts).filter(({ target }) => target !== undefined)) {
      try {
        return (await readPackSelf(row.storedBytes, (range) => source.read(range, signal), keys.packKey, repositoryId)).trailer.entries
      } catch (error) {
        if (!isPackDamage(error)) throw error
        damage ??= error
      }
    }
    throw damage ?? new RoostError('STORE_UNAVAILABLE', 'No target can be asked for a pack.')
  }
}
