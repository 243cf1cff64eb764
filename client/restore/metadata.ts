/** Gives what was restored its owner, mode, extended attributes, ACLs and times, in the one order in which none undoes another.
 *
 *  owner → attributes → mode → ACLs → time: chown clears set-uid bits and capabilities; user attributes need a writable
 *  mode; an ACL has the last word on the group's bits; everything but the time changes no time that counts.
 *  An ordinary user cannot give files away: owners are then left, once reported, never a failure; a set-uid bit is
 *  then dropped rather than handed to another owner.
 */
import {
  chmodSync, closeSync, constants, fchmodSync, fchownSync, fstatSync, lchownSync, openSync, type Stats,
} from 'node:fs'
import { isErrno } from '../../src/core/errors.js'
import { fgetxattrs, fsetxattr, futimensNs, groupNumber, lsetxattr, userNumber, utimensNs } from '../native/posix.js'
import { ENTRY_TYPES, type Entry, type Xattr } from '../tree/entry.js'

const SET_UID = 0o4000
const SET_GID = 0o2000
const O_PATH = 0o10_000_000
const ACL_ACCESS_NAME = Buffer.from('system.posix_acl_access')
const ACL_DEFAULT_NAME = Buffer.from('system.posix_acl_default')
/** Version 2 and no entries: the kernel takes it as "no ACL". */
const ACL_OF_NOTHING = Buffer.from([2, 0, 0, 0])

export interface MetadataOptions {
  /** By default owners are restored by number when root, else groups of ours only. */
  readonly owners: 'numeric' | 'by-name' | 'none'
  readonly xattrs: boolean
}
export interface MetadataReport {
  /** An attribute that could not be set; the rest was. */
  metadataProblem(error: unknown, what: string): void
  /** Not root: an owner, a group or an attribute that only root may set was left. */
  privilegeLacked(): void
}

export class MetadataWriter {
  readonly #uid = process.geteuid?.() ?? -1
  readonly #gid = process.getegid?.() ?? -1
  readonly #groups = new Set(process.getgroups?.() ?? [])
  constructor(readonly options: MetadataOptions, readonly report: MetadataReport) {}
  get isRoot(): boolean { return this.#uid === 0 }

  /** For a regular file or a directory, open. `isNew`: it has the owner that we create with, and no attributes. */
  apply(fd: number, entry: Entry, isNew: boolean): void {
    const kept = this.#chown(entry, isNew ? undefined : fstatSync(fd), (uid, gid) => { fchownSync(fd, uid, gid) })
    const attributes = entry.xattrs.length > 0 && this.options.xattrs
    if (attributes) this.#setXattrs(entry, (xattr) => !isAcl(xattr), (name, value) => { fsetxattr(fd, name, value) })
    fchmodSync(fd, entry.mode & kept)
    if (attributes) this.#setXattrs(entry, isAcl, (name, value) => { fsetxattr(fd, name, value) })
    futimensNs(fd, entry.mtimeNs)
  }
  /** For symlinks, fifos, devices and sockets, just made, by a path whose last name is never followed. */
  applyByPath(path: Buffer, entry: Entry): void {
    const kept = this.#chown(entry, undefined, (uid, gid) => { lchownSync(path, uid, gid) })
    const set = (name: Buffer, value: Buffer): void => { lsetxattr(path, name, value) }
    if (entry.xattrs.length > 0 && this.options.xattrs) this.#setXattrs(entry, (xattr) => !isAcl(xattr), set)
    if (entry.type !== ENTRY_TYPES.symlink) {
      chmodNotFollowing(path, entry.mode & kept)
      if (entry.xattrs.length > 0 && this.options.xattrs) this.#setXattrs(entry, isAcl, set)
    }
    utimensNs(path, 'omit', entry.mtimeNs)
  }
  /** Default ACLs of a directory that was there before would spread to what is made in it. */
  hasDefaultAcl(fd: number): boolean {
    return fgetxattrs(fd).some(({ name }) => name.equals(ACL_DEFAULT_NAME))
  }
  dropDefaultAcl(fd: number): void { fsetxattr(fd, ACL_DEFAULT_NAME, ACL_OF_NOTHING) }
  /** What was made below a directory with a default ACL got ACLs that the snapshot does not know. */
  dropInheritedAcls(fd: number, entry: Entry): void {
    fsetxattr(fd, ACL_ACCESS_NAME, ACL_OF_NOTHING)
    if (entry.type === ENTRY_TYPES.directory) this.dropDefaultAcl(fd)
  }

  /** Returns the mode bits that may be set: all, unless a set-id bit would be of another owner. */
  #chown(entry: Entry, now: Stats | undefined, chown: (uid: number, gid: number) => void): number {
    const wanted = this.#wantedOwner(entry)
    if (wanted === undefined) return this.#setIdMask(entry, this.#uid, this.#gid)
    const { uid, gid } = wanted
    if (this.isRoot) {
      if (now === undefined || now.uid !== uid || now.gid !== gid) chown(uid, gid)
      return 0o7777
    }
    const mayOwn = uid === this.#uid
    const mayGroup = gid === this.#gid || this.#groups.has(gid)
    if (!mayOwn || !mayGroup) this.report.privilegeLacked()
    if (mayGroup && (now === undefined ? gid !== this.#gid : now.gid !== gid)) {
      try { chown(-1, gid) } catch (error) { this.report.metadataProblem(error, 'group') }
    }
    return this.#setIdMask({ uid: entry.uid, gid }, this.#uid, mayGroup ? gid : this.#gid)
  }
  #setIdMask(entry: { uid: number; gid: number }, uid: number, gid: number): number {
    return 0o7777 & ~(entry.uid === uid ? 0 : SET_UID) & ~(entry.gid === gid ? 0 : SET_GID)
  }
  #wantedOwner(entry: Entry): { uid: number; gid: number } | undefined {
    switch (this.options.owners) {
      case 'none': return undefined
      case 'numeric': return entry
      case 'by-name': return {
        uid: (entry.user === '' ? undefined : userNumber(entry.user)) ?? entry.uid,
        gid: (entry.group === '' ? undefined : groupNumber(entry.group)) ?? entry.gid,
      }
    }
  }
  #setXattrs(entry: Entry, selects: (xattr: Xattr) => boolean, set: (name: Buffer, value: Buffer) => void): void {
    for (const xattr of entry.xattrs) {
      if (!selects(xattr)) continue
      try {
        set(xattr.name, xattr.value)
      } catch (error) {
        if (!isErrno(error)) throw error
        const name = xattr.name.toString('utf8')
        if (!this.isRoot && isErrno(error, 'EPERM') && /^(?:security|trusted)\./.test(name)) this.report.privilegeLacked()
        else this.report.metadataProblem(error, `attribute ${name}`)
      }
    }
  }
}

const isAcl = ({ name }: Xattr): boolean => name.equals(ACL_ACCESS_NAME) || name.equals(ACL_DEFAULT_NAME)

/** chmod follows symlinks, and a name can be exchanged for one at any time; a descriptor cannot. */
function chmodNotFollowing(path: Buffer, mode: number): void {
  const fd = openSync(path, O_PATH | constants.O_NOFOLLOW)
  try {
    if (fstatSync(fd).isSymbolicLink()) throw Object.assign(new Error('ELOOP: exchanged for a symlink'), { code: 'ELOOP' })
    chmodSync(`/proc/self/fd/${fd}`, mode)
  } finally { closeSync(fd) }
}
