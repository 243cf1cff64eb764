/** A ChunkSink and NodeSource in memory: what a source stored, counted, readable again. */
import { assert } from '../../src/core/assert.js'
import { RoostError } from '../../src/core/errors.js'
import { hashChunk } from '../../src/core/hash.js'
import { asChunkId, CHUNK_ID_BYTES, CHUNK_KINDS, chunkKey, type ChunkId, type ChunkKey, type ChunkKind } from '../../src/core/ids.js'
import { LIMITS } from '../../src/core/limits.js'
import { decodeNode } from '../../src/core/node-format.js'
import type { ChunkSink, NodeSource } from '../../client/upload/chunk-sink.js'

const DEDUP_KEY = Buffer.alloc(32, 7)
export interface StoredChunk { readonly kind: ChunkKind; readonly bytes: Buffer }

/** Chunks outlive a sink: pass the same store to the next one to play a second backup. */
export class MemoryChunks {
  readonly byKey = new Map<ChunkKey, StoredChunk>()
  get(id: ChunkId): StoredChunk {
    const chunk = this.byKey.get(chunkKey(id))
    if (chunk === undefined) throw new RoostError('CHUNK_MISSING', 'The chunk was never stored.')
    return chunk
  }
}

export class MemorySink implements ChunkSink {
  /** Chunks claimed and not inherited, also those that were stored before. */
  readonly taken = { dataChunks: 0, dataBytes: 0, nodes: 0, nodeBytes: 0 }
  readonly inherited = { dataChunks: 0, nodes: 0 }
  #arena: Buffer
  #used = 0

  constructor(readonly chunks = new MemoryChunks(), readonly arenaBytes = 2 * LIMITS.chunkBytesMax) {
    this.#arena = Buffer.alloc(arenaBytes)
  }
  space(bytesMin: number, keepBytes = 0): Buffer {
    assert(bytesMin <= LIMITS.chunkBytesMax && keepBytes <= this.#arena.byteLength - this.#used, 'space as promised')
    if (this.#arena.byteLength - this.#used < bytesMin) {
      const next = Buffer.alloc(this.arenaBytes)
      this.#arena.copy(next, 0, this.#used, this.#used + keepBytes)
      this.#arena = next
      this.#used = 0
    }
    return this.#arena.subarray(this.#used)
  }
  take(bytes: number, kind: ChunkKind, inherited?: Uint8Array): ChunkId {
    assert(bytes > 0 && bytes <= this.#arena.byteLength - this.#used, 'a chunk has bytes')
    const chunk = this.#arena.subarray(this.#used, this.#used + bytes)
    const { id, isInherited } = this.#store(chunk, kind, inherited)
    if (!isInherited) this.#used += bytes
    return id
  }
  put(bytes: Uint8Array, kind: ChunkKind, inherited?: Uint8Array): ChunkId { return this.#store(bytes, kind, inherited).id }

  #store(bytes: Uint8Array, kind: ChunkKind, inherited?: Uint8Array): { id: ChunkId; isInherited: boolean } {
    assert(bytes.byteLength <= LIMITS.chunkBytesMax, 'a chunk is at most chunkBytesMax')
    const id = asChunkId(hashChunk(DEDUP_KEY, bytes, kind).subarray(0, CHUNK_ID_BYTES))
    const isInherited = inherited !== undefined && id.equals(inherited)
    if (isInherited) this.inherited[kind === CHUNK_KINDS.data ? 'dataChunks' : 'nodes']++
    else {
      this.taken[kind === CHUNK_KINDS.data ? 'dataChunks' : 'nodes']++
      this.taken[kind === CHUNK_KINDS.data ? 'dataBytes' : 'nodeBytes'] += bytes.byteLength
      this.chunks.byKey.set(chunkKey(id), { kind, bytes: Buffer.from(bytes) })
    }
    return { id, isInherited }
  }
}

/** Serves nodes as a session bound to a snapshot does: only the root, and what nodes served before list.
 *  Give no `root` to read anything. */
export class MemoryNodes implements NodeSource {
  readonly calls: number[] = []
  readonly #readable = new Set<ChunkKey>()
  constructor(readonly chunks: MemoryChunks, readonly root?: ChunkId) {
    if (root !== undefined) this.#readable.add(chunkKey(root))
  }
  async readNodes(ids: readonly ChunkId[]): Promise<Buffer[]> {
    this.calls.push(ids.length)
    return ids.map((id) => {
      if (this.root !== undefined && !this.#readable.has(chunkKey(id)))
        throw new RoostError('CHUNK_NOT_READABLE', 'No node that was read lists this one.')
      const { bytes, kind } = this.chunks.get(id)
      assert(kind === CHUNK_KINDS.node, 'nodes are read as nodes')
      const { refs } = decodeNode(bytes)
      for (let i = 0; i < refs.count; i++) this.#readable.add(chunkKey(refs.id(i)))
      return bytes
    })
  }
}
