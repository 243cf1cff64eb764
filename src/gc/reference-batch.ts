/** Gathers references and looks them up together: a B-tree that is asked in the order of its keys answers several times as fast as one that is
 *  asked at random, and the more keys at once, the closer they lie. Nodes and data wait apart: nodes are needed at once to go on, data only in the end.
 *  Memory: REFERENCES_MAX ids of each kind, 44 bytes an id.
 */
import { setImmediate } from 'node:timers/promises'
import { copyId } from '../core/bytes.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, type ChunkKind } from '../core/ids.js'
import { NODE_REF_BYTES } from '../core/node-format.js'
import type { ChunkIndex } from '../index/chunk-index.js'

const REFERENCES_MAX = 2 ** 19
/** One slice is looked up without a pause: some milliseconds. */
const SLICE = 4_096
const ROW_SPAN = 2 ** 20

export interface ReferenceSink {
  found(kind: ChunkKind, packNumber: number, entryNumber: number, rawBytes: number): void
  absent(kind: ChunkKind): void
}

class Gathered {
  readonly ids = Buffer.allocUnsafeSlow(REFERENCES_MAX * CHUNK_ID_BYTES)
  count = 0
}

export class ReferenceBatch {
  readonly #gathered = new Map<ChunkKind, Gathered>()
  constructor(readonly index: Pick<ChunkIndex, 'locate'>, readonly sink: ReferenceSink, readonly signal: AbortSignal) {}

  /** Nothing awaits unless the batch is full. */
  add(kind: ChunkKind, from: Uint8Array, offset: number): Promise<void> | undefined {
    const gathered = this.#of(kind)
    copyId(from, offset, gathered.ids, gathered.count++ * CHUNK_ID_BYTES)
    return gathered.count === REFERENCES_MAX ? this.#settle(kind, gathered) : undefined
  }
  /** References as a node lists them: kind, id. */
  async addPacked(packed: Buffer): Promise<void> {
    for (let at = 0; at < packed.byteLength; at += NODE_REF_BYTES) {
      const kind = packed[at] as ChunkKind
      const gathered = this.#of(kind)
      copyId(packed, at + 1, gathered.ids, gathered.count++ * CHUNK_ID_BYTES)
      if (gathered.count === REFERENCES_MAX) await this.#settle(kind, gathered)
    }
  }
  #of(kind: ChunkKind): Gathered {
    let gathered = this.#gathered.get(kind)
    if (gathered === undefined) this.#gathered.set(kind, gathered = new Gathered())
    return gathered
  }

  async settleNodes(): Promise<void> {
    const gathered = this.#gathered.get(CHUNK_KINDS.node)
    if (gathered !== undefined) await this.#settle(CHUNK_KINDS.node, gathered)
  }
  async settle(): Promise<void> { for (const [kind, gathered] of this.#gathered) await this.#settle(kind, gathered) }

  async #settle(kind: ChunkKind, gathered: Gathered): Promise<void> {
    const { ids, count } = gathered
    const order = inIdOrder(ids, count)
    gathered.count = 0
    const slice = Buffer.allocUnsafeSlow(SLICE * CHUNK_ID_BYTES)
    for (let from = 0; from < count;) {
      let length = 0, last = -1
      for (; from < count && length < SLICE; from++) {
        const prefix = Math.floor(order[from]! / ROW_SPAN), at = order[from]! % ROW_SPAN * CHUNK_ID_BYTES
        if (prefix === last && slice.compare(ids, at, at + CHUNK_ID_BYTES, (length - 1) * CHUNK_ID_BYTES, length * CHUNK_ID_BYTES) === 0) continue
        last = prefix
        copyId(ids, at, slice, length++ * CHUNK_ID_BYTES)
      }
      const { packNumbers, entryNumbers, kinds, rawBytes } = await this.index.locate(slice.subarray(0, length * CHUNK_ID_BYTES))
      for (let i = 0; i < length; i++) {
        if (packNumbers[i] === 0) this.sink.absent(kind)
        else this.sink.found(kinds[i] as ChunkKind, packNumbers[i]!, entryNumbers[i]!, rawBytes[i]!)
      }
      await setImmediate()
      this.signal.throwIfAborted()
    }
  }
}

/** Keys of the first four bytes of an id and its row, ascending. */
function inIdOrder(ids: Buffer, count: number): Float64Array {
  const order = new Float64Array(count)
  for (let row = 0; row < count; row++) order[row] = ids.readUInt32BE(row * CHUNK_ID_BYTES) * ROW_SPAN + row
  return order.sort()
}
