/** zstd with reused contexts. Synchronous by nature: servers call it in worker threads. The only importer of zstd-napi. */
import binding from 'zstd-napi/binding.js'

/** Level 2 is ours: as small as zstd's own level 2 on blocks of system files and a sixth faster (docs/benchmarks.md), because a hash table of
 *  2^15 stays in the first cache and a block's neighbours are within the window. */
const TUNED_LEVEL = 2
const TUNED = { windowLog: 21, hashLog: 15, minMatch: 6 } as const

/** `encode`: a view that the next call overwrites. */
export interface ZstdEncoder { encode(bytes: Uint8Array): Buffer }
/** Holds a compression context (about 1 MiB at level 1) and room for its largest result yet; make one per thread and level. */
export function zstdEncoder(level: number): ZstdEncoder {
  const compression = new binding.CCtx()
  compression.setParameter(binding.CParameter.compressionLevel, level === TUNED_LEVEL ? 1 : level)
  if (level === TUNED_LEVEL) for (const [name, value] of Object.entries(TUNED)) compression.setParameter(binding.CParameter[name as keyof typeof TUNED], value)
  let room = Buffer.alloc(0)
  return {
    encode: (bytes) => {
      const needed = binding.compressBound(bytes.byteLength)
      if (room.byteLength < needed) room = Buffer.allocUnsafeSlow(needed)
      return room.subarray(0, compression.compress2(room, bytes))
    },
  }
}

let context: binding.DCtx | undefined
/** Exactly `rawBytes` of plaintext, or undefined when the frame is damaged or holds any other length.
 *  Memory: `rawBytes`, whatever the input claims or holds. The package's own Decompressor would size its buffer by all frames of the
 *  input, or grow it as they go: a hostile second frame could take gigabytes. */
export function zstdDecode(bytes: Uint8Array, rawBytes: number): Buffer | undefined {
  if (zstdContentBytes(bytes) !== rawBytes) return undefined
  context ??= new binding.DCtx()
  const plain = Buffer.allocUnsafe(rawBytes)
  try {
    return context.decompress(plain, bytes) === rawBytes ? plain : undefined
  } catch {
    // zstd reports a damaged frame by throwing; the caller names which frame.
    return undefined
  }
}

/** The content size that a frame's header states (RFC 8878 §3.1.1.1), or undefined when absent or malformed. */
export function zstdContentBytes(frame: Uint8Array): number | undefined {
  const b = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength)
  if (b.byteLength < 6 || b.readUInt32LE(0) !== 0xfd2fb528) return undefined
  const descriptor = b[4]!
  const single = (descriptor & 0x20) !== 0
  const flag = descriptor >> 6
  const at = 5 + (single ? 0 : 1) + [0, 1, 2, 4][descriptor & 3]!
  const width = [single ? 1 : 0, 2, 4, 8][flag]!
  if (width === 0 || at + width > b.byteLength) return undefined
  if (width === 1) return b[at]!
  if (width === 2) return b.readUInt16LE(at) + 256
  if (width === 4) return b.readUInt32LE(at)
  const size = b.readBigUInt64LE(at)
  return size > BigInt(Number.MAX_SAFE_INTEGER) ? undefined : Number(size)
}
