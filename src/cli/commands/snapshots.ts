/** roost snapshots, snapshot show, snapshot delete. */
import { choiceOption, does, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { formatBytes, formatCount, formatDuration, formatTable, formatTime, printable } from '../format.js'
import { findSnapshot, listSnapshots, shortId, type NamedSnapshot, type SnapshotFilter } from '../snapshot-lookup.js'

interface ListFlags extends SnapshotFilter { readonly host?: string; readonly mode?: string }

export function registerSnapshots(registry: Registry): void {
  const { program } = registry

  does<ListFlags>(registry, withExamples(program.command('snapshots').description('list the snapshots, oldest first')
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

  const snapshot = program.command('snapshot').description('show or delete one snapshot')
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
    const { client } = context.repository()
    const found = []
    for (const id of ids) found.push(await findSnapshot(context, client, id)) // all are found before any is deleted
    for (const { id, record } of found) {
      await client.deleteSnapshot(id, { signal: context.signal })
      context.output.record({ type: 'snapshot-deleted', id })
      context.output.note(`Deleted ${shortId(id)} (${printable(record.source)}, ${formatTime(record.receivedAtMs)}).`)
    }
  })
}

function recordSnapshot(context: CommandContext, { id, record, inSpool }: NamedSnapshot): void {
  context.output.record({ type: 'snapshot', id, ...record, inSpool })
}
function snapshotRow({ id, record, inSpool }: NamedSnapshot): string[] {
  return [shortId(id), formatTime(record.receivedAtMs), record.mode, printable(record.source), formatBytes(record.statistics.sourceBytes),
    formatCount(record.statistics.files), [...(inSpool ? ['(in spool)'] : []), printable(record.tags.join(','))].join(' ')]
}
function describeSnapshot({ id, record }: NamedSnapshot): string {
  const { statistics: s } = record
  return [
    `id         ${id}`, `source     ${printable(record.source)} (${record.mode}) from ${printable(record.user)}@${printable(record.host)}`,
    `paths      ${record.paths.map(printable).join(', ')}`, `tags       ${record.tags.map(printable).join(', ') || '–'}`,
    `received   ${formatTime(record.receivedAtMs)} (began ${formatTime(record.startedAtMs)} by the client's clock, ` +
      `took ${formatDuration(s.durationMs)})`,
    `parent     ${record.parent ?? '–'}`,
    `content    ${formatCount(s.files)} files, ${formatCount(s.directories)} directories, ` +
      `${formatCount(s.others)} others, ${formatBytes(s.sourceBytes)}`,
    `sent       ${formatCount(s.chunksSent)} of ${formatCount(s.chunksTotal)} chunks: ${formatBytes(s.bytesSent)}, ` +
      `${formatBytes(s.bytesOnWire)} on the wire`,
    `errors     ${formatCount(s.errors)}`, `root       ${record.root}`,
  ].join('\n')
}
