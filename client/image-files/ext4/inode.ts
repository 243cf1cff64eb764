/** One inode of ext2, ext3 and ext4: decoding alone. */
import { ENTRY_TYPES, type EntryType } from '../../tree/entry.js'
import { unreadable } from '../byte-window.js'

export const INODE_FLAGS = { compressed: 0x4, encrypted: 0x800, attributeValue: 0x20_0000, extents: 0x8_0000, inlineData: 0x1000_0000 } as const
/** Where block numbers, extents, short symlinks and inline data are. */
export const BLOCK_AREA_BYTES = 60
const TYPES: Readonly<Record<number, EntryType>> = {
  0o10: ENTRY_TYPES.file, 0o04: ENTRY_TYPES.directory, 0o12: ENTRY_TYPES.symlink, 0o01: ENTRY_TYPES.fifo, 0o02: ENTRY_TYPES.characterDevice,
  0o06: ENTRY_TYPES.blockDevice, 0o14: ENTRY_TYPES.socket,
}

export interface Inode {
  readonly number: number
  readonly type: EntryType
  /** The low 12 bits. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly bytes: number
  readonly links: number
  readonly flags: number
  readonly mtimeNs: bigint
  readonly blockArea: Buffer
  /** Block of extended attributes; 0: none. */
  readonly attributeBlock: number
  /** Extended attributes within the inode; empty where there is no room. */
  readonly attributeArea: Buffer
}

/** @throws {ClientError} IMAGE_UNREADABLE for an inode that is not in use, or of no type */
export function decodeInode(bytes: Buffer, number: number): Inode {
  const u16 = (at: number): number => bytes.readUInt16LE(at)
  const u32 = (at: number): number => bytes.readUInt32LE(at)
  const type = TYPES[u16(0) >> 12]
  if (type === undefined || u16(26) === 0) throw unreadable(`Inode ${number} is not in use, or damaged.`)
  const extraBytes = bytes.byteLength > 128 ? u16(128) : 0
  const hasExtra = (end: number): boolean => 128 + extraBytes >= end && bytes.byteLength >= end
  const extra = hasExtra(140) ? u32(136) : 0
  const seconds = BigInt(bytes.readInt32LE(16)) + (BigInt(extra & 3) << 32n)
  const size = u32(4) + (type === ENTRY_TYPES.file || type === ENTRY_TYPES.directory ? u32(108) * 2 ** 32 : 0)
  if (!Number.isSafeInteger(size)) throw unreadable(`Inode ${number} is damaged: no file is as long.`)
  return {
    number, type, mode: u16(0) & 0o7777, uid: u16(2) + u16(120) * 0x1_0000, gid: u16(24) + u16(122) * 0x1_0000, bytes: size, links: u16(26), flags: u32(32),
    mtimeNs: seconds * 1_000_000_000n + BigInt(Math.min(extra >>> 2, 999_999_999)), blockArea: bytes.subarray(40, 40 + BLOCK_AREA_BYTES),
    attributeBlock: u32(104) + u16(118) * 2 ** 32,
    attributeArea: bytes.byteLength > 128 && extraBytes % 4 === 0 && 128 + extraBytes + 4 <= bytes.byteLength ? bytes.subarray(128 + extraBytes) : Buffer.alloc(0),
  }
}
export function deviceOf({ blockArea }: Inode): { readonly major: number; readonly minor: number } {
  const old = blockArea.readUInt16LE(0)
  if (old !== 0) return { major: old >> 8, minor: old & 0xff }
  const packed = blockArea.readUInt32LE(4)
  return { major: (packed & 0xf_ff00) >> 8, minor: (packed & 0xff) | ((packed >>> 12) & 0xf_ff00) }
}
