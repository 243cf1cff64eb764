/** What a collection leaves in the index: its epoch, whether it runs, and the packs it doomed. Written inside transactions.
 *
 *  `collecting` is the epoch of the running collection, 0 = none. HELD is the session that nobody has: what committing sessions had pinned, and
 *  roots of snapshots deleted meanwhile, are its pins until the collection ends (docs/gc.md).
 */
import { RoostError } from '../core/errors.js'
import { parsePackId, type PackId } from '../core/ids.js'
import type { DoomedPack, PackRow } from './chunk-index.js'
import { decodeCollection, decodeDoomed, encodeCollection, encodeDoomed, idKey, type SessionKey } from './row-codec.js'
import type { Table } from './table.js'

/** Sorts after every session's id: random ids of 16 bytes never are this one. */
export const HELD: SessionKey = Buffer.alloc(16, 0xff)
const KEY = Buffer.from('collection')

export class CollectionTable {
  readonly #state: Table
  readonly #doomed: Table
  constructor(state: Table, doomed: Table) {
    this.#state = state
    this.#doomed = doomed
  }

  get collecting(): number { return this.#read().collecting }
  begin(): number {
    const epoch = this.#read().epoch + 1
    this.#write({ epoch, collecting: epoch })
    return epoch
  }
  end(): void { this.#write({ ...this.#read(), collecting: 0 }) }
  /** @throws {RoostError} COLLECTION_STALE */
  require(epoch: number): void {
    if (this.collecting !== epoch) throw staleCollection()
  }
  #read(): { epoch: number; collecting: number } {
    const row = this.#state.getBinary(KEY)
    return row === undefined ? { epoch: 0, collecting: 0 } : decodeCollection(KEY, row)
  }
  #write(row: { epoch: number; collecting: number }): void { this.#state.putSync(KEY, encodeCollection(KEY, row)) }

  doom({ packId, storedBytes }: PackRow, slots: number): void { this.#put({ packId, storedBytes, pending: slots }) }
  isDoomed(packId: PackId): boolean { return this.#doomed.doesExist(idKey(packId)) }
  get(packId: PackId): DoomedPack | undefined {
    const key = idKey(packId)
    const row = this.#doomed.getBinary(key)
    return row === undefined ? undefined : decodeDoomed(key, row)
  }
  list(after: PackId | undefined, limit: number): DoomedPack[] {
    const range = after === undefined ? { limit } : { start: idKey(after), exclusiveStart: true, limit }
    return Array.from(this.#doomed.getRange(range), ({ key, value }) => decodeDoomed(key, value))
  }
  /** @returns the row if it left the table with this. */
  settle(packId: PackId, slots: number): DoomedPack | undefined {
    const row = this.get(packId)
    if (row === undefined) return undefined
    const pending = (row.pending & ~slots) >>> 0
    if (pending !== 0) { this.#put({ ...row, pending }); return undefined }
    this.#doomed.removeSync(idKey(parsePackId(packId)))
    return row
  }
  #put(row: DoomedPack): void {
    const key = idKey(row.packId)
    this.#doomed.putSync(key, encodeDoomed(key, row))
  }
}

export function staleCollection(): RoostError {
  return new RoostError('COLLECTION_STALE', 'This collection is over: the server was restarted, another one has begun, or lost chunks were found again elsewhere. Nothing more is removed by it.')
}
