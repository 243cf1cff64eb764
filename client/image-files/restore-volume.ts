/** Files out of a file system inside an image, into a directory: contents sparse, owners, modes, attributes, times, hard links joined.
 *
 *  The image may be a stranger's: nothing is written outside the destination (target-directory.ts), no directory is entered twice, and no more
 *  bytes come out than the volume can hold. Damage costs the item that it is in, and is told.
 */
import { closeSync, constants, ftruncateSync, linkSync, lstatSync, mkdirSync, openSync, renameSync, symlinkSync, unlinkSync, writeSync } from 'node:fs'
import { isErrno, RoostError } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { mknod } from '../native/posix.js'
import { HardLinks, isHardLinked, type LinkName } from '../restore/hard-links.js'
import { MetadataWriter, type MetadataOptions } from '../restore/metadata.js'
import { emptyCounters, type RestoreCounters, type RestoreEvents, type RestoreProblemReason } from '../restore/restore-report.js'
import { isEmptyDirectory } from '../restore/run-restore.js'
import { DirectoryDescriptors, TargetDirectory, type DirectoryHost } from '../restore/target-directory.js'
import { joinNames, RESTORE_DEPTH_MAX, typeBits } from '../restore/tree-restorer.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'
import { unreadable } from './byte-window.js'
import type { Ext4Volume, VolumeItem } from './ext4/volume.js'
import { requireItem } from './list-volume.js'

export interface VolumeRestoreOptions {
  readonly names: readonly Buffer[]
  /** A directory: what is in the item, or the item itself when it is none, goes there. Or a file: the one file becomes it. */
  readonly destination: { readonly kind: 'directory' | 'file'; readonly path: Buffer }
  /** What is there: stays, or is replaced. */
  readonly replaces: boolean
  readonly stopsOnDamage: boolean
  readonly metadata: MetadataOptions
  /** Marks temporary names. */
  readonly runMark: string
}
export interface VolumeRestoreReport extends Readonly<RestoreCounters> { readonly privilegesLacked: boolean }

/** @throws {RoostError} SNAPSHOT_UNKNOWN; {ClientError} IMAGE_UNREADABLE; errno exceptions of the destination */
export async function restoreVolume(volume: Ext4Volume, options: VolumeRestoreOptions, events: RestoreEvents, signal: AbortSignal): Promise<VolumeRestoreReport> {
  const item = await requireItem(volume, options.names)
  const restorer = new VolumeRestorer(volume, options, events, signal)
  const { kind, path } = options.destination
  if (kind === 'file') {
    if (item.entry.type !== ENTRY_TYPES.file) throw new RoostError('SNAPSHOT_UNKNOWN', 'That path is no regular file: restore it with --target.')
    const slash = path.lastIndexOf(0x2f)
    const name = path.subarray(slash + 1)
    if (name.byteLength === 0) throw Object.assign(new Error('EISDIR: the destination names a directory'), { code: 'EISDIR' })
    const parent = slash < 0 ? Buffer.from('.') : slash === 0 ? Buffer.from('/') : path.subarray(0, slash)
    mkdirSync(parent, { recursive: true })
    await restorer.restoreInto(parent, false, undefined, (top) => restorer.one(top, { ...item, entry: { ...item.entry, name: Buffer.from(name), linkCount: 1 } }))
  } else {
    const isFresh = mkdirSync(path, { recursive: true }) !== undefined || isEmptyDirectory(path)
    const isDirectory = item.entry.type === ENTRY_TYPES.directory
    await restorer.restoreInto(path, isFresh, isDirectory ? item.entry : undefined, (top) =>
      isDirectory ? restorer.directory(top, item) : restorer.one(top, { ...item, entry: { ...item.entry, linkCount: 1 } }))
  }
  return { ...restorer.counters, privilegesLacked: restorer.privilegesLacked }
}

const CREATE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
/** After these no other file will do better. */
const FATAL_ERRNO = new Set(['ENOSPC', 'EDQUOT', 'EROFS', 'EIO', 'EMFILE', 'ENFILE', 'ENOMEM'])
const BLOCKED_ERRNO = new Set(['EEXIST', 'EISDIR', 'ENOTDIR', 'ELOOP', 'ENOTEMPTY'])
const DAMAGE_CODES = new Set(['CHUNK_MISSING', 'CHUNK_CORRUPT', 'CHUNK_NOT_READABLE', 'TREE_MALFORMED', 'LIMIT_EXCEEDED'])

class VolumeRestorer implements DirectoryHost {
  readonly descriptors = new DirectoryDescriptors()
  readonly counters = emptyCounters()
  readonly #links = new HardLinks()
  readonly #metadata: MetadataWriter
  readonly #entered = new Set<number>()
  readonly #bytesMax: number
  #temporaryCount = 0
  #at: Buffer = Buffer.alloc(0)
  privilegesLacked = false

  constructor(readonly volume: Ext4Volume, readonly options: VolumeRestoreOptions, readonly events: RestoreEvents, readonly signal: AbortSignal) {
    this.#bytesMax = volume.superblock.sharesBlocks ? Infinity : volume.source.bytes
    this.#metadata = new MetadataWriter(options.metadata, {
      metadataProblem: (error, what) => { this.#tell(this.#at, 'metadata', error, `${what}: `) },
      privilegeLacked: () => { this.privilegesLacked = true },
    })
  }
  get replacesFiles(): boolean { return this.options.replaces }

  async restoreInto(path: Buffer, isFresh: boolean, entry: Entry | undefined, work: (top: TargetDirectory) => Promise<void>): Promise<void> {
    const top = TargetDirectory.top(this, openSync(path, constants.O_RDONLY | constants.O_DIRECTORY), entry, isFresh)
    try {
      await work(top)
      top.release()
    } finally {
      this.descriptors.closeAll()
      top.close()
    }
  }
  async directory(target: TargetDirectory, { inode }: VolumeItem): Promise<void> {
    try {
      if (this.#entered.has(inode.number)) throw unreadable('The directory is in two places.')
      this.#entered.add(inode.number)
      if (target.depth > RESTORE_DEPTH_MAX) throw unreadable(`Directories nest deeper than ${RESTORE_DEPTH_MAX} levels.`)
      for await (const item of this.volume.list(inode, (name, error) => { this.#problem(target, name, error) })) {
        this.signal.throwIfAborted()
        if (item.entry.type !== ENTRY_TYPES.directory) { await this.one(target, item); continue }
        const below = new TargetDirectory(this, target, item.entry, target.depth + 1)
        try {
          if (below.ensure()) await this.directory(below, item)
        } finally { below.release() }
      }
    } catch (error) {
      this.#problem(target, undefined, error)
    }
  }
  async one(directory: TargetDirectory, item: VolumeItem): Promise<void> {
    const { entry } = item
    const name: LinkName = { directory, entry }
    let isRestored = false
    if (isHardLinked(entry)) {
      directory.hold()
      if (this.#links.joins(name, (first) => { this.#link(name, first) })) return
      directory.release()
    }
    try {
      if (!this.#isKept(directory, entry)) {
        if (entry.type === ENTRY_TYPES.file) await this.#file(directory, item)
        else this.#special(directory, entry)
      } else this.counters.skipped++
      isRestored = true
    } catch (error) {
      this.#problem(directory, entry.name, error)
    } finally {
      if (isHardLinked(entry)) this.#links.settle(name, isRestored)
    }
    this.events.progress?.(this.counters)
  }

  #isKept(directory: TargetDirectory, entry: Entry): boolean {
    const now = lstatSync(directory.pathOf(entry.name), { throwIfNoEntry: false })
    if (now === undefined) return false
    if (!this.options.replaces) return true
    if (now.isDirectory()) throw Object.assign(new Error('EEXIST: a directory is in the way'), { code: 'EEXIST' })
    return false
  }
  async #file(directory: TargetDirectory, { entry, inode }: VolumeItem): Promise<void> {
    const temporary = this.#temporaryName()
    const fd = openSync(directory.pathOf(temporary), CREATE, 0o600)
    try {
      ftruncateSync(fd, inode.bytes)
      for await (const piece of this.volume.pieces(inode)) {
        this.signal.throwIfAborted()
        if (this.counters.bytes + piece.bytes > this.#bytesMax) throw new BombError('More comes out of the file system than it can hold: it is damaged.')
        const bytes = await piece.read()
        for (let done = 0; done < bytes.byteLength;) done += writeSync(fd, bytes, done, bytes.byteLength - done, piece.offset + done)
        this.counters.bytes += bytes.byteLength
        this.events.progress?.(this.counters)
      }
      this.#at = joinNames([...directory.names(), entry.name])
      this.#metadata.apply(fd, entry, true)
      renameSync(directory.pathOf(temporary), directory.pathOf(entry.name))
    } catch (error) {
      unlinkSync(directory.pathOf(temporary))
      throw error
    } finally { closeSync(fd) }
    this.counters.files++
    this.counters.bytesDone += inode.bytes
  }
  #special(directory: TargetDirectory, entry: Entry): void {
    const temporary = this.#temporaryName()
    const path = directory.pathOf(temporary)
    if (entry.type === ENTRY_TYPES.symlink) symlinkSync(entry.symlinkTarget!, path)
    else mknod(path, typeBits(entry) | 0o600, entry.deviceMajor ?? 0, entry.deviceMinor ?? 0)
    try {
      this.#at = joinNames([...directory.names(), entry.name])
      this.#metadata.applyByPath(path, entry)
      renameSync(directory.pathOf(temporary), directory.pathOf(entry.name))
    } catch (error) {
      unlinkSync(directory.pathOf(temporary))
      throw error
    }
    this.counters.others++
  }
  /** A later name of a group; the directory is held for it. */
  #link({ directory, entry }: LinkName, first: LinkName | undefined): void {
    try {
      if (first === undefined) throw unreadable('The file that it is a hard link to could not be restored.')
      if (this.#isKept(directory, entry)) { this.counters.skipped++; return }
      const temporary = directory.pathOf(this.#temporaryName())
      linkSync(first.directory.pathOf(first.entry.name), temporary)
      renameSync(temporary, directory.pathOf(entry.name))
      this.counters.files++
    } catch (error) {
      this.#problem(directory, entry.name, error)
    } finally { directory.release() }
  }
  #temporaryName(): Buffer { return Buffer.from(`.roost-${this.options.runMark}-${(this.#temporaryCount++).toString(36)}`, 'latin1') }

  // ---- DirectoryHost

  directoryEntered(): void { /* its metadata is set at the end, if at all */ }
  directoryDone(directory: TargetDirectory): void {
    const { entry, isFresh } = directory
    if (entry === undefined) return
    if (directory.parent !== undefined) this.counters.directories++
    if (!isFresh && !this.options.replaces) return
    try {
      directory.path() // opens it again where it was closed
      this.#at = joinNames(directory.names())
      this.#metadata.apply(directory.fd, entry, isFresh)
    } catch (error) {
      this.#problem(directory, undefined, error)
    }
  }
  directoryFailed(directory: TargetDirectory, error: unknown): void { this.#problem(directory, undefined, error) }

  // ---- problems

  /** Counts and tells. @throws the error itself when the restore cannot, or must not, go on */
  #problem(directory: TargetDirectory, name: Buffer | undefined, error: unknown): void {
    if (error instanceof BombError || isErrno(error) && !(error instanceof ClientError) && !(error instanceof RoostError) && FATAL_ERRNO.has(error.code ?? '')) throw error
    const isDamage = error instanceof ClientError && error.code === 'IMAGE_UNREADABLE' || error instanceof RoostError && DAMAGE_CODES.has(error.code)
    if (!isDamage && (!isErrno(error) || error instanceof ClientError || error instanceof RoostError)) throw error
    if (isDamage && this.options.stopsOnDamage) throw error
    const reason = isDamage ? 'damaged' : BLOCKED_ERRNO.has((error as NodeJS.ErrnoException).code ?? '') ? 'blocked' : 'refused'
    this.#tell(joinNames(name === undefined ? directory.names() : [...directory.names(), name]), reason, error)
  }
  #tell(path: Buffer, reason: RestoreProblemReason, error: unknown, what = ''): void {
    this.counters.problems++
    this.events.problem?.({ path, reason, message: `${what}${error instanceof Error ? error.message : 'unknown'}`, cause: error })
  }
}

/** A file system that names the same blocks again and again would fill any disk. */
class BombError extends ClientError {
  constructor(message: string) { super('IMAGE_UNREADABLE', message) }
}
