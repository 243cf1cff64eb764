/** Other programs: run without a shell, for a bounded time, with bounded output; what goes wrong is told in their words. */
import { spawn } from 'node:child_process'
import { systemClock } from '../../src/core/clock.js'
import { isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'

export interface ProgramResult { readonly stdout: string; readonly stderr: string }
export interface ProgramOptions {
  readonly signal?: AbortSignal
  /** Default a minute. */
  readonly timeoutMs?: number
  /** What installs it, for the message. */
  readonly fromPackage?: string
}
const TIMEOUT_MS = 60_000
const OUTPUT_BYTES_MAX = 4 * 1024 * 1024

/** Resolves when it ended with 0. The arguments are seen by every user of the machine: no secrets.
 *  @throws {ClientError} PROGRAM_MISSING; PROGRAM_FAILED with what it wrote to standard error; `signal.reason` */
export async function runProgram(command: string, args: readonly string[], { signal, timeoutMs = TIMEOUT_MS, fromPackage }: ProgramOptions = {}): Promise<ProgramResult> {
  signal?.throwIfAborted()
  const child = spawn(command, [...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  const output = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8')
    child[name].on('data', (text: string) => {
      output[name] += text
      if (output[name].length > OUTPUT_BYTES_MAX) child.kill('SIGKILL')
    })
  }
  const stopped = new AbortController()
  let isLate = false
  const onAbort = (): void => { child.kill('SIGKILL') }
  signal?.addEventListener('abort', onAbort, { once: true })
  systemClock.sleep(timeoutMs, stopped.signal).then(() => { isLate = true; child.kill('SIGKILL') }, () => undefined) // it ended in time
  try {
    const end = await new Promise<string>((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (code, by) => { resolve(code === null ? `was ended by ${by}` : code === 0 ? '' : `ended with ${code}`) })
    })
    signal?.throwIfAborted()
    if (end === '') return output
    const how = isLate ? `did not end within ${timeoutMs / 1000} s` : end
    throw new ClientError('PROGRAM_FAILED', `${command} ${how}: ${output.stderr.trim().slice(-2_000) || 'it gave no reason'}`)
  } catch (error) {
    if (isErrno(error, 'ENOENT')) throw missing(command, fromPackage)
    throw error
  } finally {
    stopped.abort(new DOMException('It ended.', 'AbortError'))
    signal?.removeEventListener('abort', onAbort)
  }
}
export function missing(command: string, fromPackage = command): ClientError {
  return new ClientError('PROGRAM_MISSING', `The program ${command} is needed and not installed (Debian, Ubuntu: package ${fromPackage}).`)
}
