/** A stretch of an image, read as if it were one: a partition of a disk. And blocks of it, those read lately kept. */
import { ClientError } from '../../src/protocol/client-errors.js'
import type { ReadPiece } from '../nbd/image-reader.js'
import { readRange, type ByteSource } from '../nbd/read-range.js'

/** What is inside the image is not as its format wants it, or is none that we read. */
export const unreadable = (message: string, cause?: unknown): ClientError =>
  new ClientError('IMAGE_UNREADABLE', message, cause === undefined ? undefined : { cause })

export class ByteWindow implements ByteSource {
  constructor(readonly source: ByteSource, readonly offset: number, readonly bytes: number) {
    if (!(offset >= 0 && bytes >= 0 && offset + bytes <= source.bytes)) throw unreadable('A partition reaches past the end of the image.')
  }
  async read(offset: number, bytes: number): Promise<ReadPiece[]> {
    const pieces = await this.source.read(this.offset + offset, bytes)
    return pieces.map((piece) => ({ ...piece, offset: piece.offset - this.offset }))
  }
}

const BLOCKS_KEPT = 512

/** Single blocks: of tables and trees, which are looked at again and again. Memory: BLOCKS_KEPT × blockBytes. */
export class BlockReader {
  /** In order of use, the least recent first. */
  readonly #kept = new Map<number, Buffer>()
  constructor(readonly source: ByteSource, readonly blockBytes: number) {}
  get blocks(): number { return Math.floor(this.source.bytes / this.blockBytes) }
  /** Not to be written to. @throws {ClientError} IMAGE_UNREADABLE past the end */
  async block(number: number): Promise<Buffer> {
    let block = this.#kept.get(number)
    if (block === undefined) {
      if (!(Number.isSafeInteger(number) && number >= 0 && number < this.blocks)) throw unreadable('The file system names a block past its end.')
      block = await readRange(this.source, number * this.blockBytes, this.blockBytes)
    }
    this.#kept.delete(number)
    this.#kept.set(number, block)
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= BLOCKS_KEPT) break
      this.#kept.delete(oldest)
    }
    return block
  }
}
