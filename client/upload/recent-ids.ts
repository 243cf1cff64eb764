/** Which chunks were queued lately, in a fixed 2 MiB: a direct-mapped cache of ids.
 *
 *  A chunk that was queued in this push needs no second sending: either it reaches the server, or the push fails as a whole.
 *  Forgetting an id (a newer one took its place) costs one more entry in a missing-query, nothing else. Ids are keyed hashes, so
 *  nobody can choose files that fight for one place.
 */
import { CHUNK_ID_BYTES } from '../../src/core/ids.js'

const SLOTS = 65_536
const WORDS = CHUNK_ID_BYTES / 4

export class RecentIds {
  readonly #words = new Uint32Array(SLOTS * WORDS)
  /** True when the id that `idProof` begins with was added lately; adds it otherwise. */
  seen(idProof: Buffer): boolean {
    const words = this.#words
    const at = (idProof.readUInt32LE(0) % SLOTS) * WORDS
    let same = true
    for (let i = 0; i < WORDS; i++) {
      const word = idProof.readUInt32LE(4 * i)
      if (words[at + i] !== word) {
        same = false
        words[at + i] = word
      }
    }
    return same
  }
}
