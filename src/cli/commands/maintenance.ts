/** roost stats, check, rebuild: the health of a repository, through its server or (server stopped) on its data directory. */
import type { RepositoryStats } from '../../core/messages.js'
import { does, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { EXIT, UsageError, type ExitCode } from '../exit-codes.js'
import { formatBytes, formatCount } from '../format.js'
import { followMaintenance } from '../maintenance-report.js'
import { withOfflineRepository } from '../offline-repository.js'

export interface OfflineFlags { readonly data?: string }
interface CheckFlags extends OfflineFlags { readonly readData?: string | true; readonly heal?: boolean }

const READ_DATA_ALL = 100

export function registerMaintenance(registry: Registry): void {
  does(registry, withExamples(registry.program.command('stats').description('counts and bytes of the repository'), ['roost stats', 'roost stats --json']), async (context) => {
    const stats = await context.repository().client.stats({ signal: context.signal })
    context.output.record({ type: 'stats', ...stats })
    context.output.line(describeStats(stats))
  })

  does<CheckFlags>(registry, withExamples(registry.program.command('check').argument('[name]', 'with --data: the repository')
    .description('verify the repository: snapshots, index and packs fit together; with --read-data, every byte too')
    .option('--read-data [percent]', 'read and verify that share of the packs (all when no number is given)')
    .option('--heal', 'write copies that are missing or damaged anew from other targets (reads all data, unless --read-data says less)')
    .option('--data <dir>', "work on this data directory; its server must be stopped"),
  ['roost check', 'roost check --read-data', 'roost check --read-data 10', 'roost check --heal', 'roost check --data /srv/roost main']),
  async (context, flags, [name]) => {
    const heal = flags.heal === true
    const readDataPercent = flags.readData === undefined ? (heal ? READ_DATA_ALL : 0) : flags.readData === true ? READ_DATA_ALL : Number(flags.readData)
    if (!(readDataPercent >= 0 && readDataPercent <= 100)) throw new UsageError('--read-data takes a percentage from 0 to 100.')
    return await onRepository(context, flags, name, {
      online: (client) => followMaintenance(context, client.check({ readDataPercent, ...(heal ? { heal } : {}) }, { signal: context.signal }), 'check'),
      offline: (repository) => followMaintenance(context, repository.check({ readDataPercent, heal }, context.signal), 'check'),
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
    `packs          ${formatCount(stats.packs)}`,
    `plain bytes    ${formatBytes(stats.rawBytes)} after deduplication`,
    `stored bytes   ${formatBytes(stats.storedBytes)} (compressed ${ratio} : 1)`,
    `in the spool   ${formatCount(stats.spoolPacks)} packs, ${formatBytes(stats.spoolBytes)}`,
    `sessions open  ${formatCount(stats.sessionsOpen)}`,
  ].join('\n')
}
