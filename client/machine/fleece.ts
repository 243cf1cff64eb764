/** Where the old content of blocks goes that the guest writes while we read: one sparse file a disk, in a private directory.
 *
 *  The files are unlinked as soon as QEMU has opened them, so nothing is left on the disk whoever dies. We keep them open to see how full they get:
 *  a fleece may cost the backup, never the file system that holds it.
 */
import { chmodSync, chownSync, closeSync, fstatSync, ftruncateSync, mkdtempSync, openSync, rmSync, statfsSync, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'

export interface FleeceOptions {
  readonly directory: string
  /** Of all files together; without it, half of what is free when the run begins. */
  readonly bytesMax?: number
  /** As whom QEMU runs, where we may give it files. */
  readonly owner?: { readonly uid: number; readonly gid: number }
}
interface FleeceFile { readonly path: string; readonly fd: number; isLinked: boolean }

export class Fleece {
  readonly #files: FleeceFile[] = []
  readonly directory: string
  readonly bytesMax: number
  constructor(readonly options: FleeceOptions) {
    try {
      this.directory = mkdtempSync(join(options.directory, 'roost-vm-'))
      const { bavail, bsize } = statfsSync(this.directory)
      this.bytesMax = Math.min(options.bytesMax ?? Number.MAX_SAFE_INTEGER, Math.floor(bavail * bsize / 2))
      this.#giveToQemu(this.directory)
    } catch (error) {
      if (!isErrno(error)) throw error
      throw new ClientError('FLEECE_FAILED', `No directory for the fleece can be made in ${options.directory}.`, { cause: error })
    }
  }
  get socketPath(): string { return join(this.directory, 'nbd.sock') }
  /** Disk space that all files take. */
  get bytesUsed(): number { return this.#files.reduce((sum, { fd }) => sum + fstatSync(fd).blocks * 512, 0) }

  /** An empty file of the disk's length, for QEMU to open. @throws {ClientError} FLEECE_FAILED */
  addFile(bytes: number): string {
    const path = join(this.directory, `disk${this.#files.length}`)
    try {
      const fd = openSync(path, 'wx', 0o600)
      this.#files.push({ path, fd, isLinked: true })
      ftruncateSync(fd, bytes)
      this.#giveToQemu(path)
    } catch (error) {
      if (!isErrno(error)) throw error
      throw new ClientError('FLEECE_FAILED', `The fleece ${path} (${bytes} bytes, sparse) cannot be made.`, { cause: error })
    }
    return path
  }
  /** QEMU has them open: their names go. */
  unlinkFiles(): void {
    for (const file of this.#files) {
      if (file.isLinked) unlinkSync(file.path)
      file.isLinked = false
    }
  }
  /** Undefined, or why the run must end. */
  problem(): string | undefined {
    const used = this.bytesUsed
    if (used > this.bytesMax) return `The guest wrote over more than ${this.bytesMax} bytes while it was read: the fleece is at its limit.`
    const { bavail, bsize } = statfsSync(this.directory)
    return bavail * bsize < FREE_BYTES_MIN && used > 0 ? `The file system of the fleece (${this.options.directory}) is full.` : undefined
  }
  /** Idempotent. */
  remove(): void {
    for (const { fd } of this.#files.splice(0)) closeSync(fd)
    rmSync(this.directory, { recursive: true, force: true })
  }
  #giveToQemu(path: string): void {
    const { owner } = this.options
    if (owner === undefined || process.getuid?.() !== 0 || owner.uid === 0) return
    chownSync(path, owner.uid, owner.gid)
    chmodSync(path, path === this.directory ? 0o700 : 0o600)
  }
}
/** Below it others on the file system are in need, too. */
const FREE_BYTES_MIN = 4 * 1024 * 1024
