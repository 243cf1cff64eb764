/** Binary bodies of the push and read paths (docs/protocol.md §4–§6): chunk frames in, verdicts out; ids in, read frames out.
 *
 *  Chunk frame, little-endian: 0 rawBytes u32 | 4 wireBytes u32 | 8 kind u8 | 9 codec u8 | 10 zero u16 | 12 id 32 | 44 payload.
 *  Read frame:                 0 index u32 | 4 rawBytes u32 | 8 wireBytes u32 | 12 status u8 | 13 kind u8 | 14 codec u8 | 15 zero u8 | 16 payload.
 *  A read stream ends with a frame whose index is READ_END; a stream without it was cut.
 */
import { RoostError } from './errors.js'
import { CHUNK_ID_BYTES, isChunkKind, type ChunkKind } from './ids.js'
import { LIMITS } from './limits.js'

export const WIRE_CODECS = { raw: 0, zstd: 1 } as const
export type WireCodec = (typeof WIRE_CODECS)[keyof typeof WIRE_CODECS]

export const FRAME_HEADER_BYTES = 44
export const READ_FRAME_HEADER_BYTES = 16
export const READ_END = 0xffff_ffff

/** One byte per frame of a chunks body. `retry`: the server could not decide; send this frame again. */
export const FRAME_VERDICTS = { stored: 0, duplicate: 1, digestMismatch: 2, undecodable: 3, retry: 4 } as const
export type FrameVerdict = (typeof FRAME_VERDICTS)[keyof typeof FRAME_VERDICTS]

/** `missing` covers damaged and absent alike; the body of such a frame is empty. */
export const READ_STATUS = { ok: 0, missing: 1, notReadable: 2 } as const
export type ReadStatus = (typeof READ_STATUS)[keyof typeof READ_STATUS]

export interface FrameHeader {
  readonly rawBytes: number; readonly wireBytes: number; readonly kind: ChunkKind; readonly codec: WireCodec
}

export function writeFrameHeader(into: Buffer, at: number, frame: FrameHeader, id: Uint8Array): void {
  into.writeUInt32LE(frame.rawBytes, at)
  into.writeUInt32LE(frame.wireBytes, at + 4)
  into[at + 8] = frame.kind
  into[at + 9] = frame.codec
  into.writeUInt16LE(0, at + 10)
  into.set(id, at + 12)
}

/** Places of the frames of one body: struct of arrays, no object per frame. Offsets are of payloads within `body`. */
export interface FrameTable {
  readonly body: Buffer
  readonly count: number
  readonly rawBytes: Uint32Array
  readonly wireBytes: Uint32Array
  readonly payloadAt: Uint32Array
  readonly kinds: Uint8Array
  readonly codecs: Uint8Array
}
/** A view of the claimed id of frame i. */
export function frameId(table: FrameTable, i: number): Buffer {
  const at = table.payloadAt[i]! - CHUNK_ID_BYTES
  return table.body.subarray(at, at + CHUNK_ID_BYTES)
}

/** Checks every header and bound of a whole body. Linear; ids are not yet verified. The plaintext of all frames together is bounded like the
 *  body itself: small compressed frames must not unfold to more memory than was admitted.
 *  @throws {RoostError} FRAME_MALFORMED, LIMIT_EXCEEDED */
export function parseFrames(body: Buffer): FrameTable {
  const limit = LIMITS.bodyFramesMax
  let rawBytes = new Uint32Array(256), wireBytes = new Uint32Array(256), payloadAt = new Uint32Array(256)
  let kinds = new Uint8Array(256), codecs = new Uint8Array(256)
  let at = 0, count = 0, rawTotal = 0
  while (at < body.byteLength) {
    if (count === limit) throw new RoostError('LIMIT_EXCEEDED', `A body holds at most ${limit} frames.`, { limit })
    if (at + FRAME_HEADER_BYTES > body.byteLength) throw frameMalformed('a header is cut short', at)
    if (count === rawBytes.length) {
      const grow = <A extends Uint32Array | Uint8Array>(from: A, make: (n: number) => A): A => {
        const to = make(count * 2)
        to.set(from)
        return to
      }
      rawBytes = grow(rawBytes, (n) => new Uint32Array(n)); wireBytes = grow(wireBytes, (n) => new Uint32Array(n))
      payloadAt = grow(payloadAt, (n) => new Uint32Array(n)); kinds = grow(kinds, (n) => new Uint8Array(n))
      codecs = grow(codecs, (n) => new Uint8Array(n))
    }
    const raw = body.readUInt32LE(at), wire = body.readUInt32LE(at + 4)
    const kind = body[at + 8]!, codec = body[at + 9]!
    if (!isChunkKind(kind)) throw frameMalformed('its kind is unknown', at)
    if (codec !== WIRE_CODECS.raw && codec !== WIRE_CODECS.zstd) throw frameMalformed('its codec is unknown', at)
    if (body.readUInt16LE(at + 10) !== 0) throw frameMalformed('reserved bytes are set', at)
    const rawMax = kind === 2 ? LIMITS.nodeBytesMax : LIMITS.chunkBytesMax
    if (raw === 0 || raw > rawMax) throw frameMalformed(`its length ${raw} is out of bounds`, at)
    if (codec === WIRE_CODECS.raw ? wire !== raw : wire > raw) throw frameMalformed('its lengths disagree', at)
    if (wire > body.byteLength - at - FRAME_HEADER_BYTES) throw frameMalformed('its payload is cut short', at)
    rawTotal += raw
    if (rawTotal > LIMITS.bodyBytesMax)
      throw new RoostError('LIMIT_EXCEEDED', `The chunks of a body have at most ${LIMITS.bodyBytesMax} bytes together.`, { limit: LIMITS.bodyBytesMax })
    rawBytes[count] = raw; wireBytes[count] = wire; payloadAt[count] = at + FRAME_HEADER_BYTES
    kinds[count] = kind; codecs[count] = codec
    count++
    at += FRAME_HEADER_BYTES + wire
  }
  if (count === 0) throw frameMalformed('the body is empty', 0)
  return { body, count, rawBytes, wireBytes, payloadAt, kinds, codecs }
}
function frameMalformed(problem: string, offset: number): RoostError {
  return new RoostError('FRAME_MALFORMED', `A chunk frame is malformed: ${problem}.`, { offset })
}

export interface ReadFrameHeader {
  readonly index: number; readonly rawBytes: number; readonly wireBytes: number
  readonly status: ReadStatus; readonly kind: number; readonly codec: WireCodec
}
export function encodeReadFrameHeader(frame: ReadFrameHeader): Buffer {
  const bytes = Buffer.allocUnsafe(READ_FRAME_HEADER_BYTES)
  bytes.writeUInt32LE(frame.index, 0)
  bytes.writeUInt32LE(frame.rawBytes, 4)
  bytes.writeUInt32LE(frame.wireBytes, 8)
  bytes[12] = frame.status; bytes[13] = frame.kind; bytes[14] = frame.codec; bytes[15] = 0
  return bytes
}
/** @throws {RoostError} FRAME_MALFORMED when a length is over the chunk limit. */
export function decodeReadFrameHeader(bytes: Buffer): ReadFrameHeader {
  const rawBytes = bytes.readUInt32LE(4), wireBytes = bytes.readUInt32LE(8)
  if (rawBytes > LIMITS.chunkBytesMax || wireBytes > LIMITS.chunkBytesMax) throw frameMalformed('a read frame is too long', 0)
  return { index: bytes.readUInt32LE(0), rawBytes, wireBytes, status: bytes[12] as ReadStatus, kind: bytes[13]!, codec: bytes[14] as WireCodec }
}

/** Bit i, least significant first, of a bitmap. */
export const hasBit = (bitmap: Uint8Array, i: number): boolean => (bitmap[i >> 3]! & (1 << (i & 7))) !== 0
export const setBit = (bitmap: Uint8Array, i: number): void => { bitmap[i >> 3]! |= 1 << (i & 7) }
