/** roost jobs …: maintenance that runs by itself or was asked for, how far it is, how it ended, and the way to start and end it. */
import type { JobInfo, JobKind, JobRunInfo } from '../../core/messages.js'
import { countOption, does, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { EXIT, type ExitCode } from '../exit-codes.js'
import { formatCount, formatDuration, formatTable, formatTime, printable } from '../format.js'
import { followMaintenance } from '../maintenance-report.js'
import { GcReport } from './gc.js'

const RUNS_SHOWN = 10

export function registerJobs(registry: Registry): void {
  const jobs = registry.program.command('jobs')
  does<{ readonly runs?: number }>(registry, withExamples(jobs.description('maintenance of the repository: what is configured, when it runs next, what runs and ran')
    .option('--runs <count>', `show so many runs (default ${RUNS_SHOWN})`, countOption),
  ['roost jobs', 'roost jobs --json', 'roost jobs run nightly-check --wait', 'roost jobs cancel 0f6a…']), async (context, { runs: shown = RUNS_SHOWN }) => {
    const { jobs: configured, runs } = await context.repository().client.listJobs({ signal: context.signal })
    for (const job of configured) context.output.record({ type: 'job', ...job })
    for (const run of runs.slice(0, shown)) context.output.record({ type: 'run', ...run })
    if (configured.length > 0) context.output.line(tableOfJobs(configured, context))
    else context.output.note('No jobs are configured: `roost server --jobs FILE` reads them; docs/operations.md says how they are written.')
    if (runs.length > 0) context.output.line(`${configured.length > 0 ? '\n' : ''}${tableOfRuns(runs.slice(0, shown), context)}`)
  })

  does<{ readonly wait?: boolean }>(registry, withExamples(jobs.command('run').argument('<name>', 'a configured job').description('run a job now; it goes on whoever watches')
    .option('--wait', 'follow it to its end; the exit code says how it ended'), ['roost jobs run nightly-check', 'roost jobs run nightly-check --wait']),
  async (context, { wait }, [name]) => {
    const { client } = context.repository()
    const run = await client.runJob(name!, { signal: context.signal })
    context.output.record({ type: 'run', ...run })
    context.output.line(`${printable(name!)} runs now, as ${run.id}.`)
    if (wait === true) return await follow(context, run.id, run.kind)
    context.output.note(`Follow it with \`roost jobs watch ${run.id}\`; end it with \`roost jobs cancel ${run.id}\`.`)
    return EXIT.done
  })

  does(registry, withExamples(jobs.command('watch').argument('<id>', 'a run, or a configured job for its latest').description('follow a run to its end; leaving does not end it'),
    ['roost jobs watch nightly-check']), async (context, _flags, [id]): Promise<ExitCode> => {
    const { client } = context.repository()
    const { kind } = await client.getJob(id!, { signal: context.signal })
    return await follow(context, id!, kind)
  })

  does(registry, withExamples(jobs.command('cancel').argument('<id>', 'a run, or a configured job that runs').description('end a run; what it did stays'),
    ['roost jobs cancel nightly-check']), async (context, _flags, [id]) => {
    const run = await context.repository().client.cancelJob(id!, { signal: context.signal })
    context.output.record({ type: 'run', ...run })
    context.output.line(run.state === 'cancelled' ? `The ${run.kind} ${run.id} is cancelled.` : `The ${run.kind} ${run.id} had ended: ${describeRun(run)}.`)
  })
}

function follow(context: CommandContext, id: string, kind: JobKind): Promise<ExitCode> {
  const events = context.repository().client.watchJob(id, { signal: context.signal })
  return followMaintenance(context, events, kind, kind === 'gc' ? new GcReport(context, false) : undefined)
}
function tableOfJobs(jobs: readonly JobInfo[], { clock }: CommandContext): string {
  return formatTable(['JOB', 'KIND', 'WHEN', 'NEXT RUN', 'LAST RUN', 'RESULT'], jobs.map((job) => [job.name, job.kind, `${job.cron} (${job.timeZone})`,
    job.waitingFor !== undefined ? `waits for ${job.waitingFor}` : job.nextRunAtMs === null ? '–' : job.nextRunAtMs <= clock.now() ? 'due' : formatTime(job.nextRunAtMs),
    job.lastRun === undefined ? 'never' : formatTime(job.lastRun.startedAtMs), job.lastRun === undefined ? '' : describeRun(job.lastRun)]))
}
function tableOfRuns(runs: readonly JobRunInfo[], { clock }: CommandContext): string {
  return formatTable(['RUN', 'KIND', 'JOB', 'STARTED', 'TOOK', 'RESULT'], runs.map((run) => [run.id, run.kind, run.job ?? (run.trigger === 'hand' ? '(by hand)' : ''),
    formatTime(run.startedAtMs), run.endedAtMs !== undefined ? formatDuration(run.endedAtMs - run.startedAtMs)
      : run.state === 'running' ? formatDuration(Math.max(0, clock.now() - run.startedAtMs)) : '–', describeRun(run)]), [4])
}
/** How a run stands, or how it ended. */
export function describeRun({ kind, state, progress, problems, healed, counts, error }: JobRunInfo): string {
  const found = `${problems === 0 ? 'no problems' : `${formatCount(problems)} problem${problems === 1 ? '' : 's'}`}${healed === 0 ? '' : `, ${formatCount(healed)} healed`}`
  switch (state) {
    case 'running': {
      const place = progress === undefined ? '' : `, ${printable(progress.phase)} ${formatCount(progress.done)}${progress.total > 0 ? ` of ${formatCount(progress.total)}` : ''}`
      return `running${place}${problems === 0 ? '' : `, ${found}`}`
    }
    case 'done': return found + (kind === 'gc' ? `, ${formatCount(counts['packsDropped'] ?? 0)} packs dropped, ${formatCount(counts['packsRepacked'] ?? 0)} repacked`
      : kind === 'forget' ? `, ${formatCount(counts['deleted'] ?? 0)} of ${formatCount(counts['snapshots'] ?? 0)} snapshots deleted` : '')
    case 'failed': return error === undefined ? 'failed' : `failed: ${error.code}: ${printable(error.message)}`
    case 'cancelled': return 'cancelled'
    case 'interrupted': return 'interrupted: the server ended'
  }
}
