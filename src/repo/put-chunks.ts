/** Takes one body of chunk frames: verified, deduplicated, written to the spool, pinned for the session.
 *
 *  Resolves when the chunks are written, not yet durable: only a commit promises. A chunk that exists already is still
 *  verified from the bytes before the session may rely on it.
 */
import { FRAME_VERDICTS, frameId, hasBit, parseFrames, type FrameTable } from '../core/frames.js'
import { CHUNK_ID_BYTES, chunkKey, ID_PROOF_BYTES, type ChunkKey, type SessionId } from '../core/ids.js'
import { findMissing } from './find-missing.js'
import type { FrameBody } from './repository.js'
import type { RepositoryParts } from './repository-parts.js'
import { FRAME_ACTIONS } from './seal-job.js'

export class ChunkPutter {
  readonly #parts: RepositoryParts
  /** Ids that a body on its way to a sealer claims to bring: a second body with the same id waits for the first. */
  readonly #claims = new Map<ChunkKey, Promise<unknown>>()
  constructor(parts: RepositoryParts) { this.#parts = parts }

  /** @throws {RoostError} FRAME_MALFORMED; LIMIT_EXCEEDED; SPOOL_FULL; SESSION_LOST */
  async put(session: SessionId, body: FrameBody): Promise<{ verdicts: Buffer; recycled: SharedArrayBuffer }> {
    const { intake, pool, repositoryId } = this.#parts
    const table = parseFrames(Buffer.from(body.buffer, 0, body.bytes))
    await intake.requireRoom()
    const spare = await intake.spareNumbers()
    const known = await this.#known(table)
    // From here to pool.store there is no await: claims and actions are decided in one turn.
    const { actions, keys, others } = this.#decide(table, known)
    const storing = pool.store(repositoryId, { buffer: body.buffer, bytes: body.bytes, actions, sparePackNumbers: spare },
      (result) => { intake.accept(session, result, spare) })
    const settled = storing.catch(() => undefined)
    for (const key of keys) this.#claims.set(key, settled)
    try {
      const { result, buffer } = await storing
      await Promise.all(others)
      const verdicts = Buffer.from(result.verdicts)
      await this.#pinDuplicates(session, verdicts, Buffer.from(result.idProofs.buffer, result.idProofs.byteOffset, result.idProofs.byteLength))
      return { verdicts, recycled: buffer }
    } finally {
      for (const key of keys) if (this.#claims.get(key) === settled) this.#claims.delete(key)
    }
  }

  /** Which claimed ids are in the index already: only a hint that saves compression; proof comes from the bytes. */
  async #known(table: FrameTable): Promise<Uint8Array> {
    const ids = Buffer.allocUnsafe(table.count * CHUNK_ID_BYTES)
    for (let i = 0; i < table.count; i++) frameId(table, i).copy(ids, i * CHUNK_ID_BYTES)
    const { packNumbers } = await this.#parts.index.locate(ids)
    return Uint8Array.from(packNumbers.subarray(0, table.count), (number) => (number === 0 ? 0 : 1))
  }
  #decide(table: FrameTable, known: Uint8Array): { actions: Uint8Array; keys: ChunkKey[]; others: Set<Promise<unknown>> } {
    const actions = new Uint8Array(table.count)
    const keys: ChunkKey[] = []
    const others = new Set<Promise<unknown>>()
    for (let i = 0; i < table.count; i++) {
      const key = chunkKey(frameId(table, i))
      const claimed = this.#claims.get(key)
      if (claimed !== undefined) others.add(claimed)
      if (known[i] === 1 || claimed !== undefined || this.#parts.intake.isPending(key)) actions[i] = FRAME_ACTIONS.verifyOnly
      else keys.push(key)
    }
    return { actions, keys, others }
  }
  /** Verified frames that this body did not store: pin what is there; what is not after all must come again. */
  async #pinDuplicates(session: SessionId, verdicts: Buffer, idProofs: Buffer): Promise<void> {
    const rows: number[] = []
    verdicts.forEach((verdict, i) => { if (verdict === FRAME_VERDICTS.duplicate) rows.push(i) })
    if (rows.length === 0) return
    const missing = await findMissing(this.#parts, session, Buffer.concat(rows.map((i) => idProofs.subarray(i * ID_PROOF_BYTES, (i + 1) * ID_PROOF_BYTES))))
    rows.forEach((i, place) => { if (hasBit(missing, place)) verdicts[i] = FRAME_VERDICTS.retry })
  }
}
