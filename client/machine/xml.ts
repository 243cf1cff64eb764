/** As much of XML as libvirt writes: elements, attributes, text. Strict: what is not well-formed, and every DOCTYPE, is refused. Pure. */
import { ClientError } from '../../src/protocol/client-errors.js'

export interface XmlElement { readonly name: string; readonly attributes: Readonly<Record<string, string>>; readonly children: readonly (XmlElement | string)[] }

const DEPTH_MAX = 64
const ELEMENTS_MAX = 50_000
const NAME = /[A-Za-z_][A-Za-z0-9_.:-]*/y
const SPACE = /[ \t\r\n]*/y
const ENTITIES: Readonly<Record<string, string>> = { lt: '<', gt: '>', amp: '&', quot: '"', apos: "'" }
/** Characters that XML 1.0 cannot have, not even escaped. */
const FORBIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g

/** @throws {ClientError} MACHINE_MALFORMED */
export function parseXml(text: string): XmlElement {
  if (text.search(FORBIDDEN) >= 0) throw malformed('it has characters that no XML has')
  const parser = new Parser(text)
  parser.skipMisc()
  const root = parser.element(0)
  parser.skipMisc()
  if (!parser.isAtEnd) throw malformed('something follows its end')
  return root
}
/** With indentation, so that people can read it. */
export function formatXml(element: XmlElement, indent = ''): string {
  const attributes = Object.entries(element.attributes).map(([name, value]) => ` ${name}='${escapeXml(value)}'`).join('')
  const children = element.children.filter((child) => typeof child !== 'string' || child.trim() !== '')
  if (children.length === 0) return `${indent}<${element.name}${attributes}/>`
  if (children.every((child) => typeof child === 'string')) return `${indent}<${element.name}${attributes}>${children.map((child) => escapeXml(child as string)).join('')}</${element.name}>`
  const inner = children.map((child) => typeof child === 'string' ? `${indent}  ${escapeXml(child.trim())}` : formatXml(child, `${indent}  `))
  return [`${indent}<${element.name}${attributes}>`, ...inner, `${indent}</${element.name}>`].join('\n')
}
export function escapeXml(text: string): string {
  return text.replace(FORBIDDEN, '').replace(/[&<>'"]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', "'": '&apos;', '"': '&quot;' })[character]!)
    .replace(/[\r\n\t\u0085\u2028]/g, (character) => `&#${character.codePointAt(0)!};`)
}
export const xml = (name: string, attributes: Readonly<Record<string, string>> = {}, ...children: readonly (XmlElement | string)[]): XmlElement => ({ name, attributes, children })
export const childrenOf = (element: XmlElement, name?: string): XmlElement[] =>
  element.children.filter((child): child is XmlElement => typeof child !== 'string' && (name === undefined || child.name === name))
export const textOf = (element: XmlElement | undefined): string => element?.children.filter((child) => typeof child === 'string').join('').trim() ?? ''

const malformed = (what: string): ClientError => new ClientError('MACHINE_MALFORMED', `libvirt's XML in the machine's description is not well-formed: ${what}.`)

class Parser {
  #at = 0
  #elements = 0
  constructor(readonly text: string) {}
  get isAtEnd(): boolean { return this.#at === this.text.length }

  /** Space, comments, and the declaration at the beginning. */
  skipMisc(): void {
    for (;;) {
      this.#match(SPACE)
      if (this.#takes('<!--')) this.#until('-->')
      else if (this.#takes('<?')) this.#until('?>')
      else return
    }
  }
  element(depth: number): XmlElement {
    if (depth > DEPTH_MAX || ++this.#elements > ELEMENTS_MAX) throw malformed('it is too deep or too long')
    if (!this.#takes('<')) throw malformed('an element is missing')
    const name = this.#name()
    const attributes: Record<string, string> = {}
    for (;;) {
      const hadSpace = this.#match(SPACE) !== ''
      if (this.#takes('/>')) return { name, attributes, children: [] }
      if (this.#takes('>')) break
      if (!hadSpace) throw malformed('attributes are not apart')
      const key = this.#name()
      this.#match(SPACE)
      if (!this.#takes('=')) throw malformed('an attribute has no value')
      this.#match(SPACE)
      const quote = this.#takes('"') ? '"' : this.#takes("'") ? "'" : undefined
      if (quote === undefined || Object.hasOwn(attributes, key)) throw malformed('an attribute has no value, or two')
      const value = this.#until(quote)
      if (value.includes('<')) throw malformed('an attribute has a "<" in it')
      Object.defineProperty(attributes, key, { value: unescape(value), enumerable: true })
    }
    return { name, attributes, children: this.#children(name, depth) }
  }
  #children(name: string, depth: number): (XmlElement | string)[] {
    const children: (XmlElement | string)[] = []
    for (;;) {
      const next = this.text.indexOf('<', this.#at)
      if (next < 0) throw malformed('an element does not end')
      if (next > this.#at) children.push(unescape(this.text.slice(this.#at, next)))
      this.#at = next
      if (this.#takes('<!--')) this.#until('-->')
      else if (this.#takes('<![CDATA[')) children.push(this.#until(']]>'))
      else if (this.#takes('<?')) this.#until('?>')
      else if (this.#takes('</')) {
        if (this.#name() !== name) throw malformed('an element ends that did not begin')
        this.#match(SPACE)
        if (!this.#takes('>')) throw malformed('the end of an element does not end')
        return children
      } else children.push(this.element(depth + 1))
    }
  }
  #name(): string {
    const name = this.#match(NAME)
    if (name === '') throw malformed('a name is missing')
    return name
  }
  #match(pattern: RegExp): string {
    pattern.lastIndex = this.#at
    const found = pattern.exec(this.text)?.[0] ?? ''
    this.#at += found.length
    return found
  }
  #takes(what: string): boolean {
    if (!this.text.startsWith(what, this.#at)) return false
    this.#at += what.length
    return true
  }
  #until(what: string): string {
    const end = this.text.indexOf(what, this.#at)
    if (end < 0) throw malformed('something does not end')
    const text = this.text.slice(this.#at, end)
    this.#at = end + what.length
    return text
  }
}
function unescape(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-fA-F]{1,6})|(\w{1,10}));?/g, (whole: string, decimal?: string, hex?: string, name?: string) => {
    if (!whole.endsWith(';')) throw malformed('an entity does not end')
    if (name !== undefined) {
      const found = Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : undefined
      if (found === undefined) throw malformed('it names an entity that XML does not have')
      return found
    }
    const code = decimal === undefined ? parseInt(hex!, 16) : Number(decimal)
    if (code > 0x10_ffff || code === 0) throw malformed('it names a character that there is not')
    const character = String.fromCodePoint(code)
    if (character.search(FORBIDDEN) >= 0) throw malformed('it names a character that no XML has')
    return character
  })
}
