/** The hooks of one backup (docs/hooks.md): before it, when its point in time is taken, after it.
 *
 *  A database is told to be consistent before, and need not wait for the copying: `post-point` says that it may go on.
 */
import { lstatSync, realpathSync, statSync, type Stats } from 'node:fs'
import { join } from 'node:path'
import type { Clock } from '../../src/core/clock.js'
import { isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { commandText, runHook, withoutSecrets, type HookCommand, type HookKind, type HookOutcome } from './run-hook.js'

export interface HookOptions {
  readonly pre: readonly string[]
  readonly postPoint: readonly string[]
  readonly post: readonly string[]
  /** Holds `pre`, `post-point` and `post`, or a folder for each source that does. */
  readonly directory?: string
  readonly timeoutMs: number
  readonly source: string
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly clock: Clock
}
export type BackupResult = 'ok' | 'problems' | 'failed' | 'interrupted'
export interface HookEvents {
  ran?(kind: HookKind, command: string, outcome: HookOutcome): void
}

export class BackupHooks {
  readonly #directory: string | undefined
  #point: Promise<void> | undefined
  #hasBegun = false
  /** Hooks that failed and did not keep the backup from being made. */
  problems = 0

  /** @throws {ClientError} HOOK_FAILED when a script may be written by others, or cannot be run: before anything else is done */
  constructor(readonly options: HookOptions, readonly events: HookEvents = {}) {
    this.#directory = options.directory === undefined ? undefined : directoryOf(options.directory, options.source)
    for (const kind of ['pre', 'post-point', 'post'] as const) this.#script(kind)
  }

  /** @throws {ClientError} HOOK_FAILED: the backup is not to be made; `post` is to be called all the same. `signal.reason` */
  async pre(signal: AbortSignal): Promise<void> {
    this.#hasBegun = true
    for (const command of this.#commands('pre')) {
      const { failure } = await this.#run('pre', command, {}, signal)
      if (failure !== undefined) throw new ClientError('HOOK_FAILED', `The backup is not made: the hook before it failed (${commandText(command)}): ${failure}.`)
    }
  }
  /** The point in time is taken, or everything is read where there is none. Once, however often it is told; resolves when the hooks are done. */
  async pointTaken(signal: AbortSignal): Promise<void> {
    this.#point ??= this.#runPoint(signal)
    await this.#point
  }
  async #runPoint(signal: AbortSignal): Promise<void> {
    for (const command of this.#commands('post-point')) if ((await this.#run('post-point', command, {}, signal)).failure !== undefined) this.problems++
  }
  /** Always, also after a failure and Ctrl-C. */
  async post(result: BackupResult, snapshotId: string | undefined): Promise<void> {
    if (!this.#hasBegun) return
    await this.#point?.catch(() => undefined) // it was told to whoever waited for it
    const facts = { ROOST_RESULT: result, ...(snapshotId === undefined ? {} : { ROOST_SNAPSHOT: snapshotId }) }
    for (const command of this.#commands('post')) if ((await this.#run('post', command, facts, new AbortController().signal)).failure !== undefined) this.problems++
  }

  #commands(kind: HookKind): HookCommand[] {
    const { pre, postPoint, post } = this.options
    const lines = (kind === 'pre' ? pre : kind === 'post' ? post : postPoint).map((shell) => ({ shell }))
    const script = this.#script(kind)
    return script === undefined ? lines : kind === 'pre' ? [...lines, { file: script }] : [{ file: script }, ...lines]
  }
  #script(kind: HookKind): string | undefined {
    if (this.#directory === undefined) return undefined
    const path = join(this.#directory, kind)
    const stat = statOf(path)
    if (stat === undefined) return undefined
    requireOurs(path, stat)
    if (!stat.isFile() || (stat.mode & 0o111) === 0) throw new ClientError('HOOK_FAILED', `The hook ${path} is no executable file: chmod +x it, or remove it.`)
    return path
  }
  async #run(kind: HookKind, command: HookCommand, facts: Readonly<Record<string, string>>, signal: AbortSignal): Promise<HookOutcome> {
    const { environment, source, timeoutMs, clock } = this.options
    const outcome = await runHook({ command, timeoutMs, clock, environment: { ...withoutSecrets(environment), ROOST_HOOK: kind, ROOST_SOURCE: source, ...facts } }, signal)
    this.events.ran?.(kind, commandText(command), outcome)
    return outcome
  }
}

/** The folder of the source, where there is one. Its name is the source's, with what a file's name cannot have as %XX. */
function directoryOf(directory: string, source: string): string {
  const all = statOf(directory)
  if (all?.isDirectory() !== true) throw new ClientError('HOOK_FAILED', `The folder of hooks ${directory} is not there.`)
  requireOurs(directory, all)
  const own = join(directory, encodeURIComponent(source).replace(/^\.+$/, (dots) => dots.replaceAll('.', '%2E')))
  const stat = statOf(own)
  if (stat?.isDirectory() !== true) return directory
  requireOurs(own, stat)
  return own
}
function statOf(path: string): Stats | undefined {
  try {
    return statSync(lstatSync(path).isSymbolicLink() ? realpathSync(path) : path)
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return undefined
    throw error
  }
}
/** What it says is run with our rights: nobody else may have written it. */
function requireOurs(path: string, { uid, mode }: Stats): void {
  const me = process.geteuid?.()
  if (uid !== 0 && uid !== me || (mode & 0o022) !== 0)
    throw new ClientError('HOOK_FAILED', `${path} could have been written by others, and is run with the rights of this backup: it must belong to root or to you, and be writable by its owner alone.`)
}
