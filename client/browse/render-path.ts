/** Paths for people and for machines: names are bytes, and neither terminals nor JSON take any bytes. */

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
/** Controls, and what turns the direction of text or hides in it: a name must not draw on the terminal. */
const UNPRINTABLE = /[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\\]/gu

/** One line of printable text, injective: a backslash is doubled, anything unprintable becomes \n, \t, \xHH (bytes) or \u{H}. */
export function renderBytes(bytes: Buffer): string {
  const text = decodeUtf8(bytes)
  if (text !== undefined) return text.replace(UNPRINTABLE, escapeCharacter)
  let rendered = ''
  for (let at = 0; at < bytes.byteLength;) {
    const character = utf8CharacterAt(bytes, at)
    rendered += character === undefined ? escapeByte(bytes[at]!) : character.text.replace(UNPRINTABLE, escapeCharacter)
    at += character?.bytes ?? 1
  }
  return rendered
}
/** `path` is lossy where the bytes are not UTF-8; `pathBytes` (base64) then has them exactly. */
export function pathToJson(bytes: Buffer): { readonly path: string; readonly pathBytes?: string } {
  const text = decodeUtf8(bytes)
  return text !== undefined ? { path: text } : { path: bytes.toString('utf8'), pathBytes: bytes.toString('base64') }
}

function decodeUtf8(bytes: Buffer): string | undefined {
  try {
    return utf8.decode(bytes)
  } catch {
    return undefined // not UTF-8: the caller goes byte by byte
  }
}
function utf8CharacterAt(bytes: Buffer, at: number): { text: string; bytes: number } | undefined {
  const lead = bytes[at]!
  const length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0
  if (length === 0 || at + length > bytes.byteLength) return undefined
  const text = decodeUtf8(bytes.subarray(at, at + length))
  return text === undefined ? undefined : { text, bytes: length }
}
function escapeCharacter(character: string): string {
  const code = character.codePointAt(0)!
  if (character === '\\') return '\\\\'
  if (character === '\n') return '\\n'
  if (character === '\t') return '\\t'
  return code < 0x80 ? escapeByte(code) : `\\u{${code.toString(16)}}`
}
const escapeByte = (byte: number): string => `\\x${byte.toString(16).padStart(2, '0')}`
