/** Pins: (session, pack number) → two bitmaps over the pack's entries. All calls but `holds` and `at` are made inside a
 *  write transaction.
 */
import { REF_STATES } from './chunk-index.js'
import { NO_PINS, PIN_KEY_BYTES, decodePins, encodePins, hasBit, pinKey, unionBits, type PinBits,
  type SessionKey } from './row-codec.js'
import { bitmapOfRun, entryOfPosition, everyRun, packOfPosition } from './positions.js'
import type { Table } from './table.js'

/** Bitmaps held during one inspection: 16 KiB each at most. */
const PACKS_SEEN_MAX = 256

export class PinTable {
  readonly #table: Table
  constructor(table: Table) { this.#table = table }

  at(session: SessionKey, packNumber: number): PinBits {
    const key = pinKey(session, packNumber)
    const row = this.#table.getBinary(key)
    return row === undefined ? NO_PINS : decodePins(key, row)
  }

  /** Whether every position is pinned (or inherited, which is more) already, so that there is nothing to write. */
  holds(session: SessionKey, positions: Float64Array, level: keyof PinBits): boolean {
    return everyRun(positions, (packNumber, run) => {
      const bits = this.at(session, packNumber)[level]
      return run.every((position) => hasBit(bits, entryOfPosition(position)))
    })
  }

  add(session: SessionKey, positions: Float64Array, level: keyof PinBits): void {
    everyRun(positions, (packNumber, run) => {
      this.merge(session, packNumber, bitmapOfRun(run), level)
      return true
    })
  }

  merge(session: SessionKey, packNumber: number, bitmap: Uint8Array, level: keyof PinBits): void {
    const old = this.at(session, packNumber)
    const pins: PinBits = {
      pinned: unionBits(old.pinned, bitmap), // inherited implies pinned
      inherited: level === 'inherited' ? unionBits(old.inherited, bitmap) : old.inherited,
    }
    const key = pinKey(session, packNumber)
    this.#table.putSync(key, encodePins(key, pins))
  }

  /** Fills in the states that are still 0 of references that have a position (0 = none). */
  inspect(session: SessionKey, positions: Float64Array, states: Uint8Array): void {
    const seen = new Map<number, PinBits>()
    for (let i = 0; i < positions.length; i++) {
      const position = positions[i]!
      if (position === 0) continue
      const packNumber = packOfPosition(position)
      let bits = seen.get(packNumber)
      if (bits === undefined) {
        if (seen.size >= PACKS_SEEN_MAX) seen.clear()
        seen.set(packNumber, bits = this.at(session, packNumber))
      }
      const entry = entryOfPosition(position)
      states[i] = hasBit(bits.inherited, entry) ? REF_STATES.inherited
        : hasBit(bits.pinned, entry) ? REF_STATES.pinned : REF_STATES.unpinned
    }
  }

  drop(session: SessionKey): void {
    for (const key of [...this.#table.getKeys(rangeOf(session))]) this.#table.removeSync(key)
  }
  /** Gives all pins of a session to another, which needs no row of its own. */
  give(session: SessionKey, to: SessionKey): void {
    for (const { key, value } of [...this.#table.getRange(rangeOf(session))]) {
      const { pinned, inherited } = decodePins(key, value)
      const number = packOfPinKey(key)
      this.merge(to, number, pinned, 'pinned')
      if (inherited.length > 0) this.merge(to, number, inherited, 'inherited')
      this.#table.removeSync(key)
    }
  }
  /** Rows in the order of keys: by session, then pack. */
  list(after: Buffer | undefined, limit: number): { readonly key: Buffer; readonly packNumber: number; readonly pins: PinBits }[] {
    const range = after === undefined ? { limit } : { start: after, exclusiveStart: true, limit }
    return Array.from(this.#table.getRange(range), ({ key, value }) => ({ key: Buffer.from(key), packNumber: packOfPinKey(key), pins: decodePins(key, value) }))
  }
  remove(session: SessionKey, packNumber: number): void { this.#table.removeSync(pinKey(session, packNumber)) }
}
const packOfPinKey = (key: Buffer): number => key.readUInt32BE(PIN_KEY_BYTES - 4)
const rangeOf = (session: SessionKey): { start: Buffer; end: Buffer } =>
  ({ start: session, end: Buffer.concat([session, Buffer.alloc(PIN_KEY_BYTES - session.length, 0xff), Buffer.from([0])]) })
