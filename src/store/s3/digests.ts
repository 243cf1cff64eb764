/** What S3 wants to know of a body before it is sent. */
import { createHash } from 'node:crypto'
import { readBody } from '../body.js'
import type { ObjectKey, ReplayableBody } from '../object-store.js'

export const md5Base64 = (bytes: string | Uint8Array): string => createHash('md5').update(bytes).digest('base64')

export interface Digests { readonly sha256Hex: string; readonly md5: Buffer }
/** Reads the body once; its length is proven on the way. */
export async function digestBody(key: ObjectKey, body: ReplayableBody, signal?: AbortSignal): Promise<Digests> {
  const sha256 = createHash('sha256'), md5 = createHash('md5')
  for await (const part of readBody(key, body, signal)) {
    sha256.update(part)
    md5.update(part)
  }
  return { sha256Hex: sha256.digest('hex'), md5: md5.digest() }
}
