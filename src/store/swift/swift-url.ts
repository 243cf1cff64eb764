/** `swift:CONTAINER[/PREFIX]?cloud=NAME&region=…` as an operator writes it (docs/targets/swift.md). */
import { RoostError } from '../../core/errors.js'
import { isObjectKey } from '../object-key.js'

export interface SwiftPlace {
  readonly container: string
  /** Empty, or a legal key and a slash. */
  readonly prefix: string
  readonly cloud?: string
  /** "env": the OS_* or ST_* variables, whatever OS_CLOUD says. */
  readonly auth?: string
  readonly region?: string
  readonly interface?: string
  /** Storage policy of a container that has to be made. */
  readonly policy?: string
  readonly tempUrlKeyFile?: string
}
export const SWIFT_FORM = 'swift:CONTAINER[/PREFIX]?cloud=NAME'
const OPTIONS: Readonly<Record<string, keyof SwiftPlace>> =
  { cloud: 'cloud', region: 'region', interface: 'interface', policy: 'policy', 'tempurl-key-file': 'tempUrlKeyFile' }

/** @throws {RoostError} REQUEST_MALFORMED */
export function parseSwiftUrl(url: string): SwiftPlace {
  const malformed = (problem: string): RoostError => new RoostError('REQUEST_MALFORMED', `${problem} A Swift target is given as ${SWIFT_FORM}.`, { supported: [SWIFT_FORM] })
  const [path = '', query = ''] = splitOnce(url.slice('swift:'.length).replace(/^\/\//, ''), '?')
  const [container = '', prefix = ''] = splitOnce(path, '/')
  if (container === '' || container.length > 256 || /[@\s%]/.test(container)) throw malformed('The container\'s name is missing or malformed.')
  const within = prefix.replace(/\/+$/, '')
  if (within !== '' && !isObjectKey(within)) throw malformed('The prefix holds only a-z 0-9 . _ - and /.')
  const place: Record<string, string> = {}
  for (const [name, value] of new URLSearchParams(query)) {
    const key = OPTIONS[name]
    if (name === 'auth' && value === 'env') { place['auth'] = 'env'; continue }
    if (key === undefined) throw malformed(`"${name}" is not an option; there are ${Object.keys(OPTIONS).join(', ')}.`)
    if (value !== '') place[key] = value
  }
  return { ...place, container, prefix: within === '' ? '' : `${within}/` }
}
function splitOnce(text: string, at: string): [string, string?] {
  const index = text.indexOf(at)
  return index < 0 ? [text] : [text.slice(0, index), text.slice(index + 1)]
}
