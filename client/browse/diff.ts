/** What changed between two snapshots: both trees are walked in step, and subtrees with equal ids are equal, unread. */
import { RoostError } from '../../src/core/errors.js'
import type { ChunkId } from '../../src/core/ids.js'
import type { Call, RepositoryClient } from '../repository-client.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { ENTRY_TYPES, type Content, type Entry } from '../tree/entry.js'
import { openSnapshot, type OpenSnapshot, type SnapshotChoice } from './open-snapshot.js'
import { BROWSE_DEPTH_MAX, joinPath, walkTree } from './walk-tree.js'

/** `modified`: other content, target, device or type. `metadata`: the same content; owner, mode, times or attributes differ. */
export type ChangeKind = 'added' | 'removed' | 'modified' | 'metadata'
export interface Change { readonly kind: ChangeKind; readonly path: Buffer; readonly before: Entry | undefined; readonly after: Entry | undefined }

export interface DiffOptions { readonly before: SnapshotChoice; readonly after: SnapshotChoice }

export async function* diffSnapshots(client: RepositoryClient, options: DiffOptions, call: Call = {}): AsyncGenerator<Change> {
  const before = await openSnapshot(client, options.before, call)
  try {
    const after = await openSnapshot(client, options.after, call)
    try {
      if (!before.root.equals(after.root)) yield* diffDirectories({ open: before, id: before.root }, { open: after, id: after.root }, Buffer.alloc(0), 0)
    } finally { await after.close() }
  } finally { await before.close() }
}

interface Side { readonly open: OpenSnapshot; readonly id: ChunkId }

async function* diffDirectories(before: Side, after: Side, path: Buffer, depth: number): AsyncGenerator<Change> {
  if (depth > BROWSE_DEPTH_MAX)
    throw new RoostError('LIMIT_EXCEEDED', `Directories nest deeper than ${BROWSE_DEPTH_MAX} levels.`, { limit: BROWSE_DEPTH_MAX })
  for await (const [old, now] of pairByName(new DirectoryReader(before.open.nodes, before.id), new DirectoryReader(after.open.nodes, after.id))) {
    const entryPath = joinPath(path, (old ?? now)!.name)
    if (old === undefined) { yield* everything('added', after.open, now!, entryPath); continue }
    if (now === undefined) { yield* everything('removed', before.open, old, entryPath); continue }
    if (old.type !== now.type && (old.subtree !== undefined || now.subtree !== undefined)) {
      yield* everything('removed', before.open, old, entryPath)
      yield* everything('added', after.open, now, entryPath)
      continue
    }
    const kind = compareEntries(old, now)
    if (kind !== undefined) yield { kind, path: entryPath, before: old, after: now }
    if (old.subtree !== undefined && now.subtree !== undefined && !old.subtree.equals(now.subtree))
      yield* diffDirectories({ open: before.open, id: old.subtree }, { open: after.open, id: now.subtree }, entryPath, depth + 1)
  }
}
async function* everything(kind: 'added' | 'removed', open: OpenSnapshot, entry: Entry, path: Buffer): AsyncGenerator<Change> {
  const change = (at: Buffer, one: Entry): Change =>
    ({ kind, path: at, before: kind === 'removed' ? one : undefined, after: kind === 'added' ? one : undefined })
  yield change(path, entry)
  if (entry.type !== ENTRY_TYPES.directory) return
  for await (const item of walkTree(open.nodes, entry.subtree!, path, true)) yield change(item.path, item.entry)
}

/** Both directories merged by name. */
async function* pairByName(before: DirectoryReader, after: DirectoryReader): AsyncGenerator<[Entry | undefined, Entry | undefined]> {
  const olds = before.entries()
  const nows = after.entries()
  try {
    const next = async (entries: AsyncGenerator<Entry>): Promise<Entry | undefined> => {
      const { value, done } = await entries.next()
      return done === true ? undefined : value
    }
    let old = await next(olds)
    let now = await next(nows)
    while (old !== undefined || now !== undefined) {
      const order = old === undefined ? 1 : now === undefined ? -1 : old.name.compare(now.name)
      yield [order <= 0 ? old : undefined, order >= 0 ? now : undefined]
      if (order <= 0) old = await next(olds)
      if (order >= 0) now = await next(nows)
    }
  } finally {
    await olds.return(undefined)
    await nows.return(undefined)
  }
}

/** undefined: nothing that a restore would make differently. Inode, device and ctime are of the source, not of the file. */
export function compareEntries(old: Entry, now: Entry): ChangeKind | undefined {
  if (old.type !== now.type || old.deviceMajor !== now.deviceMajor || old.deviceMinor !== now.deviceMinor) return 'modified'
  if (!equalBytes(old.symlinkTarget, now.symlinkTarget) || !equalContent(old.content, now.content)) return 'modified'
  const isSame = old.mode === now.mode && old.uid === now.uid && old.gid === now.gid && old.mtimeNs === now.mtimeNs &&
    old.xattrs.length === now.xattrs.length &&
    old.xattrs.every((xattr, i) => xattr.name.equals(now.xattrs[i]!.name) && xattr.value.equals(now.xattrs[i]!.value))
  return isSame ? undefined : 'metadata'
}
function equalContent(old: Content | undefined, now: Content | undefined): boolean {
  if (old === undefined || now === undefined) return old === now
  if (old.bytes !== now.bytes || old.kind !== now.kind) return false
  if (old.kind === 'extents' && now.kind === 'extents')
    return old.extents.length === now.extents.length &&
      old.extents.every((extent, i) => extent.bytes === now.extents[i]!.bytes && equalBytes(extent.id, now.extents[i]!.id))
  return old.kind !== 'extents' && now.kind !== 'extents' && equalBytes(old.root, now.root)
}
const equalBytes = (one: Buffer | undefined, other: Buffer | undefined): boolean =>
  one === undefined || other === undefined ? one === other : one.equals(other)
