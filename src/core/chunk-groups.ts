/** Chunks as servers send them to each other: groups of one kind, compressed together as they are in a pack (docs/protocol.md §13).
 *
 *  Group, little-endian: 0 count u32 | 4 wireBytes u32 | 8 kind u8 | 9 codec u8 | 10 zero u16 | 12 count × (rawBytes u32, id 32) | payload.
 *  The payload is the chunks one after the other, raw or as one zstd frame. Codec `absent`: the sender has them not, or only damaged (lengths and
 *  payload zero). A stream ends with a group of codec `end`; one without it was cut.
 */
import { ByteReader, ByteWriter } from './bytes.js'
import { RoostError } from './errors.js'
import { FRAME_HEADER_BYTES, WIRE_CODECS, writeFrameHeader } from './frames.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, isChunkKind, type ChunkKind } from './ids.js'
import { LIMITS } from './limits.js'
import { zstdDecode } from './zstd.js'

export const GROUP_HEADER_BYTES = 12
export const GROUP_ENTRY_BYTES = 4 + CHUNK_ID_BYTES
export const GROUP_CODECS = { raw: 0, zstd: 1, absent: 2, end: 3 } as const
type GroupCodec = (typeof GROUP_CODECS)[keyof typeof GROUP_CODECS]

export interface GroupHeader { readonly count: number; readonly wireBytes: number; readonly kind: ChunkKind; readonly codec: GroupCodec }
export interface ChunkGroup {
  readonly kind: ChunkKind
  readonly codec: typeof GROUP_CODECS.raw | typeof GROUP_CODECS.zstd | typeof GROUP_CODECS.absent
  /** Packed, 32 bytes each. */
  readonly ids: Buffer
  readonly rawBytes: Uint32Array
  readonly payload: Buffer
}
export const rawBytesOf = ({ rawBytes }: ChunkGroup): number => rawBytes.reduce((sum, bytes) => sum + bytes, 0)
/** On the wire. */
export const bytesOfGroup = ({ rawBytes, payload }: ChunkGroup): number => GROUP_HEADER_BYTES + rawBytes.length * GROUP_ENTRY_BYTES + payload.byteLength

/** In pieces; the last is the payload itself. */
export function encodeGroup({ kind, codec, ids, rawBytes, payload }: ChunkGroup): Buffer[] {
  const writer = new ByteWriter(GROUP_HEADER_BYTES + rawBytes.length * GROUP_ENTRY_BYTES)
  writer.u32(rawBytes.length).u32(payload.byteLength).u8(kind).u8(codec).u16(0)
  for (let i = 0; i < rawBytes.length; i++) writer.u32(rawBytes[i]!).bytes(ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))
  return payload.byteLength === 0 ? [writer.finish()] : [writer.finish(), payload]
}
export const encodeGroupsEnd = (): Buffer => new ByteWriter(GROUP_HEADER_BYTES).u32(0).u32(0).u8(CHUNK_KINDS.data).u8(GROUP_CODECS.end).u16(0).finish()

/** Bounds everything that it announces, before any of that costs memory. @throws {RoostError} FRAME_MALFORMED */
export function decodeGroupHeader(bytes: Buffer): GroupHeader {
  const reader = new ByteReader(bytes, malformed)
  const count = reader.u32('count', LIMITS.bodyFramesMax), wireBytes = reader.u32('wire bytes', LIMITS.bodyBytesMax)
  const kind = reader.u8('kind'), codec = reader.u8('codec')
  if (!isChunkKind(kind)) throw malformed('its kind is unknown')
  if (codec > GROUP_CODECS.end || reader.u16('reserved') !== 0) throw malformed('its codec is unknown')
  const isEmpty = count === 0 && wireBytes === 0
  if (codec === GROUP_CODECS.end ? !isEmpty : count === 0 || (codec === GROUP_CODECS.absent) !== (wireBytes === 0)) throw malformed('its lengths disagree')
  return { count, wireBytes, kind, codec: codec as GroupCodec }
}
/** @param bytes entries and payload of a header that is not `end` */
export function decodeGroupBody(header: GroupHeader, bytes: Buffer): ChunkGroup {
  const { count, wireBytes, kind, codec } = header
  const reader = new ByteReader(bytes, malformed)
  const ids = Buffer.allocUnsafe(count * CHUNK_ID_BYTES), rawBytes = new Uint32Array(count)
  const chunkMax = kind === CHUNK_KINDS.node ? LIMITS.nodeBytesMax : LIMITS.chunkBytesMax
  let total = 0
  for (let i = 0; i < count; i++) {
    rawBytes[i] = reader.u32('chunk length', chunkMax)
    if ((codec === GROUP_CODECS.absent) !== (rawBytes[i] === 0)) throw malformed('a chunk has no length')
    total += rawBytes[i]!
    reader.bytes(CHUNK_ID_BYTES, 'id').copy(ids, i * CHUNK_ID_BYTES)
  }
  if (total + count * FRAME_HEADER_BYTES > LIMITS.bodyBytesMax) throw malformed('its chunks are too long together')
  const payload = reader.bytes(wireBytes, 'payload')
  reader.expectEnd('a group')
  if (codec === GROUP_CODECS.raw && total !== wireBytes) throw malformed('its lengths disagree')
  return { kind, codec: codec as ChunkGroup['codec'], ids, rawBytes, payload }
}
export const groupBodyBytes = ({ count, wireBytes }: GroupHeader): number => count * GROUP_ENTRY_BYTES + wireBytes

/** All groups of a body, as views of it. Their chunks together are bounded like those of a body of frames.
 *  @throws {RoostError} FRAME_MALFORMED; LIMIT_EXCEEDED */
export function parseGroups(body: Buffer): ChunkGroup[] {
  const groups: ChunkGroup[] = []
  let frames = 0, rawTotal = 0
  for (let at = 0; at < body.byteLength;) {
    if (body.byteLength - at < GROUP_HEADER_BYTES) throw malformed('a header is cut short')
    const header = decodeGroupHeader(body.subarray(at, at + GROUP_HEADER_BYTES))
    if (header.codec === GROUP_CODECS.end || header.codec === GROUP_CODECS.absent) throw malformed('a group without chunks is sent')
    at += GROUP_HEADER_BYTES
    const bytes = groupBodyBytes(header)
    if (body.byteLength - at < bytes) throw malformed('a group is cut short')
    const group = decodeGroupBody(header, body.subarray(at, at + bytes))
    at += bytes
    frames += header.count
    rawTotal += rawBytesOf(group)
    if (frames > LIMITS.bodyFramesMax || rawTotal + frames * FRAME_HEADER_BYTES > LIMITS.bodyBytesMax)
      throw new RoostError('LIMIT_EXCEEDED', `The chunks of a body have at most ${LIMITS.bodyBytesMax} bytes together.`, { limit: LIMITS.bodyBytesMax })
    groups.push(group)
  }
  if (groups.length === 0) throw malformed('the body is empty')
  return groups
}

/** The chunks of a group one after the other; undefined when the payload does not decompress to them. */
export function openGroup(group: ChunkGroup): Buffer | undefined {
  return group.codec === GROUP_CODECS.zstd ? zstdDecode(group.payload, rawBytesOf(group)) : group.payload
}

/** The frames of docs/protocol.md §5 that groups unfold to. A payload that does not decompress gives frames whose ids cannot fit, so that each of its
 *  chunks is refused like any damaged one. Memory: of the size of the chunks; call it where that may cost time. */
export function unfoldGroups(groups: readonly ChunkGroup[]): { readonly buffer: SharedArrayBuffer; readonly bytes: number } {
  const bytes = groups.reduce((sum, group) => sum + rawBytesOf(group) + group.rawBytes.length * FRAME_HEADER_BYTES, 0)
  const buffer = new SharedArrayBuffer(bytes)
  const body = Buffer.from(buffer)
  let at = 0
  for (const group of groups) {
    const raw = openGroup(group)
    let from = 0
    for (let i = 0; i < group.rawBytes.length; i++) {
      const rawBytes = group.rawBytes[i]!
      writeFrameHeader(body, at, { rawBytes, wireBytes: rawBytes, kind: group.kind, codec: WIRE_CODECS.raw }, group.ids.subarray(i * CHUNK_ID_BYTES, (i + 1) * CHUNK_ID_BYTES))
      at += FRAME_HEADER_BYTES
      if (raw !== undefined) body.set(raw.subarray(from, from + rawBytes), at)
      from += rawBytes
      at += rawBytes
    }
  }
  return { buffer, bytes }
}

function malformed(problem: string): RoostError {
  return new RoostError('FRAME_MALFORMED', `A group of chunks is malformed: ${problem}.`)
}
