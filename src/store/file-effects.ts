/** Every change that Roost makes to a local file system, as a list of named steps behind one small object.
 *
 *  Why: durability is an order of effects (write → fsync → rename → fsync of the directory). Behind a port, a crash
 *  test can count the steps of an operation and cut it before, in the middle of and after each of them
 *  (test/support/cut-effects.ts). Reading is no effect: readers use node:fs directly.
 *  Descriptors are plain numbers in both variants; errors are those of node:fs, untranslated.
 */
import * as fs from 'node:fs'
import { promisify } from 'node:util'

/** The names under which a crash test counts and cuts. A sync variant is the same step as its async twin. */
export const FILE_STEPS = [
  'open', 'write', 'truncate', 'fsync', 'close', 'rename', 'link', 'unlink', 'mkdir', 'fsync-directory',
] as const
export type FileStep = (typeof FILE_STEPS)[number]

export interface OpenMode { readonly flags: string | number; readonly mode?: number }

export interface FileEffects {
  open(path: string, how: OpenMode): Promise<number>
  /** Writes all bytes, at `position` or (null) where the descriptor stands. */
  write(fd: number, bytes: Uint8Array, position: number | null): Promise<void>
  truncate(fd: number, bytes: number): Promise<void>
  fsync(fd: number): Promise<void>
  close(fd: number): Promise<void>
  /** Replaces `to`. */
  rename(from: string, to: string): Promise<void>
  /** EEXIST when `to` exists. */
  link(from: string, to: string): Promise<void>
  unlink(path: string): Promise<void>
  /** One level; EEXIST when it exists. */
  mkdir(path: string, mode: number): Promise<void>
  /** Makes created, renamed and removed names in this directory durable. */
  fsyncDirectory(path: string): Promise<void>

  openSync(path: string, how: OpenMode): number
  /** Writes all bytes of all parts, in order. */
  writevSync(fd: number, parts: readonly Uint8Array[], position: number | null): void
  truncateSync(fd: number, bytes: number): void
  fsyncSync(fd: number): void
  closeSync(fd: number): void
  renameSync(from: string, to: string): void
  linkSync(from: string, to: string): void
  unlinkSync(path: string): void
  mkdirSync(path: string, mode: number): void
  fsyncDirectorySync(path: string): void
}

const openFile = promisify(fs.open)
const closeFile = promisify(fs.close)
const syncFile = promisify(fs.fsync)
const truncateFile = promisify(fs.ftruncate)
const writeSome = promisify(fs.write)
const DIRECTORY: OpenMode = { flags: fs.constants.O_RDONLY | fs.constants.O_DIRECTORY }
const FILE_MODE_DEFAULT = 0o600
/** Parts of one writev: the kernel's IOV_MAX. */
const WRITEV_PARTS_MAX = 1024

export const nodeFileEffects: FileEffects = {
  open: (path, { flags, mode = FILE_MODE_DEFAULT }) => openFile(path, flags, mode),
  write: writeAll,
  truncate: (fd, bytes) => truncateFile(fd, bytes),
  fsync: (fd) => syncFile(fd),
  close: (fd) => closeFile(fd),
  rename: (from, to) => fs.promises.rename(from, to),
  link: (from, to) => fs.promises.link(from, to),
  unlink: (path) => fs.promises.unlink(path),
  mkdir: (path, mode) => fs.promises.mkdir(path, { mode }).then(() => undefined),
  fsyncDirectory: async (path) => {
    const fd = await openFile(path, DIRECTORY.flags)
    try { await syncFile(fd) } finally { await closeFile(fd) }
  },

  openSync: (path, { flags, mode = FILE_MODE_DEFAULT }) => fs.openSync(path, flags, mode),
  writevSync: writevAllSync,
  truncateSync: (fd, bytes) => { fs.ftruncateSync(fd, bytes) },
  fsyncSync: (fd) => { fs.fsyncSync(fd) },
  closeSync: (fd) => { fs.closeSync(fd) },
  renameSync: (from, to) => { fs.renameSync(from, to) },
  linkSync: (from, to) => { fs.linkSync(from, to) },
  unlinkSync: (path) => { fs.unlinkSync(path) },
  mkdirSync: (path, mode) => { fs.mkdirSync(path, { mode }) },
  fsyncDirectorySync: (path) => {
    const fd = fs.openSync(path, DIRECTORY.flags)
    try { fs.fsyncSync(fd) } finally { fs.closeSync(fd) }
  },
}

async function writeAll(fd: number, bytes: Uint8Array, position: number | null): Promise<void> {
  let done = 0
  while (done < bytes.byteLength) {
    const at = position === null ? null : position + done
    done += (await writeSome(fd, bytes, done, bytes.byteLength - done, at)).bytesWritten
  }
}

function writevAllSync(fd: number, parts: readonly Uint8Array[], position: number | null): void {
  let at = position
  for (let first = 0; first < parts.length; first += WRITEV_PARTS_MAX) {
    let rest = parts.slice(first, first + WRITEV_PARTS_MAX)
    while (rest.length > 0) {
      const written = fs.writevSync(fd, rest, at ?? undefined)
      if (at !== null) at += written
      rest = dropBytes(rest, written)
    }
  }
}

function dropBytes(parts: readonly Uint8Array[], bytes: number): Uint8Array[] {
  let index = 0
  let rest = bytes
  while (index < parts.length && rest >= parts[index]!.byteLength) rest -= parts[index++]!.byteLength
  const kept = parts.slice(index)
  if (rest > 0) kept[0] = kept[0]!.subarray(rest)
  return kept
}
