/** A second process that outlives us: it takes out of QEMU what we put in, thaws and resumes, when we are killed or hang while the machine stands.
 *
 *  It reads a pipe from us. The pipe's end without `done` means that we died, and then QEMU's sockets, which serve one client at a time, are free.
 *  It runs in a group of its own, so that a Ctrl-C or a killed terminal ends us and not it.
 */
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { Clock } from '../../src/core/clock.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { AgentAddress } from './guest-agent.js'
import type { MonitorAddress } from './monitor.js'

/** Plain values: told as a line of JSON. */
export interface WatchdogTask {
  readonly monitor: MonitorAddress
  readonly agent?: AgentAddress
  readonly run: string
  /** Removed with the rest, unless a commit was begun: then nobody knows which of them the newest snapshot names. */
  readonly bitmaps: readonly { readonly node: string; readonly name: string }[]
  readonly directory: string
  readonly locks: readonly string[]
}
export type WatchdogWord = { readonly type: 'task'; readonly task: WatchdogTask } | { readonly type: 'standing'; readonly forMs?: number }
  | { readonly type: 'committing' } | { readonly type: 'done' }

export interface Watchdog {
  /** The machine stands, no longer than that: else we hang, and are ended. Undefined: it goes on. */
  standing(forMs: number | undefined): void
  committing(): void
  /** Everything is out of QEMU: it ends without a deed. */
  done(): void
}
const READY_MS_MAX = 20_000

/** Resolves once it watches. @throws {ClientError} WATCHDOG_FAILED: no machine is made to stand without one */
export async function startWatchdog(task: WatchdogTask, clock: Clock): Promise<Watchdog> {
  const child = spawn(process.execPath, [fileURLToPath(new URL('./watchdog-process.js', import.meta.url))], { stdio: ['pipe', 'pipe', 'inherit'], detached: true })
  child.stdin.on('error', () => undefined) // it is gone: said by `ended`
  const say = (word: WatchdogWord): void => { child.stdin.write(`${JSON.stringify(word)}\n`) }
  const late = new AbortController()
  try {
    await Promise.race([
      new Promise<void>((resolve, reject) => {
        child.stdout.once('data', () => { resolve() })
        child.once('error', reject)
        child.once('exit', (code) => { reject(new Error(`it ended with ${code}`)) })
        say({ type: 'task', task })
      }),
      clock.sleep(READY_MS_MAX, late.signal).then(() => { throw new Error('it does not start in time') }),
    ])
  } catch (error) {
    child.kill('SIGKILL')
    throw new ClientError('WATCHDOG_FAILED', `The process that thaws the guest if this one dies cannot be started: ${(error as Error).message}.`, { cause: error })
  } finally {
    late.abort()
  }
  child.unref()
  return {
    standing: (forMs) => { say({ type: 'standing', ...(forMs === undefined ? {} : { forMs }) }) },
    committing: () => { say({ type: 'committing' }) },
    done: () => {
      say({ type: 'done' })
      child.stdin.end()
    },
  }
}
