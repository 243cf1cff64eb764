/** The bytes of NBD as a client writes and reads them. Constants are protocol.ts's. Big-endian; decoders take bytes of a stranger.
 *
 *  Whatever does not keep to the protocol is NBD_BROKEN: nothing that such a server says can be used, so nothing of it is.
 */
import { ClientError } from '../../src/protocol/client-errors.js'
import { EXPORT_FLAGS, INFOS, MAGIC, NAME_BYTES_MAX } from './protocol.js'

export const OPTION_REPLY_HEADER_BYTES = 20
/** Of one reply to an option: names and messages, nothing longer. */
export const OPTION_REPLY_BYTES_MAX = 64 * 1024
export const CHUNK_HEADER_BYTES = 20
export const SIMPLE_REPLY_BYTES = 16
/** Of BLOCK_STATUS: no known server sends more extents at once than fit. */
export const STATUS_BYTES_MAX = 16 * 1024 * 1024
export const ERROR_BYTES_MAX = 64 * 1024
export const REPLY_CHUNKS = { none: 0, offsetData: 1, offsetHole: 2, blockStatus: 5, error: 0x8001, errorOffset: 0x8002 } as const
export const isErrorChunk = (type: number): boolean => (type & 0x8000) !== 0
const OLD_STYLE_MAGIC = 0x00420281861253n
const EXPORT_BYTES_MAX = 2 ** 52 - 1

export const broken = (problem: string): ClientError => new ClientError('NBD_BROKEN', `The NBD server does not keep to the protocol: ${problem}.`)

// ---- handshake ----

/** @throws {ClientError} NBD_BROKEN, NBD_REFUSED */
export function decodeGreeting(bytes: Buffer): { readonly flags: number } {
  if (bytes.readBigUInt64BE(0) !== MAGIC.nbd) throw broken('what it greets with is no greeting of NBD')
  const style = bytes.readBigUInt64BE(8)
  if (style === OLD_STYLE_MAGIC) throw new ClientError('NBD_REFUSED', 'The NBD server speaks the old style only, in which no export can be chosen.')
  if (style !== MAGIC.option) throw broken('what it greets with is no greeting of NBD')
  return { flags: bytes.readUInt16BE(16) }
}
export function encodeClientFlags(flags: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(flags)
  return bytes
}
export function encodeOption(option: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.alloc(16 + data.byteLength)
  bytes.writeBigUInt64BE(MAGIC.option, 0)
  bytes.writeUInt32BE(option, 8)
  bytes.writeUInt32BE(data.byteLength, 12)
  bytes.set(data, 16)
  return bytes
}
export function encodeGoData(exportName: string): Buffer {
  const infos = Buffer.alloc(4)
  infos.writeUInt16BE(1, 0)
  infos.writeUInt16BE(INFOS.blockSize, 2)
  return Buffer.concat([encodeText(exportName), infos])
}
export function encodeMetaContextData(exportName: string, contexts: readonly string[]): Buffer {
  const count = Buffer.alloc(4)
  count.writeUInt32BE(contexts.length)
  return Buffer.concat([encodeText(exportName), count, ...contexts.map(encodeText)])
}
function encodeText(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8')
  const length = Buffer.alloc(4)
  length.writeUInt32BE(bytes.byteLength)
  return Buffer.concat([length, bytes])
}

/** @throws {ClientError} NBD_BROKEN when it answers another option than `option`, or too long */
export function decodeOptionReplyHeader(bytes: Buffer, option: number): { readonly type: number; readonly length: number } {
  if (bytes.readBigUInt64BE(0) !== MAGIC.optionReply) throw broken('what came is no answer to an option')
  if (bytes.readUInt32BE(8) !== option) throw broken('it answers an option that was not asked')
  const length = bytes.readUInt32BE(16)
  if (length > OPTION_REPLY_BYTES_MAX) throw broken('an answer is longer than any that there is')
  return { type: bytes.readUInt32BE(12), length }
}
/** `minimum`: of offsets and lengths of reads. */
export interface BlockSizes { readonly minimum: number; readonly maximum: number }
export interface ExportInfo { readonly bytes: number; readonly flags: number }
export type Info = { readonly kind: 'export' } & ExportInfo | { readonly kind: 'block-size' } & BlockSizes | { readonly kind: 'other' }

/** @throws {ClientError} NBD_BROKEN */
export function decodeInfo(data: Buffer): Info {
  if (data.byteLength < 2) throw broken('an information has no kind')
  switch (data.readUInt16BE(0)) {
    case INFOS.export:
      if (data.byteLength !== 12) throw broken('what it says of the export is of the wrong length')
      return { kind: 'export', ...exportInfo(data.readBigUInt64BE(2), data.readUInt16BE(10)) }
    case INFOS.blockSize: {
      if (data.byteLength !== 14) throw broken('what it says of block sizes is of the wrong length')
      const [minimum, preferred, maximum] = [data.readUInt32BE(2), data.readUInt32BE(6), data.readUInt32BE(10)]
      const isPower = (value: number): boolean => Number.isInteger(Math.log2(value))
      if (!isPower(minimum) || minimum > 65_536 || !isPower(preferred) || preferred < 512 || preferred < minimum || maximum < minimum)
        throw broken('its block sizes are none')
      return { kind: 'block-size', minimum, maximum }
    }
    default: return { kind: 'other' }
  }
}
/** The answer to EXPORT_NAME, which has no header. */
export const decodeExportNameReply = (bytes: Buffer): ExportInfo => exportInfo(bytes.readBigUInt64BE(0), bytes.readUInt16BE(8))
function exportInfo(bytes: bigint, flags: number): ExportInfo {
  if (bytes > BigInt(EXPORT_BYTES_MAX)) throw broken('its export is longer than anything')
  if ((flags & EXPORT_FLAGS.hasFlags) === 0) throw broken('its export has no flags')
  return { bytes: Number(bytes), flags }
}
/** @throws {ClientError} NBD_BROKEN */
export function decodeMetaContext(data: Buffer): { readonly id: number; readonly name: string } {
  if (data.byteLength < 4 || data.byteLength > 4 + NAME_BYTES_MAX) throw broken('a context has no name, or too long a one')
  return { id: data.readUInt32BE(0), name: data.toString('utf8', 4) }
}
/** What a server says of a refusal; it may be anything, so it is shown as text of one line. */
export function decodeMessage(data: Buffer): string {
  return data.subarray(0, NAME_BYTES_MAX).toString('utf8').replace(/[\p{Cc}\p{Cf}]+/gu, ' ').trim()
}

// ---- transmission ----

export function encodeRequest(command: number, cookie: bigint, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(28)
  bytes.writeUInt32BE(MAGIC.request, 0)
  bytes.writeUInt16BE(command, 6)
  bytes.writeBigUInt64BE(cookie, 8)
  bytes.writeBigUInt64BE(BigInt(offset), 16)
  bytes.writeUInt32BE(length, 24)
  return bytes
}
export interface ChunkHeader { readonly isLast: boolean; readonly type: number; readonly cookie: bigint; readonly length: number }
/** Without its magic, which is read first. @throws {ClientError} NBD_BROKEN */
export function decodeChunkHeader(rest: Buffer): ChunkHeader {
  const flags = rest.readUInt16BE(0)
  if (flags > 1) throw broken('a part of an answer has flags that there are not')
  return { isLast: flags === 1, type: rest.readUInt16BE(2), cookie: rest.readBigUInt64BE(4), length: rest.readUInt32BE(12) }
}
/** Offsets past what a number holds are past the end of any request. */
export function decodeOffset(bytes: Buffer, at = 0): number {
  const offset = bytes.readBigUInt64BE(at)
  return offset > BigInt(Number.MAX_SAFE_INTEGER) ? Infinity : Number(offset)
}
/** @throws {ClientError} NBD_BROKEN */
export function decodeErrorChunk(payload: Buffer): { readonly error: number; readonly message: string } {
  if (payload.byteLength < 6) throw broken('an error has no code')
  const error = payload.readUInt32BE(0)
  const length = payload.readUInt16BE(4)
  if (error === 0 || 6 + length > payload.byteLength) throw broken('an error is none, or longer than it is')
  return { error, message: decodeMessage(payload.subarray(6, 6 + length)) }
}
export interface StatusExtent { readonly bytes: number; readonly flags: number }
/** @throws {ClientError} NBD_BROKEN: no extent, one of no length, or more than the last past what was asked for */
export function decodeStatus(payload: Buffer, requestBytes: number): { readonly contextId: number; readonly extents: StatusExtent[] } {
  if (payload.byteLength < 12 || payload.byteLength % 8 !== 4) throw broken('a status is of the wrong length')
  const extents: StatusExtent[] = []
  let sum = 0
  for (let at = 4; at < payload.byteLength; at += 8) {
    if (sum >= requestBytes) throw broken('a status goes on past what was asked for')
    const bytes = payload.readUInt32BE(at)
    if (bytes === 0) throw broken('a status is of no bytes')
    // Only the last may say more than was asked: that part was not asked, and is not used.
    extents.push({ bytes: Math.min(bytes, requestBytes - sum), flags: payload.readUInt32BE(at + 4) })
    sum += bytes
  }
  return { contextId: payload.readUInt32BE(0), extents }
}
