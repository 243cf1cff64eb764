/** Reads chunks back: from the spool while a pack waits there, else from the target; one ranged read for neighbouring blocks.
 *
 *  Damage is told apart from absence and from unreachability: PACK_CORRUPT and a missing object make a chunk `undefined`
 *  with a report; STORE_UNAVAILABLE passes through.
 */
import { open } from 'node:fs/promises'
import { hasCode, isErrno, RoostError } from '../core/errors.js'
import type { ChunkKind, PackNumber } from '../core/ids.js'
import { MiB } from '../core/limits.js'
import type { ChunkIndex, Locations, PackRow } from '../index/chunk-index.js'
import type { ByteRange, ObjectStore } from '../store/object-store.js'
import { ByteLru } from './byte-lru.js'
import { packKey as packObjectKey } from './layout.js'
import { chunkInBlock, decodePackHeader, PACK_HEADER_BYTES, packCorrupt } from './pack-format.js'
import type { PackUploads } from './pack-uploads.js'
import type { SealPool } from './seal-pool.js'

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
  readonly store: ObjectStore
  readonly uploads: PackUploads
  readonly pool: SealPool
  readonly packKey: Buffer
  readonly dedupKey: Buffer
  /** Told of every damaged or absent pack part that a read stumbled on. */
  report(problem: RoostError, pack: PackRow): void
}
/** One opened block with the rows of `locations` that lie in it; `bytes` undefined = damaged or absent. */
export interface ReadBlock { readonly bytes: Buffer | undefined; readonly rows: readonly number[] }

interface BlockPlan { readonly offset: number; readonly storedBytes: number; readonly rows: number[] }
interface RangePlan { readonly pack: PackNumber; readonly range: ByteRange; readonly blocks: readonly BlockPlan[] }

export class PackReader {
  readonly #deps: PackReaderDeps
  readonly #blocks = new ByteLru<string, Buffer>(BLOCK_CACHE_BYTES)
  readonly #headers = new ByteLru<PackNumber, Buffer>(HEADER_CACHE_BYTES)
  readonly #rows = new ByteLru<PackNumber, PackRow>(HEADER_CACHE_BYTES)

  constructor(deps: PackReaderDeps) { this.#deps = deps }

  /** Opened blocks in pack order with bounded read-ahead. Rows that are not present (pack number 0) are left out. */
  async *blocks(locations: Locations, rows: readonly number[], signal?: AbortSignal): AsyncIterable<ReadBlock> {
    const ranges = planRanges(locations, rows)
    const ahead: Promise<ReadBlock[]>[] = []
    let next = 0
    try {
      while (next < ranges.length || ahead.length > 0) {
        while (next < ranges.length && ahead.length < RANGES_AHEAD) {
          const reading = this.#readRange(ranges[next++]!, signal)
          reading.catch(() => undefined) // awaited below, in order; this only keeps an early failure from being "unhandled"
          ahead.push(reading)
        }
        yield* await ahead.shift()!
      }
    } finally {
      await Promise.allSettled(ahead)
    }
  }

  async #readRange(plan: RangePlan, signal?: AbortSignal): Promise<ReadBlock[]> {
    const cached = plan.blocks.map((block) => this.#blocks.get(cacheKey(plan.pack, block.offset)))
    if (cached.every((bytes) => bytes !== undefined)) return plan.blocks.map((block, i) => ({ bytes: cached[i], rows: block.rows }))
    const row = await this.packRow(plan.pack)
    try {
      const [header, bytes] = await Promise.all([this.#header(row, signal), this.readPackRange(row, plan.range, signal)])
      return await Promise.all(plan.blocks.map(async (block) => ({ bytes: await this.#openBlock(row, header, block, bytes, plan.range), rows: block.rows })))
    } catch (error) {
      if (!(error instanceof RoostError) || (error.code !== 'PACK_CORRUPT' && error.code !== 'CHUNK_MISSING')) throw error
      this.#deps.report(error, row)
      return plan.blocks.map((block) => ({ bytes: undefined, rows: block.rows }))
    }
  }
  async #openBlock(row: PackRow, header: Buffer, block: BlockPlan, bytes: Buffer, range: ByteRange): Promise<Buffer | undefined> {
    const key = cacheKey(row.packNumber, block.offset)
    const known = this.#blocks.get(key)
    if (known !== undefined) return known
    const at = block.offset - range.offset
    const sealed = Buffer.from(new Uint8Array(bytes.subarray(at, at + block.storedBytes)).buffer)
    try {
      const opened = await this.#deps.pool.decode(this.#deps.packKey, header, block.offset, sealed)
      this.#blocks.set(key, opened, opened.byteLength)
      return opened
    } catch (error) {
      if (!hasCode(error, 'PACK_CORRUPT')) throw error
      this.#deps.report(error, row)
      return undefined
    }
  }

  /** One chunk, its id verified; undefined when damaged or absent. */
  async readChunk(id: Buffer, signal?: AbortSignal): Promise<Buffer | undefined> {
    const locations = await this.#deps.index.locate(id)
    for await (const { bytes, rows } of this.blocks(locations, [0], signal))
      if (bytes !== undefined && rows.includes(0))
        return chunkInBlock(bytes, { offset: locations.offsetsInBlock[0]!, rawBytes: locations.rawBytes[0]! }, this.#deps.dedupKey, locations.kinds[0] as ChunkKind, id)
    return undefined
  }

  async packRow(number: PackNumber): Promise<PackRow> {
    const known = this.#rows.get(number)
    if (known !== undefined) return known
    const row = await this.#deps.index.getPack(number)
    if (row === undefined) throw new RoostError('INDEX_CORRUPT', 'The index names a pack that it does not hold; run `roost check`.', { pack: number })
    this.#rows.set(number, row, 256)
    return row
  }
  async #header(row: PackRow, signal?: AbortSignal): Promise<Buffer> {
    const known = this.#headers.get(row.packNumber)
    if (known !== undefined) return known
    const header = await this.readPackRange(row, { offset: 0, bytes: PACK_HEADER_BYTES }, signal)
    if (decodePackHeader(header).kind !== row.kind) throw packCorrupt('its kind is not what the index says', 10)
    this.#headers.set(row.packNumber, header, 256)
    return header
  }

  /** @throws {RoostError} CHUNK_MISSING when the pack is nowhere; PACK_CORRUPT when it is too short; STORE_UNAVAILABLE. */
  async readPackRange(row: PackRow, range: ByteRange, signal?: AbortSignal): Promise<Buffer> {
    const file = this.#deps.uploads.spoolFile(row.packNumber)
    const spooled = file === undefined ? undefined : await readFileRange(file, range)
    if (spooled !== undefined) return spooled
    const call = signal === undefined ? {} : { signal }
    const bytes = await this.#deps.store.getRange(packObjectKey(row.packId), range, call).catch((error: unknown) => {
      // Every range asked for here ends within the pack as it was written: a shorter object is damage.
      if (hasCode(error, 'OBJECT_TOO_SHORT')) throw packCorrupt('it is shorter than when it was written', range.offset)
      throw error
    })
    if (bytes === undefined)
      throw new RoostError('CHUNK_MISSING', 'A pack that the index names is not on its target.', { pack: row.packId })
    return bytes
  }
}

const cacheKey = (pack: PackNumber, offset: number): string => `${pack}:${offset}`

/** Undefined when the file is gone: it was uploaded meanwhile. */
async function readFileRange(file: string, range: ByteRange): Promise<Buffer | undefined> {
  let handle
  try {
    handle = await open(file, 'r')
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return undefined
    throw new RoostError('STORE_UNAVAILABLE', 'The server cannot read its spool.', {}, { cause: error })
  }
  try {
    const bytes = Buffer.allocUnsafe(range.bytes)
    const { bytesRead } = await handle.read(bytes, 0, range.bytes, range.offset)
    if (bytesRead !== range.bytes) throw packCorrupt('its spool file is short', range.offset)
    return bytes
  } finally {
    await handle.close()
  }
}

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

