/** The embedded ChunkIndex on LMDB; the only importer of lmdb.
 *
 *    state              identity, counters, clean, complete      sessions           session id → row
 *    chunks             chunk id → 44 bytes (entry-codec)        pins               session id, pack number → bitmaps
 *    packs              pack number → row                        snapshots          sequence → head
 *    pack-ids           pack id → pack number                    records            sequence → signature, record
 *    superseded         pack number, entry → chunk id            snapshot-ids       snapshot id → sequence
 *    doomed             pack id → targets that may have it       damaged            chunk id → pack number
 *    verified, verified-order  pack number ↔ sequence, time      whole              snapshot id → generation
 *                                                                session-snapshots  session id → sequence
 *  Numbers in keys are u32 big-endian, so that key order is their order; rows are those of row-codec.
 *
 *  Writes run as abortable child transactions of LMDB's queue: those of one event turn share a commit, and the commit and
 *  its fsync happen on LMDB's own thread. A method that throws half-way leaves nothing. Durable methods wait for the
 *  fsync, the others only for the commit. Reads are synchronous from the memory map.
 */
import path from 'node:path'
import { open, type RootDatabase } from 'lmdb'
import { assert } from '../core/assert.js'
import { RoostError } from '../core/errors.js'
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, packNumber, type PackId, type PackNumber, type SessionId,
  type SnapshotId } from '../core/ids.js'
import { GiB } from '../core/limits.js'
import { NODE_REF_BYTES } from '../core/node-format.js'
import type { ChunkIndex, CondemnRequest, CondemnResult, DoomedPack, IndexIdentity, IndexTotals, Locations, MoveRequest, PackEntries, PackPinned, PackPins, PackPlaces, PackRow,
  PinCursor, SessionRow, SnapshotRow } from './chunk-index.js'
import { REF_STATES } from './chunk-index.js'
import { corrupt } from './checksum.js'
import { ChunkTable } from './chunk-table.js'
import { CollectionTable, HELD } from './collection-table.js'
import { DamageTable } from './damage-table.js'
import { DamageMethods } from './damage-methods.js'
import { condemn, movePack } from './collection-writes.js'
import { entryNumberOfValue, kindOfValue, packNumberOfValue } from './entry-codec.js'
import { claimIndexDirectory } from './index-directory.js'
import { PackTable } from './pack-table.js'
import { insertPack, pinBitmap, removePack, reviveEntries, type IndexTables } from './pack-writes.js'
import { placedRow } from './pack-places.js'
import { environmentOptions, prepareLmdbFile } from './lmdb-file.js'
import { PinTable } from './pin-table.js'
import { PositionList, positionOf } from './positions.js'
import { decodeSessionRow, encodeSessionRow, hasBit, isNodeKind, sessionKey, type PinBits, type SessionKey } from './row-codec.js'
import { SnapshotTable } from './snapshot-table.js'
import { SupersededTable } from './superseded-table.js'
import { StateTable } from './state-table.js'
import type { Table } from './table.js'

export interface LmdbIndexOptions {
  readonly directory: string
  readonly identity: IndexIdentity
  /** Address space kept for the map; nothing is allocated. About 150 B a chunk. Past it LMDB makes a larger map. */
  readonly mapBytes?: number
}
/** Rows looked at in one transaction of a long change: short enough that pushes hardly wait. */
const ROWS_PER_WRITE = 4096
const MAP_BYTES_DEFAULT = 256 * GiB

/** LMDB's own verdicts on its file: bad page, corrupted, panic, other version, not a database, bad transaction. */
const DAMAGE_CODES = new Set([-30797, -30796, -30795, -30794, -30793, -30782])

/** Opens or makes the index in `directory`. After an unclean end, sessions and pins are dropped first.
 *  @throws {RoostError} INDEX_CORRUPT when the files are damaged or bound to another repository or format;
 *  REPOSITORY_BUSY when the directory is open elsewhere. */
export async function openLmdbIndex(options: LmdbIndexOptions): Promise<ChunkIndex> {
  const release = claimIndexDirectory(options.directory)
  let root: RootDatabase | undefined
  try {
    prepareLmdbFile(path.join(options.directory, 'data.mdb'))
    root = open(environmentOptions(options.directory, options.mapBytes ?? MAP_BYTES_DEFAULT))
    const index = new LmdbIndex(root, release)
    await index.start(options.identity)
    return index
  } catch (error) {
    await root?.close()
    release()
    throw translate(error)
  }
}

function translate(error: unknown): unknown {
  const code = (error as { code?: unknown } | null)?.code
  if (typeof code === 'number' && DAMAGE_CODES.has(code)) return corrupt('The index file is damaged.', error)
  return error
}

class LmdbIndex extends DamageMethods implements ChunkIndex {
  #openedClean = true
  #closing: Promise<void> | undefined
  readonly #state: StateTable
  readonly #packs: PackTable
  readonly #sessions: Table
  /** (pack, entry) of entries that lost to an older location of their id → that id. */
  readonly #superseded: SupersededTable
  readonly #chunks: ChunkTable
  readonly #pins: PinTable
  readonly #snapshots: SnapshotTable
  readonly #collection: CollectionTable
  readonly #damage: DamageTable
  /** Last use of sessions, not yet in their rows: written at close. */
  readonly #lastUsedAtMs = new Map<SessionId, number>()

  constructor(readonly root: RootDatabase, readonly release: () => void) {
    super()
    const table = (name: string): Table =>
      root.openDB({ name, encoding: 'binary', keyEncoding: 'binary', cache: false, compression: false }) as unknown as Table
    const state = table('state')
    this.#state = new StateTable(state)
    this.#collection = new CollectionTable(state, table('doomed'))
    this.#damage = new DamageTable({ state, damaged: table('damaged'), whole: table('whole'), verified: table('verified'), verifiedOrder: table('verified-order') })
    this.#packs = new PackTable(table('packs'), table('pack-ids'))
    this.#sessions = table('sessions')
    this.#superseded = new SupersededTable(table('superseded'))
    this.#chunks = new ChunkTable(table('chunks'))
    this.#pins = new PinTable(table('pins'))
    this.#snapshots = new SnapshotTable(table('snapshots'), table('records'), table('snapshot-ids'),
      table('session-snapshots'))
  }
  protected get tables(): IndexTables & { snapshots: SnapshotTable } {
    return { packs: this.#packs, chunks: this.#chunks, pins: this.#pins, superseded: this.#superseded, state: this.#state,
      sessions: this.#sessions, collection: this.#collection, damage: this.#damage, snapshots: this.#snapshots }
  }
  get openedClean(): boolean { return this.#openedClean }

  async start(identity: IndexIdentity): Promise<void> {
    const fresh = !this.#state.isBound(identity)
    this.#openedClean = fresh || this.#state.flag('clean')
    // Durable before any session can open, so that no crash later can look like a clean close.
    await this.writeDurably(() => {
      if (fresh) this.#state.bind(identity)
      if (!this.#openedClean) for (const key of [...this.#sessions.getKeys({})]) this.#dropSession(key)
      if (this.#collection.collecting !== 0) this.#endCollection() // its marks were in the memory of the last process
      this.#state.setFlag('clean', false)
    })
  }

  // ——— packs and chunks ———

  async reservePackNumbers(count: number): Promise<PackNumber> {
    assert(Number.isInteger(count) && count > 0, 'a positive count of numbers')
    return this.writeDurably(() => {
      const counters = this.#state.counters()
      const first = counters.nextPackNumber
      assert(first + count <= 2 ** 32, 'pack numbers are u32')
      this.#state.putCounters({ ...counters, nextPackNumber: first + count })
      return packNumber(first)
    })
  }

  async addPack(pack: PackRow, entries: PackEntries, pins: readonly PackPins[]): Promise<PackNumber> {
    assert(entries.count === pack.entryCount && entries.idProofs.length === entries.count * ID_PROOF_BYTES, 'whole entries')
    return this.writeDurably(() => {
      const existing = this.#packs.find(pack.packId)
      const number = existing?.packNumber ?? pack.packNumber
      if (existing === undefined) insertPack(this.tables, pack, entries)
      for (const { sessionId, bitmap } of pins) {
        const session = sessionKey(sessionId)
        if (this.#sessions.doesExist(session)) pinBitmap(this.tables, session, number, bitmap)
      }
      return packNumber(number)
    })
  }

  async placePack(number: PackNumber, places: PackPlaces): Promise<PackRow | undefined> {
    return this.writeDurably(() => {
      const pack = this.#packs.get(number)
      if (pack === undefined) return undefined
      const placed = placedRow(pack, places)
      this.#packs.put(placed)
      if (placed.state === pack.state) return placed
      const counters = this.#state.counters()
      counters.spooledPacks -= 1
      counters.spooledBytes -= pack.storedBytes
      this.#state.putCounters(counters)
      return placed
    })
  }
  async clearHolders(slots: number): Promise<void> {
    for (let after = 0; ;) {
      const last = await this.writeDurably(() => {
        const rows = this.#packs.list(after, ROWS_PER_WRITE)
        for (const row of rows) this.#packs.put(placedRow(row, { remove: slots }))
        return rows.at(-1)?.packNumber
      })
      if (last === undefined) break
      after = last
    }
    for (let at: PackId | undefined; ;) {
      const rows = await this.listDoomed(at, ROWS_PER_WRITE)
      if (rows.length === 0) return
      at = rows.at(-1)!.packId
      await this.settleDoomed(rows.map(({ packId }) => packId), slots)
    }
  }

  async forgetPacks(numbers: readonly PackNumber[]): Promise<void> {
    const gone = new Set<number>(numbers)
    for (let after: Buffer | undefined; ;) {
      const last = await this.writeDurably(() => {
        const { next, data, nodes, lost } = this.#chunks.removeOf(gone, after, ROWS_PER_WRITE)
        if (data + nodes > 0) {
          const counters = this.#state.counters()
          this.#state.putCounters({ ...counters, chunks: counters.chunks - data - nodes, dataChunks: counters.dataChunks - data,
            nodeChunks: counters.nodeChunks - nodes, removals: counters.removals + 1 })
          for (const [number, ids] of lost) this.#damage.lose(Buffer.concat(ids), number)
        }
        return next
      })
      if (last === undefined) break
      after = last
    }
    for (const number of numbers) await this.writeDurably(() => { removePack(this.tables, number) })
  }
  async reviveEntries(number: PackNumber, entries: PackEntries): Promise<number> {
    return this.writeDurably(() => reviveEntries(this.tables, number, entries))
  }

  async getPack(number: PackNumber): Promise<PackRow | undefined> { return this.read(() => this.#packs.get(number)) }
  async findPack(packId: PackId): Promise<PackRow | undefined> { return this.read(() => this.#packs.find(packId)) }
  async listPacks(after: number, limit: number): Promise<PackRow[]> { return this.read(() => this.#packs.list(after, limit)) }
  async locate(ids: Buffer): Promise<Locations> { return this.read(() => this.#chunks.locate(ids)) }
  async scanChunks(after: Buffer | undefined, limit: number): Promise<{ ids: Buffer; locations: Locations }> {
    return this.read(() => this.#chunks.scan(after, limit))
  }
  async totals(): Promise<IndexTotals> {
    const { nextPackNumber: _, nextSequence: __, removals: ___, ...totals } = this.read(() => this.#state.counters())
    return { ...totals, damagedChunks: this.read(() => this.#damage.state().chunks) }
  }

  // ——— sessions and pins ———

  async openSession(session: SessionRow): Promise<void> {
    await this.writeDurably(() => {
      const key = sessionKey(session.sessionId)
      assert(!this.#sessions.doesExist(key), 'a session id is used once')
      this.#sessions.putSync(key, encodeSessionRow(key, session))
      const counters = this.#state.counters()
      this.#state.putCounters({ ...counters, sessionsOpen: counters.sessionsOpen + 1 })
    })
  }
  async getSession(sessionId: SessionId): Promise<SessionRow | undefined> {
    return this.read(() => {
      const key = sessionKey(sessionId)
      const row = this.#sessions.getBinary(key)
      return row === undefined ? undefined : this.#withLastUse(decodeSessionRow(key, row))
    })
  }
  async listSessions(): Promise<SessionRow[]> {
    return this.read(() =>
      Array.from(this.#sessions.getRange({}), ({ key, value }) => this.#withLastUse(decodeSessionRow(key, value))))
  }
  async touchSession(sessionId: SessionId, nowMs: number): Promise<void> {
    this.read(() => { this.#requireSession(sessionId) })
    this.#lastUsedAtMs.set(sessionId, nowMs)
  }
  async closeSession(sessionId: SessionId): Promise<void> {
    await this.writeDurably(() => { this.#dropSession(sessionKey(sessionId)) })
    this.#lastUsedAtMs.delete(sessionId)
  }

  async pinPresent(sessionId: SessionId, idProofs: Buffer): Promise<Uint8Array> {
    return this.#pinFound(sessionId, idProofs, ID_PROOF_BYTES, 'pinned')
  }
  async pinIds(sessionId: SessionId, ids: Buffer): Promise<Uint8Array> {
    return this.#pinFound(sessionId, ids, CHUNK_ID_BYTES, 'pinned')
  }
  async inheritRefs(sessionId: SessionId, ids: Buffer): Promise<Uint8Array> {
    return this.#pinFound(sessionId, ids, CHUNK_ID_BYTES, 'inherited')
  }

  /** Looks first without a transaction: with nothing present, or all pinned already, there is nothing to write. What was
   *  found then still holds inside the transaction if no live entry was removed in between; else it is looked up anew. */
  async #pinFound(sessionId: SessionId, ids: Buffer, stride: number, level: keyof PinBits): Promise<Uint8Array> {
    const before = this.read(() => {
      const session = this.#requireSession(sessionId)
      const present = this.#chunks.present(ids, stride)
      const settled = this.#pins.holds(session, present.positions, level)
      return { present, settled, removals: settled ? 0 : this.#state.counters().removals }
    })
    if (before.settled) return before.present.found
    return this.write(() => {
      const session = this.#requireSession(sessionId)
      const present = this.#state.counters().removals === before.removals ? before.present : this.#chunks.present(ids, stride)
      this.#pins.add(session, present.positions, level)
      return present.found
    })
  }

  async pinEntries(sessionId: SessionId, number: PackNumber, bitmap: Uint8Array): Promise<void> {
    await this.write(() => { pinBitmap(this.tables, this.#requireSession(sessionId), number, bitmap) })
  }

  async inspectRefs(sessionId: SessionId, refs: Buffer): Promise<Uint8Array> {
    assert(refs.length % NODE_REF_BYTES === 0, 'whole references')
    return this.read(() => {
      const session = this.#requireSession(sessionId)
      const states = new Uint8Array(refs.length / NODE_REF_BYTES)
      const positions = new Float64Array(states.length)
      for (let i = 0; i < states.length; i++) {
        const value = this.#chunks.find(refs, i * NODE_REF_BYTES + 1)
        if (value === undefined) states[i] = REF_STATES.missing
        else if (kindOfValue(value) !== refs[i * NODE_REF_BYTES]) states[i] = REF_STATES.wrongKind
        else positions[i] = positionOf(packNumberOfValue(value), entryNumberOfValue(value))
      }
      this.#pins.inspect(session, positions, states)
      return states
    })
  }

  // ——— snapshots ———
  async commitSnapshot(snapshot: Omit<SnapshotRow, 'sequence'>, session: SessionId | null): Promise<SnapshotRow> {
    const row = await this.writeDurably(() => {
      const existing = this.#snapshots.get(snapshot.snapshotId)
      if (existing !== undefined) return existing
      const key = session === null ? undefined : this.#requireSession(session)
      const counters = this.#state.counters()
      const added: SnapshotRow = { ...snapshot, sequence: counters.nextSequence }
      this.#snapshots.add(added, key)
      counters.nextSequence += 1
      counters.snapshots += 1
      this.#state.putCounters(counters)
      if (key !== undefined) {
        if (this.#collection.collecting !== 0) this.#pins.give(key, HELD)
        this.#dropSession(key)
      }
      return added
    })
    if (session !== null) this.#lastUsedAtMs.delete(session)
    return row
  }
  async getSnapshot(snapshotId: SnapshotId): Promise<SnapshotRow | undefined> {
    return this.read(() => this.#snapshots.get(snapshotId))
  }
  async listSnapshots(query: { before?: number; limit: number; source?: string; tag?: string }): Promise<SnapshotRow[]> {
    return this.read(() => this.#snapshots.list(query))
  }
  async findSnapshotOfSession(sessionId: SessionId): Promise<SnapshotRow | undefined> {
    return this.read(() => this.#snapshots.ofSession(sessionKey(sessionId)))
  }
  async deleteSnapshot(snapshotId: SnapshotId, root: Buffer): Promise<void> {
    await this.writeDurably(() => {
      if (!this.#snapshots.remove(snapshotId)) return
      this.#damage.forgetSnapshot(snapshotId)
      const live = this.#collection.collecting === 0 ? undefined : this.#chunks.position(root)
      if (live !== undefined) this.#pins.add(HELD, Float64Array.of(live), 'inherited')
      const counters = this.#state.counters()
      this.#state.putCounters({ ...counters, snapshots: counters.snapshots - 1 })
    })
  }

  // ——— collection ———
  async beginCollection(): Promise<number> {
    return this.writeDurably(() => {
      this.#endCollection()
      return this.#collection.begin()
    })
  }
  async endCollection(epoch: number): Promise<void> {
    await this.writeDurably(() => { if (this.#collection.collecting === epoch) this.#endCollection() })
  }
  #endCollection(): void {
    this.#pins.drop(HELD)
    this.#collection.end()
  }
  async listPins(after: PinCursor | undefined, limit: number): Promise<{ pins: readonly PackPinned[]; next: PinCursor | undefined }> {
    return this.read(() => {
      const rows = this.#pins.list(after, limit)
      return { pins: rows.map((row) => ({ packNumber: packNumber(row.packNumber), ...row.pins })), next: rows.at(-1)?.key }
    })
  }
  async condemnPack(request: CondemnRequest): Promise<CondemnResult> { return this.writeDurably(() => condemn(this.tables, request)) }
  async movePack(request: MoveRequest): Promise<CondemnResult> { return this.writeDurably(() => movePack(this.tables, request)) }
  async listDoomed(after: PackId | undefined, limit: number): Promise<DoomedPack[]> { return this.read(() => this.#collection.list(after, limit)) }
  async isDoomed(packId: PackId): Promise<boolean> { return this.read(() => this.#collection.isDoomed(packId)) }
  async settleDoomed(packIds: readonly PackId[], slots: number): Promise<void> {
    await this.writeDurably(() => {
      const settled = packIds.flatMap((packId) => this.#collection.settle(packId, slots) ?? [])
      if (settled.length === 0) return
      const counters = this.#state.counters()
      for (const { storedBytes } of settled) { counters.doomedPacks -= 1; counters.doomedBytes -= storedBytes }
      this.#state.putCounters(counters)
    })
  }

  // ——— lifetime ———
  async setComplete(complete: boolean): Promise<void> {
    await this.writeDurably(() => { this.#state.setFlag('complete', complete) })
  }
  async isComplete(): Promise<boolean> { return this.read(() => this.#state.flag('complete')) }
  async flush(): Promise<void> {
    this.#requireOpen()
    await this.root.flushed
  }
  close(clean = true): Promise<void> {
    this.#closing ??= this.#close(clean)
    return this.#closing
  }
  async #close(clean: boolean): Promise<void> {
    try {
      await this.#durably(() => {
        for (const [sessionId, lastUsedAtMs] of this.#lastUsedAtMs) {
          const key = sessionKey(sessionId)
          const row = this.#sessions.getBinary(key)
          if (row !== undefined) this.#sessions.putSync(key, encodeSessionRow(key, { ...decodeSessionRow(key, row), lastUsedAtMs }))
        }
        this.#state.setFlag('clean', clean)
      })
    } finally {
      await this.root.close()
      this.release()
    }
  }

  // ——— rows ———
  #requireOpen(): void { assert(this.#closing === undefined, 'the index is open') }
  protected read<T>(work: () => T): T {
    this.#requireOpen()
    try { return work() } catch (error) { throw translate(error) }
  }
  /** Atomic and, once resolved, visible. */
  protected async write<T>(work: () => T): Promise<T> {
    this.#requireOpen()
    try { return await this.root.childTransaction(work) } catch (error) { throw translate(error) }
  }
  /** Atomic and, once resolved, visible and on disk. */
  protected async writeDurably<T>(work: () => T): Promise<T> {
    this.#requireOpen()
    return this.#durably(work)
  }
  async #durably<T>(work: () => T): Promise<T> {
    const committed = this.root.childTransaction(work)
    // Taken in the same turn: `flushed` stands for the writes queued so far, and this one must be among them.
    const flushed = this.root.flushed.then(() => undefined)
    const [result] = await Promise.all([committed, flushed]).catch((error: unknown) => { throw translate(error) })
    return result
  }

  #requireSession(sessionId: SessionId): SessionKey {
    const key = sessionKey(sessionId)
    if (!this.#sessions.doesExist(key)) throw new RoostError('SESSION_LOST', 'This session is not open any more.', { sessionId })
    return key
  }
  #withLastUse(row: SessionRow): SessionRow {
    return { ...row, lastUsedAtMs: this.#lastUsedAtMs.get(row.sessionId) ?? row.lastUsedAtMs }
  }
  #dropSession(key: SessionKey): void {
    if (!this.#sessions.removeSync(key)) return
    this.#pins.drop(key)
    const counters = this.#state.counters()
    this.#state.putCounters({ ...counters, sessionsOpen: counters.sessionsOpen - 1 })
  }
}
