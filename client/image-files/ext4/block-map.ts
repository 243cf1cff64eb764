/** Where the blocks of an inode are: by extents, or by the direct and indirect blocks of ext2 and ext3.
 *
 *  A map of a stranger: depths are bounded, places ascend, and no file has more blocks than the volume, so nothing goes round in circles.
 */
import type { BlockReader } from '../byte-window.js'
import { unreadable } from '../byte-window.js'
import { INODE_FLAGS, type Inode } from './inode.js'

/** `logical`, `count`: in blocks of the file. What lies between runs is hole. */
export interface BlockRun { readonly logical: number; readonly physical: number; readonly count: number }

const EXTENT_MAGIC = 0xf30a
const EXTENT_ENTRY_BYTES = 12
const EXTENT_DEPTH_MAX = 5
/** Longer extents are allocated and not written: they read as zeroes. */
const EXTENT_WRITTEN_MAX = 32_768
const DIRECT_BLOCKS = 12

/** Ascending runs of data up to the end of the file. @throws {ClientError} IMAGE_UNREADABLE */
export async function* blockRuns(blocks: BlockReader, inode: Inode): AsyncGenerator<BlockRun> {
  const end = Math.ceil(inode.bytes / blocks.blockBytes)
  const source = (inode.flags & INODE_FLAGS.extents) !== 0 ? extentRuns(blocks, inode.blockArea, undefined, { nodes: 0 }) : pointerRuns(blocks, inode.blockArea, end)
  let next = 0, total = 0
  for await (const { logical, physical, count } of source) {
    if (logical >= end) return
    if (logical < next || physical + count > blocks.blocks || physical === 0) throw damaged(inode)
    next = logical + count
    total += count
    if (total > blocks.blocks) throw damaged(inode)
    yield { logical, physical, count: Math.min(count, end - logical) }
  }
}
const damaged = (inode: Inode): Error => unreadable(`The map of blocks of inode ${inode.number} is damaged.`)

async function* extentRuns(blocks: BlockReader, node: Buffer, depth: number | undefined, tally: { nodes: number }): AsyncGenerator<BlockRun> {
  const [magic, entries, own] = [node.readUInt16LE(0), node.readUInt16LE(2), node.readUInt16LE(6)]
  if (magic !== EXTENT_MAGIC || own > EXTENT_DEPTH_MAX || depth !== undefined && own !== depth || (entries + 1) * EXTENT_ENTRY_BYTES > node.byteLength || ++tally.nodes > blocks.blocks)
    throw unreadable('A tree of extents is damaged.')
  for (let i = 1; i <= entries; i++) {
    const at = i * EXTENT_ENTRY_BYTES
    if (own > 0) {
      const child = node.readUInt32LE(at + 4) + node.readUInt16LE(at + 8) * 2 ** 32
      yield* extentRuns(blocks, await blocks.block(child), own - 1, tally)
      continue
    }
    const length = node.readUInt16LE(at + 4)
    if (length === 0 || length > EXTENT_WRITTEN_MAX) continue
    yield { logical: node.readUInt32LE(at), count: length, physical: node.readUInt32LE(at + 8) + node.readUInt16LE(at + 6) * 2 ** 32 }
  }
}

async function* pointerRuns(blocks: BlockReader, area: Buffer, end: number): AsyncGenerator<BlockRun> {
  for (let i = 0; i < DIRECT_BLOCKS; i++) if (area.readUInt32LE(i * 4) !== 0) yield { logical: i, physical: area.readUInt32LE(i * 4), count: 1 }
  const perBlock = blocks.blockBytes / 4
  let first = DIRECT_BLOCKS
  for (let level = 1; level <= 3 && first < end; level++) {
    const pointer = area.readUInt32LE((DIRECT_BLOCKS + level - 1) * 4)
    if (pointer !== 0) yield* indirectRuns(blocks, pointer, level, first, end)
    first += perBlock ** level
  }
}
async function* indirectRuns(blocks: BlockReader, pointer: number, level: number, first: number, end: number): AsyncGenerator<BlockRun> {
  const node = await blocks.block(pointer)
  const perBlock = blocks.blockBytes / 4
  const span = perBlock ** (level - 1)
  for (let i = 0; i < perBlock && first + i * span < end; i++) {
    const child = node.readUInt32LE(i * 4)
    if (child === 0) continue
    if (level > 1) { yield* indirectRuns(blocks, child, level - 1, first + i * span, end); continue }
    let count = 1
    while (i + count < perBlock && node.readUInt32LE((i + count) * 4) === child + count) count++
    yield { logical: first + i, physical: child, count }
    i += count - 1
  }
}
