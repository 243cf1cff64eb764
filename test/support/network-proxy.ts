/** A network between two processes on loopback: late, lossy or hostile, as a test wants it.
 *
 *  Bytes go through a delay line, so that many requests are on their way at once as on a long cable; lost segments show as TCP shows
 *  them: everything behind them waits for the retransmission. Faults change bytes by a script and say how often they fired.
 */
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { seeded } from './odd-tree.js'

export type Direction = 'to-server' | 'to-client'
/** `flip`: one bit; `truncate`: the rest is lost and the connection ends in good order; `cut`: both ways end at once, with what is on the cable; `repeat`: the segment comes twice;
 *  `reorder`: its halves change places. */
export type FaultKind = 'flip' | 'truncate' | 'cut' | 'repeat' | 'reorder'
export interface Fault {
  readonly kind: FaultKind
  readonly direction: Direction
  /** Of all bytes that went this way through the proxy, over all connections: the first segment that begins at or after it is hit. */
  readonly atByte: number
}
export interface NetworkOptions {
  readonly serverPort: number
  /** Each way: a round trip takes twice as long. */
  readonly delayMs?: number
  /** Of segments of 1 460 bytes, 0 to 1: each costs everything behind it a retransmission. */
  readonly lossShare?: number
  readonly faults?: readonly Fault[]
  readonly seed?: number
}
export interface Network {
  readonly port: number
  /** Bytes that went each way, as they were before faults. */
  readonly bytes: Readonly<Record<Direction, number>>
  readonly connections: number
  readonly retransmissions: number
  /** Faults that hit something. A test asks, so that it cannot pass because its fault never was. */
  readonly fired: readonly Fault[]
  /** More faults, for what comes from now on; `atByte` counts from now. */
  inject(...faults: readonly Fault[]): void
  setDelayMs(delayMs: number): void
  /** Ends every connection; new ones are ended at once until `mend`. */
  sever(): void
  mend(): void
  close(): Promise<void>
}

const SEGMENT_BYTES = 1_460
/** A retransmission that duplicate acknowledgements ask for takes about one round trip more; never less than this. */
const RETRANSMIT_MS_MIN = 10
/** On the cable each way, at most: more than 100 Mbit/s over 200 ms hold. Then the sender waits. */
const LINE_BYTES_MAX = 16 * 1024 * 1024

export async function startNetwork(options: NetworkOptions): Promise<Network> {
  const network = new ProxiedNetwork(options)
  await network.listen()
  return network
}

class ProxiedNetwork implements Network {
  readonly bytes: Record<Direction, number> = { 'to-server': 0, 'to-client': 0 }
  readonly fired: Fault[] = []
  connections = 0
  retransmissions = 0
  readonly #server = createServer({ allowHalfOpen: true, pauseOnConnect: false }, (client) => { this.#accept(client) })
  readonly #sockets = new Set<Socket>()
  readonly #random: () => number
  #delayMs: number
  #pending: Fault[]
  #isSevered = false

  constructor(readonly options: NetworkOptions) {
    this.#delayMs = options.delayMs ?? 0
    this.#pending = [...options.faults ?? []]
    this.#random = seeded(options.seed ?? 1)
  }
  get port(): number { return (this.#server.address() as AddressInfo).port }
  async listen(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(0, '127.0.0.1', () => { resolve() })
    })
  }
  inject(...faults: readonly Fault[]): void {
    this.#pending.push(...faults.map((fault) => ({ ...fault, atByte: fault.atByte + this.bytes[fault.direction] })))
  }
  setDelayMs(delayMs: number): void { this.#delayMs = delayMs }
  sever(): void {
    this.#isSevered = true
    for (const socket of this.#sockets) socket.destroy()
  }
  mend(): void { this.#isSevered = false }
  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    await new Promise<void>((resolve) => { this.#server.close(() => { resolve() }) })
  }

  #accept(client: Socket): void {
    if (this.#isSevered) { client.destroy(); return }
    this.connections++
    const server = connect({ port: this.options.serverPort, host: '127.0.0.1', allowHalfOpen: true })
    for (const socket of [client, server]) {
      socket.setNoDelay(true)
      this.#sockets.add(socket)
      const other = socket === client ? server : client
      socket.on('error', () => { other.destroy() })
      socket.on('close', () => {
        this.#sockets.delete(socket)
        // What is still on the cable arrives first; a peer that is gone altogether takes the other end with it.
        if (!socket.readableEnded) other.destroy()
      })
    }
    void this.#carry(client, server, 'to-server')
    void this.#carry(server, client, 'to-client')
  }

  /** One way of one connection: what is read goes onto the line with the time of its arrival; the other end takes it off in order. */
  async #carry(from: Socket, to: Socket, direction: Direction): Promise<void> {
    const line: { readonly bytes: Buffer; readonly arrivesMs: number }[] = []
    let onLine = 0, blockedUntilMs = 0, isOver = false
    let wake: (() => void) | undefined
    const put = (bytes: Buffer): void => {
      const nowMs = performance.now()
      let arrivesMs = nowMs + this.#delayMs
      for (let left = bytes.byteLength; left > 0; left -= SEGMENT_BYTES) {
        if (this.#random() >= (this.options.lossShare ?? 0)) continue
        this.retransmissions++
        arrivesMs += Math.max(RETRANSMIT_MS_MIN, 2 * this.#delayMs)
      }
      blockedUntilMs = arrivesMs = Math.max(arrivesMs, blockedUntilMs)
      line.push({ bytes, arrivesMs })
      onLine += bytes.byteLength
      wake?.()
    }
    const end = (): void => {
      isOver = true
      wake?.()
    }
    from.on('data', (bytes: Buffer) => {
      if (isOver) return
      const faults = this.#due(direction)
      this.bytes[direction] += bytes.byteLength
      let segment = bytes
      for (const fault of faults) {
        this.fired.push(fault)
        switch (fault.kind) {
          case 'flip': {
            segment = Buffer.from(segment)
            segment[Math.floor(this.#random() * segment.byteLength)]! ^= 1 << Math.floor(this.#random() * 8)
            break
          }
          case 'truncate': put(segment.subarray(0, segment.byteLength >> 1)); end(); return
          case 'cut': to.destroy(); from.destroy(); return
          case 'repeat': put(segment); break
          case 'reorder': {
            const half = segment.byteLength >> 1
            segment = Buffer.concat([segment.subarray(half), segment.subarray(0, half)])
            break
          }
        }
      }
      put(segment)
      if (onLine > LINE_BYTES_MAX) from.pause()
    })
    from.on('end', end)
    from.on('close', end)
    try {
      for (;;) {
        const next = line.shift()
        if (next === undefined) {
          if (isOver) break
          await new Promise<void>((resolve) => { wake = resolve })
          wake = undefined
          continue
        }
        const waitMs = next.arrivesMs - performance.now()
        if (waitMs > 0.5) await sleep(waitMs)
        if (to.destroyed) return
        if (!to.write(next.bytes)) await drained(to)
        onLine -= next.bytes.byteLength
        if (onLine <= LINE_BYTES_MAX && from.isPaused()) from.resume()
      }
    } finally {
      if (!to.destroyed) to.end()
    }
  }
  #due(direction: Direction): Fault[] {
    const due = this.#pending.filter((fault) => fault.direction === direction && this.bytes[direction] >= fault.atByte)
    if (due.length > 0) this.#pending = this.#pending.filter((fault) => !due.includes(fault))
    return due
  }
}
async function drained(socket: Socket): Promise<void> {
  if (socket.destroyed || !socket.writableNeedDrain) return
  await new Promise<void>((resolve) => {
    const done = (): void => {
      socket.off('drain', done)
      socket.off('close', done)
      resolve()
    }
    socket.on('drain', done)
    socket.on('close', done)
  })
}
