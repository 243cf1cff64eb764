/** `retention.json` on the targets: policies, protected and locked snapshots, the repository's lock (docs/formats/repository-v1.md, retention).
 *
 *  Readable by whoever can read the target, authenticated under a key of its own. `version` grows with each change: of several whole copies the
 *  highest is the truth.
 */
import { timingSafeEqual } from 'node:crypto'
import { RoostError } from '../../core/errors.js'
import { keyedDigest } from '../../core/hash.js'
import type { RepositoryId } from '../../core/ids.js'
import { LIMITS, MiB } from '../../core/limits.js'
import type { RetentionPolicy, SourcePolicy } from '../../core/messages.js'

export interface SnapshotLock {
  readonly snapshot: string
  /** The server's clock when it was set, and what it was to show at the end: the lock is the time between them. */
  readonly setAtMs: number
  readonly untilMs: number
}
export interface RetentionSettings {
  readonly version: number
  readonly lockMs: number
  readonly policy: RetentionPolicy | null
  readonly sources: readonly SourcePolicy[]
  readonly protected: readonly string[]
  readonly locks: readonly SnapshotLock[]
}
export const NO_SETTINGS: RetentionSettings = Object.freeze({ version: 0, lockMs: 0, policy: null, sources: [], protected: [], locks: [] })
export const SETTINGS_BYTES_MAX = 16 * MiB

export interface SettingsSeal { readonly retentionKey: Buffer; readonly repositoryId: RepositoryId }

/** @throws {RoostError} LIMIT_EXCEEDED */
export function encodeSettings(settings: RetentionSettings, { retentionKey, repositoryId }: SettingsSeal): Buffer {
  const entries = settings.sources.length + settings.protected.length + settings.locks.length
  if (entries > LIMITS.retentionEntriesMax)
    throw new RoostError('LIMIT_EXCEEDED', `A repository keeps at most ${LIMITS.retentionEntriesMax} policies, protected and locked snapshots.`, { limit: LIMITS.retentionEntriesMax })
  const { version, lockMs, policy, sources, protected: kept, locks } = settings
  const content = { format: 1, repositoryId, version, lockMs, policy, sources, protected: kept, locks }
  return Buffer.from(`${JSON.stringify({ ...content, mac: macOf(JSON.stringify(content), retentionKey).toString('hex') })}\n`)
}

/** Undefined when the bytes are not what the holder of the repository's keys wrote. */
export function decodeSettings(bytes: Buffer, { retentionKey, repositoryId }: SettingsSeal): RetentionSettings | undefined {
  let value: unknown
  try {
    value = JSON.parse(bytes.toString('utf8'))
  } catch { return undefined } // the caller says whose copy is damaged
  if (typeof value !== 'object' || value === null) return undefined
  const { mac, ...content } = value as { mac?: unknown; format?: unknown; repositoryId?: unknown } & RetentionSettings
  if (typeof mac !== 'string' || content.format !== 1 || content.repositoryId !== repositoryId) return undefined
  const expected = macOf(JSON.stringify(content), retentionKey), given = Buffer.from(mac, 'hex')
  if (given.byteLength !== expected.byteLength || !timingSafeEqual(given, expected)) return undefined
  const { version, lockMs, policy, sources, protected: kept, locks } = content
  return { version, lockMs, policy, sources, protected: kept, locks }
}
const macOf = (text: string, key: Buffer): Buffer => keyedDigest(key, Buffer.from(text, 'utf8'))
