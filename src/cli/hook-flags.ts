/** The options of hooks (docs/hooks.md), and a backup between them. */
import type { Command } from 'commander'
import { BackupHooks, type BackupResult } from '../../client/hooks/backup-hooks.js'
import { isAbort } from '../core/errors.js'
import { collect, countOption } from './command.js'
import type { CommandContext } from './context.js'
import { EXIT, UsageError, type ExitCode } from './exit-codes.js'
import { formatDuration, printable } from './format.js'

export interface HookFlags {
  readonly pre?: readonly string[]; readonly post?: readonly string[]; readonly postPoint?: readonly string[]; readonly hooks?: string; readonly hookTimeout?: number
}
const TIMEOUT_SECONDS_DEFAULT = 60
const SHOWN_LINES_MAX = 20

export function addHookOptions(command: Command): Command {
  return command
    .option('--pre <command>', 'a line for sh, run before; if it fails, no backup is made. May be repeated', collect)
    .option('--post-point <command>', 'run when the point in time is taken, or all is read where there is none', collect)
    .option('--post <command>', 'run afterwards, whatever happened: ROOST_RESULT is ok, problems, failed or interrupted', collect)
    .option('--hooks <dir>', 'scripts named pre, post-point and post, or a folder for each source with them (ROOST_HOOKS)')
    .option('--hook-timeout <seconds>', `for each hook (default ${TIMEOUT_SECONDS_DEFAULT})`, countOption)
}

/** What a backup came to, for the hooks and for the exit code. */
export interface HookedOutcome { readonly exitCode: ExitCode; readonly snapshotId: string }

/** pre, the work, post; `post` also when the work fails or is interrupted. `work` may tell when its point in time is taken. */
export async function withHooks(context: CommandContext, flags: HookFlags, source: string,
  work: (pointTaken: () => Promise<void>) => Promise<HookedOutcome>): Promise<ExitCode> {
  const hooks = openHooks(context, flags, source)
  if (hooks === undefined) return (await work(async () => undefined)).exitCode
  let result: BackupResult = 'failed'
  let snapshotId: string | undefined
  let exitCode: ExitCode = EXIT.failed
  try {
    await hooks.pre(context.signal)
    const outcome = await work(() => hooks.pointTaken(context.signal))
    ;({ exitCode, snapshotId } = outcome)
    result = exitCode === EXIT.doneWithProblems ? 'problems' : 'ok'
    await hooks.pointTaken(context.signal)
  } catch (error) {
    if (context.signal.aborted || isAbort(error)) result = 'interrupted'
    throw error
  } finally {
    await hooks.post(result, snapshotId)
  }
  return hooks.problems > 0 && exitCode === EXIT.done ? EXIT.doneWithProblems : exitCode
}

function openHooks(context: CommandContext, flags: HookFlags, source: string): BackupHooks | undefined {
  const directory = context.settings.value('hooks', flags.hooks)
  const { pre = [], post = [], postPoint = [] } = flags
  if (directory === undefined && pre.length + post.length + postPoint.length === 0) {
    if (flags.hookTimeout !== undefined) throw new UsageError('--hook-timeout belongs to --pre, --post-point, --post or --hooks.')
    return undefined
  }
  const { output } = context
  return new BackupHooks({
    pre, post, postPoint, timeoutMs: (flags.hookTimeout ?? TIMEOUT_SECONDS_DEFAULT) * 1000, source, environment: context.runtime.environment, clock: context.clock,
    ...(directory === undefined ? {} : { directory }),
  }, {
    ran: (kind, command, { failure, output: text, durationMs }) => {
      output.record({ type: 'hook', kind, command, result: failure === undefined ? 'ok' : 'failed', ...(failure === undefined ? {} : { failure }), durationMs,
        ...(failure === undefined && !output.verbose ? {} : { output: text }) })
      const lines = text.split('\n').filter((line) => line !== '')
      const shown = lines.slice(-SHOWN_LINES_MAX).map((line) => `  ${kind}: ${printable(line)}`)
      if (failure === undefined) for (const line of [`hook ${kind} done in ${formatDuration(durationMs)}: ${printable(command)}`, ...shown]) output.detail(line)
      else for (const line of [...shown, `hook ${kind}: ${failure}: ${printable(command)}`]) output.warn(line)
    },
  })
}
