/** Searches one snapshot, or all, for entries by name, type, length and time. */
import type { Call, RepositoryClient } from '../repository-client.js'
import type { Entry } from '../tree/entry.js'
import { everySnapshot, openSnapshot, type SnapshotChoice } from './open-snapshot.js'
import { compilePattern, latin1 } from './path-pattern.js'
import { walkTree, type TreeItem } from './walk-tree.js'

export interface FindFilter {
  /** A glob: on whole paths when it holds a '/', else on names. */
  readonly glob?: Buffer
  /** Matched against the whole path as UTF-8 text (lossy where the bytes are not). */
  readonly regex?: RegExp
  readonly types?: readonly Entry['type'][]
  readonly bytesMin?: number
  readonly bytesMax?: number
  readonly modifiedAfterNs?: bigint
  readonly modifiedBeforeNs?: bigint
}
export interface FindOptions extends FindFilter {
  /** One snapshot; else all of them (of `source`, where given), in the server's order. */
  readonly snapshot?: string
  readonly source?: string
  readonly verifyKeys?: readonly string[]
}
export interface FoundItem extends TreeItem { readonly snapshotId: string }

export async function* findEntries(client: RepositoryClient, options: FindOptions, call: Call = {}): AsyncGenerator<FoundItem> {
  const matches = compileFilter(options)
  for await (const snapshot of choices(client, options, call)) {
    const open = await openSnapshot(client, snapshot, call)
    try {
      for await (const item of walkTree(open.nodes, open.root, Buffer.alloc(0), true)) {
        call.signal?.throwIfAborted()
        if (matches(item)) yield { ...item, snapshotId: open.snapshotId }
      }
    } finally { await open.close() }
  }
}
async function* choices(client: RepositoryClient, options: FindOptions, call: Call): AsyncGenerator<SnapshotChoice> {
  const pinned = options.verifyKeys === undefined ? {} : { verifyKeys: options.verifyKeys }
  if (options.snapshot !== undefined) {
    yield { ...pinned, snapshot: options.snapshot, ...(options.source === undefined ? {} : { source: options.source }) }
    return
  }
  for await (const { id } of everySnapshot(client, options.source, call)) yield { ...pinned, snapshot: id }
}

export function compileFilter(filter: FindFilter): (item: TreeItem) => boolean {
  const glob = filter.glob === undefined ? undefined : compilePattern(filter.glob)
  const { regex, types, bytesMin, bytesMax, modifiedAfterNs, modifiedBeforeNs } = filter
  return ({ path, entry }) => {
    if (types !== undefined && !types.includes(entry.type)) return false
    if (bytesMin !== undefined || bytesMax !== undefined) {
      if (entry.content === undefined) return false
      if (entry.content.bytes < (bytesMin ?? 0) || entry.content.bytes > (bytesMax ?? Infinity)) return false
    }
    if (modifiedAfterNs !== undefined && entry.mtimeNs <= modifiedAfterNs) return false
    if (modifiedBeforeNs !== undefined && entry.mtimeNs >= modifiedBeforeNs) return false
    if (glob !== undefined && !glob.matches(latin1(path))) return false
    return regex === undefined || path.toString('utf8').search(regex) >= 0
  }
}
