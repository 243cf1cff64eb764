/** Who has a pack in hand outside of the index's transactions: copying it from one target to another, or taking it away. The two exclude each
 *  other, so that no copy lands on a target after the pack's deletion there. A claim lasts as long as its holder; whoever gets one reads the
 *  pack's row again before it acts.
 */
import type { PackNumber } from '../core/ids.js'

export class PackClaims {
  readonly #copying = new Map<PackNumber, number>()
  readonly #removing = new Set<PackNumber>()

  /** Any number at once. @returns what ends the claim; undefined while the pack is being taken away. */
  claimForCopy(pack: PackNumber): (() => void) | undefined {
    if (this.#removing.has(pack)) return undefined
    this.#copying.set(pack, (this.#copying.get(pack) ?? 0) + 1)
    return () => {
      const left = this.#copying.get(pack)! - 1
      if (left === 0) this.#copying.delete(pack)
      else this.#copying.set(pack, left)
    }
  }
  /** @returns what ends the claim; undefined while somebody else has the pack. */
  claimForRemoval(pack: PackNumber): (() => void) | undefined {
    if (this.#copying.has(pack) || this.#removing.has(pack)) return undefined
    this.#removing.add(pack)
    return () => { this.#removing.delete(pack) }
  }
}
