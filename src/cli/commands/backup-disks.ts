/** roost backup --image: which disks, from where, and what is prepared for reading them (docs/sources.md). */
import { readlinkSync } from 'node:fs'
import { hostname } from 'node:os'
import type { Command } from 'commander'
import type { ImageConfig } from '../../../client/image/scan-image.js'
import { formatNbdUri, isNbdUri, parseNbdUri } from '../../../client/nbd/nbd-uri.js'
import { formatOfName, IMAGE_FORMATS, type ImageFormat } from '../../../client/sources/image-format.js'
import type { RepositoryClient } from '../../../client/repository-client.js'
import type { SnapshotId } from '../../core/ids.js'
import { argumentBytes } from '../argument-bytes.js'
import { choiceOption, collect, sizeOption } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { printable } from '../format.js'
import { findSnapshot } from '../snapshot-lookup.js'

export interface DiskFlags {
  readonly image?: readonly string[]; readonly format?: ImageFormat; readonly lvmSnapshot?: boolean; readonly lvmSnapshotSize?: number
  readonly dirtyMap?: string; readonly dirtyMapSince?: string; readonly audit?: number
}
/** Of a dirty map, as of running machines. */
const AUDIT_SHARE_DEFAULT = 0.001

export function addDiskOptions(command: Command): Command {
  return command
    .option('--image <[name=]path>', 'a disk instead of files: an image file of any format, a block device, or an nbd://, nbds:// or nbd+unix:// address; may be repeated', collect)
    .addOption(choiceOption('--format <format>', 'of the image files (default: by their names, such as disk.qcow2; never by their content)', IMAGE_FORMATS))
    .option('--lvm-snapshot', 'the images are logical volumes: take snapshots of them, read those, and remove them')
    .option('--lvm-snapshot-size <size>', 'room for what is written meanwhile (default: a tenth of the volume; thin volumes need none)', sizeOption)
    .option('--dirty-map <context>', 'read only what this bitmap of the image or export calls written, such as qemu:dirty-bitmap:NAME; needs --dirty-map-since')
    .option('--dirty-map-since <snapshot>', 'the snapshot that was made when the bitmap was begun or cleared; it becomes the parent')
}

interface DiskTarget { readonly name: string; readonly target: Buffer }
export function diskTargets({ image = [], format }: Pick<DiskFlags, 'image' | 'format'>): DiskTarget[] {
  const targets = image.map((text) => targetOf(text, format))
  for (const [i, { name }] of targets.entries())
    if (targets.findIndex((other) => other.name === name) < i) throw new UsageError(`Two images would be called ${printable(name)}: name them, --image NAME=PATH.`)
  return targets
}
function targetOf(text: string, format: ImageFormat | undefined): DiskTarget {
  const [, said, rest = text] = /^([\p{L}\p{N}][\p{L}\p{N}._ -]{0,100})=(.+)$/u.exec(text) ?? []
  if (isNbdUri(rest)) return { name: said ?? nameOfExport(rest), target: Buffer.from(rest) }
  const target = absolutePath(rest)
  const last = target.subarray(target.lastIndexOf(0x2f) + 1)
  // What is in it is stored, not the file that it is in.
  const isRaw = (format ?? formatOfName(target) ?? 'raw') === 'raw'
  return { name: said ?? (isRaw ? last.toString('utf8') : last.toString('utf8').replace(/(.)\.[A-Za-z0-9]+$/, '$1')), target }
}
const nameOfExport = (uri: string): string => parseNbdUri(uri).exportName.replace(/\/+$/, '').replace(/^.*\//s, '') || 'disk'
/** For people and for the name of the source: without certificates. */
export const shownTarget = ({ target }: DiskTarget): string => isNbdUri(target.toString()) ? formatNbdUri(parseNbdUri(target.toString())) : target.toString('utf8')

/** The working directory is taken as bytes too: it may hold what is not UTF-8. */
export function absolutePath(path: string): Buffer {
  const bytes = argumentBytes(path)
  if (bytes.length === 0) throw new UsageError('A path is empty.')
  if (bytes[0] === 0x2f) return bytes
  return Buffer.concat([readlinkSync('/proc/self/cwd', 'buffer'), Buffer.from('/'), bytes])
}

/** @throws {UsageError} */
export function requireDiskFlags(flags: DiskFlags, parent: string | false | undefined): void {
  const isImage = flags.image !== undefined
  for (const [name, value] of [['--format', flags.format], ['--lvm-snapshot', flags.lvmSnapshot], ['--dirty-map', flags.dirtyMap]] as const)
    if (value !== undefined && !isImage) throw new UsageError(`${name} belongs to --image.`)
  if (flags.lvmSnapshotSize !== undefined && flags.lvmSnapshot !== true) throw new UsageError('--lvm-snapshot-size belongs to --lvm-snapshot.')
  if ((flags.dirtyMap === undefined) !== (flags.dirtyMapSince === undefined)) throw new UsageError('--dirty-map and --dirty-map-since belong together.')
  if (flags.dirtyMap !== undefined && parent !== undefined) throw new UsageError('With --dirty-map, the parent is the snapshot of --dirty-map-since.')
  if (flags.lvmSnapshot === true && flags.format !== undefined && flags.format !== 'raw') throw new UsageError('Logical volumes are raw.')
}

/** Prepares the disks, and ends what was prepared whatever becomes of the work. `parent`: of the dirty map, where there is one. */
export async function withDisks<T>(context: CommandContext, client: RepositoryClient, flags: DiskFlags, chunkBytes: number | undefined,
  work: (config: ImageConfig, parent: SnapshotId | undefined, signal: AbortSignal) => Promise<T>): Promise<T> {
  const { output, signal } = context
  const since = flags.dirtyMapSince === undefined ? undefined : await findSnapshot(context, client, flags.dirtyMapSince)
  const { prepareDisks } = await import('../../../client/sources/prepare-disks.js') // here, not above: no other command needs it
  const { close, disks, failed } = await prepareDisks(diskTargets(flags).map((disk) => ({
    ...disk, ...(flags.format === undefined ? {} : { format: flags.format }), ...(chunkBytes === undefined ? {} : { chunkBytes }),
    ...(flags.lvmSnapshot !== true ? {} : { lvmSnapshot: flags.lvmSnapshotSize === undefined ? {} : { bytes: flags.lvmSnapshotSize } }),
    ...(since === undefined ? {} : { dirtyMap: { context: flags.dirtyMap!, parentRoot: since.record.root } }),
  })), { host: hostname(), signal, note: (text) => output.note(printable(text)) })
  try {
    const audit = { share: flags.audit ?? AUDIT_SHARE_DEFAULT, seed: context.random.bytes(8).toString('hex') }
    return await work({ disks, ...(since === undefined ? {} : { audit }) }, since?.id, AbortSignal.any([signal, failed]))
  } finally {
    await close()
  }
}
