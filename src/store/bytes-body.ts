/** A body from memory, for small objects: headers, key slots, snapshots. */
import { Readable } from 'node:stream'
import type { ReplayableBody } from './object-store.js'

export function bytesBody(bytes: Uint8Array): ReplayableBody {
  return { bytes: bytes.byteLength, open: () => Readable.from([Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)]) }
}
