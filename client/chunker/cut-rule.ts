/** Where data is cut: the rule, in numbers, that the fast chunker and the reference share (docs/architecture.md).
 *
 *  With h the gear hash of the last 64 bytes, a chunk ends at the first length L ≥ minBytes where h < threshold, and at
 *  maxBytes at the latest. The threshold is strict before averageBytes and relaxed from there on (as in FastCDC), which draws
 *  lengths together: mean about 1.1 × averageBytes, and next to none is cut at maxBytes, where a cut depends on position.
 *  The table comes from a seed of the repository, so that lengths of chunks tell an observer nothing about known files.
 */
import { keyedDigest } from '../../src/core/hash.js'
import { LIMITS } from '../../src/core/limits.js'
import type { ChunkerParameters } from '../../src/core/messages.js'
import { RoostError } from '../../src/core/errors.js'

export type CutParameters = Omit<ChunkerParameters, 'imageChunkBytes'>

/** Cuts a stream into chunks. Shape: keeps nothing between calls. */
export interface Chunker {
  /** The length of the chunk at the start of `bytes`, or 0 when that depends on bytes to come: never when `final` (nothing
   *  comes after `bytes`) or when `bytes` has maxBytes. Each call scans from the start, so offer maxBytes where you can. */
  cut(bytes: Buffer, final: boolean): number
}

/** Bytes that the hash remembers: one bit of shift each. */
export const HASH_WINDOW_BYTES = 64
export const GEAR_TABLE_BYTES = 256 * 8

export interface CutRule {
  readonly minBytes: number
  readonly normalBytes: number
  readonly maxBytes: number
  readonly strictThreshold: bigint
  readonly relaxedThreshold: bigint
  /** 256 × u64, little-endian. */
  readonly gearTable: Buffer
}

/** @throws {RoostError} REQUEST_MALFORMED when the parameters make no sense: they come from the network. */
export function cutRule(parameters: CutParameters): CutRule {
  const { gearSeed, minBytes, averageBytes, maxBytes } = parameters
  const whole = [minBytes, averageBytes, maxBytes].every((bytes) => Number.isSafeInteger(bytes))
  const ordered = HASH_WINDOW_BYTES <= minBytes && minBytes <= averageBytes && averageBytes <= maxBytes
  if (!whole || !ordered || maxBytes > LIMITS.chunkBytesMax || !/^[0-9a-f]{64}$/.test(gearSeed))
    throw new RoostError('REQUEST_MALFORMED', 'The chunker parameters are out of bounds.', { minBytes, averageBytes, maxBytes })
  return {
    minBytes, maxBytes, normalBytes: averageBytes,
    strictThreshold: oneIn(averageBytes * STRICTNESS), relaxedThreshold: oneIn(Math.max(1, averageBytes / STRICTNESS)),
    gearTable: gearTable(gearSeed),
  }
}

const STRICTNESS = 4

/** A u64 that a uniformly random u64 is below once in `count`. */
function oneIn(count: number): bigint {
  return 0xffff_ffff_ffff_ffffn / BigInt(Math.floor(count))
}
function gearTable(gearSeed: string): Buffer {
  const seed = Buffer.from(gearSeed, 'hex')
  const table = Buffer.alloc(GEAR_TABLE_BYTES)
  const counter = Buffer.alloc(4)
  for (let at = 0; at < GEAR_TABLE_BYTES; at += 32) {
    counter.writeUInt32LE(at / 32)
    keyedDigest(seed, counter).copy(table, at)
  }
  return table
}
