/** An NBD client for tests, written against the specification and not with the server's codec: honest by its methods, hostile by `socket`. */
import { connect, type Socket } from 'node:net'
import { connect as connectTls, type ConnectionOptions } from 'node:tls'
import type { NbdAddress } from '../../client/nbd/server.js'

export interface OptionReply { readonly option: number; readonly type: number; readonly data: Buffer }
export interface NbdBlock { readonly bytes: number; readonly flags: number }
/** One answer, all its chunks; `data` undefined: a hole. */
export interface NbdReply { readonly cookie: bigint; readonly error: number; readonly message: string; readonly pieces: { offset: number; data: Buffer | undefined; bytes: number }[]
  readonly blocks: NbdBlock[]; readonly isStructured: boolean }

export class NbdTestClient {
  #came: Buffer[] = []
  #cameBytes = 0
  #ended = false
  #wake: () => void = () => undefined
  /** Lengths of simple replies to reads, by cookie. */
  readonly #expected = new Map<bigint, number>()
  #cookie = 0n
  constructor(public socket: Socket) { this.#listen(socket) }

  static async connect(address: NbdAddress): Promise<NbdTestClient> {
    const socket = address.kind === 'unix' ? connect({ path: address.path }) : connect({ host: address.host, port: address.port })
    const client = new NbdTestClient(socket)
    await new Promise<void>((resolve, reject) => { socket.once('connect', resolve); socket.once('error', reject) })
    return client
  }
  /** Greeted, and `name` chosen by GO. */
  static async ready(address: NbdAddress, { name = '', structured = true, allocation = false } = {}): Promise<NbdTestClient> {
    const client = await NbdTestClient.connect(address)
    await client.greet()
    if (structured) await client.option(8)
    if (allocation) await client.option(10, metaContextData(name, ['base:allocation']))
    const replies = await client.option(7, infoData(name))
    if (replies.at(-1)!.type !== 1) throw new Error(`GO was refused: ${replies.at(-1)!.type.toString(16)}`)
    return client
  }
  #listen(socket: Socket): void {
    socket.on('data', (bytes: Buffer) => { this.#came.push(bytes); this.#cameBytes += bytes.byteLength; this.#wake() })
    for (const event of ['end', 'close', 'error']) socket.on(event, () => { this.#ended = true; this.#wake() })
  }
  async read(count: number): Promise<Buffer> {
    while (this.#cameBytes < count) {
      if (this.#ended) throw new Error('the server ended the connection')
      await new Promise<void>((resolve) => { this.#wake = resolve })
    }
    const parts: Buffer[] = []
    for (let left = count; left > 0;) {
      const first = this.#came[0]!
      parts.push(first.subarray(0, left))
      if (first.byteLength <= left) this.#came.shift()
      else this.#came[0] = first.subarray(left)
      left -= Math.min(left, first.byteLength)
    }
    this.#cameBytes -= count
    return Buffer.concat(parts)
  }
  /** Resolves when the server ended the connection. */
  async gone(): Promise<void> {
    while (!this.#ended) await new Promise<void>((resolve) => { this.#wake = resolve })
  }
  get isGone(): boolean { return this.#ended }

  async greet(flags = 3): Promise<void> {
    const greeting = await this.read(18)
    if (greeting.toString('latin1', 0, 16) !== 'NBDMAGICIHAVEOPT') throw new Error('no NBD greeting')
    this.socket.write(u32(flags))
  }
  /** All replies, up to the one that ends them. */
  async option(option: number, data: Buffer = Buffer.alloc(0)): Promise<OptionReply[]> {
    this.socket.write(optionBytes(option, data))
    const replies: OptionReply[] = []
    for (;;) {
      const header = await this.read(20)
      if (header.readBigUInt64BE(0) !== 0x3e889045565a9n) throw new Error('no option reply')
      const reply = { option: header.readUInt32BE(8), type: header.readUInt32BE(12), data: await this.read(header.readUInt32BE(16)) }
      replies.push(reply)
      if (reply.type === 1 || reply.type >= 0x8000_0000) return replies
    }
  }
  /** After an answered STARTTLS. */
  async secure(options: ConnectionOptions): Promise<void> {
    this.socket.removeAllListeners('data')
    const socket = connectTls({ ...options, socket: this.socket })
    this.#listen(socket)
    await new Promise<void>((resolve, reject) => { socket.once('secureConnect', resolve); socket.once('error', reject); socket.once('close', () => reject(new Error('closed'))) })
    this.socket = socket
  }
  send(command: number, offset: number | bigint, length: number, flags = 0, payload: Buffer = Buffer.alloc(0)): bigint {
    const cookie = ++this.#cookie
    if (command === 0) this.#expected.set(cookie, length)
    this.socket.write(Buffer.concat([requestBytes(command, cookie, offset, length, flags), payload]))
    return cookie
  }
  async reply(): Promise<NbdReply> {
    const pieces: NbdReply['pieces'] = []
    const blocks: NbdBlock[] = []
    let error = 0, message = ''
    for (;;) {
      const magic = (await this.read(4)).readUInt32BE(0)
      if (magic === 0x67446698) {
        const rest = await this.read(12)
        error = rest.readUInt32BE(0)
        const cookie = rest.readBigUInt64BE(4)
        const bytes = this.#expected.get(cookie)
        if (error === 0 && bytes !== undefined) pieces.push({ offset: 0, bytes, data: await this.read(bytes) })
        return { cookie, error, message, pieces, blocks, isStructured: false }
      }
      if (magic !== 0x668e33ef) throw new Error(`no reply: ${magic.toString(16)}`)
      const rest = await this.read(16)
      const [flags, type, cookie] = [rest.readUInt16BE(0), rest.readUInt16BE(2), rest.readBigUInt64BE(4)]
      const payload = await this.read(rest.readUInt32BE(12))
      if (type === 1) pieces.push({ offset: Number(payload.readBigUInt64BE(0)), bytes: payload.byteLength - 8, data: payload.subarray(8) })
      else if (type === 2) pieces.push({ offset: Number(payload.readBigUInt64BE(0)), bytes: payload.readUInt32BE(8), data: undefined })
      else if (type === 5) for (let at = 4; at < payload.byteLength; at += 8) blocks.push({ bytes: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) })
      else if (type === 0x8001) {
        error = payload.readUInt32BE(0)
        message = payload.toString('utf8', 6, 6 + payload.readUInt16BE(4))
      } else if (type !== 0) throw new Error(`unexpected chunk ${type}`)
      if ((flags & 1) !== 0) return { cookie, error, message, pieces, blocks, isStructured: true }
    }
  }
  async ask(command: number, offset: number | bigint, length: number, flags = 0, payload?: Buffer): Promise<NbdReply> {
    this.send(command, offset, length, flags, payload)
    return await this.reply()
  }
  /** The bytes of a read that must succeed; they must come without gaps, in order. */
  async bytes(offset: number, length: number, flags = 0): Promise<Buffer> {
    const { error, pieces } = await this.ask(0, offset, length, flags)
    if (error !== 0) throw new Error(`error ${error}`)
    return Buffer.concat(pieces.map(({ data, bytes }) => data ?? Buffer.alloc(bytes)))
  }
  destroy(): void { this.socket.destroy() }
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
export function optionBytes(option: number, data: Uint8Array, length = data.byteLength): Buffer {
  return Buffer.concat([Buffer.from('IHAVEOPT', 'latin1'), u32(option), u32(length), data])
}
export function infoData(name: string, infos: readonly number[] = []): Buffer {
  const text = Buffer.from(name)
  const tail = Buffer.alloc(2 + 2 * infos.length)
  tail.writeUInt16BE(infos.length)
  infos.forEach((info, i) => tail.writeUInt16BE(info, 2 + 2 * i))
  return Buffer.concat([u32(text.byteLength), text, tail])
}
export function metaContextData(name: string, queries: readonly string[]): Buffer {
  return Buffer.concat([u32(Buffer.byteLength(name)), Buffer.from(name), u32(queries.length),
    ...queries.flatMap((query) => [u32(Buffer.byteLength(query)), Buffer.from(query)])])
}
export function requestBytes(command: number, cookie: bigint, offset: number | bigint, length: number, flags = 0): Buffer {
  const bytes = Buffer.alloc(28)
  bytes.writeUInt32BE(0x25609513, 0)
  bytes.writeUInt16BE(flags, 4)
  bytes.writeUInt16BE(command, 6)
  bytes.writeBigUInt64BE(cookie, 8)
  bytes.writeBigUInt64BE(BigInt(offset), 16)
  bytes.writeUInt32BE(length, 24)
  return bytes
}
