/** Is a snapshot known to be whole? Only such a one is offered as a parent: a client that has a parent does not send what the parent has, and so would not
 *  heal it (docs/scrub.md).
 *
 *  While no damage is known, every snapshot is. Else a walk over its tree must have found it whole since the last chunk was lost; a check does that for all,
 *  and this does it for parents that were asked for, in the background.
 */
import { hasCode, isAbort, RoostError } from '../../core/errors.js'
import { parseChunkId, type SnapshotId } from '../../core/ids.js'
import type { RepositoryParts } from '../repository-parts.js'
import { parseRecord } from '../snapshot-format.js'
import { PlaceSet } from '../verify-tree.js'
import { walkForDamage, type Lacking } from './damage-walk.js'

const WAITING_MAX = 10_000
type JudgeParts = Pick<RepositoryParts, 'index' | 'reader'>

export class SnapshotJudge {
  readonly #parts: JudgeParts
  readonly #waiting = new Set<SnapshotId>()
  readonly #stop = new AbortController()
  #running: Promise<void> | undefined
  constructor(parts: JudgeParts) { this.#parts = parts }

  async isKnownWhole(snapshotId: SnapshotId): Promise<boolean> {
    const { index } = this.#parts
    const { chunks, generation } = await index.damageState()
    return chunks === 0 || await index.wholeAt(snapshotId) === generation
  }
  /** In the background, one after the other. */
  request(snapshotId: SnapshotId): void {
    if (this.#stop.signal.aborted || this.#waiting.size >= WAITING_MAX) return
    this.#waiting.add(snapshotId)
    this.#running ??= this.#run().finally(() => { this.#running = undefined })
  }
  async #run(): Promise<void> {
    for (const id of this.#waiting) {
      this.#waiting.delete(id)
      if (this.#stop.signal.aborted) return
      await this.#judge(id).catch((error: unknown) => {
        // What could not be looked at is not known to be whole, and is asked for again.
        if (!isAbort(error) && !(error instanceof RoostError)) throw error
      })
    }
  }
  async #judge(id: SnapshotId): Promise<void> {
    const { index } = this.#parts
    const { generation } = await index.damageState()
    const row = await index.getSnapshot(id)
    if (row === undefined) return
    const { count } = await lackingOf(this.#parts, parseRecord(row).root, this.#stop.signal)
    if (count === 0) await index.noteWhole(id, generation)
  }
  /** Resolves when nothing waits. */
  async settled(): Promise<void> { while (this.#running !== undefined) await this.#running }
  async close(): Promise<void> {
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    await this.#running
  }
}

/** Of the whole tree, whoever brought it. @throws {RoostError} STORE_UNAVAILABLE; TREE_MALFORMED; LIMIT_EXCEEDED */
export function lackingOf({ index, reader }: JudgeParts, root: string, signal: AbortSignal): Promise<Lacking> {
  return walkForDamage({ index, whole: new PlaceSet(), onNode: () => undefined, signal, readNode: (id) => readNode(reader, id, signal) }, parseChunkId(root))
}
/** Undefined: missing, or damaged everywhere. */
export async function readNode(reader: RepositoryParts['reader'], id: Buffer, signal: AbortSignal): Promise<Buffer | undefined> {
  try { return await reader.readChunk(id, signal) } catch (error) {
    if (!hasCode(error, 'CHUNK_CORRUPT')) throw error
    return undefined
  }
}
