/** Globs over names that are bytes. `*` and `?` stay within one name, `**` crosses; `[a-z]`, `[!x]`; `\` takes the next literally.
 *
 *  Names are matched as latin1 text, one byte a character, so that no byte sequence is without a match; `?` and a class
 *  take one whole UTF-8 character.
 */

/** One UTF-8 character, or one stray byte. */
const ANY_CHARACTER = '(?:[\\x00-\\x2e\\x30-\\x7f]|[\\xc2-\\xf4][\\x80-\\xbf]{1,3}|[\\x80-\\xff])'

export interface PathPattern {
  readonly text: string
  /** Holds a '/' (not at its end): matched against whole paths, else against names anywhere. */
  readonly isAnchored: boolean
  /** `path`: latin1 of the bytes, names joined by '/', none at the beginning. */
  matches(path: string): boolean
}

export const hasGlob = (pattern: string): boolean => /[*?[\\]/.test(pattern)
export const latin1 = (bytes: Uint8Array): string => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')

/** `pattern` as bytes, as the command line gave it. */
export function compilePattern(pattern: Buffer): PathPattern {
  const whole = pattern.toString('latin1').replace(/\/+$/, '')
  const isAnchored = whole.includes('/')
  const regexp = new RegExp(`^${globSource(whole.replace(/^\/+/, ''))}$`, 's')
  return {
    text: pattern.toString('utf8'), isAnchored,
    matches: (path) => regexp.test(isAnchored ? path : path.slice(path.lastIndexOf('/') + 1)),
  }
}

function globSource(glob: string): string {
  let source = ''
  for (let at = 0; at < glob.length; at++) {
    const character = glob[at]!
    if (character === '*' && glob[at + 1] === '*') {
      const crossesSlash = glob[at + 2] === '/'
      source += crossesSlash ? '(?:[^]*/)?' : '[^]*'
      at += crossesSlash ? 2 : 1
    } else if (character === '*') source += '[^/]*'
    else if (character === '?') source += ANY_CHARACTER
    else if (character === '[') {
      const found = classSource(glob, at)
      source += found?.source ?? '\\['
      at = found?.end ?? at
    } else if (character === '\\' && at + 1 < glob.length) source += literal(glob[++at]!)
    else source += literal(character)
  }
  return source
}
/** A bracket expression that begins at `at`, as alternatives of whole characters; undefined when it is not closed. */
function classSource(glob: string, at: number): { source: string; end: number } | undefined {
  const isNegated = glob[at + 1] === '!' || glob[at + 1] === '^'
  const from = at + (isNegated ? 2 : 1)
  const end = glob.indexOf(']', from + 1)
  if (end < 0) return undefined
  const members = [...Buffer.from(glob.slice(from, end), 'latin1').toString('utf8')]
  const alternatives: string[] = []
  for (let i = 0; i < members.length; i++) {
    const isRange = members[i + 1] === '-' && members[i + 2] !== undefined
    const low = members[i]!.codePointAt(0)!
    const high = isRange ? members[i + 2]!.codePointAt(0)! : low
    if (isRange) i += 2
    if (high < 0x80) { if (low <= high) alternatives.push(`[${hex(low)}-${hex(high)}]`) }
    else for (let code = low; code <= high && alternatives.length < 1_024; code++)
      alternatives.push([...Buffer.from(String.fromCodePoint(code), 'utf8')].map(hex).join(''))
  }
  const any = `(?:${alternatives.join('|') || '[]'})`
  return { source: isNegated ? `(?!${any})${ANY_CHARACTER}` : any, end }
}
const hex = (code: number): string => `\\x${code.toString(16).padStart(2, '0')}`
const literal = (character: string): string => hex(character.charCodeAt(0))
