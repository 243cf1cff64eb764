/** Bounds-checked little-endian reading and writing: the only way formats touch offsets.
 *
 *  A read past the end, or a value over its stated bound, throws what `fail` makes of it, so that every decoder of
 *  untrusted bytes names its own error code. Nothing is ever returned from beyond the buffer.
 */

export type DecodeFailure = (problem: string, offset: number) => Error

export class ByteReader {
  #offset: number
  readonly #bytes: Buffer
  constructor(bytes: Uint8Array, readonly fail: DecodeFailure, offset = 0) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#offset = offset
  }
  get offset(): number { return this.#offset }
  get remaining(): number { return this.#bytes.byteLength - this.#offset }
  #take(bytes: number, field: string): number {
    const at = this.#offset
    if (bytes < 0 || bytes > this.#bytes.byteLength - at) throw this.fail(`${field} runs past the end`, at)
    this.#offset = at + bytes
    return at
  }
  u8(field: string): number { return this.#bytes[this.#take(1, field)]! }
  u16(field: string): number { return this.#bytes.readUInt16LE(this.#take(2, field)) }
  u32(field: string, max = 0xffff_ffff): number {
    const at = this.#take(4, field)
    const value = this.#bytes.readUInt32LE(at)
    if (value > max) throw this.fail(`${field} is ${value}, over ${max}`, at)
    return value
  }
  /** An unsigned 64-bit value that must be a safe integer. */
  u64(field: string, max = Number.MAX_SAFE_INTEGER): number {
    const at = this.#take(8, field)
    const value = this.#bytes.readBigUInt64LE(at)
    if (value > BigInt(max)) throw this.fail(`${field} is over ${max}`, at)
    return Number(value)
  }
  i64(field: string): bigint { return this.#bytes.readBigInt64LE(this.#take(8, field)) }
  /** LEB128, at most `max`. */
  varint(field: string, max = Number.MAX_SAFE_INTEGER): number {
    const at = this.#offset
    let value = 0
    for (let scale = 1, i = 0; i < 8; i++, scale *= 128) {
      const byte = this.u8(field)
      value += (byte & 0x7f) * scale
      if (byte < 0x80) {
        if (value > max) throw this.fail(`${field} is ${value}, over ${max}`, at)
        if (i > 0 && byte === 0) throw this.fail(`${field} is not in its shortest form`, at)
        return value
      }
    }
    throw this.fail(`${field} is too long`, at)
  }
  /** A view, not a copy. */
  bytes(count: number, field: string): Buffer {
    const at = this.#take(count, field)
    return this.#bytes.subarray(at, at + count)
  }
  rest(): Buffer { return this.bytes(this.remaining, 'rest') }
  expectEnd(field: string): void {
    if (this.remaining !== 0) throw this.fail(`${field} has ${this.remaining} bytes too many`, this.#offset)
  }
}

/** A growing little-endian buffer. `finish()` returns a view that the writer no longer touches. */
export class ByteWriter {
  #bytes: Buffer
  #offset = 0
  constructor(capacityBytes = 256) { this.#bytes = Buffer.allocUnsafe(capacityBytes) }
  get length(): number { return this.#offset }
  /** May replace #bytes: take the place first, then write. */
  #room(bytes: number): number {
    const at = this.#offset
    if (at + bytes > this.#bytes.byteLength) {
      const larger = Buffer.allocUnsafe(Math.max(this.#bytes.byteLength * 2, at + bytes))
      this.#bytes.copy(larger, 0, 0, at)
      this.#bytes = larger
    }
    this.#offset = at + bytes
    return at
  }
  u8(value: number): this { const at = this.#room(1); this.#bytes.writeUInt8(value, at); return this }
  u16(value: number): this { const at = this.#room(2); this.#bytes.writeUInt16LE(value, at); return this }
  u32(value: number): this { const at = this.#room(4); this.#bytes.writeUInt32LE(value, at); return this }
  u64(value: number): this { const at = this.#room(8); this.#bytes.writeBigUInt64LE(BigInt(value), at); return this }
  i64(value: bigint): this { const at = this.#room(8); this.#bytes.writeBigInt64LE(value, at); return this }
  varint(value: number): this {
    let rest = value
    while (rest >= 0x80) { this.u8((rest % 128) | 0x80); rest = Math.floor(rest / 128) }
    return this.u8(rest)
  }
  bytes(value: Uint8Array): this {
    const at = this.#room(value.byteLength)
    this.#bytes.set(value, at)
    return this
  }
  finish(): Buffer { return this.#bytes.subarray(0, this.#offset) }
}

/** Views any Uint8Array as a Buffer without copying. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** Copies 32 bytes, an id. Why not `copy`: its call costs several times as much as these bytes, and the index makes millions of them. */
export function copyId(from: Uint8Array, fromAt: number, to: Uint8Array, toAt: number): void {
  for (let i = 0; i < 32; i++) to[toAt + i] = from[fromAt + i]!
}
