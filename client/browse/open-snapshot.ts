/** Opens a snapshot for reading: session, signature, and the nodes below its root. */
import { RoostError } from '../../src/core/errors.js'
import { parseChunkId, parseSnapshotId, type ChunkId } from '../../src/core/ids.js'
import type { SnapshotRecord } from '../../src/core/messages.js'
import { LastingSession } from '../lasting-session.js'
import type { ReadableSession } from '../read-chunks.js'
import type { Call, ReadingClient } from '../repository-client.js'
import { SessionNodeSource } from '../session-nodes.js'
import { openTrustedSnapshot } from '../snapshot-record.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { ENTRY_TYPES, type Entry } from '../tree/entry.js'

/** `snapshot`: an id, the beginning of one (6 digits or more), or `latest`, then of `source` where given. */
export interface SnapshotChoice { readonly snapshot: string; readonly source?: string; /** 64 hex digits each: one of them must have signed it. */ readonly verifyKeys?: readonly string[] }

export interface OpenSnapshot {
  readonly session: ReadableSession
  readonly snapshotId: string
  readonly record: SnapshotRecord
  readonly root: ChunkId
  readonly nodes: SessionNodeSource
  close(): Promise<void>
}

const SNAPSHOTS_PER_PAGE = 100
const CLOSE_MS_MAX = 3_000

/** @throws {RoostError} SNAPSHOT_UNKNOWN; SNAPSHOT_CORRUPT. @throws {ClientError} SNAPSHOT_KEY_MISMATCH unless the server's
 *  key is the pinned one */
export async function openSnapshot(client: ReadingClient, choice: SnapshotChoice, call: Call = {}): Promise<OpenSnapshot> {
  const snapshot = await resolveSnapshot(client, choice, call)
  const reply = await client.openSession({ kind: 'read', snapshot }, call)
  const session = new LastingSession(client, snapshot, reply, call)
  // Cleaning up must not hide why it was necessary, nor wait for a server that is away: an unclosed session only idles out there.
  const close = async (): Promise<void> => { await client.closeSession(session.sessionId, { signal: AbortSignal.timeout(CLOSE_MS_MAX) }).catch(() => undefined) }
  try {
    const signed = reply.snapshot
    if (signed?.id !== snapshot) throw new RoostError('SNAPSHOT_UNKNOWN', 'The server opened another snapshot than asked for.')
    const record = openTrustedSnapshot(signed, reply.verifyKey, choice.verifyKeys)
    return { session, snapshotId: snapshot, record, root: parseChunkId(record.root), nodes: new SessionNodeSource(session, call), close }
  } catch (error) {
    await close()
    throw error
  }
}

/** @throws {RoostError} SNAPSHOT_UNKNOWN, also when several begin so */
export async function resolveSnapshot(client: ReadingClient, choice: SnapshotChoice, call: Call = {}): Promise<string> {
  const wanted = choice.snapshot.toLowerCase()
  if (/^[0-9a-f]{64}$/.test(wanted)) return parseSnapshotId(wanted)
  const isLatest = wanted === 'latest'
  if (!isLatest && !/^[0-9a-f]{6,63}$/.test(wanted))
    throw new RoostError('SNAPSHOT_UNKNOWN', 'A snapshot is named by its id, by the first 6 or more digits of it, or as latest.')
  let found: { id: string; receivedAtMs: number } | undefined
  let alike = 0
  for await (const { id, receivedAtMs } of everySnapshot(client, choice.source, call)) {
    if (!isLatest && !id.startsWith(wanted)) continue
    alike++
    if (found === undefined || receivedAtMs >= found.receivedAtMs) found = { id, receivedAtMs }
  }
  if (found === undefined) throw new RoostError('SNAPSHOT_UNKNOWN', isLatest ? 'There is no snapshot yet.' : `No snapshot begins with ${wanted}.`)
  if (!isLatest && alike > 1) throw new RoostError('SNAPSHOT_UNKNOWN', `${alike} snapshots begin with ${wanted}; give more digits.`)
  return found.id
}
/** Ids and times of all snapshots, page by page. Unverified: enough to choose by, then the chosen one is verified. */
export async function* everySnapshot(client: ReadingClient, source: string | undefined, call: Call):
  AsyncGenerator<{ readonly id: string; readonly receivedAtMs: number; readonly source: string }> {
  for (let after: string | null | undefined; after !== null;) {
    const page = await client.listSnapshots(
      { limit: SNAPSHOTS_PER_PAGE, ...(after === undefined ? {} : { after }), ...(source === undefined ? {} : { source }) }, call)
    for (const signed of page.snapshots) {
      const record = JSON.parse(Buffer.from(signed.record, 'base64').toString('utf8')) as SnapshotRecord
      yield { id: signed.id, receivedAtMs: record.receivedAtMs, source: record.source }
    }
    after = page.next
  }
}

/** A path within a snapshot: names joined by '/', leading and repeated slashes and "." ignored. */
export function splitPath(path: Buffer): Buffer[] {
  const names: Buffer[] = []
  for (let from = 0; from <= path.byteLength;) {
    const slash = path.indexOf(0x2f, from)
    const end = slash < 0 ? path.byteLength : slash
    const name = path.subarray(from, end)
    if (name.byteLength > 0 && !(name.byteLength === 1 && name[0] === 0x2e)) names.push(name)
    from = end + 1
  }
  return names
}
/** The entry at `path`; undefined when nothing is there. The root itself has no entry: 'root'. */
export async function findEntry(open: OpenSnapshot, path: Buffer): Promise<Entry | 'root' | undefined> {
  let directory: ChunkId | undefined = open.root
  let entry: Entry | 'root' | undefined = 'root'
  for (const name of splitPath(path)) {
    if (directory === undefined) return undefined
    const found: Entry | undefined = await new DirectoryReader(open.nodes, directory).find(name)
    if (found === undefined) return undefined
    entry = found
    directory = found.type === ENTRY_TYPES.directory ? found.subtree : undefined
  }
  return entry
}
