/** Transactions and looks of care on LMDB: chunks are lost, a damaged pack gives way to copies, a pack's entries are held against the index. */
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, chunkKey } from '../core/ids.js'
import { ENTRY_STATES, type EvacuateRequest, type EvacuateResult, type PackEntries, type PackRow } from './chunk-index.js'
import { dropPack, followMoves, pinsOn, placesOf, switchEntries } from './collection-writes.js'
import { entryMatches, entryNumberOfValue, kindOfValue, packNumberOfValue } from './entry-codec.js'
import { removePack, type IndexTables } from './pack-writes.js'
import { packOfPosition, positionOf } from './positions.js'
import { isNodeKind } from './row-codec.js'

export function markDamaged({ chunks, damage, state }: IndexTables, packNumber: number, ids: Buffer): number {
  const lost: Buffer[] = []
  let data = 0, nodes = 0
  for (let at = 0; at < ids.length; at += CHUNK_ID_BYTES) {
    const value = chunks.find(ids, at)
    if (value !== undefined) {
      if (packNumberOfValue(value) !== packNumber) continue
      if (isNodeKind(kindOfValue(value))) nodes++
      else data++
      chunks.removeAt(ids, at)
    }
    lost.push(ids.subarray(at, at + CHUNK_ID_BYTES))
  }
  if (data + nodes > 0) {
    const counters = state.counters()
    state.putCounters({ ...counters, chunks: counters.chunks - data - nodes, dataChunks: counters.dataChunks - data,
      nodeChunks: counters.nodeChunks - nodes, removals: counters.removals + 1 })
  }
  return damage.lose(Buffer.concat(lost), packNumber)
}

/** `ids`: all that may live in the pack. */
export function evacuatePack(tables: IndexTables, { packNumber, ids, copies, slots, then }: EvacuateRequest): EvacuateResult {
  const { packs, chunks, collection } = tables
  if (collection.collecting !== 0) return 'collecting'
  const pack = packs.get(packNumber)
  if (pack === undefined) return 'gone'
  const copied = placesOf(copies)
  const moved: { entry: number; to: number }[] = []
  for (let at = 0; at < ids.length; at += CHUNK_ID_BYTES) {
    const value = chunks.find(ids, at)
    if (value === undefined || packNumberOfValue(value) !== packNumber) continue
    const entry = entryNumberOfValue(value)
    const to = copied.get(chunkKey(ids, at))
    if (to === undefined || packs.get(packOfPosition(to)) === undefined) return 'needed'
    moved.push({ entry, to })
  }
  const pins = pinsOn(tables, packNumber)
  switchEntries(tables, pack, copies, moved)
  followMoves(tables, pins, moved)
  if (then === 'doom') dropPack(tables, pack, slots, 0)
  else countMoved(tables, pack, moved.length, then)
  return 'evacuated'
}

function countMoved(tables: IndexTables, pack: PackRow, moved: number, then: 'keep' | 'forget'): void {
  if (then === 'forget') removePack(tables, pack.packNumber)
  if (moved === 0) return
  const counters = tables.state.counters()
  tables.state.putCounters({ ...counters, removals: counters.removals + 1 })
}

export function inspectEntries({ chunks, superseded, damage }: IndexTables, packNumber: number, entries: PackEntries): Uint8Array {
  const states = new Uint8Array(entries.count)
  const passedOver = new Set<number>()
  for (const { entry } of superseded.of(packNumber)) passedOver.add(entry)
  for (let entry = 0; entry < entries.count; entry++) {
    const at = entry * ID_PROOF_BYTES
    const value = chunks.find(entries.idProofs, at)
    if (value === undefined) {
      const loss = damage.lossOf(Buffer.from(entries.idProofs.subarray(at, at + CHUNK_ID_BYTES)))
      states[entry] = passedOver.has(entry) ? (loss === 'lost' ? ENTRY_STATES.spare : ENTRY_STATES.superseded)
        : loss === 'lost' ? ENTRY_STATES.lost : loss === 'unneeded' ? ENTRY_STATES.unneeded : ENTRY_STATES.absent
    } else if (positionOf(packNumberOfValue(value), entryNumberOfValue(value)) === positionOf(packNumber, entry))
      states[entry] = entryMatches(value, entries, entry) ? ENTRY_STATES.live : ENTRY_STATES.differs
    else states[entry] = ENTRY_STATES.elsewhere
  }
  return states
}
