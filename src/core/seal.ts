/** Bulk sealing: AES-256-GCM of node:crypto. Keys are per pack, nonces are byte offsets in that pack, so none repeats. */
import { createCipheriv, createDecipheriv } from 'node:crypto'

export const SEAL_TAG_BYTES = 16
export const SEAL_NONCE_BYTES = 12

/** Ciphertext pieces of the concatenated `parts`, the 16-byte tag last; their lengths add up to the plaintext's plus 16. */
export function seal(key: Buffer, nonce: Buffer, associated: Buffer, parts: readonly Uint8Array[]): Buffer[] {
  const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: SEAL_TAG_BYTES })
  cipher.setAAD(associated)
  const sealed = parts.map((part) => cipher.update(part))
  const last = cipher.final()
  if (last.byteLength > 0) sealed.push(last)
  sealed.push(cipher.getAuthTag())
  return sealed
}
/** The plaintext, or undefined when the bytes are not exactly what was sealed with this key, nonce and data. */
export function unseal(key: Buffer, nonce: Buffer, associated: Buffer, sealed: Buffer): Buffer | undefined {
  if (sealed.byteLength < SEAL_TAG_BYTES) return undefined
  const decipher = createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: SEAL_TAG_BYTES })
  decipher.setAAD(associated)
  decipher.setAuthTag(sealed.subarray(sealed.byteLength - SEAL_TAG_BYTES))
  const plain = decipher.update(sealed.subarray(0, sealed.byteLength - SEAL_TAG_BYTES))
  try {
    decipher.final()
  } catch {
    // final() throws exactly one thing: authentication failed. The caller names what was damaged.
    return undefined
  }
  return plain
}
