/** One answer as it comes, part by part: what it may say is bounded by what was asked, and a read is done only when every byte of it came, once.
 *
 *  A lie that is visible ends in NBD_BROKEN here, never in bytes that nobody sent.
 */
import {
  broken, CHUNK_HEADER_BYTES, decodeErrorChunk, decodeOffset, decodeStatus, ERROR_BYTES_MAX, isErrorChunk, REPLY_CHUNKS, STATUS_BYTES_MAX,
  type ChunkHeader, type StatusExtent,
} from './client-protocol.js'
import type { ByteStream } from './byte-stream.js'

/** The server answered that it cannot. `error`: as of errno. */
export class NbdServerError extends Error {
  override readonly name = 'NbdServerError'
  constructor(readonly error: number, message: string) { super(message === '' ? `error ${error}` : `${message} (error ${error})`) }
}

/** A request under way. Exactly one of resolve and reject is called, by whoever owns the connection. */
export interface PendingReply {
  /** Takes the part that `header` announces from the stream. @throws {ClientError} NBD_BROKEN; {NbdLost} */
  take(header: ChunkHeader, stream: ByteStream): Promise<void>
  /** Of a reply without structure. @throws {ClientError} NBD_BROKEN; {NbdLost} */
  takeSimple(error: number, isStructured: boolean, stream: ByteStream): Promise<void>
  /** Settles: the answer is at its end. @throws {ClientError} NBD_BROKEN when it is not whole */
  finish(): void
  reject(error: Error): void
  /** When it was asked, by the watchdog's count. */
  readonly askedAt: number
}

abstract class Reply {
  protected failure: NbdServerError | undefined
  constructor(readonly requestBytes: number, readonly askedAt: number) {}

  protected async takeError({ type, length }: ChunkHeader, stream: ByteStream): Promise<void> {
    if (length > ERROR_BYTES_MAX) throw broken('an error is longer than any')
    const payload = await stream.take(length)
    const { error, message } = decodeErrorChunk(payload)
    if (type === REPLY_CHUNKS.errorOffset && length < 6 + payload.readUInt16BE(4) + 8) throw broken('an error lacks its offset')
    this.failure ??= new NbdServerError(error, message)
  }
  protected takeSimpleError(error: number): void { this.failure ??= new NbdServerError(error, '') }
}

/** Memory that holds anything. */
export type Allocate = (bytes: number) => Buffer

/** Parts of one read: as many as sectors of the smallest kind, and some. */
const partsMax = (requestBytes: number): number => 64 + Math.ceil(requestBytes / 512)

export class ReadReply extends Reply implements PendingReply {
  /** Undefined: nothing but holes came. */
  #target: Buffer | undefined
  /** Ascending, apart from each other: what came. */
  #covered: { from: number; to: number }[] = []
  #parts = 0
  constructor(readonly offset: number, requestBytes: number, askedAt: number, readonly allocate: Allocate, readonly resolve: (data: Buffer | undefined) => void,
    readonly reject: (error: Error) => void) { super(requestBytes, askedAt) }

  async take(header: ChunkHeader, stream: ByteStream): Promise<void> {
    const { type, length, isLast } = header
    if (++this.#parts > partsMax(this.requestBytes)) throw broken('an answer comes in more parts than it has sectors')
    if (isErrorChunk(type)) { await this.takeError(header, stream); return }
    switch (type) {
      case REPLY_CHUNKS.none:
        if (length !== 0 || !isLast) throw broken('a part of nothing is not the last, or not empty')
        return
      case REPLY_CHUNKS.offsetData: {
        if (length <= 8) throw broken('a part with data has none')
        const from = this.#cover(decodeOffset(await stream.take(8)), length - 8)
        // Holes that come later, or came before, are zeroes then.
        this.#target ??= length - 8 === this.requestBytes ? this.allocate(this.requestBytes) : this.allocate(this.requestBytes).fill(0)
        await stream.fill(this.#target.subarray(from, from + length - 8))
        return
      }
      case REPLY_CHUNKS.offsetHole: {
        if (length !== 12) throw broken('a part that is a hole is of the wrong length')
        const payload = await stream.take(12)
        this.#cover(decodeOffset(payload), payload.readUInt32BE(8))
        return
      }
      default: throw broken(`a read is answered by a part of type ${type}`)
    }
  }
  async takeSimple(error: number, isStructured: boolean, stream: ByteStream): Promise<void> {
    if (error !== 0) { this.takeSimpleError(error); return }
    if (isStructured) throw broken('a read is answered without the structure that was agreed on')
    this.#cover(this.offset, this.requestBytes)
    this.#target = this.allocate(this.requestBytes)
    await stream.fill(this.#target)
  }
  finish(): void {
    if (this.failure !== undefined) { this.reject(this.failure); return }
    const [only] = this.#covered
    if (this.#covered.length !== 1 || only!.from !== 0 || only!.to !== this.requestBytes) throw broken('an answer lacks bytes that were asked for')
    this.resolve(this.#target)
  }
  /** Notes a part. Returns its place in the request. */
  #cover(offset: number, bytes: number): number {
    const from = offset - this.offset
    const to = from + bytes
    if (!(from >= 0 && bytes > 0 && to <= this.requestBytes)) throw broken('an answer has bytes that were not asked for')
    const at = this.#covered.findIndex((one) => one.to >= from)
    if (at < 0) { this.#covered.push({ from, to }); return from }
    const next = this.#covered[at]!
    if (next.to === from) { // goes on after it
      const after = this.#covered[at + 1]
      if (after !== undefined && after.from < to) throw broken('an answer has bytes twice')
      next.to = to
      if (after?.from === to) { next.to = after.to; this.#covered.splice(at + 1, 1) }
      return from
    }
    if (next.from < to) throw broken('an answer has bytes twice')
    if (next.from === to) next.from = from
    else this.#covered.splice(at, 0, { from, to })
    return from
  }
}

export class StatusReply extends Reply implements PendingReply {
  readonly #byContext = new Map<number, readonly StatusExtent[]>()
  constructor(readonly contextIds: ReadonlySet<number>, requestBytes: number, askedAt: number,
    readonly resolve: (extents: ReadonlyMap<number, readonly StatusExtent[]>) => void, readonly reject: (error: Error) => void) { super(requestBytes, askedAt) }

  async take(header: ChunkHeader, stream: ByteStream): Promise<void> {
    const { type, length, isLast } = header
    if (isErrorChunk(type)) { await this.takeError(header, stream); return }
    if (type === REPLY_CHUNKS.none && length === 0 && isLast) return
    if (type !== REPLY_CHUNKS.blockStatus) throw broken(`a status is answered by a part of type ${type}`)
    if (length > STATUS_BYTES_MAX) throw broken('a status is longer than any')
    const { contextId, extents } = decodeStatus(await stream.take(length), this.requestBytes)
    if (!this.contextIds.has(contextId)) throw broken('a status is of a context that was not agreed on')
    if (this.#byContext.has(contextId)) throw broken('a status is of one context twice')
    this.#byContext.set(contextId, extents)
  }
  async takeSimple(error: number): Promise<void> {
    if (error === 0) throw broken('a status is answered without one')
    this.takeSimpleError(error)
  }
  finish(): void {
    if (this.failure !== undefined) { this.reject(this.failure); return }
    if (this.#byContext.size !== this.contextIds.size) throw broken('a status lacks a context that was agreed on')
    this.resolve(this.#byContext)
  }
}
/** Of a request that brings no bytes back: write, write zeroes, flush. */
export class DoneReply extends Reply implements PendingReply {
  constructor(askedAt: number, readonly resolve: () => void, readonly reject: (error: Error) => void) { super(0, askedAt) }

  async take(header: ChunkHeader, stream: ByteStream): Promise<void> {
    const { type, length, isLast } = header
    if (isErrorChunk(type)) { await this.takeError(header, stream); return }
    if (type !== REPLY_CHUNKS.none || length !== 0 || !isLast) throw broken('an answer has bytes that were not asked for')
  }
  async takeSimple(error: number): Promise<void> { if (error !== 0) this.takeSimpleError(error) }
  finish(): void {
    if (this.failure !== undefined) this.reject(this.failure)
    else this.resolve()
  }
}
/** After the magic. */
export const CHUNK_REST_BYTES = CHUNK_HEADER_BYTES - 4
