/** From extents at any byte to runs of whole slots. */
import { assert } from '../../src/core/assert.js'
import type { ExtentState, SourceExtent } from './block-source.js'
import { slotCount, type ImageShape } from './image-node.js'

export interface SlotRun { readonly state: ExtentState; readonly from: number; readonly to: number }

/** A run of data is not waited for longer than this: reading begins while the rest of a map is still being asked for. */
const DATA_RUN_SLOTS = 256

/** Ascending, without gaps, over all slots; neighbours of one state are one run, but for long ones of data.
 *
 *  A slot of several states is read. (Part clean, part zero is no exception: the zeroes may be new, where the parent has data.) */
export async function* slotRuns(extents: AsyncIterable<SourceExtent>, shape: ImageShape): AsyncGenerator<SlotRun> {
  const { imageBytes, chunkBytes } = shape
  let at = 0
  /** Of the slot that `at` is in the middle of. */
  let partial: ExtentState = 'zero'
  let run: SlotRun = { state: 'data', from: 0, to: 0 }
  for await (const { offset, bytes, state } of extents) {
    assert(offset === at && bytes > 0 && offset + bytes <= imageBytes, 'extents are without gaps and within the image')
    const end = offset + bytes
    const found: SlotRun[] = []
    if (at % chunkBytes !== 0) {
      if (state !== partial) partial = 'data'
      const slot = Math.floor(at / chunkBytes)
      at = Math.min(end, (slot + 1) * chunkBytes)
      if (at % chunkBytes === 0 || at === imageBytes) found.push({ state: partial, from: slot, to: slot + 1 })
    }
    if (at < end) {
      const from = at / chunkBytes
      const to = end === imageBytes ? slotCount(shape) : Math.floor(end / chunkBytes)
      if (to > from) found.push({ state, from, to })
      partial = state
      at = end
    }
    for (const next of found) {
      if (next.state === run.state && !(run.state === 'data' && run.to - run.from >= DATA_RUN_SLOTS)) { run = { ...run, to: next.to }; continue }
      if (run.to > run.from) yield run
      run = next
    }
  }
  assert(at === imageBytes, 'extents reach to the end of the image')
  if (run.to > run.from) yield run
}
