/** QMP over a unix socket. QEMU serves one client of a socket at a time: a second one is connected and then left waiting for the greeting. */
import type { Clock } from '../../src/core/clock.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { JsonLines } from './json-lines.js'
import { COMMAND_MS_MAX, openAnswer, type Monitor, type MonitorCall } from './monitor.js'

const GREETING_MS_MAX = 3_000

interface Waiting { readonly command: string; settle(answer: Readonly<Record<string, unknown>> | Error): void }

export class QmpSocket implements Monitor {
  readonly #waiting = new Map<number, Waiting>()
  #lines: JsonLines | undefined
  #connecting: Promise<JsonLines> | undefined
  #last = 0
  #isClosed = false
  #onGreeting: (() => void) | undefined
  /** Called when QEMU or somebody else ends the connection; the next command opens it anew. */
  onLost: ((reason: Error) => void) | undefined
  private constructor(readonly path: string, readonly clock: Clock) {}

  /** @throws {ClientError} MACHINE_UNREACHABLE; MACHINE_BUSY when QEMU takes the connection and greets somebody else. */
  static async open(path: string, clock: Clock, signal?: AbortSignal): Promise<QmpSocket> {
    const qmp = new QmpSocket(path, clock)
    await qmp.#connected(signal)
    return qmp
  }
  async execute(command: string, parameters?: Readonly<Record<string, unknown>>, { timeoutMs = COMMAND_MS_MAX, signal }: MonitorCall = {}): Promise<unknown> {
    signal?.throwIfAborted()
    if (this.#isClosed) throw new ClientError('MACHINE_UNREACHABLE', 'The connection to the machine is closed.')
    return await this.#send(await this.#connected(signal), command, parameters, timeoutMs, signal)
  }
  close(): void {
    this.#isClosed = true
    this.onLost = undefined
    this.#lines?.close()
  }

  async #connected(signal: AbortSignal | undefined): Promise<JsonLines> {
    if (this.#lines !== undefined && !this.#lines.isOver) return this.#lines
    this.#connecting ??= this.#connect(signal).finally(() => { this.#connecting = undefined })
    return await this.#connecting
  }
  async #connect(signal: AbortSignal | undefined): Promise<JsonLines> {
    const greeted = new Promise<void>((resolve) => { this.#onGreeting = resolve })
    let lost: (reason: Error) => void = () => undefined
    const ended = new Promise<never>((_resolve, reject) => { lost = reject })
    ended.catch(() => undefined) // after the greeting nobody waits for it
    let isReady = false
    const lines = await JsonLines.open(this.path, {
      onObject: (object) => { this.#hear(object) },
      onEnd: (reason) => {
        lost(reason)
        for (const { settle } of this.#waiting.values()) settle(reason)
        if (isReady) this.onLost?.(reason)
      },
    }, this.clock, GREETING_MS_MAX, signal)
    const late = new AbortController()
    try {
      await Promise.race([greeted, ended, this.clock.sleep(GREETING_MS_MAX, AbortSignal.any([late.signal, ...(signal === undefined ? [] : [signal])])).then(() => {
        throw new ClientError('MACHINE_BUSY', `QEMU does not greet us at ${this.path}: another program is connected to this monitor.`)
      })])
      await this.#send(lines, 'qmp_capabilities', undefined, GREETING_MS_MAX, signal)
    } catch (error) {
      lines.close()
      throw error
    } finally {
      late.abort()
    }
    isReady = true
    this.#lines = lines
    return lines
  }
  async #send(lines: JsonLines, command: string, parameters: Readonly<Record<string, unknown>> | undefined, timeoutMs: number, signal: AbortSignal | undefined): Promise<unknown> {
    const id = ++this.#last
    const late = new AbortController()
    const answered = new Promise<Readonly<Record<string, unknown>>>((resolve, reject) => {
      this.#waiting.set(id, { command, settle: (answer) => { if (answer instanceof Error) reject(answer); else resolve(answer) } })
    })
    answered.catch(() => undefined) // it may settle after we gave up
    lines.write(Buffer.from(`${JSON.stringify({ execute: command, ...(parameters === undefined ? {} : { arguments: parameters }), id })}\n`))
    if (lines.isOver) this.#waiting.get(id)?.settle(new ClientError('MACHINE_UNREACHABLE', `The other side closed ${this.path}.`))
    try {
      const patience = this.clock.sleep(timeoutMs, AbortSignal.any([late.signal, ...(signal === undefined ? [] : [signal])])).then(() => {
        // Whether the command is done nobody knows: this connection is of no use any more.
        const silent = new ClientError('MACHINE_UNREACHABLE', `QEMU did not answer ${command} within ${Math.round(timeoutMs / 1000)} s.`)
        lines.close(silent)
        throw silent
      })
      return openAnswer(command, await Promise.race([answered, patience]))
    } finally {
      this.#waiting.delete(id)
      late.abort()
    }
  }
  #hear(object: Readonly<Record<string, unknown>>): void {
    if (Object.hasOwn(object, 'QMP')) { this.#onGreeting?.(); return }
    const id = object['id']
    if (typeof id === 'number') this.#waiting.get(id)?.settle(object) // else an event, or an answer that nobody waits for any more
  }
}
