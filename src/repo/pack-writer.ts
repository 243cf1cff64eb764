/** One open pack in the spool: chunks in, blocks out, a trailer at the end.
 *
 *  Lives in a seal worker (or in-thread in tests). Everything is written to `open-<number>.tmp`; `finish` makes it durable as
 *  `<pack id>.pack` (docs/durability.md W1). A writer that is never finished leaves only a .tmp file, which start-up
 *  deletes: nothing in it was ever promised.
 */
import { join } from 'node:path'
import { assert } from '../core/assert.js'
import { streamingDigest } from '../core/hash.js'
import { ID_PROOF_BYTES, packNumber, type ChunkKind, type PackId, type PackNumber, type RepositoryId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { Random } from '../core/random.js'
import type { ZstdEncoder } from '../core/zstd.js'
import type { PackEntries } from '../index/chunk-index.js'
import type { FileEffects } from '../store/file-effects.js'
import {
  encodePackHeader, encodeTrailer, PACK_HEADER_BYTES, PACK_SALT_BYTES, packSecret, placeEntries, sealBlock, type PackBlock, type PackSecret,
} from './pack-format.js'

export interface PackWriterOptions {
  readonly directory: string
  readonly number: PackNumber
  readonly kind: ChunkKind
  readonly repositoryId: RepositoryId
  readonly packKey: Buffer
  readonly effects: FileEffects
  readonly random: Random
  readonly encoder: ZstdEncoder
}
/** A pack that is durable in the spool. */
export interface SealedPack {
  readonly number: PackNumber
  readonly packId: PackId
  readonly kind: ChunkKind
  readonly file: string
  readonly storedBytes: number
  readonly rawBytes: number
  readonly entries: PackEntries
}
export const openPackName = (number: number): string => `open-${number}.tmp`
export const sealedPackName = (id: PackId): string => `${id}.pack`

export class PackWriter {
  readonly number: PackNumber
  readonly kind: ChunkKind
  readonly #options: PackWriterOptions
  readonly #secret: PackSecret
  readonly #path: string
  readonly #digest = streamingDigest()
  readonly #blocks: PackBlock[] = []
  #fd: number
  #idProofs = Buffer.allocUnsafe(256 * ID_PROOF_BYTES)
  #rawBytes = new Uint32Array(256)
  #entryCount = 0
  #offset = 0
  #rawTotal = 0

  constructor(options: PackWriterOptions) {
    this.#options = options
    this.number = packNumber(options.number)
    this.kind = options.kind
    const header = encodePackHeader({ kind: options.kind, repositoryId: options.repositoryId, salt: options.random.bytes(PACK_SALT_BYTES) })
    this.#secret = packSecret(options.packKey, header)
    this.#path = join(options.directory, openPackName(options.number))
    this.#fd = options.effects.openSync(this.#path, { flags: 'wx', mode: 0o600 })
    this.#write([header])
    assert(this.#offset === PACK_HEADER_BYTES, 'blocks start after the header')
  }
  get entryCount(): number { return this.#entryCount }
  get storedBytes(): number { return this.#offset }

  /** Appends one block of whole chunks; returns the entry number of the first. The chunks' bytes may be reused afterwards.
   *  Written, not fsynced. An exception leaves the pack unusable: abandon it. */
  appendBlock(chunks: readonly Uint8Array[], idProofs: readonly Uint8Array[]): number {
    assert(chunks.length > 0 && chunks.length === idProofs.length, 'one id and proof per chunk')
    assert(this.#entryCount + chunks.length <= LIMITS.packEntriesMax, 'a pack has room for the block')
    const first = this.#entryCount
    const sealed = sealBlock(this.#secret, this.#offset, chunks, this.#options.encoder)
    const before = this.#offset
    this.#write(sealed)
    for (let i = 0; i < chunks.length; i++) this.#addEntry(chunks[i]!.byteLength, idProofs[i]!)
    this.#blocks.push({ storedBytes: this.#offset - before, entryCount: chunks.length })
    return first
  }
  #addEntry(rawBytes: number, idProof: Uint8Array): void {
    const at = this.#entryCount++
    if (at === this.#rawBytes.length) {
      const lengths = new Uint32Array(at * 2)
      lengths.set(this.#rawBytes)
      this.#rawBytes = lengths
      this.#idProofs = Buffer.concat([this.#idProofs], at * 2 * ID_PROOF_BYTES)
    }
    this.#rawBytes[at] = rawBytes
    this.#idProofs.set(idProof, at * ID_PROOF_BYTES)
    this.#rawTotal += rawBytes
  }
  #write(parts: readonly Buffer[]): void {
    this.#options.effects.writevSync(this.#fd, parts, this.#offset)
    for (const part of parts) {
      this.#digest.update(part)
      this.#offset += part.byteLength
    }
    assert(this.#offset <= LIMITS.packBytesMax, 'a pack stays below its ceiling')
  }

  /** Durable: trailer, fsync, rename, fsync of the directory — in this order. The fsync runs off-thread, so a worker can
   *  fill the next pack meanwhile. */
  async finish(): Promise<SealedPack> {
    const { effects, directory, encoder } = this.#options
    const rawBytes = this.#rawBytes.slice(0, this.#entryCount)
    const idProofs = Buffer.from(this.#idProofs.subarray(0, this.#entryCount * ID_PROOF_BYTES))
    this.#write(encodeTrailer(this.#secret, this.#offset, this.#blocks, idProofs, rawBytes, encoder))
    const packId = this.#digest.hex() as PackId
    const file = join(directory, sealedPackName(packId))
    await effects.fsync(this.#fd)
    await effects.close(this.#fd)
    this.#fd = -1
    await effects.rename(this.#path, file)
    await effects.fsyncDirectory(directory)
    return { number: this.number, packId, kind: this.kind, file, storedBytes: this.#offset, rawBytes: this.#rawTotal,
      entries: placeEntries(this.#blocks, idProofs, rawBytes) }
  }
  /** Deletes what was written. */
  abandon(): void {
    if (this.#fd >= 0) this.#options.effects.closeSync(this.#fd)
    this.#fd = -1
    this.#options.effects.unlinkSync(this.#path)
  }
}
