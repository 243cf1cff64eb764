/** A pack's bytes on their way to a target: whole and proven, or not at all.
 *
 *  The last part is held back until the digest of all of them is the pack's name: a body that is damaged fails before its end, so no
 *  target ever stores it under that name.
 */
import { createReadStream } from 'node:fs'
import { Readable } from 'node:stream'
import { asBuffer } from '../../core/bytes.js'
import { RoostError } from '../../core/errors.js'
import { streamingDigest } from '../../core/hash.js'
import type { PackId } from '../../core/ids.js'
import { MiB } from '../../core/limits.js'
import type { RateLimiter } from '../../core/rate-limit.js'
import type { PackRow } from '../../index/chunk-index.js'
import type { ReplayableBody } from '../../store/object-store.js'

export const damagedPack = (packId: PackId): RoostError =>
  new RoostError('PACK_CORRUPT', 'A copy of a pack does not hold the bytes that its name stands for.', { pack: packId })

/** Yields the parts of `source`; ends only when they are the pack's bytes. @throws {RoostError} PACK_CORRUPT; what the source throws. */
export async function* provenPack(packId: PackId, source: AsyncIterable<unknown>, limiter?: RateLimiter, signal?: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
  const digest = streamingDigest()
  let held: Buffer | undefined
  for await (const part of source) {
    const bytes = asBuffer(part as Uint8Array)
    digest.update(bytes)
    if (held !== undefined) yield* paced(held, limiter, signal)
    held = bytes
  }
  if (digest.hex() !== packId) throw damagedPack(packId)
  if (held !== undefined) yield* paced(held, limiter, signal)
}
async function* paced(bytes: Buffer, limiter: RateLimiter | undefined, signal: AbortSignal | undefined): AsyncGenerator<Buffer, void, undefined> {
  if (limiter === undefined) { yield bytes; return }
  for (let at = 0; at < bytes.byteLength; at += limiter.pieceBytes) {
    const piece = bytes.subarray(at, at + limiter.pieceBytes)
    await limiter.take(piece.byteLength, signal)
    yield piece
  }
}

export function packBody(row: PackRow, open: () => AsyncIterable<unknown>, limiter?: RateLimiter, signal?: AbortSignal): ReplayableBody {
  return { bytes: row.storedBytes, open: () => Readable.from(provenPack(row.packId, open(), limiter, signal), { objectMode: false, highWaterMark: MiB }) }
}
/** From the spool. A target on the same file system may link the file, unless a rate limit asks for a copy. */
export function spoolBody(row: PackRow, file: string, limiter?: RateLimiter, signal?: AbortSignal): ReplayableBody {
  const body = packBody(row, () => createReadStream(file, { highWaterMark: MiB }), limiter, signal)
  return limiter === undefined ? { ...body, file } : body
}
