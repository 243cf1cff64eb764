/** Brings arenas of chunks to the server: asks what is missing, sends that, repeats what the way damaged. Main thread.
 *
 *  Bounded by construction: it holds no bytes but the arenas it was given (and zstd frames of the bodies in flight).
 *  An arena's promise resolves when each of its chunks is held for the session; only then may the buffer be filled anew.
 */
import type { Clock } from '../../src/core/clock.js'
import { Semaphore } from '../../src/core/concurrency.js'
import { RoostError } from '../../src/core/errors.js'
import { FRAME_HEADER_BYTES, FRAME_VERDICTS, hasBit, WIRE_CODECS, writeFrameHeader, type WireCodec } from '../../src/core/frames.js'
import { hashChunk, idOf } from '../../src/core/hash.js'
import { formatChunkId, ID_PROOF_BYTES, type SessionId } from '../../src/core/ids.js'
import { KiB } from '../../src/core/limits.js'
import type { WireLimits } from '../../src/core/messages.js'
import { zstdEncoder, type ZstdEncoder } from '../../src/core/zstd.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { RepositoryClient } from '../repository-client.js'
import type { Arena } from './arena.js'
import { WireChoice, type WireMode } from './wire-choice.js'

export interface UploaderOptions {
  readonly client: Pick<RepositoryClient, 'findMissing' | 'putChunks'>
  readonly session: SessionId
  readonly dedupKey: Buffer
  readonly limits: WireLimits
  readonly wireCodecs: readonly ('raw' | 'zstd')[]
  readonly wire: WireMode
  readonly limitBytesPerSecond?: number
  readonly clock: Clock
  readonly signal: AbortSignal
}
/** Cumulative. */
export interface UploadCounters { chunksAsked: number; chunksSent: number; bytesSent: number; bytesOnWire: number; framesRepeated: number }

const ZSTD_LEVEL = 1
/** Frames below this, or that shrink by less than a sixteenth, stay raw. */
const COMPRESS_FROM_BYTES = 128
/** Under --limit-upload one body goes at a time, and a short one: the server judges each body by its pace. */
const LIMITED_BODY_SECONDS = 10
const LIMITED_BODY_BYTES_MIN = 256 * KiB
const UNDECIDED_TRIES_MAX = 6
const UNDECIDED_WAIT_MS = 500

interface Body { readonly parts: Uint8Array[]; readonly chunks: readonly number[]; readonly plaintextBytes: number; readonly wireBytes: number }

export class Uploader {
  readonly counters: UploadCounters = { chunksAsked: 0, chunksSent: 0, bytesSent: 0, bytesOnWire: 0, framesRepeated: 0 }
  readonly #options: UploaderOptions
  readonly #bodies: Semaphore
  readonly #bodyBytesMax: number
  readonly #wire: WireChoice
  #encoder: ZstdEncoder | undefined
  #lastRequestMs: number
  constructor(options: UploaderOptions) {
    this.#options = options
    const limit = options.limitBytesPerSecond
    this.#bodies = new Semaphore(limit === undefined ? options.limits.sessionBodiesInFlightMax : 1)
    this.#bodyBytesMax = limit === undefined ? options.limits.bodyBytesMax
      : Math.min(options.limits.bodyBytesMax, Math.max(LIMITED_BODY_BYTES_MIN, limit * LIMITED_BODY_SECONDS))
    this.#wire = new WireChoice(options.wire, options.wireCodecs.includes('zstd'), options.limitBytesPerSecond)
    this.#lastRequestMs = options.clock.monotonicMs()
  }
  /** When the session last heard from us, on the monotonic clock. */
  get lastRequestMs(): number { return this.#lastRequestMs }

  /** @throws {RoostError} what the server refuses; {ClientError} TRANSFER_DAMAGED */
  async upload(arena: Arena): Promise<void> {
    let pending = await this.#missingOf(arena)
    let hadDamage = false
    for (let tries = 1; pending.length > 0; tries++) {
      const { undecided, damaged } = await this.#send(arena, pending, hadDamage ? WIRE_CODECS.raw : this.#wire.codec)
      if (damaged.length > 0 && hadDamage) throw this.#damageOf(arena, damaged[0]!)
      hadDamage ||= damaged.length > 0
      pending = [...undecided, ...damaged]
      this.counters.framesRepeated += pending.length
      if (undecided.length === 0) continue
      if (tries >= UNDECIDED_TRIES_MAX) throw new RoostError('SERVER_BUSY', 'The server could not take a chunk, again and again.')
      await this.#options.clock.sleep(UNDECIDED_WAIT_MS * tries, this.#options.signal)
    }
  }
  /** Keeps the session alive. */
  async touch(): Promise<void> { await this.#ask(Buffer.alloc(0)) }

  async #ask(idProofs: Buffer): Promise<Buffer> {
    const { client, session, signal, clock } = this.#options
    const missing = await client.findMissing(session, idProofs, { signal })
    this.#lastRequestMs = clock.monotonicMs()
    return missing
  }
  async #missingOf(arena: Arena): Promise<number[]> {
    const missing: number[] = []
    const step = this.#options.limits.missingIdsMax
    for (let from = 0; from < arena.count; from += step) {
      const count = Math.min(step, arena.count - from)
      const bitmap = await this.#ask(arena.idProofs.subarray(from * ID_PROOF_BYTES, (from + count) * ID_PROOF_BYTES))
      for (let i = 0; i < count; i++) if (hasBit(bitmap, i)) missing.push(from + i)
    }
    this.counters.chunksAsked += arena.count
    return missing
  }

  async #send(arena: Arena, chunks: readonly number[], codec: WireCodec): Promise<{ undecided: number[]; damaged: number[] }> {
    const outcome = { undecided: [] as number[], damaged: [] as number[] }
    for (let from = 0; from < chunks.length;) {
      let taken = 0
      await this.#bodies.within(1, this.#options.signal, async () => {
        this.#wire.begin(this.#options.clock.monotonicMs())
        let isOnItsWay = false
        const sent = (bytes: number): void => {
          if (!isOnItsWay) this.#wire.end(bytes, this.#options.clock.monotonicMs())
          isOnItsWay = true
        }
        try {
          const body = this.#makeBody(arena, chunks, from, codec)
          taken = body.chunks.length
          await this.#put(arena, body, outcome, () => { sent(body.plaintextBytes) })
        } finally {
          sent(0)
        }
      })
      from += taken
    }
    return outcome
  }
  async #put(arena: Arena, body: Body, outcome: { undecided: number[]; damaged: number[] }, onSent: () => void): Promise<void> {
    const { client, session, signal, clock } = this.#options
    const verdicts = await client.putChunks(session, body.parts, body.chunks.length, { signal, onSent })
    this.#lastRequestMs = clock.monotonicMs()
    this.counters.bytesOnWire += body.wireBytes
    body.chunks.forEach((chunk, i) => {
      const verdict = verdicts[i]!
      if (verdict === FRAME_VERDICTS.retry) outcome.undecided.push(chunk)
      else if (verdict === FRAME_VERDICTS.digestMismatch || verdict === FRAME_VERDICTS.undecodable) outcome.damaged.push(chunk)
      else {
        this.counters.chunksSent++
        this.counters.bytesSent += arena.lengths[chunk]!
      }
    })
  }

  /** As many of `chunks` from `from` on as one body takes. */
  #makeBody(arena: Arena, chunks: readonly number[], from: number, codec: WireCodec): Body {
    const { bodyFramesMax, bodyBytesMax } = this.#options.limits
    const writer = new BodyWriter(arena)
    let plaintextBytes = 0
    let to = from
    for (; to < chunks.length && to - from < bodyFramesMax; to++) {
      const i = chunks[to]!
      const rawBytes = arena.lengths[i]!
      if (to > from && (writer.bytes + FRAME_HEADER_BYTES + rawBytes > this.#bodyBytesMax || plaintextBytes + rawBytes > bodyBytesMax)) break
      const compressed = codec === WIRE_CODECS.zstd && rawBytes >= COMPRESS_FROM_BYTES ? this.#compress(arena.bytes(i)) : undefined
      if (compressed === undefined) writer.addRaw(i)
      else writer.addCompressed(i, compressed)
      plaintextBytes += rawBytes
    }
    return { parts: writer.finish(), chunks: chunks.slice(from, to), plaintextBytes, wireBytes: writer.bytes }
  }
  #compress(bytes: Buffer): Buffer | undefined {
    this.#encoder ??= zstdEncoder(ZSTD_LEVEL)
    const compressed = this.#encoder.encode(bytes)
    return compressed.byteLength < bytes.byteLength - (bytes.byteLength >> 4) ? Buffer.from(compressed) : undefined
  }
  /** Whose fault it is: hashing the bytes again tells this machine's memory from the way to the server. */
  #damageOf(arena: Arena, chunk: number): ClientError {
    const idProof = arena.idProof(chunk)
    const isOurs = !idOf(hashChunk(this.#options.dedupKey, arena.bytes(chunk), arena.kind(chunk))).equals(idOf(idProof))
    const where = isOurs ? 'in the memory of this machine' : 'on the way to the server, twice'
    return new ClientError('TRANSFER_DAMAGED', `Chunk ${formatChunkId(idProof)} was damaged ${where}. Nothing wrong was stored.`)
  }
}

/** Frames as slices of the arena: neighbours whose headers fit between them become one slice. */
class BodyWriter {
  readonly #parts: Uint8Array[] = []
  /** The open slice of the arena's payload. */
  #from = 0
  #to = 0
  bytes = 0
  constructor(readonly arena: Arena) {}
  addRaw(i: number): void {
    const { arena } = this
    const at = arena.offsets[i]!, rawBytes = arena.lengths[i]!
    const header = { rawBytes, wireBytes: rawBytes, kind: arena.kind(i), codec: WIRE_CODECS.raw }
    this.bytes += FRAME_HEADER_BYTES + rawBytes
    if (arena.hasHeaderRoom(i)) {
      writeFrameHeader(arena.payload, at - FRAME_HEADER_BYTES, header, idOf(arena.idProof(i)))
      if (at - FRAME_HEADER_BYTES !== this.#to) this.#cut(at - FRAME_HEADER_BYTES)
    } else {
      this.#cut(at)
      this.#addHeader(header, i)
    }
    this.#to = at + rawBytes
  }
  addCompressed(i: number, compressed: Buffer): void {
    const { arena } = this
    this.#cut(0)
    this.#addHeader({ rawBytes: arena.lengths[i]!, wireBytes: compressed.byteLength, kind: arena.kind(i), codec: WIRE_CODECS.zstd }, i)
    this.#parts.push(compressed)
    this.bytes += FRAME_HEADER_BYTES + compressed.byteLength
  }
  #addHeader(header: Parameters<typeof writeFrameHeader>[2], i: number): void {
    const bytes = Buffer.allocUnsafe(FRAME_HEADER_BYTES)
    writeFrameHeader(bytes, 0, header, idOf(this.arena.idProof(i)))
    this.#parts.push(bytes)
  }
  /** Ends the open slice; the next begins at `from`. */
  #cut(from: number): void {
    if (this.#to > this.#from) this.#parts.push(this.arena.payload.subarray(this.#from, this.#to))
    this.#from = from
    this.#to = from
  }
  finish(): Uint8Array[] {
    this.#cut(0)
    return this.#parts
  }
}
