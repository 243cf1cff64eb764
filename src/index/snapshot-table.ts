/** Snapshots: heads by sequence (what listings filter on), signed bytes by sequence, and two ways to find a sequence.
 *  Writes are made inside a transaction of the caller's.
 */
import type { SnapshotId } from '../core/ids.js'
import type { SnapshotRow } from './chunk-index.js'
import { corrupt } from './checksum.js'
import { decodeNumberRow, decodeSnapshotHead, decodeSnapshotRecord, encodeNumberRow, encodeSnapshotHead,
  encodeSnapshotRecord, idKey, sessionKey, u32Key, type SessionKey, type SnapshotHead } from './row-codec.js'
import type { Table } from './table.js'

export class SnapshotTable {
  readonly #heads: Table
  readonly #records: Table
  readonly #sequences: Table
  readonly #ofSessions: Table
  constructor(heads: Table, records: Table, sequences: Table, ofSessions: Table) {
    this.#heads = heads
    this.#records = records
    this.#sequences = sequences
    this.#ofSessions = ofSessions
  }

  add(snapshot: SnapshotRow, session: SessionKey | undefined): void {
    const { record: _, signature: __, ...head } = snapshot
    const key = u32Key(snapshot.sequence)
    const id = idKey(snapshot.snapshotId)
    this.#heads.putSync(key, encodeSnapshotHead(key, head))
    this.#records.putSync(key, encodeSnapshotRecord(key, snapshot))
    this.#sequences.putSync(id, encodeNumberRow('snapshotId', id, snapshot.sequence))
    if (session !== undefined)
      this.#ofSessions.putSync(session, encodeNumberRow('sessionSnapshot', session, snapshot.sequence))
    const origin = snapshot.originSession === undefined ? undefined : sessionKey(snapshot.originSession)
    if (origin !== undefined) this.#ofSessions.putSync(origin, encodeNumberRow('sessionSnapshot', origin, snapshot.sequence))
  }

  get(snapshotId: SnapshotId): SnapshotRow | undefined {
    const id = idKey(snapshotId)
    const row = this.#sequences.getBinary(id)
    return row === undefined ? undefined : this.#at(decodeNumberRow('snapshotId', id, row))
  }
  ofSession(session: SessionKey): SnapshotRow | undefined {
    const row = this.#ofSessions.getBinary(session)
    return row === undefined ? undefined : this.#at(decodeNumberRow('sessionSnapshot', session, row))
  }

  list(query: { before?: number; limit: number; source?: string; tag?: string }): SnapshotRow[] {
    const found: SnapshotRow[] = []
    if (query.limit <= 0) return found
    const start = u32Key(Math.min(query.before ?? 0xffff_ffff, 0xffff_ffff))
    for (const { key, value } of this.#heads.getRange({ start, exclusiveStart: true, reverse: true })) {
      const head = decodeSnapshotHead(key, value)
      if (query.source !== undefined && head.source !== query.source) continue
      if (query.tag !== undefined && !head.tags.includes(query.tag)) continue
      found.push(this.#whole(head))
      if (found.length >= query.limit) break
    }
    return found
  }

  /** @returns whether it was there. */
  remove(snapshotId: SnapshotId): boolean {
    const id = idKey(snapshotId)
    const row = this.#sequences.getBinary(id)
    if (row === undefined) return false
    const sequence = decodeNumberRow('snapshotId', id, row)
    this.#sequences.removeSync(id)
    this.#heads.removeSync(u32Key(sequence))
    this.#records.removeSync(u32Key(sequence))
    const sessions = [...this.#ofSessions.getRange({})]
      .filter(({ key, value }) => decodeNumberRow('sessionSnapshot', key, value) === sequence)
    for (const { key } of sessions) this.#ofSessions.removeSync(key)
    return true
  }

  #at(sequence: number): SnapshotRow {
    const key = u32Key(sequence)
    const row = this.#heads.getBinary(key)
    if (row === undefined) throw corrupt('A snapshot is named but not there.')
    return this.#whole(decodeSnapshotHead(key, row))
  }
  #whole(head: SnapshotHead): SnapshotRow {
    const key = u32Key(head.sequence)
    const row = this.#records.getBinary(key)
    if (row === undefined) throw corrupt('A snapshot has no record.')
    return { ...head, ...decodeSnapshotRecord(key, row) }
  }
}
