/** The images of one snapshot, opened for reading at random: what `roost nbd` serves. They share one cache. */
import { RoostError } from '../../src/core/errors.js'
import { findEntry, openSnapshot, splitPath, type OpenSnapshot, type SnapshotChoice } from '../browse/open-snapshot.js'
import { chooseDisk, readMachine } from '../machine/snapshot-disks.js'
import type { ReadingClient } from '../repository-client.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import type { Entry } from '../tree/entry.js'
import { ChunkCache } from './chunk-cache.js'
import { openLayout } from './image-layout.js'
import { ImageReader } from './image-reader.js'
import type { ServedExport } from './negotiation.js'

export interface ExportChoice extends SnapshotChoice {
  /** An image or file; left out: all images at the top, or the one entry that there is. */
  readonly path?: Buffer
  /** One of the disks: its number from 1, or its name. */
  readonly disk?: string
  readonly cacheBytes: number
}
export interface OpenExports { readonly snapshotId: string; readonly exports: readonly ServedExport[]; close(): Promise<void> }

/** @throws {RoostError} SNAPSHOT_UNKNOWN when nothing there can be served; and what openSnapshot throws */
export async function openExports(client: ReadingClient, choice: ExportChoice, signal: AbortSignal): Promise<OpenExports> {
  const open = await openSnapshot(client, choice, { signal })
  try {
    const entries = choice.path === undefined ? await imagesOf(open, choice.disk, signal) : [await entryAt(open, choice.path)]
    const cache = new ChunkCache(open.session, choice.cacheBytes, { signal })
    const exports = entries.map((entry) => ({
      name: nameOf(entry), description: `${open.record.source}, snapshot ${open.snapshotId.slice(0, 12)}`,
      image: new ImageReader(openLayout(open.nodes, entry.content!), cache),
    }))
    return { snapshotId: open.snapshotId, exports, close: () => open.close() }
  } catch (error) {
    await open.close()
    throw error
  }
}
async function entryAt(open: OpenSnapshot, path: Buffer): Promise<Entry> {
  const entry = await findEntry(open, path)
  if (entry === undefined || entry === 'root') throw new RoostError('SNAPSHOT_UNKNOWN', 'The snapshot has no such file. `roost ls` shows what it holds.')
  if (entry.content === undefined) throw new RoostError('SNAPSHOT_UNKNOWN', 'That path of the snapshot is neither an image nor a file.')
  return { ...entry, name: splitPath(path).at(-1)! }
}
async function imagesOf(open: OpenSnapshot, which: string | undefined, signal: AbortSignal): Promise<Entry[]> {
  const machine = await readMachine(open, signal)
  if (which !== undefined) return [chooseDisk(machine, which).entry]
  if (machine.disks.length > 0) return machine.disks.map(({ entry }) => entry)
  let others = 0, other: Entry | undefined
  for await (const entry of new DirectoryReader(open.nodes, open.root).entries()) {
    other = entry
    if (++others > 1) break
  }
  if (others === 1 && other!.content !== undefined) return [other!]
  throw new RoostError('SNAPSHOT_UNKNOWN', 'The snapshot holds no disk image at its top. Name an image or file in it with --path; `roost ls -R` shows what it holds.')
}
/** Names are any bytes; those of NBD are UTF-8. */
const nameOf = (entry: Entry): string => entry.name.toString('utf8')
