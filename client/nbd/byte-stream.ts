/** What comes over a connection, taken in exact numbers of bytes, straight into the memory of who waits for it.
 *
 *  Memory: what came and nobody took, up to PAUSE_BYTES and what the kernel hands over at once; then the peer's sends wait.
 */
import type { Duplex } from 'node:stream'

/** The connection is gone, or might as well be: what was asked for can be asked again over another. */
export class NbdLost extends Error {
  override readonly name = 'NbdLost'
}

const PAUSE_BYTES = 1024 * 1024

export class ByteStream {
  #came: Buffer[] = []
  #cameBytes = 0
  #end: Error | undefined
  #wake: (() => void) | undefined
  /** What fill() waits to have filled: taken from what comes, without a copy in between. */
  #target: Buffer | undefined
  /** Bytes that ever came: whether a peer goes on. */
  received = 0
  readonly #onData = (bytes: Buffer): void => { this.#take(bytes, false) }
  readonly #onEnd = (error?: unknown): void => {
    this.fail(new NbdLost('The NBD server ended the connection.', error instanceof Error ? { cause: error } : {}))
  }
  constructor(readonly socket: Duplex) {
    socket.on('data', this.#onData)
    for (const event of ['end', 'close', 'error']) socket.on(event, this.#onEnd)
  }
  get hasBytes(): boolean { return this.#cameBytes > 0 }
  get isWaiting(): boolean { return this.#wake !== undefined }
  get failure(): Error | undefined { return this.#end }
  /** Whoever waits, now or later, gets `error`, once what came before is taken. */
  fail(error: Error): void {
    this.#end ??= error
    this.#wake?.()
  }
  /** What came, in memory that its owner uses again once this returns. False: no more for now, until the socket is resumed. */
  feed(bytes: Buffer): boolean {
    this.#take(bytes, true)
    return this.#cameBytes <= PAUSE_BYTES
  }
  #take(bytes: Buffer, isLent: boolean): void {
    this.received += bytes.byteLength
    let rest = bytes
    if (this.#target !== undefined) {
      const taken = rest.copy(this.#target)
      this.#target = taken < this.#target.byteLength ? this.#target.subarray(taken) : undefined
      rest = rest.subarray(taken)
      if (this.#target === undefined) this.#wake?.()
    }
    if (rest.byteLength === 0) return
    this.#came.push(isLent ? Buffer.from(rest) : rest)
    this.#cameBytes += rest.byteLength
    if (this.#cameBytes > PAUSE_BYTES) this.socket.pause()
    this.#wake?.()
  }
  /** Leaves the socket to another, such as TLS. Errors of it stay heard. */
  release(): void {
    this.socket.removeListener('data', this.#onData)
    this.socket.pause()
  }

  /** A view, or a copy. @throws what ended it first */
  async take(count: number): Promise<Buffer> {
    while (this.#cameBytes < count) await this.#more()
    const first = this.#came[0]
    if (first !== undefined && first.byteLength >= count) return this.#shift(count)
    const whole = Buffer.allocUnsafe(count)
    for (let at = 0; at < count;) at += this.#shift(count - at).copy(whole, at)
    return whole
  }
  /** @throws what ended it first; `target` is then filled in part */
  async fill(target: Buffer): Promise<void> {
    let at = 0
    while (at < target.byteLength && this.#cameBytes > 0) at += this.#shift(target.byteLength - at).copy(target, at)
    if (at === target.byteLength) return
    this.#target = target.subarray(at)
    try {
      while (this.#target !== undefined) await this.#more()
    } finally { this.#target = undefined }
  }
  #shift(countMax: number): Buffer {
    const first = this.#came[0]!
    const taken = first.subarray(0, countMax)
    if (taken.byteLength === first.byteLength) this.#came.shift()
    else this.#came[0] = first.subarray(countMax)
    this.#cameBytes -= taken.byteLength
    if (this.#cameBytes <= PAUSE_BYTES / 2 && this.socket.isPaused()) this.socket.resume()
    return taken
  }
  async #more(): Promise<void> {
    if (this.#end !== undefined) throw this.#end
    await new Promise<void>((resolve) => { this.#wake = resolve })
    this.#wake = undefined
  }
}
