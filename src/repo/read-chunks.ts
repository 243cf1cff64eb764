/** Streams chunks to a session in the order of the packs; each block is fetched and opened once per request.
 *
 *  Right to read: a chunk must be *inherited*, i.e. listed by a node that this session was served before (the root at opening).
 *  Serving a node makes what it lists readable. A push session reads only nodes: the structure of its parent, no data.
 *  Data chunks are verified end to end by the client; nodes are verified here too, since the server acts on them.
 */
import { decodeNode, NODE_REF_BYTES } from '../core/node-format.js'
import { encodeReadFrameHeader, READ_END, READ_FRAME_HEADER_BYTES, READ_STATUS, WIRE_CODECS, type ReadStatus } from '../core/frames.js'
import { hasCode, RoostError } from '../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, type SessionId } from '../core/ids.js'
import { KiB, LIMITS } from '../core/limits.js'
import { REF_STATES, type Locations, type SessionRow } from '../index/chunk-index.js'
import { chunkInBlock } from './pack-format.js'
import { LOCATE_TURNS_MAX, stillMoving, type ReadBlock } from './pack-reader.js'
import type { RepositoryParts } from './repository-parts.js'

/** Encoded read frames; the last is READ_END. @throws {RoostError} REQUEST_MALFORMED; LIMIT_EXCEEDED; SESSION_LOST; STORE_UNAVAILABLE */
export async function* readChunks(parts: RepositoryParts, session: SessionRow, ids: Buffer, signal: AbortSignal): AsyncIterable<Buffer> {
  const count = ids.byteLength / CHUNK_ID_BYTES
  if (!Number.isInteger(count)) throw new RoostError('REQUEST_MALFORMED', `A read names ${CHUNK_ID_BYTES}-byte ids.`)
  if (count > LIMITS.readIdsMax) throw new RoostError('LIMIT_EXCEEDED', `A read names at most ${LIMITS.readIdsMax} chunks.`, { limit: LIMITS.readIdsMax })
  let locations = await parts.index.locate(ids)
  let rows: number[] = []
  for (const [row, status] of (await readability(parts, session, ids, locations)).entries())
    if (status === READ_STATUS.ok) rows.push(row)
    else yield emptyFrame(row, status)
  for (let turn = 0; rows.length > 0; turn++) {
    if (turn === LOCATE_TURNS_MAX) throw stillMoving()
    /** Rows whose pack a collection took away after they were located. */
    const gone: number[] = []
    for await (const block of parts.reader.blocks(locations, rows, signal)) {
      if (block.isGone === true) { gone.push(...block.rows); continue }
      for (const part of splitRows(block, locations)) {
        signal.throwIfAborted()
        yield* await frameBlock(parts, session, ids, locations, part)
      }
    }
    if (gone.length === 0) break
    locations = await parts.index.locate(ids)
    rows = gone.filter((row) => locations.packNumbers[row] !== 0)
    for (const row of gone) if (locations.packNumbers[row] === 0) yield emptyFrame(row, READ_STATUS.missing)
  }
  yield encodeReadFrameHeader({ index: READ_END, rawBytes: 0, wireBytes: 0, status: READ_STATUS.ok, kind: 0, codec: WIRE_CODECS.raw })
}

async function readability(parts: RepositoryParts, session: SessionRow, ids: Buffer, locations: Locations): Promise<ReadStatus[]> {
  const refs = Buffer.allocUnsafe(locations.count * NODE_REF_BYTES)
  for (let i = 0; i < locations.count; i++) {
    refs[i * NODE_REF_BYTES] = locations.kinds[i] || CHUNK_KINDS.data
    ids.copy(refs, i * NODE_REF_BYTES + 1, i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES)
  }
  const states = await parts.index.inspectRefs(session.sessionId, refs)
  return Array.from(states, (state, i) => {
    if (session.kind === 'push' && locations.kinds[i] === CHUNK_KINDS.data) return READ_STATUS.notReadable
    // Absent and forbidden look alike to those who may not read: an id alone tells nothing.
    if (state === REF_STATES.inherited) return READ_STATUS.ok
    return state === REF_STATES.missing && session.kind === 'read' ? READ_STATUS.missing : READ_STATUS.notReadable
  })
}

/** Parts of a block that are framed at once. A request may name one chunk thousands of times: what is held stays as large as one chunk. */
function* splitRows(block: ReadBlock, locations: Locations): Generator<ReadBlock> {
  let rows: number[] = [], bytes = 0
  for (const row of block.rows) {
    const rawBytes = locations.rawBytes[row]!
    if (rows.length > 0 && bytes + rawBytes > LIMITS.chunkBytesMax) {
      yield { bytes: block.bytes, rows }
      rows = []
      bytes = 0
    }
    rows.push(row)
    bytes += rawBytes
  }
  yield { bytes: block.bytes, rows }
}
/** From here on a chunk is sent from where it is; smaller ones are brought together with their headers, for few large writes. */
const SENT_IN_PLACE_FROM_BYTES = 64 * KiB

/** The frames of one block, in pieces; some are views of the block. */
async function frameBlock(parts: RepositoryParts, session: SessionRow, ids: Buffer, locations: Locations, block: ReadBlock): Promise<Buffer[]> {
  const { bytes, rows } = block
  if (bytes === undefined) return [Buffer.concat(rows.map((row) => emptyFrame(row, READ_STATUS.missing)))]
  const isSentInPlace = (row: number): boolean => locations.rawBytes[row]! >= SENT_IN_PLACE_FROM_BYTES
  const out = Buffer.allocUnsafe(rows.reduce((sum, row) => sum + READ_FRAME_HEADER_BYTES + (isSentInPlace(row) ? 0 : locations.rawBytes[row]!), 0))
  const pieces: Buffer[] = []
  const listed: Buffer[] = []
  let from = 0, at = 0
  for (const row of rows) {
    const offset = locations.offsetsInBlock[row]!, rawBytes = locations.rawBytes[row]!
    const kind = locations.kinds[row]!
    const chunk = kind === CHUNK_KINDS.node ? verifiedNode(parts, ids, row, bytes, offset, rawBytes) : bytes.subarray(offset, offset + rawBytes)
    if (chunk === undefined || chunk.byteLength !== rawBytes) {
      at += emptyFrame(row, READ_STATUS.missing).copy(out, at)
      continue
    }
    if (kind === CHUNK_KINDS.node) listed.push(decodeNode(chunk).refs.ids())
    at += encodeReadFrameHeader({ index: row, rawBytes, wireBytes: rawBytes, status: READ_STATUS.ok, kind, codec: WIRE_CODECS.raw }).copy(out, at)
    if (isSentInPlace(row)) {
      pieces.push(out.subarray(from, at), chunk)
      from = at
    } else at += chunk.copy(out, at)
  }
  if (at > from) pieces.push(out.subarray(from, at))
  if (listed.length > 0) await parts.index.inheritRefs(session.sessionId, Buffer.concat(listed))
  return pieces
}
function verifiedNode(parts: RepositoryParts, ids: Buffer, row: number, block: Buffer, offset: number, rawBytes: number): Buffer | undefined {
  try {
    return chunkInBlock(block, { offset, rawBytes }, parts.keys.dedupKey, CHUNK_KINDS.node, ids.subarray(row * CHUNK_ID_BYTES, (row + 1) * CHUNK_ID_BYTES))
  } catch (error) {
    if (!hasCode(error, 'CHUNK_CORRUPT')) throw error
    parts.report({ type: 'damage', error, pack: '' })
    return undefined
  }
}
const emptyFrame = (index: number, status: ReadStatus): Buffer =>
  encodeReadFrameHeader({ index, rawBytes: 0, wireBytes: 0, status, kind: 0, codec: WIRE_CODECS.raw })
