/** An NBD server for images that nobody may write: a unix socket for its owner, or TCP, with TLS by STARTTLS where a certificate is given.
 *
 *  A hostile client costs: one of connectionsMax, its requests in flight, and its share of `roomBytes`; one that stalls in the middle of anything
 *  (an option, a request, taking an answer) is cut off after stallMs. Only between two requests may a client be silent.
 */
import { setMaxListeners } from 'node:events'
import { chmodSync, lstatSync, unlinkSync } from 'node:fs'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { createServer as createTlsServer, type TLSSocket } from 'node:tls'
import type { Clock } from '../../src/core/clock.js'
import { orAborted, Semaphore } from '../../src/core/concurrency.js'
import { isErrno } from '../../src/core/errors.js'
import { MiB } from '../../src/core/limits.js'
import { Negotiation, type Agreement, type ServedExport } from './negotiation.js'
import { NbdBreak } from './protocol.js'
import { SocketReader } from './socket-reader.js'
import { serveRequests } from './transmission.js'

export type NbdAddress = { readonly kind: 'unix'; readonly path: string } | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
/** PEM. `ca`: only clients with a certificate of this authority. */
export interface NbdTls { readonly cert: string; readonly key: string; readonly ca?: string }
export interface NbdLimits {
  readonly connectionsMax: number
  readonly requestsInFlightMax: number
  /** Chunks and answers of all connections. At least one read of 32 MiB over the largest chunks. */
  readonly roomBytes: number
  readonly stallMs: number
}
export const NBD_LIMITS: NbdLimits = { connectionsMax: 32, requestsInFlightMax: 64, roomBytes: 128 * MiB, stallMs: 60_000 }

export interface NbdServerOptions {
  readonly exports: readonly ServedExport[]
  readonly address: NbdAddress
  readonly tls?: NbdTls
  readonly limits?: Partial<NbdLimits>
  readonly clock: Clock
  readonly events?: NbdServerEvents
}
export interface NbdServerEvents {
  connected?(connections: number): void
  /** `reason`: why we ended it, where we did. */
  disconnected?(connections: number, reason: string | undefined): void
  problem?(exportName: string, error: unknown): void
}

/** Resolves when it listens. @throws errno exceptions: EADDRINUSE where another listens, also on a unix socket */
export async function startNbdServer(options: NbdServerOptions): Promise<NbdServer> {
  const server = new NbdServer(options)
  await server.listen()
  return server
}

export class NbdServer {
  readonly #limits: NbdLimits
  readonly #room: Semaphore
  readonly #connections = new Map<Socket, Promise<void>>()
  readonly #senders = new Set<Sender>()
  readonly #stopping = new AbortController()
  readonly #server: Server
  #address: NbdAddress

  constructor(readonly options: NbdServerOptions) {
    this.#limits = { ...NBD_LIMITS, ...options.limits }
    this.#room = new Semaphore(this.#limits.roomBytes)
    this.#address = options.address
    // Half-open: a client that has said all may still wait for the last answers.
    this.#server = createServer({ pauseOnConnect: false, allowHalfOpen: true, noDelay: true, keepAlive: true }, (socket) => { this.#accept(socket) })
  }
  /** With the port that was found where 0 was asked for. */
  get address(): NbdAddress { return this.#address }
  get connections(): number { return this.#connections.size }
  get roomFree(): number { return this.#room.free }

  async listen(): Promise<void> {
    const { address } = this.options
    if (address.kind === 'unix') await removeStale(address.path)
    const server = this.#server
    const listening = new Promise<void>((resolve, reject) => {
      server.once('listening', resolve)
      server.once('error', reject)
    })
    if (address.kind === 'unix') {
      // The socket is made within listen(): nobody else may connect, not even until chmod.
      const before = process.umask(0o177)
      try { server.listen({ path: address.path }) } finally { process.umask(before) }
    } else server.listen({ host: address.host, port: address.port })
    await listening
    server.on('error', () => undefined) // of single accepts (no descriptors left): that client is told by its own side
    if (address.kind === 'unix') chmodSync(address.path, 0o600)
    else this.#address = { ...address, port: (server.address() as AddressInfo).port }
    void this.#sweep().catch(() => undefined) // only the end of waiting
  }
  /** Ends all connections; resolves when nothing is under way any more. A unix socket is gone then. */
  async close(): Promise<void> {
    this.#stopping.abort(new NbdBreak('The server ends.'))
    const closed = new Promise<void>((resolve) => { this.#server.close(() => { resolve() }) })
    for (const socket of this.#connections.keys()) socket.destroy()
    await closed
    await Promise.all(this.#connections.values())
  }

  #accept(socket: Socket): void {
    socket.on('error', () => undefined) // reading says so too
    if (this.#stopping.signal.aborted || this.#connections.size >= this.#limits.connectionsMax) { socket.destroy(); return }
    const { events } = this.options
    const connection = this.#serve(socket).then(() => undefined, (error: unknown) => error instanceof NbdBreak ? error.message : 'The connection broke.')
      .then((reason) => {
        socket.destroy()
        this.#connections.delete(socket)
        events?.disconnected?.(this.#connections.size, reason)
      })
    this.#connections.set(socket, connection)
    events?.connected?.(this.#connections.size)
  }
  async #serve(raw: Socket): Promise<void> {
    const gone = new AbortController()
    setMaxListeners(0, gone.signal) // each request that waits for room listens
    raw.once('close', () => { gone.abort(new NbdBreak('The connection ended.')) })
    const senders: Sender[] = []
    const openSender = (socket: Socket): Sender => {
      const sender = new Sender(socket)
      senders.push(sender)
      this.#senders.add(sender)
      return sender
    }
    try {
      const negotiated = await this.#withinDeadline(this.#negotiate(raw, openSender), gone.signal)
      if (negotiated === undefined) return
      const { agreement, sender, reader } = negotiated
      await serveRequests({
        agreement, reader, room: this.#room, requestsInFlightMax: this.#limits.requestsInFlightMax, signal: gone.signal,
        send: (parts) => sender.send(parts),
        onProblem: (error) => { this.options.events?.problem?.(agreement.served.name, error) },
      })
    } finally { for (const sender of senders) this.#senders.delete(sender) }
  }
  /** The handshake as a whole, whatever its steps take. */
  async #withinDeadline<T>(work: Promise<T>, gone: AbortSignal): Promise<T> {
    const done = new AbortController()
    const late = this.options.clock.sleep(this.#limits.stallMs, AbortSignal.any([done.signal, gone]))
      .then(() => { throw new NbdBreak('The client takes too long to choose an export.') })
    late.catch(() => undefined) // without a race it is only the end of the waiting
    try { return await orAborted(Promise.race([work, late]), gone) } finally { done.abort() }
  }
  async #negotiate(raw: Socket, openSender: (socket: Socket) => Sender): Promise<{ agreement: Agreement; sender: Sender; reader: SocketReader } | undefined> {
    const { exports, tls, clock } = this.options
    const { stallMs } = this.#limits
    const reader = new SocketReader(raw, clock, stallMs)
    const sender = openSender(raw)
    const plain = new Negotiation(exports, tls === undefined ? 'none' : 'required', reader, (bytes) => sender.send([bytes]))
    await plain.greet()
    const end = await plain.run()
    if (end.kind === 'left') return undefined
    if (end.kind === 'serve') return { agreement: end.agreement, sender, reader }
    reader.release()
    const secureSender = openSender(await startTls(raw, tls!))
    const secureReader = new SocketReader(secureSender.socket, clock, stallMs)
    const secure = new Negotiation(exports, 'done', secureReader, (bytes) => secureSender.send([bytes]))
    secure.noZeroes = plain.noZeroes
    const secured = await secure.run()
    return secured.kind === 'serve' ? { agreement: secured.agreement, sender: secureSender, reader: secureReader } : undefined
  }
  async #sweep(): Promise<void> {
    const { signal } = this.#stopping
    while (!signal.aborted) {
      await this.options.clock.sleep(this.#limits.stallMs, signal)
      for (const sender of this.#senders) if (sender.isStuck()) sender.socket.destroy(new NbdBreak('The client takes no answers.'))
    }
  }
}

/** Sends to one socket, and knows whether the peer takes what is sent. */
class Sender {
  #sent = 0
  #taken = 0
  #takenBefore = -1
  constructor(readonly socket: Socket) {}

  /** All parts at once, so that answers do not mix. Resolves when they left for the peer. @throws when the connection ends first */
  async send(parts: readonly Buffer[]): Promise<void> {
    this.#sent++
    try {
      await new Promise<void>((resolve, reject) => {
        const { socket } = this
        socket.cork()
        parts.forEach((part, i) => { if (i < parts.length - 1) socket.write(part); else socket.write(part, (error) => { if (error) reject(error); else resolve() }) })
        socket.uncork()
      })
    } finally { this.#taken++ }
  }
  /** True when something waited the last time that this was asked, and still does, and nothing was taken in between. */
  isStuck(): boolean {
    const isWaiting = this.#sent > this.#taken
    const isStuck = isWaiting && this.#taken === this.#takenBefore
    this.#takenBefore = isWaiting ? this.#taken : -1
    return isStuck
  }
}

/** The certificate of a client is checked by node:tls's own server, which is given this one connection. */
async function startTls(raw: Socket, { cert, key, ca }: NbdTls): Promise<TLSSocket> {
  const server = createTlsServer({ cert, key, allowHalfOpen: true, minVersion: 'TLSv1.2',
    ...(ca === undefined ? {} : { ca, requestCert: true, rejectUnauthorized: true }) })
  return await new Promise<TLSSocket>((resolve, reject) => {
    server.once('secureConnection', (socket) => {
      socket.on('error', () => undefined) // reading says so too
      resolve(socket)
    })
    server.once('tlsClientError', () => { reject(new NbdBreak('TLS was not agreed on, or the client has no certificate of the authority.')) })
    raw.once('close', () => { reject(new NbdBreak('The client went away in the middle.')) })
    server.emit('connection', raw)
  })
}
/** A socket that a killed process left: nobody answers there. One that answers is left alone, and listening says EADDRINUSE. */
async function removeStale(path: string): Promise<void> {
  try {
    if (!lstatSync(path).isSocket()) return
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return
    throw error
  }
  const isDead = await new Promise<boolean>((resolve) => {
    const probe = connect({ path })
    probe.once('connect', () => { probe.destroy(); resolve(false) })
    probe.once('error', (error) => { resolve(isErrno(error, 'ECONNREFUSED')) })
  })
  if (isDead) unlinkSync(path)
}
