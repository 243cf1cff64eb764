/** What is known of lost chunks and of care taken: lost ids until a pack brings them again, snapshots that were found whole, and when each pack was
 *  last verified. Written inside transactions.
 *
 *  The generation advances whenever chunks are lost: a snapshot found whole at the current one is whole as far as anybody knows.
 */
import { ByteReader, ByteWriter } from '../core/bytes.js'
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, packNumber, type SnapshotId } from '../core/ids.js'
import type { DamagedChunk, DamageState, PackEntries, VerifiedPack } from './chunk-index.js'
import { corrupt } from './checksum.js'
import { decodeNumberRow, encodeNumberRow, idKey, sealRow, u32Key, unsealRow } from './row-codec.js'
import type { Table } from './table.js'

const STATE_KEY = Buffer.from('damage')
/** Added to the pack number of a lost chunk that nothing needs. */
const UNNEEDED = 2 ** 32
interface State extends DamageState { /** Of the latest verification. */ readonly sequence: number }

export class DamageTable {
  readonly #state: Table
  readonly #damaged: Table
  readonly #whole: Table
  readonly #verified: Table
  readonly #verifiedOrder: Table
  constructor(tables: { readonly state: Table; readonly damaged: Table; readonly whole: Table; readonly verified: Table; readonly verifiedOrder: Table }) {
    this.#state = tables.state
    this.#damaged = tables.damaged
    this.#whole = tables.whole
    this.#verified = tables.verified
    this.#verifiedOrder = tables.verifiedOrder
  }

  state(): State {
    const row = this.#state.getBinary(STATE_KEY)
    if (row === undefined) return { chunks: 0, generation: 0, sequence: 0 }
    const reader = readerOf('damage', STATE_KEY, row)
    return { chunks: reader.u64('chunks'), generation: reader.u64('generation'), sequence: reader.u64('sequence') }
  }
  #put({ chunks, generation, sequence }: State): void {
    this.#state.putSync(STATE_KEY, sealRow('damage', STATE_KEY, new ByteWriter(24).u64(chunks).u64(generation).u64(sequence).finish()))
  }

  // ——— lost chunks ———

  /** These ids (packed) live nowhere from now on. @returns how many of them were not known as lost. */
  lose(ids: Buffer, packNumber: number): number {
    let fresh = 0
    for (let at = 0; at < ids.length; at += CHUNK_ID_BYTES) {
      const key = Buffer.from(ids.subarray(at, at + CHUNK_ID_BYTES))
      if (this.lossOf(key) === 'lost') continue
      this.#damaged.putSync(key, encodeNumberRow('damaged', key, packNumber))
      fresh++
    }
    const state = this.state()
    if (fresh > 0) this.#put({ ...state, chunks: state.chunks + fresh, generation: state.generation + 1 })
    return fresh
  }
  /** A pack brought these: none of them is lost any more. */
  healed(entries: PackEntries): void {
    const state = this.state()
    if (state.generation === 0) return
    let healed = 0
    for (let entry = 0; entry < entries.count; entry++) {
      const at = entry * ID_PROOF_BYTES
      const key = Buffer.from(entries.idProofs.subarray(at, at + CHUNK_ID_BYTES))
      const loss = this.lossOf(key)
      if (loss === 'lost') healed++
      if (loss !== undefined) this.#damaged.removeSync(key)
    }
    if (healed > 0) this.#put({ ...state, chunks: state.chunks - healed })
  }
  lossOf(id: Buffer): 'lost' | 'unneeded' | undefined {
    const row = this.#damaged.getBinary(id)
    return row === undefined ? undefined : decodeNumberRow('damaged', id, row) < UNNEEDED ? 'lost' : 'unneeded'
  }
  /** Ascending id, strictly after `after`. */
  list(after: Buffer | undefined, limit: number): DamagedChunk[] {
    const found: DamagedChunk[] = []
    for (const { key, value } of this.#damaged.getRange(after === undefined ? {} : { start: after, exclusiveStart: true })) {
      const number = decodeNumberRow('damaged', key, value)
      if (number < UNNEEDED) found.push({ id: Buffer.from(key), packNumber: number })
      if (found.length >= limit) break
    }
    return found
  }
  /** Among the `limit` rows after `after`: nothing needs them. Those whose pack is there stay, so that its entries are known. @returns where to go on. */
  forget(after: Buffer | undefined, limit: number, isHere: (packNumber: number) => boolean): Buffer | undefined {
    const rows = Array.from(this.#damaged.getRange(after === undefined ? { limit } : { start: after, exclusiveStart: true, limit }),
      ({ key, value }) => ({ key: Buffer.from(key), number: decodeNumberRow('damaged', key, value) }))
    for (const { key, number } of rows) {
      if (!isHere(number % UNNEEDED)) this.#damaged.removeSync(key)
      else if (number < UNNEEDED) this.#damaged.putSync(key, encodeNumberRow('damaged', key, number + UNNEEDED))
    }
    const lost = rows.filter(({ number }) => number < UNNEEDED).length
    const state = this.state()
    if (lost > 0) this.#put({ ...state, chunks: state.chunks - lost })
    return rows.at(-1)?.key
  }

  // ——— whole snapshots ———

  noteWhole(snapshotId: SnapshotId, generation: number): void {
    const key = idKey(snapshotId)
    if ((this.wholeAt(snapshotId) ?? -1) < generation) this.#whole.putSync(key, encodeNumberRow('whole', key, generation))
  }
  wholeAt(snapshotId: SnapshotId): number | undefined {
    const key = idKey(snapshotId)
    const row = this.#whole.getBinary(key)
    return row === undefined ? undefined : decodeNumberRow('whole', key, row)
  }
  forgetSnapshot(snapshotId: SnapshotId): void { this.#whole.removeSync(idKey(snapshotId)) }

  // ——— verified packs ———

  noteVerified(number: number, atMs: number): void {
    this.forgetPack(number)
    const state = this.state()
    const sequence = state.sequence + 1
    const key = u32Key(number), orderKey = u64Key(sequence)
    this.#verified.putSync(key, encodeNumberRow('verified', key, sequence))
    this.#verifiedOrder.putSync(orderKey, sealRow('verifiedOrder', orderKey, new ByteWriter(12).u32(number).u64(atMs).finish()))
    this.#put({ ...state, sequence })
  }
  isVerified(number: number): boolean { return this.#verified.doesExist(u32Key(number)) }
  /** Ascending sequence, strictly after `after`. */
  listVerified(after: number, limit: number): VerifiedPack[] {
    return Array.from(this.#verifiedOrder.getRange({ start: u64Key(after), exclusiveStart: true, limit }), ({ key, value }) => {
      const reader = readerOf('verifiedOrder', key, value)
      return { sequence: Number(key.readBigUInt64BE(0)), packNumber: packNumber(reader.u32('pack')), atMs: reader.u64('time') }
    })
  }
  /** The pack left the index: nobody will verify it again. What was lost with it stays lost. */
  forgetPack(number: number): void {
    const key = u32Key(number)
    const row = this.#verified.getBinary(key)
    if (row === undefined) return
    this.#verified.removeSync(key)
    this.#verifiedOrder.removeSync(u64Key(decodeNumberRow('verified', key, row)))
  }
}

function readerOf(table: 'damage' | 'verifiedOrder', key: Uint8Array, row: Buffer): ByteReader {
  return new ByteReader(unsealRow(table, key, row), (problem) => corrupt(`A ${table} row is malformed: ${problem}.`))
}
function u64Key(value: number): Buffer {
  const key = Buffer.allocUnsafeSlow(8)
  key.writeBigUInt64BE(BigInt(value))
  return key
}
