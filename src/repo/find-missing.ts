/** Which of these chunks must the client send? Present means pinned: it stays present as long as the session is open. */
import { setBit, hasBit } from '../core/frames.js'
import { RoostError } from '../core/errors.js'
import { ID_PROOF_BYTES, type SessionId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { RepositoryParts } from './repository-parts.js'

/** Bitmap, bit i set = missing. An id without its proof is missing: knowing a hash is no right to the data behind it.
 *  @throws {RoostError} REQUEST_MALFORMED; LIMIT_EXCEEDED; SESSION_LOST */
export async function findMissing(parts: RepositoryParts, session: SessionId, idProofs: Buffer): Promise<Buffer> {
  const count = idProofs.byteLength / ID_PROOF_BYTES
  if (!Number.isInteger(count)) throw new RoostError('REQUEST_MALFORMED', `A missing-query is made of ${ID_PROOF_BYTES}-byte records.`)
  if (count > LIMITS.missingIdsMax) throw new RoostError('LIMIT_EXCEEDED', `A missing-query names at most ${LIMITS.missingIdsMax} chunks.`, { limit: LIMITS.missingIdsMax })
  const present = await parts.index.pinPresent(session, idProofs)
  const missing = Buffer.alloc((count + 7) >> 3)
  const settling: number[] = []
  const waits = new Set<Promise<void>>()
  for (let i = 0; i < count; i++) {
    if (hasBit(present, i)) continue
    const state = parts.intake.pinPending(session, idProofs.subarray(i * ID_PROOF_BYTES, (i + 1) * ID_PROOF_BYTES))
    if (state === 'absent') setBit(missing, i)
    else if (state !== 'pinned') {
      waits.add(state.wait)
      settling.push(i)
    }
  }
  if (settling.length === 0) return missing
  // Their packs are entering the index right now, with the pins of before: ask the index once they have.
  await Promise.all(waits)
  const late = Buffer.concat(settling.map((i) => idProofs.subarray(i * ID_PROOF_BYTES, (i + 1) * ID_PROOF_BYTES)))
  const settled = await parts.index.pinPresent(session, late)
  settling.forEach((i, place) => { if (!hasBit(settled, place)) setBit(missing, i) })
  return missing
}
