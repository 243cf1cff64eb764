/** The ChunkIndex in plain maps: the reference that the embedded index is tested against, and a double for tests of what
 *  stands on an index. Simple before fast; nothing survives the process, so it always opens clean.
 */
import { assert } from '../core/assert.js'
import { RoostError } from '../core/errors.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, chunkKey, packNumber, type ChunkKey, type ChunkKind, type PackId,
  type PackNumber, type SessionId, type SnapshotId } from '../core/ids.js'
import { NODE_REF_BYTES } from '../core/node-format.js'
import { placedRow } from './pack-places.js'
import { staleCollection } from './collection-table.js'
import { DamageMemory } from './damage-memory.js'
import { ENTRY_STATES, REF_STATES, type ChunkIndex, type CondemnRequest, type CondemnResult, type DamagedChunk, type DamageState, type DoomedPack,
  type CheckpointState, type EvacuateRequest, type EvacuateResult, type IndexLineage, type VerifiedPack, type IndexTotals, type Locations, type MoveRequest,
  type PackEntries, type PackPinned, type PackPins, type PinCursor, type PackPlaces, type PackRow,
  type RefState, type SessionRow, type SnapshotRow } from './chunk-index.js'

interface Entry {
  readonly packNumber: number; readonly entryNumber: number; readonly kind: ChunkKind; readonly proof: string
  readonly blockOffset: number; readonly blockStoredBytes: number; readonly offsetInBlock: number; readonly rawBytes: number
}
interface Session { row: SessionRow; readonly pinned: Set<string>; readonly inherited: Set<string> }
/** Sorts after every session's id. */
const HELD = 'f'.repeat(32) as SessionId
const place = (pack: number, entry: number): string => `${pack}:${entry}`

export function openMemoryIndex(): ChunkIndex { return new MemoryIndex() }

class MemoryIndex implements ChunkIndex {
  readonly openedClean = true
  #nextPackNumber = 1
  #nextSequence = 1
  #complete = false
  #lineage: IndexLineage | undefined
  #checkpoints: CheckpointState = { watermark: 0, recent: [], checkpoints: [] }
  #closed = false
  readonly #packs = new Map<number, PackRow>()
  readonly #chunks = new Map<ChunkKey, Entry>()
  /** Place of an entry that lost to an older location → its id. */
  readonly #superseded = new Map<string, ChunkKey>()
  readonly #sessions = new Map<SessionId, Session>()
  readonly #snapshots = new Map<SnapshotId, SnapshotRow>()
  readonly #snapshotOfSession = new Map<SessionId, SnapshotId>()
  #epoch = 0
  #collecting = 0
  #held: Pick<Session, 'pinned' | 'inherited'> = { pinned: new Set(), inherited: new Set() }
  readonly #doomed = new Map<PackId, DoomedPack>()
  readonly #damage = new DamageMemory()

  async reservePackNumbers(count: number): Promise<PackNumber> {
    this.#requireOpen()
    assert(Number.isInteger(count) && count > 0, 'a positive count of numbers')
    const first = this.#nextPackNumber
    this.#nextPackNumber += count
    return packNumber(first)
  }

  async addPack(pack: PackRow, entries: PackEntries, pins: readonly PackPins[]): Promise<PackNumber> {
    this.#requireOpen()
    assert(entries.count === pack.entryCount && entries.idProofs.length === entries.count * ID_PROOF_BYTES, 'whole entries')
    const existing = this.#packById(pack.packId)
    if (existing === undefined) this.#insertPack(pack, entries)
    const number = existing?.packNumber ?? pack.packNumber
    for (const { sessionId, bitmap } of pins) {
      const session = this.#sessions.get(sessionId)
      if (session !== undefined) this.#pinBitmap(session, number, bitmap)
    }
    return packNumber(number)
  }
  #insertPack(pack: PackRow, entries: PackEntries): void {
    assert(pack.packNumber > 0 && pack.packNumber < this.#nextPackNumber, 'the pack number was reserved')
    assert(!this.#packs.has(pack.packNumber), 'the pack number is not in use')
    this.#packs.set(pack.packNumber, pack)
    this.#damage.healed(entries)
    for (let i = 0; i < entries.count; i++) {
      const id = chunkKey(entries.idProofs, i * ID_PROOF_BYTES)
      const live = this.#chunks.get(id)
      if (live === undefined) this.#chunks.set(id, entryOf(pack, entries, i))
      else {
        const dead = place(pack.packNumber, i)
        this.#superseded.set(dead, id)
        for (const session of this.#sessions.values())
          if (session.pinned.has(dead)) session.pinned.add(place(live.packNumber, live.entryNumber))
      }
    }
  }
  #pinBitmap(session: Session, number: number, bitmap: Uint8Array): void {
    for (let bit = 0; bit < bitmap.length * 8; bit++) {
      if ((bitmap[bit >>> 3]! >>> (bit & 7) & 1) === 0) continue
      session.pinned.add(place(number, bit))
      const id = this.#superseded.get(place(number, bit))
      const live = id === undefined ? undefined : this.#chunks.get(id)
      if (live !== undefined) session.pinned.add(place(live.packNumber, live.entryNumber))
    }
  }

  async placePack(number: PackNumber, places: PackPlaces): Promise<PackRow | undefined> {
    this.#requireOpen()
    const pack = this.#packs.get(number)
    if (pack === undefined) return undefined
    const placed = placedRow(pack, places)
    this.#packs.set(number, placed)
    return placed
  }
  async clearHolders(slots: number): Promise<void> {
    this.#requireOpen()
    for (const [number, pack] of this.#packs) this.#packs.set(number, { ...pack, heldBy: (pack.heldBy & ~slots) >>> 0 })
    await this.settleDoomed([...this.#doomed.keys()], slots)
  }
  async forgetPacks(numbers: readonly PackNumber[]): Promise<void> {
    this.#requireOpen()
    for (const number of numbers) {
      const lost = [...this.#chunks].filter(([, entry]) => entry.packNumber === number).map(([id]) => id)
      for (const id of lost) this.#chunks.delete(id)
      this.#damage.lose(lost, number)
      for (const dead of this.#superseded.keys()) if (dead.startsWith(`${number}:`)) this.#superseded.delete(dead)
      this.#packs.delete(number)
      this.#damage.forgetPack(number)
    }
  }
  async reviveEntries(number: PackNumber, entries: PackEntries): Promise<number> {
    this.#requireOpen()
    const pack = this.#packs.get(number)
    assert(pack !== undefined && entries.count === pack.entryCount, 'the entries of a pack in the index')
    let revived = 0
    for (let i = 0; i < entries.count; i++) {
      const id = chunkKey(entries.idProofs, i * ID_PROOF_BYTES)
      if (this.#chunks.has(id)) continue
      this.#chunks.set(id, entryOf(pack, entries, i))
      this.#superseded.delete(place(number, i))
      revived++
    }
    this.#damage.healed(entries)
    if (revived > 0) await this.endCollection(this.#collecting)
    return revived
  }
  async getPack(number: PackNumber): Promise<PackRow | undefined> { this.#requireOpen(); return this.#packs.get(number) }
  async findPack(packId: PackId): Promise<PackRow | undefined> { this.#requireOpen(); return this.#packById(packId) }
  async listPacks(after: number, limit: number): Promise<PackRow[]> {
    this.#requireOpen()
    return [...this.#packs.values()].filter((pack) => pack.packNumber > after)
      .sort((a, b) => a.packNumber - b.packNumber).slice(0, limit)
  }
  async locate(ids: Buffer): Promise<Locations> {
    this.#requireOpen()
    return locationsOf(rowsOf(ids, CHUNK_ID_BYTES).map((id) => this.#chunks.get(chunkKey(id))))
  }
  async scanChunks(after: Buffer | undefined, limit: number): Promise<{ ids: Buffer; locations: Locations }> {
    this.#requireOpen()
    const from = after === undefined ? undefined : chunkKey(after)
    const keys = [...this.#chunks.keys()].filter((key) => from === undefined || key > from).sort().slice(0, limit)
    return { ids: Buffer.from(keys.join(''), 'latin1'), locations: locationsOf(keys.map((key) => this.#chunks.get(key))) }
  }
  async totals(): Promise<IndexTotals> {
    this.#requireOpen()
    const packs = [...this.#packs.values()]
    const spooled = packs.filter((pack) => pack.state === 'spooled')
    const dataChunks = [...this.#chunks.values()].filter((entry) => entry.kind === CHUNK_KINDS.data).length
    return {
      packs: packs.length, chunks: this.#chunks.size, dataChunks, nodeChunks: this.#chunks.size - dataChunks,
      rawBytes: sum(packs.map((pack) => pack.rawBytes)), storedBytes: sum(packs.map((pack) => pack.storedBytes)),
      spooledPacks: spooled.length, spooledBytes: sum(spooled.map((pack) => pack.storedBytes)),
      snapshots: this.#snapshots.size, sessionsOpen: this.#sessions.size,
      doomedPacks: this.#doomed.size, doomedBytes: sum([...this.#doomed.values()].map(({ storedBytes }) => storedBytes)), damagedChunks: this.#damage.state.chunks,
    }
  }

  async openSession(row: SessionRow): Promise<void> {
    this.#requireOpen()
    assert(!this.#sessions.has(row.sessionId), 'a session id is used once')
    this.#sessions.set(row.sessionId, { row, pinned: new Set(), inherited: new Set() })
  }
  async getSession(sessionId: SessionId): Promise<SessionRow | undefined> {
    this.#requireOpen()
    return this.#sessions.get(sessionId)?.row
  }
  async listSessions(): Promise<SessionRow[]> {
    this.#requireOpen()
    return [...this.#sessions.values()].map((session) => session.row)
      .sort((a, b) => (a.sessionId < b.sessionId ? -1 : 1))
  }
  async touchSession(sessionId: SessionId, nowMs: number): Promise<void> {
    const session = this.#session(sessionId)
    session.row = { ...session.row, lastUsedAtMs: nowMs }
  }
  async closeSession(sessionId: SessionId): Promise<void> { this.#requireOpen(); this.#sessions.delete(sessionId) }

  async pinPresent(sessionId: SessionId, idProofs: Buffer): Promise<Uint8Array> {
    const session = this.#session(sessionId)
    return bitsOf(rowsOf(idProofs, ID_PROOF_BYTES), (idProof) => {
      const entry = this.#chunks.get(chunkKey(idProof))
      if (entry === undefined || entry.proof !== idProof.toString('hex', CHUNK_ID_BYTES)) return false
      session.pinned.add(place(entry.packNumber, entry.entryNumber))
      return true
    })
  }
  async pinEntries(sessionId: SessionId, number: PackNumber, bitmap: Uint8Array): Promise<void> {
    this.#pinBitmap(this.#session(sessionId), number, bitmap)
  }
  async pinIds(sessionId: SessionId, ids: Buffer): Promise<Uint8Array> { return this.#pinRows(sessionId, ids, false) }
  async inheritRefs(sessionId: SessionId, ids: Buffer): Promise<Uint8Array> { return this.#pinRows(sessionId, ids, true) }
  #pinRows(sessionId: SessionId, ids: Buffer, isInherited: boolean): Uint8Array {
    const session = this.#session(sessionId)
    return bitsOf(rowsOf(ids, CHUNK_ID_BYTES), (id) => {
      const entry = this.#chunks.get(chunkKey(id))
      if (entry === undefined) return false
      session.pinned.add(place(entry.packNumber, entry.entryNumber))
      if (isInherited) session.inherited.add(place(entry.packNumber, entry.entryNumber))
      return true
    })
  }
  async inspectRefs(sessionId: SessionId, refs: Buffer): Promise<Uint8Array> {
    const session = this.#session(sessionId)
    return Uint8Array.from(rowsOf(refs, NODE_REF_BYTES), (ref): RefState => {
      const entry = this.#chunks.get(chunkKey(ref, 1))
      if (entry === undefined) return REF_STATES.missing
      if (entry.kind !== ref[0]) return REF_STATES.wrongKind
      const at = place(entry.packNumber, entry.entryNumber)
      if (session.inherited.has(at)) return REF_STATES.inherited
      return session.pinned.has(at) ? REF_STATES.pinned : REF_STATES.unpinned
    })
  }

  async commitSnapshot(snapshot: Omit<SnapshotRow, 'sequence'>, sessionId: SessionId | null): Promise<SnapshotRow> {
    this.#requireOpen()
    const existing = this.#snapshots.get(snapshot.snapshotId)
    if (existing !== undefined) return existing
    if (sessionId !== null) {
      const { pinned, inherited } = this.#session(sessionId)
      if (this.#collecting !== 0) {
        for (const at of pinned) this.#held.pinned.add(at)
        for (const at of inherited) this.#held.inherited.add(at)
      }
      this.#sessions.delete(sessionId)
      this.#snapshotOfSession.set(sessionId, snapshot.snapshotId)
    }
    if (snapshot.originSession !== undefined) this.#snapshotOfSession.set(snapshot.originSession, snapshot.snapshotId)
    const row: SnapshotRow = { ...snapshot, sequence: this.#nextSequence++ }
    this.#snapshots.set(row.snapshotId, row)
    return row
  }
  async getSnapshot(snapshotId: SnapshotId): Promise<SnapshotRow | undefined> {
    this.#requireOpen()
    return this.#snapshots.get(snapshotId)
  }
  async listSnapshots(query: { before?: number; limit: number; source?: string; tag?: string }): Promise<SnapshotRow[]> {
    this.#requireOpen()
    const { before = Infinity, limit, source, tag } = query
    return [...this.#snapshots.values()].filter((row) => row.sequence < before &&
      (source === undefined || row.source === source) && (tag === undefined || row.tags.includes(tag)))
      .sort((a, b) => b.sequence - a.sequence).slice(0, limit)
  }
  async findSnapshotOfSession(sessionId: SessionId): Promise<SnapshotRow | undefined> {
    this.#requireOpen()
    const snapshotId = this.#snapshotOfSession.get(sessionId)
    return snapshotId === undefined ? undefined : this.#snapshots.get(snapshotId)
  }
  async deleteSnapshot(snapshotId: SnapshotId, root: Buffer): Promise<void> {
    this.#requireOpen()
    const live = this.#snapshots.delete(snapshotId) && this.#collecting !== 0 ? this.#chunks.get(chunkKey(root)) : undefined
    if (live !== undefined) for (const set of [this.#held.pinned, this.#held.inherited]) set.add(place(live.packNumber, live.entryNumber))
    for (const [session, made] of this.#snapshotOfSession) if (made === snapshotId) this.#snapshotOfSession.delete(session)
    this.#damage.forgetSnapshot(snapshotId)
  }

  async beginCollection(): Promise<number> {
    this.#requireOpen()
    this.#held = { pinned: new Set(), inherited: new Set() }
    return this.#collecting = ++this.#epoch
  }
  async endCollection(epoch: number): Promise<void> {
    this.#requireOpen()
    if (this.#collecting !== epoch) return
    this.#collecting = 0
    this.#held = { pinned: new Set(), inherited: new Set() }
  }
  async listPins(after: PinCursor | undefined, limit: number): Promise<{ pins: readonly PackPinned[]; next: PinCursor | undefined }> {
    this.#requireOpen()
    const from = after?.toString('latin1') ?? ''
    const rows = [...this.#pinHolders()].flatMap(([id, session]) => [...new Set([...session.pinned].map((at) => Number(at.split(':')[0])))].map((number) => ({
      key: `${id}:${String(number).padStart(10, '0')}`, packNumber: packNumber(number),
      pinned: bitmapOfPlaces(session.pinned, number), inherited: bitmapOfPlaces(session.inherited, number) })))
      .filter(({ key }) => key > from).sort((a, b) => (a.key < b.key ? -1 : 1)).slice(0, limit)
    return { pins: rows, next: rows.length === 0 ? undefined : Buffer.from(rows.at(-1)!.key, 'latin1') }
  }
  #pinHolders(): Iterable<readonly [SessionId, Pick<Session, 'pinned' | 'inherited'>]> { return [...this.#sessions, [HELD, this.#held]] }
  async condemnPack(request: CondemnRequest): Promise<CondemnResult> { return this.movePack({ ...request, copies: [] }) }
  async movePack({ epoch, packNumber: number, entries, marked, slots, copies }: MoveRequest): Promise<CondemnResult> {
    this.#requireOpen()
    if (this.#collecting !== epoch) throw staleCollection()
    const pack = this.#packs.get(number)
    if (pack === undefined) return 'gone'
    const holders = [...this.#pinHolders()].map(([, session]) => session)
    const dead: ChunkKey[] = [], moved: { from: string; id: ChunkKey; to: Entry }[] = []
    for (let i = 0; i < entries.count; i++) {
      const id = chunkKey(entries.idProofs, i * ID_PROOF_BYTES), at = place(number, i)
      const live = this.#chunks.get(id)
      if (live?.packNumber !== number || live.entryNumber !== i) continue
      const to = this.#copyOf(copies, id)
      if (to !== undefined) moved.push({ from: at, id, to })
      else if (((marked[i >>> 3] ?? 0) >>> (i & 7) & 1) === 1 || holders.some(({ pinned }) => pinned.has(at))) return 'needed'
      else dead.push(id)
    }
    for (const id of dead) this.#chunks.delete(id)
    this.#follow(moved)
    this.#drop(pack, slots)
    return 'condemned'
  }
  #copyOf(copies: MoveRequest['copies'], id: ChunkKey): Entry | undefined {
    return copies.filter((copy) => this.#packs.has(copy.packNumber)).flatMap((copy) => {
      const found = rowsOf(copy.entries.idProofs, ID_PROOF_BYTES).findLastIndex((idProof) => chunkKey(idProof) === id)
      return found < 0 ? [] : [entryOf(this.#packs.get(copy.packNumber)!, copy.entries, found)]
    }).at(-1)
  }
  /** The entries live at their copies now, and pins follow. */
  #follow(moved: readonly { from: string; id: ChunkKey; to: Entry }[]): void {
    for (const { from, id, to } of moved) {
      const at = place(to.packNumber, to.entryNumber)
      this.#chunks.set(id, to)
      this.#superseded.delete(at)
      for (const [, { pinned, inherited }] of this.#pinHolders()) for (const set of [pinned, inherited]) if (set.has(from)) set.add(at)
    }
  }
  /** Nothing lives in the pack any more. With `slots` it is doomed there. */
  #drop(pack: PackRow, slots: number | undefined): void {
    const prefix = `${pack.packNumber}:`
    for (const [, { pinned, inherited }] of this.#pinHolders()) for (const set of [pinned, inherited]) for (const at of set) if (at.startsWith(prefix)) set.delete(at)
    for (const at of this.#superseded.keys()) if (at.startsWith(prefix)) this.#superseded.delete(at)
    this.#packs.delete(pack.packNumber)
    this.#damage.forgetPack(pack.packNumber)
    if (slots !== undefined) this.#doomed.set(pack.packId, { packId: pack.packId, storedBytes: pack.storedBytes, pending: slots })
  }
  async listDoomed(after: PackId | undefined, limit: number): Promise<DoomedPack[]> {
    this.#requireOpen()
    return [...this.#doomed.values()].filter(({ packId }) => after === undefined || packId > after).sort((a, b) => (a.packId < b.packId ? -1 : 1)).slice(0, limit)
  }
  async isDoomed(packId: PackId): Promise<boolean> { this.#requireOpen(); return this.#doomed.has(packId) }
  async settleDoomed(packIds: readonly PackId[], slots: number): Promise<void> {
    this.#requireOpen()
    for (const packId of packIds) {
      const row = this.#doomed.get(packId)
      if (row === undefined) continue
      const pending = (row.pending & ~slots) >>> 0
      if (pending === 0) this.#doomed.delete(packId)
      else this.#doomed.set(packId, { ...row, pending })
    }
  }

  async markDamaged(number: number, ids: Buffer): Promise<number> {
    this.#requireOpen()
    const lost = rowsOf(ids, CHUNK_ID_BYTES).map((id) => chunkKey(id)).filter((id) => (this.#chunks.get(id)?.packNumber ?? number) === number)
    for (const id of lost) this.#chunks.delete(id)
    return this.#damage.lose(lost, number)
  }
  async listDamaged(after: Buffer | undefined, limit: number): Promise<DamagedChunk[]> { this.#requireOpen(); return this.#damage.list(after, limit) }
  async damageState(): Promise<DamageState> { this.#requireOpen(); return this.#damage.state }
  async forgetDamage(generation: number): Promise<boolean> { this.#requireOpen(); return this.#damage.forget(generation, (pack) => this.#packs.has(pack)) }
  async noteWhole(snapshotId: SnapshotId, generation: number): Promise<void> {
    this.#requireOpen()
    if (this.#snapshots.has(snapshotId)) this.#damage.noteWhole(snapshotId, generation)
  }
  async wholeAt(snapshotId: SnapshotId): Promise<number | undefined> { this.#requireOpen(); return this.#damage.wholeAt(snapshotId) }
  async evacuatePack({ packNumber: number, ids, copies, slots, then }: EvacuateRequest): Promise<EvacuateResult> {
    this.#requireOpen()
    if (this.#collecting !== 0) return 'collecting'
    const pack = this.#packs.get(number)
    if (pack === undefined) return 'gone'
    const moved: { from: string; id: ChunkKey; to: Entry }[] = []
    for (const id of rowsOf(ids, CHUNK_ID_BYTES).map((bytes) => chunkKey(bytes))) {
      const live = this.#chunks.get(id)
      if (live?.packNumber !== number) continue
      const to = this.#copyOf(copies, id)
      if (to === undefined) return 'needed'
      moved.push({ from: place(number, live.entryNumber), id, to })
    }
    this.#follow(moved)
    if (then !== 'keep') this.#drop(pack, then === 'doom' ? slots : undefined)
    return 'evacuated'
  }
  async inspectEntries(number: PackNumber, entries: PackEntries): Promise<Uint8Array> {
    this.#requireOpen()
    const stateOf = (entry: number): number => {
      const id = chunkKey(entries.idProofs, entry * ID_PROOF_BYTES)
      const live = this.#chunks.get(id)
      const isPassedOver = this.#superseded.has(place(number, entry)), loss = this.#damage.lossOf(id)
      if (live === undefined) return isPassedOver ? (loss === 'lost' ? ENTRY_STATES.spare : ENTRY_STATES.superseded) : ENTRY_STATES[loss ?? 'absent']
      if (live.packNumber !== number || live.entryNumber !== entry) return ENTRY_STATES.elsewhere
      const { packNumber: _, entryNumber: __, kind: ___, ...said } = live
      const { packNumber: ____, entryNumber: _____, kind: ______, ...own } = entryOf({ packNumber: number, kind: live.kind }, entries, entry)
      return JSON.stringify(said) === JSON.stringify(own) ? ENTRY_STATES.live : ENTRY_STATES.differs
    }
    return Uint8Array.from({ length: entries.count }, (_, entry) => stateOf(entry))
  }
  async noteVerified(number: PackNumber, atMs: number): Promise<void> {
    this.#requireOpen()
    if (this.#packs.has(number)) this.#damage.noteVerified(number, atMs)
  }
  async listUnverified(after: number, limit: number): Promise<{ packs: PackRow[]; next: number | undefined }> {
    const rows = await this.listPacks(after, limit)
    return { packs: rows.filter((row) => !this.#damage.isVerified(row.packNumber)), next: rows.at(-1)?.packNumber }
  }
  async listVerified(after: number, limit: number): Promise<VerifiedPack[]> { this.#requireOpen(); return this.#damage.listVerified(after, limit) }

  async setComplete(complete: boolean): Promise<void> { this.#requireOpen(); this.#complete = complete }
  async lineage(): Promise<IndexLineage | undefined> { this.#requireOpen(); return this.#lineage }
  async setLineage(lineage: IndexLineage): Promise<void> { this.#requireOpen(); this.#lineage = lineage }
  async checkpoints(): Promise<CheckpointState> { this.#requireOpen(); return this.#checkpoints }
  async setCheckpoints(state: CheckpointState): Promise<void> { this.#requireOpen(); this.#checkpoints = state }
  async isComplete(): Promise<boolean> { this.#requireOpen(); return this.#complete }
  async flush(): Promise<void> { this.#requireOpen() }
  async close(): Promise<void> { this.#closed = true }

  #requireOpen(): void { assert(!this.#closed, 'the index is open') }
  #packById(packId: PackId): PackRow | undefined {
    return [...this.#packs.values()].find((pack) => pack.packId === packId)
  }
  #session(sessionId: SessionId): Session {
    this.#requireOpen()
    const session = this.#sessions.get(sessionId)
    if (session === undefined) throw new RoostError('SESSION_LOST', 'This session is not open any more.', { sessionId })
    return session
  }
}

function entryOf(pack: Pick<PackRow, 'packNumber' | 'kind'>, entries: PackEntries, i: number): Entry {
  const at = i * ID_PROOF_BYTES
  return {
    packNumber: pack.packNumber, entryNumber: i, kind: pack.kind,
    proof: entries.idProofs.toString('hex', at + CHUNK_ID_BYTES, at + ID_PROOF_BYTES),
    blockOffset: entries.blockOffsets[i]!, blockStoredBytes: entries.blockStoredBytes[i]!,
    offsetInBlock: entries.offsetsInBlock[i]!, rawBytes: entries.rawBytes[i]!,
  }
}
function locationsOf(entries: readonly (Entry | undefined)[]): Locations {
  const column = (field: (entry: Entry) => number): Uint32Array =>
    Uint32Array.from(entries, (entry) => (entry === undefined ? 0 : field(entry)))
  return {
    count: entries.length, packNumbers: column((entry) => entry.packNumber),
    entryNumbers: column((entry) => entry.entryNumber), kinds: Uint8Array.from(column((entry) => entry.kind)),
    blockOffsets: column((entry) => entry.blockOffset), blockStoredBytes: column((entry) => entry.blockStoredBytes),
    offsetsInBlock: column((entry) => entry.offsetInBlock), rawBytes: column((entry) => entry.rawBytes),
  }
}
function rowsOf(packed: Buffer, stride: number): Buffer[] {
  assert(packed.length % stride === 0, 'a packed batch holds whole records')
  return Array.from({ length: packed.length / stride }, (_, i) => packed.subarray(i * stride, (i + 1) * stride))
}
function bitsOf(rows: readonly Buffer[], isSet: (row: Buffer) => boolean): Uint8Array {
  const bits = new Uint8Array(Math.ceil(rows.length / 8))
  rows.forEach((row, i) => { if (isSet(row)) bits[i >>> 3]! |= 1 << (i & 7) })
  return bits
}
function bitmapOfPlaces(places: ReadonlySet<string>, packNumber: number): Uint8Array {
  const entries = [...places].filter((at) => at.startsWith(`${packNumber}:`)).map((at) => Number(at.split(':')[1]))
  const bits = new Uint8Array(entries.length === 0 ? 0 : (Math.max(...entries) >>> 3) + 1)
  for (const entry of entries) bits[entry >>> 3]! |= 1 << (entry & 7)
  return bits
}
const sum = (numbers: readonly number[]): number => numbers.reduce((total, number) => total + number, 0)
