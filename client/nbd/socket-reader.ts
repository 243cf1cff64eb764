/** Pulls exact numbers of bytes from a socket: what nobody asked for stays in the kernel, and a peer that begins and does not go on is given up.
 *
 *  It keeps no bytes of its own, so that TLS can take the socket over. Memory: the largest number that is asked for.
 */
import type { Duplex } from 'node:stream'
import type { Clock } from '../../src/core/clock.js'
import { NbdBreak } from './protocol.js'

const SKIP_BYTES = 64 * 1024
const EVENTS = ['readable', 'end', 'close', 'error'] as const

export class SocketReader {
  readonly #wake = (): void => { this.#woken?.() }
  #woken: (() => void) | undefined
  constructor(readonly socket: Duplex, readonly clock: Clock, readonly stallMs: number) {
    for (const event of EVENTS) socket.on(event, this.#wake)
  }
  /** Ends the use of the socket by this reader. */
  release(): void {
    for (const event of EVENTS) this.socket.removeListener(event, this.#wake)
  }
  /** Exactly `bytes`. `mayIdle`: the first of them may take for ever, as between two requests.
   *  Undefined: the peer ended the connection before the first. @throws {NbdBreak} when it did in between, or stalls */
  async read(bytes: number, mayIdle = false): Promise<Buffer | undefined> {
    if (bytes === 0) return Buffer.alloc(0)
    for (;;) {
      const got = this.socket.read(bytes) as Buffer | null
      if (got !== null) {
        if (got.byteLength === bytes) return got
        throw new NbdBreak('The client went away in the middle.')
      }
      if (this.socket.readableEnded || this.socket.destroyed) return undefined
      await this.#change(mayIdle && this.socket.readableLength === 0)
    }
  }
  /** @throws {NbdBreak} when the peer ends or stalls first */
  async need(bytes: number): Promise<Buffer> {
    const got = await this.read(bytes)
    if (got === undefined) throw new NbdBreak('The client went away in the middle.')
    return got
  }
  /** Reads past bytes that nobody wants. */
  async skip(bytes: number): Promise<void> {
    for (let left = bytes; left > 0; left -= SKIP_BYTES) await this.need(Math.min(left, SKIP_BYTES))
  }

  async #change(mayIdle: boolean): Promise<void> {
    const changed = new Promise<'changed'>((resolve) => { this.#woken = () => { resolve('changed') } })
    try {
      if (mayIdle) { await changed; return }
      const ended = new AbortController()
      const stalled = this.clock.sleep(this.stallMs, ended.signal).then(() => 'stalled' as const, () => 'changed' as const)
      const what = await Promise.race([changed, stalled])
      ended.abort()
      if (what === 'stalled') throw new NbdBreak('The client began something and does not go on.')
    } finally { this.#woken = undefined }
  }
}
