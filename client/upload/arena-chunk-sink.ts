/** The ChunkSink of a scan: fills arenas and hands over full ones. Runs in the scanning thread.
 *
 *  The hot path has no promises and no copies: `space` and `take` answer at once unless every arena is on its way, which is the
 *  back-pressure. A chunk is hashed once, here. What was queued lately is not queued again.
 */
import { assert } from '../../src/core/assert.js'
import { FRAME_HEADER_BYTES } from '../../src/core/frames.js'
import { hashChunk, idOf } from '../../src/core/hash.js'
import type { ChunkId, ChunkKind } from '../../src/core/ids.js'
import type { Arena, ArenaUse } from './arena.js'
import type { ChunkSink } from './chunk-sink.js'
import { RecentIds } from './recent-ids.js'

export interface ArenaSupply {
  /** An empty arena, or undefined while all are on their way. */
  tryTake(use: ArenaUse): Arena | undefined
  take(use: ArenaUse): Promise<Arena>
  /** The arena is the receiver's from here on. */
  send(arena: Arena): void
}

/** Chunks that may be taken from one space before the next call of space(): room for them is kept in the table. */
const TAKES_PER_SPACE_MAX = 2_048

export class ArenaChunkSink implements ChunkSink {
  readonly #recent = new RecentIds()
  #data: Arena | undefined
  /** Where the current space begins, and where the queued chunks before it end. */
  #start = 0
  #end = 0
  #nodes: Arena | undefined
  #nodesEnd = 0
  #chunks = 0
  constructor(readonly dedupKey: Buffer, readonly supply: ArenaSupply) {}
  /** Chunks seen, inherited and repeated ones included. */
  get chunks(): number { return this.#chunks }

  space(bytesMin: number, keepBytes = 0): Buffer | Promise<Buffer> {
    const arena = this.#data ?? this.supply.tryTake('data')
    if (arena === undefined) {
      assert(keepBytes === 0, 'bytes are kept in an arena')
      return this.#spaceInNext(bytesMin, undefined, 0)
    }
    if (arena !== this.#data) this.#begin(arena)
    const isTableFull = arena.count + TAKES_PER_SPACE_MAX > arena.chunksMax
    const next = this.#end + FRAME_HEADER_BYTES
    const capacity = arena.payload.byteLength
    assert(bytesMin <= capacity - FRAME_HEADER_BYTES && keepBytes <= capacity - this.#start, 'the space fits an arena')
    if (!isTableFull && keepBytes === 0 && next + bytesMin <= capacity) this.#start = next
    else if (isTableFull || this.#start + Math.max(bytesMin, keepBytes) > capacity || keepBytes === 0) {
      if (isTableFull || next + Math.max(bytesMin, keepBytes) > capacity) return this.#spaceInNext(bytesMin, arena, keepBytes)
      // Chunks before the kept bytes turned out to be known: their place is free again.
      arena.payload.copyWithin(next, this.#start, this.#start + keepBytes)
      this.#start = next
    }
    return arena.payload.subarray(this.#start)
  }
  /** Goes on in another arena, with the kept bytes at its start. */
  #spaceInNext(bytesMin: number, full: Arena | undefined, keepBytes: number): Buffer | Promise<Buffer> {
    const kept = full?.payload.subarray(this.#start, this.#start + keepBytes)
    const next = this.supply.tryTake('data')
    if (next !== undefined) {
      if (kept !== undefined) next.payload.set(kept, FRAME_HEADER_BYTES)
      if (full !== undefined) this.#sendData(full)
      return this.#begin(next)
    }
    const copy = kept === undefined ? undefined : Buffer.from(kept)
    if (full !== undefined) this.#sendData(full)
    return this.supply.take('data').then((arena) => {
      if (copy !== undefined) arena.payload.set(copy, FRAME_HEADER_BYTES)
      return this.#begin(arena)
    })
  }
  #begin(arena: Arena): Buffer {
    assert(arena.count === 0, 'a new arena is empty')
    this.#data = arena
    this.#end = 0
    this.#start = FRAME_HEADER_BYTES
    return arena.payload.subarray(this.#start)
  }
  #sendData(arena: Arena): void {
    this.#data = undefined
    this.supply.send(arena)
  }

  take(bytes: number, kind: ChunkKind, inherited?: Uint8Array): ChunkId {
    const arena = this.#data
    assert(arena !== undefined && bytes > 0 && this.#start + bytes <= arena.payload.byteLength, 'taken bytes are in the space')
    const idProof = hashChunk(this.dedupKey, arena.payload.subarray(this.#start, this.#start + bytes), kind)
    if (this.#mustQueue(idProof, inherited)) {
      arena.add(this.#start, bytes, kind, this.#start - this.#end >= FRAME_HEADER_BYTES, idProof)
      this.#end = this.#start + bytes
    }
    this.#start += bytes
    return idOf(idProof) as ChunkId
  }
  #mustQueue(idProof: Buffer, inherited: Uint8Array | undefined): boolean {
    this.#chunks++
    if (inherited !== undefined && idProof.compare(inherited, 0, inherited.byteLength, 0, inherited.byteLength) === 0) return false
    return !this.#recent.seen(idProof)
  }

  put(bytes: Uint8Array, kind: ChunkKind, inherited?: Uint8Array): ChunkId | Promise<ChunkId> {
    const idProof = hashChunk(this.dedupKey, bytes, kind)
    const id = idOf(idProof) as ChunkId
    if (!this.#mustQueue(idProof, inherited)) return id
    if (this.#fitsNodes(bytes)) return this.#addNode(bytes, kind, idProof)
    if (this.#nodes !== undefined) this.#sendNodes(this.#nodes)
    const next = this.supply.tryTake('nodes')
    if (next === undefined) return this.supply.take('nodes').then((arena) => this.#addFirstNode(arena, bytes, kind, idProof))
    return this.#addFirstNode(next, bytes, kind, idProof)
  }
  #fitsNodes(bytes: Uint8Array): boolean {
    const arena = this.#nodes
    return arena !== undefined && arena.count < arena.chunksMax &&
      this.#nodesEnd + FRAME_HEADER_BYTES + bytes.byteLength <= arena.payload.byteLength
  }
  #addFirstNode(arena: Arena, bytes: Uint8Array, kind: ChunkKind, idProof: Buffer): ChunkId {
    assert(this.#nodes === undefined, 'nodes are put one after another')
    this.#nodes = arena
    this.#nodesEnd = 0
    assert(this.#fitsNodes(bytes), 'a chunk put from memory fits a node arena')
    return this.#addNode(bytes, kind, idProof)
  }
  #addNode(bytes: Uint8Array, kind: ChunkKind, idProof: Buffer): ChunkId {
    const arena = this.#nodes!
    const at = this.#nodesEnd + FRAME_HEADER_BYTES
    arena.payload.set(bytes, at)
    arena.add(at, bytes.byteLength, kind, true, idProof)
    this.#nodesEnd = at + bytes.byteLength
    return idOf(idProof) as ChunkId
  }
  #sendNodes(arena: Arena): void {
    this.#nodes = undefined
    this.supply.send(arena)
  }

  /** Hands over what is left. The sink is not used afterwards. */
  finish(): void {
    if (this.#data !== undefined && this.#data.count > 0) this.#sendData(this.#data)
    if (this.#nodes !== undefined && this.#nodes.count > 0) this.#sendNodes(this.#nodes)
  }
}
