/** Directories of a restore's destination, reached only through open descriptors.
 *
 *  Every step from the destination downwards opens one name with O_NOFOLLOW | O_DIRECTORY below the descriptor of its
 *  parent (`/proc/self/fd/N/name`), so no symlink that lies in the destination, and none that a racing process puts there,
 *  leads outside; and no path is ever longer than one name, however deep the tree. A directory whose descriptor was given
 *  back is opened again the same way and must be the same directory (device and inode).
 *
 *  Lifetime: `hold()` before work that ends later, `release()` after; when nothing holds a directory any more its metadata
 *  is set — after all its children, since they change its times — and its parent is released.
 */
import { chmodSync, closeSync, constants, fstatSync, mkdirSync, openSync, unlinkSync } from 'node:fs'
import { assert } from '../../src/core/assert.js'
import { isErrno } from '../../src/core/errors.js'
import type { Entry } from '../tree/entry.js'

const OPEN_DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
/** Linux's O_PATH: enough to go through, where reading is not allowed. */
const O_PATH = 0o10_000_000
const PRIVATE_MODE = 0o700
const SLASH = Buffer.from('/')

/** What a directory needs of the restore that it belongs to. */
export interface DirectoryHost {
  readonly descriptors: DirectoryDescriptors
  /** False: what is in the way of a directory stays, and the subtree is left out. */
  readonly replacesFiles: boolean
  /** Called for a directory that was there before, once, when it is first used. */
  directoryEntered(directory: TargetDirectory): void
  /** Everything below is done. */
  directoryDone(directory: TargetDirectory): void
  directoryFailed(directory: TargetDirectory, error: unknown): void
}

export class TargetDirectory {
  /** Made by this restore, so nothing of others lies in it. */
  isFresh = false
  #state: 'planned' | 'ready' | 'failed' = 'planned'
  #holds = 1
  fd = -1
  #device = 0
  #inode = 0

  /** `entry`: its name and metadata; undefined for the destination itself when the snapshot says nothing of it. */
  constructor(readonly host: DirectoryHost, readonly parent: TargetDirectory | undefined, readonly entry: Entry | undefined,
    readonly depth: number) {
    parent?.hold()
  }
  get isReady(): boolean { return this.#state === 'ready' }

  /** Takes the destination, already opened, as the top. */
  static top(host: DirectoryHost, fd: number, entry: Entry | undefined, isFresh: boolean): TargetDirectory {
    const top = new TargetDirectory(host, undefined, entry, 0)
    top.isFresh = isFresh
    top.#accept(fd)
    return top
  }

  hold(): void { this.#holds++ }
  release(): void {
    for (let at: TargetDirectory | undefined = this; at !== undefined; at = at.parent) {
      assert(at.#holds > 0, 'a directory is released as often as it is held')
      if (--at.#holds > 0) return
      if (at.#state === 'ready') at.host.directoryDone(at)
      at.close()
    }
  }
  close(): void {
    if (this.fd < 0) return
    this.host.descriptors.forget(this)
    closeSync(this.fd)
    this.fd = -1
  }

  /** Makes the directory (and those above) unless it is there; false when it cannot be: that was reported, once. */
  ensure(): boolean {
    if (this.#state !== 'planned') return this.#state === 'ready'
    const chain: TargetDirectory[] = []
    for (let at: TargetDirectory | undefined = this; at !== undefined && at.#state === 'planned'; at = at.parent) chain.push(at)
    for (let at = chain.pop(); at !== undefined; at = chain.pop()) at.#make()
    return this.isReady
  }
  /** The path of `name` in this directory, good for one system call made at once. */
  pathOf(name: Buffer): Buffer {
    return Buffer.concat([this.path(), SLASH, name])
  }
  /** `/proc/self/fd/N` of the open directory. @throws errno exceptions when it is gone or was exchanged */
  path(): Buffer {
    if (this.fd >= 0) this.host.descriptors.touch(this)
    else this.#reopen()
    return Buffer.from(`/proc/self/fd/${this.fd}`, 'latin1')
  }
  /** Names from the destination down to here. */
  names(): Buffer[] {
    const names: Buffer[] = []
    for (let at: TargetDirectory | undefined = this; at?.parent !== undefined; at = at.parent) names.push(at.entry!.name)
    return names.reverse()
  }

  #make(): void {
    assert(this.parent !== undefined && this.entry !== undefined, 'the top is always ready')
    if (!this.parent.isReady) { this.#state = 'failed'; return } // reported for the parent
    try {
      const path = this.parent.pathOf(this.entry.name)
      this.isFresh = this.#tryMake(path)
      this.#accept(this.#openExisting(path))
    } catch (error) {
      this.#state = 'failed'
      this.host.directoryFailed(this, error)
      return
    }
    if (!this.isFresh) this.host.directoryEntered(this)
  }
  /** True when it was made; false when a directory is there. */
  #tryMake(path: Buffer): boolean {
    try {
      mkdirSync(path, PRIVATE_MODE)
      return true
    } catch (error) {
      if (!isErrno(error, 'EEXIST')) throw error
    }
    try {
      closeSync(openSync(path, O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW))
      return false
    } catch (error) {
      if (!this.host.replacesFiles || !(isErrno(error, 'ENOTDIR') || isErrno(error, 'ELOOP'))) throw error
    }
    unlinkSync(path) // a file or symlink in the way; the symlink itself goes, not where it leads
    mkdirSync(path, PRIVATE_MODE)
    return true
  }
  #openExisting(path: Buffer): number {
    try {
      return openSync(path, OPEN_DIRECTORY)
    } catch (error) {
      if (!isErrno(error, 'EACCES')) throw error
    }
    // Ours, but closed to us by its own mode (an ordinary user's earlier restore). Through O_PATH, chmod cannot be led astray.
    const handle = openSync(path, O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW)
    try {
      const stat = fstatSync(handle)
      chmodSync(`/proc/self/fd/${handle}`, (stat.mode & 0o7777) | PRIVATE_MODE)
    } finally { closeSync(handle) }
    return openSync(path, OPEN_DIRECTORY)
  }
  #accept(fd: number): void {
    const { dev, ino } = fstatSync(fd)
    this.#device = dev
    this.#inode = ino
    this.fd = fd
    this.#state = 'ready'
    this.host.descriptors.opened(this)
  }
  /** Opens this directory again, and before it those above that are closed; downwards, each below its parent. */
  #reopen(): void {
    const chain: TargetDirectory[] = []
    for (let at: TargetDirectory | undefined = this; at !== undefined && at.fd < 0; at = at.parent) chain.push(at)
    for (let at = chain.pop(); at !== undefined; at = chain.pop()) {
      assert(at.parent !== undefined && at.entry !== undefined, 'the top stays open')
      const fd = openSync(Buffer.from(`/proc/self/fd/${at.parent.fd}/${at.entry.name.toString('latin1')}`, 'latin1'), OPEN_DIRECTORY)
      const { dev, ino } = fstatSync(fd)
      if (dev !== at.#device || ino !== at.#inode) {
        closeSync(fd)
        throw Object.assign(new Error('ESTALE: the directory was exchanged while restoring into it'), { code: 'ESTALE' })
      }
      at.fd = fd
      at.host.descriptors.opened(at)
    }
  }
}

/** Bounds the open directories: the least recently used gives its descriptor back. The top keeps its own. */
export class DirectoryDescriptors {
  readonly #open = new Set<TargetDirectory>()
  #latest: TargetDirectory | undefined
  constructor(readonly openMax = 256) { assert(openMax >= 2, 'a directory and its parent') }
  opened(directory: TargetDirectory): void {
    if (directory.parent === undefined) return
    this.#open.add(directory)
    this.#latest = directory
    if (this.#open.size <= this.openMax) return
    for (const oldest of this.#open) {
      oldest.close()
      return
    }
  }
  touch(directory: TargetDirectory): void {
    if (directory === this.#latest || directory.parent === undefined) return
    this.#latest = directory
    this.#open.delete(directory)
    this.#open.add(directory)
  }
  closeAll(): void { for (const directory of [...this.#open]) directory.close() }
  forget(directory: TargetDirectory): void {
    this.#open.delete(directory)
    if (this.#latest === directory) this.#latest = undefined
  }
}
