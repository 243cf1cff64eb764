/** An image in memory for tests of the NBD server alone: holes where it is told, and reads that wait while the gate is shut. */
import type { AllocationBlock, RandomAccessImage, ReadPiece } from '../../client/nbd/image-reader.js'

const PIECE_BYTES = 64 * 1024

export class MemoryImage implements RandomAccessImage {
  readonly bytes: number
  /** What reads hold now, and at most held. */
  readonly running = { reads: 0, readsMax: 0, cost: 0, costMax: 0 }
  /** Throws from reads that touch this byte. */
  failAt: { readonly offset: number; readonly error: Error } | undefined
  #gate: Promise<void> | undefined
  #open: () => void = () => undefined
  readonly #watchers = new Set<() => void>()
  readonly #holes: readonly boolean[]
  constructor(readonly content: Buffer) {
    this.bytes = content.byteLength
    const zeroes = Buffer.alloc(PIECE_BYTES)
    this.#holes = Array.from({ length: Math.ceil(this.bytes / PIECE_BYTES) }, (_, i) => {
      const piece = content.subarray(i * PIECE_BYTES, (i + 1) * PIECE_BYTES)
      return piece.equals(zeroes.subarray(0, piece.byteLength))
    })
  }

  shutGate(): void { this.#gate = new Promise((resolve) => { this.#open = resolve }) }
  openGate(): void { this.#gate = undefined; this.#open() }
  /** Resolves once that many reads are under way. */
  async untilReading(reads: number): Promise<void> {
    while (this.running.reads !== reads) await new Promise<void>((resolve) => { this.#watchers.add(resolve) })
  }
  costOf(_offset: number, bytes: number): number { return bytes + PIECE_BYTES }

  async read(offset: number, bytes: number): Promise<ReadPiece[]> {
    this.#count(1, this.costOf(offset, bytes))
    try {
      await this.#gate
      if (this.failAt !== undefined && this.failAt.offset >= offset && this.failAt.offset < offset + bytes) throw this.failAt.error
      const pieces: ReadPiece[] = []
      for (let at = offset; at < offset + bytes;) {
        const length = Math.min(offset + bytes, (Math.floor(at / PIECE_BYTES) + 1) * PIECE_BYTES) - at
        const isHole = this.#holes[Math.floor(at / PIECE_BYTES)]!
        pieces.push({ offset: at, bytes: length, data: isHole ? undefined : this.content.subarray(at, at + length) })
        at += length
      }
      return pieces
    } finally { this.#count(-1, -this.costOf(offset, bytes)) }
  }
  async allocation(offset: number, bytes: number, blocksMax: number): Promise<AllocationBlock[]> {
    const blocks: { bytes: number; isHole: boolean }[] = []
    for (const piece of await this.read(offset, bytes)) {
      const isHole = piece.data === undefined
      if (blocks.at(-1)?.isHole === isHole) blocks.at(-1)!.bytes += piece.bytes
      else if (blocks.length < blocksMax) blocks.push({ bytes: piece.bytes, isHole })
      else break
    }
    return blocks
  }
  readAhead(): void { /* nothing is far */ }

  #count(reads: number, cost: number): void {
    const { running } = this
    running.reads += reads
    running.cost += cost
    running.readsMax = Math.max(running.readsMax, running.reads)
    running.costMax = Math.max(running.costMax, running.cost)
    for (const wake of this.#watchers) wake()
    this.#watchers.clear()
  }
}
