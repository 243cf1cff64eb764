/** Reads what a pack says of itself, from any place that serves ranges: recovery, rebuild and check use it. */
import { RoostError } from '../core/errors.js'
import type { RepositoryId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { ByteRange } from '../store/object-store.js'
import {
  decodePackFooter, decodePackHeader, decodeTrailer, PACK_FOOTER_BYTES, PACK_HEADER_BYTES, packCorrupt, packSecret, type PackHeader,
  type PackSecret, type PackTrailer,
} from './pack-format.js'

export interface PackSelf { readonly header: PackHeader; readonly secret: PackSecret; readonly trailer: PackTrailer; readonly rawBytes: number }
/** One read usually covers footer and trailer: 52 bytes an entry, a thousand entries. */
const TAIL_BYTES = 64 * 1024

/** @param read exact ranges. @throws {RoostError} PACK_CORRUPT; what `read` throws. */
export async function readPackSelf(packBytes: number, read: (range: ByteRange) => Promise<Buffer>, packKey: Buffer,
  repositoryId: RepositoryId): Promise<PackSelf> {
  if (packBytes < PACK_HEADER_BYTES + PACK_FOOTER_BYTES || packBytes > LIMITS.packBytesMax) throw packCorrupt('its length is out of bounds', packBytes)
  const headerBytes = await read({ offset: 0, bytes: PACK_HEADER_BYTES })
  const header = decodePackHeader(headerBytes)
  if (header.repositoryId !== repositoryId)
    throw new RoostError('PACK_CORRUPT', 'A pack belongs to another repository.', { repository: header.repositoryId })
  const tailBytes = Math.min(TAIL_BYTES, packBytes - PACK_HEADER_BYTES)
  const tail = await read({ offset: packBytes - tailBytes, bytes: tailBytes })
  const footer = decodePackFooter(tail.subarray(tailBytes - PACK_FOOTER_BYTES))
  const offset = packBytes - PACK_FOOTER_BYTES - footer.trailerBytes
  if (offset < PACK_HEADER_BYTES) throw packCorrupt('its trailer is longer than the pack', packBytes)
  const inTail = offset - (packBytes - tailBytes)
  const sealed = inTail >= 0 ? tail.subarray(inTail, tailBytes - PACK_FOOTER_BYTES) : await read({ offset, bytes: footer.trailerBytes })
  const secret = packSecret(packKey, headerBytes)
  const trailer = decodeTrailer(secret, offset, Buffer.from(sealed), footer)
  return { header, secret, trailer, rawBytes: trailer.entries.rawBytes.reduce((sum, bytes) => sum + bytes, 0) }
}
