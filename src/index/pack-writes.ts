/** What comes with a pack into the index and goes with it: rows, live and superseded entries, pins, counters. Each function is part of one
 *  write transaction of the embedded index.
 */
import { assert } from '../core/assert.js'
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, type PackNumber } from '../core/ids.js'
import type { PackEntries, PackRow } from './chunk-index.js'
import type { ChunkTable } from './chunk-table.js'
import { HELD, type CollectionTable } from './collection-table.js'
import type { DamageTable } from './damage-table.js'
import type { PackTable } from './pack-table.js'
import type { PinTable } from './pin-table.js'
import { hasBit, isNodeKind, type SessionKey } from './row-codec.js'
import type { StateTable } from './state-table.js'
import type { SupersededTable } from './superseded-table.js'
import type { Table } from './table.js'

export interface IndexTables {
  readonly packs: PackTable
  readonly chunks: ChunkTable
  readonly pins: PinTable
  readonly superseded: SupersededTable
  readonly state: StateTable
  readonly sessions: Table
  readonly collection: CollectionTable
  readonly damage: DamageTable
}

export function insertPack(tables: IndexTables, pack: PackRow, entries: PackEntries): void {
  const { state, packs, chunks, superseded, sessions, pins, damage } = tables
  const counters = state.counters()
  assert(pack.packNumber > 0 && pack.packNumber < counters.nextPackNumber, 'the pack number was reserved')
  assert(packs.get(pack.packNumber) === undefined, 'the pack number is not in use')
  const dead: number[] = []
  const added = chunks.insert(pack.packNumber, pack.kind, entries, (entry) => dead.push(entry))
  for (const entry of dead)
    superseded.add(pack.packNumber, entry, entries.idProofs.subarray(entry * ID_PROOF_BYTES, entry * ID_PROOF_BYTES + CHUNK_ID_BYTES))
  packs.put(pack)
  damage.healed(entries)
  counters.packs += 1
  counters.chunks += added
  counters[isNodeKind(pack.kind) ? 'nodeChunks' : 'dataChunks'] += added
  counters.rawBytes += pack.rawBytes
  counters.storedBytes += pack.storedBytes
  if (pack.state === 'spooled') { counters.spooledPacks += 1; counters.spooledBytes += pack.storedBytes }
  state.putCounters(counters)
  // Pins set by position before the pack came: those of dead entries must follow their ids.
  if (dead.length > 0) for (const session of [...sessions.getKeys({})])
    followSuperseded(tables, session, pack.packNumber, pins.at(session, pack.packNumber).pinned)
}

export function pinBitmap(tables: IndexTables, session: SessionKey, number: number, bitmap: Uint8Array): void {
  tables.pins.merge(session, number, bitmap, 'pinned')
  followSuperseded(tables, session, number, bitmap)
}

/** Consider two sessions that push one chunk at the same time: both place it, the first pack added wins, and the second
 *  session's pin stands on a dead entry. The pin goes to the live entry as well, or its commit would find it unpinned. */
function followSuperseded({ superseded, chunks, pins }: IndexTables, session: SessionKey, number: number, bitmap: Uint8Array): void {
  if (bitmap.length === 0) return
  const positions: number[] = []
  for (const { entry, id } of superseded.of(number)) {
    const live = hasBit(bitmap, entry) ? chunks.position(id) : undefined
    if (live !== undefined) positions.push(live)
  }
  pins.add(session, Float64Array.from(positions).sort(), 'pinned')
}

/** The row and what stands on it; its live entries are gone already. False when it was not there. */
export function removePack({ packs, superseded, state, damage }: IndexTables, number: PackNumber): boolean {
  const pack = packs.get(number)
  if (pack === undefined) return false
  superseded.keepOnly(number, new Set())
  packs.remove(pack)
  damage.forgetPack(number)
  const counters = state.counters()
  counters.packs -= 1
  counters.rawBytes -= pack.rawBytes
  counters.storedBytes -= pack.storedBytes
  if (pack.state === 'spooled') { counters.spooledPacks -= 1; counters.spooledBytes -= pack.storedBytes }
  state.putCounters(counters)
  return true
}

/** Entries whose ids are nowhere live here from now on. @returns how many. */
export function reviveEntries({ packs, chunks, superseded, state, damage, pins, collection }: IndexTables, number: PackNumber, entries: PackEntries): number {
  const pack = packs.require(number)
  assert(entries.count === pack.entryCount, 'the entries of a pack in the index')
  const dead = new Set<number>()
  const revived = chunks.insert(number, pack.kind, entries, (entry) => dead.add(entry))
  if (revived === 0) return 0
  superseded.keepOnly(number, dead)
  damage.healed(entries)
  // Its marks are by place: what lives here now may be marked where it lived before.
  if (collection.collecting !== 0) {
    pins.drop(HELD)
    collection.end()
  }
  const counters = state.counters()
  counters.chunks += revived
  counters[isNodeKind(pack.kind) ? 'nodeChunks' : 'dataChunks'] += revived
  state.putCounters(counters)
  return revived
}
