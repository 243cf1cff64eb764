/** The CPU work of a push, per body: verify ids, group, compress, seal, append. Pure of threads: seal-worker.ts runs it in a
 *  worker, tests run it inline.
 */
import { parseFrames, FRAME_VERDICTS, frameId, WIRE_CODECS, type FrameTable } from '../core/frames.js'
import { hashChunk } from '../core/hash.js'
import { CHUNK_KINDS, chunkKey, ID_PROOF_BYTES, type ChunkKind, type PackNumber, type RepositoryId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import { systemRandom, type Random } from '../core/random.js'
import { zstdDecode, zstdEncoder, type ZstdEncoder } from '../core/zstd.js'
import { nodeFileEffects, type FileEffects } from '../store/file-effects.js'
import { PackWriter, type SealedPack } from './pack-writer.js'

/** What a sealer must know of a repository. */
export interface SealSecrets {
  readonly repositoryId: RepositoryId
  readonly dedupKey: Buffer
  readonly packKey: Buffer
  readonly spoolDirectory: string
  readonly zstdLevel: number
}
export const FRAME_ACTIONS = { store: 0, verifyOnly: 1 } as const

export interface StoreJob {
  readonly buffer: SharedArrayBuffer
  readonly bytes: number
  /** One FRAME_ACTIONS byte per frame. */
  readonly actions: Uint8Array
  /** Numbers to use should this body open new packs, one per kind. */
  readonly sparePackNumbers: readonly [data: PackNumber, node: PackNumber]
}
export interface StoreResult {
  /** One FRAME_VERDICTS byte per frame; verified `verifyOnly` frames are `duplicate`. */
  readonly verdicts: Uint8Array
  /** 48 bytes per frame; meaningful for verdicts stored and duplicate. */
  readonly idProofs: Uint8Array
  /** Where stored frames went; 0 = not stored by this body. */
  readonly packNumbers: Uint32Array
  readonly entryNumbers: Uint32Array
  /** Which spare numbers were used. */
  readonly opened: readonly PackNumber[]
}

/** The sealing state of one repository on one thread: at most one open pack per kind. */
export class Sealer {
  readonly #secrets: SealSecrets
  readonly #effects: FileEffects
  readonly #encoder: ZstdEncoder
  readonly #open = new Map<ChunkKind, PackWriter>()
  readonly #finishing = new Set<Promise<void>>()

  /** @param onSealed called once per pack when it is durable in the spool; @param onLost when a pack had to be given up. */
  constructor(secrets: SealSecrets, readonly onSealed: (pack: SealedPack) => void, readonly onLost: (number: PackNumber, error: unknown) => void,
    effects: FileEffects = nodeFileEffects, readonly random: Random = systemRandom) {
    this.#secrets = secrets
    this.#effects = effects
    this.#encoder = zstdEncoder(secrets.zstdLevel)
  }

  /** Chunks are written (not fsynced) when it returns. @throws {RoostError} FRAME_MALFORMED; errno exceptions of the spool. */
  store(job: StoreJob): StoreResult {
    const table = parseFrames(Buffer.from(job.buffer, 0, job.bytes))
    const { count } = table
    const result = { verdicts: new Uint8Array(count), idProofs: new Uint8Array(count * ID_PROOF_BYTES),
      packNumbers: new Uint32Array(count), entryNumbers: new Uint32Array(count), opened: [] as PackNumber[] }
    const plain = this.#verify(table, job.actions, result)
    for (const kind of [CHUNK_KINDS.data, CHUNK_KINDS.node] as const) {
      const frames = plain.flatMap((bytes, i) => (bytes !== undefined && table.kinds[i] === kind ? [i] : []))
      if (frames.length > 0) this.#append(kind, frames, plain as Buffer[], job, result)
    }
    return result
  }

  /** The plaintext of each frame that is to be stored. */
  #verify(table: FrameTable, actions: Uint8Array, result: StoreResult): (Buffer | undefined)[] {
    const toStore = new Array<Buffer | undefined>(table.count)
    const seen = new Set<string>()
    for (let i = 0; i < table.count; i++) {
      const at = table.payloadAt[i]!
      const wire = table.body.subarray(at, at + table.wireBytes[i]!)
      const bytes = table.codecs[i] === WIRE_CODECS.raw ? wire : zstdDecode(Buffer.from(wire), table.rawBytes[i]!)
      if (bytes === undefined) { result.verdicts[i] = FRAME_VERDICTS.undecodable; continue }
      const idProof = hashChunk(this.#secrets.dedupKey, bytes, table.kinds[i] as ChunkKind)
      if (idProof.compare(frameId(table, i), 0, 32, 0, 32) !== 0) { result.verdicts[i] = FRAME_VERDICTS.digestMismatch; continue }
      result.idProofs.set(idProof, i * ID_PROOF_BYTES)
      const key = chunkKey(idProof)
      if (actions[i] === FRAME_ACTIONS.verifyOnly || seen.has(key)) { result.verdicts[i] = FRAME_VERDICTS.duplicate; continue }
      seen.add(key)
      result.verdicts[i] = FRAME_VERDICTS.stored
      toStore[i] = bytes
    }
    return toStore
  }

  #append(kind: ChunkKind, frames: readonly number[], plain: readonly Buffer[], job: StoreJob, result: { opened: PackNumber[] } & StoreResult): void {
    let writer = this.#open.get(kind)
    if (writer !== undefined && writer.entryCount + frames.length > LIMITS.packEntriesMax) {
      this.#finish(writer)
      writer = undefined
    }
    if (writer === undefined) {
      const number = job.sparePackNumbers[kind === CHUNK_KINDS.data ? 0 : 1]
      writer = new PackWriter({ directory: this.#secrets.spoolDirectory, number, kind, repositoryId: this.#secrets.repositoryId,
        packKey: this.#secrets.packKey, effects: this.#effects, random: this.random, encoder: this.#encoder })
      this.#open.set(kind, writer)
      result.opened.push(number)
    }
    try {
      for (const block of groupIntoBlocks(frames, (i) => plain[i]!.byteLength)) {
        const first = writer.appendBlock(block.map((i) => plain[i]!),
          block.map((i) => result.idProofs.subarray(i * ID_PROOF_BYTES, (i + 1) * ID_PROOF_BYTES)))
        block.forEach((frame, place) => {
          result.packNumbers[frame] = writer.number
          result.entryNumbers[frame] = first + place
        })
      }
    } catch (error) {
      // A pack that failed in the middle is given up whole: its chunks were promised to nobody (docs/durability.md W1).
      this.#giveUp(writer, error)
      throw error
    }
    const target = kind === CHUNK_KINDS.data ? LIMITS.dataPackBytesTarget : LIMITS.nodePackBytesTarget
    if (writer.storedBytes >= target) this.#finish(writer)
  }

  #finish(writer: PackWriter): void {
    this.#open.delete(writer.kind)
    const finishing: Promise<void> = writer.finish()
      .then((pack) => { this.onSealed(pack) }, (error: unknown) => { this.onLost(writer.number, error) })
      .finally(() => this.#finishing.delete(finishing))
    this.#finishing.add(finishing)
  }
  #giveUp(writer: PackWriter, error: unknown): void {
    this.#open.delete(writer.kind)
    try {
      writer.abandon()
    } catch {
      // The file may be beyond reach (that is why we are here); start-up deletes every .tmp file.
    }
    this.onLost(writer.number, error)
  }

  /** Seals what is open. Resolves when every pack given to it so far is sealed (or lost). */
  async flush(): Promise<void> {
    for (const writer of [...this.#open.values()]) this.#finish(writer)
    await Promise.all(this.#finishing)
  }
}

/** Splits a body's chunks into blocks of about LIMITS.blockRawBytesTarget, evenly, in order. */
export function groupIntoBlocks(items: readonly number[], rawBytes: (item: number) => number): number[][] {
  const total = items.reduce((sum, item) => sum + rawBytes(item), 0)
  const share = total / Math.max(1, Math.round(total / LIMITS.blockRawBytesTarget))
  const blocks: number[][] = []
  let block: number[] = [], blockBytes = 0
  for (const item of items) {
    block.push(item)
    blockBytes += rawBytes(item)
    if (blockBytes >= share) {
      blocks.push(block)
      block = []
      blockBytes = 0
    }
  }
  if (block.length > 0) blocks.push(block)
  return blocks
}
