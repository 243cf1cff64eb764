/** Reads chunks back: from the spool while a pack waits there, else from the best target, and from the next when that fails; one ranged
 *  read for neighbouring blocks.
 *
 *  Damage is told apart from absence and from unreachability: PACK_CORRUPT and a missing object make a chunk `undefined`
 *  with a report; STORE_UNAVAILABLE passes through.
 */
import { hasCode, RoostError } from '../core/errors.js'
import type { ChunkKind, PackNumber } from '../core/ids.js'
import { MiB } from '../core/limits.js'
import type { ChunkIndex, Locations, PackRow } from '../index/chunk-index.js'
import type { ByteRange } from '../store/object-store.js'
import { ByteLru } from './byte-lru.js'
import { chunkInBlock, decodePackHeader, PACK_HEADER_BYTES, packCorrupt } from './pack-format.js'
import { isPackDamage, packSources, type PackSource } from './pack-sources.js'
import type { PackUploads } from './pack-uploads.js'
import type { SealPool } from './seal-pool.js'
import type { Target } from './targets/target.js'
import type { TargetSet } from './targets/target-set.js'

/** Neighbouring blocks are fetched together up to this; beyond it a range only delays its first block. */
const RANGE_BYTES_MAX = 4 * MiB
/** Reading over a gap this small is cheaper than another request. */
const RANGE_GAP_BYTES_MAX = 64 * 1024
/** A range is opened as a whole, and well compressed blocks are a hundred times as large then: their number is bounded too.
 *  A request holds RANGES_AHEAD + 1 ranges of opened blocks at most. */
const RANGE_BLOCKS_MAX = 3
const RANGES_AHEAD = 2
const BLOCK_CACHE_BYTES = 16 * MiB
const HEADER_CACHE_BYTES = 1 * MiB

export interface PackReaderDeps {
  readonly index: ChunkIndex
  readonly targets: TargetSet
  readonly uploads: PackUploads
  readonly pool: SealPool
  readonly packKey: Buffer
  readonly dedupKey: Buffer
  /** Told of every part of a pack that is whole nowhere. */
  report(problem: RoostError, pack: PackRow): void
  /** Told of targets whose copy is missing or damaged where another's was whole. */
  onStumble(pack: PackRow, targets: readonly Target[], problem: RoostError): void
}
/** One opened block with the rows of `locations` that lie in it; `bytes` undefined = damaged or absent. `isGone`: the pack left the index after
 *  its rows were located; what is needed of it lies elsewhere now, so locate again. */
export interface ReadBlock { readonly bytes: Buffer | undefined; readonly rows: readonly number[]; readonly isGone?: true }

/** What becomes of a sealed block besides its plaintext; nothing of it is cached. @param rows of the request, ascending in the block */
export type BlockForm = (pack: { readonly packKey: Buffer; readonly header: Buffer }, offset: number, sealed: Buffer, rows: readonly number[]) => Promise<Buffer>

interface BlockPlan { readonly offset: number; readonly storedBytes: number; readonly rows: number[] }
interface RangePlan { readonly pack: PackNumber; readonly range: ByteRange; readonly blocks: readonly BlockPlan[] }

export class PackReader {
  readonly #deps: PackReaderDeps
  readonly #blocks = new ByteLru<string, Buffer>(BLOCK_CACHE_BYTES)
  readonly #headers = new ByteLru<string, Buffer>(HEADER_CACHE_BYTES)
  readonly #rows = new ByteLru<PackNumber, PackRow>(HEADER_CACHE_BYTES)

  constructor(deps: PackReaderDeps) { this.#deps = deps }

  /** Opened blocks in pack order with bounded read-ahead. Rows that are not present (pack number 0) are left out. */
  async *blocks(locations: Locations, rows: readonly number[], signal?: AbortSignal, form?: BlockForm): AsyncIterable<ReadBlock> {
    const ranges = planRanges(locations, rows)
    const ahead: Promise<ReadBlock[]>[] = []
    let next = 0
    try {
      while (next < ranges.length || ahead.length > 0) {
        while (next < ranges.length && ahead.length < RANGES_AHEAD) {
          const reading = this.#readRange(ranges[next++]!, signal, form)
          reading.catch(() => undefined) // awaited below, in order; this only keeps an early failure from being "unhandled"
          ahead.push(reading)
        }
        yield* await ahead.shift()!
      }
    } finally {
      await Promise.allSettled(ahead)
    }
  }

  /** Asks one place after the other until every block is opened. What is damaged or missing in one place and whole in another is told to
   *  `onStumble`; a place that cannot be asked makes the whole unreachable, never absent. */
  async #readRange(plan: RangePlan, signal?: AbortSignal, form?: BlockForm): Promise<ReadBlock[]> {
    const opened = plan.blocks.map((block) => form === undefined ? this.#blocks.get(cacheKey(plan.pack, block.offset)) : undefined)
    const lacking = (): number[] => opened.flatMap((bytes, i) => (bytes === undefined ? [i] : []))
    const blocks = (): ReadBlock[] => plan.blocks.map((block, i) => ({ bytes: opened[i], rows: block.rows }))
    const withoutGone = (): ReadBlock[] => blocks().map((block) => (block.bytes === undefined ? { ...block, isGone: true } : block))
    if (lacking().length === 0) return blocks()
    const row = await this.#packRow(plan.pack)
    if (row === undefined) return withoutGone()
    const damagedOn: Target[] = []
    let damage: RoostError | undefined, blocked: unknown
    const ask = async (source: PackSource): Promise<void> => {
      try {
        const header = await this.#header(row, source, signal)
        const bytes = await source.read(plan.range, signal)
        const results = await Promise.allSettled(lacking().map(async (i) => { opened[i] = await this.#openBlock(row, header, plan.blocks[i]!, bytes, plan.range, form) }))
        for (const result of results) if (result.status === 'rejected') throw result.reason
      } catch (error) {
        if (isPackDamage(error)) {
          damage ??= error
          this.#headers.delete(headerKey(row, source)) // it may be the damage, and not be there once the copy is mended
          if (source.target !== undefined) damagedOn.push(source.target)
        } else if (hasCode(error, 'STORE_UNAVAILABLE') || hasCode(error, 'STORE_REFUSED')) blocked ??= error
        else throw error
      }
    }
    const places = packSources(row, this.#deps, true)
    if (places.length > 1) for (const source of places) {
      if (lacking().length === 0) break
      await ask(source)
    }
    // Nobody had it at the first try: those that could not be asked get all their attempts.
    if (lacking().length > 0 && (places.length === 1 || blocked !== undefined)) {
      blocked = undefined
      for (const source of packSources(row, this.#deps)) {
        if (lacking().length === 0) break
        if (source.target === undefined || !damagedOn.includes(source.target)) await ask(source)
      }
    }
    if (lacking().length > 0) {
      if (await this.#deps.index.getPack(plan.pack) === undefined) return withoutGone()
      if (blocked !== undefined) throw blocked
      this.#deps.report(damage!, row)
    } else if (damagedOn.length > 0) this.#deps.onStumble(row, damagedOn, damage!)
    return blocks()
  }
  /** @throws {RoostError} PACK_CORRUPT */
  async #openBlock(row: PackRow, header: Buffer, block: BlockPlan, bytes: Buffer, range: ByteRange, form?: BlockForm): Promise<Buffer> {
    const at = block.offset - range.offset
    const sealed = Buffer.from(new Uint8Array(bytes.subarray(at, at + block.storedBytes)).buffer)
    if (form !== undefined) return await form({ packKey: this.#deps.packKey, header }, block.offset, sealed, block.rows)
    const opened = await this.#deps.pool.decode(this.#deps.packKey, header, block.offset, sealed)
    this.#blocks.set(cacheKey(row.packNumber, block.offset), opened, opened.byteLength)
    return opened
  }

  /** One chunk, its id verified; undefined when damaged or absent. */
  async readChunk(id: Buffer, signal?: AbortSignal): Promise<Buffer | undefined> {
    for (let turn = 0; turn < LOCATE_TURNS_MAX; turn++) {
      const locations = await this.#deps.index.locate(id)
      const [block] = await collect(this.blocks(locations, [0], signal))
      if (block?.isGone === true) continue
      if (block?.bytes === undefined) return undefined
      return chunkInBlock(block.bytes, { offset: locations.offsetsInBlock[0]!, rawBytes: locations.rawBytes[0]! }, this.#deps.dedupKey, locations.kinds[0] as ChunkKind, id)
    }
    throw stillMoving()
  }

  async #packRow(number: PackNumber): Promise<PackRow | undefined> {
    const known = this.#rows.get(number)
    if (known !== undefined) return known
    const row = await this.#deps.index.getPack(number)
    if (row !== undefined) this.#rows.set(number, row, 256)
    return row
  }
  /** Of this very place: a pack's bytes under another's name would open with no other header. */
  async #header(row: PackRow, source: PackSource, signal?: AbortSignal): Promise<Buffer> {
    const key = headerKey(row, source)
    const known = this.#headers.get(key)
    if (known !== undefined) return known
    const header = await source.read({ offset: 0, bytes: PACK_HEADER_BYTES }, signal)
    if (decodePackHeader(header).kind !== row.kind) throw packCorrupt('its kind is not what the index says', 10)
    this.#headers.set(key, header, 256)
    return header
  }
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}
/** A chunk moves once a collection: a reader that misses it so often looks at an index that contradicts itself. */
export const LOCATE_TURNS_MAX = 8
export const stillMoving = (): RoostError =>
  new RoostError('INDEX_CORRUPT', 'The index names a pack that it does not hold; run `roost check`.')

const headerKey = (row: PackRow, source: PackSource): string => `${row.packNumber}@${source.name}`
const cacheKey = (pack: PackNumber, offset: number): string => `${pack}:${offset}`

function planRanges(locations: Locations, rows: readonly number[]): RangePlan[] {
  const { packNumbers, blockOffsets, blockStoredBytes, offsetsInBlock } = locations
  const present = rows.filter((row) => packNumbers[row] !== 0).sort((a, b) =>
    packNumbers[a]! - packNumbers[b]! || blockOffsets[a]! - blockOffsets[b]! || offsetsInBlock[a]! - offsetsInBlock[b]!)
  const ranges: RangePlan[] = []
  let blocks: BlockPlan[] = [], pack = 0
  const close = (): void => {
    if (blocks.length === 0) return
    const first = blocks[0]!, last = blocks.at(-1)!
    ranges.push({ pack: pack as PackNumber, range: { offset: first.offset, bytes: last.offset + last.storedBytes - first.offset }, blocks })
    blocks = []
  }
  for (const row of present) {
    const offset = blockOffsets[row]!, storedBytes = blockStoredBytes[row]!
    const last = blocks.at(-1)
    if (last !== undefined && packNumbers[row] === pack && last.offset === offset) { last.rows.push(row); continue }
    const near = last !== undefined && packNumbers[row] === pack && blocks.length < RANGE_BLOCKS_MAX && offset - (last.offset + last.storedBytes) <= RANGE_GAP_BYTES_MAX &&
      offset + storedBytes - blocks[0]!.offset <= RANGE_BYTES_MAX
    if (!near) { close(); pack = packNumbers[row]! }
    blocks.push({ offset, storedBytes, rows: [row] })
  }
  close()
  return ranges
}

