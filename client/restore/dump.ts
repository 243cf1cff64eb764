/** Streams one file or image, in order, to a writable: for pipes and standard output. */
import { once } from 'node:events'
import type { Writable } from 'node:stream'
import { RoostError } from '../../src/core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, chunkKey, type ChunkId, type ChunkKey } from '../../src/core/ids.js'
import { LIMITS, MiB } from '../../src/core/limits.js'
import { openSnapshot, type OpenSnapshot, type SnapshotChoice } from '../browse/open-snapshot.js'
import { chunkError, verifiedChunks, type ReadableSession } from '../read-chunks.js'
import type { RepositoryClient } from '../repository-client.js'
import type { PlacedExtent } from '../tree/content-reader.js'
import type { Content } from '../tree/entry.js'
import { contentExtents } from './content-extents.js'
import { requireContentEntry } from './run-restore.js'

/** Plaintext of one batch; two are held: the one being written and the next. */
const BATCH_BYTES_MAX = 12 * MiB
const BATCH_EXTENTS_MAX = LIMITS.readIdsMax
const ZEROES = Buffer.alloc(256 * 1024)

export interface DumpOptions extends SnapshotChoice {
  /** The file or image within the snapshot; may be left out when the snapshot holds one entry only. */
  readonly path?: Buffer
}
export interface DumpReport { readonly snapshotId: string; readonly bytes: number }

/** Resolves when `output` took every byte; does not end it. Damage ends the dump: a stream cannot leave a part out.
 *  @throws {RoostError} CHUNK_MISSING, CHUNK_CORRUPT, SNAPSHOT_UNKNOWN …; what `output` fails with */
export async function dumpFile(client: RepositoryClient, options: DumpOptions, output: Writable, signal: AbortSignal): Promise<DumpReport> {
  const open = await openSnapshot(client, options, { signal })
  try {
    const entry = await requireContentEntry(open, options.path)
    return { snapshotId: open.snapshotId, bytes: await dumpContent(open, entry.content!, output, signal) }
  } finally { await open.close() }
}

/** As dumpFile, of an entry that was found already. Returns the bytes, as many as its directory says. */
export async function dumpContent(open: Pick<OpenSnapshot, 'session' | 'nodes'>, content: Content, output: Writable, signal: AbortSignal): Promise<number> {
  const writer = new OrderedWriter(output, signal)
  const batches = gatherBatches(contentExtents(open.nodes, content))
  let coming = nextBatch(open.session, batches, signal)
  for (let batch = await coming; batch !== undefined; batch = await coming) {
    coming = nextBatch(open.session, batches, signal)
    coming.catch(() => undefined) // seen by the loop's await
    for (const { bytes, id } of batch.extents) {
      if (id === undefined) await writer.writeZeroes(bytes)
      else await writer.write(requireLength(batch.chunks.get(chunkKey(id))!, bytes))
    }
  }
  if (writer.bytes !== content.bytes) throw new RoostError('TREE_MALFORMED', 'The content is not as long as its directory says.')
  return writer.bytes
}

interface Batch { readonly extents: readonly PlacedExtent[]; readonly chunks: ReadonlyMap<ChunkKey, Buffer> }

async function* gatherBatches(extents: AsyncIterable<PlacedExtent>): AsyncGenerator<PlacedExtent[]> {
  let batch: PlacedExtent[] = []
  let bytes = 0
  for await (const extent of extents) {
    batch.push(extent)
    if (extent.id !== undefined) bytes += extent.bytes
    if (bytes < BATCH_BYTES_MAX && batch.length < BATCH_EXTENTS_MAX) continue
    yield batch
    batch = []
    bytes = 0
  }
  if (batch.length > 0) yield batch
}
async function nextBatch(session: ReadableSession, batches: AsyncGenerator<PlacedExtent[]>, signal: AbortSignal): Promise<Batch | undefined> {
  const { value: extents, done } = await batches.next()
  if (done === true) return undefined
  const wanted = new Map<ChunkKey, ChunkId>()
  for (const { id } of extents) if (id !== undefined) wanted.set(chunkKey(id), id)
  const ids = [...wanted.values()]
  const chunks = new Map<ChunkKey, Buffer>()
  if (ids.length > 0) {
    const packed = Buffer.concat(ids, ids.length * CHUNK_ID_BYTES)
    for await (const { index, bytes, problem } of verifiedChunks(session, packed, CHUNK_KINDS.data, { signal })) {
      if (bytes === undefined) throw chunkError(problem, ids[index]!)
      chunks.set(chunkKey(ids[index]!), bytes)
    }
  }
  return { extents, chunks }
}
function requireLength(chunk: Buffer, bytes: number): Buffer {
  if (chunk.byteLength !== bytes) throw new RoostError('TREE_MALFORMED', 'A chunk is not as long as its file says.')
  return chunk
}

/** Writes in order, no faster than `output` takes it. */
export class OrderedWriter {
  bytes = 0
  #failure: Error | undefined
  constructor(readonly output: Writable, readonly signal: AbortSignal) {
    output.once('error', (error: Error) => { this.#failure = error })
  }
  async write(bytes: Buffer): Promise<void> {
    this.signal.throwIfAborted()
    if (this.#failure !== undefined) throw this.#failure
    this.bytes += bytes.byteLength
    if (!this.output.write(bytes)) await once(this.output, 'drain', { signal: this.signal })
  }
  async writeZeroes(count: number): Promise<void> {
    for (let done = 0; done < count; done += ZEROES.byteLength) await this.write(ZEROES.subarray(0, Math.min(ZEROES.byteLength, count - done)))
  }
}
