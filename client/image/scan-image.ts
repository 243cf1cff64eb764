/** Backs up a disk image or block device as aligned chunks (docs/architecture.md).
 *
 *  Holes of a sparse file are never read; chunks of zeroes are read, but neither hashed nor sent. The parent's leaf over the same
 *  place is read along: an unchanged chunk is known by its id and costs the server nothing, and an unchanged node likewise.
 *  A parent that is damaged is left alone: the backup is then as if it were the first, and so repairs it.
 */
import { closeSync, constants, fstatSync, openSync, readSync, type BigIntStats } from 'node:fs'
import { basename } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { asBuffer } from '../../src/core/bytes.js'
import { hasCode, RoostError } from '../../src/core/errors.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import { KiB, MiB } from '../../src/core/limits.js'
import type { ChunkerParameters } from '../../src/core/messages.js'
import { blockDeviceBytes, fgetxattrs, groupName, seekData, seekHole, userName } from '../native/posix.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { DirectoryWriter, type NodesByPlace } from '../tree/directory-writer.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'
import { isEntryName } from '../tree/entry-codec.js'
import type { ScanContext, ScanResult } from '../upload/chunk-sink.js'
import { isImageChunkBytes, slotBytes, slotCount, type ImageContent, type ImageShape } from './image-node.js'
import { ImageTreeReader, ImageTreeWriter } from './image-tree.js'

export interface ImageConfig {
  /** A regular file or a block device; a symlink is followed. */
  readonly path: string | Uint8Array
  /** What the image is called in the snapshot; the path's last part unless said otherwise. */
  readonly name?: string
  /** A power of two from 4 KiB; what the parent used, else the repository's default, unless said otherwise. */
  readonly chunkBytes?: number
}

/** Bytes between two looks at the outside world (messages, cancellation). */
const TURN_EVERY_BYTES = 32 * MiB
/** Entries of the parent's root among which the image is looked for: there is one. */
const IMAGES_LOOKED_AT_MAX = 1_000
const ZEROES = Buffer.alloc(64 * KiB)

/** @throws {RoostError} REQUEST_MALFORMED when the path is neither file nor block device, or the chunk size is out of bounds;
 *  errno exceptions when it cannot be opened or read */
export async function scanImage(config: ImageConfig, context: ScanContext, parameters: ChunkerParameters): Promise<ScanResult> {
  const path = typeof config.path === 'string' ? Buffer.from(config.path) : asBuffer(config.path)
  const name = config.name === undefined ? lastPart(path) : Buffer.from(config.name)
  if (!isEntryName(name))
    throw new RoostError('REQUEST_MALFORMED', 'The name of an image must be a file name of 1 to 255 bytes.')
  context.at(path.toString())
  const fd = openSync(path, constants.O_RDONLY)
  try {
    const before = fstatSync(fd, { bigint: true })
    const imageBytes = lengthOf(fd, before)
    const parent = await openParent(context, name, config.chunkBytes)
    const chunkBytes = config.chunkBytes ?? parent?.content.chunkBytes ?? parameters.imageChunkBytes
    if (!isImageChunkBytes(chunkBytes))
      throw new RoostError('REQUEST_MALFORMED', 'The chunk size of an image is a power of two, from 4 KiB to 4 MiB.', { chunkBytes })

    const scan = new ImageScan(fd, { imageBytes, chunkBytes }, context, parent)
    const content = await scan.run()
    const isChanged = scan.isCutShort || hasChanged(fd, before, imageBytes)
    if (isChanged) {
      const message = 'The image was changed while it was read: its parts are of different moments.'
      context.report({ path: path.toString(), reason: 'changed', message })
    }
    context.counters.files++
    const directory = new DirectoryWriter(context.sink, parent?.directoryNodes)
    await directory.add(entryOf(fd, name, before, content))
    return { root: await directory.finish(), description: { imageBytes, chunkBytes, isDevice: before.isBlockDevice() } }
  } finally {
    closeSync(fd)
  }
}

function lastPart(path: Buffer): Buffer {
  return Buffer.from(basename(path.toString('latin1')), 'latin1') // latin1 keeps every byte
}
function lengthOf(fd: number, stat: BigIntStats): number {
  if (stat.isBlockDevice()) return blockDeviceBytes(fd)
  if (stat.isFile()) return Number(stat.size)
  throw new RoostError('REQUEST_MALFORMED', 'An image is a regular file or a block device.')
}
function hasChanged(fd: number, before: BigIntStats, imageBytes: number): boolean {
  const after = fstatSync(fd, { bigint: true })
  if (before.isBlockDevice()) return blockDeviceBytes(fd) !== imageBytes // whether its bytes changed, nothing tells
  return after.size !== before.size || after.mtimeNs !== before.mtimeNs
}
function entryOf(fd: number, name: Buffer, stat: BigIntStats, content: ImageContent): Entry {
  const uid = Number(stat.uid)
  const gid = Number(stat.gid)
  return {
    name, type: ENTRY_TYPES.image, mode: Number(stat.mode) & 0o7777, uid, gid, user: userName(uid), group: groupName(gid),
    mtimeNs: stat.mtimeNs, ctimeNs: stat.ctimeNs, inode: stat.ino, device: stat.dev, linkCount: 1,
    xattrs: stat.isFile() ? fgetxattrs(fd) : [], content,
  }
}

interface ParentImage { readonly content: ImageContent; readonly tree: ImageTreeReader; readonly directoryNodes: NodesByPlace }

/** The image of this name in the parent, or the only one there is (it was renamed). */
async function openParent(
  context: ScanContext, name: Buffer, chunkBytes: number | undefined,
): Promise<ParentImage | undefined> {
  if (context.parent === undefined) return undefined
  const { root, nodes } = context.parent
  try {
    const directory = new DirectoryReader(nodes, root)
    const images: { name: Buffer; content: ImageContent }[] = []
    for await (const entry of directory.entries()) {
      const { name: entryName, type, content } = entry
      if (type === ENTRY_TYPES.image && content?.kind === 'image') images.push({ name: entryName, content })
      if (images.length >= IMAGES_LOOKED_AT_MAX) break
    }
    const found = images.find((image) => image.name.equals(name)) ?? (images.length === 1 ? images[0] : undefined)
    if (found === undefined || (chunkBytes !== undefined && chunkBytes !== found.content.chunkBytes)) return undefined
    const { content } = found
    return { content, tree: new ImageTreeReader(nodes, content), directoryNodes: directory.nodesRead }
  } catch (error) {
    if (isDamage(error)) return undefined
    throw error
  }
}
/** What makes a parent useless, as opposed to what makes the server unreachable. */
function isDamage(error: unknown): boolean {
  return hasCode(error, 'CHUNK_MISSING') || hasCode(error, 'CHUNK_CORRUPT') || hasCode(error, 'TREE_MALFORMED') ||
    hasCode(error, 'CHUNK_NOT_READABLE')
}

class ImageScan {
  readonly #writer: ImageTreeWriter
  #parent: ImageTreeReader | undefined
  #sinceTurnBytes = 0
  #passedBytes = 0
  /** The image ended before its length: the rest is taken as zeroes. */
  isCutShort = false

  constructor(readonly fd: number, readonly shape: ImageShape, readonly context: ScanContext, parent: ParentImage | undefined) {
    this.#parent = parent?.tree
    this.#writer = new ImageTreeWriter(context.sink, shape, parent?.tree.findNode)
  }

  async run(): Promise<ImageContent> {
    const { imageBytes, chunkBytes } = this.shape
    const slots = slotCount(this.shape)
    for (let slot = 0; slot < slots && !this.isCutShort;) {
      const data = seekData(this.fd, slot * chunkBytes)
      if (data === undefined || data >= imageBytes) break
      const hole = seekHole(this.fd, data) ?? imageBytes
      const end = Math.min(slots, Math.ceil(hole / chunkBytes))
      slot = Math.floor(data / chunkBytes)
      this.#countTo(slot)
      // The first and last chunk of a stretch of data may hold some hole: it reads as zeroes.
      for (; slot < end && !this.isCutShort; slot++) await this.#takeSlot(slot)
    }
    this.#countTo(slots)
    return await this.#writer.finish()
  }

  async #takeSlot(slot: number): Promise<void> {
    const { sink, counters } = this.context
    const bytes = slotBytes(this.shape, slot)
    await this.#turnSometimes(bytes)
    const offered = sink.space(bytes)
    const space = offered instanceof Promise ? await offered : offered
    const read = this.#read(space, slot * this.shape.chunkBytes, bytes)
    counters.bytesRead += read
    const chunk = space.subarray(0, bytes)
    const inherited = this.#parent === undefined ? undefined : await this.#inheritedAt(slot)
    const id = isZero(chunk) ? undefined : sink.take(bytes, CHUNK_KINDS.data, inherited)
    const added = this.#writer.add(slot, id)
    if (added !== undefined) await added
    this.#countTo(slot + 1)
  }
  #read(space: Buffer, position: number, bytes: number): number {
    let read = 0
    while (read < bytes) {
      const more = readSync(this.fd, space, read, bytes - read, position + read)
      if (more === 0) {
        this.isCutShort = true
        space.fill(0, read, bytes)
        break
      }
      read += more
    }
    return read
  }
  async #inheritedAt(slot: number): Promise<ChunkId | undefined> {
    try {
      return await this.#parent?.chunkAt(slot)
    } catch (error) {
      if (!isDamage(error)) throw error
      this.#parent = undefined
      return undefined
    }
  }
  /** Progress is through the image: holes count as they are passed. */
  #countTo(slot: number): void {
    const { counters } = this.context
    const passed = Math.min(slot * this.shape.chunkBytes, this.shape.imageBytes)
    counters.sourceBytes += passed - this.#passedBytes
    this.#passedBytes = passed
  }
  async #turnSometimes(bytes: number): Promise<void> {
    this.context.signal.throwIfAborted()
    this.#sinceTurnBytes += bytes
    if (this.#sinceTurnBytes < TURN_EVERY_BYTES) return
    this.#sinceTurnBytes = 0
    await turn()
    this.context.signal.throwIfAborted()
  }
}

/** Compares with zeroes in memory: stops at the first difference, and is as fast as memory allows without one. */
function isZero(bytes: Buffer): boolean {
  for (let at = 0; at < bytes.byteLength; at += ZEROES.byteLength) {
    const end = Math.min(bytes.byteLength, at + ZEROES.byteLength)
    if (bytes.compare(ZEROES, 0, end - at, at, end) !== 0) return false
  }
  return true
}
