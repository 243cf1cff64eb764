/** Names what a check found snapshots to lack: the snapshot by id, source and time, and each path in it that is incomplete. */
import { chunkKey, type ChunkKey } from '../core/ids.js'
import { hasCode } from '../core/errors.js'
import type { MaintenanceEvent } from '../core/messages.js'
import { damagedPaths } from '../../client/browse/damaged-paths.js'
import { openSnapshot } from '../../client/browse/open-snapshot.js'
import { pathToJson, renderBytes } from '../../client/browse/render-path.js'
import type { ReadingClient } from '../../client/repository-client.js'
import type { CommandContext } from './context.js'
import { formatCount, formatTime, printable } from './format.js'
import { shortId } from './snapshot-lookup.js'

/** Snapshots whose paths are looked up, paths told of each, ids kept of each. */
const SNAPSHOTS_MAX = 100
const PATHS_MAX = 20
const IDS_MAX = 100_000

interface Affected { readonly source: string; readonly receivedAtMs: number; readonly chunks: Set<ChunkKey> }

export class DamageReport {
  readonly #affected = new Map<string, Affected>()
  #more = 0

  note(event: MaintenanceEvent): void {
    if (event.type === 'problem' && event.snapshot !== undefined && event.code !== 'SNAPSHOT_CORRUPT' && !this.#affected.has(event.snapshot)) {
      if (this.#affected.size >= SNAPSHOTS_MAX) this.#more++
      else this.#affected.set(event.snapshot, { source: event.source ?? '', receivedAtMs: event.receivedAtMs ?? 0, chunks: new Set() })
    } else if (event.type === 'lacking') {
      const chunks = this.#affected.get(event.snapshot)?.chunks
      if (chunks !== undefined) for (const chunk of event.chunks) if (chunks.size < IDS_MAX) chunks.add(chunkKey(Buffer.from(chunk, 'hex')))
    }
  }

  async tell(context: CommandContext, client: ReadingClient): Promise<void> {
    const { output } = context
    for (const [snapshot, { source, receivedAtMs, chunks }] of this.#affected) {
      output.warn(`snapshot ${shortId(snapshot)} of ${printable(source)} (${formatTime(receivedAtMs)}):`)
      try {
        await this.#tellPaths(context, client, snapshot, chunks)
      } catch (error) {
        if (!hasCode(error, 'AUTH_FORBIDDEN') && !hasCode(error, 'SNAPSHOT_UNKNOWN')) throw error
        output.warn(hasCode(error, 'AUTH_FORBIDDEN') ? '  (its paths need a token with the scope "read")' : '  (deleted meanwhile)')
      }
    }
    if (this.#more > 0) output.warn(`and ${formatCount(this.#more)} more snapshots.`)
  }

  async #tellPaths(context: CommandContext, client: ReadingClient, snapshot: string, chunks: ReadonlySet<ChunkKey>): Promise<void> {
    const { output, signal } = context
    let found = 0
    const tell = (path: Buffer, what: 'file' | 'directory'): void => {
      found++
      output.record({ type: 'damaged-path', snapshot, ...pathToJson(path), what })
      if (found <= PATHS_MAX) output.warn(`  snapshot ${shortId(snapshot)}: /${renderBytes(path)}${what === 'directory' ? ' (a directory: what it lists is lost)' : ''}`)
    }
    let open
    try {
      open = await openSnapshot(client, { snapshot }, { signal })
    } catch (error) {
      if (!hasCode(error, 'CHUNK_MISSING')) throw error
      tell(Buffer.alloc(0), 'directory')
      return
    }
    try {
      for await (const { path, what } of damagedPaths(open.nodes, open.root, chunks)) {
        if (context.output.json && found >= IDS_MAX) break
        tell(path, what)
      }
    } finally {
      await open.close()
    }
    if (found > PATHS_MAX) output.warn(`  and ${formatCount(found - PATHS_MAX)} more paths.`)
  }
}
