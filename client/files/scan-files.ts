/** Walks chosen paths, and puts files and directories into the sink.
 *
 *  The walk is depth-first in the byte order of names; file-system calls are synchronous, since it has a thread of its own.
 *  Memory: per level of depth one list of names and one open directory node; per file one arena of the sink.
 *  Nothing that goes wrong with one path ends the walk: it is reported, and the rest is saved.
 */
import { lstatSync, readlinkSync, openSync, readSync, closeSync, type BigIntStats } from 'node:fs'
import { getSystemErrorMap } from 'node:util'
import { isErrno } from '../../src/core/errors.js'
import type { ChunkId } from '../../src/core/ids.js'
import type { ChunkerParameters } from '../../src/core/messages.js'
import { fgetxattrs, lgetxattrs } from '../native/posix.js'
import { DirectoryWriter } from '../tree/directory-writer.js'
import { ENTRY_TYPES, type Content, type Entry, type EntryType, type Xattr } from '../tree/entry.js'
import { CONTENT_BYTES_MAX, NAME_BYTES_MAX, XATTR_BYTES_MAX } from '../tree/entry-codec.js'
import type { ScanContext, ScanResult, SourceProblem } from '../upload/chunk-sink.js'
import { DirectoryStack } from './directory-stack.js'
import { ExcludeRules, parseExcludeFile } from './exclude-rules.js'
import { FileReader } from './file-reader.js'
import { LinkedFiles } from './linked-files.js'
import { ParentTree, type ParentDirectory } from './parent-tree.js'
import { planPaths, type PathPlan } from './source-paths.js'
import { entryType, isUnchanged, ownerGroup, ownerName, statEntry } from './stat-entry.js'

/** Plain values: it is cloned into the scanning thread. */
export interface FilesConfig {
  /** Absolute, as bytes. Chosen paths themselves are never excluded. */
  readonly paths: readonly Uint8Array[]
  /** Patterns as exclude-rules.ts tells; later ones win. */
  readonly excludes?: readonly string[]
  /** What exclude files hold; their patterns come before `excludes`. */
  readonly excludeFiles?: readonly Uint8Array[]
  /** Of directories with a CACHEDIR.TAG, only the tag is saved (bford.info/cachedir). */
  readonly excludeCaches?: boolean
  /** Directories on other file systems are saved empty, as places to mount them again. */
  readonly oneFileSystem?: boolean
}

/** Directories within directories. Each has at most 4 levels of nodes in any real tree: far below LIMITS.treeDepthMax. */
export const DIRECTORY_DEPTH_MAX = 2_000
/** File systems' clocks tick in up to two seconds (FAT); the guard also covers a small difference to the host's clock. */
const RACY_MS = 2_000
/** Directories deeper than this many levels turn the event loop, so that the stack of calls stays short. */
const TURN_LEVELS = 32
const TURN_ENTRIES = 256
/** Names of larger files are told for the progress line, as those of directories are. */
const TOLD_FROM_BYTES = 4_194_304
const CACHE_TAG = 'CACHEDIR.TAG'
const CACHE_SIGNATURE = 'Signature: 8a477f597d28d172789f06886806bc55'

/** Saves everything at or below `config.paths`, as one tree from '/'. @throws what the sink, the parent's nodes or an abort
 *  throw, and exhaustion of descriptors or memory; never for a path. */
export async function scanFiles(config: FilesConfig, context: ScanContext, parameters: ChunkerParameters): Promise<ScanResult> {
  using scan = new FileScan(config, context, parameters)
  return { root: await scan.run(), description: { paths: config.paths.map((path) => Buffer.from(path).toString()) } }
}

class FileScan implements Disposable {
  readonly #stack = new DirectoryStack()
  /** From '/' to the innermost directory, latin1. */
  readonly #names: string[] = []
  readonly #excludes: ExcludeRules
  readonly #files: FileReader
  readonly #linked = new LinkedFiles()
  readonly #parents: ParentTree | undefined
  readonly #racyFromNs: bigint
  readonly #uid = process.geteuid?.() ?? 0
  #rootDevice = 0n
  #entriesSinceTurn = 0

  constructor(readonly config: FilesConfig, readonly context: ScanContext, parameters: ChunkerParameters) {
    this.#excludes = new ExcludeRules([...(config.excludeFiles ?? []).flatMap(parseExcludeFile), ...config.excludes ?? []])
    this.#files = new FileReader(context, parameters)
    this.#parents = context.parent === undefined ? undefined : new ParentTree(context.parent.nodes)
    this.#racyFromNs = BigInt(Math.floor((context.parent?.startedAtMs ?? 0) - RACY_MS)) * 1_000_000n
  }
  [Symbol.dispose](): void { this.#stack[Symbol.dispose]() }

  async run(): Promise<ChunkId> {
    const plan = planPaths(this.config.paths, (path, error) => { this.#problem(Buffer.from(path, 'latin1').toString(), error) })
    const stat = this.#stack.enter('')
    this.#rootDevice = stat.dev
    const former = this.context.parent === undefined ? undefined : await this.#parents!.open(this.context.parent.root, [])
    return await this.#saveDirectory(plan.isChosen ? undefined : plan, stat, former)
  }

  /** The innermost directory of the stack. `plan`: of an inner directory of chosen paths, of which only those are saved. */
  async #saveDirectory(plan: PathPlan | undefined, stat: BigIntStats, former: ParentDirectory | undefined): Promise<ChunkId> {
    const { sink } = this.context
    const writer = new DirectoryWriter(sink, former?.nodes)
    this.context.at(this.#pathOf())
    for (const name of plan === undefined ? this.#listNames(stat) : [...plan.children.keys()].sort()) {
      if (++this.#entriesSinceTurn >= TURN_ENTRIES) await this.#turn()
      const next = plan?.children.get(name)
      const saved = this.#saveEntry(name, next, former)
      const entry = saved instanceof Promise ? await saved : saved
      const added = entry === undefined ? undefined : writer.add(entry)
      if (added !== undefined) await added
    }
    return await writer.finish()
  }
  #listNames(stat: BigIntStats): string[] {
    try {
      const names = this.#stack.names(stat.size)
      return this.config.excludeCaches === true && names.includes(CACHE_TAG) && this.#hasCacheSignature() ? [CACHE_TAG] : names
    } catch (error) {
      this.#problem(this.#pathOf(), error)
      return []
    }
  }
  #hasCacheSignature(): boolean {
    const bytes = Buffer.alloc(CACHE_SIGNATURE.length)
    try {
      const path = this.#stack.path(CACHE_TAG)
      if (!lstatSync(path).isFile()) return false
      const fd = openSync(path, 'r')
      try { readSync(fd, bytes, 0, bytes.byteLength, 0) } finally { closeSync(fd) }
    } catch (error) {
      if (isErrno(error)) return false // an unreadable tag excludes nothing
      throw error
    }
    return bytes.toString('latin1') === CACHE_SIGNATURE
  }

  /** undefined: excluded, or reported. */
  #saveEntry(name: string, plan: PathPlan | undefined, former: ParentDirectory | undefined):
    Entry | undefined | Promise<Entry | undefined> {
    const nameBytes = Buffer.from(name, 'latin1')
    if (nameBytes.byteLength > NAME_BYTES_MAX) return this.#unsupported(name, 'The name is longer than 255 bytes.')
    try {
      const stat = lstatSync(this.#stack.path(name), { bigint: true })
      const type = entryType(stat)
      if (type === undefined) return this.#unsupported(name, 'This kind of file is not known.')
      if (plan === undefined && this.#excludes.excludes(this.#names, name, type === ENTRY_TYPES.directory)) return undefined
      const before = former?.find(nameBytes)
      if (type !== ENTRY_TYPES.directory && !(before instanceof Promise) && before !== undefined &&
        isUnchanged(before, type, stat, this.#racyFromNs)) return this.#reuse(before)
      return this.#saveChanged(name, nameBytes, type, stat, plan, former, before)
    } catch (error) { return this.#problem(this.#pathOf(name), error) }
  }
  #reuse(before: Entry): Entry {
    const { counters } = this.context
    if (before.type === ENTRY_TYPES.file) {
      counters.files++
      counters.filesUnchanged++
      counters.sourceBytes += before.content!.bytes
    } else counters.others++
    const user = ownerName(before.uid) // an account may have been renamed
    const group = ownerGroup(before.gid)
    return user === before.user && group === before.group ? before : { ...before, user, group }
  }
  async #saveChanged(name: string, nameBytes: Buffer, type: EntryType, stat: BigIntStats, plan: PathPlan | undefined,
    formerDirectory: ParentDirectory | undefined, found: Entry | undefined | Promise<Entry | undefined>): Promise<Entry | undefined> {
    const before = found instanceof Promise ? await found : found
    const unchanged = before !== undefined && isUnchanged(before, type, stat, this.#racyFromNs) ? before : undefined
    try {
      switch (type) {
        case ENTRY_TYPES.directory: return await this.#saveSubdirectory(name, nameBytes, stat, plan, formerDirectory, before, unchanged)
        case ENTRY_TYPES.file:
          return unchanged === undefined ? await this.#saveFile(name, nameBytes, stat) : this.#reuse(unchanged)
        default: {
          if (unchanged !== undefined) return this.#reuse(unchanged)
          const entry = statEntry(nameBytes, type, stat, this.#xattrs(name))
          const saved = type !== ENTRY_TYPES.symlink ? entry
            : { ...entry, symlinkTarget: readlinkSync(this.#stack.path(name), { encoding: 'buffer' }) }
          this.context.counters.others++
          return saved
        }
      }
    } catch (error) { return this.#problem(this.#pathOf(name), error) }
  }

  async #saveSubdirectory(name: string, nameBytes: Buffer, stat: BigIntStats, plan: PathPlan | undefined,
    formerDirectory: ParentDirectory | undefined, before: Entry | undefined, unchanged: Entry | undefined,
  ): Promise<Entry | undefined> {
    const isInner = plan !== undefined && !plan.isChosen
    const entry = statEntry(nameBytes, ENTRY_TYPES.directory, stat, unchanged?.xattrs ?? this.#xattrs(name))
    const isOtherFileSystem = this.config.oneFileSystem === true && plan === undefined && stat.dev !== this.#rootDevice
    const isTooDeep = this.#stack.depth >= DIRECTORY_DEPTH_MAX
    if (isTooDeep) this.#unsupported(name, `Directories are saved to a depth of ${DIRECTORY_DEPTH_MAX}.`)
    if (isOtherFileSystem || isTooDeep) {
      this.context.counters.directories++
      return { ...entry, subtree: await this.#emptyDirectory(before) }
    }
    const former = before?.subtree === undefined ? undefined
      : await this.#parents!.open(before.subtree, formerDirectory!.nextSubtrees())
    const opened = this.#stack.enter(name)
    this.context.counters.directories++
    const deviceAround = this.#rootDevice
    if (plan?.isChosen === true) this.#rootDevice = opened.dev
    this.#names.push(name)
    try {
      if (opened.ino !== stat.ino || opened.dev !== stat.dev)
        this.#report(this.#pathOf(), 'changed', 'The directory was replaced while it was read.')
      if (this.#stack.depth % TURN_LEVELS === 0) await this.#turn()
      return { ...entry, subtree: await this.#saveDirectory(isInner ? plan : undefined, opened, former) }
    } finally {
      this.#names.pop()
      this.#rootDevice = deviceAround
      this.#stack.leave()
    }
  }
  async #emptyDirectory(before: Entry | undefined): Promise<ChunkId> {
    const former = before?.subtree === undefined ? undefined : await this.#parents!.open(before.subtree, [])
    return await new DirectoryWriter(this.context.sink, former?.nodes).finish()
  }

  async #saveFile(name: string, nameBytes: Buffer, stat: BigIntStats): Promise<Entry | undefined> {
    const { counters } = this.context
    if (stat.size > CONTENT_BYTES_MAX) return this.#unsupported(name, 'The file is larger than 4 PiB.')
    if (stat.size >= TOLD_FROM_BYTES) this.context.at(this.#pathOf(name))
    const linked = this.#linked.find(stat)
    let content: Content
    let entry: Entry
    if (linked !== undefined) {
      content = linked.content
      entry = statEntry(nameBytes, ENTRY_TYPES.file, stat, linked.xattrs)
    } else {
      const read = await this.#files.read(this.#stack.path(name), this.#uid === 0 || stat.uid === BigInt(this.#uid),
        (fd) => this.#bounded(name, () => fgetxattrs(fd)))
      if (read === undefined) return this.#report(this.#pathOf(name), 'changed', 'It is no regular file any more.')
      if (read.isTorn) this.#report(this.#pathOf(name), 'changed', 'The file changed while it was read, three times.')
      else this.#linked.remember(read.stat, { content: read.content, xattrs: read.xattrs })
      content = read.content
      entry = statEntry(nameBytes, ENTRY_TYPES.file, read.stat, read.xattrs)
    }
    counters.files++
    counters.sourceBytes += content.bytes
    return { ...entry, content }
  }

  #xattrs(name: string): readonly Xattr[] { return this.#bounded(name, () => lgetxattrs(this.#stack.path(name))) }
  /** Attributes that cannot be read are reported; the entry is saved without them. */
  #bounded(name: string, read: () => readonly Xattr[]): readonly Xattr[] {
    try {
      const xattrs = read()
      if (xattrs.length === 0) return xattrs
      const bytes = xattrs.reduce((sum, xattr) => sum + xattr.name.byteLength + xattr.value.byteLength + 8, 0)
      if (bytes <= XATTR_BYTES_MAX) return xattrs
      this.#unsupported(name, 'The extended attributes are over 1 MiB; they are left out.')
    } catch (error) { this.#problem(this.#pathOf(name), error) }
    return []
  }

  #pathOf(name?: string): string {
    const names = name === undefined ? this.#names : [...this.#names, name]
    return Buffer.from(`/${names.join('/')}`, 'latin1').toString()
  }
  #unsupported(name: string, message: string): undefined { this.#report(this.#pathOf(name), 'unsupported', message) }
  /** Rethrows what is no failure of a file-system call: errors of the sink and of nodes name no system call. */
  #problem(path: string, error: unknown): undefined {
    if (!isErrno(error) || error.syscall === undefined || FATAL.has(error.code!)) throw error
    const text = getSystemErrorMap().get(error.errno ?? 0)?.[1] ?? error.code!
    this.#report(path, REASONS[error.code!] ?? 'unreadable', `${text} (${error.code}, ${error.syscall})`)
  }
  #report(path: string, reason: SourceProblem['reason'], message: string): undefined {
    this.context.counters.errors++
    this.context.report({ path, reason, message })
  }
  /** Lets messages in, an abort above all, and empties the stack of calls. */
  async #turn(): Promise<void> {
    this.#entriesSinceTurn = 0
    await new Promise((resolve) => setImmediate(resolve))
    this.context.signal.throwIfAborted()
  }
}

/** Not a property of one path: going on would report all that follow. */
const FATAL = new Set(['EMFILE', 'ENFILE', 'ENOMEM'])
const REASONS: Readonly<Record<string, SourceProblem['reason']>> = {
  ENOENT: 'vanished', ENOTDIR: 'changed', ESTALE: 'vanished', ELOOP: 'changed', ENXIO: 'changed', EINVAL: 'changed',
}
