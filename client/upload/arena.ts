/** One buffer full of chunks: their bytes, and a table of what they are.
 *
 *  The scanning thread fills arenas, the main thread sends what the server lacks of them, and the arena goes back. All of it is
 *  one SharedArrayBuffer that exactly one thread uses at a time. (Transferred ArrayBuffers would enforce that, but every arrival
 *  counts as new memory for V8: measured a full collection for every 20 MB scanned, a fifth of the client's CPU.) Before a chunk's bytes there is room for its frame header
 *  wherever the source allows (always, except inside a run of chunks cut from one read): neighbours with room are sent as a
 *  single slice.
 *
 *  Layout: payload | offset u32 × n | length u32 × n | id and proof 48 × n | kind u8 × n (bit 7: header room precedes).
 */
import { assert } from '../../src/core/assert.js'
import { FRAME_HEADER_BYTES } from '../../src/core/frames.js'
import { ID_PROOF_BYTES, type ChunkKind } from '../../src/core/ids.js'
import { KiB, LIMITS, MiB } from '../../src/core/limits.js'

/** Data and nodes fill arenas of their own: a source may write nodes while its next data bytes wait in place. */
export type ArenaUse = 'data' | 'nodes'
export interface ArenaShape { readonly payloadBytes: number; readonly chunksMax: number }
export const ARENA_SHAPES: Readonly<Record<ArenaUse, ArenaShape>> = {
  /** Chunks of 1 KiB on average still fill it; with headers it is within one body. */
  data: { payloadBytes: 8 * MiB, chunksMax: 8_192 },
  nodes: { payloadBytes: LIMITS.nodeBytesMax + 64 * KiB, chunksMax: 4_096 },
}
const HAS_ROOM = 0x80
const BYTES_PER_CHUNK = 4 + 4 + ID_PROOF_BYTES + 1

export class Arena {
  readonly payload: Buffer
  readonly offsets: Uint32Array
  readonly lengths: Uint32Array
  readonly idProofs: Buffer
  readonly #kinds: Uint8Array
  /** A view over `buffer`, which was made for a use of the same shape. */
  constructor(readonly use: ArenaUse, readonly buffer: SharedArrayBuffer, public count = 0) {
    const { payloadBytes, chunksMax } = ARENA_SHAPES[use]
    assert(buffer.byteLength === arenaBytes(use), 'the buffer has the shape of its use')
    this.payload = Buffer.from(buffer, 0, payloadBytes)
    this.offsets = new Uint32Array(buffer, payloadBytes, chunksMax)
    this.lengths = new Uint32Array(buffer, payloadBytes + 4 * chunksMax, chunksMax)
    this.idProofs = Buffer.from(buffer, payloadBytes + 8 * chunksMax, ID_PROOF_BYTES * chunksMax)
    this.#kinds = new Uint8Array(buffer, payloadBytes + (8 + ID_PROOF_BYTES) * chunksMax, chunksMax)
  }
  static allocate(use: ArenaUse): Arena { return new Arena(use, new SharedArrayBuffer(arenaBytes(use))) }

  get chunksMax(): number { return this.offsets.length }
  add(offset: number, length: number, kind: ChunkKind, hasHeaderRoom: boolean, idProof: Buffer): void {
    const i = this.count
    assert(i < this.chunksMax, 'an arena is handed over before its table is full')
    this.offsets[i] = offset
    this.lengths[i] = length
    this.#kinds[i] = hasHeaderRoom ? kind | HAS_ROOM : kind
    this.idProofs.set(idProof, i * ID_PROOF_BYTES)
    this.count = i + 1
  }
  kind(i: number): ChunkKind { return (this.#kinds[i]! & ~HAS_ROOM) as ChunkKind }
  hasHeaderRoom(i: number): boolean { return (this.#kinds[i]! & HAS_ROOM) !== 0 }
  /** Views. */
  bytes(i: number): Buffer { return this.payload.subarray(this.offsets[i]!, this.offsets[i]! + this.lengths[i]!) }
  idProof(i: number): Buffer { return this.idProofs.subarray(i * ID_PROOF_BYTES, (i + 1) * ID_PROOF_BYTES) }
}

export function arenaBytes(use: ArenaUse): number {
  const { payloadBytes, chunksMax } = ARENA_SHAPES[use]
  return payloadBytes + BYTES_PER_CHUNK * chunksMax
}
assert(ARENA_SHAPES.data.payloadBytes >= 2 * LIMITS.chunkBytesMax && ARENA_SHAPES.data.payloadBytes % 4 === 0, 'an arena takes the largest chunk')
assert(ARENA_SHAPES.nodes.payloadBytes >= LIMITS.nodeBytesMax + FRAME_HEADER_BYTES, 'a node arena takes the largest node')
