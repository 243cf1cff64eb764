/** Keeps checkpoints on the targets: what packs' trailers say, many packs an object, so that a rebuild asks few times instead of twice a pack.
 *
 *  A cache: a pack that a checkpoint names and no target has is not taken in, and one that none names is read by its own trailer. Written in the
 *  background when enough packs have come. Objects are never changed: those that have become small or stale are written anew together, and go only after
 *  what replaces them was read back and holds every pack of theirs that is still there.
 */
import { hasCode, RoostError } from '../../core/errors.js'
import { digest } from '../../core/hash.js'
import type { PackRow } from '../../index/chunk-index.js'
import { bytesBody } from '../../store/bytes-body.js'
import type { ObjectStore } from '../../store/object-store.js'
import { checkpointKey } from '../layout.js'
import { isPackDamage, packSources } from '../pack-sources.js'
import { readPackSelf } from '../read-trailer.js'
import type { RepositoryParts } from '../repository-parts.js'
import { decodeCheckpoint, encodeCheckpoint, packBytesIn, type CheckpointPack } from './checkpoint-format.js'

/** Of one object, before its last pack. */
export const CHECKPOINT_BYTES = 16 * 1024 * 1024
const OBJECT_BYTES_MAX = 32 * 1024 * 1024
/** Packs that make a checkpoint worth writing. */
const PACKS_PER_CHECKPOINT = 256
/** Small ones that are written anew together. */
const SMALL_MAX = 16
/** Read in one go: their packs' names are held against each other in memory. */
const INPUTS_MAX = 64
const ROWS_PER_PAGE = 200
/** Packs are sealed in other orders than they get their numbers: so far back one is looked for that came late. */
const CHECKPOINT_WINDOW = 1_024

type CheckpointParts = Pick<RepositoryParts, 'index' | 'store' | 'targets' | 'uploads' | 'keys' | 'repositoryId' | 'random' | 'report'>
export interface CheckpointsOptions { readonly packsPerCheckpoint?: number; readonly checkpointBytes?: number; readonly smallMax?: number }

export class Checkpoints {
  readonly #parts: CheckpointParts
  readonly #packsPerCheckpoint: number
  readonly #checkpointBytes: number
  readonly #smallMax: number
  readonly #stop = new AbortController()
  #running: Promise<void> | undefined
  #wakes = 0

  constructor(parts: CheckpointParts, { packsPerCheckpoint = PACKS_PER_CHECKPOINT, checkpointBytes = CHECKPOINT_BYTES, smallMax = SMALL_MAX }: CheckpointsOptions = {}) {
    this.#parts = parts
    this.#packsPerCheckpoint = packsPerCheckpoint
    this.#checkpointBytes = checkpointBytes
    this.#smallMax = smallMax
  }

  /** After packs have come: in the background, and only if it is worth it. Whether it is, is looked at now and then, or at once with `isNow`. */
  wake(isNow = false): void {
    if (this.#stop.signal.aborted || (++this.#wakes % Math.ceil(this.#packsPerCheckpoint / 8) !== 0 && !isNow)) return
    this.#running ??= this.maintain(this.#stop.signal).catch((error: unknown) => {
      // A cache can wait for the next occasion; a target that fails is told by its health.
      if (hasCode(error, 'REPOSITORY_CORRUPT')) this.#parts.report({ type: 'damage', error, pack: '' })
    }).finally(() => { this.#running = undefined })
  }
  /** Resolves when nothing runs. */
  async settled(): Promise<void> { while (this.#running !== undefined) await this.#running }

  /** Writes what is new, if it is enough, and brings together what has become small or stale. */
  async maintain(signal: AbortSignal): Promise<void> {
    await this.#writeNew(signal)
    await this.#compact(signal)
  }

  async #writeNew(signal: AbortSignal): Promise<void> {
    const { index } = this.#parts
    const { watermark, recent } = await index.checkpoints()
    const from = Math.max(0, watermark - CHECKPOINT_WINDOW), covered = new Set(recent)
    const isNew = ({ packNumber, state }: PackRow): boolean => state === 'stored' && !covered.has(packNumber)
    if ((await index.listPacks(from, CHECKPOINT_WINDOW + this.#packsPerCheckpoint)).filter(isNew).length < this.#packsPerCheckpoint) return
    const writer = new CheckpointWriter(this.#parts, this.#checkpointBytes)
    const numbers: number[] = [...recent]
    for (let after = from; ;) {
      const rows = await index.listPacks(after, ROWS_PER_PAGE)
      if (rows.length === 0) break
      after = rows.at(-1)!.packNumber
      for (const row of rows.filter(isNew)) {
        signal.throwIfAborted()
        numbers.push(row.packNumber)
        const pack = await this.#trailerOf(row, signal)
        if (pack !== undefined) await writer.add(pack)
      }
    }
    const written = await writer.finish()
    const { checkpoints } = await index.checkpoints()
    await index.setCheckpoints({ ...coveredBy(numbers, watermark), checkpoints: [...checkpoints, ...written] })
  }
  /** Undefined for a pack that cannot be read whole: a rebuild sees for itself. */
  async #trailerOf(row: PackRow, signal: AbortSignal): Promise<CheckpointPack | undefined> {
    const { keys, repositoryId } = this.#parts
    for (const source of packSources(row, this.#parts)) {
      try {
        const { header, trailer } = await readPackSelf(row.storedBytes, (range) => source.read(range, signal), keys.packKey, repositoryId)
        return { packId: row.packId, kind: header.kind, storedBytes: row.storedBytes, blocks: trailer.blocks, idProofs: trailer.entries.idProofs, rawBytes: trailer.entries.rawBytes }
      } catch (error) {
        if (!isPackDamage(error)) throw error
      }
    }
    return undefined
  }

  /** @throws {RoostError} REPOSITORY_CORRUPT when what was written does not hold all that it replaces: then nothing is deleted */
  async #compact(signal: AbortSignal): Promise<void> {
    const { index, store } = this.#parts
    const { checkpoints } = await index.checkpoints()
    const isStale = checkpoints.reduce((sum, { packs }) => sum + packs, 0) > 2 * (await index.totals()).packs + this.#packsPerCheckpoint
    const small = checkpoints.filter(({ bytes }) => bytes < this.#checkpointBytes / 4)
    const inputs = (isStale ? checkpoints : small.length >= this.#smallMax ? small : []).slice(0, INPUTS_MAX)
    if (inputs.length === 0) return
    const writer = new CheckpointWriter(this.#parts, this.#checkpointBytes)
    for (const { id } of inputs) {
      signal.throwIfAborted()
      for (const pack of await this.#packsOf(id)) if (await index.findPack(pack.packId) !== undefined) await writer.add(pack)
    }
    const written = await writer.finish()
    const replaced = new Set(inputs.map(({ id }) => id))
    await this.#requireSuperset(written.map(({ id }) => id), [...replaced], signal)
    const now = await index.checkpoints()
    await index.setCheckpoints({ ...now, checkpoints: [...now.checkpoints.filter(({ id }) => !replaced.has(id)), ...written] })
    const kept = new Set(written.map(({ id }) => id))
    for (const id of replaced) if (!kept.has(id)) await store.delete(checkpointKey(id), { signal })
  }
  /** What is on the targets counts, not what was meant to be written. */
  async #requireSuperset(outputs: readonly string[], inputs: readonly string[], signal: AbortSignal): Promise<void> {
    const held = new Map<string, string>()
    const digestOf = ({ idProofs, rawBytes, blocks }: CheckpointPack): string => `${digest(idProofs).toString('hex')} ${digest(Buffer.from(rawBytes.buffer)).toString('hex')} ${blocks.length}`
    for (const id of outputs) for (const pack of await this.#packsOf(id, true)) held.set(pack.packId, digestOf(pack))
    for (const id of inputs) {
      signal.throwIfAborted()
      for (const pack of await this.#packsOf(id))
        if (held.get(pack.packId) !== digestOf(pack) && await this.#parts.index.findPack(pack.packId) !== undefined)
          throw new RoostError('REPOSITORY_CORRUPT', 'A compacted checkpoint lacks a pack of those that it replaces: they were kept.', { pack: pack.packId })
    }
  }
  /** One that is gone or damaged names nothing: the trailers are the truth. */
  async #packsOf(id: string, isRequired = false): Promise<CheckpointPack[]> {
    try {
      return await readCheckpoint(this.#parts.store, id, this.#parts)
    } catch (error) {
      if (isRequired || !hasCode(error, 'REPOSITORY_CORRUPT')) throw error
      this.#parts.report({ type: 'damage', error, pack: '' })
      return []
    }
  }

  async close(): Promise<void> {
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    await this.#running
  }
}

/** What is to be remembered of the packs that are in checkpoints. */
export function coveredBy(numbers: readonly number[], watermark: number): { watermark: number; recent: number[] } {
  const last = numbers.reduce((most, number) => Math.max(most, number), watermark)
  return { watermark: last, recent: numbers.filter((number) => number > last - CHECKPOINT_WINDOW) }
}

/** @throws {RoostError} REPOSITORY_CORRUPT when it is gone or damaged; STORE_UNAVAILABLE */
export async function readCheckpoint(store: Pick<ObjectStore, 'head' | 'getRange'>, id: string, { keys, repositoryId }: Pick<RepositoryParts, 'keys' | 'repositoryId'>): Promise<CheckpointPack[]> {
  const facts = await store.head(checkpointKey(id))
  const bytes = facts === undefined || facts.bytes > OBJECT_BYTES_MAX ? undefined : await store.getRange(checkpointKey(id), { offset: 0, bytes: facts.bytes })
  if (bytes === undefined) throw new RoostError('REPOSITORY_CORRUPT', 'A checkpoint is gone, or far too long.', { checkpoint: id })
  return decodeCheckpoint(bytes, id, keys.checkpointKey, repositoryId)
}

interface Written { readonly id: string; readonly packs: number; readonly bytes: number }
/** Cuts packs into objects of about the same length. */
class CheckpointWriter {
  readonly #parts: CheckpointParts
  readonly #bytesMax: number
  readonly #written: Written[] = []
  #packs: CheckpointPack[] = []
  #bytes = 0
  readonly #seen = new Set<string>()
  constructor(parts: CheckpointParts, bytesMax: number) {
    this.#parts = parts
    this.#bytesMax = bytesMax
  }
  async add(pack: CheckpointPack): Promise<void> {
    if (this.#seen.has(pack.packId)) return
    this.#seen.add(pack.packId)
    this.#packs.push(pack)
    this.#bytes += packBytesIn(pack)
    if (this.#bytes >= this.#bytesMax) await this.#put()
  }
  async #put(): Promise<void> {
    if (this.#packs.length === 0) return
    const { store, keys, repositoryId, random } = this.#parts
    const { id, bytes } = encodeCheckpoint(this.#packs, keys.checkpointKey, repositoryId, random)
    await store.put(checkpointKey(id), bytesBody(bytes))
    this.#written.push({ id, packs: this.#packs.length, bytes: bytes.byteLength })
    this.#packs = []
    this.#bytes = 0
  }
  async finish(): Promise<Written[]> {
    await this.#put()
    return this.#written
  }
}
