/** What may name an object, decided once for every target. A legal key cannot leave the store's folder. */
import { RoostError } from '../core/errors.js'
import type { ObjectKey } from './object-store.js'

const KEY_CHARS_MAX = 200
const SEGMENT = /^[a-z0-9._-]+$/

export function isKeySegment(name: string): boolean {
  return SEGMENT.test(name) && name !== '.' && name !== '..'
}
export function isObjectKey(text: unknown): text is ObjectKey {
  return typeof text === 'string' && text.length >= 1 && text.length <= KEY_CHARS_MAX && text.split('/').every(isKeySegment)
}
/** @throws {RoostError} STORE_REFUSED */
export function requireObjectKey(key: ObjectKey): void {
  if (!isObjectKey(key)) throw new RoostError('STORE_REFUSED',
    'An object key is 1–200 characters of a-z 0-9 . _ - and /, without empty, "." or ".." segments.')
}
/** Empty, or a legal key and a slash. @throws {RoostError} STORE_REFUSED */
export function requirePrefix(prefix: string): void {
  if (prefix !== '' && !(prefix.endsWith('/') && isObjectKey(prefix.slice(0, -1))))
    throw new RoostError('STORE_REFUSED', 'A listing prefix is empty, or a legal object key and a final slash.')
}
