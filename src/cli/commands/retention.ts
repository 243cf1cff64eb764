/** roost forget, policy: which snapshots stay. The server judges and deletes; this asks and shows why. */
import { InvalidArgumentError, type Command } from 'commander'
import { RETENTION_COUNTS, RETENTION_WITHIN, type ForgetRequest, type MaintenanceEvent, type RetentionInfo, type RetentionPolicy } from '../../core/messages.js'
import { choiceOption, collect, does, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { formatDays, formatTable, formatTime, printable } from '../format.js'
import { followMaintenance } from '../maintenance-report.js'
import { deleteSnapshots, findAll, shortId } from '../snapshot-lookup.js'

type CountName = typeof RETENTION_COUNTS[number]
type WithinName = typeof RETENTION_WITHIN[number]
interface RuleFlags {
  readonly keepLast?: number; readonly keepHourly?: number; readonly keepDaily?: number; readonly keepWeekly?: number; readonly keepMonthly?: number; readonly keepYearly?: number
  readonly keepWithin?: string; readonly keepWithinHourly?: string; readonly keepWithinDaily?: string; readonly keepWithinWeekly?: string; readonly keepWithinMonthly?: string
  readonly keepWithinYearly?: string; readonly keepTag?: readonly string[]; readonly keepOldest?: boolean; readonly timeZone?: string
}
interface ForgetFlags extends RuleFlags { readonly source?: string; readonly tag?: string; readonly dryRun?: boolean; readonly keepNone?: boolean }
interface SourceFlags { readonly source?: string }

const ALL = -1
function ruleCount(text: string): number {
  if (text === 'all' || text === '-1') return ALL
  if (!/^\d{1,6}$/.test(text)) throw new InvalidArgumentError('It must be a whole number, or "all".')
  return Number(text)
}
function ruleDuration(text: string): string {
  if (!/^(?=\d)(\d{1,3}y)?(\d{1,4}m)?(\d{1,6}d)?(\d{1,7}h)?$/.test(text)) throw new InvalidArgumentError('Write years, months, days and hours in this order: 1y6m, 30d, 12h.')
  return text
}
const kebab = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)

function withRules(command: Command): Command {
  for (const name of RETENTION_COUNTS)
    command.option(`--keep-${name} <n>`, name === 'last' ? 'keep the newest n (or "all")' : `keep the newest of each of the last n ${PERIODS[name]} that have one`, ruleCount)
  for (const name of RETENTION_WITHIN)
    command.option(`--keep-${kebab(name)} <duration>`, name === 'within' ? 'keep all that are at most so much older than the newest, such as 1y6m7d12h'
      : `keep the newest of each ${kebab(name).slice('within-'.length).replace('daily', 'day').replace('ly', '')} within the duration`, ruleDuration)
  return command.option('--keep-tag <tags>', 'keep those with this tag, or with all of several: a,b; may be repeated', collect)
    .option('--no-keep-oldest', 'while a rule has count left, do not keep the oldest snapshot besides (as restic before 0.16)')
    .option('--time-zone <zone>', 'where hours, days and weeks begin, such as Europe/Berlin (default: UTC)')
}
const PERIODS: Readonly<Record<Exclude<CountName, 'last'>, string>> = { hourly: 'hours', daily: 'days', weekly: 'weeks', monthly: 'months', yearly: 'years' }

/** Undefined when no rule was stated. */
function policyOf(flags: RuleFlags): RetentionPolicy | undefined {
  const policy: Record<string, unknown> = {}
  for (const name of [...RETENTION_COUNTS, ...RETENTION_WITHIN]) {
    const value = flags[`keep${name[0]!.toUpperCase()}${name.slice(1)}` as keyof RuleFlags]
    if (value !== undefined) policy[name] = value
  }
  if (flags.keepTag !== undefined) policy['tags'] = flags.keepTag.map((list) => list.split(',').filter((tag) => tag !== ''))
  if ((policy['tags'] as string[][] | undefined)?.some((list) => list.length === 0) === true) throw new UsageError('--keep-tag needs a tag.')
  const hasRules = Object.keys(policy).length > 0
  if (flags.keepOldest === false) policy['keepOldest'] = false
  if (flags.timeZone !== undefined) policy['timeZone'] = flags.timeZone
  return hasRules ? policy as RetentionPolicy : undefined
}

export function registerRetention(registry: Registry): void {
  const { program } = registry

  does<ForgetFlags>(registry, withExamples(withRules(program.command('forget').argument('[id...]', 'snapshots to delete by name; no rules then'))
    .description('delete the snapshots that no rule keeps; without rules, the policies stored on the server decide')
    .option('--source <name>', 'only snapshots of this source').option('--tag <tag>', 'only snapshots with this tag')
    .addOption(choiceOption('--group-by <what>', 'rules count within each group', ['source'], 'source'))
    .option('--dry-run', 'delete nothing: show what would be kept and dropped, and why')
    .option('--keep-none', 'consent to a policy that keeps nothing (the newest snapshot of each source stays)'),
  ['roost forget --dry-run', 'roost forget --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --keep-yearly all --dry-run',
    'roost forget --source web1:/srv --keep-within 30d', 'roost forget 3fa9c1d20b77']), async (context, flags, ids) => {
    const policy = policyOf(flags)
    if (ids.length > 0) {
      if (policy !== undefined || flags.source !== undefined || flags.tag !== undefined || flags.keepNone === true) throw new UsageError('Name snapshots, or state rules: not both.')
      const { client } = context.repository()
      if (flags.dryRun !== true) { await deleteSnapshots(context, client, ids); return undefined }
      for (const { id, record } of await findAll(context, client, ids)) context.output.line(`Would delete ${shortId(id)} (${printable(record.source)}, ${formatTime(record.receivedAtMs)}).`)
      return undefined
    }
    if (policy === undefined && (flags.timeZone !== undefined || flags.keepOldest === false))
      throw new UsageError('--time-zone and --no-keep-oldest belong to rules given here; stored policies have their own.')
    const request: ForgetRequest = { ...(policy !== undefined ? { policy } : flags.keepNone === true ? { policy: {} } : {}),
      ...(flags.source !== undefined && { source: flags.source }), ...(flags.tag !== undefined && { tag: flags.tag }),
      ...(flags.dryRun === true && { dryRun: true }), ...(flags.keepNone === true && { keepNone: true }) }
    return await followMaintenance(context, showingVerdicts(context, context.repository().client.forget(request, { signal: context.signal }), flags.dryRun === true), 'forget')
  })

  const policies = program.command('policy').description('which snapshots `roost forget` and the schedule keep')
  does(registry, withExamples(policies.command('show').description('the stored policies, the lock, and what is protected'), ['roost policy show', 'roost policy show --json']),
    async (context) => { showRetention(context, await context.repository().client.retention({ signal: context.signal })) })
  does<RuleFlags & SourceFlags>(registry, withExamples(withRules(policies.command('set').description('store a policy, in place of the one that is there')
    .option('--source <name>', 'for this source (default: for all that have none of their own)')),
  ['roost policy set --keep-daily 7 --keep-weekly 5 --keep-monthly 12', 'roost policy set --source db1 --keep-within 90d --time-zone Europe/Berlin']), async (context, flags) => {
    const policy = policyOf(flags)
    if (policy === undefined) throw new UsageError('State at least one --keep rule; `roost policy remove` removes a policy.')
    showRetention(context, await context.repository().client.setPolicy({ policy, ...(flags.source !== undefined && { source: flags.source }) }, { signal: context.signal }))
  })
  does<SourceFlags>(registry, withExamples(policies.command('remove').description('remove a policy: what has none is kept for ever')
    .option('--source <name>', 'that of this source (default: that of the repository)'), ['roost policy remove --source db1']), async (context, flags) => {
    showRetention(context, await context.repository().client.setPolicy({ policy: null, ...(flags.source !== undefined && { source: flags.source }) }, { signal: context.signal }))
  })
}

type Verdict = Extract<MaintenanceEvent, { type: 'verdict' }>
/** Prints the verdicts as one table a source, and passes everything on. */
async function* showingVerdicts(context: CommandContext, events: AsyncIterable<MaintenanceEvent>, isDry: boolean): AsyncIterable<MaintenanceEvent> {
  let shown: Verdict[] = []
  const flush = (): void => {
    if (shown.length > 0) context.output.line(`${printable(shown[0]!.source)}\n${formatTable(['ID', 'RECEIVED', 'TAGS', '', 'WHY'], shown.map((one) => [shortId(one.snapshot),
      formatTime(one.receivedAtMs), printable(one.tags.join(',')), one.keep ? 'keep' : isDry ? 'would drop' : 'drop', printable(one.reasons.join('; '))]))}\n`)
    shown = []
  }
  for await (const event of events) {
    if (event.type !== 'verdict' || (shown.length > 0 && shown[0]!.source !== event.source)) flush()
    if (event.type === 'verdict') shown.push(event)
    yield event
  }
  flush()
}

function showRetention(context: CommandContext, info: RetentionInfo): void {
  context.output.record({ type: 'retention', ...info })
  const general = info.policy === null ? 'keeps everything' : describePolicy(info.policy)
  const rows = [['(all others)', general], ...info.sources.map(({ source, policy }) => [printable(source), describePolicy(policy)])]
  context.output.line(formatTable(['SOURCE', 'POLICY'], rows))
  if (info.lockMs > 0) context.output.line(`\nEvery snapshot is locked for ${formatDays(info.lockMs)} after it was received.`)
  for (const { snapshot, untilMs } of info.locks) context.output.line(`locked      ${shortId(snapshot)} until ${formatTime(untilMs)}`)
  for (const id of info.protected) context.output.line(`protected   ${shortId(id)}`)
}
function describePolicy(policy: RetentionPolicy): string {
  const rules = [...RETENTION_COUNTS, ...RETENTION_WITHIN].flatMap((name: CountName | WithinName) => policy[name] === undefined ? [] :
    [`${kebab(name)} ${policy[name] === ALL ? 'all' : policy[name]}`])
  return printable([...rules, ...(policy.tags ?? []).map((tags) => `tag ${tags.join('+')}`), ...(policy.keepOldest === false ? ['not the oldest besides'] : []),
    ...(policy.timeZone === undefined ? [] : [`in ${policy.timeZone}`])].join(', '))
}
