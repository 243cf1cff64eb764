/** What lstat tells, as an entry. */
import type { BigIntStats } from 'node:fs'
import { ENTRY_TYPES, type Entry, type EntryType, type Xattr } from '../tree/entry.js'
import { NAME_BYTES_MAX, TIME_SECONDS_MAX } from '../tree/entry-codec.js'
import { deviceMajor, deviceMinor, groupName, userName } from '../native/posix.js'

const S_IFMT = 0o170000
const TYPES: Readonly<Record<number, EntryType>> = {
  0o100000: ENTRY_TYPES.file, 0o040000: ENTRY_TYPES.directory, 0o120000: ENTRY_TYPES.symlink, 0o010000: ENTRY_TYPES.fifo,
  0o020000: ENTRY_TYPES.characterDevice, 0o060000: ENTRY_TYPES.blockDevice, 0o140000: ENTRY_TYPES.socket,
}
const TIME_NS_MAX = BigInt(TIME_SECONDS_MAX) * 1_000_000_000n

/** undefined: a kind of file that Linux did not have when this was written. */
export function entryType(stat: BigIntStats): EntryType | undefined { return TYPES[Number(stat.mode) & S_IFMT] }

/** All but what depends on the type: content, subtree and symlink target are added by who reads them. */
export function statEntry(name: Buffer, type: EntryType, stat: BigIntStats, xattrs: readonly Xattr[]): Entry {
  const uid = Number(stat.uid)
  const gid = Number(stat.gid)
  const isDevice = type === ENTRY_TYPES.characterDevice || type === ENTRY_TYPES.blockDevice
  return {
    name, type, mode: Number(stat.mode) & 0o7777, uid, gid, user: ownerName(uid), group: ownerGroup(gid),
    mtimeNs: clampTime(stat.mtimeNs), ctimeNs: clampTime(stat.ctimeNs), inode: stat.ino, device: stat.dev,
    linkCount: Math.min(Number(stat.nlink), 0xffff_ffff), xattrs,
    ...(isDevice ? { deviceMajor: deviceMajor(stat.rdev), deviceMinor: deviceMinor(stat.rdev) } : undefined),
  }
}

/** '' where the host knows none, or none that an entry can hold. */
export const ownerName = (uid: number): string => fitting(userName(uid))
export const ownerGroup = (gid: number): string => fitting(groupName(gid))
function fitting(name: string): string { return Buffer.byteLength(name) <= NAME_BYTES_MAX ? name : '' }

/** True when nothing that a backup saves can have changed since `former` was saved: ctime moves with every change of content
 *  or metadata, and cannot be set. `racyFromNs`: what was touched at or after it may have changed again within the same tick
 *  of the file system's clock. */
export function isUnchanged(former: Entry, type: EntryType, stat: BigIntStats, racyFromNs: bigint): boolean {
  return former.type === type && former.inode === stat.ino && former.mtimeNs === stat.mtimeNs && former.ctimeNs === stat.ctimeNs &&
    former.device === stat.dev && stat.ctimeNs < racyFromNs && stat.mtimeNs < racyFromNs &&
    (former.content === undefined || BigInt(former.content.bytes) === stat.size)
}

/** Corrupt file systems hold times that no calendar has. */
function clampTime(ns: bigint): bigint {
  return ns > TIME_NS_MAX ? TIME_NS_MAX : ns < -TIME_NS_MAX ? -TIME_NS_MAX : ns
}
