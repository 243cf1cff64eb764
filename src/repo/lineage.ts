/** Tells an index that is the repository's present one from an older copy of it (put back from a backup of the server's disk), or another server's.
 *
 *  An old index names packs that were deleted since: a push that trusted it would lose data. So a number advances with each opening and before each
 *  deletion of packs, in the index, in a file beside it, and on the targets. Whoever knows a higher number, or the same line under another number's name,
 *  has seen more than this index has. Order: the index first; a number that only the index knows is a step that was cut short.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { hasCode, isErrno, RoostError } from '../core/errors.js'
import { keyedDigest } from '../core/hash.js'
import type { RepositoryId } from '../core/ids.js'
import type { Random } from '../core/random.js'
import type { ChunkIndex, IndexLineage } from '../index/chunk-index.js'
import { bytesBody } from '../store/bytes-body.js'
import type { FileEffects } from '../store/file-effects.js'
import type { ObjectStore } from '../store/object-store.js'
import { replaceFile } from '../store/replace-file.js'
import { LINEAGE_KEY } from './layout.js'
import type { Target } from './targets/target.js'
import type { TargetSet } from './targets/target-set.js'

const FILE_NAME = 'lineage.json'
const INSTANCE_BYTES = 16
const OBJECT_BYTES_MAX = 1024
/** An opening does not wait for a target that is away. */
const ONCE = { attemptsMax: 1 } as const

export interface LineageDeps {
  readonly directory: string
  readonly repositoryId: RepositoryId
  readonly key: Buffer
  readonly targets: TargetSet
  /** All targets as one. */
  readonly store: ObjectStore
  readonly effects: FileEffects
  readonly random: Random
}

export class Lineage {
  readonly #deps: LineageDeps
  constructor(deps: LineageDeps) { this.#deps = deps }

  /** False for an index that others have seen more than. A target that cannot be asked says nothing. */
  async fits(index: ChunkIndex): Promise<boolean> {
    if (!await index.isComplete()) return true // nothing relies on it before its rebuild, which asks the targets
    const known = await this.#known()
    if (known === undefined) return true
    const own = await index.lineage()
    return own !== undefined && (own.sequence > known.sequence || (own.sequence === known.sequence && own.instance === known.instance))
  }

  /** The next number: from here on, copies of before are old. With `isNew`, under a name of its own, for an index that was just made.
   *  @throws {RoostError} STORE_UNAVAILABLE; STORE_REFUSED when no target took it */
  async advance(index: ChunkIndex, isNew = false): Promise<void> {
    const own = await index.lineage()
    const sequence = Math.max(own?.sequence ?? 0, (await this.#known())?.sequence ?? 0) + 1
    const instance = own === undefined || isNew ? this.#deps.random.bytes(INSTANCE_BYTES).toString('hex') : own.instance
    await index.setLineage({ instance, sequence })
    const bytes = this.#encode({ instance, sequence })
    await replaceFile(join(this.#deps.directory, FILE_NAME), bytes, this.#deps.effects)
    await this.#deps.store.put(LINEAGE_KEY, bytesBody(bytes), { ...ONCE, replace: true }).catch(async (error: unknown) => {
      // Fewer than the write policy asks for: one that knows it is enough to tell an old index, and packs may go though a target is away.
      if (!(error instanceof RoostError) || ((await this.#knownOnTargets())?.sequence ?? 0) < sequence) throw error
    })
  }
  /** Brings a target that was away or emptied to the number of now. @returns how many objects it wrote. */
  async syncTo(target: Target, signal: AbortSignal): Promise<number> {
    const known = await this.#known()
    if (known === undefined || ((await this.#knownOn(target))?.sequence ?? 0) >= known.sequence) return 0
    await target.change((store) => store.put(LINEAGE_KEY, bytesBody(this.#encode(known)), { signal, replace: true }))
    return 1
  }
  /** At an opening, targets may be away: the file beside the index has it then. */
  async advanceIfPossible(index: ChunkIndex, isNew = false): Promise<void> {
    await this.advance(index, isNew).catch((error: unknown) => {
      if (!hasCode(error, 'STORE_UNAVAILABLE') && !hasCode(error, 'STORE_REFUSED')) throw error
    })
  }

  async #known(): Promise<IndexLineage | undefined> {
    const beside = this.#decode(await readFile(join(this.#deps.directory, FILE_NAME)).catch((error: unknown) => { if (isErrno(error, 'ENOENT')) return undefined; throw error }))
    return highest([beside, await this.#knownOnTargets()])
  }
  async #knownOnTargets(): Promise<IndexLineage | undefined> {
    const found: (IndexLineage | undefined)[] = []
    for (const target of this.#deps.targets.readable) found.push(await this.#knownOn(target))
    return highest(found)
  }
  async #knownOn(target: Target): Promise<IndexLineage | undefined> {
    return this.#decode(await target.use((store) => readObject(store)).catch((error: unknown) => {
      if (error instanceof RoostError) return undefined // away, or damaged: it says nothing
      throw error
    }))
  }

  #encode({ instance, sequence }: IndexLineage): Buffer {
    return Buffer.from(`${JSON.stringify({ format: 1, instance, sequence, mac: this.#macOf(instance, sequence) })}\n`)
  }
  /** Undefined for what is not ours: it says nothing. */
  #decode(bytes: Buffer | undefined): IndexLineage | undefined {
    if (bytes === undefined) return undefined
    try {
      const { instance, sequence, mac } = JSON.parse(bytes.toString('utf8')) as { instance?: unknown; sequence?: unknown; mac?: unknown }
      if (typeof instance === 'string' && Number.isSafeInteger(sequence) && mac === this.#macOf(instance, sequence as number)) return { instance, sequence: sequence as number }
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error
    }
    return undefined
  }
  #macOf(instance: string, sequence: number): string {
    return keyedDigest(this.#deps.key, Buffer.from(`${this.#deps.repositoryId} ${instance} ${sequence}`)).toString('hex')
  }
}

function highest(found: readonly (IndexLineage | undefined)[]): IndexLineage | undefined {
  return found.reduce((best, one) => (best === undefined || (one !== undefined && one.sequence > best.sequence) ? one : best), undefined)
}
async function readObject(store: ObjectStore): Promise<Buffer | undefined> {
  const facts = await store.head(LINEAGE_KEY, ONCE)
  return facts === undefined ? undefined : await store.getRange(LINEAGE_KEY, { offset: 0, bytes: Math.min(facts.bytes, OBJECT_BYTES_MAX) }, ONCE)
}
