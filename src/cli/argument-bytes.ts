/** Paths are bytes; Node hands arguments over as strings in which every byte that is not UTF-8 became U+FFFD.
 *
 *  The true bytes are in /proc/self/cmdline (Linux). Bytes that are not UTF-8 are carried through the option parser as
 *  lone surrogates U+DC80–U+DCFF, one a byte, which no valid UTF-8 decodes to; `argumentBytes` turns them back.
 */
import { readFileSync } from 'node:fs'

const REPLACEMENT = '\ufffd'

/** The process's own arguments without loss, as far as the system tells them. */
export function exactArguments(argv: readonly string[], readCommandLine = readOwnCommandLine): string[] {
  if (!argv.some((argument) => argument.includes(REPLACEMENT))) return [...argv]
  const raw = readCommandLine()
  if (raw === undefined) return [...argv]
  const all = splitAtNul(raw)
  // Node's own options may stand before the script's: align from the end.
  const own = all.slice(all.length - argv.length)
  if (own.length !== argv.length) return [...argv]
  return argv.map((argument, index) => own[index]!.toString('utf8') === argument ? escapeBytes(own[index]!) : argument)
}

/** Bytes as a string: UTF-8 where it is valid, a lone surrogate for every other byte. */
export function escapeBytes(bytes: Buffer): string {
  let text = ''
  for (let at = 0; at < bytes.length;) {
    const length = sequenceLength(bytes, at)
    text += length === 0 ? String.fromCharCode(0xdc00 + bytes[at]!) : bytes.toString('utf8', at, at + length)
    at += Math.max(1, length)
  }
  return text
}

/** The bytes that `escapeBytes` (or plain UTF-8 text) stands for. */
export function argumentBytes(text: string): Buffer {
  const parts: Buffer[] = []
  let from = 0
  for (let at = 0; at < text.length; at++) {
    const unit = text.charCodeAt(at)
    if (unit < 0xdc80 || unit > 0xdcff) continue
    const before = at > 0 ? text.charCodeAt(at - 1) : 0
    if (before >= 0xd800 && before <= 0xdbff) continue // the second half of a pair
    parts.push(Buffer.from(text.slice(from, at)), Buffer.from([unit - 0xdc00]))
    from = at + 1
  }
  return Buffer.concat([...parts, Buffer.from(text.slice(from))])
}

/** Length of the valid UTF-8 sequence that starts at `at`, or 0. */
function sequenceLength(bytes: Buffer, at: number): number {
  const first = bytes[at]!
  const length = first < 0x80 ? 1 : first >= 0xc2 && first <= 0xdf ? 2 : first >= 0xe0 && first <= 0xef ? 3 :
    first >= 0xf0 && first <= 0xf4 ? 4 : 0
  if (length === 0 || at + length > bytes.length) return 0
  const sequence = bytes.subarray(at, at + length)
  return Buffer.from(sequence.toString('utf8')).equals(sequence) ? length : 0
}
function splitAtNul(bytes: Buffer): Buffer[] {
  const parts: Buffer[] = []
  for (let from = 0; from < bytes.length;) {
    const end = bytes.indexOf(0, from)
    parts.push(bytes.subarray(from, end < 0 ? bytes.length : end))
    from = end < 0 ? bytes.length : end + 1
  }
  return parts
}
function readOwnCommandLine(): Buffer | undefined {
  try {
    return readFileSync('/proc/self/cmdline')
  } catch {
    return undefined // not Linux, or /proc is not mounted: the strings are all there is
  }
}
