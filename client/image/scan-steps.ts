/** What to do with a disk, in order: slots to read, and what is taken over from the parent unread because a dirty map calls it clean.
 *
 *  Zeroes have no step. Work follows what is dirty, not the disk: a clean stretch is taken over as the largest subtrees that fit, and of the
 *  parent only the nodes above a dirty or audited slot are read.
 */
import type { ChunkId } from '../../src/core/ids.js'
import type { BlockSource } from './block-source.js'
import { IMAGE_FAN_OUT, rootLevel, slotCount, slotSpan, type ImageShape } from './image-node.js'
import type { ImageTreeReader } from './image-tree.js'
import { slotRuns, type SlotRun } from './slot-runs.js'

export type ScanStep = ReadStep
  /** Chunks of the parent, as they are there. */
  | { readonly kind: 'inherit'; readonly from: number; readonly ids: readonly (ChunkId | undefined)[] }
  | { readonly kind: 'subtree'; readonly from: number; readonly level: number; readonly id: ChunkId }
export interface ReadStep {
  readonly kind: 'read'; readonly from: number; readonly to: number
  /** What the parent has there, where it was looked up. */
  readonly parentIds?: readonly (ChunkId | undefined)[]
  /** Only to compare: the slots are taken over by another step. */
  readonly isAudit?: boolean
}

/** All that is no hole. */
export async function* readSteps(source: BlockSource, shape: ImageShape): AsyncGenerator<ReadStep> {
  for await (const { state, from, to } of slotRuns(source.extents(false), shape)) if (state !== 'zero') yield { kind: 'read', from, to }
}

export interface IncrementalParts {
  readonly source: BlockSource
  readonly shape: ImageShape
  /** Of the shape of the image. */
  readonly parent: ImageTreeReader
  readonly isAudited: (slot: number) => boolean
  /** Counted up. */
  readonly figures: { cleanBytes: number; dirtyBytes: number }
}
/** What the source's dirty map does not call clean, and those slots of the rest that are audited. @throws what reading the parent throws */
export async function* incrementalSteps(parts: IncrementalParts): AsyncGenerator<ScanStep> {
  const { source, shape, parent, figures } = parts
  for await (const run of slotRuns(source.extents(true), shape)) {
    const bytes = Math.min(run.to * shape.chunkBytes, shape.imageBytes) - run.from * shape.chunkBytes
    if (run.state === 'data') {
      figures.dirtyBytes += bytes
      yield* dirtySteps(run, parent)
    } else if (run.state === 'clean') {
      figures.cleanBytes += bytes
      yield* cleanSteps(run, parts)
    }
  }
}
async function* dirtySteps({ from, to }: SlotRun, parent: ImageTreeReader): AsyncGenerator<ReadStep> {
  for (let slot = from; slot < to;) {
    const end = Math.min(to, leafEnd(slot))
    yield { kind: 'read', from: slot, to: end, parentIds: await idsOf(parent, slot, end) }
    slot = end
  }
}
async function* cleanSteps({ from, to }: SlotRun, { shape, parent, isAudited }: IncrementalParts): AsyncGenerator<ScanStep> {
  const slots = slotCount(shape)
  for (let slot = from; slot < to;) {
    const level = subtreeLevel(slot, to, slots, rootLevel(shape))
    const end = level < 0 ? Math.min(to, leafEnd(slot)) : Math.min(slots, slot + slotSpan(level))
    yield* auditSteps(slot, end, parent, isAudited)
    if (level < 0) yield { kind: 'inherit', from: slot, ids: await idsOf(parent, slot, end) }
    else {
      const id = await parent.subtreeAt(level, slot)
      if (id !== undefined) yield { kind: 'subtree', from: slot, level, id }
    }
    slot = end
  }
}
async function* auditSteps(from: number, to: number, parent: ImageTreeReader, isAudited: (slot: number) => boolean): AsyncGenerator<ReadStep> {
  for (let slot = from; slot < to;) {
    if (!isAudited(slot)) { slot++; continue }
    let end = slot + 1
    while (end < Math.min(to, leafEnd(slot)) && isAudited(end)) end++
    yield { kind: 'read', from: slot, to: end, parentIds: await idsOf(parent, slot, end), isAudit: true }
    slot = end
  }
}

/** The level of the largest subtree that begins at `slot` and is clean to its end; -1 for none. The last one may reach past the image. */
function subtreeLevel(slot: number, to: number, slots: number, top: number): number {
  let level = -1
  while (level < top && slot % slotSpan(level + 1) === 0 && Math.min(slots, slot + slotSpan(level + 1)) <= to) level++
  return level
}
const leafEnd = (slot: number): number => slot - slot % IMAGE_FAN_OUT + IMAGE_FAN_OUT
async function idsOf(parent: ImageTreeReader, from: number, to: number): Promise<(ChunkId | undefined)[]> {
  const ids: (ChunkId | undefined)[] = []
  for (let slot = from; slot < to; slot++) {
    const id = parent.chunkAt(slot)
    ids.push(id instanceof Promise ? await id : id)
  }
  return ids
}
