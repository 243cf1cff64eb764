/** What lies on a partition or disk, by the marks that each format leaves near its beginning. */
import { readRange, type ByteSource } from '../nbd/read-range.js'

/** `ext`: ext2, ext3 or ext4, which are read (ext4/volume.ts). The others are only named. */
export type ContentKind = 'ext' | 'xfs' | 'btrfs' | 'vfat' | 'exfat' | 'ntfs' | 'swap' | 'lvm' | 'luks' | 'raid' | 'iso9660' | 'squashfs' | 'empty' | 'unknown'

interface Mark { readonly kind: ContentKind; readonly at: number; readonly bytes: Buffer }
const mark = (kind: ContentKind, at: number, text: string): Mark => ({ kind, at, bytes: Buffer.from(text, 'latin1') })
const MARKS: readonly Mark[] = [
  mark('luks', 0, 'LUKS\xba\xbe'), mark('xfs', 0, 'XFSB'), mark('squashfs', 0, 'hsqs'), mark('ntfs', 3, 'NTFS    '), mark('exfat', 3, 'EXFAT   '),
  mark('lvm', 0, 'LABELONE'), mark('lvm', 512, 'LABELONE'), mark('lvm', 1024, 'LABELONE'), mark('lvm', 1536, 'LABELONE'),
  mark('raid', 4096, '\xfc\x4e\x2b\xa9'), mark('raid', 0, '\xfc\x4e\x2b\xa9'), mark('vfat', 54, 'FAT1'), mark('vfat', 82, 'FAT32   '),
  mark('swap', 4086, 'SWAPSPACE2'), mark('ext', 1024 + 56, '\x53\xef'), mark('iso9660', 0x8001, 'CD001'), mark('btrfs', 0x10040, '_BHRfS_M'),
]
const PROBED_BYTES = 0x10048

export async function probeContent(source: ByteSource): Promise<ContentKind> {
  const bytes = await readRange(source, 0, Math.min(source.bytes, PROBED_BYTES))
  const found = MARKS.find(({ at, bytes: wanted }) => bytes.subarray(at, at + wanted.byteLength).equals(wanted))
  if (found !== undefined) return found.kind
  return bytes.every((byte) => byte === 0) ? 'empty' : 'unknown'
}
