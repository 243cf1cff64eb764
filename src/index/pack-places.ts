/** The one reading of what a change of places does to a pack's row. */
import type { PackPlaces, PackRow } from './chunk-index.js'

/** `stored` never goes back: a copy that was lost later is a matter of healing, not of the spool. */
export function placedRow(pack: PackRow, { add = 0, remove = 0, stored }: PackPlaces): PackRow {
  return { ...pack, heldBy: ((pack.heldBy | add) & ~remove) >>> 0, state: stored === true ? 'stored' : pack.state }
}
/** How many targets hold it, of those in `among`. */
export function holderCount(heldBy: number, among = -1): number {
  let count = 0
  for (let bits = heldBy & among; bits !== 0; bits &= bits - 1) count++
  return count
}
