/** roost ls, find, diff: what is in the snapshots, without restoring anything. */
import { diffSnapshots, type Change } from '../../../client/browse/diff.js'
import { findEntries } from '../../../client/browse/find.js'
import { formatMode, itemToJson, listPath, typeName } from '../../../client/browse/list.js'
import { pathToJson, renderBytes } from '../../../client/browse/render-path.js'
import type { TreeItem } from '../../../client/browse/walk-tree.js'
import { ENTRY_TYPES, type Entry } from '../../../client/tree/entry.js'
import { argumentBytes } from '../argument-bytes.js'
import { collect, does, sizeOption, withExamples, type Registry } from '../command.js'
import { EXIT, UsageError } from '../exit-codes.js'
import { formatTime } from '../format.js'
import { requireSnapshotName, shortId, splitSnapshotPath } from '../snapshot-lookup.js'
import { listInImage } from './image-files.js'
import { snapshotChoice } from './restore.js'

interface ListFlags { readonly recursive?: boolean; readonly long?: boolean; readonly disk?: string; readonly source?: string }
interface FindFlags {
  readonly snapshot?: string; readonly source?: string; readonly regex?: string; readonly type?: readonly string[]
  readonly larger?: number; readonly smaller?: number; readonly newer?: string; readonly older?: string
}
interface DiffFlags { readonly source?: string; readonly metadata?: boolean }

const TYPES: Readonly<Record<string, Entry['type']>> = {
  file: ENTRY_TYPES.file, directory: ENTRY_TYPES.directory, symlink: ENTRY_TYPES.symlink, fifo: ENTRY_TYPES.fifo, socket: ENTRY_TYPES.socket,
  image: ENTRY_TYPES.image, 'character-device': ENTRY_TYPES.characterDevice, 'block-device': ENTRY_TYPES.blockDevice,
}
const WHICH = 'an id, the start of one (6 digits or more), or "latest"'
const CHANGE_LETTERS = { added: '+', removed: '-', modified: 'M', metadata: 'm' } as const

export function registerBrowse(registry: Registry): void {
  registerList(registry)
  registerFind(registry)
  registerDiff(registry)
}

function registerList(registry: Registry): void {
  does<ListFlags>(registry, withExamples(registry.program.command('ls').argument('<snapshot[:path]>', `${WHICH}; after a colon, a path within it`)
    .description('list what a snapshot holds').option('-R, --recursive', 'with everything below')
    .option('-l, --long', 'with mode, owner, size and time')
    .option('--disk <disk>', 'inside this disk: its number, or its name; the path is then within it')
    .option('--source <name>', 'with "latest": of this source'),
  ['roost ls latest', 'roost ls -l latest:/etc', 'roost ls -R 3fa9c1d20b77:/home/ann --json', 'roost ls latest:disk.img//          (its partitions)',
    'roost ls -l latest:disk.img//p2/etc  (files of the second)']), async (context, flags, [which]) => {
    const { snapshot, path } = splitSnapshotPath(which!)
    const choice = snapshotChoice(context, snapshot, flags.source)
    const { client } = context.repository()
    const pointed = { choice, path: path === undefined ? undefined : argumentBytes(path), disk: flags.disk }
    const ended = await listInImage(context, client, pointed, flags.recursive === true, flags.long === true ? longLine : shownPath)
    if (ended !== undefined) return ended
    const options = { ...choice, isRecursive: flags.recursive === true, ...(path === undefined ? {} : { path: argumentBytes(path) }) }
    for await (const item of listPath(client, options, { signal: context.signal })) {
      context.output.record(itemToJson(item))
      context.output.line(flags.long === true ? longLine(item) : shownPath(item))
      if (path !== undefined && item.entry.type === ENTRY_TYPES.image) context.output.note(`It is a disk image: \`roost ls ${which!}//\` shows its partitions.`)
    }
    return EXIT.done
  })
}
function registerFind(registry: Registry): void {
  does<FindFlags>(registry, withExamples(registry.program.command('find').argument('[pattern]', 'a glob; with a "/" in it, of the whole path')
    .description('search one snapshot, or all of them')
    .option('--snapshot <id>', `only in this one: ${WHICH}`).option('--source <name>', 'only in snapshots of this source')
    .option('--regex <expression>', 'a regular expression on the whole path')
    .option('--type <type>', `only ${Object.keys(TYPES).join(', ')}; may be repeated`, collect)
    .option('--larger <size>', 'of at least this size', sizeOption).option('--smaller <size>', 'of at most this size', sizeOption)
    .option('--newer <time>', 'modified after, such as 2025-01-31 or 2025-01-31T08:00Z').option('--older <time>', 'modified before'),
  ["roost find '*.conf' --snapshot latest", "roost find '/home/**/id_*'", "roost find --larger 1G --newer 2025-01-01 --source web1:/"]),
  async (context, flags, [pattern]) => {
    if (flags.snapshot !== undefined) requireSnapshotName(flags.snapshot)
    const verifyKeys = context.settings.verifyKeys()
    const { client } = context.repository()
    const found = findEntries(client, {
      ...(flags.snapshot === undefined ? {} : { snapshot: flags.snapshot }),
      ...(flags.source === undefined ? {} : { source: flags.source }),
      ...(verifyKeys === undefined ? {} : { verifyKeys }), ...(pattern === undefined ? {} : { glob: argumentBytes(pattern) }),
      ...(flags.regex === undefined ? {} : { regex: regularExpression(flags.regex) }),
      ...(flags.type === undefined ? {} : { types: flags.type.map(typeOf) }),
      ...(flags.larger === undefined ? {} : { bytesMin: flags.larger }),
      ...(flags.smaller === undefined ? {} : { bytesMax: flags.smaller }),
      ...(flags.newer === undefined ? {} : { modifiedAfterNs: timeNs(flags.newer) }),
      ...(flags.older === undefined ? {} : { modifiedBeforeNs: timeNs(flags.older) }),
    }, { signal: context.signal })
    for await (const item of found) {
      context.output.record({ snapshot: item.snapshotId, ...itemToJson(item) })
      context.output.line(`${shortId(item.snapshotId)}  ${longLine(item)}`)
    }
  })
}
function registerDiff(registry: Registry): void {
  does<DiffFlags>(registry, withExamples(registry.program.command('diff').argument('<before>', WHICH).argument('<after>', WHICH)
    .description('what changed between two snapshots: + added, - removed, M content, m only metadata')
    .option('--no-metadata', 'leave out what changed in metadata only').option('--source <name>', 'with "latest": of this source'),
  ['roost diff 3fa9c1d20b77 latest']), async (context, flags, [before, after]) => {
    const choices = { before: snapshotChoice(context, before!, flags.source), after: snapshotChoice(context, after!, flags.source) }
    const { client } = context.repository()
    const counts: Record<Change['kind'], number> = { added: 0, removed: 0, modified: 0, metadata: 0 }
    for await (const change of diffSnapshots(client, choices, { signal: context.signal })) {
      if (change.kind === 'metadata' && flags.metadata === false) continue
      counts[change.kind]++
      const entry = (change.after ?? change.before)!
      context.output.record({ type: 'change', change: change.kind, ...pathToJson(change.path), entryType: typeName(entry.type) })
      context.output.line(`${CHANGE_LETTERS[change.kind]} ${shownPath({ path: change.path, entry })}`)
    }
    context.output.note(`${counts.added} added, ${counts.removed} removed, ${counts.modified} with other content, ` +
      `${counts.metadata} with other metadata only`)
  })
}

const shownPath = ({ path, entry }: TreeItem): string => `/${renderBytes(path)}${entry.type === ENTRY_TYPES.directory ? '/' : ''}`
function longLine(item: TreeItem): string {
  const { entry } = item
  const named = (name: string, number: number): string => name === '' ? String(number) : renderBytes(Buffer.from(name))
  const owner = `${named(entry.user, entry.uid)}:${named(entry.group, entry.gid)}`
  const amount = entry.content !== undefined ? String(entry.content.bytes)
    : entry.deviceMajor !== undefined ? `${entry.deviceMajor},${entry.deviceMinor ?? 0}` : '-'
  const target = entry.symlinkTarget === undefined ? '' : ` -> ${renderBytes(entry.symlinkTarget)}`
  const time = formatTime(Number(entry.mtimeNs / 1_000_000n))
  return `${formatMode(entry)} ${owner.padEnd(17)} ${amount.padStart(12)} ${time} ${shownPath(item)}${target}`
}
function typeOf(name: string): Entry['type'] {
  const type = TYPES[name]
  if (type === undefined) throw new UsageError(`"${name}" is not a type: ${Object.keys(TYPES).join(', ')}.`)
  return type
}
function regularExpression(text: string): RegExp {
  try {
    return new RegExp(text, 'u')
  } catch (error) {
    throw new UsageError(`"${text}" is not a regular expression.`, { cause: error })
  }
}
function timeNs(text: string): bigint {
  const ms = Date.parse(text)
  if (Number.isNaN(ms)) throw new UsageError(`"${text}" is not a time: write 2025-01-31 or 2025-01-31T08:00:00Z.`)
  return BigInt(ms) * 1_000_000n
}
