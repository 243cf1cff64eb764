/** The replications of a server, written down with their peers' tokens: one private file in the data directory. */
import { Mutex } from '../../core/concurrency.js'
import { RoostError } from '../../core/errors.js'
import type { ReplicationSettings, SetReplicationRequest } from '../../core/peer-messages.js'
import { readJsonFile, writeJsonFile } from '../atomic-json-file.js'

export interface StoredReplication {
  readonly repository: string
  readonly name: string
  readonly settings: ReplicationSettings
  readonly token: string
  /** PEM of the authorities that the peer's certificate is checked by. */
  readonly ca?: string
}
const FILE_FORMAT = 1
const REPLICATIONS_MAX = 256

export class ReplicationStore {
  readonly #path: string
  readonly #changes = new Mutex()
  #all: readonly StoredReplication[]
  private constructor(path: string, all: readonly StoredReplication[]) {
    this.#path = path
    this.#all = all
  }
  static async open(path: string): Promise<ReplicationStore> {
    const file = await readJsonFile(path) as { format?: unknown; replications?: unknown } | undefined
    if (file !== undefined && (file.format !== FILE_FORMAT || !Array.isArray(file.replications))) throw new Error(`${path} is not a file of replications of format ${FILE_FORMAT}.`)
    return new ReplicationStore(path, (file?.replications ?? []) as StoredReplication[])
  }
  get all(): readonly StoredReplication[] { return this.#all }
  of(repository: string): readonly StoredReplication[] { return this.#all.filter((one) => one.repository === repository) }
  /** @throws {RoostError} REPLICATION_UNKNOWN */
  require(repository: string, name: string): StoredReplication {
    const found = this.#all.find((one) => one.repository === repository && one.name === name)
    if (found === undefined) throw new RoostError('REPLICATION_UNKNOWN', `This repository has no replication named "${name.slice(0, 64)}".`)
    return found
  }
  /** Without a token, the one of before stays, if the peer does. @throws {RoostError} REQUEST_MALFORMED; LIMIT_EXCEEDED */
  async set(repository: string, name: string, { token, ca, ...settings }: SetReplicationRequest): Promise<void> {
    await this.#changes.run(async () => {
      const before = this.#all.find((one) => one.repository === repository && one.name === name)
      const kept = before?.settings.peer === settings.peer ? before.token : undefined // never shown to another server
      const used = token ?? kept
      if (used === undefined) throw new RoostError('REQUEST_MALFORMED', 'A new peer needs its token.')
      const others = this.#all.filter((one) => one !== before)
      if (others.length >= REPLICATIONS_MAX) throw new RoostError('LIMIT_EXCEEDED', `A server has at most ${REPLICATIONS_MAX} replications.`, { limit: REPLICATIONS_MAX })
      await this.#write([...others, { repository, name, settings, token: used, ...(ca === undefined ? {} : { ca }) }])
    })
  }
  /** @throws {RoostError} REPLICATION_UNKNOWN */
  async remove(repository: string, name: string): Promise<void> {
    await this.#changes.run(async () => {
      const found = this.require(repository, name)
      await this.#write(this.#all.filter((one) => one !== found))
    })
  }
  async #write(replications: readonly StoredReplication[]): Promise<void> {
    await writeJsonFile(this.#path, { format: FILE_FORMAT, replications })
    this.#all = replications
  }
}
