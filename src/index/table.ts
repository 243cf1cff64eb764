/** An ordered table of binary keys and values inside one environment: the few calls that the embedded index makes of it.
 *
 *  Written as an interface so that lmdb-index.ts stays the only file that knows LMDB. Reads inside a write transaction
 *  see its writes; `put` and `remove` are called only inside one.
 */
export interface Table {
  /** A copy, the caller's own. */
  getBinary(key: Uint8Array): Buffer | undefined
  /** A view that the next read of any table overwrites; its `length` is right, its `byteLength` is not. */
  getBinaryFast(key: Uint8Array): Buffer | undefined
  doesExist(key: Uint8Array): boolean
  /** False only with `noOverwrite` on a key that exists. The value's bytes are taken before it returns. */
  putSync(key: Uint8Array, value: Uint8Array, options?: { noOverwrite: boolean }): boolean
  removeSync(key: Uint8Array): boolean
  getRange(range: TableRange): Iterable<{ key: Buffer; value: Buffer }>
  getKeys(range: TableRange): Iterable<Buffer>
}
export interface TableRange {
  readonly start?: Uint8Array
  /** Exclusive. */
  readonly end?: Uint8Array
  readonly exclusiveStart?: boolean
  readonly reverse?: boolean
  readonly limit?: number
}
