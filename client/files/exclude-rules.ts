/** Which paths a file backup leaves out: gitignore-like globs over bytes.
 *
 *  Names are bytes, held as latin1 strings (one character a byte: they compare and match fast, and lose nothing). A pattern is
 *  taken as the UTF-8 bytes that its author typed. Matching is greedy with one point of return per level, so its cost is
 *  bounded by pattern × path, whatever the pattern.
 *
 *  - `name`, `*.log`: without a slash inside, matches an entry of that name anywhere.
 *  - `a/b`: matches wherever a path ends so; `/home/u/x`: a leading slash anchors to the absolute path.
 *  - `*` any run within a name, `**` any run of whole names, `?` one character, `[a-z]`, `[!a-z]`; `\` takes the next literally.
 *  - `dir/`: directories only. `!pattern` takes back in what an earlier pattern left out; the last match decides.
 *  - What is below an excluded directory is never looked at, so nothing there can be taken back in.
 */
import { asBuffer } from '../../src/core/bytes.js'

type Token =
  | { readonly kind: 'byte'; readonly byte: string }
  | { readonly kind: 'any' }
  | { readonly kind: 'run' }
  | { readonly kind: 'class'; readonly negated: boolean; readonly ranges: readonly (readonly [number, number])[] }
/** A path part: literal text (the common case), tokens, or '**'. */
type Part = string | readonly Token[] | typeof ANY_PARTS
const ANY_PARTS = Symbol('**')

interface Rule {
  readonly parts: readonly Part[]
  readonly anchored: boolean
  readonly directoriesOnly: boolean
  readonly excludes: boolean
}

export class ExcludeRules {
  readonly #rules: readonly Rule[]
  constructor(patterns: readonly (string | Uint8Array)[]) { this.#rules = patterns.flatMap((pattern) => parseRule(pattern) ?? []) }

  /** `parents`: the names from '/' down to the entry's directory; all names as latin1 strings. */
  excludes(parents: readonly string[], name: string, isDirectory: boolean): boolean {
    for (let i = this.#rules.length - 1; i >= 0; i--) {
      const rule = this.#rules[i]!
      if ((isDirectory || !rule.directoriesOnly) && matches(rule, parents, name)) return rule.excludes
    }
    return false
  }
}

/** The patterns of an exclude file: one a line; blank lines and lines that begin with '#' are none. */
export function parseExcludeFile(bytes: Uint8Array): Buffer[] {
  return asBuffer(bytes).toString('latin1').split('\n').map((line) => line.replace(/\r$/, '').replace(/(?<!\\)[ \t]+$/, ''))
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => Buffer.from(line, 'latin1'))
}

function parseRule(pattern: string | Uint8Array): Rule | undefined {
  let text = (typeof pattern === 'string' ? Buffer.from(pattern) : asBuffer(pattern)).toString('latin1')
  const excludes = !text.startsWith('!')
  if (!excludes) text = text.slice(1)
  const directoriesOnly = text.endsWith('/')
  const anchored = text.startsWith('/')
  const parts = text.split('/').filter((part) => part !== '' && part !== '.').map(parsePart)
  if (parts.length === 0) return undefined
  return { parts, anchored, directoriesOnly, excludes }
}

function parsePart(text: string): Part {
  if (text === '**') return ANY_PARTS
  if (!/[*?[\\]/.test(text)) return text
  const tokens: Token[] = []
  for (let at = 0; at < text.length;) {
    const byte = text[at]!
    const parsedClass = byte === '[' ? parseClass(text, at) : undefined
    if (parsedClass !== undefined) {
      tokens.push(parsedClass.token)
      at = parsedClass.end
    } else if (byte === '\\' && at + 1 < text.length) {
      tokens.push({ kind: 'byte', byte: text[at + 1]! })
      at += 2
    } else {
      if (byte !== '*') tokens.push(byte === '?' ? { kind: 'any' } : { kind: 'byte', byte })
      else if (tokens.at(-1)?.kind !== 'run') tokens.push({ kind: 'run' })
      at++
    }
  }
  return tokens
}
/** The class that opens at `open`; undefined without a closing bracket: then '[' means itself. */
function parseClass(text: string, open: number): { token: Token; end: number } | undefined {
  let at = open + 1
  const negated = text[at] === '!' || text[at] === '^'
  if (negated) at++
  const ranges: [number, number][] = []
  for (let isFirst = true; at < text.length; isFirst = false) {
    if (text[at] === ']' && !isFirst) return { token: { kind: 'class', negated, ranges }, end: at + 1 }
    if (text[at] === '\\' && at + 1 < text.length) at++
    const from = characterAt(text, at)
    at += from.length
    if (text[at] === '-' && at + 1 < text.length && text[at + 1] !== ']') {
      const to = characterAt(text, at + 1)
      ranges.push([from.code, to.code])
      at += 1 + to.length
    } else ranges.push([from.code, from.code])
  }
  return undefined
}

function matches(rule: Rule, parents: readonly string[], name: string): boolean {
  const { parts, anchored } = rule
  if (!anchored && parts.length === 1) return matchesPart(parts[0]!, name)
  // The last part must match the name itself: cheap, and rules out nearly every path.
  if (!matchesPart(parts.at(-1)!, name)) return false
  return matchesPath(parts, [...parents, name], anchored)
}
/** Parts against names; on a mismatch the latest '**' takes one name more, which is enough for any number of them. */
function matchesPath(parts: readonly Part[], names: readonly string[], anchored: boolean): boolean {
  let part = 0
  let name = 0
  let retryPart = anchored ? -1 : 0
  let retryName = 0
  while (name < names.length) {
    if (part < parts.length && parts[part] === ANY_PARTS) {
      retryPart = ++part
      retryName = name
      if (part === parts.length) return true
    } else if (part < parts.length && matchesPart(parts[part]!, names[name]!)) {
      part++
      name++
    } else {
      if (retryPart < 0) return false
      part = retryPart
      name = ++retryName
    }
  }
  return part === parts.length
}
function matchesPart(part: Part, name: string): boolean {
  if (typeof part === 'string') return part === name
  return part === ANY_PARTS || matchesTokens(part, name)
}
function matchesTokens(tokens: readonly Token[], name: string): boolean {
  let token = 0
  let at = 0
  let retryToken = -1
  let retryAt = 0
  while (at < name.length) {
    const current = tokens[token]
    const length = current === undefined || current.kind === 'run' ? 0 : matchedLength(current, name, at)
    if (current?.kind === 'run') {
      retryToken = ++token
      retryAt = at
    } else if (length > 0) {
      token++
      at += length
    } else {
      if (retryToken < 0) return false
      token = retryToken
      at = ++retryAt
    }
  }
  while (tokens[token]?.kind === 'run') token++
  return token === tokens.length
}
function matchedLength(token: Exclude<Token, { kind: 'run' }>, name: string, at: number): number {
  if (token.kind === 'byte') return name[at] === token.byte ? 1 : 0
  const { code, length } = characterAt(name, at)
  if (token.kind === 'any') return length
  return token.ranges.some(([from, to]) => from <= code && code <= to) === token.negated ? 0 : length
}

/** The UTF-8 character at a place of a latin1 string. A byte that begins none is a character of its own, beyond Unicode. */
function characterAt(text: string, at: number): { code: number; length: number } {
  const first = text.charCodeAt(at)
  if (first < 0x80) return { code: first, length: 1 }
  const length = first >= 0xf0 && first < 0xf8 ? 4 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xc0 && first < 0xe0 ? 2 : 0
  let code = first & (0x7f >> length)
  for (let i = 1; i < length; i++) {
    const next = text.charCodeAt(at + i)
    if ((next & 0xc0) !== 0x80) return { code: 0x11_0000 + first, length: 1 } // also past the end: NaN & … is 0
    code = code << 6 | next & 0x3f
  }
  return length === 0 ? { code: 0x11_0000 + first, length: 1 } : { code, length }
}
