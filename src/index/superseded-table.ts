/** (pack, entry) of entries that lost to an older location of their id → that id. Written inside transactions. */
import { sealRow, u32Key, unsealRow } from './row-codec.js'
import type { Table } from './table.js'

export class SupersededTable {
  readonly #table: Table
  constructor(table: Table) { this.#table = table }

  add(packNumber: number, entry: number, id: Buffer): void {
    const key = Buffer.concat([u32Key(packNumber), u32Key(entry)])
    this.#table.putSync(key, sealRow('superseded', key, id))
  }
  *of(packNumber: number): Generator<{ entry: number; id: Buffer }, void, undefined> {
    for (const { key, value } of this.#table.getRange(rangeOf(packNumber))) yield { entry: key.readUInt32BE(4), id: unsealRow('superseded', key, value) }
  }
  /** Forgets those entries of a pack. */
  forget(packNumber: number, entries: ReadonlySet<number>): void {
    for (const entry of entries) this.#table.removeSync(Buffer.concat([u32Key(packNumber), u32Key(entry)]))
  }
  /** Forgets the entries of a pack but those. */
  keepOnly(packNumber: number, entries: ReadonlySet<number>): void {
    for (const key of [...this.#table.getKeys(rangeOf(packNumber))]) if (!entries.has(key.readUInt32BE(4))) this.#table.removeSync(key)
  }
}

const rangeOf = (packNumber: number): { start: Buffer; end: Buffer } =>
  ({ start: u32Key(packNumber), end: Buffer.concat([u32Key(packNumber), Buffer.alloc(5, 0xff)]) })
