/** Snapshots as the user names them (`latest`, a full id, a unique prefix), verified before anything in them is believed. */
import { resolveSnapshot } from '../../client/browse/open-snapshot.js'
import type { RepositoryClient } from '../../client/repository-client.js'
import { openTrustedSnapshot } from '../../client/snapshot-record.js'
import { parseSnapshotId, type SnapshotId } from '../core/ids.js'
import type { SignedSnapshot, SnapshotRecord } from '../core/messages.js'
import type { CommandContext } from './context.js'
import { UsageError } from './exit-codes.js'
import { formatTime, printable } from './format.js'

export interface NamedSnapshot { readonly id: SnapshotId; readonly record: SnapshotRecord; readonly inSpool: boolean; readonly isProtected: boolean; readonly lockedUntilMs?: number }
export interface SnapshotFilter { readonly source?: string; readonly tag?: string }

const PREFIX_DIGITS_MIN = 6
const PAGE = 500
export const SHORT_ID_DIGITS = 12
export const shortId = (id: string): string => id.slice(0, SHORT_ID_DIGITS)

/** The keys that the user pinned, and the one that the server states. */
export interface VerifyKeys { readonly own: string; readonly pinned: readonly string[] | undefined }
export async function verifyKeysOf(context: CommandContext, client: RepositoryClient): Promise<VerifyKeys> {
  return { own: (await client.info({ signal: context.signal })).verifyKey, pinned: context.settings.verifyKeys() }
}

/** All snapshots that fit, newest first. Yields pages' content as it comes: a repository may hold many. */
export async function* listSnapshots(context: CommandContext, client: RepositoryClient,
  filter: SnapshotFilter = {}): AsyncGenerator<NamedSnapshot> {
  const keys = await verifyKeysOf(context, client)
  let after: string | undefined
  do {
    const page = await client.listSnapshots({ ...filter, limit: PAGE, ...(after === undefined ? {} : { after }) }, { signal: context.signal })
    for (const signed of page.snapshots) yield nameSnapshot(signed, keys)
    after = page.next ?? undefined
  } while (after !== undefined)
}

/** @throws {RoostError} SNAPSHOT_UNKNOWN, also when the prefix fits several; {UsageError} when it is none. */
export async function findSnapshot(context: CommandContext, client: RepositoryClient, text: string,
  filter: SnapshotFilter = {}): Promise<NamedSnapshot> {
  requireSnapshotName(text)
  const call = { signal: context.signal }
  const id = await resolveSnapshot(client, { snapshot: text, ...(filter.source === undefined ? {} : { source: filter.source }) }, call)
  return nameSnapshot(await client.getSnapshot(parseSnapshotId(id), call), await verifyKeysOf(context, client))
}
/** All are found before anything is done to any. */
export async function findAll(context: CommandContext, client: RepositoryClient, texts: readonly string[]): Promise<NamedSnapshot[]> {
  const found: NamedSnapshot[] = []
  for (const text of texts) found.push(await findSnapshot(context, client, text))
  return found
}
export async function deleteSnapshots(context: CommandContext, client: RepositoryClient, texts: readonly string[]): Promise<void> {
  for (const { id, record } of await findAll(context, client, texts)) {
    await client.deleteSnapshot(id, { signal: context.signal })
    context.output.record({ type: 'snapshot-deleted', id })
    context.output.note(`Deleted ${shortId(id)} (${printable(record.source)}, ${formatTime(record.receivedAtMs)}).`)
  }
}
/** Refuses what cannot be a snapshot before anything is asked of the server. */
export function requireSnapshotName(text: string): void {
  if (text === 'latest') return
  if (!/^[0-9a-f]{1,64}$/.test(text)) throw new UsageError(`"${text}" is not a snapshot: write its id, the start of it, or "latest".`)
  if (text.length < PREFIX_DIGITS_MIN) throw new UsageError(`Write at least ${PREFIX_DIGITS_MIN} digits of a snapshot's id.`)
}

/** `SNAPSHOT[:PATH]` → both parts. Ids hold no colon, so the first one divides. */
export function splitSnapshotPath(text: string): { readonly snapshot: string; readonly path: string | undefined } {
  const colon = text.indexOf(':')
  return colon < 0 ? { snapshot: text, path: undefined } : { snapshot: text.slice(0, colon), path: text.slice(colon + 1) }
}

function nameSnapshot(signed: SignedSnapshot, { own, pinned }: VerifyKeys): NamedSnapshot {
  return { id: parseSnapshotId(signed.id), record: openTrustedSnapshot(signed, own, pinned), inSpool: signed.inSpool === true,
    isProtected: signed.protected === true, ...(signed.lockedUntilMs !== undefined && { lockedUntilMs: signed.lockedUntilMs }) }
}
