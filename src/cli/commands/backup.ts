/** roost backup: a file tree, a disk image or standard input becomes a snapshot. */
import { readFileSync, statSync } from 'node:fs'
import { hostname, setPriority, userInfo } from 'node:os'
import { InvalidArgumentError } from 'commander'
import type { BackupEvents, BackupOptions, BackupProgress, BackupReport } from '../../../client/backup.js'
import { disksOf, type DiskReport } from '../../../client/image/disk-report.js'
import type { RepositoryClient } from '../../../client/repository-client.js'
import type { SourceConfig } from '../../../client/scan-source.js'
import { isAbort } from '../../core/errors.js'
import { digest } from '../../core/hash.js'
import type { SnapshotId } from '../../core/ids.js'
import { LIMITS } from '../../core/limits.js'
import { argumentBytes } from '../argument-bytes.js'
import { choiceOption, collect, does, sizeOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError, type ExitCode } from '../exit-codes.js'
import { formatBytes, formatCount, formatDuration, parseBytes, printable } from '../format.js'
import { addHookOptions, withHooks, type HookedOutcome, type HookFlags } from '../hook-flags.js'
import { findSnapshot, shortId } from '../snapshot-lookup.js'
import { absolutePath, addDiskOptions, diskTargets, requireDiskFlags, shownTarget, withDisks, type DiskFlags } from './backup-disks.js'
import { addNovaOptions, withMachineFile, withNova, type NovaFlags } from './backup-nova.js'
import { addVmOptions, backUpVm, machineFlags, machineSource, type VmFlags } from './backup-vm.js'

interface BackupFlags extends VmFlags, HookFlags, NovaFlags, DiskFlags {
  readonly stdin?: boolean; readonly stdinName?: string; readonly source?: string; readonly tag?: readonly string[]
  readonly exclude?: readonly string[]; readonly excludeFile?: readonly string[]; readonly excludeCaches?: boolean; readonly oneFileSystem?: boolean
  /** False: --no-parent. */
  readonly parent?: string | false
  readonly wire?: string; readonly limitUpload?: number; readonly limitRead?: number; readonly nice?: number; readonly chunkSize?: number
}

const WIRE_MODES = ['raw', 'zstd', 'auto'] as const
const REDRAW_MS = 200
const VERBS = {
  vanished: 'vanished', changed: 'changed while it was read', unreadable: 'could not be read', unsupported: 'cannot be saved',
  'map-wrong': 'changed unnoticed',
} as const

export function registerBackup(registry: Registry): void {
  does<BackupFlags>(registry, withExamples(addHookOptions(addNovaOptions(addVmOptions(addDiskOptions(registry.program.command('backup').argument('[paths...]', 'files and directories')
    .description('save files, a disk image, a running machine or standard input; sends only what the server lacks')
    .option('--stdin', 'standard input instead of files').option('--stdin-name <name>', 'what to call it')
    .option('--source <name>', 'the history that this snapshot continues (default HOST:PATH…; ROOST_SOURCE)')
    .option('--tag <tag>', 'mark the snapshot; may be repeated', collect)
    .option('--exclude <pattern>', 'leave out, gitignore-like: *.tmp, /var/cache, dir/, !keep; may be repeated', collect)
    .option('--exclude-file <file>', 'patterns from a file, one a line; may be repeated', collect)
    .option('--exclude-caches', 'of directories marked with a CACHEDIR.TAG, save only the mark')
    .option('-x, --one-file-system', 'do not enter other file systems')
    .option('--parent <snapshot>', 'compare with this snapshot instead of the newest of the source')
    .option('--no-parent', 'compare with none: read everything')
    .addOption(choiceOption('--wire <mode>', 'compression on the wire (ROOST_WIRE; default auto)', WIRE_MODES))
    .option('--limit-upload <rate>', 'bytes a second that are sent, such as 10M (ROOST_LIMIT_UPLOAD)', sizeOption)
    .option('--chunk-size <size>', 'of a new image source: a power of two, such as 64K', sizeOption)
    .option('--limit-read <rate>', 'bytes a second that are read of the source, such as 50M (ROOST_LIMIT_READ)', sizeOption)
    .option('--nice <number>', 'of the process: 1 to 19, the higher the more it stands back', niceOption))))),
  ["roost backup /etc /home --exclude-caches --exclude '*.tmp'", 'roost backup --image /dev/vg0/web1 --source web1:root',
    'roost backup --image boot=web1.qcow2 --image data=/srv/data.raw --source web1', 'roost backup --image nbd://storage1/web1',
    'roost backup --image /dev/vg0/web1 --lvm-snapshot --limit-read 50M --nice 10', 'roost backup --vm /run/web1.qmp', 'roost backup --vm instance-0000001f --nova-server 7f0c8a52-… --os-cloud prod',
    'pg_dump shop | roost backup --stdin --stdin-name shop.sql', 'roost backup / -x --limit-upload 20M --tag nightly',
    "roost backup /var/lib/shop --pre 'systemctl stop shop' --post 'systemctl start shop'"]),
  async (context, flags, paths) => {
    const host = hostname()
    requireOneKind(flags, paths)
    requireDiskFlags(flags, flags.parent)
    if (flags.nice !== undefined) setPriority(flags.nice)
    const config = flags.vm === undefined && flags.image === undefined ? sourceConfig(context, flags, paths) : undefined
    const machine = flags.vm === undefined ? undefined : machineFlags(flags)
    const given = context.settings.value('source', flags.source)
    const uploadBytesPerSecond = flags.limitUpload ?? rateSetting(context, 'limitUpload')
    const readBytesPerSecond = flags.limitRead ?? rateSetting(context, 'limitRead')
    const { client } = context.repository({ isLong: true, ...(uploadBytesPerSecond === undefined ? {} : { uploadBytesPerSecond }) })
    const verifyKeys = context.settings.verifyKeys()
    const options = {
      host, user: userName(), wire: wireMode(context, flags), paths: shownPaths(flags, paths), tags: flags.tag ?? [], clock: context.clock,
      ...(uploadBytesPerSecond === undefined ? {} : { limitBytesPerSecond: uploadBytesPerSecond }),
      ...(readBytesPerSecond === undefined ? {} : { limitReadBytesPerSecond: readBytesPerSecond }),
      ...(verifyKeys === undefined ? {} : { verifyKeys }),
    }
    const source = given ?? (flags.vm === undefined ? defaultSource(host, flags, paths) : `${host}:vm:${flags.vm}`)
    // Around the hooks: a backup that Nova refuses stops no database.
    return await withNova(context, flags, (nova) => withHooks(context, flags, source, async (pointTaken) => {
      const parent = await chooseParent(context, client, flags.parent)
      const chunkBytes = chunkSize(flags)
      if (machine !== undefined) {
        return outcomeOf(context, await withProgress(context, Promise.resolve(undefined), (events) => backUpVm(context, client, {
          ...machine, parent, backup: options, random: context.random, source: given === undefined ? machineSource(flags) : () => given,
          ...(chunkBytes === undefined ? {} : { chunkBytes }), ...(nova === undefined ? {} : { describe: () => Promise.resolve({ nova }) }),
        }, events, pointTaken)))
      }
      const { runBackup } = await import('../../../client/backup.js') // here, not above: no other command needs it
      const save = async (found: SourceConfig, since: SnapshotId | undefined, signal: AbortSignal): Promise<HookedOutcome> => {
        const whole: BackupOptions = { ...options, config: withMachineFile(found, nova, context.clock.now()), parent: since ?? parent, source }
        return outcomeOf(context, await withProgress(context, expectedBytes(context, client, whole), (events) => runBackup(client, whole, events, signal)))
      }
      if (config !== undefined) return await save(config, undefined, context.signal)
      return await withDisks(context, client, flags, chunkBytes, async (disks, since, signal) => {
        if (flags.lvmSnapshot === true) await pointTaken()
        return await save({ mode: 'image', ...disks }, since, signal)
      })
    }))
  })
}
function niceOption(text: string): number {
  const nice = Number(text)
  if (!/^\d{1,2}$/.test(text) || nice < 1 || nice > 19) throw new InvalidArgumentError('It is a whole number from 1 to 19.')
  return nice
}
const outcomeOf = (context: CommandContext, report: BackupReport): HookedOutcome => ({ exitCode: tellReport(context, report), snapshotId: report.snapshotId })

function requireOneKind(flags: BackupFlags, paths: readonly string[]): void {
  const kinds = [paths.length > 0, flags.image !== undefined, flags.stdin === true, flags.vm !== undefined].filter(Boolean).length
  if (kinds !== 1) throw new UsageError('Say what to save: PATHS, or --image PATH, or --vm MACHINE, or --stdin (one of them).')
}
function sourceConfig(context: CommandContext, flags: BackupFlags, paths: readonly string[]): SourceConfig {
  if (flags.stdin === true) {
    if (flags.stdinName === undefined) throw new UsageError('Standard input needs a name: --stdin-name NAME.')
    return { mode: 'stdin', name: flags.stdinName }
  }
  const setting = flags.excludeFile === undefined ? context.settings.value('excludeFile') : undefined
  const excludeFiles = (flags.excludeFile ?? (setting === undefined ? [] : [setting])).map((file) => readFileSync(argumentBytes(file)))
  return {
    mode: 'files', paths: paths.map(absolutePath), excludes: flags.exclude ?? [], excludeFiles,
    excludeCaches: flags.excludeCaches === true, oneFileSystem: flags.oneFileSystem === true,
  }
}
function chunkSize({ chunkSize: chunk }: BackupFlags): number | undefined {
  if (chunk !== undefined && (chunk < 4096 || chunk > LIMITS.chunkBytesMax || (chunk & (chunk - 1)) !== 0))
    throw new UsageError(`--chunk-size must be a power of two from 4K to ${formatBytes(LIMITS.chunkBytesMax)}.`)
  return chunk
}
/** `HOST:PATH,PATH` for files, `HOST:PATH` for an image, `HOST:NAME` for standard input: the same command continues the same history. */
export function defaultSource(host: string, flags: Pick<BackupFlags, 'image' | 'format' | 'stdinName'>, paths: readonly string[]): string {
  const shown = (path: string): string => printable(absolutePath(path).toString('utf8')).replace(/(.)\/+$/, '$1')
  const what = flags.stdinName ?? (flags.image === undefined ? paths.map(shown) : diskTargets(flags).map((disk) => printable(shownTarget(disk)))).join(',')
  const source = `${host}:${what}`
  if (Buffer.byteLength(source) <= LIMITS.nameBytesMax) return source
  // Too long to be a name: its beginning and a digest of the whole, so that it still is one name of one command.
  const beginning = Buffer.from(source).subarray(0, 200).toString('utf8').replace(/\ufffd+$/, '')
  return `${beginning}…${digest(Buffer.from(source)).toString('hex').slice(0, 16)}`
}
function shownPaths(flags: BackupFlags, paths: readonly string[]): string[] {
  if (flags.stdinName !== undefined) return [flags.stdinName]
  if (flags.vm !== undefined) return [printable(flags.vm)]
  return flags.image === undefined ? paths.map((path) => absolutePath(path).toString('utf8')) : diskTargets(flags).map(shownTarget)
}
function userName(): string {
  try {
    return userInfo().username
  } catch {
    return '' // a user id without an account: containers
  }
}
async function chooseParent(context: CommandContext, client: RepositoryClient,
  parent: string | false | undefined): Promise<SnapshotId | 'latest' | null> {
  if (parent === false) return null
  return parent === undefined || parent === 'latest' ? 'latest' : (await findSnapshot(context, client, parent)).id
}
function wireMode(context: CommandContext, flags: BackupFlags): BackupOptions['wire'] {
  const text = context.settings.value('wire', flags.wire) ?? 'auto'
  const mode = WIRE_MODES.find((known) => known === text)
  if (mode === undefined) throw new UsageError(`"${text}" is not a wire mode: ${WIRE_MODES.join(', ')}.`)
  return mode
}
function rateSetting(context: CommandContext, name: 'limitUpload' | 'limitRead'): number | undefined {
  const text = context.settings.value(name)
  return text === undefined ? undefined : parseBytes(text)
}

async function withProgress<Report extends BackupReport>(context: CommandContext, expected: Promise<number | undefined>, work: (events: BackupEvents) => Promise<Report>): Promise<Report> {
  const { output } = context
  const ended = new AbortController()
  let sample: (() => BackupProgress) | undefined
  const drawing = drawProgress(context, () => sample?.(), expected, ended.signal)
  try {
    return await work({
      onPass: (pass, take, because) => {
        sample = take
        if (pass > 1) output.note(`pass ${pass}: ${because?.message ?? 'the server asked for it'} What arrived is not sent again.`)
        output.endProgress()
      },
      onProblem: (problem) => {
        output.record({ type: 'problem', ...problem })
        output.warn(`${printable(problem.path)}: ${VERBS[problem.reason]}: ${printable(problem.message)}`)
      },
      onNotice: (text) => output.note(printable(text)),
    })
  } finally {
    ended.abort(new DOMException('drawn', 'AbortError'))
    await drawing
    output.endProgress()
  }
}
async function drawProgress(context: CommandContext, sample: () => BackupProgress | undefined, expected: Promise<number | undefined>,
  signal: AbortSignal): Promise<void> {
  if (context.runtime.stderr.isTTY !== true) return
  let total: number | undefined
  void expected.then((bytes) => { total = bytes })
  try {
    for (;;) {
      await context.clock.sleep(REDRAW_MS, signal)
      const state = sample()
      if (state === undefined) continue
      const { scan, upload } = state
      context.output.progress({
        done: scan.sourceBytes, total: total === undefined ? undefined : Math.max(total, scan.sourceBytes), unit: 'bytes',
        at: state.phase === 'committing' ? 'committing' : printable(state.at),
        extra: [`${formatCount(scan.files)} files`, `sent ${formatBytes(upload.bytesSent)}`,
          ...(scan.errors > 0 ? [`${scan.errors} problems`] : [])].join(', '),
      })
    }
  } catch (error) {
    if (!isAbort(error)) throw error
  }
}
/** How much there will be to see, for the time left: the image's size, or what the source had last time. Never fails. */
async function expectedBytes(context: CommandContext, client: RepositoryClient, options: BackupOptions): Promise<number | undefined> {
  if (context.runtime.stderr.isTTY !== true || options.config.mode === 'stdin') return undefined
  try {
    if (options.config.mode === 'image') {
      const sizes = options.config.disks.map(({ from }) => from.kind === 'file' ? statSync(Buffer.from(from.path)).size : 0)
      return sizes.every((size) => size > 0) ? sizes.reduce((sum, size) => sum + size) : undefined // a block device tells its size elsewhere
    }
    return (await findSnapshot(context, client, 'latest', { source: options.source })).record.statistics.sourceBytes
  } catch {
    return undefined // only an estimate: the backup itself says what is wrong
  }
}

function tellReport(context: CommandContext, report: BackupReport): ExitCode {
  const { statistics: s, snapshotId } = report
  const { disks } = report.record.description ?? {}
  context.output.record({ type: 'snapshot', id: snapshotId, source: report.record.source, parent: report.record.parent, passes: report.passes,
    problems: report.problems, durable: !report.inSpool, statistics: s,
    ...(disks === undefined ? {} : { disks }) })
  context.output.line(`snapshot ${shortId(snapshotId)} of ${printable(report.record.source)}`)
  context.output.note(`${formatCount(s.files)} files, ${formatCount(s.directories)} directories, ${formatBytes(s.sourceBytes)}: ` +
    `read ${formatBytes(s.bytesRead)}, ` +
    `new ${formatBytes(s.bytesSent)}, sent ${formatBytes(s.bytesOnWire)} in ${formatDuration(s.durationMs)}, ${formatDuration(s.cpuMs)} of processor time`)
  for (const disk of disksOf(report.record.description)) context.output.note(toldDisk(disk))
  if (report.inSpool) context.output.line('It is safe in the server\'s spool and goes to its targets from there; `roost snapshots` shows when it is.')
  if (report.problems > 0) context.output.warn(
    `${formatCount(report.problems)} problem${report.problems === 1 ? '' : 's'}; see above.`)
  return report.exitCode
}
function toldDisk(disk: DiskReport): string {
  const how = disk.read === 'full' ? 'read in full' : `${formatBytes(disk.dirtyBytes)} had been written to, ${formatBytes(disk.auditedBytes)} of the rest were compared`
  return `${printable(disk.name)}, ${formatBytes(disk.imageBytes)}: ${how}`
}
