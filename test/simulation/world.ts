/** One repository through the lives of its server: files, targets, index and time outlive each of them. */
import { rmSync, mkdtempSync, existsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { hasCode, RoostError } from '../../src/core/errors.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import { openLmdbIndex } from '../../src/index/lmdb-index.js'
import { openMemoryIndex } from '../../src/index/memory-index.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { collectGarbage } from '../../src/gc/collect.js'
import { openRepository, type OpenRepositoryDeps } from '../../src/repo/open-repository.js'
import type { RepositoryEvent } from '../../src/repo/repository-parts.js'
import { boundedStore } from '../../src/store/bounded-store.js'
import { retryingStore } from '../../src/store/retrying-store.js'
import { SimulatedCrash } from '../support/cut-effects.js'
import { memoryFileEffects, mount, type MemoryFiles } from './memory-files.js'
import { gatedEffects, gatedIndex, READS_OF_INDEX, SimulatedSealPool, SimulatedTime } from './ports.js'
import type { Profile } from './profile.js'
import { Life, Scheduler, SimulationFailure } from './scheduler.js'
import { SeededRandom } from './seeded-random.js'
import { SimulatedTarget } from './target.js'
import { DIRECTORY, TARGETS, type Template } from './template.js'

/** The connection broke, or there was nobody to connect to: the request was carried out, or not, or is still. */
export class ConnectionLost extends Error { override readonly name = 'ConnectionLost' }

export class World {
  readonly files: MemoryFiles
  readonly targets: readonly SimulatedTarget[]
  readonly time: SimulatedTime
  readonly random: SeededRandom
  readonly events: RepositoryEvent[] = []
  /** Kinds of faults → how often. */
  readonly fired = new Map<string, number>()
  status: 'down' | 'opening' | 'up' | 'closing' = 'down'
  life: Life | undefined
  lives = 0
  /** Dies at that many synchronous file effects from now. */
  syncStepsToLive = Infinity
  /** How the armed death is carried out; set by whoever arms it. */
  onSyncDeath: (() => void) | undefined
  #repository: LocalRepository | undefined
  #index: ChunkIndex | undefined
  #endedClean = true
  #lmdbDirectory: string | undefined
  #whenUp: (() => void)[] = []
  readonly #inFlight = new Set<{ readonly life: Life; readonly abort: AbortController; readonly settled: Promise<unknown> }>()

  constructor(readonly template: Template, readonly scheduler: Scheduler, readonly profile: Profile) {
    this.files = template.files.clone()
    mount(this.files)
    this.random = new SeededRandom(scheduler.random.seed, 2)
    this.time = new SimulatedTime(scheduler)
    this.targets = TARGETS.slice(0, profile.targets).map((name) => new SimulatedTarget(name, template.objects[name], scheduler, (fault) => { this.noteFault(fault) }))
    if (profile.config !== undefined) {
      const path = join(DIRECTORY, 'repository.json')
      const config = JSON.parse(this.files.readFile(path).toString('utf8')) as { targets: unknown[] }
      this.files.overwrite(path, Buffer.from(JSON.stringify({ ...config, ...profile.config, targets: config.targets.slice(0, profile.targets) })))
    }
  }
  noteFault(what: string): void { this.fired.set(what, (this.fired.get(what) ?? 0) + 1) }

  /** The index itself, past all gates: for judges. Undefined while no process has it open. */
  get index(): ChunkIndex | undefined { return this.#index }
  /** @throws unless the server is up */
  get repository(): LocalRepository {
    if (this.#repository === undefined || this.status !== 'up') throw new SimulationFailure('the server is not up')
    return this.#repository
  }
  get isReal(): boolean { return this.profile.index === 'lmdb' }

  async #openIndex(life: Life): Promise<ChunkIndex> {
    if (this.isReal) {
      const isFirst = this.#lmdbDirectory === undefined
      const parent = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()
      this.#lmdbDirectory ??= mkdtempSync(join(parent, 'roost-simulation-'))
      this.#index = await openLmdbIndex({ directory: this.#lmdbDirectory, identity: { repositoryId: this.template.repositoryId, formatVersion: 1 } })
      if (isFirst) await this.#inherit(this.#index)
    } else if (this.#index === undefined) {
      this.#index = openMemoryIndex()
      await this.#inherit(this.#index)
    } else {
      // What opening an index does: after a crash no session is left, and no collection ever is.
      if (!this.#endedClean) for (const { sessionId } of await this.#index.listSessions()) await this.#index.closeSession(sessionId)
      await this.#index.endCollection(await this.#index.beginCollection())
    }
    const openedClean = this.isReal ? this.#index.openedClean : this.#endedClean
    this.#endedClean = false
    return gatedIndex(() => this.#index, { scheduler: this.scheduler, life, openedClean, isReal: this.isReal, readsAtOnce: this.profile.readsAtOnce,
      judge: (name, result) => this.#judge(life, name, result),
      close: async (clean) => {
        const closing = this.#index!
        if (this.isReal) { this.#index = undefined; await closing.close(clean) }
        this.#endedClean = clean
      } })
  }

  async #inherit(index: ChunkIndex): Promise<void> {
    await index.setLineage(this.template.lineage)
    await index.setComplete(true)
  }
  /** Who was suspended while another process took over must not take anything away any more. */
  async #judge(life: Life, name: string, result: Promise<unknown>): Promise<unknown> {
    if (!TAKES_PACKS.has(name)) return await result
    if (life.zombie === undefined) {
      this.noteFault(`${name}: ${String(await result)}`)
      return await result
    }
    try {
      if (await result === 'condemned') throw new SimulationFailure(`${name} of a process that had been replaced took a pack away`)
      return await result
    } catch (error) {
      if (!hasCode(error, 'COLLECTION_STALE')) { this.scheduler.fail(error); throw error }
      this.noteFault(`collector of a replaced process refused its ${name}`)
      throw error
    }
  }

  /** Begins a process; resolves when it serves, or is dead. */
  async start(): Promise<void> {
    const life = this.life = new Life(++this.lives)
    this.status = 'opening'
    const { scheduler, profile } = this
    const effects = gatedEffects(memoryFileEffects(this.files), scheduler, life, () => { this.#atSyncStep(life) })
    const clock = this.time.clockOf(life)
    const deps: OpenRepositoryDeps = {
      pool: new SimulatedSealPool(scheduler, life, effects, this.random, profile.sealers), clock, random: this.random, effects, spoolBytesMax: profile.spoolBytesMax,
      commitWaitMs: profile.commitWaitMs, zstdLevel: 1,
      report: (_name, event) => { this.events.push(event); scheduler.note(`reports ${describe(event)}`) },
      openTarget: async (url) => {
        const gated = this.targets.find(({ name }) => url === `memory:${name}`)!.storeOf(life)
        return profile.retries ? retryingStore(boundedStore(gated, { callsInFlightMax: 3 }), { clock, random: this.random, attemptsMax: 3 }) : gated
      },
      collector: collectGarbage,
      openIndex: () => scheduler.call(life, 'index', 'open', () => this.#openIndex(life), { isReal: true }),
    }
    const opening = openRepository(DIRECTORY, deps).then(async (repository) => { await repository.loadState(); return repository })
    opening.catch(() => undefined)
    const repository = await Promise.race([opening, life.died.catch(() => undefined)])
    if (repository === undefined || life.isDead) return
    this.#repository = repository
    this.status = 'up'
    scheduler.note(`server ${life.number} is up`)
    for (const wake of this.#whenUp.splice(0)) wake()
  }
  whenUp(): Promise<void> { return this.status === 'up' ? Promise.resolve() : new Promise((resolve) => { this.#whenUp.push(resolve) }) }

  #atSyncStep(life: Life): void {
    if (life !== this.life || --this.syncStepsToLive > 0) return
    this.syncStepsToLive = Infinity
    life.isDead = true
    this.onSyncDeath?.()
    throw new SimulatedCrash('died at a synchronous file effect')
  }

  /** The process ends in this moment, whatever it was about. */
  async crash(withPower: boolean, isSuspended = false): Promise<void> {
    const life = this.life!
    this.scheduler.note(`server ${life.number} dies${withPower ? ' with the power' : ''} while ${this.status}`)
    this.status = 'down'
    this.#repository = undefined
    await this.scheduler.exclusively(async () => {
      await this.scheduler.kill(life, new ConnectionLost('the server died'), isSuspended ? zombieReaches : undefined)
      this.#inFlight.clear()
      if (withPower) this.files.powerLost(this.random)
      else this.files.processEnded()
      if (this.isReal) { await this.#index?.close(false); this.#index = undefined }
      this.#endedClean = false
    })
  }
  /** Ends the process as operators do: no new requests, those under way end or are told to, then all is closed. */
  async stop(): Promise<void> {
    const life = this.life!
    const repository = this.repository
    this.status = 'closing'
    this.scheduler.note(`server ${life.number} drains`)
    for (let i = 0; i < 20 && this.#inFlight.size > 0; i++) await this.#pauseOf(life, 'drains')
    if (life.isDead) return
    for (const { abort } of this.#inFlight) abort.abort(new RoostError('SERVER_DRAINING', 'The server is shutting down.'))
    for (let i = 0; i < 40 && this.#inFlight.size > 0; i++) await this.#pauseOf(life, 'drains')
    if (life.isDead) return
    life.hangUp(new ConnectionLost('the server closed its connections'))
    await Promise.race([repository.close(), life.died.catch(() => undefined)])
    if (life.isDead) return
    this.status = 'down'
    this.#repository = undefined
    await this.scheduler.exclusively(async () => {
      await this.scheduler.kill(life, new ConnectionLost('the server stopped'))
      this.#inFlight.clear()
      this.files.processEnded()
    })
  }
  #pauseOf(life: Life, name: string): Promise<void> {
    return Promise.race([this.scheduler.pause('server', name), life.died.catch(() => undefined)])
  }

  /** One request over a connection that breaks when the server ends. @throws {ConnectionLost}; what the server answers */
  async request<T>(work: (repository: LocalRepository, signal: AbortSignal) => Promise<T>, abort = new AbortController()): Promise<T> {
    while (this.status !== 'up') await this.whenUp()
    const life = this.life!
    const running = work(this.repository, abort.signal)
    const one = { life, abort, settled: running.catch(() => undefined) }
    this.#inFlight.add(one)
    void one.settled.then(() => this.#inFlight.delete(one))
    running.catch(() => undefined)
    return await Promise.race([running, life.disconnected])
  }

  async dispose(): Promise<void> {
    if (this.life !== undefined && !this.life.isDead) await this.scheduler.kill(this.life, new ConnectionLost('the run is over'))
    if (this.isReal) {
      await this.#index?.close(false).catch(() => undefined)
      if (this.#lmdbDirectory !== undefined) rmSync(this.#lmdbDirectory, { recursive: true, force: true })
    }
  }
}

const TAKES_PACKS = new Set(['condemnPack', 'movePack'])
/** What a suspended collector gets done when it goes on beside the process that replaced it: it knows the index and the targets, and has no
 *  local files any more.
 */
export const zombieReaches = (kind: string, name: string): boolean => {
  if (kind === 'index') return TAKES_PACKS.has(name) || READS_OF_INDEX.has(name) || ['beginCollection', 'endCollection', 'settleDoomed'].includes(name)
  return kind === 'pool' ? name === 'decode' : /^(?:get|getRange|getRanges|head|list|delete|deleteMany)\b/.test(name)
}

function describe(event: RepositoryEvent): string {
  if (event.type === 'recovered') return `recovered ${JSON.stringify(event.counts)}`
  if (event.type === 'target') return `target ${event.target} ${event.health}`
  return `${event.type} ${'pack' in event ? event.pack.slice(0, 8) : ''} ${event.error.message}`
}
