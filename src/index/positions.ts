/** Positions of entries as single numbers: pack number × 2^17 + entry number, exact in a double up to 2^32 packs. Sorting
 *  a Float64Array groups a batch by pack without a map, so a batch costs 8 bytes an entry however many packs it meets.
 */
import { assert } from '../core/assert.js'
import { LIMITS } from '../core/limits.js'

const ENTRY_SPAN = 2 ** 17
assert(LIMITS.packEntriesMax <= ENTRY_SPAN, 'an entry number fits its place in a position')

export const positionOf = (packNumber: number, entryNumber: number): number => packNumber * ENTRY_SPAN + entryNumber
export const packOfPosition = (position: number): number => Math.floor(position / ENTRY_SPAN)
export const entryOfPosition = (position: number): number => position % ENTRY_SPAN

export class PositionList {
  readonly #positions: Float64Array
  #count = 0
  constructor(capacity: number) { this.#positions = new Float64Array(capacity) }
  push(packNumber: number, entryNumber: number): void {
    this.#positions[this.#count++] = positionOf(packNumber, entryNumber)
  }
  /** Ascending; a view that ends the list's use. */
  sorted(): Float64Array { return this.#positions.subarray(0, this.#count).sort() }
}

/** Calls `visit` for each run of one pack in ascending `positions`, until it returns false. */
export function everyRun(positions: Float64Array, visit: (packNumber: number, run: Float64Array) => boolean): boolean {
  for (let from = 0; from < positions.length;) {
    const packNumber = packOfPosition(positions[from]!)
    let to = from + 1
    while (to < positions.length && packOfPosition(positions[to]!) === packNumber) to++
    if (!visit(packNumber, positions.subarray(from, to))) return false
    from = to
  }
  return true
}

/** A bitmap just long enough for the last entry of an ascending run. */
export function bitmapOfRun(run: Float64Array): Uint8Array {
  const last = entryOfPosition(run[run.length - 1]!)
  const bitmap = new Uint8Array((last >>> 3) + 1)
  for (const position of run) {
    const entry = entryOfPosition(position)
    bitmap[entry >>> 3]! |= 1 << (entry & 7)
  }
  return bitmap
}
