/** The entries of one block of a directory. Index blocks of large directories look like blocks without entries, and are read past. */
import { unreadable } from '../byte-window.js'

export interface DirectoryEntry { readonly inode: number; readonly name: Buffer }

const HEADER_BYTES = 8
const DOT = Buffer.from('.')
const DOTS = Buffer.from('..')

/** Without "." and "..". @throws {ClientError} IMAGE_UNREADABLE for entries that overlap or leave the block, and names that no file can have */
export function decodeDirectoryBlock(block: Buffer, hasFileTypes: boolean): DirectoryEntry[] {
  const found: DirectoryEntry[] = []
  for (let at = 0; at + HEADER_BYTES <= block.byteLength;) {
    const recorded = block.readUInt16LE(at + 4)
    // 64 KiB do not fit into 16 bits.
    const length = block.byteLength === 65_536 && (recorded === 0 || recorded === 0xffff) ? 65_536 : recorded
    const nameBytes = hasFileTypes ? block[at + 6]! : block.readUInt16LE(at + 6)
    const inode = block.readUInt32LE(at)
    if (length < HEADER_BYTES || length % 4 !== 0 || at + length > block.byteLength || inode !== 0 && HEADER_BYTES + nameBytes > length)
      throw unreadable('A directory is damaged: its entries do not fit together.')
    const name = Buffer.from(block.subarray(at + HEADER_BYTES, at + HEADER_BYTES + nameBytes))
    if (inode !== 0 && !name.equals(DOT) && !name.equals(DOTS)) {
      if (name.byteLength === 0 || name.byteLength > 255 || name.includes(0) || name.includes(0x2f)) throw unreadable('A directory is damaged: it has a name that no file can have.')
      found.push({ inode, name })
    }
    at += length
  }
  return found
}
