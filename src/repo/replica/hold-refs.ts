/** What a session that receives asks of the repository before anything is sent: what is there is pinned for it; what a base lists is inherited. */
import { setBit, hasBit } from '../../core/frames.js'
import { RoostError } from '../../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, type SessionId } from '../../core/ids.js'
import { LIMITS } from '../../core/limits.js'
import { decodeNode, NODE_REF_BYTES } from '../../core/node-format.js'
import { REF_STATES } from '../../index/chunk-index.js'
import type { RepositoryParts } from '../repository-parts.js'
import { readNodes } from './read-nodes.js'

/** Bitmap, bit i set = missing. Asked by id alone: the peer has every chunk that it names, so nothing is told that it could not know.
 *  @throws {RoostError} REQUEST_MALFORMED; LIMIT_EXCEEDED; SESSION_LOST */
export async function holdPresent(parts: RepositoryParts, session: SessionId, ids: Buffer): Promise<Buffer> {
  const count = idsOf(ids, LIMITS.missingIdsMax)
  const present = await parts.index.pinIds(session, ids)
  const missing = Buffer.alloc((count + 7) >> 3)
  const settling: number[] = []
  const waits = new Set<Promise<void>>()
  for (let i = 0; i < count; i++) {
    if (hasBit(present, i)) continue
    const state = parts.intake.pinPendingId(session, ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))
    if (state === 'absent') setBit(missing, i)
    else if (state !== 'pinned') {
      waits.add(state.wait)
      settling.push(i)
    }
  }
  if (settling.length === 0) return missing
  await Promise.all(waits)
  const settled = await parts.index.pinIds(session, Buffer.concat(settling.map((i) => ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))))
  settling.forEach((i, place) => { if (!hasBit(settled, place)) setBit(missing, i) })
  return missing
}

/** Makes what these nodes list inherited, where the nodes are: parts of a snapshot that is whole. Others are passed over.
 *  @throws {RoostError} REQUEST_MALFORMED; LIMIT_EXCEEDED; SESSION_LOST; STORE_UNAVAILABLE */
export async function inheritChildren(parts: RepositoryParts, session: SessionId, ids: Buffer, signal: AbortSignal): Promise<void> {
  const count = idsOf(ids, LIMITS.readIdsMax)
  const refs = Buffer.allocUnsafe(count * NODE_REF_BYTES)
  for (let i = 0; i < count; i++) {
    refs[i * NODE_REF_BYTES] = CHUNK_KINDS.node
    ids.copy(refs, i * NODE_REF_BYTES + 1, i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES)
  }
  const states = await parts.index.inspectRefs(session, refs)
  const inherited = Array.from(states, (state, i) => state === REF_STATES.inherited ? ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES) : Buffer.alloc(0))
  const listed: Buffer[] = []
  let bytes = 0
  const settle = async (): Promise<void> => {
    if (bytes > 0) await parts.index.inheritRefs(session, Buffer.concat(listed.splice(0)))
    bytes = 0
  }
  for await (const node of readNodes(parts, Buffer.concat(inherited), signal)) {
    const children = decodeNode(node.bytes).refs.ids()
    listed.push(children)
    bytes += children.byteLength
    if (bytes >= LIMITS.missingIdsMax * CHUNK_ID_BYTES) await settle()
  }
  await settle()
}

function idsOf(ids: Buffer, limit: number): number {
  const count = ids.byteLength / CHUNK_ID_BYTES
  if (!Number.isInteger(count)) throw new RoostError('REQUEST_MALFORMED', `Ids are ${CHUNK_ID_BYTES} bytes each.`)
  if (count > limit) throw new RoostError('LIMIT_EXCEEDED', `A request names at most ${limit} chunks.`, { limit })
  return count
}
