/** NBD's handshake, the server's side: options until a client chose an export, asks for TLS, or leaves.
 *
 *  Bounds: OPTIONS_MAX options, each of OPTION_BYTES_MAX; one at a time, answered before the next is read.
 */
import {
  BASE_ALLOCATION, decodeClientFlags, decodeInfoRequest, decodeMetaContextRequest, decodeOptionHeader, encodeBlockSizeInfo, encodeExportInfo,
  encodeExportNameReply, encodeGreeting, encodeListed, encodeMetaContext, encodeOptionReply, encodeTextInfo, EXPORT_FLAGS, INFOS, NbdBreak,
  NAME_BYTES_MAX, OPTION_BYTES_MAX, OPTION_BYTES_SKIPPED_MAX, OPTION_HEADER_BYTES, OPTIONS, PAYLOAD_BYTES_MAX, REPLIES,
} from './protocol.js'
import type { RandomAccessImage } from './image-reader.js'
import type { SocketReader } from './socket-reader.js'

export interface ServedExport { readonly name: string; readonly description: string; readonly image: RandomAccessImage }
/** What a client and we agreed on. `allocation`: BLOCK_STATUS is answered for base:allocation. */
export interface Agreement { readonly served: ServedExport; readonly structured: boolean; readonly allocation: boolean }
export type NegotiationEnd = { readonly kind: 'serve'; readonly agreement: Agreement } | { readonly kind: 'start-tls' } | { readonly kind: 'left' }

export const ALLOCATION_CONTEXT_ID = 1
/** A client asks for a handful; one that lists and looks at each export, for a few times as many. */
const OPTIONS_MAX = 512
/** Any byte may be read; 4 KiB is what costs no more than less. */
const BLOCK_SIZES = { minimum: 1, preferred: 4096, maximum: PAYLOAD_BYTES_MAX } as const

/** Where the answers go; resolves when the peer's side took them. */
export type Send = (bytes: Buffer) => Promise<void>
/** `tls`: none; to be had by STARTTLS, without which nothing else is told; or done. */
export type TlsState = 'none' | 'required' | 'done'

export class Negotiation {
  #noZeroes = false
  #structured = false
  /** The export that base:allocation was agreed on for. */
  #allocationFor: string | undefined
  constructor(readonly exports: readonly ServedExport[], readonly tls: TlsState, readonly reader: SocketReader, readonly send: Send) {}

  /** The greeting: once for each connection, not again under TLS. @throws {NbdBreak} */
  async greet(): Promise<void> {
    await this.send(encodeGreeting())
    const { noZeroes } = decodeClientFlags(await this.reader.need(4))
    this.#noZeroes = noZeroes
  }
  get noZeroes(): boolean { return this.#noZeroes }
  /** As agreed before TLS began. */
  set noZeroes(agreed: boolean) { this.#noZeroes = agreed }

  /** @throws {NbdBreak} when the client is no NBD client, or goes away in the middle */
  async run(): Promise<NegotiationEnd> {
    for (let count = 0; count < OPTIONS_MAX; count++) {
      const bytes = await this.reader.read(OPTION_HEADER_BYTES)
      if (bytes === undefined) return { kind: 'left' }
      const { option, length } = decodeOptionHeader(bytes)
      if (length > OPTION_BYTES_SKIPPED_MAX) throw new NbdBreak('An option is longer than any that there is.')
      if (length > OPTION_BYTES_MAX) {
        await this.reader.skip(length)
        await this.#reply(option, REPLIES.errTooBig)
        continue
      }
      const end = await this.#answer(option, await this.reader.need(length))
      if (end !== undefined) return end
    }
    throw new NbdBreak('The client asks for option after option.')
  }

  async #answer(option: number, data: Buffer): Promise<NegotiationEnd | undefined> {
    if (option === OPTIONS.abort) {
      await this.#reply(option, REPLIES.ack)
      return { kind: 'left' }
    }
    if (this.tls === 'required' && option !== OPTIONS.startTls) {
      if (option === OPTIONS.exportName) throw new NbdBreak('The client wants an export without TLS.') // it has no way to be told
      await this.#reply(option, REPLIES.errTlsRequired)
      return undefined
    }
    switch (option) {
      case OPTIONS.startTls: return await this.#startTls(data)
      case OPTIONS.exportName: return await this.#exportName(data)
      case OPTIONS.list: await this.#list(data); return undefined
      case OPTIONS.info: case OPTIONS.go: return await this.#infoOrGo(option, data)
      case OPTIONS.structuredReply:
        if (data.byteLength === 0) this.#structured = true
        await this.#reply(option, data.byteLength === 0 ? REPLIES.ack : REPLIES.errInvalid)
        return undefined
      case OPTIONS.listMetaContext: case OPTIONS.setMetaContext: await this.#metaContext(option, data); return undefined
      default: await this.#reply(option, REPLIES.errUnsupported); return undefined
    }
  }
  async #startTls(data: Buffer): Promise<NegotiationEnd | undefined> {
    if (data.byteLength > 0) await this.#reply(OPTIONS.startTls, REPLIES.errInvalid)
    else if (this.tls === 'done') await this.#reply(OPTIONS.startTls, REPLIES.errInvalid)
    else if (this.tls === 'none') await this.#reply(OPTIONS.startTls, REPLIES.errPolicy)
    // What came before the answer would be taken for TLS, or worse for ours: no honest client sends it.
    else if (this.reader.socket.readableLength > 0) throw new NbdBreak('The client did not wait for the answer to STARTTLS.')
    else {
      await this.#reply(OPTIONS.startTls, REPLIES.ack)
      return { kind: 'start-tls' }
    }
    return undefined
  }
  async #exportName(data: Buffer): Promise<NegotiationEnd> {
    const served = data.byteLength > NAME_BYTES_MAX ? undefined : this.#find(data.toString('utf8'))
    if (served === undefined) throw new NbdBreak('The client wants an export that is not here.') // this option has no refusal
    await this.send(encodeExportNameReply(served.image.bytes, this.#flags(), this.#noZeroes))
    return this.#serve(served, data.toString('utf8'))
  }
  async #list(data: Buffer): Promise<void> {
    if (data.byteLength > 0) { await this.#reply(OPTIONS.list, REPLIES.errInvalid); return }
    for (const { name } of this.exports) await this.#reply(OPTIONS.list, REPLIES.server, encodeListed(name))
    await this.#reply(OPTIONS.list, REPLIES.ack)
  }
  async #infoOrGo(option: number, data: Buffer): Promise<NegotiationEnd | undefined> {
    const request = decodeInfoRequest(data)
    if (request === undefined) { await this.#reply(option, REPLIES.errInvalid); return undefined }
    const served = this.#find(request.name)
    if (served === undefined) { await this.#reply(option, REPLIES.errUnknown, Buffer.from('There is no such export.')); return undefined }
    await this.#reply(option, REPLIES.info, encodeExportInfo(served.image.bytes, this.#flags()))
    if (request.infos.includes(INFOS.name)) await this.#reply(option, REPLIES.info, encodeTextInfo(INFOS.name, served.name))
    if (request.infos.includes(INFOS.description)) await this.#reply(option, REPLIES.info, encodeTextInfo(INFOS.description, served.description))
    if (request.infos.includes(INFOS.blockSize))
      await this.#reply(option, REPLIES.info, encodeBlockSizeInfo(BLOCK_SIZES.minimum, BLOCK_SIZES.preferred, BLOCK_SIZES.maximum))
    await this.#reply(option, REPLIES.ack)
    return option === OPTIONS.go ? this.#serve(served, request.name) : undefined
  }
  async #metaContext(option: number, data: Buffer): Promise<void> {
    const request = decodeMetaContextRequest(data)
    if (option === OPTIONS.setMetaContext) this.#allocationFor = undefined // the former choice ends, also when this one fails
    if (request === undefined || !this.#structured) { await this.#reply(option, REPLIES.errInvalid); return }
    if (this.#find(request.name) === undefined) { await this.#reply(option, REPLIES.errUnknown, Buffer.from('There is no such export.')); return }
    const isList = option === OPTIONS.listMetaContext
    const wanted = isList && request.queries.length === 0 || request.queries.some((query) => query === BASE_ALLOCATION || isList && query === 'base:')
    if (wanted) await this.#reply(option, REPLIES.metaContext, encodeMetaContext(isList ? 0 : ALLOCATION_CONTEXT_ID, BASE_ALLOCATION))
    if (wanted && !isList) this.#allocationFor = request.name
    await this.#reply(option, REPLIES.ack)
  }

  /** The empty name is the one export where there is one only. */
  #find(name: string): ServedExport | undefined {
    return this.exports.find((one) => one.name === name) ?? (name === '' && this.exports.length === 1 ? this.exports[0] : undefined)
  }
  #serve(served: ServedExport, asked: string): NegotiationEnd {
    return { kind: 'serve', agreement: { served, structured: this.#structured, allocation: this.#allocationFor === asked } }
  }
  #flags(): number {
    const { hasFlags, readOnly, sendFlush, sendDf, canMultiConn, sendCache } = EXPORT_FLAGS
    return hasFlags | readOnly | sendFlush | canMultiConn | sendCache | (this.#structured ? sendDf : 0)
  }
  async #reply(option: number, type: number, data?: Uint8Array): Promise<void> {
    await this.send(encodeOptionReply(option, type, data))
  }
}
