/** NBD's second phase for one connection: requests are read one after the other and answered as they are done, whatever their order.
 *
 *  Bounds: requestsInFlightMax of this connection, and the bytes of all connections together (`room`), taken before anything is read for a request
 *  and given back when the peer took the answer. While either is used up no request is read: the peer's sends wait in its kernel.
 */
import { Semaphore } from '../../src/core/concurrency.js'
import { describeCause, RoostError } from '../../src/core/errors.js'
import type { ReadPiece } from './image-reader.js'
import { ALLOCATION_CONTEXT_ID, type Agreement } from './negotiation.js'
import {
  BLOCK_STATES, COMMAND_FLAGS, COMMANDS, decodeRequest, encodeBlockStatus, encodeDataHeader, encodeErrorChunk, encodeHole, encodeNone, encodeSimpleReply,
  ERRORS, NbdBreak, PAYLOAD_BYTES_MAX, REQUEST_BYTES, type NbdRequest,
} from './protocol.js'
import type { SocketReader } from './socket-reader.js'

/** Of one answer; a client asks again for what is left. */
const BLOCKS_MAX = 2_048
/** What a question about allocation holds for a moment. */
const ALLOCATION_COST_BYTES = 256 * 1024
const ZEROES = Buffer.alloc(256 * 1024)

export interface TransmissionParts {
  readonly agreement: Agreement
  readonly reader: SocketReader
  /** Resolves when the peer's side took all of it. */
  readonly send: (parts: readonly Buffer[]) => Promise<void>
  /** Of all connections: bytes of chunks and answers. */
  readonly room: Semaphore
  readonly requestsInFlightMax: number
  /** Aborts when the connection ends. */
  readonly signal: AbortSignal
  /** A read that could not be answered. */
  readonly onProblem: (error: unknown) => void
}

/** Resolves when the client says goodbye or goes away, and nothing is being read for it any more. @throws {NbdBreak} */
export async function serveRequests(parts: TransmissionParts): Promise<void> {
  const { reader, signal } = parts
  const slots = new Semaphore(parts.requestsInFlightMax)
  const running = new Set<Promise<void>>()
  try {
    for (;;) {
      await slots.acquire(1, signal)
      const bytes = await reader.read(REQUEST_BYTES, true)
      if (bytes === undefined) return
      const request = decodeRequest(bytes)
      if (request.command === COMMANDS.disconnect) { await Promise.all(running); return }
      if (request.command === COMMANDS.write) {
        if (request.length > PAYLOAD_BYTES_MAX) throw new NbdBreak('The client writes more than anyone may.')
        await reader.skip(request.length)
      }
      const task: Promise<void> = new Answer(parts, request).give()
        .catch(() => undefined) // only sending fails: the connection is gone, and reading from it says so
        .finally(() => { running.delete(task); slots.release() })
      running.add(task)
    }
  } finally {
    await Promise.all(running)
  }
}

class Answer {
  constructor(readonly parts: TransmissionParts, readonly request: NbdRequest) {}

  async give(): Promise<void> {
    const { command } = this.request
    switch (command) {
      case COMMANDS.read: return await this.#read()
      case COMMANDS.blockStatus: return await this.#blockStatus()
      case COMMANDS.flush: return await this.#simple(this.#flagsWithin(0) ? ERRORS.none : ERRORS.invalid)
      case COMMANDS.cache: return await this.#cache()
      case COMMANDS.write: case COMMANDS.trim: case COMMANDS.writeZeroes: case COMMANDS.resize: return await this.#simple(ERRORS.permission)
      default: return await this.#simple(ERRORS.invalid)
    }
  }

  async #read(): Promise<void> {
    const { agreement: { served: { image }, structured }, room, signal } = this.parts
    const { offset, length, cookie } = this.request
    if (!this.#flagsWithin(structured ? COMMAND_FLAGS.dontFragment : 0)) return await this.#refuse(ERRORS.invalid, 'A flag of this read is unknown.')
    if (length > PAYLOAD_BYTES_MAX) return await this.#refuse(ERRORS.invalid, 'No more than 32 MiB are read at once.')
    if (!this.#isWithin()) return await this.#refuse(ERRORS.invalid, 'This read goes past the end.')
    const cost = Math.min(room.capacity, image.costOf(offset, length))
    await room.within(cost, signal, async () => {
      let pieces: readonly ReadPiece[]
      try {
        pieces = await image.read(offset, length)
      } catch (error) {
        this.parts.onProblem(error)
        return await this.#refuse(ERRORS.io, told(error))
      }
      if (signal.aborted) return
      if (!structured) await this.parts.send([encodeSimpleReply(cookie, ERRORS.none), ...pieces.flatMap(bytesOf)])
      else if ((this.request.flags & COMMAND_FLAGS.dontFragment) !== 0 && length > 0)
        await this.parts.send([encodeDataHeader(cookie, true, offset, length), ...pieces.flatMap(bytesOf)])
      else await this.parts.send(chunksOf(cookie, pieces))
    })
  }
  async #blockStatus(): Promise<void> {
    const { agreement: { served: { image }, allocation }, room, signal } = this.parts
    const { offset, length, cookie, flags } = this.request
    if (!allocation) return await this.#refuse(ERRORS.invalid, 'No context was agreed on.')
    if (!this.#flagsWithin(COMMAND_FLAGS.requireOne) || length === 0 || !this.#isWithin()) return await this.#refuse(ERRORS.invalid, 'This question goes past the end.')
    await room.within(Math.min(room.capacity, ALLOCATION_COST_BYTES), signal, async () => {
      try {
        const blocks = await image.allocation(offset, length, (flags & COMMAND_FLAGS.requireOne) !== 0 ? 1 : BLOCKS_MAX)
        await this.parts.send([encodeBlockStatus(cookie, ALLOCATION_CONTEXT_ID,
          blocks.map(({ bytes, isHole }) => ({ bytes, state: isHole ? BLOCK_STATES.hole : BLOCK_STATES.data })))])
      } catch (error) {
        if (signal.aborted) return
        this.parts.onProblem(error)
        await this.#refuse(ERRORS.io, told(error))
      }
    })
  }
  async #cache(): Promise<void> {
    const isRight = this.#flagsWithin(0) && this.#isWithin()
    if (isRight) this.parts.agreement.served.image.readAhead(this.request.offset, this.request.length)
    await this.#simple(isRight ? ERRORS.none : ERRORS.invalid)
  }

  #isWithin(): boolean { return this.request.offset + this.request.length <= this.parts.agreement.served.image.bytes }
  #flagsWithin(flags: number): boolean { return (this.request.flags & ~flags) === 0 }
  async #simple(error: number): Promise<void> { await this.parts.send([encodeSimpleReply(this.request.cookie, error)]) }
  async #refuse(error: number, message: string): Promise<void> {
    const { cookie } = this.request
    await this.parts.send([this.parts.agreement.structured ? encodeErrorChunk(cookie, error, message) : encodeSimpleReply(cookie, error)])
  }
}

function bytesOf({ bytes, data }: ReadPiece): Buffer[] {
  if (data !== undefined) return [data]
  const parts: Buffer[] = []
  for (let left = bytes; left > 0; left -= ZEROES.byteLength) parts.push(ZEROES.subarray(0, Math.min(left, ZEROES.byteLength)))
  return parts
}
/** Runs of data and holes, as few as there are; the last one ends the answer. */
function chunksOf(cookie: bigint, pieces: readonly ReadPiece[]): Buffer[] {
  if (pieces.length === 0) return [encodeNone(cookie)]
  const parts: Buffer[] = []
  for (let i = 0; i < pieces.length;) {
    const isHole = pieces[i]!.data === undefined
    let end = i, bytes = 0
    while (end < pieces.length && (pieces[end]!.data === undefined) === isHole) bytes += pieces[end++]!.bytes
    const { offset } = pieces[i]!
    const isLast = end === pieces.length
    if (isHole) parts.push(encodeHole(cookie, isLast, offset, bytes))
    else parts.push(encodeDataHeader(cookie, isLast, offset, bytes), ...pieces.slice(i, end).map(({ data }) => data!))
    i = end
  }
  return parts
}
const told = (error: unknown): string => error instanceof RoostError ? error.message : describeCause(error)
