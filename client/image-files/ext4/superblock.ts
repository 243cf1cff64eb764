/** The superblock of ext2, ext3 and ext4, and where groups and inodes are. Decoding alone; numbers of a stranger, so each is bounded here. */
import { unreadable } from '../byte-window.js'

export const SUPERBLOCK_OFFSET = 1024
export const SUPERBLOCK_BYTES = 1024
const MAGIC = 0xef53

const INCOMPAT = { compression: 0x1, fileType: 0x2, recover: 0x4, journalDevice: 0x8, metaGroups: 0x10, extents: 0x40, bits64: 0x80, mmp: 0x100, flexGroups: 0x200,
  attributeInodes: 0x400, dirData: 0x1000, checksumSeed: 0x2000, largeDirectories: 0x4000, inlineData: 0x8000, encrypt: 0x1_0000, casefold: 0x2_0000 } as const
/** What we need not understand to read rightly, or do understand. */
const READABLE = INCOMPAT.fileType | INCOMPAT.recover | INCOMPAT.metaGroups | INCOMPAT.extents | INCOMPAT.bits64 | INCOMPAT.mmp | INCOMPAT.flexGroups |
  INCOMPAT.attributeInodes | INCOMPAT.checksumSeed | INCOMPAT.largeDirectories | INCOMPAT.inlineData | INCOMPAT.encrypt | INCOMPAT.casefold
const COMPAT_SPARSE_SUPER2 = 0x200
const COMPAT_HAS_JOURNAL = 0x4
const RO_SPARSE_SUPER = 0x1
const RO_SHARED_BLOCKS = 0x4000

export interface Superblock {
  readonly kind: 'ext2' | 'ext3' | 'ext4'
  readonly label: string
  readonly uuid: string
  readonly blockBytes: number
  readonly blocks: number
  readonly firstDataBlock: number
  readonly blocksPerGroup: number
  readonly inodes: number
  readonly inodesPerGroup: number
  readonly inodeBytes: number
  readonly descriptorBytes: number
  readonly groups: number
  readonly hasFileTypes: boolean
  /** Files may share blocks: more bytes come out than the volume holds. */
  readonly sharesBlocks: boolean
  /** The journal holds changes that are not where they belong yet. */
  readonly needsRecovery: boolean
  /** The block that holds a group's descriptor, and where in it. */
  descriptorPlace(group: number): { readonly block: number; readonly at: number }
}

/** @throws {ClientError} IMAGE_UNREADABLE */
export function decodeSuperblock(bytes: Buffer): Superblock {
  const u32 = (at: number): number => bytes.readUInt32LE(at)
  if (bytes.readUInt16LE(56) !== MAGIC) throw unreadable('There is no ext2, ext3 or ext4 file system here.')
  const [compat, incompat, roCompat] = u32(76) === 0 ? [0, 0, 0] : [u32(92), u32(96), u32(100)]
  const foreign = (incompat & ~READABLE) >>> 0
  if (foreign !== 0) throw unreadable(`The file system uses features that are not read here (incompat 0x${foreign.toString(16)}).`)
  const logBlock = u32(24)
  if (logBlock > 6) throw unreadable('The superblock is damaged: no file system has blocks as large.')
  const blockBytes = 1024 << logBlock
  const is64 = (incompat & INCOMPAT.bits64) !== 0
  const blocks = u32(4) + (is64 ? u32(336) * 2 ** 32 : 0)
  const [firstDataBlock, blocksPerGroup, inodesPerGroup, inodes] = [u32(20), u32(32), u32(40), u32(0)]
  const inodeBytes = u32(76) === 0 ? 128 : bytes.readUInt16LE(88)
  const descriptorBytes = is64 ? Math.max(64, bytes.readUInt16LE(254)) : 32
  const isPowerOf2 = (value: number): boolean => value > 0 && (value & (value - 1)) === 0
  const groups = Math.ceil((blocks - firstDataBlock) / blocksPerGroup)
  if (!Number.isSafeInteger(blocks) || blocks === 0 || blocksPerGroup === 0 || inodesPerGroup === 0 || !(groups > 0) || !isPowerOf2(inodeBytes) || inodeBytes < 128 ||
    inodeBytes > blockBytes || !isPowerOf2(descriptorBytes) || descriptorBytes > blockBytes || firstDataBlock > 1 || inodes > groups * inodesPerGroup)
    throw unreadable('The superblock is damaged: its numbers do not fit together.')
  const firstMetaGroup = (incompat & INCOMPAT.metaGroups) !== 0 ? u32(260) : Infinity
  const perBlock = blockBytes / descriptorBytes
  const backups = (compat & COMPAT_SPARSE_SUPER2) !== 0 ? [u32(588), u32(592)] : undefined
  const hasSuperblock = (group: number): boolean => backups !== undefined ? group === 0 || backups.includes(group)
    : (roCompat & RO_SPARSE_SUPER) === 0 || group <= 1 || [3, 5, 7].some((base) => isPowerOf(group, base))
  return {
    kind: (incompat & (INCOMPAT.extents | INCOMPAT.bits64 | INCOMPAT.flexGroups)) !== 0 ? 'ext4' : (compat & COMPAT_HAS_JOURNAL) !== 0 ? 'ext3' : 'ext2',
    label: bytes.toString('utf8', 120, 136).replace(/\0.*$/s, ''), uuid: bytes.toString('hex', 104, 120),
    blockBytes, blocks, firstDataBlock, blocksPerGroup, inodes, inodesPerGroup, inodeBytes, descriptorBytes, groups,
    hasFileTypes: (incompat & INCOMPAT.fileType) !== 0, sharesBlocks: (roCompat & RO_SHARED_BLOCKS) !== 0, needsRecovery: (incompat & INCOMPAT.recover) !== 0,
    descriptorPlace: (group) => {
      const metaGroup = Math.floor(group / perBlock)
      const at = group % perBlock * descriptorBytes
      // With blocks of 1 KiB the superblock is in block 1, also where counting begins at 0 (bigalloc).
      if (metaGroup < firstMetaGroup) return { block: (blockBytes === 1024 ? 1 : firstDataBlock) + 1 + metaGroup, at }
      const firstGroup = metaGroup * perBlock
      return { block: firstDataBlock + firstGroup * blocksPerGroup + (hasSuperblock(firstGroup) ? 1 : 0), at }
    },
  }
}
function isPowerOf(value: number, base: number): boolean {
  let power = base
  while (power < value) power *= base
  return power === value
}
