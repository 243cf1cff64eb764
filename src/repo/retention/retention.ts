/** What one repository's retention rests on: the settings of its targets, and the time that this server has witnessed.
 *
 *  The targets hold the truth; a copy in the local folder serves while they are away. A change is durable on as many targets as the write policy asks
 *  for before it takes effect. As long as the settings are not known (no copy here, no target answers), nothing is deleted.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../../core/clock.js'
import { Mutex } from '../../core/concurrency.js'
import { hasCode, isErrno, type RoostError } from '../../core/errors.js'
import type { RepositoryId } from '../../core/ids.js'
import type { FileEffects } from '../../store/file-effects.js'
import { bytesBody } from '../../store/bytes-body.js'
import type { ObjectStore } from '../../store/object-store.js'
import { replaceFile } from '../../store/replace-file.js'
import { RETENTION_KEY } from '../layout.js'
import type { Target } from '../targets/target.js'
import type { TargetSet } from '../targets/target-set.js'
import { decodeSettings, encodeSettings, NO_SETTINGS, SETTINGS_BYTES_MAX, type RetentionSettings, type SettingsSeal } from './settings-format.js'
import { Holds } from './locks.js'
import { WitnessedTime } from './witnessed-time.js'

export const LOCAL_SETTINGS = 'retention.json'
const WITNESSED_TIME = 'witnessed-time.json'

export interface RetentionDeps {
  /** The repository's local folder. */
  readonly directory: string
  readonly retentionKey: Buffer
  readonly repositoryId: RepositoryId
  readonly targets: TargetSet
  /** All targets as one. */
  readonly store: ObjectStore
  readonly clock: Clock
  readonly effects: FileEffects
}
interface Copy { readonly settings: RetentionSettings; readonly bytes: Buffer }
/** What one target has under the name. */
type Found = Copy | 'absent' | 'damaged'

export class Retention {
  readonly #deps: RetentionDeps
  readonly #changes = new Mutex()
  readonly #seal: SettingsSeal
  #known: Copy | undefined
  /** Of any copy that was tried to be written: a change that failed may have landed somewhere. */
  #highestVersion = 0
  /** One run of a policy at a time. */
  isForgetting = false

  private constructor(deps: RetentionDeps, readonly time: WitnessedTime) {
    this.#deps = deps
    this.#seal = { retentionKey: deps.retentionKey, repositoryId: deps.repositoryId }
  }
  static async open(deps: RetentionDeps): Promise<Retention> {
    const time = await WitnessedTime.open({ path: join(deps.directory, WITNESSED_TIME), key: deps.retentionKey, clock: deps.clock, effects: deps.effects })
    const retention = new Retention(deps, time)
    await retention.#load()
    return retention
  }
  get #path(): string { return join(this.#deps.directory, LOCAL_SETTINGS) }

  /** @returns why the settings are not known; undefined when they are. */
  async #load(): Promise<RoostError | undefined> {
    const local = await this.#readLocal()
    let best = local
    try {
      for (const target of this.#deps.targets.readable) {
        const found = await this.#readFrom(target)
        if (typeof found !== 'string' && found.settings.version > (best?.settings.version ?? 0)) best = found
      }
      best ??= this.#copyOf(NO_SETTINGS) // every target said that there is none
    } catch (error) {
      if (!hasCode(error, 'STORE_UNAVAILABLE') && !hasCode(error, 'STORE_REFUSED')) throw error
      if (local === undefined) return error // one that does not answer may have the newest
    }
    if (best !== local) await this.#keep(best!)
    else this.#known = local
    return undefined
  }
  #copyOf(settings: RetentionSettings): Copy { return { settings, bytes: encodeSettings(settings, this.#seal) } }
  async #readLocal(): Promise<Copy | undefined> {
    try {
      const bytes = await readFile(this.#path)
      const settings = decodeSettings(bytes, this.#seal)
      return settings === undefined ? undefined : { settings, bytes }
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return undefined
      throw error
    }
  }
  async #readFrom(target: Target, signal?: AbortSignal): Promise<Found> {
    const call = { attemptsMax: 1, ...(signal === undefined ? {} : { signal }) }
    return await target.use(async (store) => {
      const facts = await store.head(RETENTION_KEY, call)
      if (facts === undefined) return 'absent'
      const bytes = facts.bytes === 0 || facts.bytes > SETTINGS_BYTES_MAX ? undefined : await store.getRange(RETENTION_KEY, { offset: 0, bytes: facts.bytes }, call)
      const settings = bytes === undefined ? undefined : decodeSettings(bytes, this.#seal)
      return settings === undefined ? 'damaged' : { settings, bytes: bytes! }
    })
  }
  async #keep(copy: Copy): Promise<void> {
    await replaceFile(this.#path, copy.bytes, this.#deps.effects)
    this.#known = copy
  }

  /** @throws {RoostError} STORE_UNAVAILABLE or STORE_REFUSED while they cannot be known */
  async current(): Promise<RetentionSettings> {
    const failure = this.#known === undefined ? await this.#load() : undefined
    if (failure !== undefined) throw failure
    return this.#known!.settings
  }
  /** What keeps snapshots now, for showing it; undefined while it is not known. */
  async holds(): Promise<Holds | undefined> { return this.#known && await Holds.of(this.#known.settings, this.time) }
  /** As far as they are known. */
  get lockMs(): number { return this.#known?.settings.lockMs ?? 0 }
  /** Until when a target that can is to let nobody delete what is written now. */
  retainUntilMs(): number | undefined { return this.lockMs === 0 ? undefined : this.#deps.clock.now() + this.lockMs }

  /** Nothing is protected, locked or unlocked meanwhile. */
  exclusively<T>(work: (settings: RetentionSettings) => Promise<T>): Promise<T> {
    return this.#changes.run(async () => await work(await this.current()))
  }
  /** Durable when it resolves. `edit` gives the settings as they are to be; the version is seen to here. */
  change(edit: (settings: RetentionSettings) => RetentionSettings | Promise<RetentionSettings>): Promise<RetentionSettings> {
    return this.exclusively(async (before) => {
      const edited = await edit(before)
      if (edited === before) return before
      this.#highestVersion = Math.max(this.#highestVersion, before.version) + 1
      const copy = this.#copyOf({ ...edited, version: this.#highestVersion })
      await this.#deps.store.put(RETENTION_KEY, bytesBody(copy.bytes), { replace: true })
      await this.#keep(copy)
      return copy.settings
    })
  }

  /** How a target's copy differs from what is known; undefined when it does not. */
  async differenceOn(target: Target, signal: AbortSignal): Promise<'missing' | 'damaged' | 'outdated' | undefined> {
    const found = await this.#readFrom(target, signal)
    const known = this.#known
    if (found === 'damaged') return 'damaged'
    if (found === 'absent') return known === undefined || known.settings.version === 0 ? undefined : 'missing'
    return known === undefined || found.bytes.equals(known.bytes) || found.settings.version > known.settings.version ? undefined : 'outdated'
  }
  /** Gives a target the newest settings, or takes its own when those are newer. @returns how many objects it wrote. */
  syncTo(target: Target, signal: AbortSignal): Promise<number> {
    return this.#changes.run(async () => {
      const found = await this.#readFrom(target, signal)
      if (typeof found !== 'string' && (this.#known === undefined || found.settings.version > this.#known.settings.version)) {
        await this.#keep(found)
        return 0
      }
      const known = this.#known
      if (known === undefined || (known.settings.version === 0 && found === 'absent') || (typeof found !== 'string' && found.bytes.equals(known.bytes))) return 0
      await target.change((store) => store.put(RETENTION_KEY, bytesBody(known.bytes), { signal, replace: true }))
      return 1
    })
  }

  /** Never rejects: what is lost of the witnessed time makes locks longer, and nothing else may stay open for it. */
  async close(): Promise<void> {
    await this.time.close().catch((error: unknown) => { if (!(error instanceof Error)) throw error })
  }
}
