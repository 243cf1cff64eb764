/** All repositories of one data directory: `<data>/repositories/<name>/`. One repository that cannot be opened does not keep the others from
 *  serving: it is reported, and asking for it says why.
 */
import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { systemClock } from '../core/clock.js'
import { isErrno, RoostError } from '../core/errors.js'
import { LIMITS } from '../core/limits.js'
import type { AttachRepositoryRequest, CreateRepositoryRequest } from '../core/messages.js'
import { systemRandom } from '../core/random.js'
import { Mutex } from '../core/concurrency.js'
import { nodeFileEffects } from '../store/file-effects.js'
import { attachSecretOf } from './manage-keys.js'
import type { Collector, LocalRepository } from './local-repository.js'
import { attachRepository, createRepository, openRepository, type OpenRepositoryDeps } from './open-repository.js'
import type { RepositoryHost } from './repository-host-contract.js'
import type { ReplicaOffer } from '../core/peer-messages.js'
import { ReplicaOffers } from './replica/family.js'
import type { Repository } from './repository.js'
import type { RepositoryEvent } from './repository-parts.js'
import { ThreadSealPool } from './seal-pool.js'

export interface RepositoryHostOptions {
  readonly dataDirectory: string
  /** Threads that verify, compress, seal and open. */
  readonly workers: number
  readonly spoolBytes?: number
  readonly spoolReserveBytes?: number
  /** Where targets look for credentials by name. */
  readonly environment?: Readonly<Record<string, string | undefined>>
  /** zstd level of blocks; see docs/benchmarks.md for what it buys. */
  readonly zstdLevel?: number
  /** How long a commit waits for a target before it answers "not yet durable". */
  readonly commitWaitMs?: number
  readonly collector?: Collector
  report?(repository: string, event: RepositoryEvent): void
}
export const ZSTD_LEVEL_DEFAULT = 2
const COMMIT_WAIT_MS_DEFAULT = 60_000
/** Also the name of a folder: no dots first, no separators. */
const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/

/** @throws errno exceptions when the data directory cannot be used. */
export async function openRepositoryHost(options: RepositoryHostOptions): Promise<RepositoryHost> {
  const root = join(options.dataDirectory, 'repositories')
  await mkdir(root, { recursive: true, mode: 0o700 })
  const pool = new ThreadSealPool(options.workers)
  const deps: OpenRepositoryDeps = { pool, clock: systemClock, random: systemRandom, effects: nodeFileEffects,
    spoolBytesMax: options.spoolBytes ?? LIMITS.spoolBytesDefault, commitWaitMs: options.commitWaitMs ?? COMMIT_WAIT_MS_DEFAULT,
    ...(options.spoolReserveBytes === undefined ? {} : { spoolReserveBytes: options.spoolReserveBytes }),
    ...(options.collector === undefined ? {} : { collector: options.collector }),
    ...(options.environment === undefined ? {} : { environment: options.environment }),
    zstdLevel: options.zstdLevel ?? ZSTD_LEVEL_DEFAULT, report: (name, event) => { options.report?.(name, event) } }
  const host = new LocalRepositoryHost(root, deps)
  await host.openAll()
  return host
}

class LocalRepositoryHost implements RepositoryHost {
  readonly #open = new Map<string, LocalRepository>()
  readonly #failed = new Map<string, RoostError>()
  readonly #changes = new Mutex()
  readonly #offers: ReplicaOffers
  constructor(readonly root: string, readonly deps: OpenRepositoryDeps) { this.#offers = new ReplicaOffers(deps.clock, deps.random) }

  async openAll(): Promise<void> {
    const names = (await readdir(this.root, { withFileTypes: true })).filter((entry) => entry.isDirectory() && NAME.test(entry.name))
    for (const { name } of names) {
      try {
        await this.#openOne(name)
      } catch (error) {
        if (!(error instanceof RoostError)) throw error
        // An unfinished create or attach leaves a folder without its description; it is made again by the same command.
        if (error.code === 'REPOSITORY_UNKNOWN' && isErrno(error.cause, 'ENOENT')) continue
        this.#failed.set(name, error)
        this.deps.report(name, { type: 'damage', error, pack: '' })
      }
    }
  }
  async #openOne(name: string): Promise<LocalRepository> {
    const repository = await openRepository(join(this.root, name), this.deps)
    await repository.loadState()
    this.#open.set(name, repository)
    this.#failed.delete(name)
    return repository
  }
  list(): Repository[] { return [...this.#open.values()] }
  get(name: string): Repository {
    const repository = this.#open.get(name)
    if (repository !== undefined) return repository
    const failure = this.#failed.get(name)
    if (failure !== undefined) throw failure
    throw new RoostError('REPOSITORY_UNKNOWN', `There is no repository named "${name.slice(0, 64)}" on this server.`)
  }
  create(request: CreateRepositoryRequest): Promise<Repository> {
    return this.#changes.run(async () => {
      const directory = this.#newDirectory(request.name)
      await createRepository(directory, request, this.deps, request.replica === undefined ? undefined : this.#offers.accept(request.replica))
      return this.#openOne(request.name)
    })
  }
  offerReplica(): ReplicaOffer { return this.#offers.make() }
  attach(request: AttachRepositoryRequest): Promise<Repository> {
    return this.#changes.run(async () => {
      const directory = this.#newDirectory(request.name)
      await attachRepository(directory, request, attachSecretOf(request), this.deps)
      return this.#openOne(request.name)
    })
  }
  #newDirectory(name: string): string {
    if (!NAME.test(name))
      throw new RoostError('REQUEST_MALFORMED', 'A repository name has 1–64 characters of a–z, 0–9, ".", "_" and "-", and starts with a letter or digit.')
    if (this.#open.has(name) || this.#failed.has(name))
      throw new RoostError('REPOSITORY_EXISTS', `A repository named "${name}" is on this server already.`)
    return join(this.root, name)
  }
  async close(): Promise<void> {
    await this.#changes.run(async () => {
      // One that cannot close in order must not keep the others from it.
      const results = await Promise.allSettled([...this.#open.values()].map((repository) => repository.close()))
      this.#open.clear()
      await (this.deps.pool as ThreadSealPool).close()
      for (const result of results) if (result.status === 'rejected') throw result.reason
    })
  }
}
