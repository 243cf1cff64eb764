/** What a server must be told. Flags and environment are parsed elsewhere; this checks what they amount to. */
import { LIMITS } from '../core/limits.js'
import { DEFAULT_PORT } from '../protocol/routes.js'

export const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

export interface TlsFiles { readonly certFile: string; readonly keyFile: string }

export interface ServerConfig {
  readonly dataDirectory: string
  readonly host: string
  /** 0 takes any free port. */
  readonly port: number
  readonly tls?: TlsFiles
  /** Permits plain HTTP on an address that others can reach (a TLS proxy stands in front). */
  readonly allowPlainHttp: boolean
  /** Bytes of request bodies held at once. */
  readonly admissionBytes: number
  readonly logLevel: LogLevel
  /** Worker threads that verify, compress and seal. */
  readonly workers: number
  readonly spoolBytes: number
  readonly spoolReserveBytes: number
  /** How long a commit waits for its targets before it answers "not yet durable". */
  readonly commitWaitMs: number
  /** How long a drain waits for requests in flight. */
  readonly drainMs: number
  /** Where the jobs are written down that run by themselves. Without one, none do. */
  readonly jobsFile?: string
}

export const SERVER_CONFIG_DEFAULTS = Object.freeze({
  host: '127.0.0.1',
  port: DEFAULT_PORT,
  allowPlainHttp: false,
  admissionBytes: LIMITS.admissionBytesDefault,
  logLevel: 'info',
  workers: 2,
  spoolBytes: LIMITS.spoolBytesDefault,
  spoolReserveBytes: LIMITS.spoolReserveBytes,
  commitWaitMs: 60_000,
  drainMs: 30_000,
} as const satisfies Omit<ServerConfig, 'dataDirectory' | 'tls' | 'jobsFile'>)

/** A configuration that would be unsafe or could not work. Thrown before anything is opened. */
export class ServerConfigError extends Error {
  override readonly name = 'ServerConfigError'
}

/** @throws {ServerConfigError} on a value that cannot work, or on plain HTTP that others could read. */
export function checkServerConfig(config: ServerConfig): void {
  if (config.dataDirectory === '') throw new ServerConfigError('The data directory must be named.')
  if (!Number.isInteger(config.port) || config.port < 0 || config.port > 65_535)
    throw new ServerConfigError(`The port must be between 0 and 65535, not ${config.port}.`)
  if (!Number.isSafeInteger(config.admissionBytes) || config.admissionBytes < LIMITS.bodyBytesMax)
    throw new ServerConfigError(`The admission budget must hold one body: at least ${LIMITS.bodyBytesMax} bytes.`)
  if (!(config.drainMs >= 0)) throw new ServerConfigError('The drain deadline must not be negative.')
  if (config.tls === undefined && !config.allowPlainHttp && !isLoopback(config.host))
    throw new ServerConfigError(`Refusing plain HTTP on ${config.host}: give a certificate and key, or allow plain HTTP explicitly.`)
}

/** Names other than localhost are not resolved here, so they count as reachable. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(host)
}
