/** One QEMU of ours, as a process: what it says, how it ends, and that it ends with us. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import type { Clock } from '../../src/core/clock.js'
import { isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'

export interface QemuEnd { readonly code: number | null; readonly signal: string | null }

const ERRORS_BYTES_MAX = 16 * 1024
/** What QEMU needs to write its images back. */
const GRACE_MS = 10_000

export class QemuProcess {
  #errors = ''
  readonly ended: Promise<QemuEnd>
  #end: QemuEnd | undefined
  private constructor(readonly child: ChildProcess, readonly clock: Clock) {
    child.stderr?.on('data', (bytes: Buffer) => { this.#errors = (this.#errors + bytes.toString('utf8')).slice(-ERRORS_BYTES_MAX) })
    this.ended = new Promise((resolve) => {
      child.once('close', (code, signal) => { resolve({ code, signal }) })
      child.once('error', () => { resolve({ code: null, signal: null }) })
    })
    void this.ended.then((end) => { this.#end = end })
  }
  /** `serial`: the console is the terminal's, or a pipe that the caller reads. @throws {ClientError} QEMU_FAILED when it is not installed */
  static async start(binary: string, args: readonly string[], serial: 'terminal' | 'pipe', clock: Clock): Promise<QemuProcess> {
    // The kernel ends it when we are gone, however we went: nobody would serve its disks any more.
    const [command, all] = canTieToUs() ? ['setpriv', ['--pdeathsig', 'KILL', '--', binary, ...args]] as const : [binary, args] as const
    const child = spawn(command, all, { stdio: serial === 'terminal' ? ['inherit', 'inherit', 'pipe'] : ['ignore', 'pipe', 'pipe'] })
    const started = new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve)
      child.once('error', (error) => {
        reject(new ClientError('QEMU_FAILED', isErrno(error, 'ENOENT') ? `${binary} is not installed (Debian: qemu-system-x86), or not found.` : `${binary} cannot be started.`, { cause: error }))
      })
    })
    const qemu = new QemuProcess(child, clock)
    await started
    return qemu
  }
  get hasEnded(): boolean { return this.#end !== undefined }
  /** What it wrote to standard error, the end of it. */
  get errors(): string { return this.#errors.trim() }
  /** Why it ended, in words. */
  describe({ code, signal }: QemuEnd): string {
    const how = signal !== null ? `was ended by ${signal}` : code === 0 ? 'ended' : `ended with ${code ?? 'an error'}`
    return `QEMU ${how}${this.errors === '' ? '' : `: ${this.errors.split('\n').slice(-5).join(' / ')}`}`
  }
  /** Asks it to end, and makes it. `atOnce`: nothing that it writes back is wanted. */
  async end(atOnce: boolean): Promise<void> {
    if (this.#end !== undefined) return
    this.child.kill(atOnce ? 'SIGKILL' : 'SIGTERM')
    const late = new AbortController()
    await Promise.race([this.ended, this.clock.sleep(GRACE_MS, late.signal).catch(() => undefined)])
    late.abort()
    if (!this.hasEnded) this.child.kill('SIGKILL')
    await this.ended
  }
}

let tie: boolean | undefined
function canTieToUs(): boolean {
  tie ??= spawnSync('setpriv', ['--pdeathsig', 'KILL', 'true'], { stdio: 'ignore', timeout: 5_000 }).status === 0
  return tie
}
