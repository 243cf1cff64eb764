/** A TCP proxy between two servers that delays what passes, and does worse to it: cuts, changes, repeats, reorders, drops. By seed. */
import { connect, createServer, type Server, type Socket } from 'node:net'
import { seeded } from './odd-tree.js'

export interface OddProxyOptions {
  readonly port: number
  /** One way. */
  latencyMs?: number
  /** Share of pieces of a stream to which something is done, and what. A piece is what one read brings, up to 64 KiB. */
  rate?: number
  harm?: readonly Harm[]
  seed?: number
}
export type Harm = 'cut' | 'flip' | 'truncate' | 'repeat' | 'reorder'

export class OddProxy {
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  readonly #random: () => number
  readonly counts = { connections: 0, bytes: 0, harmed: 0 }
  latencyMs: number
  rate: number
  harm: readonly Harm[]
  /** Connections are refused. */
  isDown = false
  constructor(readonly options: OddProxyOptions) {
    this.latencyMs = options.latencyMs ?? 0
    this.rate = options.rate ?? 0
    this.harm = options.harm ?? []
    this.#random = seeded(options.seed ?? 1)
    this.#server = createServer({ allowHalfOpen: true }, (near) => { this.#pair(near) })
  }
  async listen(port = 0): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(port, '127.0.0.1', resolve))
    return (this.#server.address() as { port: number }).port
  }
  async close(): Promise<void> {
    this.cutAll()
    await new Promise<void>((resolve) => this.#server.close(() => { resolve() }))
  }
  cutAll(): void { for (const socket of this.#sockets) socket.destroy() }

  #pair(near: Socket): void {
    if (this.isDown) { near.destroy(); return }
    this.counts.connections++
    const far = connect({ port: this.options.port, host: '127.0.0.1', allowHalfOpen: true })
    const both = [near, far]
    for (const socket of both) {
      this.#sockets.add(socket)
      socket.setNoDelay(true)
      socket.on('error', () => undefined)
      socket.on('close', () => { this.#sockets.delete(socket); for (const other of both) other.destroy() })
    }
    this.#carry(near, far, both)
    this.#carry(far, near, both)
  }
  /** Delays without holding back: as much is under way as the sender gives, up to a bound, so that latency costs no bandwidth by itself. */
  #carry(from: Socket, to: Socket, both: readonly Socket[]): void {
    const queue: { readonly at: number; readonly bytes: Buffer | null }[] = []
    let held: Buffer | undefined, waiting = false, queuedBytes = 0
    const pump = (): void => {
      waiting = false
      for (let first = queue[0]; first !== undefined; first = queue[0]) {
        const waitMs = first.at - performance.now()
        if (waitMs > 0) {
          waiting = true
          setTimeout(pump, waitMs)
          return
        }
        queue.shift()
        if (first.bytes === null) to.end()
        else {
          queuedBytes -= first.bytes.byteLength
          this.counts.bytes += first.bytes.byteLength
          if (!to.destroyed && !to.write(first.bytes)) {
            waiting = true
            to.once('drain', pump)
            return
          }
        }
        if (queuedBytes < WINDOW_BYTES) from.resume()
      }
    }
    const send = (bytes: Buffer | null): void => {
      if (bytes !== null) queuedBytes += bytes.byteLength
      queue.push({ at: performance.now() + this.latencyMs, bytes })
      if (queuedBytes >= WINDOW_BYTES) from.pause()
      if (!waiting) pump()
    }
    from.on('data', (bytes: Buffer) => {
      const harm = this.harm.length > 0 && this.#random() < this.rate ? this.harm[Math.floor(this.#random() * this.harm.length)]! : undefined
      if (harm !== undefined) this.counts.harmed++
      switch (harm) {
        case 'cut': for (const socket of both) socket.destroy(); return
        case 'flip': {
          const changed = Buffer.from(bytes)
          changed[Math.floor(this.#random() * changed.byteLength)]! ^= 1 << Math.floor(this.#random() * 8)
          send(changed)
          break
        }
        case 'truncate': send(bytes.subarray(0, bytes.byteLength >> 1)); break
        case 'repeat': send(bytes); send(bytes); break
        case 'reorder': if (held === undefined) { held = bytes; return } send(bytes); break
        case undefined: send(bytes)
      }
      if (held !== undefined && harm !== 'reorder') { send(held); held = undefined }
    })
    from.on('end', () => {
      if (held !== undefined) send(held)
      send(null)
    })
  }
}
/** What is under way in one direction of one connection. */
const WINDOW_BYTES = 16 * 1024 * 1024
