/** A client of one export that outlives its connections: reads in any number, up to REQUESTS_IN_FLIGHT of them on the wire.
 *
 *  A connection that is lost is made again and what was under way is asked again, as long as something comes of it: after LOSSES_MAX losses without one
 *  answer in between it is given up. An error of the server for one request is asked again ERROR_TRIES times. A server that does not keep to the protocol,
 *  or whose export is another one after a reconnection, is given up at once.
 */
import type { Clock } from '../../src/core/clock.js'
import { orAborted, Semaphore } from '../../src/core/concurrency.js'
import { describeCause } from '../../src/core/errors.js'
import { KiB } from '../../src/core/limits.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { NbdLost } from './byte-stream.js'
import { NbdConnection } from './client-connection.js'
import { addressText, type NbdAgreement, type NbdTarget } from './client-handshake.js'
import type { StatusExtent } from './client-protocol.js'
import { NbdServerError } from './client-reply.js'
import { ERRORS } from './protocol.js'

export interface NbdClientLimits {
  /** Silence after which a connection is given up. */
  readonly stallMs: number
  /** Losses of a connection in a row without an answer in between. */
  readonly lossesMax: number
}
export const NBD_CLIENT_LIMITS: NbdClientLimits = { stallMs: 30_000, lossesMax: 10 }
/** Enough to hide a network's latency from a disk's pace, and what QEMU's server works at. */
export const REQUESTS_IN_FLIGHT = 16
export const REQUEST_BYTES = 512 * KiB
const ERROR_TRIES = 4
/** What the server would answer again. */
const LASTING = [ERRORS.permission, ERRORS.invalid, ERRORS.overflow, ERRORS.unsupported]
const RETRY_MS = 100
const RETRY_MS_MAX = 5_000

export interface NbdClientOptions extends NbdTarget {
  readonly clock: Clock
  readonly signal: AbortSignal
  readonly limits?: Partial<NbdClientLimits>
  /** A connection was lost and is being made again. */
  readonly onLoss?: (error: Error) => void
}
/** Of one context, by its name. */
export type StatusByContext = ReadonlyMap<string, readonly StatusExtent[]>

export class NbdClient {
  readonly #limits: NbdClientLimits
  readonly #slots = new Semaphore(REQUESTS_IN_FLIGHT)
  /** Of REQUEST_BYTES each: an allocation a request would be as much garbage as the disk is long. */
  readonly #free: Buffer[] = []
  readonly #allocate = (bytes: number): Buffer => (bytes === REQUEST_BYTES ? this.#free.pop() : undefined) ?? Buffer.allocUnsafeSlow(bytes)
  readonly #onAbort = (): void => { this.#current?.close(this.options.signal.reason as Error) }
  #current: NbdConnection | undefined
  #connecting: Promise<NbdConnection> | undefined
  #losses = 0
  #isClosed = false
  private constructor(readonly options: NbdClientOptions, first: NbdConnection, limits: NbdClientLimits) {
    this.#limits = limits
    this.#current = first
    this.agreement = first.agreement
    options.signal.addEventListener('abort', this.#onAbort, { once: true })
  }
  readonly agreement: NbdAgreement

  /** @throws {ClientError} NBD_UNREACHABLE, NBD_REFUSED, NBD_BROKEN; `signal.reason` */
  static async open(options: NbdClientOptions): Promise<NbdClient> {
    const limits = { ...NBD_CLIENT_LIMITS, ...options.limits }
    try {
      return new NbdClient(options, await NbdConnection.open(options, limits.stallMs, options.clock, options.signal), limits)
    } catch (error) {
      if (!(error instanceof NbdLost)) throw error
      throw new ClientError('NBD_UNREACHABLE', `The NBD server at ${addressText(options.address)} did not come to the end of the handshake: ${describeCause(error)}`, { cause: error })
    }
  }
  get hasContext(): (name: string) => boolean {
    const names = [...this.agreement.contexts.values()]
    return (name) => names.includes(name)
  }

  /** Any stretch within the export. Undefined: all zeroes.
   *  @throws {ClientError} NBD_FAILED when the server cannot read there, NBD_UNREACHABLE when it is gone for good, NBD_BROKEN; `signal.reason` */
  async read(offset: number, bytes: number): Promise<Buffer | undefined> {
    const { minimum, maximum } = this.agreement.blockSizes
    const from = offset - offset % minimum
    const to = Math.min(this.agreement.bytes, Math.ceil((offset + bytes) / minimum) * minimum)
    const pieceBytes = Math.max(minimum, Math.floor(Math.min(REQUEST_BYTES, maximum) / minimum) * minimum)
    if (from === offset && to === offset + bytes && bytes <= pieceBytes) return await this.#readPiece(offset, bytes)
    const pieces: { readonly at: number; readonly data: Promise<Buffer | undefined> }[] = []
    for (let at = from; at < to; at += pieceBytes) pieces.push({ at, data: this.#readPiece(at, Math.min(pieceBytes, to - at)) })
    const parts = await Promise.all(pieces.map(({ data }) => data))
    if (parts.every((part) => part === undefined)) return undefined
    const whole = Buffer.alloc(bytes)
    parts.forEach((part, i) => {
      const at = pieces[i]!.at - offset
      if (part === undefined) return
      part.copy(whole, Math.max(0, at), Math.max(0, -at))
      this.release(part)
    })
    return whole
  }
  /** Memory that read() gave and nobody looks at any more: the next reads use it. */
  release(data: Buffer): void {
    if (data.byteLength === REQUEST_BYTES && this.#free.length < REQUESTS_IN_FLIGHT) this.#free.push(data)
  }
  /** What the contexts say from `offset` on, of at least one byte and at most `bytes` of them, each of its own length.
   *  @throws {NbdServerError} when the server cannot tell; {ClientError} and `signal.reason` as read */
  async status(offset: number, bytes: number): Promise<StatusByContext> {
    return await this.#perform(async (connection) => {
      const { contexts } = connection.agreement
      return new Map([...await connection.status(offset, bytes)].map(([id, extents]) => [contexts.get(id)!, extents]))
    })
  }
  close(): void {
    this.#isClosed = true
    this.options.signal.removeEventListener('abort', this.#onAbort)
    this.#current?.close(new NbdLost('The client is closed.'))
  }

  async #readPiece(offset: number, bytes: number): Promise<Buffer | undefined> {
    try {
      return await this.#perform((connection) => connection.read(offset, bytes, this.#allocate))
    } catch (error) {
      if (!(error instanceof NbdServerError)) throw error
      throw new ClientError('NBD_FAILED', `The NBD server at ${addressText(this.options.address)} cannot read ${bytes} bytes at ${offset} of "${this.options.exportName}": ` +
        `${error.message}.`, { cause: error })
    }
  }
  async #perform<T>(ask: (connection: NbdConnection) => Promise<T>): Promise<T> {
    const { signal, clock } = this.options
    return await this.#slots.within(1, signal, async () => {
      for (let errors = 0, losses = 0; ;) {
        const connection = await this.#connection()
        try {
          const answer = await ask(connection)
          this.#losses = 0
          return answer
        } catch (caught) {
          signal.throwIfAborted()
          const error = caught instanceof NbdServerError && caught.error === ERRORS.shutdown ? leave(connection) : caught
          if (error instanceof NbdServerError) {
            this.#losses = 0
            if (++errors >= ERROR_TRIES || LASTING.some((code) => code === error.error)) throw error
            await clock.sleep(RETRY_MS * 2 ** errors, signal)
          } else if (!(error instanceof NbdLost) || this.#isClosed) throw error
          // One that always costs the connection, while others are answered: those before it may each have had their turn.
          else if (++losses > this.#limits.lossesMax + REQUESTS_IN_FLIGHT) throw this.#givenUp(losses, error)
        }
      }
    })
  }
  async #connection(): Promise<NbdConnection> {
    if (this.#isClosed) throw new NbdLost('The client is closed.')
    const current = this.#current
    if (current !== undefined && current.failure === undefined) return current
    if (this.#connecting === undefined) {
      const connecting = this.#connecting = this.#reconnect(current?.failure)
      connecting.catch(() => undefined).finally(() => { this.#connecting = undefined }) // those who wait for it see how it ends
    }
    return await orAborted(this.#connecting, this.options.signal)
  }
  async #reconnect(failure: Error | undefined): Promise<NbdConnection> {
    const { clock, signal, onLoss } = this.options
    // What the server said wrongly it would say again.
    if (failure instanceof ClientError) throw failure
    let cause: Error = failure ?? new NbdLost('The connection was lost.')
    for (;;) {
      signal.throwIfAborted()
      if (++this.#losses > this.#limits.lossesMax) throw this.#givenUp(this.#losses, cause)
      onLoss?.(cause)
      await clock.sleep(Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** (this.#losses - 1)), signal)
      let next: NbdConnection
      try {
        next = await NbdConnection.open(this.options, this.#limits.stallMs, clock, signal)
      } catch (error) {
        signal.throwIfAborted()
        const mayPass = error instanceof NbdLost || error instanceof ClientError && error.code === 'NBD_UNREACHABLE'
        if (!mayPass) throw error
        cause = error
        continue
      }
      if (this.#isClosed) { next.close(new NbdLost('The client is closed.')); throw new NbdLost('The client is closed.') }
      this.#requireSame(next)
      return this.#current = next
    }
  }
  #givenUp(losses: number, cause: Error): ClientError {
    return new ClientError('NBD_UNREACHABLE', `The connection to the NBD server at ${addressText(this.options.address)} was lost ${losses} times without an answer ` +
      `in between: ${describeCause(cause)}`, { cause })
  }
  /** The same export as before, as far as can be told. */
  #requireSame(next: NbdConnection): void {
    const { bytes, contexts, isStructured } = this.agreement
    const names = new Set(next.agreement.contexts.values())
    if (next.agreement.bytes === bytes && next.agreement.isStructured === isStructured && names.size === contexts.size &&
      [...contexts.values()].every((name) => names.has(name))) return
    const error = new ClientError('NBD_FAILED', `The export "${this.options.exportName}" is another one since the connection was made again.`)
    next.close(error)
    throw error
  }
}

/** Of a server that is being shut down. */
function leave(connection: NbdConnection): NbdLost {
  const lost = new NbdLost('The NBD server is being shut down.')
  connection.close(lost)
  return lost
}
