/** Reads chunks and proves each by its id: what does not hash to the id that was asked for is never handed on as data. */
import { hasCode, RoostError } from '../src/core/errors.js'
import { hashChunk } from '../src/core/hash.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, formatChunkId, type ChunkKind, type SessionId } from '../src/core/ids.js'
import type { ReadCall, ReadingClient } from './repository-client.js'

export type ChunkProblem = 'missing' | 'damaged' | 'not-readable'
/** One of the chunks asked for; `index` is its place in the request. */
export type VerifiedChunk =
  | { readonly index: number; readonly bytes: Buffer; readonly problem: undefined }
  | { readonly index: number; readonly bytes: undefined; readonly problem: ChunkProblem }

/** Reads of one request that bring nothing new before the failure is passed on. */
const FRUITLESS_READS_MAX = 4

export interface ReadableSession {
  readonly client: ReadingClient
  readonly sessionId: SessionId
  readonly dedupKey: Buffer
  /** Makes `sessionId` another one that can read as much. Without it a lost session is a failure. */
  reopen?(lost: SessionId): Promise<void>
  /** Before each request. */
  ready?(): Promise<void>
  /** Of each node, before it is handed on: what it lists is readable from then on, in the session that served it. `request` is the same for those
   *  that were asked for together. */
  noteServed?(request: object, id: Uint8Array, by: SessionId): void
}

/** Every requested index exactly once, in the server's order. A stream that breaks off is continued with the ids that
 *  are still due.
 *  Shape: all of one `kind` (data never passes for a node); `ids` packed 32 bytes each, at most readIdsMax. Bytes may be views; copy what is kept.
 *  @throws {RoostError} BODY_TRUNCATED when reading again brings nothing; FRAME_MALFORMED when the server repeats itself;
 *  and what the client throws */
export async function* verifiedChunks(session: ReadableSession, ids: Buffer, kind: ChunkKind, call: ReadCall = {}):
  AsyncGenerator<VerifiedChunk> {
  const count = ids.byteLength / CHUNK_ID_BYTES
  let due = Uint32Array.from({ length: count }, (_, i) => i)
  const isDone = new Uint8Array(count)
  for (let fruitless = 0; due.length > 0;) {
    let came = 0, isLost = false
    await session.ready?.()
    const { sessionId } = session
    try {
      const wanted = due.length === count ? ids : pickIds(ids, due)
      for await (const { index, status, bytes } of session.client.readChunks(sessionId, wanted, call)) {
        const place = due[index]
        if (place === undefined || isDone[place] === 1)
          throw new RoostError('FRAME_MALFORMED', 'The server answered with a chunk that was not asked for.')
        isDone[place] = 1
        came++
        if (bytes !== undefined && kind === CHUNK_KINDS.node) session.noteServed?.(ids, ids.subarray(place * CHUNK_ID_BYTES, (place + 1) * CHUNK_ID_BYTES), sessionId)
        yield bytes === undefined ? { index: place, bytes, problem: status === 'ok' ? 'missing' : status }
          : verify(session.dedupKey, ids, place, bytes, kind)
      }
      if (came !== due.length) throw new RoostError('BODY_TRUNCATED', 'The reply lacks chunks that were asked for.')
    } catch (error) {
      fruitless = came > 0 ? 0 : fruitless + 1
      isLost = hasCode(error, 'SESSION_LOST') && session.reopen !== undefined
      if (!isLost && !hasCode(error, 'BODY_TRUNCATED') || fruitless > FRUITLESS_READS_MAX) throw error
    }
    due = due.filter((place) => isDone[place] === 0)
    if (isLost) await session.reopen!(sessionId)
  }
}

function verify(dedupKey: Buffer, ids: Buffer, index: number, bytes: Buffer, kind: ChunkKind): VerifiedChunk {
  const at = index * CHUNK_ID_BYTES
  const isRight = hashChunk(dedupKey, bytes, kind).compare(ids, at, at + CHUNK_ID_BYTES, 0, CHUNK_ID_BYTES) === 0
  return isRight ? { index, bytes, problem: undefined } : { index, bytes: undefined, problem: 'damaged' }
}
function pickIds(ids: Buffer, places: Uint32Array): Buffer {
  const picked = Buffer.allocUnsafe(places.length * CHUNK_ID_BYTES)
  places.forEach((place, i) => ids.copy(picked, i * CHUNK_ID_BYTES, place * CHUNK_ID_BYTES, (place + 1) * CHUNK_ID_BYTES))
  return picked
}

/** The typed failure of one chunk, naming it. */
export function chunkError(problem: ChunkProblem, id: Uint8Array): RoostError {
  const chunk = formatChunkId(id)
  switch (problem) {
    case 'missing': return new RoostError('CHUNK_MISSING', `The repository lacks chunk ${chunk}.`, { chunk })
    case 'damaged': return new RoostError('CHUNK_CORRUPT', `Chunk ${chunk} arrived with other bytes than its id names.`, { chunk })
    case 'not-readable': return new RoostError('CHUNK_NOT_READABLE', `No node that was read lists chunk ${chunk}.`, { chunk })
  }
}
