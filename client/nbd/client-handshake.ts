/** NBD's handshake, the client's side: fixed newstyle, TLS where it is configured, structured replies, contexts, and the choice of an export.
 *
 *  A server that lacks what is newer is used without it: no contexts without structured replies, EXPORT_NAME instead of GO. TLS is never left
 *  out where it was asked for.
 */
import { connect as connectTcp, isIP, type Socket } from 'node:net'
import { connect as connectTls, type TLSSocket } from 'node:tls'
import { asBuffer } from '../../src/core/bytes.js'
import { describeCause } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { NbdClientTls, NbdSourceAddress } from '../image/open-source.js'
import { ByteStream, NbdLost } from './byte-stream.js'
import {
  broken, decodeExportNameReply, decodeGreeting, decodeInfo, decodeMessage, decodeMetaContext, decodeOptionReplyHeader, encodeClientFlags, encodeGoData,
  encodeMetaContextData, encodeOption, OPTION_REPLY_HEADER_BYTES, type BlockSizes, type ExportInfo,
} from './client-protocol.js'
import { HANDSHAKE_FLAGS, NAME_BYTES_MAX, OPTIONS, PAYLOAD_BYTES_MAX, REPLIES } from './protocol.js'

export interface NbdTarget {
  readonly address: NbdSourceAddress
  readonly exportName: string
  /** Contexts to ask for; the server grants those that it has. */
  readonly contexts: readonly string[]
}
/** What a server and we agreed on. */
export interface NbdAgreement extends ExportInfo {
  readonly isStructured: boolean
  readonly blockSizes: BlockSizes
  /** Those granted, by id. */
  readonly contexts: ReadonlyMap<number, string>
}

/** Of one option: a server has a handful of infos, and answers for each context that was asked for. */
const REPLIES_MAX = 64
/** Where a server does not say: what all take. */
const BLOCK_SIZES_UNTOLD: BlockSizes = { minimum: 1, maximum: PAYLOAD_BYTES_MAX }
/** ... but for servers of EXPORT_NAME, of which the protocol says this. */
const BLOCK_SIZES_OLD: BlockSizes = { minimum: 512, maximum: PAYLOAD_BYTES_MAX }
const EXPORT_NAME_ZEROES = 124

export const addressText = (address: NbdSourceAddress): string => address.kind === 'unix' ? address.path
  : `${isIP(address.host) === 6 ? `[${address.host}]` : address.host}:${address.port}`

/** What one read of the socket takes at most: into memory that is used again, where no TLS is in between. */
const READ_BYTES = 256 * 1024

/** Resolves when it is connected. @throws {ClientError} NBD_UNREACHABLE; `signal.reason` */
export async function connectSocket(address: NbdSourceAddress, signal: AbortSignal): Promise<{ readonly raw: Socket; readonly stream: ByteStream }> {
  signal.throwIfAborted()
  const place = address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port, noDelay: true, keepAlive: true }
  const mayLend = address.kind === 'unix' || address.tls === undefined
  let stream: ByteStream | undefined
  const onread = { buffer: Buffer.allocUnsafeSlow(READ_BYTES), callback: (count: number, buffer: Uint8Array) => stream!.feed(asBuffer(buffer).subarray(0, count)) }
  const socket = connectTcp({ ...place, ...(mayLend ? { onread } : {}) })
  const listening = stream = new ByteStream(socket)
  return await new Promise((resolve, reject) => {
    const onAbort = (): void => { socket.destroy(); reject(signal.reason as Error) }
    signal.addEventListener('abort', onAbort, { once: true })
    socket.once('connect', () => { signal.removeEventListener('abort', onAbort); resolve({ raw: socket, stream: listening }) })
    socket.on('error', (error) => {
      signal.removeEventListener('abort', onAbort)
      reject(new ClientError('NBD_UNREACHABLE', `No NBD server answers at ${addressText(address)}: ${describeCause(error)}`, { cause: error }))
    })
  })
}

/** The socket to go on with (another one under TLS) and what was agreed on.
 *  @throws {ClientError} NBD_REFUSED, NBD_BROKEN; {NbdLost} */
export async function shakeHands(first: ByteStream, target: NbdTarget): Promise<{ readonly stream: ByteStream; readonly agreement: NbdAgreement }> {
  if (Buffer.byteLength(target.exportName) > NAME_BYTES_MAX) throw refused(target, 'a name of an export is at most 4096 bytes')
  let stream = first
  const { flags } = decodeGreeting(await stream.take(18))
  if ((flags & HANDSHAKE_FLAGS.fixedNewstyle) === 0) throw refused(target, 'the server is too old: it does not speak the fixed newstyle')
  const noZeroes = (flags & HANDSHAKE_FLAGS.noZeroes) !== 0
  first.socket.write(encodeClientFlags(HANDSHAKE_FLAGS.fixedNewstyle | (noZeroes ? HANDSHAKE_FLAGS.noZeroes : 0)))
  const { address } = target
  if (address.kind === 'tcp' && address.tls !== undefined) stream = await startTls(stream, target, address.host, address.tls)
  const isStructured = isAck((await ask(stream, target, OPTIONS.structuredReply)).at(-1)!)
  const contexts = isStructured ? await askContexts(stream, target) : new Map<number, string>()
  return { stream, agreement: { isStructured, contexts, ...await choose(stream, target, noZeroes) } }
}

interface OptionReply { readonly type: number; readonly data: Buffer }
const isAck = ({ type }: OptionReply): boolean => type === REPLIES.ack
const isError = ({ type }: OptionReply): boolean => type >= 0x8000_0000

/** All answers to an option, up to the one that ends them. @throws {ClientError} NBD_REFUSED where TLS is wanted first */
async function ask(stream: ByteStream, target: NbdTarget, option: number, data?: Buffer): Promise<OptionReply[]> {
  stream.socket.write(encodeOption(option, data))
  const replies: OptionReply[] = []
  for (;;) {
    const { type, length } = decodeOptionReplyHeader(await stream.take(OPTION_REPLY_HEADER_BYTES), option)
    const reply = { type, data: await stream.take(length) }
    if (type === REPLIES.errTlsRequired) throw refused(target, 'the server wants TLS: nbds://')
    replies.push(reply)
    if (isAck(reply) || isError(reply)) return replies
    if (replies.length > REPLIES_MAX) throw broken('it answers on and on')
  }
}
async function askContexts(stream: ByteStream, target: NbdTarget): Promise<Map<number, string>> {
  const granted = new Map<number, string>()
  if (target.contexts.length === 0) return granted
  const replies = await ask(stream, target, OPTIONS.setMetaContext, encodeMetaContextData(target.exportName, target.contexts))
  if (isError(replies.at(-1)!)) return granted // it has none; whether it has the export, the choice of it tells
  for (const { data } of replies.slice(0, -1).filter(({ type }) => type === REPLIES.metaContext)) {
    const { id, name } = decodeMetaContext(data)
    if (!target.contexts.includes(name)) throw broken('it grants a context that was not asked for')
    if (granted.has(id) || [...granted.values()].includes(name)) throw broken('it grants a context twice')
    granted.set(id, name)
  }
  return granted
}
async function choose(stream: ByteStream, target: NbdTarget, noZeroes: boolean): Promise<ExportInfo & { readonly blockSizes: BlockSizes }> {
  const replies = await ask(stream, target, OPTIONS.go, encodeGoData(target.exportName))
  const last = replies.at(-1)!
  if (last.type === REPLIES.errUnsupported) return await chooseByName(stream, target, noZeroes)
  if (isError(last)) {
    const message = decodeMessage(last.data)
    throw refused(target, message === '' ? last.type === REPLIES.errUnknown ? 'there is no such export' : `the server refuses (${last.type & 0xffff})` : message)
  }
  let found: ExportInfo | undefined
  let blockSizes = BLOCK_SIZES_UNTOLD
  for (const { data } of replies.filter(({ type }) => type === REPLIES.info)) {
    const info = decodeInfo(data)
    if (info.kind === 'export') found = { bytes: info.bytes, flags: info.flags }
    else if (info.kind === 'block-size') blockSizes = { minimum: info.minimum, maximum: info.maximum }
  }
  if (found === undefined) throw broken('it does not say how long the export is')
  return { ...found, blockSizes }
}
async function chooseByName(stream: ByteStream, target: NbdTarget, noZeroes: boolean): Promise<ExportInfo & { readonly blockSizes: BlockSizes }> {
  stream.socket.write(encodeOption(OPTIONS.exportName, Buffer.from(target.exportName)))
  let reply: Buffer
  try {
    reply = await stream.take(10 + (noZeroes ? 0 : EXPORT_NAME_ZEROES))
  } catch (error) {
    if (!(error instanceof NbdLost)) throw error
    throw refused(target, 'the server ended the connection, which is how old ones refuse') // this option has no answer for it
  }
  return { ...decodeExportNameReply(reply), blockSizes: BLOCK_SIZES_OLD }
}

async function startTls(plain: ByteStream, target: NbdTarget, host: string, tls: NbdClientTls): Promise<ByteStream> {
  const [reply] = await ask(plain, target, OPTIONS.startTls)
  if (!isAck(reply!)) throw refused(target, 'the server has no TLS, and without it nothing is read from an nbds:// address')
  if (plain.hasBytes) throw broken('it goes on in plain after agreeing to TLS')
  plain.release()
  const { ca, cert, key, serverName = isIP(host) === 0 ? host : undefined } = tls
  return await new Promise((resolve, reject) => {
    const socket: TLSSocket = connectTls({ socket: plain.socket, host, minVersion: 'TLSv1.2', ...(serverName === undefined ? {} : { servername: serverName }),
      ...(ca === undefined ? {} : { ca }), ...(cert === undefined ? {} : { cert }), ...(key === undefined ? {} : { key }) })
    socket.once('secureConnect', () => { resolve(new ByteStream(socket)) })
    socket.on('error', (error) => { reject(new ClientError('NBD_REFUSED', `TLS with the NBD server failed: ${describeCause(error)}`, { cause: error })) })
    socket.once('close', () => { reject(new NbdLost('The NBD server ended the connection.')) })
  })
}
const refused = ({ address, exportName }: NbdTarget, reason: string): ClientError =>
  new ClientError('NBD_REFUSED', `The export "${exportName}" at ${addressText(address)} cannot be read: ${reason}.`)
