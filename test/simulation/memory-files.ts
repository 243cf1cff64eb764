/** A file system in memory that forgets like a real one: file bytes that no fsync covered, and names of directories that were not
 *  fsynced, may be lost with the power.
 *
 *  Writers come through FileEffects. Readers use node:fs directly, so its functions are replaced for paths below ROOT, in this process
 *  and for ever; every other path goes where it went before.
 */
import fs from 'node:fs'
import filesModule from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { basename, dirname } from 'node:path'
import { Readable } from 'node:stream'
import type { FileEffects } from '../../src/store/file-effects.js'
import type { SeededRandom } from './seeded-random.js'

/** No such folder exists on any machine. */
export const ROOT = '/roost-simulation'

interface FileInode { readonly kind: 'file'; bytes: Buffer; synced: Buffer | undefined }
interface Directory {
  readonly kind: 'directory'
  names: Map<string, Inode>
  synced: Map<string, Inode>
  /** Changes of names since the last fsync, in order. */
  changes: ((names: Map<string, Inode>) => void)[]
}
type Inode = FileInode | Directory

const failure = (code: string, syscall: string, path: string): Error =>
  Object.assign(new Error(`${code}: ${syscall} '${path}'`), { code, syscall, path, errno: -1 })
const newDirectory = (): Directory => ({ kind: 'directory', names: new Map(), synced: new Map(), changes: [] })

export class MemoryFiles {
  #root = newDirectory()
  readonly #open = new Map<number, FileInode>()
  #nextDescriptor = 1_000_000

  // ——— paths ———
  #find(path: string): Inode | undefined {
    let at: Inode | undefined = this.#root
    for (const name of path.slice(ROOT.length).split('/')) {
      if (name === '') continue
      at = at?.kind === 'directory' ? at.names.get(name) : undefined
      if (at === undefined) return undefined
    }
    return at
  }
  #folder(path: string, syscall: string): Directory {
    const found = this.#find(path)
    if (found?.kind !== 'directory') throw failure('ENOENT', syscall, path)
    return found
  }
  #file(path: string, syscall: string): FileInode {
    const found = this.#find(path)
    if (found === undefined) throw failure('ENOENT', syscall, path)
    if (found.kind !== 'file') throw failure('EISDIR', syscall, path)
    return found
  }
  #change(folder: Directory, change: (names: Map<string, Inode>) => void): void {
    change(folder.names)
    folder.changes.push(change)
  }

  // ——— reading ———
  readFile(path: string): Buffer { return Buffer.from(this.#file(path, 'open').bytes) }
  names(path: string): string[] { return [...this.#folder(path, 'scandir').names.keys()].sort() }
  exists(path: string): boolean { return this.#find(path) !== undefined }
  stat(path: string): { size: number; isFile(): boolean; isDirectory(): boolean; mode: number } {
    const found = this.#find(path)
    if (found === undefined) throw failure('ENOENT', 'stat', path)
    return { size: found.kind === 'file' ? found.bytes.byteLength : 0, isFile: () => found.kind === 'file', isDirectory: () => found.kind === 'directory', mode: 0o600 }
  }
  /** The bytes behind a name as they are now: the same buffer as long as nothing is written. */
  peek(path: string): Buffer | undefined {
    const found = this.#find(path)
    return found?.kind === 'file' ? found.bytes : undefined
  }
  /** Reads on although the name goes. */
  handle(path: string): { read(into: Buffer, at: number, bytes: number, position: number): { bytesRead: number }; bytes(): Buffer } {
    const file = this.#file(path, 'open')
    return { bytes: () => file.bytes, read: (into, at, bytes, position) => ({ bytesRead: file.bytes.copy(into, at, position, position + bytes) }) }
  }

  // ——— what is durable at once: no test cuts it ———
  makeFolder(path: string): void {
    let at = this.#root
    for (const name of path.slice(ROOT.length).split('/')) {
      if (name === '') continue
      let next = at.names.get(name)
      if (next === undefined) {
        next = newDirectory()
        at.names.set(name, next)
        at.synced.set(name, next)
      }
      if (next.kind !== 'directory') throw failure('ENOTDIR', 'mkdir', path)
      at = next
    }
  }
  remove(path: string): void {
    const folder = this.#find(dirname(path))
    if (folder?.kind !== 'directory') return
    folder.names.delete(basename(path))
    folder.synced.delete(basename(path))
  }
  /** For damage: the disk itself rots. */
  overwrite(path: string, bytes: Buffer): void {
    const file = this.#file(path, 'open')
    file.bytes = file.synced = bytes
  }

  // ——— effects ———
  open(path: string, flags: string | number): number {
    const folder = this.#folder(dirname(path), 'open')
    const name = basename(path)
    let file = folder.names.get(name)
    const writes = typeof flags === 'string' && /^[wa]/.test(flags)
    if (file !== undefined && typeof flags === 'string' && flags.includes('x')) throw failure('EEXIST', 'open', path)
    if (file === undefined) {
      if (!writes) throw failure('ENOENT', 'open', path)
      const made: FileInode = { kind: 'file', bytes: Buffer.alloc(0), synced: undefined }
      this.#change(folder, (names) => names.set(name, made))
      file = made
    } else if (file.kind === 'file' && flags === 'w') file.bytes = Buffer.alloc(0)
    if (file.kind !== 'file') throw failure('EISDIR', 'open', path)
    const descriptor = this.#nextDescriptor++
    this.#open.set(descriptor, file)
    return descriptor
  }
  #opened(descriptor: number): FileInode {
    const file = this.#open.get(descriptor)
    if (file === undefined) throw failure('EBADF', 'write', String(descriptor))
    return file
  }
  write(descriptor: number, parts: readonly Uint8Array[], position: number | null): void {
    const file = this.#opened(descriptor)
    const added = Buffer.concat(parts)
    const at = position ?? file.bytes.byteLength
    const bytes = Buffer.alloc(Math.max(file.bytes.byteLength, at + added.byteLength))
    file.bytes.copy(bytes)
    added.copy(bytes, at)
    file.bytes = bytes
  }
  truncate(descriptor: number, bytes: number): void { const file = this.#opened(descriptor); file.bytes = Buffer.from(file.bytes.subarray(0, bytes)) }
  sync(descriptor: number): void { const file = this.#opened(descriptor); file.synced = file.bytes }
  close(descriptor: number): void { this.#opened(descriptor); this.#open.delete(descriptor) }
  rename(from: string, to: string): void {
    const source = this.#folder(dirname(from), 'rename'), target = this.#folder(dirname(to), 'rename')
    const moved = source.names.get(basename(from))
    if (moved === undefined) throw failure('ENOENT', 'rename', from)
    if (source !== target) throw failure('EXDEV', 'rename', from)
    this.#change(source, (names) => { names.delete(basename(from)); names.set(basename(to), moved) })
  }
  link(from: string, to: string): void {
    const file = this.#file(from, 'link'), folder = this.#folder(dirname(to), 'link')
    if (folder.names.has(basename(to))) throw failure('EEXIST', 'link', to)
    this.#change(folder, (names) => names.set(basename(to), file))
  }
  unlink(path: string): void {
    const folder = this.#folder(dirname(path), 'unlink')
    this.#file(path, 'unlink')
    this.#change(folder, (names) => names.delete(basename(path)))
  }
  mkdir(path: string): void {
    const folder = this.#folder(dirname(path), 'mkdir')
    if (folder.names.has(basename(path))) throw failure('EEXIST', 'mkdir', path)
    const made = newDirectory()
    this.#change(folder, (names) => names.set(basename(path), made))
  }
  syncFolder(path: string): void {
    const folder = this.#folder(path, 'fsync')
    folder.synced = new Map(folder.names)
    folder.changes = []
  }

  // ——— ends of processes ———
  processEnded(): void { this.#open.clear() }
  /** Of the changes of names, the first few of each directory made it to the disk; of a file's bytes, those that were synced, or all. */
  powerLost(random: SeededRandom): void {
    this.#open.clear()
    const visit = (folder: Directory): void => {
      const names = new Map(folder.synced)
      for (const change of folder.changes.slice(0, random.below(folder.changes.length + 1))) change(names)
      folder.names = names
      folder.synced = new Map(names)
      folder.changes = []
      for (const inode of names.values()) {
        if (inode.kind === 'directory') visit(inode)
        else {
          if (inode.synced !== inode.bytes && random.chance(0.7)) inode.bytes = inode.synced ?? Buffer.alloc(0)
          inode.synced = inode.bytes
        }
      }
    }
    visit(this.#root)
  }
  /** Everything durable, in a file system of its own. */
  clone(): MemoryFiles {
    const copy = new MemoryFiles()
    const copyFolder = (folder: Directory): Directory => {
      const names = new Map<string, Inode>()
      for (const [name, inode] of folder.names)
        names.set(name, inode.kind === 'directory' ? copyFolder(inode) : { kind: 'file', bytes: inode.bytes, synced: inode.bytes })
      return { kind: 'directory', names, synced: new Map(names), changes: [] }
    }
    copy.#root = copyFolder(this.#root)
    return copy
  }
}

export function memoryFileEffects(files: MemoryFiles): FileEffects {
  return {
    open: async (path, { flags }) => files.open(path, flags),
    write: async (fd, bytes, position) => { files.write(fd, [bytes], position) },
    truncate: async (fd, bytes) => { files.truncate(fd, bytes) },
    fsync: async (fd) => { files.sync(fd) },
    close: async (fd) => { files.close(fd) },
    rename: async (from, to) => { files.rename(from, to) },
    link: async (from, to) => { files.link(from, to) },
    unlink: async (path) => { files.unlink(path) },
    mkdir: async (path) => { files.mkdir(path) },
    fsyncDirectory: async (path) => { files.syncFolder(path) },
    openSync: (path, { flags }) => files.open(path, flags),
    writevSync: (fd, parts, position) => { files.write(fd, parts, position) },
    truncateSync: (fd, bytes) => { files.truncate(fd, bytes) },
    fsyncSync: (fd) => { files.sync(fd) },
    closeSync: (fd) => { files.close(fd) },
    renameSync: (from, to) => { files.rename(from, to) },
    linkSync: (from, to) => { files.link(from, to) },
    unlinkSync: (path) => { files.unlink(path) },
    mkdirSync: (path) => { files.mkdir(path) },
    fsyncDirectorySync: (path) => { files.syncFolder(path) },
  }
}

/** Whose files the process sees below ROOT. */
let mounted: MemoryFiles | undefined
let isPatched = false
export function mount(files: MemoryFiles): void {
  mounted = files
  if (isPatched) return
  isPatched = true
  const isOurs = (path: unknown): path is string => typeof path === 'string' && (path === ROOT || path.startsWith(`${ROOT}/`))
  const replace = <K extends keyof typeof filesModule>(name: K, ours: (path: string, ...rest: never[]) => unknown): void => {
    const theirs = filesModule[name] as (...args: unknown[]) => unknown
    ;(filesModule as unknown as Record<string, unknown>)[name] = (path: unknown, ...rest: unknown[]) =>
      isOurs(path) ? new Promise((resolve) => { resolve(ours(path, ...(rest as never[]))) }) : theirs(path, ...rest)
  }
  replace('readFile', (path: string, how: unknown) => {
    const bytes = mounted!.readFile(path)
    const encoding = typeof how === 'string' ? how : (how as { encoding?: BufferEncoding } | undefined)?.encoding
    return encoding === undefined || encoding === null ? bytes : bytes.toString(encoding as BufferEncoding)
  })
  replace('readdir', (path: string) => mounted!.names(path))
  replace('stat', (path: string) => mounted!.stat(path))
  replace('statfs', () => ({ bavail: 2 ** 30, bsize: 4096, blocks: 2 ** 30, bfree: 2 ** 30, type: 0, files: 0, ffree: 0 }))
  replace('mkdir', (path: string) => { mounted!.makeFolder(path) })
  replace('rm', (path: string) => { mounted!.remove(path) })
  replace('rename', (from: string, to: string) => { mounted!.rename(from, to); mounted!.syncFolder(dirname(to)) })
  replace('open', (path: string) => {
    const handle = mounted!.handle(path)
    return { read: async (into: Buffer, at: number, bytes: number, position: number) => handle.read(into, at, bytes, position),
      stat: async () => mounted!.stat(path), readFile: async () => Buffer.from(handle.bytes()), close: async () => undefined }
  })
  const theirStream = fs.createReadStream
  ;(fs as unknown as Record<string, unknown>)['createReadStream'] = (path: fs.PathLike, how?: unknown) => {
    if (!isOurs(path)) return theirStream(path, how as never)
    // Opened when first read, as the real one is.
    return Readable.from((function* () { yield mounted!.readFile(path) })(), { objectMode: false })
  }
  syncBuiltinESMExports()
}
