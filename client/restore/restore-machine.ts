/** A whole machine into a directory: each disk of the snapshot as a qcow2 file, everything else (machine.json, firmware variables) as it is. */
import type { OpenSnapshot } from '../browse/open-snapshot.js'
import { readMachine, type SnapshotDisk } from '../machine/snapshot-disks.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { ChunkWindows } from './chunk-windows.js'
import type { RestoreCounters, RestoreEvents } from './restore-report.js'
import { restoreToQcow2, type Qcow2Options } from './restore-to-qcow2.js'

const SLASH = Buffer.from('/')

/** What the disk's file is called: `disk.img` and `disk.raw` become `disk.qcow2`, unless two would. */
export function qcow2Names(disks: readonly Pick<SnapshotDisk, 'name'>[]): string[] {
  const short = disks.map(({ name }) => `${name.replace(/\.(?:img|raw|qcow2|vmdk)$/i, '')}.qcow2`)
  return disks.map(({ name }, i) => short[i] !== '.qcow2' && short.filter((one) => one === short[i]).length === 1 ? short[i]! : `${name}.qcow2`)
}
/** Returns the names of what else there is at the top, for the caller to restore. `openWindows`: anew for each disk, since damage ends one.
 *  @throws {ClientError} MACHINE_MALFORMED when there is no disk */
export async function restoreDisks(open: OpenSnapshot, directory: Buffer, openWindows: () => ChunkWindows, counters: RestoreCounters,
  events: RestoreEvents, options: Qcow2Options): Promise<Buffer[]> {
  const { disks } = await readMachine(open, options.signal)
  if (disks.length === 0) throw new ClientError('MACHINE_MALFORMED', 'The snapshot holds no disk image at its top.')
  const names = qcow2Names(disks)
  for (const [i, { entry }] of disks.entries())
    await restoreToQcow2(Buffer.concat([directory, SLASH, Buffer.from(names[i]!)]), entry.content!, open.nodes, openWindows(), counters, events, options)
  const others: Buffer[] = []
  for await (const { name } of new DirectoryReader(open.nodes, open.root).entries()) if (!disks.some(({ entry }) => entry.name.equals(name))) others.push(name)
  return others
}
