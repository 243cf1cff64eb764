/** The agent in the guest, as far as a backup needs it: is somebody there, stand still, go on.
 *
 *  A socket that takes connections proves nothing (QEMU keeps what it is sent), so every word begins with guest-sync: its answer is the proof,
 *  and everything that was said before it has been dealt with, a freeze that somebody died over included.
 */
import type { Clock } from '../../src/core/clock.js'
import type { Random } from '../../src/core/random.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { JsonLines } from './json-lines.js'
import { openAnswer } from './monitor.js'
import { parseAnswer, virsh } from './virsh.js'

export type AgentAddress =
  | { readonly kind: 'socket'; readonly path: string }
  | { readonly kind: 'libvirt'; readonly domain: string; readonly uri?: string }

export const AGENT_SYNC_MS_MAX = 3_000
const AGENT_WORD_MS_MAX = 10_000

export interface GuestAgent {
  /** How many file systems stand still now. `timeoutMs` is the time that the guest may take. */
  freeze(timeoutMs: number, signal?: AbortSignal): Promise<number>
  /** How many go on. A guest that is not frozen answers 0. */
  thaw(): Promise<number>
  isFrozen(): Promise<boolean>
  close(): void
}
/** @throws {ClientError} MACHINE_UNREACHABLE when no agent answers in time */
export async function openAgent(address: AgentAddress, clock: Clock, random: Random, syncMs: number = AGENT_SYNC_MS_MAX, signal?: AbortSignal): Promise<GuestAgent> {
  if (address.kind === 'socket') return await AgentSocket.open(address.path, clock, random, syncMs, signal)
  const agent = new VirshAgent(address)
  await agent.ping(syncMs, signal)
  return agent
}

class AgentSocket implements GuestAgent {
  #lines!: JsonLines
  /** The one word that waits for its answer. */
  #waiting: ((answer: Readonly<Record<string, unknown>> | Error) => void) | undefined
  #ended: Error | undefined
  private constructor(readonly path: string, readonly clock: Clock) {}

  static async open(path: string, clock: Clock, random: Random, syncMs: number, signal: AbortSignal | undefined): Promise<AgentSocket> {
    const agent = new AgentSocket(path, clock)
    agent.#lines = await JsonLines.open(path, {
      onObject: (object) => { agent.#waiting?.(object) },
      onEnd: (reason) => {
        agent.#ended = reason
        agent.#waiting?.(reason)
      },
    }, clock, syncMs, signal)
    try {
      await agent.#sync(random.bytes(4).readUInt32LE() >>> 1, syncMs, signal)
    } catch (error) {
      agent.close()
      throw error
    }
    return agent
  }
  async freeze(timeoutMs: number, signal?: AbortSignal): Promise<number> { return asCount(await this.#say('guest-fsfreeze-freeze', timeoutMs, signal)) }
  async thaw(): Promise<number> { return asCount(await this.#say('guest-fsfreeze-thaw', AGENT_WORD_MS_MAX)) }
  async isFrozen(): Promise<boolean> { return await this.#say('guest-fsfreeze-status', AGENT_WORD_MS_MAX) === 'frozen' }
  close(): void { this.#lines.close() }

  async #sync(id: number, timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    // 0xff makes the agent forget half a line of whoever was here before.
    const line = Buffer.concat([Buffer.from([0xff]), wordOf('guest-sync-delimited', { id })])
    await this.#exchange('guest-sync-delimited', line, timeoutMs, signal, (answer) => answer['return'] === id) // answers to words before us are passed over
  }
  async #say(command: string, timeoutMs: number, signal?: AbortSignal): Promise<unknown> {
    return openAnswer(command, await this.#exchange(command, wordOf(command), timeoutMs, signal, () => true))
  }
  async #exchange(command: string, line: Buffer, timeoutMs: number, signal: AbortSignal | undefined,
    isAnswer: (answer: Readonly<Record<string, unknown>>) => boolean): Promise<Readonly<Record<string, unknown>>> {
    signal?.throwIfAborted()
    if (this.#ended !== undefined) throw this.#ended
    const late = new AbortController()
    const answered = new Promise<Readonly<Record<string, unknown>>>((resolve, reject) => {
      this.#waiting = (answer) => { if (answer instanceof Error) reject(answer); else if (isAnswer(answer)) resolve(answer) }
    })
    answered.catch(() => undefined)
    this.#lines.write(line)
    const patience = this.clock.sleep(timeoutMs, AbortSignal.any([late.signal, ...(signal === undefined ? [] : [signal])])).then(() => {
      const silent = new ClientError('MACHINE_UNREACHABLE', `The guest agent did not answer ${command} within ${timeoutMs / 1000} s.`)
      this.#lines.close(silent) // its late answer would be taken for that of the next word
      throw silent
    })
    try {
      return await Promise.race([answered, patience])
    } finally {
      this.#waiting = undefined
      late.abort()
    }
  }
}

class VirshAgent implements GuestAgent {
  constructor(readonly at: { readonly domain: string; readonly uri?: string }) {}
  async ping(timeoutMs: number, signal?: AbortSignal): Promise<void> { await this.#say('guest-ping', timeoutMs, signal) }
  async freeze(timeoutMs: number, signal?: AbortSignal): Promise<number> { return asCount(await this.#say('guest-fsfreeze-freeze', timeoutMs, signal)) }
  async thaw(): Promise<number> { return asCount(await this.#say('guest-fsfreeze-thaw', AGENT_WORD_MS_MAX)) }
  async isFrozen(): Promise<boolean> { return await this.#say('guest-fsfreeze-status', AGENT_WORD_MS_MAX) === 'frozen' }
  close(): void { /* every word is a process of its own */ }
  async #say(command: string, timeoutMs: number, signal?: AbortSignal): Promise<unknown> {
    const seconds = Math.max(1, Math.ceil(timeoutMs / 1000))
    const text = await virsh(this.at, ['qemu-agent-command', '--domain', this.at.domain, '--timeout', `${seconds}`, '--cmd', JSON.stringify({ execute: command })],
      { timeoutMs: (seconds + 10) * 1000, ...(signal === undefined ? {} : { signal }) })
    return openAnswer(command, parseAnswer(command, text))
  }
}
const wordOf = (command: string, parameters?: Readonly<Record<string, unknown>>): Buffer =>
  Buffer.from(`${JSON.stringify({ execute: command, ...(parameters === undefined ? {} : { arguments: parameters }) })}\n`)
const asCount = (value: unknown): number => typeof value === 'number' ? value : 0
