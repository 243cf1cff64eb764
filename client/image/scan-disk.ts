/** One disk becomes one image tree: read in full, compared with the parent's, or only where its dirty map says that it was written.
 *
 *  Holes are never read; chunks of zeroes are read, but neither hashed nor sent. The parent's leaf over the same place is read along: an
 *  unchanged chunk is known by its id and costs the server nothing, and an unchanged node likewise. A parent that is damaged is left alone:
 *  the backup is then as if it were the first, and so repairs it. A dirty map that an audit finds wrong, or whose parent cannot be read, is
 *  left alone too: the disk is read in full from its start, in the same run.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { hasCode } from '../../src/core/errors.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import { KiB, MiB } from '../../src/core/limits.js'
import type { RateLimiter } from '../../src/core/rate-limit.js'
import type { NodeSource, ScanContext } from '../upload/chunk-sink.js'
import { auditSample, type AuditConfig } from './audit-sample.js'
import { MapUnusable, type BlockSource } from './block-source.js'
import { slotBytes, slotCount, slotSpan, type ImageContent, type ImageShape } from './image-node.js'
import { ImageTreeReader, ImageTreeWriter } from './image-tree.js'
import { readAhead, type AheadStep } from './read-ahead.js'
import { incrementalSteps, readSteps, type ReadStep, type ScanStep } from './scan-steps.js'

export interface ParentDisk { readonly nodes: NodeSource; readonly content: ImageContent }
export interface DiskScanOptions {
  /** For messages. */
  readonly name: string
  readonly source: BlockSource
  readonly shape: ImageShape
  readonly context: ScanContext
  readonly parent: ParentDisk | undefined
  /** Why the source's dirty map is not used; undefined: it is, or there is none. */
  readonly mapRefusal: string | undefined
  readonly usesMap: boolean
  readonly audit: AuditConfig | undefined
  readonly limit: RateLimiter | undefined
}
export interface DiskScanResult {
  readonly content: ImageContent
  readonly read: 'full' | 'incremental'
  /** Why it was read in full although a map was given. */
  readonly reason?: string
  /** Taken over unread, and read because the map does not call it clean; both 0 after a full read. */
  readonly cleanBytes: number
  readonly dirtyBytes: number
  readonly auditedBytes: number
  /** Slots that the map calls clean and that are not: the audit ends with the first. */
  readonly auditMismatches: number
}

/** Bytes between two looks at the outside world (messages, cancellation). */
const TURN_EVERY_BYTES = 32 * MiB
const ZEROES = Buffer.alloc(64 * KiB)
const NO_AUDIT: AuditConfig = { share: 0, seed: '' }

/** What makes a parent useless, as opposed to what makes the server unreachable. */
export function isDamage(error: unknown): boolean {
  return hasCode(error, 'CHUNK_MISSING') || hasCode(error, 'CHUNK_CORRUPT') || hasCode(error, 'TREE_MALFORMED') ||
    hasCode(error, 'CHUNK_NOT_READABLE')
}

/** @throws what reading the source throws, and what makes the server unreachable */
export async function scanDisk(options: DiskScanOptions): Promise<DiskScanResult> {
  const none = { cleanBytes: 0, dirtyBytes: 0, auditedBytes: 0, auditMismatches: 0 }
  const { parent, context, name } = options
  let reason = options.mapRefusal
  let audit = none
  if (options.usesMap && parent !== undefined) {
    const pass = new DiskPass(options, parent)
    try {
      const content = await pass.runIncremental()
      return { content, read: 'incremental', ...pass.figures }
    } catch (error) {
      if (!(error instanceof MapUnusable) && !isDamage(error)) throw error
      pass.forget()
      audit = { ...none, auditedBytes: pass.figures.auditedBytes, auditMismatches: pass.figures.auditMismatches }
      reason = error instanceof MapUnusable ? error.message : 'the parent snapshot cannot be read in all its parts'
      if (error instanceof MapWrong) context.report({ path: name, reason: 'map-wrong', message: `${capitalised(reason)}. ` +
        'The disk is read in full now, and this snapshot is right; earlier ones that were made by this map may hold old data in places.' })
    }
  }
  if (reason !== undefined) context.note(`${name} is read in full: ${reason}`)
  const content = await new DiskPass(options, parent).runFull()
  return { content, read: 'full', ...(reason === undefined ? {} : { reason }), ...audit }
}
const capitalised = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1)

/** An audit found a write that the map does not know of. */
class MapWrong extends MapUnusable {}

/** One reading of the disk, from its start. */
class DiskPass {
  readonly figures = { cleanBytes: 0, dirtyBytes: 0, auditedBytes: 0, auditMismatches: 0 }
  readonly #writer: ImageTreeWriter
  #parent: ImageTreeReader | undefined
  #sinceTurnBytes = 0
  #passedBytes = 0
  /** The source ended before its length: the rest is taken as zeroes. */
  #isCutShort = false

  constructor(readonly options: DiskScanOptions, parent: ParentDisk | undefined) {
    this.#parent = parent === undefined ? undefined : new ImageTreeReader(parent.nodes, parent.content)
    this.#writer = new ImageTreeWriter(options.context.sink, options.shape, this.#parent?.findNode)
  }

  async runFull(): Promise<ImageContent> {
    return await this.#run(readSteps(this.options.source, this.options.shape))
  }
  /** @throws {MapWrong}; what reading the parent throws */
  async runIncremental(): Promise<ImageContent> {
    const { source, shape, audit } = this.options
    const parent = this.#parent!
    return await this.#run(incrementalSteps({ source, shape, parent, isAudited: auditSample(audit ?? NO_AUDIT), figures: this.figures }))
  }
  /** Takes back the progress of a reading that does not count. */
  forget(): void { this.options.context.counters.sourceBytes -= this.#passedBytes }

  async #run(steps: AsyncGenerator<ScanStep>): Promise<ImageContent> {
    const { source: { reads }, shape, context: { signal }, limit } = this.options
    if (reads.kind === 'direct') {
      for await (const step of steps) {
        if (step.kind !== 'read') { await this.#takeOver(step); continue }
        this.#countTo(step.from)
        for (let slot = step.from; slot < step.to && !this.#isCutShort; slot++) await this.#takeSlot(step, slot, reads.read)
        if (this.#isCutShort) break
      }
    } else {
      for await (const step of readAhead(steps, reads, shape, limit, signal)) {
        if (step.kind !== 'read') { await this.#takeOver(step); continue }
        this.#countTo(step.from)
        for (let slot = step.from; slot < step.to; slot++) await this.#takeRead(step, slot)
        if (step.data !== undefined) reads.release?.(step.data)
      }
    }
    this.#countTo(slotCount(shape))
    return await this.#writer.finish()
  }
  async #takeOver(step: Exclude<AheadStep, ReadStep>): Promise<void> {
    this.options.context.signal.throwIfAborted()
    if (step.kind === 'subtree') {
      await this.#writer.inheritSubtree(step.level, step.from, step.id)
      this.#countTo(Math.min(slotCount(this.options.shape), step.from + slotSpan(step.level)))
      return
    }
    for (let i = 0; i < step.ids.length; i++) {
      const added = this.#writer.add(step.from + i, step.ids[i])
      if (added !== undefined) await added
    }
    this.#countTo(step.from + step.ids.length)
  }

  async #takeSlot(step: ReadStep, slot: number, read: (into: Buffer, position: number) => number): Promise<void> {
    const { shape, limit, context: { sink, counters, signal } } = this.options
    const bytes = slotBytes(shape, slot)
    await this.#turnSometimes(bytes)
    if (limit !== undefined) await limit.take(bytes, signal)
    const offered = sink.space(bytes)
    const space = offered instanceof Promise ? await offered : offered
    const chunk = space.subarray(0, bytes)
    const count = read(chunk, slot * shape.chunkBytes)
    counters.bytesRead += count
    if (count < bytes) {
      this.#isCutShort = true
      chunk.fill(0, count)
    }
    const parentId = step.parentIds === undefined ? await this.#parentAt(slot) : step.parentIds[slot - step.from]
    await this.#place(step, slot, isZero(chunk) ? undefined : sink.take(bytes, CHUNK_KINDS.data, parentId), parentId)
  }
  async #takeRead(step: ReadStep & { readonly data: Buffer | undefined }, slot: number): Promise<void> {
    const { shape, context: { sink, counters } } = this.options
    const bytes = slotBytes(shape, slot)
    await this.#turnSometimes(bytes)
    const from = (slot - step.from) * shape.chunkBytes
    const data = step.data?.subarray(from, from + bytes)
    counters.bytesRead += bytes
    const parentId = step.parentIds === undefined ? await this.#parentAt(slot) : step.parentIds[slot - step.from]
    let id: ChunkId | undefined
    if (data !== undefined && !isZero(data)) {
      const offered = sink.space(bytes)
      const space = offered instanceof Promise ? await offered : offered
      space.set(data)
      id = sink.take(bytes, CHUNK_KINDS.data, parentId)
    }
    await this.#place(step, slot, id, parentId)
  }
  async #place(step: ReadStep, slot: number, id: ChunkId | undefined, parentId: ChunkId | undefined): Promise<void> {
    if (step.isAudit === true) { this.#audit(slot, id, parentId); return }
    const added = this.#writer.add(slot, id)
    if (added !== undefined) await added
    this.#countTo(slot + 1)
  }
  #audit(slot: number, id: ChunkId | undefined, parentId: ChunkId | undefined): void {
    const { shape } = this.options
    this.figures.auditedBytes += slotBytes(shape, slot)
    if (id === undefined ? parentId === undefined : parentId?.equals(id) === true) return
    this.figures.auditMismatches++
    throw new MapWrong(`its dirty map is wrong: it calls the ${shape.chunkBytes} bytes at ${slot * shape.chunkBytes} clean, and they have changed`)
  }
  async #parentAt(slot: number): Promise<ChunkId | undefined> {
    try {
      const id = this.#parent?.chunkAt(slot)
      return id instanceof Promise ? await id : id
    } catch (error) {
      if (!isDamage(error)) throw error
      this.#parent = undefined
      return undefined
    }
  }
  /** Progress is through the image: what is not read counts as it is passed. */
  #countTo(slot: number): void {
    const { shape, context: { counters } } = this.options
    const passed = Math.min(slot * shape.chunkBytes, shape.imageBytes)
    if (passed <= this.#passedBytes) return
    counters.sourceBytes += passed - this.#passedBytes
    this.#passedBytes = passed
  }
  async #turnSometimes(bytes: number): Promise<void> {
    const { signal } = this.options.context
    signal.throwIfAborted()
    this.#sinceTurnBytes += bytes
    if (this.#sinceTurnBytes < TURN_EVERY_BYTES) return
    this.#sinceTurnBytes = 0
    await turn()
    signal.throwIfAborted()
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
