/** The way of every body into the server: reserve, read, use, release. Chunk bodies come as memory that other threads can see. */
import type { Readable } from 'node:stream'
import type { Clock } from '../core/clock.js'
import type { FrameBody } from '../repo/repository.js'
import type { Admission } from './admission.js'
import type { BodyBuffers } from './body-buffers.js'
import { receiveBody } from './raw-body.js'

export interface IncomingBody {
  readonly source: Readable
  /** Its declared length, already within the limit of its route. */
  readonly bytes: number
  readonly session?: string
  readonly signal: AbortSignal
}
export interface BodyIntakeDeps { readonly clock: Clock; readonly admission: Admission; readonly buffers: BodyBuffers }

export class BodyIntake {
  readonly #deps: BodyIntakeDeps
  constructor(deps: BodyIntakeDeps) { this.#deps = deps }

  /** Runs `use` with the whole body. `use` may give the memory (or what it was exchanged for) back as `recycled`.
   *  Shape: the reservation covers the body until `use` settles.
   *  @throws {RoostError} SERVER_BUSY, TOO_MANY_REQUESTS, BODY_TRUNCATED, REQUEST_TIMEOUT, and what `use` throws */
  async within<T extends { readonly recycled?: SharedArrayBuffer }>(incoming: IncomingBody, use: (body: FrameBody) => Promise<T>): Promise<T> {
    const { admission, buffers, clock } = this.#deps
    const { bytes, signal } = incoming
    const release = await admission.enter({
      bytes: buffers.capacityFor(bytes), signal, ...(incoming.session === undefined ? {} : { session: incoming.session }),
    })
    try {
      const buffer = buffers.take(bytes)
      const watch = { clock, signal, isPressed: () => admission.isPressed }
      try {
        await receiveBody(incoming.source, new Uint8Array(buffer, 0, bytes), watch)
      } catch (error) {
        buffers.giveBack(buffer) // never handed out: it is still ours
        throw error
      }
      const result = await use({ buffer, bytes })
      if (result.recycled !== undefined) buffers.giveBack(result.recycled)
      return result
    } finally {
      release()
    }
  }

  /** The same for bodies that stay on this thread: a copy in memory of its own, which anything may be given. */
  async withinBuffer<T>(incoming: IncomingBody, use: (body: Buffer) => Promise<T>): Promise<T> {
    const { value } = await this.within(incoming, async ({ buffer, bytes }) =>
      ({ value: await use(Buffer.from(new Uint8Array(buffer, 0, bytes))), recycled: buffer }))
    return value
  }
}
