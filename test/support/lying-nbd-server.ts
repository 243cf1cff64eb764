/** An NBD server for tests of the client: honest unless its script says otherwise. Written against the specification, not with our codec. */
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'

export interface Asked { readonly command: number; readonly cookie: bigint; readonly offset: number; readonly length: number }
/** What to do instead of the honest answer: bytes to send, the end of the connection (after bytes, where given), silence. */
export type Deed = Buffer | 'honest' | 'drop' | 'silence' | { readonly thenDrop: Buffer }
export interface NbdScript {
  readonly content: Buffer
  /** Which connection this is, from 0; requests are counted over all of them. */
  greeting?(connection: number): Deed
  /** The first of its answers that is not 'honest' counts. */
  option?(option: number, data: Buffer, connection: number): Deed
  request?(asked: Asked, nth: number, connection: number): Deed
  readonly isStructured?: boolean
  /** Blocks by context; default: all data, all dirty. */
  status?(context: string, asked: Asked): readonly { readonly bytes: number; readonly flags: number }[]
  readonly contexts?: readonly string[]
  /** Answers wait until that many requests are here, and leave in reverse order. */
  readonly gathers?: number
}
export interface LyingServer { readonly path: string; readonly connections: () => number; readonly asked: readonly Asked[] }

const u16 = (value: number): Buffer => { const bytes = Buffer.alloc(2); bytes.writeUInt16BE(value); return bytes }
const u32 = (value: number): Buffer => { const bytes = Buffer.alloc(4); bytes.writeUInt32BE(value); return bytes }
const u64 = (value: number | bigint): Buffer => { const bytes = Buffer.alloc(8); bytes.writeBigUInt64BE(BigInt(value)); return bytes }
export const bytesOf = { u16, u32, u64 }
export const GREETING = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), u16(3)])
export const optionReply = (option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer =>
  Buffer.concat([u64(0x3e889045565a9n), u32(option), u32(type), u32(data.byteLength), data])
export const chunk = (cookie: bigint, type: number, payload: Buffer, flags = 1, length = payload.byteLength): Buffer =>
  Buffer.concat([u32(0x668e33ef), u16(flags), u16(type), u64(cookie), u32(length), payload])
export const simple = (cookie: bigint, error: number, data: Buffer = Buffer.alloc(0)): Buffer => Buffer.concat([u32(0x67446698), u32(error), u64(cookie), data])
export const dataChunk = ({ cookie }: Asked, content: Buffer, offset: number, length: number, flags = 1): Buffer =>
  chunk(cookie, 1, Buffer.concat([u64(offset), content.subarray(offset, offset + length)]), flags)
export const errorChunk = ({ cookie }: Asked, error: number, message = ''): Buffer =>
  chunk(cookie, 0x8001, Buffer.concat([u32(error), u16(Buffer.byteLength(message)), Buffer.from(message)]))
export const statusChunk = ({ cookie }: Asked, context: number, blocks: readonly { bytes: number; flags: number }[], flags = 1): Buffer =>
  chunk(cookie, 5, Buffer.concat([u32(context), ...blocks.flatMap(({ bytes, flags: state }) => [u32(bytes), u32(state)])]), flags)
export const exportInfo = (bytes: number | bigint, flags = 3): Buffer => Buffer.concat([u16(0), u64(bytes), u16(flags)])

/** The ids that contexts get: in the order in which they are granted. */
export const contextId = (at: number): number => 40 + at

export async function startLyingServer(t: TestContext, script: NbdScript): Promise<LyingServer> {
  const directory = mkdtempSync(join(tmpdir(), 'roost-lying-'))
  const path = join(directory, 's')
  const sockets = new Set<Socket>()
  const asked: Asked[] = []
  let connections = 0
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    void new Peer(socket, script, connections++, asked).serve().catch(() => socket.destroy())
  })
  await new Promise<void>((resolve) => server.listen(path, resolve))
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
    rmSync(directory, { recursive: true, force: true })
  })
  return { path, connections: () => connections, asked }
}

class Gone extends Error {}
class Peer {
  #came = Buffer.alloc(0)
  #wake: () => void = () => undefined
  #granted: string[] = []
  #structured = false
  #waiting: Buffer[] = []
  constructor(readonly socket: Socket, readonly script: NbdScript, readonly connection: number, readonly asked: Asked[]) {
    socket.on('data', (bytes: Buffer) => { this.#came = Buffer.concat([this.#came, bytes]); this.#wake() })
    socket.on('close', () => this.#wake())
  }
  async #take(count: number): Promise<Buffer> {
    while (this.#came.byteLength < count) {
      if (this.socket.destroyed || this.socket.readableEnded) throw new Gone()
      await new Promise<void>((resolve) => { this.#wake = resolve })
    }
    const taken = this.#came.subarray(0, count)
    this.#came = this.#came.subarray(count)
    return taken
  }
  #do(deed: Deed, honest: () => Buffer): void {
    if (deed === 'silence') return
    if (deed === 'drop') { this.socket.destroy(); throw new Gone() }
    if (deed === 'honest') this.socket.write(honest())
    else if (Buffer.isBuffer(deed)) this.socket.write(deed)
    else { this.socket.end(deed.thenDrop); throw new Gone() }
  }
  async serve(): Promise<void> {
    this.#do(this.script.greeting?.(this.connection) ?? 'honest', () => GREETING)
    await this.#take(4)
    for (let isChosen = false; !isChosen;) {
      const header = await this.#take(16)
      const option = header.readUInt32BE(8)
      const data = await this.#take(header.readUInt32BE(12))
      const deed = this.script.option?.(option, data, this.connection) ?? 'honest'
      if (option === 8) this.#structured = deed === 'honest' && this.script.isStructured !== false
      this.#do(deed, () => this.#answerOption(option, data))
      isChosen = option === 7 && deed === 'honest' || option === 1
    }
    for (;;) {
      const bytes = await this.#take(28)
      const one: Asked = { command: bytes.readUInt16BE(6), cookie: bytes.readBigUInt64BE(8), offset: Number(bytes.readBigUInt64BE(16)), length: bytes.readUInt32BE(24) }
      if (one.command === 2) { this.socket.end(); return }
      const nth = this.asked.push(one) - 1
      const deed = this.script.request?.(one, nth, this.connection) ?? 'honest'
      if (this.script.gathers === undefined) { this.#do(deed, () => this.#answer(one)); continue }
      this.#waiting.unshift(deed === 'honest' ? this.#answer(one) : deed as Buffer)
      if (this.#waiting.length < this.script.gathers) continue
      this.socket.write(Buffer.concat(this.#waiting))
      this.#waiting = []
    }
  }
  #answerOption(option: number, data: Buffer): Buffer {
    const { content, isStructured = true, contexts = ['base:allocation', 'qemu:dirty-bitmap:b'] } = this.script
    switch (option) {
      case 8: return optionReply(8, isStructured ? 1 : 0x8000_0001)
      case 10: {
        let at = 4 + data.readUInt32BE(0)
        const count = data.readUInt32BE(at)
        at += 4
        const wanted: string[] = []
        for (let i = 0; i < count; i++) {
          const length = data.readUInt32BE(at)
          wanted.push(data.toString('utf8', at + 4, at + 4 + length))
          at += 4 + length
        }
        this.#granted = wanted.filter((name) => contexts.includes(name))
        return Buffer.concat([...this.#granted.map((name, i) => optionReply(10, 4, Buffer.concat([u32(contextId(i)), Buffer.from(name)]))), optionReply(10, 1)])
      }
      case 7: return Buffer.concat([optionReply(7, 3, exportInfo(content.byteLength)), optionReply(7, 1)])
      case 1: return Buffer.concat([u64(content.byteLength), u16(3)])
      default: return optionReply(option, 0x8000_0001)
    }
  }
  #answer(one: Asked): Buffer {
    const { content } = this.script
    if (one.command === 7) {
      const told = this.script.status ?? ((context: string) => [{ bytes: one.length, flags: context === 'base:allocation' ? 0 : 1 }])
      return Buffer.concat(this.#granted.map((name, i) => statusChunk(one, contextId(i), told(name, one), i === this.#granted.length - 1 ? 1 : 0)))
    }
    return this.#structured ? dataChunk(one, content, one.offset, one.length) : simple(one.cookie, 0, content.subarray(one.offset, one.offset + one.length))
  }
}
