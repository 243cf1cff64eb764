/** roost stats, check, rebuild: the health of a repository, through its server or (server stopped) on its data directory. */
import { InvalidArgumentError } from 'commander'
import type { CheckOptions, RepositoryStats } from '../../core/messages.js'
import { does, sizeOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { EXIT, UsageError, type ExitCode } from '../exit-codes.js'
import { formatBytes, formatCount } from '../format.js'
import { followMaintenance } from '../maintenance-report.js'
import { DamageReport } from '../damage-report.js'
import { offlineClient } from '../offline-client.js'
import { withOfflineRepository } from '../offline-repository.js'

export interface OfflineFlags { readonly data?: string }
interface CheckFlags extends OfflineFlags {
  readonly readData?: string | true; readonly heal?: boolean; readonly limit?: number; readonly maxDuration?: number
  /** False: --no-mark. */
  readonly mark: boolean
}

const READ_DATA_ALL = 100

export function registerMaintenance(registry: Registry): void {
  does(registry, withExamples(registry.program.command('stats').description('counts and bytes of the repository'), ['roost stats', 'roost stats --json']), async (context) => {
    const stats = await context.repository().client.stats({ signal: context.signal })
    context.output.record({ type: 'stats', ...stats })
    context.output.line(describeStats(stats))
  })

  does<CheckFlags>(registry, withExamples(registry.program.command('check').argument('[name]', 'with --data: the repository')
    .description('verify the repository: snapshots, index and packs fit together; with --read-data, every byte too')
    .option('--read-data [percent]', 'read and verify that share of the stored bytes, least recently verified first (all when no number is given)')
    .option('--limit <size>', 'read at most so many bytes a second', sizeOption)
    .option('--max-duration <minutes>', 'begin no further pack after so long; the next check goes on there', minutesOption)
    .option('--heal', 'write copies that are missing or damaged anew from other targets (reads all data, unless --read-data says less)')
    .option('--no-mark', 'only look: do not mark what is damaged everywhere, and move nothing')
    .option('--data <dir>', "work on this data directory; its server must be stopped"),
  ['roost check', 'roost check --read-data', 'roost check --read-data 10 --limit 50M', 'roost check --heal', 'roost check --data /srv/roost main']),
  async (context, flags, [name]) => {
    const heal = flags.heal === true
    const readDataPercent = flags.readData === undefined ? (heal ? READ_DATA_ALL : 0) : flags.readData === true ? READ_DATA_ALL : Number(flags.readData)
    if (!(readDataPercent >= 0 && readDataPercent <= 100)) throw new UsageError('--read-data takes a percentage from 0 to 100.')
    const options: CheckOptions = { readDataPercent, ...(heal ? { heal } : {}), ...(flags.mark ? {} : { mark: false }),
      ...(flags.limit === undefined || flags.limit === 0 ? {} : { bytesPerSecondMax: flags.limit }),
      ...(flags.maxDuration === undefined ? {} : { maxDurationMs: flags.maxDuration * 60_000 }) }
    const report = new DamageReport()
    return await onRepository(context, flags, name, {
      online: async (client) => {
        const code = await followMaintenance(context, client.check(options, { signal: context.signal }), 'check', report)
        await report.tell(context, client)
        return code
      },
      offline: async (repository) => {
        const code = await followMaintenance(context, repository.check(options, context.signal), 'check', report)
        await report.tell(context, offlineClient(repository, context.signal))
        return code
      },
    })
  })

  does<OfflineFlags>(registry, withExamples(registry.program.command('rebuild').argument('[name]', 'with --data: the repository')
    .description('make the index anew from the packs on the target; no snapshot and no data is changed')
    .option('--data <dir>', "work on this data directory; its server must be stopped"),
  ['roost rebuild', 'roost rebuild --data /srv/roost main']), async (context, flags, [name]) =>
    await onRepository(context, flags, name, {
      online: (client) => followMaintenance(context, client.rebuild({ signal: context.signal }), 'rebuild'),
      offline: (repository) => followMaintenance(context, repository.rebuild(context.signal), 'rebuild'),
    }))
}

function minutesOption(text: string): number {
  const minutes = Number(text)
  if (text.trim() === '' || !Number.isSafeInteger(minutes) || minutes <= 0) throw new InvalidArgumentError('It must be a whole number of minutes.')
  return minutes
}

type OnlineRepository = ReturnType<CommandContext['repository']>['client']
type OfflineRepository = Parameters<Parameters<typeof withOfflineRepository>[2]>[0]

/** Through the server, or with --data on a directory whose server is stopped. */
export async function onRepository(context: CommandContext, flags: OfflineFlags, name: string | undefined, work: {
  online(client: OnlineRepository): Promise<ExitCode>
  offline(repository: OfflineRepository): Promise<ExitCode>
}): Promise<ExitCode> {
  if (flags.data === undefined) {
    if (name !== undefined) throw new UsageError('The repository is named by -r or ROOST_REPOSITORY; a name alone belongs to --data DIR.')
    return await work.online(context.repository().client)
  }
  if (name === undefined) throw new UsageError('With --data, name the repository: --data DIR NAME.')
  let code: ExitCode = EXIT.failed
  await withOfflineRepository(context, { dataDirectory: flags.data, name }, async (repository) => { code = await work.offline(repository) })
  return code
}

function describeStats(stats: RepositoryStats): string {
  const ratio = stats.storedBytes > 0 ? (stats.rawBytes / stats.storedBytes).toFixed(2) : '–'
  return [
    `snapshots      ${formatCount(stats.snapshots)}`,
    `chunks         ${formatCount(stats.chunks)} (${formatCount(stats.dataChunks)} of data, ${formatCount(stats.nodeChunks)} of structure)`,
    ...(stats.damagedChunks > 0 ? [`damaged chunks ${formatCount(stats.damagedChunks)} (\`roost check\` says which snapshots need them)`] : []),
    `packs          ${formatCount(stats.packs)}`,
    `plain bytes    ${formatBytes(stats.rawBytes)} after deduplication`,
    `stored bytes   ${formatBytes(stats.storedBytes)} (compressed ${ratio} : 1)`,
    `in the spool   ${formatCount(stats.spoolPacks)} packs, ${formatBytes(stats.spoolBytes)}`,
    `sessions open  ${formatCount(stats.sessionsOpen)}`,
  ].join('\n')
}
