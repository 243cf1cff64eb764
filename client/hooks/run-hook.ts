/** Runs one command of the user's around a backup: in a process group of its own, bounded in time and output, without our secrets.
 *
 *  When its time is over, or we are told to stop, the whole group is told to end (SIGTERM) and after GRACE_MS made to (SIGKILL).
 */
import { spawn, type ChildProcess } from 'node:child_process'
import type { Clock } from '../../src/core/clock.js'
import { isErrno } from '../../src/core/errors.js'

export type HookKind = 'pre' | 'post-point' | 'post'
/** `shell`: a line for /bin/sh. `file`: an executable file. */
export type HookCommand = { readonly shell: string } | { readonly file: string }
export interface HookRun {
  readonly command: HookCommand
  /** All of it: nothing else is inherited. */
  readonly environment: Readonly<Record<string, string>>
  readonly timeoutMs: number
  readonly clock: Clock
}
export interface HookOutcome {
  /** Undefined: it ended with 0. Else why it did not, in words. */
  readonly failure: string | undefined
  /** The end of what it wrote, both streams as they came. */
  readonly output: string
  readonly durationMs: number
}

const GRACE_MS = 5_000
/** What it wrote may still be in the pipe when it has ended; a child that it left behind may hold the pipe for ever. */
const DRAIN_MS = 500
const OUTPUT_BYTES_MAX = 64 * 1024
const SECRETS = /^(?:ROOST_TOKEN|OS_PASSWORD|OS_TOKEN|OS_AUTH_TOKEN|OS_APPLICATION_CREDENTIAL_SECRET|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|NODE_OPTIONS)$|PASSPHRASE/

/** What hooks may see of our environment. */
export function withoutSecrets(environment: Readonly<Record<string, string | undefined>>): Record<string, string> {
  return Object.fromEntries(Object.entries(environment).filter((entry): entry is [string, string] => entry[1] !== undefined && !SECRETS.test(entry[0])))
}
export const commandText = (command: HookCommand): string => 'shell' in command ? command.shell : command.file

/** Never throws but `signal.reason`, after the group is gone. */
export async function runHook({ command, environment, timeoutMs, clock }: HookRun, signal: AbortSignal): Promise<HookOutcome> {
  signal.throwIfAborted()
  const startedMs = clock.monotonicMs()
  const [file, args] = 'shell' in command ? ['/bin/sh', ['-c', command.shell]] as const : [command.file, []] as const
  const child = spawn(file, args, { env: environment, stdio: ['ignore', 'pipe', 'pipe'], detached: true })
  const output = new Tail(child)
  const ended = new AbortController()
  const exit = new Promise<string | undefined>((resolve) => {
    child.once('error', (error) => { resolve(isErrno(error) ? `it could not be started: ${error.message}` : 'it could not be started') })
    child.once('exit', (code, killed) => { resolve(code === 0 ? undefined : code === null ? `it was ended by ${killed}` : `it ended with ${code}`) })
  })
  const late = clock.sleep(timeoutMs, AbortSignal.any([ended.signal, signal])).then(() => 'late' as const, () => 'stopped' as const)
  try {
    const first = await Promise.race([exit.then((failure) => ({ failure })), late])
    if (typeof first !== 'string') {
      await Promise.race([output.closed, clock.sleep(DRAIN_MS, ended.signal).catch(() => undefined)])
      return { failure: first.failure, output: output.text(), durationMs: clock.monotonicMs() - startedMs }
    }
    await endGroup(child, exit, clock)
    signal.throwIfAborted()
    return { failure: `it took longer than ${timeoutMs / 1000} s and was ended`, output: output.text(), durationMs: clock.monotonicMs() - startedMs }
  } finally {
    ended.abort()
    output.stop()
  }
}
async function endGroup(child: ChildProcess, exit: Promise<unknown>, clock: Clock): Promise<void> {
  killGroup(child, 'SIGTERM')
  const gone = new AbortController()
  await Promise.race([exit, clock.sleep(GRACE_MS, gone.signal).catch(() => undefined)])
  gone.abort()
  killGroup(child, 'SIGKILL') // also of those that the first one left
  await exit
}
function killGroup({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, signal)
  } catch (error) {
    if (!isErrno(error, 'ESRCH')) throw error // gone already
  }
}

/** The last OUTPUT_BYTES_MAX of both streams. */
class Tail {
  readonly #parts: Buffer[] = []
  #bytes = 0
  readonly closed: Promise<unknown>
  constructor(readonly child: ChildProcess) {
    const streams = [child.stdout!, child.stderr!]
    for (const stream of streams) stream.on('data', (part: Buffer) => { this.#add(part) }).on('error', () => undefined) // its end says enough
    this.closed = Promise.all(streams.map((stream) => new Promise((resolve) => stream.once('close', resolve))))
  }
  #add(part: Buffer): void {
    this.#parts.push(part)
    this.#bytes += part.byteLength
    while (this.#bytes - this.#parts[0]!.byteLength >= OUTPUT_BYTES_MAX) this.#bytes -= this.#parts.shift()!.byteLength
  }
  text(): string { return Buffer.concat(this.#parts).subarray(-OUTPUT_BYTES_MAX).toString('utf8') }
  stop(): void { for (const stream of [this.child.stdout!, this.child.stderr!]) stream.destroy() }
}
