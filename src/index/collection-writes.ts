/** The transactions of a collection on LMDB: a pack leaves the index, alone or with its entries moved to copies. Each runs inside one write
 *  transaction, in which nobody can pin: what it finds unpinned stays unpinned until it is gone.
 */
import { ID_PROOF_BYTES, chunkKey, type ChunkKey } from '../core/ids.js'
import type { CondemnRequest, CondemnResult, MoveRequest, PackRow } from './chunk-index.js'
import { HELD } from './collection-table.js'
import { removePack, type IndexTables } from './pack-writes.js'
import { bitmapOfRun, entryOfPosition, everyRun, packOfPosition, positionOf } from './positions.js'
import { hasBit, isNodeKind, type PinBits, type SessionKey } from './row-codec.js'

export interface SessionPins { readonly session: SessionKey; readonly bits: PinBits }

export function condemn(tables: IndexTables, request: CondemnRequest): CondemnResult {
  return movePack(tables, { ...request, copies: [] })
}

export function movePack(tables: IndexTables, request: MoveRequest): CondemnResult {
  const { packs, chunks, collection } = tables
  collection.require(request.epoch)
  const { packNumber, entries, marked, copies } = request
  const pack = packs.get(packNumber)
  if (pack === undefined) return 'gone'
  const pins = pinsOn(tables, packNumber)
  const copied = copies.length === 0 ? undefined : placesOf(copies)
  const moved: { entry: number; to: number }[] = []
  const dead: number[] = []
  for (let entry = 0; entry < entries.count; entry++) {
    if (!chunks.isLiveAt(packNumber, entries, entry)) continue
    const to = copied?.get(chunkKey(entries.idProofs, entry * ID_PROOF_BYTES))
    if (to !== undefined && packs.get(packOfPosition(to)) !== undefined) moved.push({ entry, to })
    else if (hasBit(marked, entry) || pins.some(({ bits }) => hasBit(bits.pinned, entry))) return 'needed'
    else dead.push(entry)
  }
  for (const entry of dead) chunks.remove(entries, entry)
  switchEntries(tables, pack, copies, moved)
  followMoves(tables, pins, moved)
  dropPack(tables, pack, request.slots, dead.length)
  return 'condemned'
}

/** Which sessions, HELD among them, pin what of the pack. */
export function pinsOn({ sessions, pins }: IndexTables, packNumber: number): SessionPins[] {
  return [...sessions.getKeys({}), HELD].map((key) => ({ session: Buffer.from(key), bits: pins.at(key, packNumber) }))
    .filter(({ bits }) => bits.pinned.length > 0)
}
export function placesOf(copies: MoveRequest['copies']): Map<ChunkKey, number> {
  const places = new Map<ChunkKey, number>()
  for (const { packNumber, entries } of copies)
    for (let entry = 0; entry < entries.count; entry++) places.set(chunkKey(entries.idProofs, entry * ID_PROOF_BYTES), positionOf(packNumber, entry))
  return places
}

export function switchEntries({ chunks, superseded }: IndexTables, pack: PackRow, copies: MoveRequest['copies'], moved: readonly { to: number }[]): void {
  const positions = Float64Array.from(moved, ({ to }) => to).sort()
  everyRun(positions, (number, run) => {
    const copy = copies.find(({ packNumber }) => packNumber === number)!
    for (const position of run) chunks.replace(number, pack.kind, copy.entries, entryOfPosition(position))
    superseded.forget(number, new Set(Array.from(run, entryOfPosition)))
    return true
  })
}
/** Who pinned an entry pins its copy. */
export function followMoves({ pins }: IndexTables, pinned: readonly SessionPins[], moved: readonly { entry: number; to: number }[]): void {
  for (const { session, bits } of pinned)
    for (const level of ['pinned', 'inherited'] as const) {
      const positions = Float64Array.from(moved.filter(({ entry }) => hasBit(bits[level], entry)), ({ to }) => to).sort()
      everyRun(positions, (number, run) => {
        pins.merge(session, number, bitmapOfRun(run), level)
        return true
      })
    }
}
export function dropPack(tables: IndexTables, pack: PackRow, slots: number, removed: number): void {
  const { pins, state, sessions, collection } = tables
  for (const session of [...sessions.getKeys({}), HELD]) pins.remove(Buffer.from(session), pack.packNumber)
  removePack(tables, pack.packNumber)
  collection.doom(pack, slots)
  const counters = state.counters()
  counters.chunks -= removed
  counters[isNodeKind(pack.kind) ? 'nodeChunks' : 'dataChunks'] -= removed
  counters.doomedPacks += 1
  counters.doomedBytes += pack.storedBytes
  // Entries were taken away or replaced: what was looked up before does not hold any more.
  counters.removals += 1
  state.putCounters(counters)
}

