/** Restores from a snapshot: a tree or parts of it into a directory, or one file or image into a file or onto a device.
 *
 *  Nothing is written outside the destination (target-directory.ts), nothing is written that was not proved by its id
 *  (read-chunks.ts) below a root that the snapshot's signature covers (open-snapshot.ts).
 */
import { constants, mkdirSync, opendirSync, openSync } from 'node:fs'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { RoostError } from '../../src/core/errors.js'
import { systemRandom, type Random } from '../../src/core/random.js'
import { findEntry, openSnapshot, splitPath, type OpenSnapshot, type SnapshotChoice } from '../browse/open-snapshot.js'
import type { NbdOrigin } from '../image/open-source.js'
import { chooseDisk, readMachine } from '../machine/snapshot-disks.js'
import type { RepositoryClient } from '../repository-client.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'
import { ChunkWindows, WINDOWS_DEFAULT, type WindowOptions } from './chunk-windows.js'
import type { MetadataOptions } from './metadata.js'
import { emptyCounters, type RestoreEvents, type RestoreReport } from './restore-report.js'
import { restoreDisks } from './restore-machine.js'
import { restoreToDevice } from './restore-to-device.js'
import { restoreToNbd } from './restore-to-nbd.js'
import { restoreToQcow2 } from './restore-to-qcow2.js'
import { Selection } from './selection.js'
import { joinNames, TreeRestorer, type OnDamage, type Overwrite } from './tree-restorer.js'

/** Paths are bytes as the user gave them. `device`: an existing block device or file, overwritten in place. */
export type RestoreDestination =
  | { readonly kind: 'directory'; readonly path: Buffer }
  | { readonly kind: 'file'; readonly path: Buffer }
  | { readonly kind: 'device'; readonly path: Buffer }
  /** One image or file becomes a qcow2 file. */
  | { readonly kind: 'qcow2'; readonly path: Buffer }
  /** One image or file over an NBD export. */
  | { readonly kind: 'nbd'; readonly target: NbdOrigin; readonly path: Buffer }
  /** Every disk of the snapshot becomes a qcow2 file in this directory; what else is at its top comes along as it is. */
  | { readonly kind: 'machine'; readonly path: Buffer }

export interface RestoreOptions extends SnapshotChoice {
  readonly destination: RestoreDestination
  /** Directory of the snapshot whose content goes into the destination; the whole snapshot by default. For `file` and
   *  `device`: the file or image; may be left out when the snapshot holds one entry only. */
  readonly from?: Buffer
  /** For one image or file, instead of `from`: the disk's number from 1, or its name. */
  readonly disk?: string
  /** Exact paths (with all below) or globs, within the snapshot; none: everything. */
  readonly include?: readonly Buffer[]
  readonly overwrite?: Overwrite
  readonly onDamage?: OnDamage
  readonly owners?: MetadataOptions['owners']
  readonly xattrs?: boolean
  readonly windows?: Partial<WindowOptions>
}
export interface RestoreDeps { readonly clock?: Clock; readonly random?: Random }

/** Problems with single paths are told by `events` and counted in the report (the exit code's 3); what stops the restore is thrown.
 *  @throws {RoostError} SNAPSHOT_UNKNOWN, SNAPSHOT_CORRUPT, SESSION_LOST; errno exceptions of the destination */
export async function runRestore(client: RepositoryClient, options: RestoreOptions, events: RestoreEvents, signal: AbortSignal,
  deps: RestoreDeps = {}): Promise<RestoreReport> {
  const clock = deps.clock ?? systemClock
  const startedMs = clock.monotonicMs()
  const open = await openSnapshot(client, options, { signal })
  try {
    events.started?.(open.record, open.snapshotId)
    const counters = emptyCounters()
    const openWindows = (): ChunkWindows => new ChunkWindows(open.session, signal, { ...WINDOWS_DEFAULT, ...options.windows })
    const windows = openWindows()
    const selection = new Selection(options.include ?? [])
    const overwrite = options.overwrite ?? 'if-changed', onDamage = options.onDamage ?? 'skip'
    const runMark = (deps.random ?? systemRandom).bytes(4).toString('hex')
    const openRestorer = (wanted: Selection): TreeRestorer => new TreeRestorer(open.nodes, openWindows(), {
      overwrite, onDamage, selection: wanted, metadata: { owners: options.owners ?? 'numeric', xattrs: options.xattrs ?? true }, runMark,
    }, counters, events, signal)
    const restorer = openRestorer(selection)
    const qcow2 = { replaces: overwrite !== 'never', onDamage, runMark, signal }
    const { destination } = options
    switch (destination.kind) {
      case 'directory':
        await restoreDirectory(open, restorer, options.from ?? Buffer.alloc(0), destination.path)
        break
      case 'file': {
        const entry = await wantedEntry(open, options, signal)
        await restorer.restoreOne({ ...entry, type: ENTRY_TYPES.file, name: lastName(destination.path) }, openParent(destination.path))
        break
      }
      case 'device': {
        const { content } = await wantedEntry(open, options, signal)
        await restoreToDevice(destination.path, content!, open.nodes, windows, counters, events,
          { stopsOnDamage: options.onDamage === 'stop', signal })
        break
      }
      case 'qcow2': {
        const { content } = await wantedEntry(open, options, signal)
        await restoreToQcow2(destination.path, content!, open.nodes, windows, counters, events, qcow2)
        break
      }
      case 'nbd': {
        const { content } = await wantedEntry(open, options, signal)
        await restoreToNbd(destination.target, content!, open, counters, events, clock, signal)
        break
      }
      case 'machine': {
        const others = await restoreDisks(open, destination.path, openWindows, counters, events, qcow2)
        if (others.length > 0) await restoreDirectory(open, openRestorer(new Selection(others)), Buffer.alloc(0), destination.path)
      }
    }
    for (const path of selection.unmatched()) {
      counters.problems++
      events.problem?.({ path, reason: 'refused', message: 'The snapshot has no such path.' })
    }
    return {
      ...counters, snapshotId: open.snapshotId, durationMs: clock.monotonicMs() - startedMs, privilegesLacked: restorer.privilegesLacked,
    }
  } finally { await open.close() }
}

async function restoreDirectory(open: OpenSnapshot, restorer: TreeRestorer, from: Buffer, destination: Buffer): Promise<void> {
  const entry = await findEntry(open, from)
  if (entry === undefined || (entry !== 'root' && entry.type !== ENTRY_TYPES.directory))
    throw new RoostError('SNAPSHOT_UNKNOWN', entry === undefined ? 'The snapshot has no such directory.' : 'That path of the snapshot is no directory.')
  // Made by us, or empty: it becomes the directory that is restored, with its metadata.
  const isFresh = mkdirSync(destination, { recursive: true }) !== undefined || isEmptyDirectory(destination)
  const fd = openSync(destination, constants.O_RDONLY | constants.O_DIRECTORY)
  const path = joinNames(splitPath(from)).toString('latin1')
  if (entry === 'root') await restorer.restore(open.root, fd, undefined, path, isFresh)
  else await restorer.restore(entry.subtree!, fd, entry, path, isFresh)
}

async function wantedEntry(open: OpenSnapshot, { from, disk }: Pick<RestoreOptions, 'from' | 'disk'>, signal: AbortSignal): Promise<Entry> {
  return disk === undefined ? await requireContentEntry(open, from) : chooseDisk(await readMachine(open, signal), disk).entry
}
export function isEmptyDirectory(path: Buffer): boolean {
  const directory = opendirSync(path)
  try { return directory.readSync() === null } finally { directory.closeSync() }
}

/** The file or image at `path`; without a path the snapshot's only entry (images and standard input have one).
 *  @throws {RoostError} SNAPSHOT_UNKNOWN */
export async function requireContentEntry(open: OpenSnapshot, path: Buffer | undefined): Promise<Entry> {
  const entry = path === undefined ? await onlyEntry(open) : await findEntry(open, path)
  if (entry === undefined || entry === 'root') throw new RoostError('SNAPSHOT_UNKNOWN', 'The snapshot has no such file.')
  if (entry.content === undefined) throw new RoostError('SNAPSHOT_UNKNOWN', 'That path of the snapshot is neither a file nor an image.')
  return entry
}
async function onlyEntry(open: OpenSnapshot): Promise<Entry> {
  const found: Entry[] = []
  for await (const entry of new DirectoryReader(open.nodes, open.root).entries()) {
    found.push(entry)
    if (found.length > 1) break
  }
  if (found.length !== 1) throw new RoostError('SNAPSHOT_UNKNOWN', 'The snapshot holds more than one entry: name the one that is meant.')
  return found[0]!
}

function lastName(path: Buffer): Buffer {
  const name = splitPath(path).at(-1)
  if (name === undefined || name.equals(Buffer.from('..'))) throw Object.assign(new Error('EISDIR: the destination names a directory'), { code: 'EISDIR' })
  return name
}
function openParent(path: Buffer): number {
  const slash = path.lastIndexOf(0x2f)
  const parent = slash < 0 ? Buffer.from('.') : slash === 0 ? Buffer.from('/') : path.subarray(0, slash)
  mkdirSync(parent, { recursive: true })
  return openSync(parent, constants.O_RDONLY | constants.O_DIRECTORY)
}
