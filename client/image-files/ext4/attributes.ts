/** Extended attributes of an inode, those within it and those of its block, under the names that Linux gives them; ACLs in the form that setxattr takes. */
import type { Xattr } from '../../tree/entry.js'
import { unreadable } from '../byte-window.js'

const MAGIC = 0xea02_0000
const ENTRY_BYTES = 16
const BLOCK_HEADER_BYTES = 32
const PREFIXES: Readonly<Record<number, string>> = { 0: '', 1: 'user.', 2: 'system.posix_acl_access', 3: 'system.posix_acl_default', 4: 'trusted.', 6: 'security.', 7: 'system.' }
const ACL_INDEXES = new Set([2, 3])
/** Of inline data: no attribute of the file's. */
export const INLINE_NAME = Buffer.from('system.data')

/** From the area after the inode's fields. @throws {ClientError} IMAGE_UNREADABLE */
export function inodeAttributes(area: Buffer): Xattr[] {
  return area.byteLength < 8 || area.readUInt32LE(0) !== MAGIC ? [] : entries(area, 4, 4)
}
export function blockAttributes(block: Buffer): Xattr[] {
  if (block.readUInt32LE(0) !== MAGIC) throw unreadable('A block of extended attributes is damaged.')
  return entries(block, BLOCK_HEADER_BYTES, 0)
}
/** `valuesFrom`: where offsets of values count from. */
function entries(area: Buffer, first: number, valuesFrom: number): Xattr[] {
  const found: Xattr[] = []
  for (let at = first; at + 4 <= area.byteLength && area.readUInt32LE(at) !== 0;) {
    if (at + ENTRY_BYTES > area.byteLength) throw unreadable('Extended attributes are damaged.')
    const [nameBytes, index, valueAt, valueInode, valueBytes] = [area[at]!, area[at + 1]!, area.readUInt16LE(at + 2), area.readUInt32LE(at + 4), area.readUInt32LE(at + 8)]
    const from = valuesFrom + valueAt
    if (at + ENTRY_BYTES + nameBytes > area.byteLength || valueInode === 0 && from + valueBytes > area.byteLength) throw unreadable('Extended attributes are damaged.')
    const prefix = PREFIXES[index]
    // A value in an inode of its own (ea_inode), or a namespace that nobody may set, is left out.
    if (prefix !== undefined && valueInode === 0) {
      const raw = Buffer.from(area.subarray(from, from + valueBytes))
      const value = ACL_INDEXES.has(index) ? aclValue(raw) : raw
      const name = Buffer.concat([Buffer.from(prefix), area.subarray(at + ENTRY_BYTES, at + ENTRY_BYTES + nameBytes)])
      if (value !== undefined && name.byteLength > 0 && !name.includes(0)) found.push({ name, value })
    }
    at += ENTRY_BYTES + Math.ceil(nameBytes / 4) * 4
  }
  return found
}
const ACL_USER = 2, ACL_GROUP = 8
/** On disk an entry has an id only where it means somebody; for setxattr each has one. */
function aclValue(raw: Buffer): Buffer | undefined {
  if (raw.byteLength < 4 || raw.readUInt32LE(0) !== 1) return undefined
  const parts = [Buffer.from([2, 0, 0, 0])]
  for (let at = 4; at + 4 <= raw.byteLength;) {
    const hasId = [ACL_USER, ACL_GROUP].includes(raw.readUInt16LE(at))
    if (hasId && at + 8 > raw.byteLength) return undefined
    const entry = Buffer.alloc(8, 0xff)
    raw.copy(entry, 0, at, at + (hasId ? 8 : 4))
    parts.push(entry)
    at += hasId ? 8 : 4
  }
  return Buffer.concat(parts)
}
