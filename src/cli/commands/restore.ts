/** roost restore, roost dump: what was saved comes back, verified chunk by chunk. */
import { findEntry, openSnapshot, type SnapshotChoice } from '../../../client/browse/open-snapshot.js'
import { parseNbdUri } from '../../../client/nbd/nbd-uri.js'
import { pathToJson, renderBytes } from '../../../client/browse/render-path.js'
import type { RepositoryClient } from '../../../client/repository-client.js'
import type { RestoreEvents, RestoreReport } from '../../../client/restore/restore-report.js'
import type { RestoreDestination, RestoreOptions } from '../../../client/restore/run-restore.js'
import { ENTRY_TYPES } from '../../../client/tree/entry.js'
import { argumentBytes } from '../argument-bytes.js'
import { choiceOption, collect, does, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { EXIT, UsageError, type ExitCode } from '../exit-codes.js'
import { formatBytes, formatCount, formatDuration, printable } from '../format.js'
import { dumpFromImage, restoreInImage } from './image-files.js'
import { requireSnapshotName, shortId, splitSnapshotPath } from '../snapshot-lookup.js'
import { addCloudOptions, isForCloud, restoreToCloud, type CloudFlags } from './restore-cloud.js'

interface RestoreFlags extends CloudFlags {
  readonly target?: string; readonly toFile?: string; readonly toDevice?: string; readonly toNbd?: string
  readonly format: string; readonly disk?: string; readonly include?: readonly string[]; readonly overwrite: string
  readonly continueOnDamage?: boolean; readonly stopOnDamage?: boolean
  /** False: --no-owner, --no-xattrs. */
  readonly owner: boolean; readonly xattrs: boolean
  readonly source?: string
}
const OVERWRITE = ['never', 'if-changed', 'always'] as const
const FORMATS = ['raw', 'qcow2'] as const
const WHICH = 'an id, the start of one (6 digits or more), or "latest"; after a colon, a path within it'

export function registerRestore(registry: Registry): void {
  does<RestoreFlags>(registry, withExamples(addCloudOptions(registry.program.command('restore').argument('<snapshot[:path]>', WHICH)
    .description('bring files, an image or a dump back; every chunk is verified')
    .option('--target <dir>', 'into this directory: the whole tree, or what is in PATH')
    .option('--to-file <file>', 'one file or image into this file').option('--to-device <device>', 'one image over this block device')
    .option('--to-nbd <uri>', 'one image over this NBD export, such as nbd://host/name or nbd+unix:///name?socket=PATH')
    .addOption(choiceOption('--format <format>', 'of images, with --to-file; with --target: of every disk of the machine', FORMATS, 'raw'))
    .option('--disk <disk>', 'this disk: its number from 1 in the order of the machine, or its name; a path is then within it')
    .option('--include <path>', 'only this path (with all below) or glob; may be repeated', collect)
    .addOption(choiceOption('--overwrite <when>', 'what to do with files that are there', OVERWRITE, 'never'))
    .option('--continue-on-damage', 'keep damaged files, with zeroes where data is lost (default: leave them out)')
    .option('--stop-on-damage', 'stop at the first damage')
    .option('--no-owner', 'do not set owner and group').option('--no-xattrs', 'do not set extended attributes and ACLs')
    .option('--source <name>', 'with "latest": of this source')),
  ['roost restore latest --target /tmp/back', 'roost restore latest:/home/ann --target /tmp/ann',
    "roost restore 3fa9c1d20b77 --target /tmp/back --include /etc/ssh --include '*.conf'",
    'roost restore latest --source web1:root --to-device /dev/vg0/web1',
    'roost restore latest --source web1 --disk 1 --to-file web1.qcow2 --format qcow2', 'roost restore latest --source web1 --target /srv/web1 --format qcow2',
    'roost restore latest --source web1 --to-glance web1-back', 'roost restore latest --source web1 --to-nova --map there.yaml --dry-run',
    'roost restore 3fa9c1d20b77:/var/lib/db.img --to-file db.img', 'roost restore latest:disk.img//p2/etc --target /tmp/etc  (out of the second partition)']), async (context, flags, [which]) => {
    const { snapshot, path } = splitSnapshotPath(which!)
    const choice = snapshotChoice(context, snapshot, flags.source)
    if (isForCloud(flags, path)) return await restoreToCloud(context, context.repository({ isLong: true }).client, choice, path, flags)
    const destination = destinationOf(flags)
    if (destination.kind === 'machine' && (path !== undefined || flags.disk !== undefined))
      throw new UsageError('--target with --format qcow2 restores whole machines: leave the path and --disk out, or use --to-file.')
    const { client } = context.repository({ isLong: true })
    const isWholeDisk = flags.disk !== undefined && path === undefined && destination.kind !== 'directory'
    const inside = isWholeDisk ? undefined : await restoreInImage(context, client, { choice, path: path === undefined ? undefined : argumentBytes(path), disk: flags.disk }, {
      destination, replaces: flags.overwrite !== 'never', stopsOnDamage: flags.stopOnDamage === true, setsOwners: flags.owner, setsXattrs: flags.xattrs,
      unfit: [...(flags.include === undefined ? [] : ['--include']), ...(flags.continueOnDamage === true ? ['--continue-on-damage'] : []),
        ...(flags.overwrite === 'if-changed' ? ['--overwrite if-changed'] : [])],
    }, restoreEvents(context))
    if (inside !== undefined) return tellReport(context, inside)
    const scope = destination.kind === 'directory' && path !== undefined ? await scopeOf(context, client, choice, argumentBytes(path))
      : { ...(path === undefined ? {} : { from: argumentBytes(path) }) }
    const include = [...(scope.include ?? []), ...(flags.include ?? []).map(argumentBytes)]
    const { runRestore } = await import('../../../client/restore/run-restore.js') // here, not above: no other command needs it
    const report = await runRestore(client, {
      ...choice, ...scope, ...(flags.disk === undefined ? {} : { disk: flags.disk }), destination, include, overwrite: OVERWRITE.find((when) => when === flags.overwrite)!,
      onDamage: flags.stopOnDamage === true ? 'stop' : flags.continueOnDamage === true ? 'keep' : 'skip',
      owners: flags.owner ? 'numeric' : 'none', xattrs: flags.xattrs,
    }, restoreEvents(context), context.signal, { clock: context.clock, random: context.random })
    return tellReport(context, report)
  })

  does<{ readonly source?: string }>(registry, withExamples(registry.program.command('dump').argument('<snapshot[:path]>', WHICH)
    .description('write one file or image to standard output').option('--source <name>', 'with "latest": of this source'),
  ['roost dump latest:/etc/fstab', 'roost dump latest --source db1:shop.sql | psql shop']), async (context, flags, [which]) => {
    const { snapshot, path } = splitSnapshotPath(which!)
    const { client } = context.repository({ isLong: true })
    const pointed = { choice: snapshotChoice(context, snapshot, flags.source), path: path === undefined ? undefined : argumentBytes(path), disk: undefined }
    if (await dumpFromImage(context, client, pointed, process.stdout)) return
    const { dumpFile } = await import('../../../client/restore/dump.js')
    await dumpFile(client, { ...pointed.choice, ...(path === undefined ? {} : { path: argumentBytes(path) }) },
      process.stdout, context.signal)
  })
}

export function snapshotChoice(context: CommandContext, snapshot: string, source: string | undefined): SnapshotChoice {
  requireSnapshotName(snapshot)
  const verifyKeys = context.settings.verifyKeys()
  return { snapshot, ...(source === undefined ? {} : { source }), ...(verifyKeys === undefined ? {} : { verifyKeys }) }
}
function destinationOf(flags: RestoreFlags): RestoreDestination {
  const given = [flags.target, flags.toFile, flags.toDevice, flags.toNbd].filter((path) => path !== undefined)
  if (given.length !== 1) throw new UsageError('Say where to: --target DIR, --to-file FILE, --to-device DEVICE, --to-glance NAME or --to-nova (one of them).')
  const path = argumentBytes(given[0]!)
  if (path.length === 0) throw new UsageError('The destination is empty.')
  if (flags.target === undefined && flags.include !== undefined) throw new UsageError('--include belongs to --target.')
  if (flags.format === 'qcow2') {
    if (flags.toDevice !== undefined || flags.toNbd !== undefined) throw new UsageError('--to-device and --to-nbd take the bytes of the disk: leave --format out.')
    if (flags.include !== undefined) throw new UsageError('--format qcow2 with --target restores whole machines: leave --include out.')
    return { kind: flags.target !== undefined ? 'machine' : 'qcow2', path }
  }
  if (flags.toNbd !== undefined) return { kind: 'nbd', target: parseNbdUri(flags.toNbd), path }
  return { kind: flags.target !== undefined ? 'directory' : flags.toFile !== undefined ? 'file' : 'device', path }
}
/** A directory's content goes into the target; anything else goes there under its own name. */
async function scopeOf(context: CommandContext, client: RepositoryClient, choice: SnapshotChoice,
  path: Buffer): Promise<Pick<RestoreOptions, 'from' | 'include'>> {
  const open = await openSnapshot(client, choice, { signal: context.signal })
  try {
    const entry = await findEntry(open, path)
    if (entry === undefined || entry === 'root' || entry.type === ENTRY_TYPES.directory) return { from: path }
    const end = path.lastIndexOf(0x2f)
    return { from: path.subarray(0, Math.max(0, end)), include: [path] }
  } finally {
    await open.close()
  }
}

function restoreEvents(context: CommandContext): RestoreEvents {
  const { output } = context
  let total: number | undefined
  return {
    started: (record, snapshotId) => {
      total = record.statistics.sourceBytes
      output.detail(`snapshot ${shortId(snapshotId)} of ${printable(record.source)}`)
    },
    problem: ({ path, reason, message }) => {
      output.record({ type: 'problem', ...pathToJson(path), reason, message })
      output.warn(`${renderBytes(path)}: ${reason}: ${printable(message)}`)
    },
    progress: (counters) => output.progress({
      done: counters.bytesDone, total: total === undefined ? undefined : Math.max(total, counters.bytesDone), unit: 'bytes', at: '',
      extra: `${formatCount(counters.files)} files${counters.problems > 0 ? `, ${counters.problems} problems` : ''}`,
    }),
  }
}
function tellReport(context: CommandContext, report: RestoreReport): ExitCode {
  const { output } = context
  output.endProgress()
  output.record({ type: 'restored', ...report })
  output.note(`restored ${formatCount(report.files)} files, ${formatCount(report.directories)} directories, ` +
    `${formatCount(report.others)} others: ` +
    `${formatBytes(report.bytesDone)} in ${formatDuration(report.durationMs)}`)
  if (report.skipped > 0) output.note(`${formatCount(report.skipped)} were there already and stayed as they were (--overwrite says otherwise).`)
  if (report.privilegesLacked) output.note('Not everything that belongs to root could be set: owners, devices or trusted attributes need root.')
  if (report.problems > 0) output.warn(`${formatCount(report.problems)} problem${report.problems === 1 ? '' : 's'}; see above.`)
  return report.problems > 0 ? EXIT.doneWithProblems : EXIT.done
}
