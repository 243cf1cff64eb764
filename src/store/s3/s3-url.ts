/** `s3:BUCKET[/PREFIX]?endpoint=…&region=…` as an operator writes it (docs/targets/s3.md). */
import { RoostError } from '../../core/errors.js'
import { isObjectKey } from '../object-key.js'

export interface S3Place {
  readonly bucket: string
  /** Empty, or a legal key and a slash. */
  readonly prefix: string
  readonly endpoint?: string
  /** Absent: what AWS's configuration says. */
  readonly region?: string
  readonly profile?: string
  readonly credentialsFile?: string
  readonly pathStyle: boolean
  /** How objects are locked when a retention lock asks for it. */
  readonly objectLock?: 'GOVERNANCE' | 'COMPLIANCE'
}
export const S3_FORM = 's3:BUCKET[/PREFIX]?region=REGION[&endpoint=URL]'
const OPTIONS = ['endpoint', 'region', 'profile', 'credentials-file', 'path-style', 'object-lock']

/** @throws {RoostError} REQUEST_MALFORMED */
export function parseS3Url(url: string): S3Place {
  const malformed = (problem: string): RoostError => new RoostError('REQUEST_MALFORMED', `${problem} An S3 target is given as ${S3_FORM}.`, { supported: [S3_FORM] })
  const [, path = '', query = ''] = /^s3:(?:\/\/)?([^?]*)\??(.*)$/.exec(url) ?? []
  const slash = path.indexOf('/')
  const bucket = slash < 0 ? path : path.slice(0, slash)
  const prefix = (slash < 0 ? '' : path.slice(slash + 1)).replace(/\/+$/, '')
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(bucket)) throw malformed('The bucket\'s name has 3–63 characters of a-z 0-9 . and -.')
  if (prefix !== '' && !isObjectKey(prefix)) throw malformed('The prefix holds only a-z 0-9 . _ - and /.')
  const options = new URLSearchParams(query)
  for (const name of options.keys()) if (!OPTIONS.includes(name)) throw malformed(`"${name}" is not an option; there are ${OPTIONS.join(', ')}.`)
  const of = (name: string): string | undefined => options.get(name) ?? undefined
  const endpoint = of('endpoint')
  if (endpoint !== undefined && !/^https?:\/\/[^/@\s]+(\/.*)?$/.test(endpoint)) throw malformed('The endpoint is http(s)://host[:port].')
  const style = of('path-style')
  if (style !== undefined && style !== 'true' && style !== 'false') throw malformed('path-style is true or false.')
  const lock = of('object-lock')
  if (lock !== undefined && lock !== 'governance' && lock !== 'compliance') throw malformed('object-lock is governance or compliance.')
  return { bucket, prefix: prefix === '' ? '' : `${prefix}/`, ...(of('region') !== undefined && { region: of('region')! }),
    // Virtual hosts need a wildcard name, which few services but AWS have.
    pathStyle: style === undefined ? endpoint !== undefined : style === 'true', ...(endpoint !== undefined && { endpoint }),
    ...(of('profile') !== undefined && { profile: of('profile')! }), ...(of('credentials-file') !== undefined && { credentialsFile: of('credentials-file')! }),
    ...(lock !== undefined && { objectLock: lock === 'governance' ? 'GOVERNANCE' as const : 'COMPLIANCE' as const }) }
}
