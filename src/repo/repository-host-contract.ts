/** The repositories that one process serves: what the HTTP layer knows of their lifecycle. */
import type { AttachRepositoryRequest, CreateRepositoryRequest } from '../core/messages.js'
import type { ReplicaOffer } from '../core/peer-messages.js'
import type { Repository } from './repository.js'

export interface RepositoryHost {
  /** Open repositories, by name. */
  list(): Repository[]
  /** @throws {RoostError} REPOSITORY_UNKNOWN */
  get(name: string): Repository
  /** @throws {RoostError} REPOSITORY_EXISTS; PEER_REFUSED for a replica whose origin's answer does not hold */
  create(request: CreateRepositoryRequest): Promise<Repository>
  /** @throws {RoostError} REPOSITORY_EXISTS, REPOSITORY_UNKNOWN, KEY_UNLOCK_FAILED */
  attach(request: AttachRepositoryRequest): Promise<Repository>
  /** For a replica that is to be created here: a key for its origin to seal to. */
  offerReplica(): ReplicaOffer
  /** Closes every repository. Idempotent. */
  close(): Promise<void>
}
