/** What a target's listing says of its packs: 36 bytes a pack, in the order of the ids, whatever order they were listed in. */
import { parsePackId, type PackId } from '../../core/ids.js'

const ID_BYTES = 32
const ROW_BYTES = ID_BYTES + 4

export class PackListing {
  #rows = Buffer.alloc(1024 * ROW_BYTES)
  #isSorted = true
  count = 0

  add(packId: PackId, bytes: number): void {
    if (bytes > 0xffff_ffff) return // no pack is that long
    if ((this.count + 1) * ROW_BYTES > this.#rows.byteLength) this.#rows = Buffer.concat([this.#rows], this.#rows.byteLength * 2)
    const at = this.count * ROW_BYTES
    this.#rows.write(packId, at, 'hex')
    this.#rows.writeUInt32LE(bytes, at + ID_BYTES)
    if (this.count > 0 && this.#rows.compare(this.#rows, at - ROW_BYTES, at - ROW_BYTES + ID_BYTES, at, at + ID_BYTES) < 0) this.#isSorted = false
    this.count++
  }
  bytesOf(packId: PackId): number | undefined {
    this.#sort()
    const wanted = Buffer.from(packId, 'hex')
    let low = 0, high = this.count
    while (low < high) {
      const middle = (low + high) >>> 1
      const order = this.#rows.compare(wanted, 0, ID_BYTES, middle * ROW_BYTES, middle * ROW_BYTES + ID_BYTES)
      if (order === 0) return this.#rows.readUInt32LE(middle * ROW_BYTES + ID_BYTES)
      if (order < 0) low = middle + 1
      else high = middle
    }
    return undefined
  }
  *[Symbol.iterator](): Generator<{ packId: PackId; bytes: number }, void, undefined> {
    this.#sort()
    for (let i = 0; i < this.count; i++)
      yield { packId: parsePackId(this.#rows.toString('hex', i * ROW_BYTES, i * ROW_BYTES + ID_BYTES)), bytes: this.#rows.readUInt32LE(i * ROW_BYTES + ID_BYTES) }
  }
  /** Listings come in order: this is for a target that does not keep to it. */
  #sort(): void {
    if (this.#isSorted) return
    const rows = Array.from({ length: this.count }, (_, i) => this.#rows.subarray(i * ROW_BYTES, (i + 1) * ROW_BYTES)).sort((a, b) => a.compare(b))
    this.#rows = Buffer.concat(rows)
    this.#isSorted = true
  }
}
