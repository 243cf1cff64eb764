/** A 32-bit check of index rows: fast, not cryptographic, for rot and software faults, never against an adversary.
 *
 *  Every step is a bijection of the running state, and of the word taken in, so any damage that stays within one aligned
 *  32-bit word is found for certain; wider damage is missed once in 2^32. Mixing steps: MurmurHash3 (public domain).
 */
import { RoostError } from '../core/errors.js'

export function mixWord(state: number, word: number): number {
  let k = Math.imul(word, 0xcc9e2d51)
  k = Math.imul((k << 15) | (k >>> 17), 0x1b873593)
  const mixed = state ^ k
  return (Math.imul((mixed << 13) | (mixed >>> 19), 5) + 0xe6546b64) | 0
}
export function finishCheck(state: number): number {
  let h = state
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}
export function wordAt(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)
}
/** Takes bytes [start, end) into `state`; the length is taken in too, so that a cut is a change. */
export function mixBytes(state: number, bytes: Uint8Array, start: number, end: number): number {
  let h = mixWord(state, end - start)
  let at = start
  for (; at + 4 <= end; at += 4) h = mixWord(h, wordAt(bytes, at))
  let tail = 0
  for (let shift = 0; at < end; at++, shift += 8) tail |= bytes[at]! << shift
  return mixWord(h, tail)
}

/** What an operator must do about any damaged row. */
export function corrupt(what: string, cause?: unknown): RoostError {
  return new RoostError('INDEX_CORRUPT',
    `${what} The index is a cache: stop the server, move its directory away and run "roost rebuild".`,
    { what }, cause === undefined ? {} : { cause })
}
