/** The machine in a snapshot: its disks in their order, and what machine.json says of it.
 *
 *  The order is that of machine.json where there is one, then that of the tree: disk 1 is what the machine boots from in all that we write.
 */
import { RoostError } from '../../src/core/errors.js'
import type { OpenSnapshot } from '../browse/open-snapshot.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { ChunkCache } from '../nbd/chunk-cache.js'
import { openLayout } from '../nbd/image-layout.js'
import { ImageReader } from '../nbd/image-reader.js'
import { readRange } from '../nbd/read-range.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'
import { MACHINE_FILE, MACHINE_FILE_BYTES_MAX, type DiskDescription, type MachineDescription } from './machine-description.js'
import { parseMachineDescription } from './parse-description.js'

export interface SnapshotDisk { readonly name: string; readonly entry: Entry; readonly description?: DiskDescription }
export interface SnapshotMachine {
  readonly description: MachineDescription | undefined
  /** machine.json is there and cannot be understood: its disks can be had nevertheless. */
  readonly problem?: ClientError
  readonly disks: readonly SnapshotDisk[]
}

/** Disks of one machine are few; a folder of a thousand images is no machine. */
export const DISKS_MAX = 64
const CACHE_BYTES = 16 * 1024 * 1024

/** Images at the top of the snapshot, and files there that machine.json calls disks. @throws {RoostError} SNAPSHOT_UNKNOWN for more than
 *  DISKS_MAX */
export async function readMachine(open: OpenSnapshot, signal: AbortSignal): Promise<SnapshotMachine> {
  const { images, files, machineFile } = await topOf(open)
  let description: MachineDescription | undefined
  let problem: ClientError | undefined
  try {
    if (machineFile !== undefined) description = parseMachineDescription(await readSmallEntry(open, machineFile, MACHINE_FILE_BYTES_MAX, signal))
  } catch (error) {
    if (!(error instanceof ClientError)) throw error
    problem = error
  }
  const disks: SnapshotDisk[] = []
  for (const disk of description?.qemu?.disks ?? []) {
    const entry = images.get(disk.image) ?? files.get(disk.image)
    if (entry === undefined || disk.image === MACHINE_FILE) continue // left out of the backup
    images.delete(disk.image)
    files.delete(disk.image)
    disks.push({ name: disk.image, entry, description: disk })
  }
  for (const [name, entry] of images) disks.push({ name, entry })
  return { description, disks, ...(problem === undefined ? {} : { problem }) }
}
/** By number from 1, or by name. @throws {RoostError} SNAPSHOT_UNKNOWN naming what there is */
export function chooseDisk({ disks }: SnapshotMachine, which: string): SnapshotDisk {
  const found = disks.find(({ name }) => name === which) ?? (/^[1-9]\d{0,3}$/.test(which) ? disks[Number(which) - 1] : undefined)
  if (found !== undefined) return found
  throw new RoostError('SNAPSHOT_UNKNOWN', disks.length === 0 ? 'The snapshot holds no disks at its top.'
    : `The snapshot has no disk "${which}"; there are: ${disks.map(({ name }, i) => `${i + 1} (${name})`).join(', ')}.`)
}
/** A file that fits in memory, verified. @throws {ClientError} MACHINE_MALFORMED when it is longer than `bytesMax` */
export async function readSmallEntry(open: OpenSnapshot, entry: Entry, bytesMax: number, signal: AbortSignal): Promise<Buffer> {
  const { bytes } = entry.content!
  if (bytes > bytesMax) throw new ClientError('MACHINE_MALFORMED', `${entry.name.toString('utf8')} of the snapshot is longer than ${bytesMax} bytes.`)
  const image = new ImageReader(openLayout(open.nodes, entry.content!), new ChunkCache(open.session, CACHE_BYTES, { signal }))
  return await readRange(image, 0, bytes)
}

async function topOf(open: OpenSnapshot): Promise<{ images: Map<string, Entry>; files: Map<string, Entry>; machineFile: Entry | undefined }> {
  const images = new Map<string, Entry>()
  const files = new Map<string, Entry>()
  for await (const entry of new DirectoryReader(open.nodes, open.root).entries()) {
    const name = entry.name.toString('utf8')
    if (entry.type === ENTRY_TYPES.image) images.set(name, entry)
    else if (entry.type === ENTRY_TYPES.file && files.size < DISKS_MAX) files.set(name, entry)
    else if (name === MACHINE_FILE) files.set(name, entry)
    if (images.size > DISKS_MAX) throw new RoostError('SNAPSHOT_UNKNOWN', `The snapshot holds more than ${DISKS_MAX} images: name one with --path.`)
  }
  const machineFile = files.get(MACHINE_FILE)
  return { images, files, machineFile: machineFile?.type === ENTRY_TYPES.file ? machineFile : undefined }
}
