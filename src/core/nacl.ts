/** Signatures, key wrapping and sealing to public keys. The only importer of tweetnacl; never carries bulk data
 *  (its pure-JavaScript secretbox runs at 0.08 GB/s). */
import nacl from 'tweetnacl'

export interface KeyPair { readonly publicKey: Buffer; readonly secretKey: Buffer }
const pair = (keys: { publicKey: Uint8Array; secretKey: Uint8Array }): KeyPair =>
  ({ publicKey: Buffer.from(keys.publicKey), secretKey: Buffer.from(keys.secretKey) })

export const signingKeysFromSeed = (seed: Buffer): KeyPair => pair(nacl.sign.keyPair.fromSeed(seed))
export const signDetached = (message: Uint8Array, secretKey: Buffer): Buffer => Buffer.from(nacl.sign.detached(message, secretKey))
export function verifyDetached(message: Uint8Array, signature: Uint8Array, publicKey: Uint8Array): boolean {
  return signature.byteLength === nacl.sign.signatureLength && publicKey.byteLength === nacl.sign.publicKeyLength &&
    nacl.sign.detached.verify(message, signature, publicKey)
}

/** nonce (24) ‖ secretbox. */
export function wrapWithKey(key: Buffer, secret: Buffer): Buffer {
  const nonce = nacl.randomBytes(nacl.secretbox.nonceLength)
  return Buffer.concat([nonce, nacl.secretbox(secret, nonce, key)])
}
/** The secret, or undefined when the key is wrong or the bytes were changed. */
export function unwrapWithKey(key: Buffer, wrapped: Buffer): Buffer | undefined {
  const { nonceLength } = nacl.secretbox
  if (wrapped.byteLength < nonceLength || key.byteLength !== nacl.secretbox.keyLength) return undefined
  const opened = nacl.secretbox.open(wrapped.subarray(nonceLength), wrapped.subarray(0, nonceLength), key)
  return opened === null ? undefined : Buffer.from(opened)
}

export const createBoxKeys = (): KeyPair => pair(nacl.box.keyPair())
export const boxKeysFromSecret = (secretKey: Buffer): KeyPair => pair(nacl.box.keyPair.fromSecretKey(secretKey))
/** ephemeral public key (32) ‖ nonce (24) ‖ box. */
export function wrapForPublicKey(publicKey: Buffer, secret: Buffer): Buffer {
  const ephemeral = nacl.box.keyPair()
  const nonce = nacl.randomBytes(nacl.box.nonceLength)
  return Buffer.concat([ephemeral.publicKey, nonce, nacl.box(secret, nonce, publicKey, ephemeral.secretKey)])
}
export function unwrapWithSecretKey(secretKey: Buffer, wrapped: Buffer): Buffer | undefined {
  const { publicKeyLength, nonceLength } = nacl.box
  if (wrapped.byteLength < publicKeyLength + nonceLength || secretKey.byteLength !== nacl.box.secretKeyLength) return undefined
  const opened = nacl.box.open(wrapped.subarray(publicKeyLength + nonceLength),
    wrapped.subarray(publicKeyLength, publicKeyLength + nonceLength), wrapped.subarray(0, publicKeyLength), secretKey)
  return opened === null ? undefined : Buffer.from(opened)
}
