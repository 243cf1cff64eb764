/** An image of a snapshot, opened to look for file systems in it. */
import type { OpenSnapshot } from '../browse/open-snapshot.js'
import { ChunkCache } from '../nbd/chunk-cache.js'
import { openLayout } from '../nbd/image-layout.js'
import { ImageReader } from '../nbd/image-reader.js'
import type { ByteSource } from '../nbd/read-range.js'
import type { Entry } from '../tree/entry.js'
import { ByteWindow, unreadable } from './byte-window.js'
import { Ext4Volume } from './ext4/volume.js'
import { WHOLE_DISK } from './image-path.js'
import { readPartitions } from './partitions.js'
import { probeContent, type ContentKind } from './probe.js'

const CACHE_BYTES = 64 * 1024 * 1024

/** `name`: as paths have it, `p1` or `whole`. `volume`: of file systems that are read here, what they say of themselves. */
export interface ImagePart {
  readonly name: string
  readonly offset: number
  readonly bytes: number
  readonly type: string
  readonly label?: string
  readonly content: ContentKind
  readonly volume?: { readonly kind: string; readonly label: string; readonly needsRecovery: boolean }
  /** Why a file system that should be readable is not. */
  readonly problem?: string
}
export interface ImageParts { readonly table: 'gpt' | 'mbr' | 'none'; readonly parts: readonly ImagePart[]; readonly warnings: readonly string[] }

export function openImage(open: OpenSnapshot, entry: Entry, signal: AbortSignal): ByteSource {
  return new ImageReader(openLayout(open.nodes, entry.content!), new ChunkCache(open.session, CACHE_BYTES, { signal }))
}
/** The partitions, or the one `whole` of a disk without a table. */
export async function describeImage(image: ByteSource): Promise<ImageParts> {
  const table = await readPartitions(image)
  if (table === undefined) return { table: 'none', parts: [await describePart(image, { name: WHOLE_DISK, offset: 0, bytes: image.bytes, type: '' })], warnings: [] }
  const parts: ImagePart[] = []
  for (const { number, offset, bytes, type, name } of table.partitions)
    parts.push(await describePart(image, { name: `p${number}`, offset, bytes, type, ...(name === undefined ? {} : { label: name }) }))
  return { table: table.kind, parts, warnings: table.warnings }
}
async function describePart(image: ByteSource, part: Omit<ImagePart, 'content'>): Promise<ImagePart> {
  const window = new ByteWindow(image, part.offset, part.bytes)
  const content = await probeContent(window)
  if (content !== 'ext') return { ...part, content }
  try {
    const { kind, label, needsRecovery } = (await Ext4Volume.open(window)).superblock
    return { ...part, content, volume: { kind, label, needsRecovery } }
  } catch (error) {
    return { ...part, content, problem: error instanceof Error ? error.message : 'It cannot be read.' }
  }
}
/** The file system of a partition. @throws {ClientError} IMAGE_UNREADABLE, saying what is there instead */
export async function openVolume(image: ByteSource, name: string): Promise<Ext4Volume> {
  const { parts } = await describeImage(image)
  const part = parts.find((one) => one.name === name)
  if (part === undefined) throw unreadable(`The image has no "${name}"; there ${parts.length === 1 ? 'is' : 'are'}: ${parts.map((one) => one.name).join(', ') || 'nothing'}.`)
  if (part.content !== 'ext') throw unreadable(`${name} holds no file system that is read here (${CONTENT_WORDS[part.content]}).`)
  return await Ext4Volume.open(new ByteWindow(image, part.offset, part.bytes))
}
export const CONTENT_WORDS: Readonly<Record<ContentKind, string>> = {
  ext: 'ext', xfs: 'XFS', btrfs: 'Btrfs', vfat: 'FAT', exfat: 'exFAT', ntfs: 'NTFS', swap: 'swap', lvm: 'an LVM physical volume', luks: 'encrypted with LUKS',
  raid: 'a member of a Linux RAID', iso9660: 'ISO 9660', squashfs: 'SquashFS', empty: 'empty', unknown: 'unknown',
}
