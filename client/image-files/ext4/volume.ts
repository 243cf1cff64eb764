/** An ext2, ext3 or ext4 file system, read without the kernel and without root: directories, metadata, contents.
 *
 *  The journal is not replayed: what is only in it is as if it had not happened (`needsRecovery` says that there may be such). Checksums are
 *  not compared: every byte was proved when it came from the repository.
 */
import { readRange, type ByteSource } from '../../nbd/read-range.js'
import { ENTRY_TYPES, type Entry, type Xattr } from '../../tree/entry.js'
import { BlockReader, unreadable } from '../byte-window.js'
import { blockAttributes, inodeAttributes, INLINE_NAME } from './attributes.js'
import { blockRuns } from './block-map.js'
import { decodeDirectoryBlock, type DirectoryEntry } from './directory.js'
import { BLOCK_AREA_BYTES, decodeInode, deviceOf, INODE_FLAGS, type Inode } from './inode.js'
import { decodeSuperblock, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, type Superblock } from './superblock.js'

const ROOT_INODE = 2
const SYMLINK_BYTES_MAX = 4_096
/** Of one piece of content. */
const PIECE_BYTES_MAX = 1024 * 1024

/** `offset` within the file; what lies between pieces is hole. */
export interface FilePiece { readonly offset: number; readonly bytes: number; read(): Promise<Buffer> }
/** A name and what it names. `entry.content` tells the length alone: a hole of it. */
export interface VolumeItem { readonly entry: Entry; readonly inode: Inode }

export class Ext4Volume {
  private constructor(readonly source: ByteSource, readonly superblock: Superblock, readonly blocks: BlockReader) {}

  /** @throws {ClientError} IMAGE_UNREADABLE when it is no such file system, or has features that are not read here */
  static async open(source: ByteSource): Promise<Ext4Volume> {
    if (source.bytes < SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES) throw unreadable('There is no file system here: it is too short.')
    const superblock = decodeSuperblock(await readRange(source, SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES))
    return new Ext4Volume(source, superblock, new BlockReader(source, superblock.blockBytes))
  }
  async root(): Promise<VolumeItem> {
    const item = await this.#item({ inode: ROOT_INODE, name: Buffer.from('/') })
    if (item.entry.type !== ENTRY_TYPES.directory) throw unreadable('The root of the file system is no directory.')
    return item
  }
  /** The item at a path, no symlink followed; undefined: nothing is there. */
  async find(names: readonly Buffer[]): Promise<VolumeItem | undefined> {
    let at: VolumeItem | undefined = await this.root()
    for (const name of names) {
      if (at.entry.type !== ENTRY_TYPES.directory) return undefined
      let found: DirectoryEntry | undefined
      for await (const entry of this.#entries(at.inode)) if (entry.name.equals(name)) { found = entry; break }
      if (found === undefined) return undefined
      at = await this.#item(found)
    }
    return at
  }
  /** Names of a directory, in the file system's order. An item that cannot be read is handed to `onProblem` with its name, and left out. */
  async *list(directory: Inode, onProblem: (name: Buffer, error: unknown) => void): AsyncGenerator<VolumeItem> {
    for await (const entry of this.#entries(directory)) {
      let item: VolumeItem
      try {
        item = await this.#item(entry)
      } catch (error) {
        onProblem(entry.name, error)
        continue
      }
      yield item
    }
  }
  /** The data of a file, ascending. @throws {ClientError} IMAGE_UNREADABLE also for contents that are encrypted or compressed */
  async *pieces(inode: Inode): AsyncGenerator<FilePiece> {
    if ((inode.flags & (INODE_FLAGS.encrypted | INODE_FLAGS.compressed)) !== 0) throw unreadable('Its content is encrypted or compressed by the file system.')
    if ((inode.flags & INODE_FLAGS.inlineData) !== 0) {
      const content = (await this.#inlineContent(inode)).subarray(0, inode.bytes)
      if (content.byteLength > 0) yield { offset: 0, bytes: content.byteLength, read: async () => content }
      return
    }
    const { blockBytes } = this.superblock
    for await (const { logical, physical, count } of blockRuns(this.blocks, inode)) {
      const end = Math.min((logical + count) * blockBytes, inode.bytes)
      for (let offset = logical * blockBytes; offset < end; offset += PIECE_BYTES_MAX) {
        const bytes = Math.min(PIECE_BYTES_MAX, end - offset)
        const at = physical * blockBytes + offset - logical * blockBytes
        yield { offset, bytes, read: () => readRange(this.source, at, bytes) }
      }
    }
  }

  async #inode(number: number): Promise<Inode> {
    const { inodes, inodesPerGroup, inodeBytes, blockBytes, descriptorBytes } = this.superblock
    if (!(number >= 1 && number <= inodes)) throw unreadable(`There is no inode ${number}.`)
    const { block, at } = this.superblock.descriptorPlace(Math.floor((number - 1) / inodesPerGroup))
    const descriptors = await this.blocks.block(block)
    const table = descriptors.readUInt32LE(at + 8) + (descriptorBytes >= 64 ? descriptors.readUInt32LE(at + 40) * 2 ** 32 : 0)
    const offset = (number - 1) % inodesPerGroup * inodeBytes
    const holding = await this.blocks.block(table + Math.floor(offset / blockBytes))
    return decodeInode(holding.subarray(offset % blockBytes, offset % blockBytes + inodeBytes), number)
  }
  async #item({ inode: number, name }: DirectoryEntry): Promise<VolumeItem> {
    const inode = await this.#inode(number)
    const { type, mode, uid, gid, mtimeNs, links } = inode
    const xattrs = (await this.#attributes(inode)).filter(({ name: one }) => !one.equals(INLINE_NAME)).sort((a, b) => a.name.compare(b.name))
    const isDevice = type === ENTRY_TYPES.characterDevice || type === ENTRY_TYPES.blockDevice
    const device = isDevice ? deviceOf(inode) : undefined
    return { inode, entry: {
      name, type, mode, uid, gid, user: '', group: '', mtimeNs, ctimeNs: 0n, inode: BigInt(number), device: 0n, linkCount: type === ENTRY_TYPES.directory ? 1 : links, xattrs,
      ...(type === ENTRY_TYPES.file ? { content: { kind: 'extents', bytes: inode.bytes, extents: [{ bytes: inode.bytes, id: undefined }] } } : {}),
      ...(type === ENTRY_TYPES.symlink ? { symlinkTarget: await this.#symlink(inode) } : {}),
      ...(device === undefined ? {} : { deviceMajor: device.major, deviceMinor: device.minor }),
    } }
  }
  async #attributes(inode: Inode): Promise<Xattr[]> {
    const within = inodeAttributes(inode.attributeArea)
    return inode.attributeBlock === 0 ? within : [...within, ...blockAttributes(await this.blocks.block(inode.attributeBlock))]
  }
  async #inlineContent(inode: Inode): Promise<Buffer> {
    const rest = inodeAttributes(inode.attributeArea).find(({ name }) => name.equals(INLINE_NAME))
    return Buffer.concat([inode.blockArea, ...(rest === undefined ? [] : [rest.value])])
  }
  async #symlink(inode: Inode): Promise<Buffer> {
    if ((inode.flags & INODE_FLAGS.encrypted) !== 0) throw unreadable('The symlink is encrypted by the file system.')
    if (inode.bytes === 0 || inode.bytes > SYMLINK_BYTES_MAX) throw unreadable('A symlink is damaged.')
    const target = inode.bytes < BLOCK_AREA_BYTES ? Buffer.from(inode.blockArea.subarray(0, inode.bytes)) : Buffer.alloc(inode.bytes)
    if (inode.bytes >= BLOCK_AREA_BYTES) for await (const piece of this.pieces(inode)) (await piece.read()).copy(target, piece.offset)
    if (target.includes(0)) throw unreadable('A symlink is damaged.')
    return target
  }
  async *#entries(directory: Inode): AsyncGenerator<DirectoryEntry> {
    const { hasFileTypes, blockBytes } = this.superblock
    if ((directory.flags & INODE_FLAGS.encrypted) !== 0) throw unreadable('The names of the directory are encrypted by the file system.')
    if ((directory.flags & INODE_FLAGS.inlineData) !== 0) {
      const content = await this.#inlineContent(directory)
      // The parent's number stands before the first entries; those of the attribute are a block of their own.
      yield* decodeDirectoryBlock(content.subarray(4, BLOCK_AREA_BYTES), hasFileTypes)
      yield* decodeDirectoryBlock(content.subarray(BLOCK_AREA_BYTES), hasFileTypes)
      return
    }
    for await (const { physical, count } of blockRuns(this.blocks, directory))
      for (let i = 0; i < count; i++) yield* decodeDirectoryBlock(await this.blocks.block(physical + i), hasFileTypes)
    if (directory.bytes % blockBytes !== 0) throw unreadable('A directory is damaged: it has no whole blocks.')
  }
}
