/** Where the old content of blocks goes that the guest writes while we read: one sparse file a disk, in a private directory.
 *
 *  The files are unlinked as soon as QEMU has opened them, so nothing is left on the disk whoever dies. We keep them open to see how full they get:
 *  a fleece may cost the backup, never the file system that holds it.
 *
 *  As root we hand directory and files to the user of QEMU, who may have been taken over by its guest. So the files are made first, owners are changed
 *  by descriptor, nothing is made in the directory once it is another's, and it is emptied by known names: no link of theirs leads us anywhere.
 */
import { closeSync, constants, fchownSync, fstatSync, ftruncateSync, mkdtempSync, openSync, rmdirSync, statfsSync, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'

export interface FleeceOptions {
  readonly directory: string
  /** Of the disks, in order: a file each. */
  readonly diskBytes: readonly number[]
  /** Of all files together; without it, half of what is free when the run begins. */
  readonly bytesMax?: number
  /** As whom QEMU runs, where we may give it files. */
  readonly owner?: { readonly uid: number; readonly gid: number }
}
/** Below it others on the file system are in need, too. */
const FREE_BYTES_MIN = 4 * 1024 * 1024
const fileIn = (directory: string, disk: number): string => join(directory, `disk${disk}`)
const socketIn = (directory: string): string => join(directory, 'nbd.sock')

export class Fleece {
  readonly #fds: number[] = []
  readonly directory: string
  readonly bytesMax: number
  /** @throws {ClientError} FLEECE_FAILED */
  constructor(readonly options: FleeceOptions) {
    let directory: string | undefined
    try {
      directory = this.directory = mkdtempSync(join(options.directory, 'roost-vm-'))
      const { bavail, bsize } = statfsSync(directory)
      this.bytesMax = Math.min(options.bytesMax ?? Number.MAX_SAFE_INTEGER, Math.floor(bavail * bsize / 2))
      for (const [disk, bytes] of options.diskBytes.entries()) {
        const fd = openSync(fileIn(directory, disk), 'wx', 0o600)
        this.#fds.push(fd)
        ftruncateSync(fd, bytes)
        this.#giveToQemu(fd)
      }
      const fd = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
      try { this.#giveToQemu(fd) } finally { closeSync(fd) }
    } catch (error) {
      if (directory !== undefined) this.remove()
      if (!isErrno(error)) throw error
      throw new ClientError('FLEECE_FAILED', `Room for the fleece (sparse files as long as the disks) cannot be made in ${options.directory}.`, { cause: error })
    }
  }
  get socketPath(): string { return socketIn(this.directory) }
  filePath(disk: number): string { return fileIn(this.directory, disk) }
  /** Disk space that all files take. */
  get bytesUsed(): number { return this.#fds.reduce((sum, fd) => sum + fstatSync(fd).blocks * 512, 0) }

  /** QEMU has them open: their names go. */
  unlinkFiles(): void { for (const disk of this.#fds.keys()) unlinkQuietly(fileIn(this.directory, disk)) }
  /** Undefined, or why the run must end. */
  problem(): string | undefined {
    const used = this.bytesUsed
    if (used > this.bytesMax) return `The guest wrote over more than ${this.bytesMax} bytes while it was read: the fleece is at its limit.`
    const { bavail, bsize } = statfsSync(this.options.directory)
    return bavail * bsize < FREE_BYTES_MIN && used > 0 ? `The file system of the fleece (${this.options.directory}) is full.` : undefined
  }
  /** Idempotent. */
  remove(): void {
    const count = this.#fds.length
    for (const fd of this.#fds.splice(0)) closeSync(fd)
    removeFleeceDirectory(this.directory, count)
  }
  #giveToQemu(fd: number): void {
    const { owner } = this.options
    if (owner !== undefined && process.getuid?.() === 0 && owner.uid !== 0) fchownSync(fd, owner.uid, owner.gid)
  }
}

/** Idempotent; for the watchdog, too. Something that is not ours in it keeps the directory. */
export function removeFleeceDirectory(directory: string, disks: number): void {
  unlinkQuietly(socketIn(directory))
  for (let disk = 0; disk < disks; disk++) unlinkQuietly(fileIn(directory, disk))
  try {
    rmdirSync(directory)
  } catch (error) {
    if (!isErrno(error)) throw error // it is gone, or not empty
  }
}
function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path)
  } catch (error) {
    if (!isErrno(error)) throw error // it is gone; what cannot be removed keeps the directory
  }
}
