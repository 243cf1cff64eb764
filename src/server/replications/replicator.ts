/** Runs the replications of a server and knows how each of them is doing. */
import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../../core/clock.js'
import { isAbort, RoostError } from '../../core/errors.js'
import type { JobOptions, MaintenanceEvent } from '../../core/messages.js'
import type { ReplicationInfo, ReplicationLag, ReplicationProgress, SetReplicationRequest } from '../../core/peer-messages.js'
import type { Random } from '../../core/random.js'
import { parseRepositoryUrl, Transport, type WaitingNotice } from '../../protocol/transport.js'
import { asPeerError, HttpSide } from '../../replication/http-side.js'
import { LocalSide } from '../../replication/local-side.js'
import { measureLag, runReplication } from '../../replication/run-replication.js'
import type { NearSide, ReplicationSide } from '../../replication/side.js'
import type { Repository } from '../../repo/repository.js'
import { BroughtFile } from './brought-file.js'
import type { ReplicationStore, StoredReplication } from './replication-store.js'

/** A peer that is away is waited for so long by each request; the next run goes on. */
const RETRY_FOR_MS = 5 * 60_000
/** For asking how far a replication is. */
const MEASURE_MS = 15_000
/** Connections to one peer: requests of chunks, and those of several sources beside them. */
const CONNECTIONS_MAX = 16

export interface ReplicatorDeps { readonly directory: string; readonly store: ReplicationStore; readonly clock: Clock; readonly random: Random }
interface Status {
  lag?: ReplicationLag
  progress?: ReplicationProgress
  lastSuccessAtMs?: number
  lastFailure?: { readonly atMs: number; readonly code: string; readonly message: string }
  brought?: BroughtFile
  conflicts: number
  isRunning?: boolean
}

export class Replicator {
  readonly #deps: ReplicatorDeps
  readonly #status = new Map<string, Status>()
  constructor(deps: ReplicatorDeps) { this.#deps = deps }
  static async open(deps: ReplicatorDeps): Promise<Replicator> {
    await mkdir(deps.directory, { recursive: true, mode: 0o700 })
    return new Replicator(deps)
  }
  get all(): readonly StoredReplication[] { return this.#deps.store.all }

  /** Whoever the peer is, it shows that it is the repository that was named before it is written down; what it signs is taken in from then on.
   *  @throws {RoostError} PEER_REFUSED; PEER_UNAVAILABLE; AUTH_REQUIRED; AUTH_FORBIDDEN; REQUEST_MALFORMED */
  async set(repository: Repository, name: string, request: SetReplicationRequest, signal: AbortSignal): Promise<void> {
    const before = this.#deps.store.of(repository.name).find((one) => one.name === name)
    const token = request.token ?? (before?.settings.peer === request.peer ? before.token : undefined)
    if (token === undefined) throw new RoostError('REQUEST_MALFORMED', 'A new peer needs its token.')
    const { token: _, ca, ...settings } = request
    const stored = { repository: repository.name, name, settings, token, ...(ca === undefined ? {} : { ca }) }
    const near = new LocalSide(repository)
    await this.#withFar(stored, 0, async (far) => {
      const own = await near.open({ kind: 'receive', source: 'replication', bases: [] })
      await near.close(own.sessionId)
      const theirs = await far.open({ kind: 'receive', source: 'replication', bases: [] }, signal)
      await far.close(theirs.sessionId).catch(() => undefined)
      if (theirs.familyId !== own.familyId) throw new RoostError('PEER_REFUSED',
        'The two repositories are not of one family: their chunks have other names. Make the replica with `roost repo create --replica-of`.')
      if (settings.direction === 'pull') await repository.peer.trustOrigin({ repositoryId: theirs.repositoryId, verifyKey: settings.verifyKey })
    })
    await this.#deps.store.set(repository.name, name, request)
    this.#status.delete(keyOf(stored))
  }
  async remove(repository: string, name: string): Promise<void> {
    await this.#deps.store.remove(repository, name)
    this.#status.delete(`${repository} ${name}`)
    await BroughtFile.remove(this.#broughtPath(repository, name))
  }

  /** @throws {RoostError} REPLICATION_UNKNOWN */
  requireKnown(repository: string, name: string): void { this.#deps.store.require(repository, name) }

  /** @param options.replication which one; without it, all of the repository, one after the other */
  async *run(repository: Repository, options: JobOptions, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
    const { replication } = options
    const chosen = typeof replication === 'string' ? [this.#deps.store.require(repository.name, replication)] : this.#deps.store.of(repository.name)
    let problems = 0
    const counts: Record<string, number> = {}
    for (const stored of chosen) {
      for await (const event of this.#runOne(repository, stored, signal)) {
        if (event.type !== 'done') { yield event; continue }
        problems += event.problems
        for (const [what, count] of Object.entries(event.counts)) counts[what] = (counts[what] ?? 0) + count
      }
    }
    yield { type: 'done', problems, counts }
  }
  async *#runOne(repository: Repository, stored: StoredReplication, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
    const { clock } = this.#deps
    const status = this.#statusOf(stored)
    if (status.isRunning === true) throw new RoostError('REPOSITORY_BUSY', `The replication "${stored.name}" is running already.`, { replication: stored.name })
    status.isRunning = true
    const transport = this.#transport(stored, RETRY_FOR_MS, ({ error }) => {
      const told = asPeerError(error)
      status.lastFailure = { atMs: clock.now(), code: told instanceof RoostError ? told.code : 'PEER_UNAVAILABLE', message: error.message }
    })
    try {
      const { sides, brought } = await this.#sides(repository, stored, transport)
      const { selection, mirror, bytesPerSecondMax } = stored.settings
      yield* runReplication({ ...sides, selection, mirror, bytesPerSecondMax, brought, clock,
        onLag: (lag) => { status.lag = lag }, onProgress: (progress) => { status.progress = progress } }, signal)
      status.lastSuccessAtMs = clock.now()
      delete status.lastFailure
    } catch (error) {
      const told = asPeerError(error)
      if (!isAbort(told) && !signal.aborted) {
        const code = told instanceof RoostError ? told.code : 'INTERNAL'
        if (code === 'REPLICA_CONFLICT') status.conflicts++
        status.lastFailure = { atMs: clock.now(), code, message: told instanceof Error ? told.message : 'unknown failure' }
      }
      throw told
    } finally {
      delete status.progress
      status.isRunning = false
      transport.close()
    }
  }

  async infos(repository: Repository, runs: (name: string) => string | undefined, isFresh: boolean, signal: AbortSignal): Promise<ReplicationInfo[]> {
    return await Promise.all(this.#deps.store.of(repository.name).map(async (stored) => {
      const status = this.#statusOf(stored)
      const job = runs(stored.name)
      if (isFresh && job === undefined) await this.#measure(repository, stored, status, signal)
      const { lag, progress, lastSuccessAtMs, lastFailure } = status
      const brought = (status.brought ??= await BroughtFile.open(this.#broughtPath(stored.repository, stored.name))).list().length
      return { name: stored.name, ...stored.settings, brought, ...(job === undefined ? {} : { job }), ...(progress === undefined ? {} : { progress }),
        ...(lag === undefined ? {} : { lag }), ...(lastSuccessAtMs === undefined ? {} : { lastSuccessAtMs }), ...(lastFailure === undefined ? {} : { lastFailure }) }
    }))
  }
  async #measure(repository: Repository, stored: StoredReplication, status: Status, signal: AbortSignal): Promise<void> {
    try {
      await this.#withFar(stored, 0, async (_far, transport) => {
        const { sides, brought } = await this.#sides(repository, stored, transport)
        status.lag = await measureLag({ ...sides, selection: stored.settings.selection, brought, clock: this.#deps.clock }, AbortSignal.any([signal, AbortSignal.timeout(MEASURE_MS)]))
      })
    } catch (error) {
      signal.throwIfAborted()
      const told = asPeerError(error)
      status.lastFailure = { atMs: this.#deps.clock.now(), code: told instanceof RoostError ? told.code : 'PEER_UNAVAILABLE', message: told instanceof Error ? told.message : 'unknown failure' }
    }
  }

  /** Of every replication, for metrics; nothing is asked of peers. */
  figures(): { readonly repository: string; readonly name: string; readonly lag?: ReplicationLag; readonly progress?: ReplicationProgress; readonly lastSuccessAtMs?: number
    readonly isFailing: boolean; readonly conflicts: number }[] {
    return this.all.map((stored) => {
      const { lag, progress, lastSuccessAtMs, lastFailure, conflicts } = this.#statusOf(stored)
      return { repository: stored.repository, name: stored.name, isFailing: lastFailure !== undefined, conflicts, ...(lag === undefined ? {} : { lag }),
        ...(progress === undefined ? {} : { progress }), ...(lastSuccessAtMs === undefined ? {} : { lastSuccessAtMs }) }
    })
  }

  #statusOf(stored: Pick<StoredReplication, 'repository' | 'name'>): Status {
    const key = keyOf(stored)
    let status = this.#status.get(key)
    if (status === undefined) this.#status.set(key, status = { conflicts: 0 })
    return status
  }
  async #sides(repository: Repository, stored: StoredReplication, transport: Transport):
    Promise<{ sides: { source: ReplicationSide; sink: ReplicationSide; near: NearSide }; brought: BroughtFile }> {
    const near = new LocalSide(repository), far = this.#far(stored, transport)
    const status = this.#statusOf(stored)
    const brought = status.brought ??= await BroughtFile.open(this.#broughtPath(stored.repository, stored.name))
    return { brought, sides: stored.settings.direction === 'pull' ? { source: far, sink: near, near } : { source: near, sink: far, near } }
  }
  async #withFar(stored: StoredReplication, retryForMs: number, work: (far: HttpSide, transport: Transport) => Promise<void>): Promise<void> {
    const transport = this.#transport(stored, retryForMs)
    try {
      await work(this.#far(stored, transport), transport)
    } catch (error) {
      throw asPeerError(error)
    } finally {
      transport.close()
    }
  }
  #far({ settings }: StoredReplication, transport: Transport): HttpSide {
    return new HttpSide({ transport, repository: parseRepositoryUrl(settings.peer).repository, verifyKey: settings.verifyKey, clock: this.#deps.clock, random: this.#deps.random })
  }
  /** @throws {RoostError} PEER_REFUSED for an address that must not be spoken to */
  #transport({ settings, token, ca }: StoredReplication, retryForMs: number, onWaiting?: (notice: WaitingNotice) => void): Transport {
    const { clock, random } = this.#deps
    try {
      return new Transport({ baseUrl: parseRepositoryUrl(settings.peer).baseUrl, token, ...(ca === undefined ? {} : { ca }), allowPlainHttp: settings.allowPlainHttp, retryForMs,
        connectionsMax: CONNECTIONS_MAX, clock, random, ...(onWaiting === undefined ? {} : { onWaiting }) })
    } catch (error) {
      throw asPeerError(error)
    }
  }
  #broughtPath(repository: string, name: string): string { return join(this.#deps.directory, `${repository}+${name}.brought`) }
  /** Lists that belong to no replication any more. */
  async removeLeftovers(): Promise<void> {
    const known = new Set(this.all.map(({ repository, name }) => `${repository}+${name}.brought`))
    for (const name of await readdir(this.#deps.directory)) if (name.endsWith('.brought') && !known.has(name)) await rm(join(this.#deps.directory, name), { force: true })
  }
}
const keyOf = ({ repository, name }: Pick<StoredReplication, 'repository' | 'name'>): string => `${repository} ${name}`
