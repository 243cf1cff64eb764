/** One connection to an NBD server after its handshake: many requests at once, told apart by their cookies.
 *
 *  It ends with the first thing that is wrong: every request under way is then rejected, with NbdLost where another connection may help
 *  (dropped, silent for stallMs, a request older than REQUEST_STALLS of them) and NBD_BROKEN where the server cannot be believed.
 */
import type { Socket } from 'node:net'
import type { Clock } from '../../src/core/clock.js'
import { orAborted } from '../../src/core/concurrency.js'
import { ByteStream, NbdLost } from './byte-stream.js'
import { connectSocket, shakeHands, type NbdAgreement, type NbdTarget } from './client-handshake.js'
import { broken, decodeChunkHeader, encodeRequest, SIMPLE_REPLY_BYTES, type StatusExtent } from './client-protocol.js'
import { CHUNK_REST_BYTES, DoneReply, ReadReply, StatusReply, type Allocate, type PendingReply } from './client-reply.js'
import { COMMANDS, MAGIC } from './protocol.js'

/** A request may take this many times stallMs while others are answered. */
const REQUEST_STALLS = 10

export class NbdConnection {
  readonly #pending = new Map<bigint, PendingReply>()
  readonly #ended = new AbortController()
  #lastCookie = 0n
  /** Counts every stallMs. */
  #beats = 0
  #failure: Error | undefined
  private constructor(readonly stream: ByteStream, readonly agreement: NbdAgreement, readonly raw: Socket, readonly stallMs: number, clock: Clock) {
    void this.#receive()
    void this.#watch(clock)
  }

  /** @throws {ClientError} NBD_UNREACHABLE, NBD_REFUSED, NBD_BROKEN; {NbdLost}; `signal.reason` */
  static async open(target: NbdTarget, stallMs: number, clock: Clock, signal: AbortSignal): Promise<NbdConnection> {
    const over = new AbortController()
    const late = clock.sleep(stallMs, over.signal).then(() => { throw new NbdLost('The NBD server does not go on with the handshake.') })
    late.catch(() => undefined) // after the race it is only the end of the waiting
    let raw: Socket | undefined
    const opening = (async () => {
      const connected = await connectSocket(target.address, AbortSignal.any([signal, over.signal]))
      raw = connected.raw
      return await shakeHands(connected.stream, target)
    })()
    opening.catch(() => undefined) // when it was too late, nobody listens
    try {
      const { stream, agreement } = await orAborted(Promise.race([opening, late]), signal)
      return new NbdConnection(stream, agreement, raw!, stallMs, clock)
    } catch (error) {
      raw?.destroy()
      throw error
    } finally {
      over.abort(new NbdLost('The NBD server does not go on with the handshake.'))
    }
  }
  get failure(): Error | undefined { return this.#failure }

  /** The bytes, in memory of `allocate`; undefined: all zeroes. Within the export, and as its block sizes want.
   *  @throws {NbdServerError}; {NbdLost}; {ClientError} NBD_BROKEN */
  read(offset: number, bytes: number, allocate: Allocate): Promise<Buffer | undefined> {
    return new Promise((resolve, reject) => { this.#ask(COMMANDS.read, offset, bytes, new ReadReply(offset, bytes, this.#beats, allocate, resolve, reject)) })
  }
  /** By context's id, from `offset` on; each tells of at least one byte and at most `bytes`. @throws as read */
  status(offset: number, bytes: number): Promise<ReadonlyMap<number, readonly StatusExtent[]>> {
    const ids = new Set(this.agreement.contexts.keys())
    return new Promise((resolve, reject) => { this.#ask(COMMANDS.blockStatus, offset, bytes, new StatusReply(ids, bytes, this.#beats, resolve, reject)) })
  }
  /** Writes `data`, which must not change before it resolves. @throws as read */
  write(offset: number, data: Buffer): Promise<void> { return this.#do(COMMANDS.write, offset, data.byteLength, data) }
  /** Makes a stretch read as zeroes, by whatever is cheapest there; only of exports that say they can. */
  writeZeroes(offset: number, bytes: number): Promise<void> { return this.#do(COMMANDS.writeZeroes, offset, bytes) }
  /** What was written and acknowledged before is on stable storage when it resolves; only of exports that say they can. */
  flush(): Promise<void> { return this.#do(COMMANDS.flush, 0, 0) }
  #do(command: number, offset: number, bytes: number, data?: Buffer): Promise<void> {
    return new Promise((resolve, reject) => { this.#ask(command, offset, bytes, new DoneReply(this.#beats, resolve, reject), data) })
  }
  /** Says goodbye where anybody listens. What is under way is rejected with `reason`. */
  close(reason: Error): void {
    const { socket } = this.stream
    if (this.#failure !== undefined) return
    const goodbye = encodeRequest(COMMANDS.disconnect, ++this.#lastCookie, 0, 0)
    // One that takes nothing is not waited for.
    if (socket.writableLength > 0) this.#fail(reason)
    else socket.write(goodbye, () => { this.#fail(reason) })
    this.#end(reason)
  }

  #ask(command: number, offset: number, bytes: number, reply: PendingReply, payload?: Buffer): void {
    if (this.#failure !== undefined) { reply.reject(this.#failure); return }
    const cookie = ++this.#lastCookie
    this.#pending.set(cookie, reply)
    this.stream.socket.write(encodeRequest(command, cookie, offset, bytes))
    if (payload !== undefined) this.stream.socket.write(payload)
  }
  #fail(error: Error): void {
    this.#end(error)
    this.stream.socket.destroy()
    this.raw.destroy() // over TLS, another
  }
  #end(error: Error): void {
    if (this.#failure !== undefined) return
    this.#failure = error
    this.#ended.abort(error)
    for (const reply of this.#pending.values()) reply.reject(error)
    this.#pending.clear()
    this.stream.fail(error)
  }
  async #receive(): Promise<void> {
    try {
      for (;;) await this.#receiveOne()
    } catch (error) {
      this.#fail(error as Error)
    }
  }
  async #receiveOne(): Promise<void> {
    const { stream, agreement: { isStructured } } = this
    const magic = (await stream.take(4)).readUInt32BE(0)
    if (magic === MAGIC.simpleReply) {
      const rest = await stream.take(SIMPLE_REPLY_BYTES - 4)
      const { cookie, reply } = this.#find(rest.readBigUInt64BE(4))
      await reply.takeSimple(rest.readUInt32BE(0), isStructured, stream)
      this.#finish(cookie, reply)
    } else if (magic === MAGIC.structuredReply && isStructured) {
      const header = decodeChunkHeader(await stream.take(CHUNK_REST_BYTES))
      const { cookie, reply } = this.#find(header.cookie)
      await reply.take(header, stream)
      if (header.isLast) this.#finish(cookie, reply)
    } else throw broken('what came is no answer')
  }
  #find(cookie: bigint): { readonly cookie: bigint; readonly reply: PendingReply } {
    const reply = this.#pending.get(cookie)
    if (reply === undefined) throw broken('it answers what was not asked')
    return { cookie, reply }
  }
  #finish(cookie: bigint, reply: PendingReply): void {
    reply.finish()
    this.#pending.delete(cookie)
  }
  /** Looks every stallMs whether anything came of what is waited for. */
  async #watch(clock: Clock): Promise<void> {
    const { signal } = this.#ended
    let before = -1
    while (!signal.aborted) {
      try { await clock.sleep(this.stallMs, signal) } catch { return } // the connection is at its end
      this.#beats++
      const oldest = this.#pending.values().next().value
      // One that was asked in this beat has not had its time.
      const isSilent = oldest !== undefined && oldest.askedAt < this.#beats - 1 && this.stream.received === before
      if (isSilent) this.#fail(new NbdLost('The NBD server does not answer.'))
      else if (oldest !== undefined && this.#beats - oldest.askedAt > REQUEST_STALLS) this.#fail(new NbdLost('The NBD server leaves a request without an answer.'))
      before = this.stream.received
    }
  }
}
