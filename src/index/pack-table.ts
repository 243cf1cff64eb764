/** Pack number → row, and pack id → pack number. Written inside transactions. */
import { packNumber, type PackId } from '../core/ids.js'
import { corrupt } from './checksum.js'
import type { PackRow } from './chunk-index.js'
import { decodeNumberRow, decodePackRow, encodeNumberRow, encodePackRow, idKey, u32Key } from './row-codec.js'
import type { Table } from './table.js'

export class PackTable {
  readonly #rows: Table
  readonly #numbers: Table
  constructor(rows: Table, numbers: Table) {
    this.#rows = rows
    this.#numbers = numbers
  }
  get(number: number): PackRow | undefined {
    const key = u32Key(number)
    const row = this.#rows.getBinary(key)
    return row === undefined ? undefined : decodePackRow(key, row)
  }
  /** @throws {RoostError} INDEX_CORRUPT */
  require(number: number): PackRow {
    const row = this.get(number)
    if (row === undefined) throw corrupt(`Pack ${number} is not in the index.`)
    return row
  }
  find(packId: PackId): PackRow | undefined {
    const key = idKey(packId)
    const number = this.#numbers.getBinary(key)
    return number === undefined ? undefined : this.get(packNumber(decodeNumberRow('packId', key, number)))
  }
  /** Ascending number, strictly after `after`. */
  list(after: number, limit: number): PackRow[] {
    return Array.from(this.#rows.getRange({ start: u32Key(after), exclusiveStart: true, limit }), ({ key, value }) => decodePackRow(key, value))
  }
  put(row: PackRow): void {
    const key = u32Key(row.packNumber)
    this.#rows.putSync(key, encodePackRow(key, row))
    const id = idKey(row.packId)
    if (!this.#numbers.doesExist(id)) this.#numbers.putSync(id, encodeNumberRow('packId', id, row.packNumber))
  }
  remove({ packNumber: number, packId }: PackRow): void {
    this.#rows.removeSync(u32Key(number))
    this.#numbers.removeSync(idKey(packId))
  }
}
