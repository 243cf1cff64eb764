/** JSON objects a line over a unix socket: what QMP and the guest agent speak. Whoever is at the other end is not trusted with our memory. */
import { createConnection, type Socket } from 'node:net'
import type { Clock } from '../../src/core/clock.js'
import { ClientError } from '../../src/protocol/client-errors.js'

/** Of one line. The longest that QEMU writes is its list of block nodes: some hundred KiB with dozens of disks. */
const LINE_BYTES_MAX = 16 * 1024 * 1024

export interface LineHandlers {
  onObject(object: Readonly<Record<string, unknown>>): void
  /** Once, whatever ended it. */
  onEnd(reason: Error): void
}
export class JsonLines {
  #parts: Buffer[] = []
  #bytes = 0
  #isOver = false
  private constructor(readonly socket: Socket, readonly path: string, readonly handlers: LineHandlers) {
    socket.on('data', (bytes: Buffer) => { this.#take(bytes) })
    socket.on('error', (error) => { this.#end(new ClientError('MACHINE_UNREACHABLE', `The connection to ${path} broke.`, { cause: error })) })
    socket.on('close', () => { this.#end(new ClientError('MACHINE_UNREACHABLE', `The other side closed ${path}.`)) })
  }
  /** @throws {ClientError} MACHINE_UNREACHABLE */
  static async open(path: string, handlers: LineHandlers, clock: Clock, timeoutMs: number, signal?: AbortSignal): Promise<JsonLines> {
    signal?.throwIfAborted()
    const socket = createConnection({ path })
    const late = new AbortController()
    const patience = AbortSignal.any([late.signal, ...(signal === undefined ? [] : [signal])])
    try {
      await Promise.race([
        new Promise<void>((resolve, reject) => { socket.once('connect', resolve); socket.once('error', reject) }),
        clock.sleep(timeoutMs, patience).then(() => { throw new ClientError('MACHINE_UNREACHABLE', `Nothing takes connections at ${path}.`) }),
      ])
    } catch (error) {
      socket.on('error', () => undefined)
      socket.destroy()
      signal?.throwIfAborted()
      throw error instanceof ClientError ? error : new ClientError('MACHINE_UNREACHABLE', `The socket ${path} cannot be reached.`, { cause: error })
    } finally {
      late.abort()
    }
    return new JsonLines(socket, path, handlers)
  }
  get isOver(): boolean { return this.#isOver }
  write(bytes: Buffer): void { if (!this.#isOver) this.socket.write(bytes) }
  close(reason: Error = new ClientError('MACHINE_UNREACHABLE', 'The connection was closed.')): void { this.#end(reason) }

  #take(bytes: Buffer): void {
    for (let from = 0; !this.#isOver;) {
      const newline = bytes.indexOf(0x0a, from)
      const part = bytes.subarray(from, newline < 0 ? bytes.length : newline)
      this.#bytes += part.length
      if (this.#bytes > LINE_BYTES_MAX) { this.#end(new ClientError('MACHINE_UNREACHABLE', `What came from ${this.path} is no answer of QEMU: a line without end.`)); return }
      this.#parts.push(part)
      if (newline < 0) return
      const line = Buffer.concat(this.#parts)
      this.#parts = []
      this.#bytes = 0
      from = newline + 1
      // A guest agent begins its answer to guest-sync-delimited with 0xff, so that a broken line before it can be told apart.
      const object = parse(line.subarray(line.lastIndexOf(0xff) + 1))
      if (object !== undefined) this.handlers.onObject(object)
    }
  }
  #end(reason: Error): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#parts = []
    this.socket.destroy()
    this.handlers.onEnd(reason)
  }
}
/** Undefined: a line that is no object, such as the rest of an answer to somebody before us. */
function parse(line: Buffer): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(line.toString('utf8'))
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value as Record<string, unknown> : undefined
  } catch {
    return undefined
  }
}
