/** roost gc: removes what nothing needs; --dry-run says what it would do, and why, for every pack. */
import { InvalidArgumentError } from 'commander'
import type { CollectOptions, JobRunInfo, MaintenanceEvent } from '../../core/messages.js'
import { does, sizeOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { formatBytes, formatCount } from '../format.js'
import { followMaintenance, type KindReport } from '../maintenance-report.js'
import { onRepository, type OfflineFlags } from './maintenance.js'

interface GcFlags extends OfflineFlags { readonly dryRun?: boolean; readonly repackBelow?: number; readonly limit?: number; readonly acceptDamage?: boolean }

export function registerGc(registry: Registry): void {
  does<GcFlags>(registry, withExamples(registry.program.command('gc').argument('[name]', 'with --data: the repository')
    .description('remove what no snapshot needs, while clients push and restore')
    .option('--dry-run', 'change nothing; say what would be done with each pack, and why (all of them with --verbose)')
    .option('--repack-below <percent>', 'write packs anew of which less than that is needed (default 75)', percentOption)
    .option('--limit <size>', 'copy at most so many bytes a second', sizeOption)
    .option('--accept-damage', 'collect although snapshots have damaged parts: what only those refer to may go')
    .option('--data <dir>', 'work on this data directory; its server must be stopped'),
  ['roost gc --dry-run', 'roost gc', 'roost gc --limit 50M', 'roost gc --data /srv/roost main']), async (context, flags, [name]) => {
    const dryRun = flags.dryRun === true
    const options: CollectOptions = {
      ...(dryRun ? { dryRun } : {}), ...(flags.repackBelow === undefined ? {} : { repackBelow: flags.repackBelow / 100 }),
      ...(flags.limit === undefined || flags.limit === 0 ? {} : { bytesPerSecondMax: flags.limit }), ...(flags.acceptDamage === true ? { acceptDamage: true } : {}) }
    const report = new GcReport(context, dryRun)
    return await onRepository(context, flags, name, {
      offline: (repository) => followMaintenance(context, repository.collect(options, context.signal), 'gc', report),
      online: (client) => {
        const tell = (): void => { context.output.note('The collection goes on without this command; `roost jobs` shows it, and `roost jobs cancel ID` ends it.') }
        if (!dryRun) context.signal.addEventListener('abort', tell, { once: true })
        return followMaintenance(context, client.collect(options, { signal: context.signal }), 'gc', report)
          .finally(() => { context.signal.removeEventListener('abort', tell) })
      },
    })
  })
}
function percentOption(text: string): number {
  const percent = Number(text)
  if (text.trim() === '' || !(percent >= 0 && percent <= 100)) throw new InvalidArgumentError('It must be a percentage from 0 to 100.')
  return percent
}

type Fate = Extract<MaintenanceEvent, { type: 'fate' }>
/** Lines of a plan that are printed without --verbose. */
const FATES_SHOWN_MAX = 40

export class GcReport implements KindReport {
  #hidden = 0
  #shown = 0
  constructor(readonly context: CommandContext, readonly dryRun: boolean) {}

  fate({ pack, kind, fate, reason, storedBytes }: Fate): void {
    const { output } = this.context
    const line = `${fate.padEnd(6)} ${pack}  ${kind.padEnd(4)}  ${formatBytes(storedBytes).padStart(8)}  ${reason}`
    if (!this.dryRun) output.detail(line)
    else if (output.verbose || (fate !== 'keep' && this.#shown < FATES_SHOWN_MAX)) { this.#shown++; output.line(line) }
    else if (fate !== 'keep') this.#hidden++
  }
  summary({ counts }: { readonly counts: JobRunInfo['counts'] }): string {
    if (this.#hidden > 0) this.context.output.line(`… and ${formatCount(this.#hidden)} more (--verbose shows all)`)
    return describeCollection(counts, this.dryRun)
  }
}

export function describeCollection(counts: JobRunInfo['counts'], dryRun: boolean): string {
  const of = (name: string): number => counts[name] ?? 0
  const packs = (name: string): string => `${formatCount(of(name))} pack${of(name) === 1 ? '' : 's'}`
  const parts = [
    `${dryRun ? 'would drop' : 'dropped'} ${packs('packsDropped')} (${formatBytes(of('droppedBytes'))})`,
    `${dryRun ? 'repack' : 'repacked'} ${packs('packsRepacked')} (${formatBytes(of('repackedBytes'))}${dryRun ? '' : `, ${formatBytes(of('copiedBytes'))} copied`})`,
    `${dryRun ? 'keep' : 'kept'} ${packs('packsKept')}`,
    ...(of('packsNeeded') === 0 ? [] : [`${packs('packsNeeded')} came to be needed meanwhile`]),
    ...(of('packsSkipped') === 0 ? [] : [`${packs('packsSkipped')} left for the next time`]),
    `${formatCount(of('chunksReached'))} of ${formatCount(of('chunks'))} chunks are needed`,
    ...(of('deletionsRefused') === 0 ? [] : [`${formatCount(of('deletionsRefused'))} deletions were refused by targets and are asked for again`]),
    ...(of('packsDoomed') === 0 ? [] : [`${packs('packsDoomed')} still to be deleted from targets`]),
  ]
  return parts.join(', ')
}
