/** Which packs a scrub reads: those never verified, in the order they came, then the least recently verified, up to a share of the bytes.
 *
 *  Each pack is noted in the index as soon as it is verified, so the order is the cursor: a scrub that ends early (a restart, its time is up) is
 *  gone on with by the next one.
 */
import type { ChunkIndex, PackRow } from '../../index/chunk-index.js'
import { PlaceSet } from '../verify-tree.js'

const PAGE = 500

export async function* packsToRead(index: ChunkIndex, percent: number, storedBytes: number): AsyncGenerator<PackRow, void, undefined> {
  if (percent <= 0) return
  let leftBytes = percent >= 100 ? Infinity : storedBytes * percent / 100
  const seen = new PlaceSet()
  const isNew = ({ packNumber }: PackRow): boolean => seen.add(packNumber >>> 16, packNumber & 0xffff)
  for (let after: number | undefined = 0; after !== undefined;) {
    const page: Awaited<ReturnType<ChunkIndex['listUnverified']>> = await index.listUnverified(after, PAGE)
    for (const row of page.packs) {
      if (leftBytes <= 0) return
      leftBytes -= row.storedBytes
      if (isNew(row)) yield row
    }
    after = page.next
  }
  for (let after = 0; ;) {
    const page = await index.listVerified(after, PAGE)
    if (page.length === 0) return
    for (const { packNumber } of page) {
      if (leftBytes <= 0) return
      const row = await index.getPack(packNumber)
      if (row === undefined) continue
      if (!isNew(row)) return // verified by this very scrub: it has come round
      leftBytes -= row.storedBytes
      yield row
    }
    after = page.at(-1)!.sequence
  }
}
