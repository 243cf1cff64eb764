/** Recovery keys as text that people print, store in a safe and type again: prefix, then base32 of key ‖ checksum.
 *
 *  The checksum (4 bytes of BLAKE3 over prefix and key) finds typing errors, and a public key given as a secret one.
 *  No message repeats what was given: it may be the secret.
 */
import { RoostError } from '../core/errors.js'
import { digest } from '../core/hash.js'
import { createBoxKeys } from '../core/nacl.js'

const PREFIXES = { public: 'roost-recovery-public-', secret: 'roost-recovery-secret-' } as const
type RecoveryKeyPart = keyof typeof PREFIXES
const KEY_BYTES = 32
const CHECKSUM_BYTES = 4
const ALPHABET = 'abcdefghijklmnopqrstuvwxyz234567' // RFC 4648, lowercase, unpadded

export interface RecoveryKeyTexts { readonly publicKey: string; readonly secretKey: string }

/** A fresh pair. The public text goes into a slot; the secret one must never reach a server until it is needed. */
export function createRecoveryKey(): RecoveryKeyTexts {
  const pair = createBoxKeys()
  return { publicKey: formatKey('public', pair.publicKey), secretKey: formatKey('secret', pair.secretKey) }
}
/** @throws {RoostError} REQUEST_MALFORMED */
export const parseRecoveryPublicKey = (text: string): Buffer => parseKey('public', text)
/** @throws {RoostError} REQUEST_MALFORMED */
export const parseRecoverySecretKey = (text: string): Buffer => parseKey('secret', text)

function formatKey(part: RecoveryKeyPart, key: Buffer): string {
  return PREFIXES[part] + encodeBase32(Buffer.concat([key, checksum(part, key)]))
}
function parseKey(part: RecoveryKeyPart, text: string): Buffer {
  const other: RecoveryKeyPart = part === 'public' ? 'secret' : 'public'
  const typed = text.trim().toLowerCase()
  if (typed.startsWith(PREFIXES[other])) throw malformed(part, `this is a ${other} one`)
  if (!typed.startsWith(PREFIXES[part])) throw malformed(part, `it begins with ${PREFIXES[part]}`)
  const bytes = decodeBase32(typed.slice(PREFIXES[part].length))
  if (bytes?.byteLength !== KEY_BYTES + CHECKSUM_BYTES) throw malformed(part, 'a character is missing, too many or not of a-z 2-7')
  const key = bytes.subarray(0, KEY_BYTES)
  if (!checksum(part, key).equals(bytes.subarray(KEY_BYTES)) || formatKey(part, key) !== typed)
    throw malformed(part, 'its checksum does not match: a character was mistyped')
  return key
}
function checksum(part: RecoveryKeyPart, key: Buffer): Buffer {
  return digest(Buffer.concat([Buffer.from(PREFIXES[part], 'latin1'), key])).subarray(0, CHECKSUM_BYTES)
}
function malformed(part: RecoveryKeyPart, problem: string): RoostError {
  return new RoostError('REQUEST_MALFORMED', `A ${part} recovery key was expected, but ${problem}.`)
}

function encodeBase32(bytes: Buffer): string {
  let text = ''
  let held = 0
  let bits = 0
  for (const byte of bytes) {
    held = (held << 8) | byte
    for (bits += 8; bits >= 5; bits -= 5) text += ALPHABET[(held >>> (bits - 5)) & 31]!
    held &= (1 << bits) - 1
  }
  return bits === 0 ? text : text + ALPHABET[(held << (5 - bits)) & 31]!
}
function decodeBase32(text: string): Buffer | undefined {
  const bytes: number[] = []
  let held = 0
  let bits = 0
  for (const character of text) {
    const value = ALPHABET.indexOf(character)
    if (value < 0) return undefined
    held = (held << 5) | value
    bits += 5
    if (bits >= 8) {
      bytes.push((held >>> (bits - 8)) & 255)
      bits -= 8
    }
    held &= (1 << bits) - 1
  }
  return Buffer.from(bytes)
}
