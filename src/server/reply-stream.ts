/** Replies that are streams: pulled from a use case no faster than the client takes them, ended when it goes away.
 *
 *  The first item is awaited before the reply begins, so that a use case which refuses still answers with its status. A
 *  stream that fails later cuts the connection: the client sees a body without its end mark, never a short success.
 */
import { Readable } from 'node:stream'
import type { Clock } from '../core/clock.js'
import { RoostError, isAbort } from '../core/errors.js'
import type { MaintenanceEvent, WireError } from '../core/messages.js'
import { KiB } from '../core/limits.js'

/** One item beyond this may be buffered; items are blocks of about a MiB. */
const HIGH_WATER_BYTES = 256 * KiB
/** A reply of which nothing was taken for this long is cut: it holds a reader's place. */
export const REPLY_STALL_MS = 120_000

/** @throws what the source throws before its first item. */
export async function openReplyStream(source: AsyncIterable<Buffer>, clock: Clock): Promise<Readable> {
  const items = source[Symbol.asyncIterator]()
  return new ReplyStream(items, await items.next(), clock)
}

class ReplyStream extends Readable {
  readonly #items: AsyncIterator<Buffer>
  #first: IteratorResult<Buffer> | undefined
  #pulls = 0
  #pulling = false
  readonly #watching = new AbortController()
  constructor(items: AsyncIterator<Buffer>, first: IteratorResult<Buffer>, clock: Clock) {
    super({ highWaterMark: HIGH_WATER_BYTES })
    this.#items = items
    this.#first = first
    this.#watchStall(clock).catch(() => undefined) // rejected = the stream ended first
  }
  override _read(): void {
    if (this.#pulling) return
    this.#pulling = true
    this.#pulls++
    this.#pull().then(
      (bytes) => { this.#pulling = false; this.push(bytes) },
      (error: unknown) => { this.destroy(error instanceof Error ? error : new Error('The stream failed.', { cause: error })) },
    )
  }
  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#watching.abort()
    // A use case that fails while it is being told to stop has nobody left to tell.
    this.#items.return?.().catch(() => undefined)
    done(error)
  }
  /** The next bytes, or null at the end. Empty items are skipped: pushing one would stop the stream. */
  async #pull(): Promise<Buffer | null> {
    for (;;) {
      const item = this.#first ?? await this.#items.next()
      this.#first = undefined
      if (item.done === true) return null
      if (item.value.byteLength > 0) return item.value
    }
  }
  async #watchStall(clock: Clock): Promise<void> {
    for (;;) {
      const before = this.#pulls
      await clock.sleep(REPLY_STALL_MS, this.#watching.signal)
      if (this.#pulls === before && !this.#pulling)
        this.destroy(new RoostError('REQUEST_TIMEOUT', 'The reply was not taken.'))
    }
  }
}

/** Events as lines of JSON. A failure after the first event is itself the last line. */
export async function* encodeEventLines(events: AsyncIterable<MaintenanceEvent>, toWireError: (error: unknown) => WireError): AsyncGenerator<Buffer> {
  let begun = false
  try {
    for await (const event of events) {
      begun = true
      yield encodeLine(event)
    }
  } catch (error) {
    if (!begun || isAbort(error)) throw error
    yield encodeLine({ type: 'failed', error: toWireError(error) })
  }
}
const encodeLine = (event: MaintenanceEvent): Buffer => Buffer.from(JSON.stringify(event) + '\n')
