/** roost target …: where a repository's packs are, and how they get there. */
import type { TargetInfo, TargetsReply } from '../../core/messages.js'
import { does, sizeOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { formatBytes, formatCount, formatTable, formatTime, printable } from '../format.js'
import { followMaintenance } from '../maintenance-report.js'

interface AddFlags { readonly limitUpload?: number }
interface SetFlags extends AddFlags { readonly enable?: boolean; readonly disable?: boolean; readonly first?: boolean }

export function registerTarget(registry: Registry): void {
  const target = registry.program.command('target').description('the places that hold a repository: add, fill, drain, remove')

  does<AddFlags>(registry, withExamples(target.command('add').argument('<name>').argument('<url>', 'file:/path, swift:CONTAINER?cloud=NAME or s3:BUCKET')
    .description('add a place; everything there is gets copied to it in the background (needs a server administrator\'s token)')
    .option('--limit-upload <size>', 'at most so many bytes a second', sizeOption),
  ['roost target add swift swift:backups/main?cloud=mycloud', 'roost target add disk file:/mnt/second --limit-upload 50M']), async (context, flags, [name, url]) => {
    requireNoSecrets(url!)
    const added = await context.repository().client.addTarget({ name: name!, url: url!,
      ...(flags.limitUpload === undefined ? {} : { uploadBytesPerSecondMax: flags.limitUpload }) }, { signal: context.signal })
    context.output.record({ type: 'target', ...added })
    context.output.line(`${added.name} is a target now; ${formatCount(added.lagPacks)} packs (${formatBytes(added.lagBytes)}) are being copied to it.`)
    context.output.note('Watch it with `roost target status`, or wait for it with `roost target backfill ' + added.name + '`.')
  })

  does(registry, target.command('list').description('the targets in the order in which they are read'), async (context) => {
    const reply = await context.repository().client.listTargets({ signal: context.signal })
    recordTargets(context, reply)
    context.output.line(formatTable(['NAME', 'MODE', 'URL', 'UPLOAD LIMIT'], reply.targets.map((one) => [one.name, one.mode, printable(one.url),
      one.uploadBytesPerSecondMax === 0 ? 'none' : `${formatBytes(one.uploadBytesPerSecondMax)}/s`])))
  })

  does(registry, withExamples(target.command('status').description('health of each target, and how far it is behind'),
    ['roost target status', 'roost target status --json']), async (context) => {
    const reply = await context.repository().client.listTargets({ signal: context.signal })
    recordTargets(context, reply)
    context.output.line(formatTable(['NAME', 'MODE', 'HEALTH', 'PACKS', 'BYTES', 'BEHIND BY'], reply.targets.map((one) => [one.name, one.mode, one.health,
      formatCount(one.packs), formatBytes(one.storedBytes), describeLag(one)]), [3, 4]))
    for (const one of reply.targets) if (one.failure !== undefined)
      context.output.line(`${one.name} since ${formatTime(one.failingSinceMs ?? 0)}: ${printable(one.failure)}`)
    for (const one of reply.targets) if (one.remark !== undefined) context.output.line(`${one.name}: ${printable(one.remark)}`)
    context.output.line(`A pack counts as durable on ${reply.writePolicy === 'all' ? 'all active targets' : `${reply.writePolicy} of them`}; ` +
      (reply.durability === 'remote' ? 'commits wait for that.' : 'commits do not wait for that, only for the spool.'))
  })

  does(registry, withExamples(target.command('backfill').argument('<name>').description('copy to a target what it lacks, and wait for it'),
    ['roost target backfill swift']), async (context, _flags, [name]) =>
    await followMaintenance(context, context.repository().client.backfillTarget(name!, { signal: context.signal }), 'backfill'))

  does(registry, withExamples(target.command('drain').argument('<name>').description('stop writing to a target, and move to others what only it holds'),
    ['roost target drain old && roost target remove old']), async (context, _flags, [name]) =>
    await followMaintenance(context, context.repository().client.drainTarget(name!, { signal: context.signal }), 'drain'))

  does<SetFlags>(registry, withExamples(target.command('set').argument('<name>').description('change how a target is used')
    .option('--limit-upload <size>', 'at most so many bytes a second; 0 for no limit', sizeOption)
    .option('--enable', 'write to it and read from it').option('--disable', 'neither, until it is enabled').option('--first', 'read from it first'),
  ['roost target set swift --limit-upload 20M', 'roost target set disk --first', 'roost target set old --disable']), async (context, flags, [name]) => {
    if (flags.enable === true && flags.disable === true) throw new UsageError('--enable and --disable exclude each other.')
    const changed = await context.repository().client.changeTarget(name!, {
      ...(flags.limitUpload === undefined ? {} : { uploadBytesPerSecondMax: flags.limitUpload }),
      ...(flags.enable === true ? { mode: 'active' as const } : flags.disable === true ? { mode: 'disabled' as const } : {}),
      ...(flags.first === true ? { position: 0 } : {}) }, { signal: context.signal })
    context.output.record({ type: 'target', ...changed })
    context.output.line(`${changed.name}: ${changed.mode}`)
  })

  does(registry, withExamples(target.command('remove').argument('<name>')
    .description('forget a target that nothing depends on; what is stored there stays there'), ['roost target remove old']), async (context, _flags, [name]) => {
    await context.repository().client.removeTarget(name!, { signal: context.signal })
    context.output.record({ type: 'target-removed', name: name! })
    context.output.line(`${name!} is no target of this repository any more. What is stored there was not touched.`)
  })
}

function requireNoSecrets(url: string): void {
  if (/^[a-z0-9]+:(\/\/)?[^/?]*:[^/?]*@/i.test(url) || /[?&](password|secret|key|token)=/i.test(url))
    throw new UsageError('A target\'s URL holds no secrets: credentials come from clouds.yaml, OS_* or the AWS files of the server.')
}
function recordTargets(context: CommandContext, { targets, writePolicy, durability }: TargetsReply): void {
  for (const one of targets) context.output.record({ type: 'target', ...one, writePolicy, durability })
}
function describeLag({ lagPacks, lagBytes, damagedPacks }: TargetInfo): string {
  const lag = lagPacks === 0 ? '–' : `${formatCount(lagPacks)} packs, ${formatBytes(lagBytes)}`
  return damagedPacks === 0 ? lag : `${lag} (${formatCount(damagedPacks)} damaged)`
}
