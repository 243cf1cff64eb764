/** roost snapshots, snapshot show, delete, protect, unprotect, lock. */
import { choiceOption, dateOption, does, spanOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { formatBytes, formatCount, formatDays, formatDuration, formatTable, formatTime, printable } from '../format.js'
import { deleteSnapshots, findAll, findSnapshot, listSnapshots, shortId, type NamedSnapshot, type SnapshotFilter } from '../snapshot-lookup.js'

interface ListFlags extends SnapshotFilter { readonly host?: string; readonly mode?: string }
interface LockFlags { readonly for?: number; readonly until?: number }

export function registerSnapshots(registry: Registry): void {
  const { program } = registry

  does<ListFlags>(registry, withExamples(program.command('snapshots').description('list the snapshots, newest first')
    .option('--source <name>', 'only of this source').option('--tag <tag>', 'only with this tag').option('--host <name>', 'only from this host')
    .addOption(choiceOption('--mode <mode>', 'only of this kind', ['files', 'image', 'stdin'])),
  ['roost snapshots', 'roost snapshots --source web1:/srv --json']), async (context, flags) => {
    const { client } = context.repository()
    const filter = { ...(flags.source === undefined ? {} : { source: flags.source }), ...(flags.tag === undefined ? {} : { tag: flags.tag }) }
    const rows: string[][] = []
    for await (const snapshot of listSnapshots(context, client, filter)) {
      if (flags.host !== undefined && snapshot.record.host !== flags.host) continue
      if (flags.mode !== undefined && snapshot.record.mode !== flags.mode) continue
      recordSnapshot(context, snapshot)
      rows.push(snapshotRow(snapshot))
    }
    if (rows.length === 0) context.output.note('No snapshots.')
    else context.output.line(formatTable(['ID', 'TIME', 'KIND', 'SOURCE', 'SIZE', 'FILES', 'TAGS'], rows, [4, 5]))
  })

  const snapshot = program.command('snapshot').description('show, delete, protect or lock snapshots')
  does<SnapshotFilter>(registry, snapshot.command('show').argument('<id>', 'an id, the start of one (6 digits or more), or "latest"')
    .description('everything that a snapshot says of itself').option('--source <name>', 'with "latest": of this source'),
  async (context, flags, [id]) => {
    const found = await findSnapshot(context, context.repository().client, id!, flags.source === undefined ? {} : { source: flags.source })
    recordSnapshot(context, found)
    context.output.line(describeSnapshot(found))
  })
  does(registry, withExamples(snapshot.command('delete').argument('<id...>', 'ids, or starts of ids (6 digits or more)')
    .description('delete snapshots; what only they hold is freed by the server\'s garbage collection'),
  ['roost snapshot delete 3fa9c1d20b77']), async (context, _flags, ids) => {
    await deleteSnapshots(context, context.repository().client, ids)
  })
  does(registry, withExamples(snapshot.command('protect').argument('<id...>', 'ids, or starts of ids (6 digits or more)')
    .description('keep snapshots from every deletion until that is taken back'), ['roost snapshot protect 3fa9c1d20b77']), async (context, _flags, ids) => { await protect(context, ids, true) })
  does(registry, withExamples(snapshot.command('unprotect').argument('<id...>', 'ids, or starts of ids (6 digits or more)')
    .description('take a protection back (needs an administrator\'s token)'), ['roost snapshot unprotect 3fa9c1d20b77']), async (context, _flags, ids) => { await protect(context, ids, false) })
  does<LockFlags>(registry, withExamples(snapshot.command('lock').argument('<id>', 'an id, or the start of one (6 digits or more)')
    .description('keep a snapshot from every deletion for a time that nobody can shorten, administrators included')
    .option('--for <duration>', 'from now: 90d, 12h, 8w, 7y', spanOption).option('--until <date>', 'a date (UTC), or a time such as 2027-01-31T12:00Z', dateOption),
  ['roost snapshot lock 3fa9c1d20b77 --for 90d', 'roost snapshot lock 3fa9c1d20b77 --until 2030-01-01']), async (context, flags, [text]) => {
    if ((flags.for === undefined) === (flags.until === undefined)) throw new UsageError('Say how long: --for or --until.')
    const { client } = context.repository()
    const { id } = await findSnapshot(context, client, text!)
    await client.lockSnapshot(id, flags.for === undefined ? { untilMs: flags.until! } : { forMs: flags.for }, { signal: context.signal })
    context.output.record({ type: 'snapshot-locked', id })
    context.output.note(`Locked ${shortId(id)} ${flags.for === undefined ? `until ${formatTime(flags.until!)}` : `for ${formatDays(flags.for)}`}. Nobody can shorten that.`)
  })
}

async function protect(context: CommandContext, texts: readonly string[], isProtected: boolean): Promise<void> {
  const { client } = context.repository()
  for (const { id, record } of await findAll(context, client, texts)) {
    await client.protectSnapshot(id, isProtected, { signal: context.signal })
    context.output.record({ type: isProtected ? 'snapshot-protected' : 'snapshot-unprotected', id })
    context.output.note(`${isProtected ? 'Protected' : 'Unprotected'} ${shortId(id)} (${printable(record.source)}, ${formatTime(record.receivedAtMs)}).`)
  }
}
function recordSnapshot(context: CommandContext, { id, record, inSpool, isProtected, lockedUntilMs }: NamedSnapshot): void {
  context.output.record({ type: 'snapshot', id, ...record, inSpool, protected: isProtected, ...(lockedUntilMs !== undefined && { lockedUntilMs }) })
}
function snapshotRow({ id, record, inSpool, isProtected, lockedUntilMs }: NamedSnapshot): string[] {
  return [shortId(id), formatTime(record.receivedAtMs), record.mode, printable(record.source), formatBytes(record.statistics.sourceBytes),
    formatCount(record.statistics.files), [...(inSpool ? ['(in spool)'] : []), ...(isProtected ? ['(protected)'] : []),
      ...(lockedUntilMs === undefined ? [] : [`(locked until ${formatTime(lockedUntilMs)})`]), printable(record.tags.join(','))].join(' ')]
}
function describeSnapshot({ id, record, isProtected, lockedUntilMs }: NamedSnapshot): string {
  const { statistics: s } = record
  return [
    `id         ${id}`, `source     ${printable(record.source)} (${record.mode}) from ${printable(record.user)}@${printable(record.host)}`,
    `paths      ${record.paths.map(printable).join(', ')}`, `tags       ${record.tags.map(printable).join(', ') || '–'}`,
    `received   ${formatTime(record.receivedAtMs)} (began ${formatTime(record.startedAtMs)} by the client's clock, ` +
      `took ${formatDuration(s.durationMs)})`,
    `kept       ${[...(isProtected ? ['protected'] : []), ...(lockedUntilMs === undefined ? [] : [`locked until ${formatTime(lockedUntilMs)}`])].join(', ') || 'as policies say'}`,
    `parent     ${record.parent ?? '–'}`,
    `content    ${formatCount(s.files)} files, ${formatCount(s.directories)} directories, ` +
      `${formatCount(s.others)} others, ${formatBytes(s.sourceBytes)}`,
    `sent       ${formatCount(s.chunksSent)} of ${formatCount(s.chunksTotal)} chunks: ${formatBytes(s.bytesSent)}, ` +
      `${formatBytes(s.bytesOnWire)} on the wire`,
    `errors     ${formatCount(s.errors)}`, `root       ${record.root}`,
  ].join('\n')
}
