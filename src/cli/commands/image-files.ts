/** roost ls, restore and dump inside a disk image: its partitions, and the files of the file systems that are read (docs/files-from-images.md). */
import type { Writable } from 'node:stream'
import { itemToJson } from '../../../client/browse/list.js'
import { openSnapshot, type OpenSnapshot, type SnapshotChoice } from '../../../client/browse/open-snapshot.js'
import { pathToJson, renderBytes } from '../../../client/browse/render-path.js'
import type { TreeItem } from '../../../client/browse/walk-tree.js'
import type { Ext4Volume } from '../../../client/image-files/ext4/volume.js'
import { findImagePath, mayLeadIntoImage, type ImagePath } from '../../../client/image-files/image-path.js'
import type { ImagePart } from '../../../client/image-files/open-image.js'
import type { ReadingClient } from '../../../client/repository-client.js'
import type { RestoreEvents, RestoreReport } from '../../../client/restore/restore-report.js'
import { ENTRY_TYPES } from '../../../client/tree/entry.js'
import { describeCause, RoostError } from '../../core/errors.js'
import type { CommandContext } from '../context.js'
import { EXIT, UsageError, type ExitCode } from '../exit-codes.js'
import { formatBytes, formatTable, printable } from '../format.js'

/** Where the user points: a snapshot and a path that may lead into an image. */
export interface Pointed { readonly choice: SnapshotChoice; readonly path: Buffer | undefined; readonly disk: string | undefined }

/** Undefined: the path does not lead into an image, and nothing was done. */
async function insideImage<T>(context: CommandContext, client: ReadingClient, { choice, path, disk }: Pointed,
  work: (open: OpenSnapshot, place: ImagePath) => Promise<T>): Promise<T | undefined> {
  if (!mayLeadIntoImage(path, disk)) return undefined
  const open = await openSnapshot(client, choice, { signal: context.signal })
  try {
    const place = await findImagePath(open, path ?? Buffer.alloc(0), disk, context.signal)
    return place === undefined ? undefined : await work(open, place)
  } finally { await open.close() }
}
async function openVolumeAt(context: CommandContext, open: OpenSnapshot, place: ImagePath): Promise<Ext4Volume> {
  const { openImage, openVolume } = await import('../../../client/image-files/open-image.js') // here, not above: few commands need it
  if (place.partition === undefined) throw new UsageError('Name the partition too: DISK//p1/PATH. `roost ls SNAPSHOT:DISK//` shows which there are.')
  const volume = await openVolume(openImage(open, place.image, context.signal), place.partition)
  if (volume.superblock.needsRecovery) context.output.warn(
    'The file system was in use when it was saved, and its journal is not replayed here: the latest changes before that moment may be missing or half done.')
  return volume
}

/** Undefined: the path does not lead into an image. */
export async function listInImage(context: CommandContext, client: ReadingClient, pointed: Pointed, isRecursive: boolean,
  line: (item: TreeItem) => string): Promise<ExitCode | undefined> {
  return await insideImage(context, client, pointed, async (open, place) => {
    const { output, signal } = context
    if (place.partition === undefined) return await listPartitions(context, open, place)
    const { listVolume } = await import('../../../client/image-files/list-volume.js')
    let problems = 0
    for await (const item of listVolume(await openVolumeAt(context, open, place), place.names, isRecursive, ({ path, error }) => {
      if (!isTold(error)) throw error
      problems++
      output.record({ type: 'problem', ...pathToJson(path), message: describeCause(error) })
      output.warn(`/${renderBytes(path)}: ${printable(describeCause(error))}`)
    }, signal)) {
      output.record(itemToJson(item))
      output.line(line(item))
    }
    return problems > 0 ? EXIT.doneWithProblems : EXIT.done
  })
}
const isTold = (error: unknown): boolean => error instanceof Error && 'code' in error && typeof error.code === 'string'

async function listPartitions(context: CommandContext, open: OpenSnapshot, { image }: ImagePath): Promise<ExitCode> {
  const { CONTENT_WORDS, describeImage, openImage } = await import('../../../client/image-files/open-image.js')
  const { output } = context
  const { table, parts, warnings } = await describeImage(openImage(open, image, context.signal))
  for (const part of parts) output.record({ ...part, table, type: 'partition', partitionType: part.type })
  const shown = ({ name, bytes, type, label, content, volume, problem }: ImagePart): string[] => [name, formatBytes(bytes), printable(type),
    volume === undefined ? CONTENT_WORDS[content] : `${volume.kind}${volume.needsRecovery ? ', was in use' : ''}`,
    printable(volume?.label !== undefined && volume.label !== '' ? volume.label : label ?? ''),
    problem === undefined ? '' : printable(problem)]
  if (parts.length > 0) output.line(formatTable(['PART', 'SIZE', 'TYPE', 'CONTENT', 'LABEL', ''], parts.map(shown), [1]))
  for (const warning of warnings) { output.record({ type: 'problem', message: warning }); output.warn(warning) }
  if (parts.length === 0) output.note('The partition table is empty.')
  return warnings.length > 0 ? EXIT.doneWithProblems : EXIT.done
}

export interface ImageRestoreFlags {
  readonly destination: { readonly kind: string; readonly path: Buffer }
  readonly replaces: boolean; readonly stopsOnDamage: boolean; readonly setsOwners: boolean; readonly setsXattrs: boolean
  /** Options that mean nothing here, as the user wrote them. */
  readonly unfit: readonly string[]
}
/** Undefined: the path does not lead into an image. */
export async function restoreInImage(context: CommandContext, client: ReadingClient, pointed: Pointed, flags: ImageRestoreFlags,
  events: RestoreEvents): Promise<RestoreReport | undefined> {
  return await insideImage(context, client, pointed, async (open, place) => {
    if (flags.unfit.length > 0) throw new UsageError(`${flags.unfit.join(', ')} cannot be had inside an image.`)
    const { kind, path } = flags.destination
    if (kind !== 'directory' && kind !== 'file') throw new UsageError('Files from an image go to --target DIR or --to-file FILE.')
    const { restoreVolume } = await import('../../../client/image-files/restore-volume.js')
    const startedMs = context.clock.monotonicMs()
    events.started?.(open.record, open.snapshotId)
    const report = await restoreVolume(await openVolumeAt(context, open, place), {
      names: place.names, destination: { kind, path }, replaces: flags.replaces, stopsOnDamage: flags.stopsOnDamage,
      metadata: { owners: flags.setsOwners ? 'numeric' : 'none', xattrs: flags.setsXattrs }, runMark: context.random.bytes(4).toString('hex'),
    }, events, context.signal)
    return { ...report, snapshotId: open.snapshotId, durationMs: context.clock.monotonicMs() - startedMs }
  })
}
/** False: the path does not lead into an image. */
export async function dumpFromImage(context: CommandContext, client: ReadingClient, pointed: Pointed, output: Writable): Promise<boolean> {
  return await insideImage(context, client, pointed, async (open, place) => {
    const { requireItem } = await import('../../../client/image-files/list-volume.js')
    const { OrderedWriter } = await import('../../../client/restore/dump.js')
    const volume = await openVolumeAt(context, open, place)
    const { entry, inode } = await requireItem(volume, place.names)
    if (entry.type !== ENTRY_TYPES.file) throw new RoostError('SNAPSHOT_UNKNOWN', 'That path is no regular file.')
    const writer = new OrderedWriter(output, context.signal)
    for await (const piece of volume.pieces(inode)) {
      await writer.writeZeroes(piece.offset - writer.bytes)
      await writer.write(await piece.read())
    }
    await writer.writeZeroes(inode.bytes - writer.bytes)
    return true
  }) ?? false
}
