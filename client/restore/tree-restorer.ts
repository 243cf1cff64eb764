/** Walks a snapshot's tree and makes it again below a directory: plans ahead of the chunks, which arrive in pack order.
 *
 *  One thread and synchronous file calls: a restore of many small files is bound by system calls, and a promise around each
 *  would cost more than the call. The walk waits only for nodes and for free windows.
 *  A problem with one path is reported and the rest goes on; what concerns everything (no space, no server) ends the restore.
 */
import { fchmodSync, fstatSync, linkSync, lstatSync, renameSync, symlinkSync, unlinkSync } from 'node:fs'
import { isErrno, RoostError } from '../../src/core/errors.js'
import type { ChunkId } from '../../src/core/ids.js'
import { latin1 } from '../browse/path-pattern.js'
import { mknod } from '../native/posix.js'
import type { SessionNodeSource } from '../session-nodes.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'
import type { ChunkWindows } from './chunk-windows.js'
import { contentExtents } from './content-extents.js'
import { FileTask, OpenFiles, type FileHost } from './file-task.js'
import { HardLinks, isHardLinked, type LinkName } from './hard-links.js'
import { MetadataWriter, type MetadataOptions } from './metadata.js'
import type { RestoreCounters, RestoreEvents, RestoreProblemReason } from './restore-report.js'
import type { Selection } from './selection.js'
import { DirectoryDescriptors, TargetDirectory, type DirectoryHost } from './target-directory.js'

/** Below it a tree is refused: no file system's tools could use it, and each level costs memory. */
export const RESTORE_DEPTH_MAX = 4_096
/** Subdirectories whose nodes are asked for before the walk is there. */
const PREFETCH_DIRECTORIES = 48
const S_IFCHR = 0o020000, S_IFBLK = 0o060000, S_IFIFO = 0o010000, S_IFSOCK = 0o140000
/** After these no other file will do better. */
const FATAL_ERRNO = new Set(['ENOSPC', 'EDQUOT', 'EROFS', 'EIO', 'EMFILE', 'ENFILE', 'ENOMEM'])

export type Overwrite = 'never' | 'if-changed' | 'always'
/** `skip`: a damaged file is reported and left out. `keep`: with holes where chunks are lost. `stop`: the restore ends. */
export type OnDamage = 'skip' | 'keep' | 'stop'

export interface TreeRestoreOptions {
  readonly overwrite: Overwrite
  readonly onDamage: OnDamage
  readonly metadata: MetadataOptions
  readonly selection: Selection
  /** Marks temporary names of this run: hex digits. */
  readonly runMark: string
}

export class TreeRestorer implements DirectoryHost, FileHost {
  readonly descriptors = new DirectoryDescriptors()
  readonly files = new OpenFiles()
  readonly #links = new HardLinks()
  readonly #metadata: MetadataWriter
  #temporaryCount = 0
  #inheritsAcls = false
  privilegesLacked = false
  /** Whose metadata is being set. */
  #metadataPlace: { readonly directory: TargetDirectory; readonly name: Buffer | undefined } | undefined

  constructor(readonly nodes: SessionNodeSource, readonly windows: ChunkWindows, readonly options: TreeRestoreOptions,
    readonly counters: RestoreCounters, readonly events: RestoreEvents, readonly signal: AbortSignal) {
    this.#metadata = new MetadataWriter(options.metadata, {
      metadataProblem: (error, what) => { this.#metadataProblem(error, what) },
      privilegeLacked: () => { this.privilegesLacked = true },
    })
  }
  get replacesFiles(): boolean { return this.options.overwrite !== 'never' }
  get keepsDamaged(): boolean { return this.options.onDamage === 'keep' }

  /** Restores what lies below `root` into the directory that `fd` has open; owns `fd`. `entry`: what the snapshot knows of
   *  that directory itself; it is set if `isFresh` (or if existing things are replaced). `path`: its names in the snapshot, latin1, for the selection. */
  async restore(root: ChunkId, fd: number, entry: Entry | undefined, path: string, isFresh: boolean): Promise<void> {
    await this.#below(fd, entry, isFresh, (top) => this.#walk(top, root, path, this.options.selection.isEverything))
  }
  /** Restores one file or image, named as `entry` names it, into the directory that `fd` has open; owns `fd`. */
  async restoreOne(entry: Entry, fd: number): Promise<void> {
    await this.#below(fd, undefined, false, async (top) => { await this.#restoreEntry(top, { ...entry, linkCount: 1 }) })
  }
  async #below(fd: number, entry: Entry | undefined, isFresh: boolean, plan: (top: TargetDirectory) => Promise<void>): Promise<void> {
    this.#inheritsAcls = this.#metadata.hasDefaultAcl(fd)
    const top = TargetDirectory.top(this, fd, entry, isFresh)
    try {
      await plan(top)
      await this.windows.finish()
      top.release()
    } finally {
      await this.windows.settle()
      this.files.discardAll()
      this.descriptors.closeAll()
      top.close()
    }
  }

  async #walk(directory: TargetDirectory, node: ChunkId, path: string, isAll: boolean): Promise<void> {
    try {
      if (directory.depth > RESTORE_DEPTH_MAX)
        throw new RoostError('LIMIT_EXCEEDED', `Directories nest deeper than ${RESTORE_DEPTH_MAX} levels.`, { limit: RESTORE_DEPTH_MAX })
      for await (const leaf of new DirectoryReader(this.nodes, node).leaves()) await this.#restoreLeaf(directory, leaf, path, isAll)
    } catch (error) {
      this.#requireTreeDamage(error)
      this.#problem(directory.names(), 'damaged', error)
    }
  }
  async #restoreLeaf(directory: TargetDirectory, leaf: readonly Entry[], path: string, isAll: boolean): Promise<void> {
    const subtrees = leaf.filter((entry) => entry.type === ENTRY_TYPES.directory).map((entry) => entry.subtree!)
    let subtreesSeen = 0
    for (const entry of leaf) {
      this.signal.throwIfAborted()
      const isDirectory = entry.type === ENTRY_TYPES.directory
      if (isDirectory && subtreesSeen++ % PREFETCH_DIRECTORIES === 0)
        this.nodes.prefetch(subtrees.slice(subtreesSeen - 1, subtreesSeen - 1 + PREFETCH_DIRECTORIES))
      const entryPath = isAll ? '' : path === '' ? latin1(entry.name) : `${path}/${latin1(entry.name)}`
      const wanted = isAll ? 'all' : this.options.selection.wants(entryPath, isDirectory)
      if (wanted === 'none') continue
      if (isDirectory) await this.#restoreDirectory(directory, entry, entryPath, wanted === 'all')
      else if (directory.ensure()) {
        const planning = this.#restoreEntry(directory, entry)
        if (planning !== undefined) await planning
      }
    }
  }
  async #restoreDirectory(parent: TargetDirectory, entry: Entry, path: string, isAll: boolean): Promise<void> {
    const directory = new TargetDirectory(this, parent, entry, parent.depth + 1)
    try {
      if (!isAll || directory.ensure()) await this.#walk(directory, entry.subtree!, path, isAll)
    } finally { directory.release() }
  }

  #restoreEntry(directory: TargetDirectory, entry: Entry): void | Promise<void> {
    const name: LinkName = { directory, entry }
    try {
      if (!directory.isFresh && this.#isKept(directory, entry)) {
        this.counters.skipped++
        if (isHardLinked(entry) && !this.#links.joins(name, () => undefined)) this.#links.settle(name, true)
        return
      }
    } catch (error) {
      this.#entryFailed(name, error)
      return
    }
    if (isHardLinked(entry)) {
      directory.hold()
      if (this.#links.joins(name, (first) => { this.#link(name, first) })) return
      directory.release()
    }
    if (entry.content !== undefined) return this.#planFile(directory, entry)
    this.#makeSpecial(name)
  }
  /** True when what is there stays. @throws when a directory is in the way */
  #isKept(directory: TargetDirectory, entry: Entry): boolean {
    const now = lstatSync(directory.pathOf(entry.name), { bigint: true, throwIfNoEntry: false })
    if (now === undefined) return false
    if (this.options.overwrite === 'never') return true
    if (now.isDirectory()) throw blocked('a directory is in the way')
    return this.options.overwrite === 'if-changed' && entry.type === ENTRY_TYPES.file && now.isFile() &&
      now.size === BigInt(entry.content?.bytes ?? 0) && now.mtimeNs === entry.mtimeNs
  }

  #planFile(directory: TargetDirectory, entry: Entry): void | Promise<void> {
    const task = new FileTask(this, directory, entry)
    const { content } = entry
    if (content?.kind !== 'extents') return this.#planLong(task)
    let offset = 0
    let waiting: Promise<void> | undefined
    for (const { bytes, id } of content.extents) {
      if (id !== undefined) {
        task.expectChunk(bytes)
        const full = this.windows.want(id, bytes, task, offset)
        if (full !== undefined) waiting = waiting === undefined ? full : Promise.all([waiting, full]).then(() => undefined)
      }
      offset += bytes
    }
    task.endPlan()
    return waiting
  }
  async #planLong(task: FileTask): Promise<void> {
    try {
      for await (const { offset, bytes, id } of contentExtents(this.nodes, task.entry.content!)) {
        if (task.hasFailed) return
        this.signal.throwIfAborted()
        if (id === undefined) continue
        task.expectChunk(bytes)
        const full = this.windows.want(id, bytes, task, offset)
        if (full !== undefined) await full
      }
      task.endPlan()
    } catch (error) {
      this.#requireTreeDamage(error)
      task.fail(error)
    }
  }

  #makeSpecial(name: LinkName): void {
    const { directory, entry } = name
    // In a directory of our own nothing is replaced, and making such an entry is one step: no temporary name is needed.
    const made = directory.isFresh ? entry.name : this.temporaryName()
    try {
      const path = directory.pathOf(made)
      if (entry.type === ENTRY_TYPES.symlink) symlinkSync(entry.symlinkTarget!, path)
      else mknod(path, typeBits(entry) | 0o600, entry.deviceMajor ?? 0, entry.deviceMinor ?? 0)
      try {
        this.#metadataPlace = { directory, name: entry.name }
        this.#metadata.applyByPath(path, entry)
        if (made !== entry.name) renameSync(path, directory.pathOf(entry.name))
      } catch (error) {
        unlinkSync(directory.pathOf(made))
        throw error
      }
    } catch (error) {
      this.#entryFailed(name, error)
      return
    }
    this.counters.others++
    if (isHardLinked(entry)) this.#links.settle(name, true)
    this.events.progress?.(this.counters)
  }
  /** The later name of a group; the directory is held for it. */
  #link(name: LinkName, first: LinkName | undefined): void {
    const { directory, entry } = name
    try {
      if (first === undefined) throw blocked('the file that it is a hard link to was not restored')
      const existing = first.directory.pathOf(first.entry.name)
      if (directory.isFresh) linkSync(existing, directory.pathOf(entry.name))
      else {
        const temporary = directory.pathOf(this.temporaryName())
        linkSync(existing, temporary)
        renameSync(temporary, directory.pathOf(entry.name))
        // Where both already were one file, rename does nothing and leaves the temporary name.
        if (lstatSync(temporary, { throwIfNoEntry: false }) !== undefined) unlinkSync(temporary)
      }
      if (entry.content === undefined) this.counters.others++
      else this.counters.files++
    } catch (error) {
      this.#problem([...directory.names(), entry.name], reasonOf(error), error)
    } finally { directory.release() }
  }

  // ---- FileHost

  temporaryName(): Buffer { return Buffer.from(`.roost-${this.options.runMark}-${(this.#temporaryCount++).toString(36)}`, 'latin1') }
  applyMetadata(fd: number, { directory, entry }: FileTask): void {
    this.#metadataPlace = { directory, name: entry.name }
    if (this.#inheritsAcls) this.#metadata.dropInheritedAcls(fd, entry)
    this.#metadata.apply(fd, entry, true)
  }
  bytesWritten(bytes: number): void { this.counters.bytes += bytes }
  fileDone(task: FileTask): void {
    this.counters.files++
    this.counters.bytesDone += task.bytes
    if (isHardLinked(task.entry)) this.#links.settle(task, true)
    this.events.progress?.(this.counters)
  }
  fileFailed(task: FileTask, error: unknown): void { this.#entryFailed(task, error) }
  fileDamaged(task: FileTask, error: unknown): void {
    this.#problem([...task.directory.names(), task.entry.name], 'damaged', error)
  }

  // ---- DirectoryHost

  directoryEntered(directory: TargetDirectory): void {
    const { fd } = directory
    const { mode, uid } = fstatSync(fd)
    // An ordinary user's read-only directory from an earlier restore: open until its metadata is set again.
    if (!this.#metadata.isRoot && (mode & 0o700) !== 0o700 && uid === process.geteuid?.()) fchmodSync(fd, (mode & 0o7777) | 0o700)
    if (this.replacesFiles && this.#metadata.hasDefaultAcl(fd)) this.#metadata.dropDefaultAcl(fd)
  }
  directoryDone(directory: TargetDirectory): void {
    const { entry, isFresh } = directory
    if (entry === undefined) return
    if (directory.parent !== undefined) this.counters.directories++
    if (!isFresh && !this.replacesFiles) return
    try {
      directory.path() // opens it again where it was closed
      this.#metadataPlace = { directory, name: undefined }
      if (this.#inheritsAcls) this.#metadata.dropInheritedAcls(directory.fd, entry)
      this.#metadata.apply(directory.fd, entry, isFresh)
    } catch (error) {
      this.#problem(directory.names(), 'metadata', error)
    }
  }
  directoryFailed(directory: TargetDirectory, error: unknown): void {
    this.#problem(directory.names(), reasonOf(error), error)
  }

  // ---- problems

  #entryFailed(name: LinkName, error: unknown): void {
    this.#problem([...name.directory.names(), name.entry.name], reasonOf(error), error)
    if (isHardLinked(name.entry)) this.#links.settle(name, false)
  }
  #metadataProblem(error: unknown, what: string): void {
    const { directory, name } = this.#metadataPlace!
    const cause = error instanceof Error ? error.message : 'unknown'
    this.counters.problems++
    this.events.problem?.({
      path: joinNames(name === undefined ? directory.names() : [...directory.names(), name]), reason: 'metadata',
      message: `${what}: ${cause}`, cause: error,
    })
  }
  /** Counts and tells. @throws the error itself when the restore cannot, or must not, go on. */
  #problem(names: readonly Buffer[], reason: RestoreProblemReason, error: unknown): void {
    if (isErrno(error) && FATAL_ERRNO.has(error.code ?? '')) throw error
    if (!isErrno(error) && !(error instanceof RoostError)) throw error // ours to fix, or an abort
    if (reason === 'damaged' && this.options.onDamage === 'stop') throw error
    this.counters.problems++
    this.events.problem?.({ path: joinNames(names), reason, message: error.message, cause: error })
  }
  #requireTreeDamage(error: unknown): void {
    if (!isDamage(error)) throw error
  }
}

const DAMAGE_CODES = new Set(['CHUNK_MISSING', 'CHUNK_CORRUPT', 'CHUNK_NOT_READABLE', 'TREE_MALFORMED', 'LIMIT_EXCEEDED'])
const isDamage = (error: unknown): error is RoostError => error instanceof RoostError && DAMAGE_CODES.has(error.code)
const blocked = (message: string): Error => Object.assign(new Error(`EEXIST: ${message}`), { code: 'EEXIST' })
const BLOCKED_CODES = new Set(['EEXIST', 'EISDIR', 'ENOTDIR', 'ELOOP', 'ENOTEMPTY'])
function reasonOf(error: unknown): RestoreProblemReason {
  if (isDamage(error)) return 'damaged'
  return isErrno(error) && BLOCKED_CODES.has(error.code ?? '') ? 'blocked' : isErrno(error, 'ESTALE') ? 'changed' : 'refused'
}
export function joinNames(names: readonly Buffer[]): Buffer {
  const parts: Buffer[] = []
  names.forEach((name, i) => { if (i > 0) parts.push(Buffer.from('/')); parts.push(name) })
  return Buffer.concat(parts)
}
export function typeBits(entry: Entry): number {
  switch (entry.type) {
    case ENTRY_TYPES.fifo: return S_IFIFO
    case ENTRY_TYPES.characterDevice: return S_IFCHR
    case ENTRY_TYPES.blockDevice: return S_IFBLK
    case ENTRY_TYPES.socket: return S_IFSOCK
    default: throw new RoostError('TREE_MALFORMED', 'An entry has neither content nor a type that can be made.')
  }
}
