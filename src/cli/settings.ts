/** What the user set: flags over environment over the config file. The only reader of process.env.
 *
 *  Secrets come from files or the environment, never from the command line: arguments are visible to every user of the machine.
 */
import { readFileSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { isErrno } from '../core/errors.js'
import { UsageError } from './exit-codes.js'

/** Flags that every command takes. */
export interface GlobalFlags {
  readonly repository?: string
  readonly server?: string
  readonly tokenFile?: string
  readonly caFile?: string
  readonly verifyKey?: string
  readonly config?: string
  readonly allowPlainHttp?: boolean
  readonly json?: boolean
  readonly quiet?: boolean
  readonly verbose?: boolean
}
/** The keys of the config file (JSON); all optional, unknown ones are refused: a typing error must not be silent. */
const FILE_KEYS = ['repository', 'server', 'tokenFile', 'caFile', 'verifyKey', 'source', 'wire', 'limitUpload', 'limitRead', 'excludeFile', 'hooks'] as const
type FileKey = (typeof FILE_KEYS)[number]
type FileSettings = Partial<Record<FileKey, string>>

const ENVIRONMENT: Readonly<Record<FileKey, string>> = {
  repository: 'ROOST_REPOSITORY', server: 'ROOST_SERVER', tokenFile: 'ROOST_TOKEN_FILE', caFile: 'ROOST_CA_FILE',
  verifyKey: 'ROOST_VERIFY_KEY', source: 'ROOST_SOURCE', wire: 'ROOST_WIRE', limitUpload: 'ROOST_LIMIT_UPLOAD', limitRead: 'ROOST_LIMIT_READ',
  excludeFile: 'ROOST_EXCLUDE_FILE', hooks: 'ROOST_HOOKS',
}
export type Environment = Readonly<Record<string, string | undefined>>

export const processEnvironment = (): Environment => process.env

export class Settings {
  readonly #file: FileSettings
  readonly #flags: GlobalFlags
  readonly #environment: Environment
  /** @throws {UsageError} when the config file is named but absent, or malformed. */
  constructor(flags: GlobalFlags, environment: Environment = processEnvironment()) {
    this.#flags = flags
    this.#environment = environment
    this.#file = readConfigFile(flags.config ?? emptyAsAbsent(environment['ROOST_CONFIG']), environment)
  }

  /** The strongest of: `flag`, the environment variable, the config file. */
  value(key: FileKey, flag: string | undefined = undefined): string | undefined {
    const global = key in this.#flags ? (this.#flags as Record<string, string | undefined>)[key] : undefined
    return flag ?? global ?? emptyAsAbsent(this.#environment[ENVIRONMENT[key]]) ?? this.#file[key]
  }
  environment(name: `ROOST_${string}`): string | undefined { return emptyAsAbsent(this.#environment[name]) }

  /** @throws {UsageError} when no repository is named. */
  repository(): RepositoryAddress {
    const text = this.value('repository')
    if (text === undefined) throw new UsageError(
      'No repository is named. Set ROOST_REPOSITORY=http://host:8470/NAME, or give --repository.')
    const address = parseRepositoryAddress(text)
    if (address.name === undefined) throw new UsageError(`"${text}" names a server but no repository: append /NAME.`)
    return { server: address.server, name: address.name }
  }
  /** The server's base URL: --server or that of the repository. */
  server(): URL {
    const text = this.value('server') ?? this.value('repository')
    if (text === undefined) throw new UsageError(
      'No server is named. Set ROOST_SERVER=http://host:8470 (or ROOST_REPOSITORY=http://host:8470/NAME), or give --server.')
    return this.value('server') === undefined ? parseRepositoryAddress(text).server : parseServerUrl(text)
  }
  /** @throws {UsageError} when there is none, or its file cannot be read. */
  token(): { readonly token: string; readonly warning?: string } {
    const inline = this.#flags.tokenFile === undefined ? this.environment('ROOST_TOKEN') : undefined
    if (inline !== undefined) return { token: inline.trim() }
    const path = this.value('tokenFile')
    if (path === undefined) throw new UsageError(
      'No token. Set ROOST_TOKEN_FILE to a file that holds it (or ROOST_TOKEN). The first one is in DATA/admin-token of the server.')
    const token = readSmallFile(path, 'token file').trim()
    if (token === '') throw new UsageError(`The token file ${path} is empty.`)
    const open = (statSync(path).mode & 0o077) !== 0
    return open ? { token, warning: `The token file ${path} is readable by other users: chmod 600 it.` } : { token }
  }
  /** A PEM file of the authority that signed the server's certificate. @throws {UsageError} when it cannot be read. */
  caFile(): string | undefined {
    const path = this.value('caFile')
    if (path !== undefined) readSmallFile(path, 'CA file')
    return path
  }
  /** How long a request that fails in a way that may pass is repeated; undefined: the command's own patience. */
  patienceMs(): number | undefined {
    const text = this.environment('ROOST_RETRY_SECONDS')
    if (text !== undefined && !/^\d{1,6}$/.test(text)) throw new UsageError('ROOST_RETRY_SECONDS is a number of seconds.')
    return text === undefined ? undefined : Number(text) * 1000
  }
  /** The user accepts that the token travels unencrypted. */
  allowsPlainHttp(): boolean { return this.#flags.allowPlainHttp === true || this.environment('ROOST_ALLOW_PLAIN_HTTP') === '1' }
  /** The Ed25519 public keys that snapshots must be signed with, one of them each: 64 hex digits, separated by commas. */
  verifyKeys(): readonly string[] | undefined {
    const keys = this.value('verifyKey')?.split(',').map((text) => text.trim())
    if (keys?.some((key) => !/^[0-9a-f]{64}$/.test(key)) === true) throw new UsageError('A verify key is 64 lowercase hex digits; several are separated by commas.')
    return keys
  }
}

export interface RepositoryAddress { readonly server: URL; readonly name: string }

/** `http://host:8470/NAME` → server and name; a path before the name belongs to the server (a reverse proxy's prefix). */
export function parseRepositoryAddress(text: string): { server: URL; name: string | undefined } {
  const url = parseServerUrl(text)
  const segments = url.pathname.split('/').filter((segment) => segment !== '')
  const name = segments.pop()
  url.pathname = segments.length === 0 ? '/' : `/${segments.join('/')}/`
  return { server: url, name: name === undefined ? undefined : decodeURIComponent(name) }
}
function parseServerUrl(text: string): URL {
  let url: URL
  try {
    url = new URL(text)
  } catch {
    throw new UsageError(`"${text}" is not an address: write http://host:8470/NAME or https://host/NAME.`)
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') throw new UsageError(`"${text}": only http and https are spoken.`)
  if (url.username !== '' || url.password !== '') throw new UsageError('An address holds no password: put the token in ROOST_TOKEN_FILE.')
  if (url.search !== '' || url.hash !== '') throw new UsageError(`"${text}": an address has no ? or # part.`)
  return url
}
/** A passphrase or secret key from a file; one trailing newline is not part of it. */
export function readSecretFile(path: string, what: string): string {
  const text = readSmallFile(path, what).replace(/\r?\n$/, '')
  if (text === '') throw new UsageError(`The ${what} ${path} is empty.`)
  return text
}
function readSmallFile(path: string, what: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (!isErrno(error)) throw error
    throw new UsageError(`The ${what} ${path} cannot be read: ${error.message}`, { cause: error })
  }
}
function readConfigFile(named: string | undefined, environment: Environment): FileSettings {
  const home = emptyAsAbsent(environment['XDG_CONFIG_HOME']) ?? join(emptyAsAbsent(environment['HOME']) ?? homedir(), '.config')
  const path = named ?? join(home, 'roost', 'config.json')
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (named === undefined && (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR') || isErrno(error, 'EACCES'))) return {}
    throw new UsageError(`The config file ${path} cannot be read.`, { cause: error })
  }
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (error) {
    throw new UsageError(`The config file ${path} is not JSON: ${(error as Error).message}`, { cause: error })
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed))
    throw new UsageError(`The config file ${path} is not a JSON object.`)
  for (const [key, value] of Object.entries(parsed)) {
    if (key === 'token') throw new UsageError(`${path}: put the token in a file of its own and name it with "tokenFile".`)
    if (!(FILE_KEYS as readonly string[]).includes(key))
      throw new UsageError(`${path}: "${key}" is not a setting; there are: ${FILE_KEYS.join(', ')}.`)
    if (typeof value !== 'string') throw new UsageError(`${path}: "${key}" must be a string.`)
  }
  return parsed as FileSettings
}
const emptyAsAbsent = (text: string | undefined): string | undefined => text === '' ? undefined : text
