/** What a collection has reached: at most two bits a chunk, by the place of its entry, and a few numbers a pack. Its size follows from the index alone.
 *
 *  Bit 1, *reached*: something that must be kept refers to it. Bit 2, *expanded*: what it refers to was reached, too; nodes only. There is no
 *  queue: `nextPack` names the highest pack with nodes to expand. Parents are written after their children, so that descending packs see nearly
 *  every node once.
 *  Memory: 1 bit a data chunk and 2 a node, and 33 bytes a pack with the table from pack numbers to places.
 */
import { assert } from '../core/assert.js'
import { hasBit, setBit } from '../core/frames.js'
import { CHUNK_KINDS, type PackNumber } from '../core/ids.js'
import type { PackRow } from '../index/chunk-index.js'

/** How many numbers may be without a pack, for each that has one, before numbers are searched for instead of looked up. */
const SPARSE_FACTOR_MAX = 16

export class MarkSet {
  #count = 0
  #numbers = new Uint32Array(1024)
  /** Ordinal of a pack's first entry; one more than packs. */
  #bases = new Float64Array(1025)
  #isNode = new Uint8Array(1024)
  #toExpand = new Uint32Array(0)
  #reachedEntries = new Uint32Array(0)
  #reachedBytes = new Float64Array(0)
  #reached = new Uint8Array(0)
  /** Bits by entry, of node packs of which a node was expanded. */
  readonly #expanded = new Map<number, Uint8Array>()
  /** Pack number − first number → place + 1, when numbers are dense. */
  #places: Uint32Array | undefined
  /** No pack at a higher place has nodes to expand. */
  #highest = -1

  /** Packs in ascending number, before `seal`. */
  add({ packNumber, entryCount, kind }: PackRow): void {
    if (this.#count === this.#numbers.length) this.#grow()
    assert(this.#count === 0 || packNumber > this.#numbers[this.#count - 1]!, 'packs come in ascending number')
    this.#numbers[this.#count] = packNumber
    this.#isNode[this.#count] = kind === CHUNK_KINDS.node ? 1 : 0
    this.#bases[this.#count + 1] = this.#bases[this.#count]! + entryCount
    this.#count++
  }
  #grow(): void {
    const length = this.#numbers.length * 2
    const copy = <A extends Uint32Array | Float64Array | Uint8Array>(to: A, from: A): A => { to.set(from); return to }
    this.#numbers = copy(new Uint32Array(length), this.#numbers)
    this.#bases = copy(new Float64Array(length + 1), this.#bases)
    this.#isNode = copy(new Uint8Array(length), this.#isNode)
  }
  /** No more packs come: from here on bits can be set. */
  seal(): void {
    this.#reached = new Uint8Array(Math.ceil(this.chunks / 8))
    this.#toExpand = new Uint32Array(this.#count)
    this.#reachedEntries = new Uint32Array(this.#count)
    this.#reachedBytes = new Float64Array(this.#count)
    const first = this.#numbers[0] ?? 0, span = (this.#numbers[this.#count - 1] ?? 0) - first + 1
    if (span > this.#count * SPARSE_FACTOR_MAX) return
    this.#places = new Uint32Array(span)
    for (let at = 0; at < this.#count; at++) this.#places[this.#numbers[at]! - first] = at + 1
  }

  get packs(): number { return this.#count }
  /** Entries, superseded ones among them. */
  get chunks(): number { return this.#bases[this.#count]! }
  get memoryBytes(): number {
    return [this.#numbers, this.#bases, this.#isNode, this.#toExpand, this.#reachedEntries, this.#reachedBytes, this.#reached, ...this.#expanded.values()]
      .reduce((sum, { byteLength }) => sum + byteLength, this.#places?.byteLength ?? 0)
  }

  /** −1: the pack is not part of this collection. */
  #placeOf(number: number): number {
    const first = this.#numbers[0]!
    if (this.#places !== undefined) return number < first || number - first >= this.#places.length ? -1 : this.#places[number - first]! - 1
    let low = 0, high = this.#count - 1
    while (low <= high) {
      const middle = (low + high) >>> 1, at = this.#numbers[middle]!
      if (at === number) return middle
      if (at < number) low = middle + 1
      else high = middle - 1
    }
    return -1
  }

  /** Something needs this entry. False for a pack that came after the beginning. @param rawBytes of the chunk. */
  reach(number: number, entry: number, rawBytes: number): boolean { return this.#set(number, entry, rawBytes, true) }
  /** The same, but what a node refers to is not needed by this: once the closure is complete. */
  keep(number: number, entry: number): void { this.#set(number, entry, 0, false) }

  #set(number: number, entry: number, rawBytes: number, follow: boolean): boolean {
    const place = this.#count === 0 ? -1 : this.#placeOf(number)
    if (place < 0) return false
    const ordinal = this.#bases[place]! + entry
    assert(ordinal < this.#bases[place + 1]!, 'an entry lies within its pack')
    const byte = Math.floor(ordinal / 8), bit = 1 << ordinal % 8
    if ((this.#reached[byte]! & bit) !== 0) return true
    this.#reached[byte]! |= bit
    this.#reachedEntries[place]!++
    this.#reachedBytes[place]! += rawBytes
    if (follow && this.#isNode[place] === 1) this.#wantExpanded(place)
    return true
  }
  #wantExpanded(place: number): void {
    this.#toExpand[place]!++
    if (place > this.#highest) this.#highest = place
  }

  /** The highest pack with nodes to expand. */
  nextPack(): PackNumber | undefined {
    while (this.#highest >= 0 && this.#toExpand[this.#highest] === 0) this.#highest--
    return this.#highest < 0 ? undefined : this.#numbers[this.#highest] as PackNumber
  }
  /** Entries of a pack whose references were not followed yet; they count as expanded from here on. */
  takeToExpand(number: PackNumber): number[] {
    const place = this.#placeOf(number)
    const from = this.#bases[place]!, to = this.#bases[place + 1]!
    let expanded = this.#expanded.get(place)
    if (expanded === undefined) this.#expanded.set(place, expanded = new Uint8Array(Math.ceil((to - from) / 8)))
    const entries: number[] = []
    for (let entry = 0; entry < to - from; entry++) {
      const ordinal = from + entry
      if ((this.#reached[Math.floor(ordinal / 8)]! & 1 << ordinal % 8) === 0 || hasBit(expanded, entry)) continue
      setBit(expanded, entry)
      entries.push(entry)
    }
    this.#toExpand[place] = 0
    return entries
  }

  /** What was reached of one pack: its share, and a bitmap by entry. */
  reachedOf(number: PackNumber): { readonly entries: number; readonly rawBytes: number } {
    const place = this.#count === 0 ? -1 : this.#placeOf(number)
    return place < 0 ? { entries: 0, rawBytes: 0 } : { entries: this.#reachedEntries[place]!, rawBytes: this.#reachedBytes[place]! }
  }
  covers(number: PackNumber): boolean { return this.#count > 0 && this.#placeOf(number) >= 0 }
  bitmapOf(number: PackNumber): Uint8Array {
    const place = this.#placeOf(number)
    const from = this.#bases[place]!, count = this.#bases[place + 1]! - from
    const bitmap = new Uint8Array(Math.ceil(count / 8))
    for (let entry = 0; entry < count; entry++) {
      const ordinal = from + entry
      if ((this.#reached[Math.floor(ordinal / 8)]! & 1 << ordinal % 8) !== 0) bitmap[entry >>> 3]! |= 1 << (entry & 7)
    }
    return bitmap
  }
}
