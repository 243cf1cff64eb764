/** The bytes of NBD (fixed newstyle, structured replies, base:allocation): encoding and decoding, nothing else. Server side.
 *
 *  Numbers are big-endian. Follows doc/proto.md of the NBD project; names are those of that document without NBD_. Every decoder takes
 *  bytes of a stranger: it answers undefined (malformed, refuse the option) or throws NbdBreak (no way to go on), never anything else.
 */

export const MAGIC = { nbd: 0x4e42444d41474943n, option: 0x49484156454f5054n, optionReply: 0x3e889045565a9n, request: 0x25609513, simpleReply: 0x67446698,
  structuredReply: 0x668e33ef } as const
export const HANDSHAKE_FLAGS = { fixedNewstyle: 1, noZeroes: 2 } as const
export const OPTIONS = { exportName: 1, abort: 2, list: 3, startTls: 5, info: 6, go: 7, structuredReply: 8, listMetaContext: 9, setMetaContext: 10 } as const
export const REPLIES = { ack: 1, server: 2, info: 3, metaContext: 4, errUnsupported: 0x8000_0001, errPolicy: 0x8000_0002, errInvalid: 0x8000_0003,
  errTlsRequired: 0x8000_0005, errUnknown: 0x8000_0006, errTooBig: 0x8000_0009 } as const
export const INFOS = { export: 0, name: 1, description: 2, blockSize: 3 } as const
export const EXPORT_FLAGS = { hasFlags: 1, readOnly: 2, sendFlush: 4, sendWriteZeroes: 0x40, sendDf: 0x80, canMultiConn: 0x100, sendCache: 0x400 } as const
export const COMMANDS = { read: 0, write: 1, disconnect: 2, flush: 3, trim: 4, cache: 5, writeZeroes: 6, blockStatus: 7, resize: 8 } as const
export const COMMAND_FLAGS = { fua: 1, noHole: 2, dontFragment: 4, requireOne: 8, fastZero: 16 } as const
export const ERRORS = { none: 0, permission: 1, io: 5, invalid: 22, overflow: 75, unsupported: 95, shutdown: 108 } as const
/** base:allocation. */
export const BLOCK_STATES = { data: 0, hole: 3 } as const
export const BASE_ALLOCATION = 'base:allocation'

/** Strings of the protocol. */
export const NAME_BYTES_MAX = 4096
/** Of one option's data: a name and as many queries as any client sends; longer ones are refused. */
export const OPTION_BYTES_MAX = 64 * 1024
/** What is read past and refused politely; beyond it, the connection ends. */
export const OPTION_BYTES_SKIPPED_MAX = 1024 * 1024
export const QUERIES_MAX = 64
export const PAYLOAD_BYTES_MAX = 32 * 1024 * 1024
export const OPTION_HEADER_BYTES = 16
export const REQUEST_BYTES = 28
const EXPORT_NAME_ZEROES = 124
const STRUCTURED_HEADER_BYTES = 20

/** The connection cannot go on: what came is not NBD, or not of a peer that waits for answers. */
export class NbdBreak extends Error {
  override readonly name = 'NbdBreak'
}

// ---- handshake ----

export function encodeGreeting(): Buffer {
  const bytes = Buffer.alloc(18)
  bytes.writeBigUInt64BE(MAGIC.nbd, 0)
  bytes.writeBigUInt64BE(MAGIC.option, 8)
  bytes.writeUInt16BE(HANDSHAKE_FLAGS.fixedNewstyle | HANDSHAKE_FLAGS.noZeroes, 16)
  return bytes
}
/** @throws {NbdBreak} */
export function decodeClientFlags(bytes: Buffer): { readonly noZeroes: boolean } {
  const flags = bytes.readUInt32BE(0)
  if ((flags & ~(HANDSHAKE_FLAGS.fixedNewstyle | HANDSHAKE_FLAGS.noZeroes)) !== 0) throw new NbdBreak('The client sets flags that nobody offered.')
  return { noZeroes: (flags & HANDSHAKE_FLAGS.noZeroes) !== 0 }
}
/** @throws {NbdBreak} for another magic */
export function decodeOptionHeader(bytes: Buffer): { readonly option: number; readonly length: number } {
  if (bytes.readBigUInt64BE(0) !== MAGIC.option) throw new NbdBreak('What came is no NBD option.')
  return { option: bytes.readUInt32BE(8), length: bytes.readUInt32BE(12) }
}
export function encodeOptionReply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.alloc(20 + data.byteLength)
  bytes.writeBigUInt64BE(MAGIC.optionReply, 0)
  bytes.writeUInt32BE(option, 8)
  bytes.writeUInt32BE(type, 12)
  bytes.writeUInt32BE(data.byteLength, 16)
  bytes.set(data, 20)
  return bytes
}
/** The end of negotiation by EXPORT_NAME. */
export function encodeExportNameReply(size: number, flags: number, noZeroes: boolean): Buffer {
  const bytes = Buffer.alloc(10 + (noZeroes ? 0 : EXPORT_NAME_ZEROES))
  bytes.writeBigUInt64BE(BigInt(size), 0)
  bytes.writeUInt16BE(flags, 8)
  return bytes
}
/** The data of a SERVER reply. */
export function encodeListed(name: string): Buffer {
  const text = Buffer.from(name, 'utf8')
  const bytes = Buffer.alloc(4 + text.byteLength)
  bytes.writeUInt32BE(text.byteLength, 0)
  text.copy(bytes, 4)
  return bytes
}
export function encodeExportInfo(size: number, flags: number): Buffer {
  const bytes = Buffer.alloc(12)
  bytes.writeUInt16BE(INFOS.export, 0)
  bytes.writeBigUInt64BE(BigInt(size), 2)
  bytes.writeUInt16BE(flags, 10)
  return bytes
}
export function encodeTextInfo(info: number, text: string): Buffer {
  const bytes = Buffer.alloc(2 + Buffer.byteLength(text))
  bytes.writeUInt16BE(info, 0)
  bytes.write(text, 2, 'utf8')
  return bytes
}
export function encodeBlockSizeInfo(minimum: number, preferred: number, maximum: number): Buffer {
  const bytes = Buffer.alloc(14)
  bytes.writeUInt16BE(INFOS.blockSize, 0)
  bytes.writeUInt32BE(minimum, 2)
  bytes.writeUInt32BE(preferred, 6)
  bytes.writeUInt32BE(maximum, 10)
  return bytes
}
export function encodeMetaContext(id: number, name: string): Buffer {
  const bytes = Buffer.alloc(4 + Buffer.byteLength(name))
  bytes.writeUInt32BE(id, 0)
  bytes.write(name, 4, 'utf8')
  return bytes
}

/** The data of INFO and GO; undefined: malformed. */
export function decodeInfoRequest(data: Buffer): { readonly name: string; readonly infos: readonly number[] } | undefined {
  const name = readString(data, 0)
  if (name === undefined || data.byteLength < name.end + 2) return undefined
  const count = data.readUInt16BE(name.end)
  if (data.byteLength !== name.end + 2 + 2 * count) return undefined
  return { name: name.text, infos: Array.from({ length: count }, (_, i) => data.readUInt16BE(name.end + 2 + 2 * i)) }
}
/** The data of LIST_META_CONTEXT and SET_META_CONTEXT; undefined: malformed. */
export function decodeMetaContextRequest(data: Buffer): { readonly name: string; readonly queries: readonly string[] } | undefined {
  const name = readString(data, 0)
  if (name === undefined || data.byteLength < name.end + 4) return undefined
  const count = data.readUInt32BE(name.end)
  if (count > QUERIES_MAX) return undefined
  const queries: string[] = []
  let at = name.end + 4
  for (let i = 0; i < count; i++) {
    const query = readString(data, at)
    if (query === undefined) return undefined
    queries.push(query.text)
    at = query.end
  }
  return at === data.byteLength ? { name: name.text, queries } : undefined
}
function readString(data: Buffer, at: number): { readonly text: string; readonly end: number } | undefined {
  if (data.byteLength < at + 4) return undefined
  const length = data.readUInt32BE(at)
  if (length > NAME_BYTES_MAX || data.byteLength < at + 4 + length) return undefined
  return { text: data.toString('utf8', at + 4, at + 4 + length), end: at + 4 + length }
}

// ---- transmission ----

/** `offset`: Infinity where it is past what a number holds exactly, which is past the end of anything. */
export interface NbdRequest { readonly flags: number; readonly command: number; readonly cookie: bigint; readonly offset: number; readonly length: number }

/** @throws {NbdBreak} for another magic: the peers are out of step */
export function decodeRequest(bytes: Buffer): NbdRequest {
  if (bytes.readUInt32BE(0) !== MAGIC.request) throw new NbdBreak('What came is no NBD request.')
  const offset = bytes.readBigUInt64BE(16)
  return {
    flags: bytes.readUInt16BE(4), command: bytes.readUInt16BE(6), cookie: bytes.readBigUInt64BE(8),
    offset: offset > BigInt(Number.MAX_SAFE_INTEGER) ? Infinity : Number(offset), length: bytes.readUInt32BE(24),
  }
}
export function encodeSimpleReply(cookie: bigint, error: number): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeUInt32BE(MAGIC.simpleReply, 0)
  bytes.writeUInt32BE(error, 4)
  bytes.writeBigUInt64BE(cookie, 8)
  return bytes
}
const CHUNK_TYPES = { none: 0, offsetData: 1, offsetHole: 2, blockStatus: 5, error: 0x8001 } as const

function structured(cookie: bigint, type: number, isLast: boolean, fixedBytes: number, followingBytes = 0): Buffer {
  const bytes = Buffer.alloc(STRUCTURED_HEADER_BYTES + fixedBytes)
  bytes.writeUInt32BE(MAGIC.structuredReply, 0)
  bytes.writeUInt16BE(isLast ? 1 : 0, 4)
  bytes.writeUInt16BE(type, 6)
  bytes.writeBigUInt64BE(cookie, 8)
  bytes.writeUInt32BE(fixedBytes + followingBytes, 16)
  return bytes
}
export const encodeNone = (cookie: bigint): Buffer => structured(cookie, CHUNK_TYPES.none, true, 0)
/** The data itself follows: `bytes` of it. */
export function encodeDataHeader(cookie: bigint, isLast: boolean, offset: number, bytes: number): Buffer {
  const header = structured(cookie, CHUNK_TYPES.offsetData, isLast, 8, bytes)
  header.writeBigUInt64BE(BigInt(offset), STRUCTURED_HEADER_BYTES)
  return header
}
export function encodeHole(cookie: bigint, isLast: boolean, offset: number, bytes: number): Buffer {
  const chunk = structured(cookie, CHUNK_TYPES.offsetHole, isLast, 12)
  chunk.writeBigUInt64BE(BigInt(offset), STRUCTURED_HEADER_BYTES)
  chunk.writeUInt32BE(bytes, STRUCTURED_HEADER_BYTES + 8)
  return chunk
}
export function encodeBlockStatus(cookie: bigint, contextId: number, blocks: readonly { readonly bytes: number; readonly state: number }[]): Buffer {
  const chunk = structured(cookie, CHUNK_TYPES.blockStatus, true, 4 + 8 * blocks.length)
  chunk.writeUInt32BE(contextId, STRUCTURED_HEADER_BYTES)
  blocks.forEach(({ bytes, state }, i) => {
    chunk.writeUInt32BE(bytes, STRUCTURED_HEADER_BYTES + 4 + 8 * i)
    chunk.writeUInt32BE(state, STRUCTURED_HEADER_BYTES + 8 + 8 * i)
  })
  return chunk
}
export function encodeErrorChunk(cookie: bigint, error: number, message: string): Buffer {
  const text = Buffer.from(message, 'utf8').subarray(0, NAME_BYTES_MAX)
  const chunk = structured(cookie, CHUNK_TYPES.error, true, 6 + text.byteLength)
  chunk.writeUInt32BE(error, STRUCTURED_HEADER_BYTES)
  chunk.writeUInt16BE(text.byteLength, STRUCTURED_HEADER_BYTES + 4)
  text.copy(chunk, STRUCTURED_HEADER_BYTES + 6)
  return chunk
}
