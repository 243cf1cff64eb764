/** Keeps a source that answers late busy: reads of the steps to come are asked for while those before them are taken.
 *
 *  Memory: the source's windowBytes and one step's. Order stays.
 */
import type { RateLimiter } from '../../src/core/rate-limit.js'
import type { BlockReads } from './block-source.js'
import type { ImageShape } from './image-node.js'
import type { ReadStep, ScanStep } from './scan-steps.js'

type Queued = Extract<BlockReads, { kind: 'queued' }>
/** A read that is here; `data` undefined: zeroes. */
export interface DoneRead extends ReadStep { readonly data: Buffer | undefined }
export type AheadStep = Exclude<ScanStep, ReadStep> | DoneRead

/** Steps that may wait: those without reads cost memory too. */
const STEPS_AHEAD_MAX = 512

export async function* readAhead(steps: AsyncGenerator<ScanStep>, reads: Queued, shape: ImageShape, limit: RateLimiter | undefined,
  signal: AbortSignal): AsyncGenerator<AheadStep> {
  const pieces = cutToRequests(steps, Math.max(1, Math.floor(reads.requestBytes / shape.chunkBytes)))
  const queue: { readonly step: ScanStep; readonly bytes: number; readonly data?: Promise<Buffer | undefined> }[] = []
  let aheadBytes = 0
  let isAtEnd = false
  try {
    for (;;) {
      while (!isAtEnd && queue.length < STEPS_AHEAD_MAX && (queue.length === 0 || aheadBytes < reads.windowBytes)) {
        const { value: step, done } = await pieces.next()
        if (done === true) { isAtEnd = true; break }
        if (step.kind !== 'read') { queue.push({ step, bytes: 0 }); continue }
        const position = step.from * shape.chunkBytes
        const bytes = Math.min(step.to * shape.chunkBytes, shape.imageBytes) - position
        await limit?.take(bytes, signal)
        const data = reads.read(position, bytes)
        data.catch(() => undefined) // seen when its turn comes; when another failed before, nobody asks
        aheadBytes += bytes
        queue.push({ step, bytes, data })
      }
      const head = queue.shift()
      if (head === undefined) return
      if (head.step.kind !== 'read') { yield head.step; continue }
      const data = await head.data
      aheadBytes -= head.bytes
      yield { ...head.step, data }
    }
  } finally {
    await pieces.return(undefined)
  }
}

async function* cutToRequests(steps: AsyncGenerator<ScanStep>, slots: number): AsyncGenerator<ScanStep> {
  for await (const step of steps) {
    if (step.kind !== 'read') { yield step; continue }
    for (let from = step.from; from < step.to; from += slots) {
      const to = Math.min(step.to, from + slots)
      const { parentIds } = step
      yield { ...step, from, to, ...(parentIds === undefined ? {} : { parentIds: parentIds.slice(from - step.from, to - step.from) }) }
    }
  }
}
