/** The shape of a record that another repository signed: whatever its defects, nothing here may stumble over it later. */
import { RoostError } from '../../core/errors.js'
import { LIMITS } from '../../core/limits.js'
import type { SnapshotRecord } from '../../core/messages.js'
import type { SignedRecord } from '../snapshot-format.js'

const isText = (value: unknown): value is string => typeof value === 'string'
const isHex = (value: unknown, digits: number): boolean => isText(value) && value.length === digits && /^[0-9a-f]*$/.test(value)
const isAmount = (value: unknown): boolean => typeof value === 'number' && Number.isFinite(value) && value >= 0
const isName = (value: unknown): boolean => isText(value) && value !== '' && Buffer.byteLength(value) <= LIMITS.nameBytesMax

/** @throws {RoostError} SNAPSHOT_CORRUPT naming the field */
export function parseSnapshotRecord(signed: SignedRecord): SnapshotRecord {
  const refuse = (field: string): RoostError =>
    new RoostError('SNAPSHOT_CORRUPT', `A snapshot cannot be taken in: its field ${field} is not as it must be.`, { snapshot: signed.snapshotId })
  let value: Record<string, unknown>
  try {
    value = JSON.parse(signed.record.toString('utf8')) as Record<string, unknown>
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    throw refuse('of fields')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw refuse('of fields')
  const { statistics, tags, paths, description, parent, mode } = value
  const rules: Readonly<Record<string, boolean>> = {
    format: value['format'] === 1, repositoryId: isHex(value['repositoryId'], 32), sessionId: isHex(value['sessionId'], 32), root: isHex(value['root'], 64),
    parent: parent === null || isHex(parent, 64), source: isName(value['source']), mode: mode === 'files' || mode === 'image' || mode === 'stdin',
    host: isText(value['host']), user: isText(value['user']), paths: Array.isArray(paths) && paths.every(isText),
    tags: Array.isArray(tags) && tags.length <= LIMITS.tagsMax && tags.every(isName), startedAtMs: isAmount(value['startedAtMs']), receivedAtMs: isAmount(value['receivedAtMs']),
    statistics: typeof statistics === 'object' && statistics !== null && Object.values(statistics).every(isAmount),
    description: description === undefined || (typeof description === 'object' && description !== null && !Array.isArray(description)),
  }
  for (const [field, holds] of Object.entries(rules)) if (!holds) throw refuse(field)
  return value as unknown as SnapshotRecord
}
