/** Structured logs: one JSON line an event, no bodies, no secrets. The only importer of pino. */
import { pino, type DestinationStream, type Logger } from 'pino'
import type { LogLevel } from './config.js'

export type { Logger }

/** Names whose values never reach a log, at the top of a line's object and one or two levels down. */
const SECRET_NAMES = [
  'authorization', 'Authorization', 'token', 'secret', 'secretHash', 'passphrase', 'recoverySecretKey', 'dedupKey', 'cookie',
]
const REDACTED_PATHS = SECRET_NAMES.flatMap((name) => [name, `*.${name}`, `*.*.${name}`])

export interface LoggerOptions {
  readonly level: LogLevel
  /** Standard error by default, so that standard output stays for what a person asked. */
  readonly destination?: DestinationStream
}
export function createLogger(options: LoggerOptions): Logger {
  const settings = { level: options.level, base: null, redact: { paths: REDACTED_PATHS, censor: '[redacted]' } }
  return pino(settings, options.destination ?? pino.destination({ fd: 2, sync: true }))
}
