/** The repositories that one process serves: what the HTTP layer knows of their lifecycle. */
import type { AttachRepositoryRequest, CreateRepositoryRequest } from '../core/messages.js'
import type { Repository } from './repository.js'

export interface RepositoryHost {
  /** Open repositories, by name. */
  list(): Repository[]
  /** @throws {RoostError} REPOSITORY_UNKNOWN */
  get(name: string): Repository
  /** @throws {RoostError} REPOSITORY_EXISTS */
  create(request: CreateRepositoryRequest): Promise<Repository>
  /** @throws {RoostError} REPOSITORY_EXISTS, REPOSITORY_UNKNOWN, KEY_UNLOCK_FAILED */
  attach(request: AttachRepositoryRequest): Promise<Repository>
  /** Closes every repository. Idempotent. */
  close(): Promise<void>
}
