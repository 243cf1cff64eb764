/** The one table of what the server answers: method, path, who may call, what goes in and out.
 *
 *  Routes are registered from it, requests validated by it, callers authorised by it, and the OpenAPI description
 *  generated from it, so that none of the four can disagree. An endpoint without an `access` does not compile.
 */
import { MEDIA, ROUTES } from '../protocol/routes.js'
import { LIMITS } from '../core/limits.js'
import { ID_PROOF_BYTES, CHUNK_ID_BYTES } from '../core/ids.js'
import { QUERY_SCHEMAS, REPLY_SCHEMAS, REQUEST_SCHEMAS, type JsonSchema } from './schemas.js'

/** Who may call. `granted`: any scope on the repository; `session`: the token that opened the session, which must be of
 *  the named kind (`commit-session`: or have committed already); `forget`: `delete` or `admin`;
 *  the rest name scopes (`server-admin`: `admin` on `*`;
 *  `…-of-repository`: for what concerns one repository; `peer-session`: `replicate`, and the token that opened the session). Limits to one source are applied by the routes. */
export type Access = 'public' | 'authenticated' | 'granted' | 'session' | 'push-session' | 'commit-session' | 'open-session' | 'list-snapshots' |
  'delete-snapshot' | 'forget' | 'repository-admin' | 'server-admin' | 'server-admin-of-repository' | 'replicate' | 'peer-session'

/** A body of octets: multiples of `unitBytes`, at most `bytesMax`. */
export interface OctetBody { readonly media: string; readonly bytesMax: number; readonly unitBytes: number }

export interface Endpoint {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  readonly path: string
  readonly summary: string
  readonly access: Access
  readonly json?: JsonSchema
  readonly octets?: OctetBody
  readonly query?: JsonSchema
  readonly status: 200 | 201 | 204
  /** A JSON schema, or the media type of an octet stream; absent with 204. */
  readonly reply?: JsonSchema | string
  /** Begins work that a draining server must not begin. */
  readonly beginsWork?: true
}

export const ENDPOINTS = {
  health: { method: 'GET', path: ROUTES.health, summary: 'The process is alive.', access: 'public', status: 200, reply: REPLY_SCHEMAS.status },
  ready: {
    method: 'GET', path: ROUTES.ready, summary: 'The server takes work; 503 while it drains.', access: 'public', status: 200,
    reply: REPLY_SCHEMAS.status,
  },
  openapi: { method: 'GET', path: ROUTES.openapi, summary: 'This description.', access: 'public', status: 200, reply: REPLY_SCHEMAS.openapi },

  listRepositories: {
    method: 'GET', path: ROUTES.repositories, summary: 'The repositories that the token has any scope on.', access: 'authenticated',
    status: 200, reply: REPLY_SCHEMAS.repositoryList,
  },
  createRepository: {
    method: 'POST', path: ROUTES.repositories, summary: 'Creates a repository with new keys.', access: 'server-admin',
    json: REQUEST_SCHEMAS.createRepository, status: 201, reply: REPLY_SCHEMAS.repositoryInfo, beginsWork: true,
  },
  getRepository: {
    method: 'GET', path: ROUTES.repository, summary: 'Facts of a repository; targets are shown to its administrators.', access: 'granted',
    status: 200, reply: REPLY_SCHEMAS.repositoryInfo,
  },
  attachRepository: {
    method: 'PUT', path: ROUTES.repository, summary: 'Opens a repository that exists on its target but not on this server.',
    access: 'server-admin', json: REQUEST_SCHEMAS.attachRepository, status: 201, reply: REPLY_SCHEMAS.repositoryInfo, beginsWork: true,
  },

  changeRepository: {
    method: 'PATCH', path: ROUTES.repository, summary: 'Sets the write policy, when commits are acknowledged, and a longer retention lock.', access: 'repository-admin',
    json: REQUEST_SCHEMAS.changeRepository, status: 200, reply: REPLY_SCHEMAS.repositoryInfo,
  },

  listTokens: {
    method: 'GET', path: ROUTES.tokens, summary: 'All tokens, without their secrets.', access: 'server-admin', status: 200,
    reply: REPLY_SCHEMAS.tokenList,
  },
  createToken: {
    method: 'POST', path: ROUTES.tokens, summary: 'Makes a token; its secret is in this reply only.', access: 'server-admin',
    json: REQUEST_SCHEMAS.createToken, status: 201, reply: REPLY_SCHEMAS.createToken,
  },
  revokeToken: { method: 'DELETE', path: ROUTES.token, summary: 'Ends a token at once.', access: 'server-admin', status: 204 },

  openSession: {
    method: 'POST', path: ROUTES.sessions, summary: 'Opens a push session, or a read session on a snapshot.', access: 'open-session',
    json: REQUEST_SCHEMAS.openSession, status: 201, reply: REPLY_SCHEMAS.openSession, beginsWork: true,
  },
  closeSession: { method: 'DELETE', path: ROUTES.session, summary: 'Closes a session; what it pinned is let go.', access: 'session', status: 204 },
  findMissing: {
    method: 'POST', path: ROUTES.sessionMissing, summary: 'Asks which chunks are missing; those present are pinned.', access: 'push-session',
    octets: { media: MEDIA.idProofs, bytesMax: LIMITS.missingIdsMax * ID_PROOF_BYTES, unitBytes: ID_PROOF_BYTES },
    status: 200, reply: MEDIA.bitmap, beginsWork: true,
  },
  putChunks: {
    method: 'POST', path: ROUTES.sessionChunks, summary: 'Sends chunk frames; one verdict byte a frame.', access: 'push-session',
    octets: { media: MEDIA.frames, bytesMax: LIMITS.bodyBytesMax, unitBytes: 1 }, status: 200, reply: MEDIA.verdicts, beginsWork: true,
  },
  readChunks: {
    method: 'POST', path: ROUTES.sessionRead, summary: 'Reads chunks that the session may read, as a stream of read frames.', access: 'session',
    octets: { media: MEDIA.ids, bytesMax: LIMITS.readIdsMax * CHUNK_ID_BYTES, unitBytes: CHUNK_ID_BYTES },
    status: 200, reply: MEDIA.readFrames, beginsWork: true,
  },
  commit: {
    method: 'POST', path: ROUTES.sessionCommit, summary: 'Makes the session a snapshot; a repeat answers the same.', access: 'commit-session',
    json: REQUEST_SCHEMAS.commit, status: 200, reply: REPLY_SCHEMAS.commit,
  },

  listSnapshots: {
    method: 'GET', path: ROUTES.snapshots, summary: 'Snapshots, newest first.', access: 'list-snapshots', query: QUERY_SCHEMAS.snapshots,
    status: 200, reply: REPLY_SCHEMAS.snapshotPage,
  },
  getSnapshot: {
    method: 'GET', path: ROUTES.snapshot, summary: 'One signed snapshot.', access: 'list-snapshots', status: 200,
    reply: REPLY_SCHEMAS.signedSnapshot,
  },
  deleteSnapshot: { method: 'DELETE', path: ROUTES.snapshot, summary: 'Deletes a snapshot record; refused while it is protected or locked.', access: 'delete-snapshot', status: 204 },
  protectSnapshot: {
    method: 'PUT', path: ROUTES.snapshotProtection, summary: 'Keeps a snapshot from every deletion until that is taken back.', access: 'forget', status: 204,
  },
  unprotectSnapshot: { method: 'DELETE', path: ROUTES.snapshotProtection, summary: 'Takes a protection back.', access: 'repository-admin', status: 204 },
  lockSnapshot: {
    method: 'PUT', path: ROUTES.snapshotLock, summary: 'Locks a snapshot for a time that can be lengthened, never shortened.', access: 'repository-admin',
    json: REQUEST_SCHEMAS.lockSnapshot, status: 204,
  },

  getRetention: {
    method: 'GET', path: ROUTES.retention, summary: 'Policies, protected and locked snapshots.', access: 'repository-admin', status: 200, reply: REPLY_SCHEMAS.retention,
  },
  setPolicy: {
    method: 'PUT', path: ROUTES.retentionPolicy, summary: 'Stores or removes the policy of the repository or of one source.', access: 'repository-admin',
    json: REQUEST_SCHEMAS.setPolicy, status: 200, reply: REPLY_SCHEMAS.retention,
  },
  forget: {
    method: 'POST', path: ROUTES.forget, summary: 'Applies a policy, or the stored ones: lines of verdicts and deletions.', access: 'forget', json: REQUEST_SCHEMAS.forget,
    status: 200, reply: MEDIA.progress, beginsWork: true,
  },

  stats: {
    method: 'GET', path: ROUTES.stats, summary: 'Counts and bytes of a repository.', access: 'repository-admin', status: 200,
    reply: REPLY_SCHEMAS.stats,
  },
  gc: {
    method: 'POST', path: ROUTES.gc, summary: 'Removes what nothing needs; lines of events. It goes on when the client leaves, a dry run ends.', access: 'repository-admin',
    json: REQUEST_SCHEMAS.gc, status: 200, reply: MEDIA.progress, beginsWork: true,
  },
  check: {
    method: 'POST', path: ROUTES.check, summary: 'Verifies the repository; lines of events.', access: 'repository-admin', json: REQUEST_SCHEMAS.check,
    status: 200, reply: MEDIA.progress, beginsWork: true,
  },
  rebuild: {
    method: 'POST', path: ROUTES.rebuild, summary: 'Makes the index anew from packs; lines of events.', access: 'repository-admin',
    status: 200, reply: MEDIA.progress, beginsWork: true,
  },

  listTargets: {
    method: 'GET', path: ROUTES.targets, summary: 'The targets in order of preference, with their health and lag.', access: 'repository-admin',
    status: 200, reply: REPLY_SCHEMAS.targets,
  },
  addTarget: {
    method: 'POST', path: ROUTES.targets, summary: 'Adds a target; its packs come by a backfill that starts by itself.', access: 'server-admin-of-repository',
    json: REQUEST_SCHEMAS.addTarget, status: 201, reply: REPLY_SCHEMAS.target, beginsWork: true,
  },
  changeTarget: {
    method: 'PATCH', path: ROUTES.target, summary: 'Enables, disables, moves or limits a target.', access: 'repository-admin',
    json: REQUEST_SCHEMAS.changeTarget, status: 200, reply: REPLY_SCHEMAS.target,
  },
  removeTarget: {
    method: 'DELETE', path: ROUTES.target, summary: 'Forgets a target that nothing depends on; its objects stay.', access: 'repository-admin', status: 204,
  },
  backfillTarget: {
    method: 'POST', path: ROUTES.targetBackfill, summary: 'Copies to a target what it lacks; lines of events.', access: 'repository-admin',
    status: 200, reply: MEDIA.progress, beginsWork: true,
  },
  drainTarget: {
    method: 'POST', path: ROUTES.targetDrain, summary: 'Moves what only this target holds to others; lines of events.', access: 'repository-admin',
    status: 200, reply: MEDIA.progress, beginsWork: true,
  },

  listJobs: {
    method: 'GET', path: ROUTES.jobs, summary: 'The configured jobs with their next run, and the latest runs.', access: 'repository-admin', status: 200,
    reply: REPLY_SCHEMAS.jobs,
  },
  getJob: {
    method: 'GET', path: ROUTES.job, summary: 'One run, by its id, or the latest of a configured job, by its name.', access: 'repository-admin', status: 200,
    reply: REPLY_SCHEMAS.jobRun,
  },
  runJob: {
    method: 'POST', path: ROUTES.jobRun, summary: 'Runs a configured job now; goes on whoever watches.', access: 'repository-admin', status: 201,
    reply: REPLY_SCHEMAS.jobRun, beginsWork: true,
  },
  cancelJob: {
    method: 'POST', path: ROUTES.jobCancel, summary: 'Ends a run, and answers when it has ended.', access: 'repository-admin', status: 200,
    reply: REPLY_SCHEMAS.jobRun,
  },
  watchJob: {
    method: 'GET', path: ROUTES.jobEvents, summary: 'The events of a run, from the first; lines as of a check.', access: 'repository-admin', status: 200,
    reply: MEDIA.progress,
  },

  stateFamily: {
    method: 'POST', path: ROUTES.peerFamily, summary: 'States the family to a replica that is to be, its keys sealed to a public key.', access: 'replicate',
    json: REQUEST_SCHEMAS.family, status: 200, reply: REPLY_SCHEMAS.family,
  },
  outlineSnapshots: {
    method: 'GET', path: ROUTES.peerSnapshots, summary: 'What a peer chooses snapshots by, newest first.', access: 'replicate', query: QUERY_SCHEMAS.outlines, status: 200,
    reply: REPLY_SCHEMAS.outlines,
  },
  openPeerSession: {
    method: 'POST', path: ROUTES.peerSessions, summary: 'Opens a session that sends a snapshot to a peer, or receives one; proves who answers.', access: 'replicate',
    json: REQUEST_SCHEMAS.peerSession, status: 201, reply: REPLY_SCHEMAS.peerSession, beginsWork: true,
  },
  fetchGroups: {
    method: 'POST', path: ROUTES.peerFetch, summary: 'Chunks by id, in groups as they are compressed in packs.', access: 'peer-session',
    octets: { media: MEDIA.ids, bytesMax: LIMITS.readIdsMax * CHUNK_ID_BYTES, unitBytes: CHUNK_ID_BYTES }, status: 200, reply: MEDIA.groups, beginsWork: true,
  },
  holdChunks: {
    method: 'POST', path: ROUTES.peerHold, summary: 'Which chunks are missing, by id alone; those present are pinned.', access: 'peer-session',
    octets: { media: MEDIA.ids, bytesMax: LIMITS.missingIdsMax * CHUNK_ID_BYTES, unitBytes: CHUNK_ID_BYTES }, status: 200, reply: MEDIA.bitmap, beginsWork: true,
  },
  inheritChildren: {
    method: 'POST', path: ROUTES.peerInherit, summary: 'Makes inherited what inherited nodes list.', access: 'peer-session',
    octets: { media: MEDIA.ids, bytesMax: LIMITS.readIdsMax * CHUNK_ID_BYTES, unitBytes: CHUNK_ID_BYTES }, status: 204, beginsWork: true,
  },
  putGroups: {
    method: 'POST', path: ROUTES.peerGroups, summary: 'Sends groups of chunks; one verdict byte a chunk.', access: 'peer-session',
    octets: { media: MEDIA.groups, bytesMax: LIMITS.bodyBytesMax, unitBytes: 1 }, status: 200, reply: MEDIA.verdicts, beginsWork: true,
  },
  receiveSnapshot: {
    method: 'POST', path: ROUTES.peerReceive, summary: 'Takes in a snapshot that another repository signed; a repeat answers the same.', access: 'replicate',
    json: REQUEST_SCHEMAS.receive, status: 200, reply: REPLY_SCHEMAS.receive,
  },
  offerReplica: {
    method: 'POST', path: ROUTES.replicaOffers, summary: 'A public key for the origin of a replica that is to be created here.', access: 'server-admin', status: 201,
    reply: REPLY_SCHEMAS.replicaOffer,
  },
  listOrigins: {
    method: 'GET', path: ROUTES.origins, summary: 'Repositories whose snapshots are taken in.', access: 'repository-admin', status: 200, reply: REPLY_SCHEMAS.origins,
  },
  trustOrigin: {
    method: 'POST', path: ROUTES.origins, summary: 'Takes in snapshots of another repository from now on.', access: 'repository-admin', json: REQUEST_SCHEMAS.origin, status: 204,
  },
  listReplications: {
    method: 'GET', path: ROUTES.replications, summary: 'The replications of a repository, with their lag.', access: 'repository-admin', query: QUERY_SCHEMAS.replications, status: 200,
    reply: REPLY_SCHEMAS.replications,
  },
  setReplication: {
    method: 'PUT', path: ROUTES.replication, summary: 'Writes a replication down, once its peer has shown who it is.', access: 'server-admin-of-repository',
    json: REQUEST_SCHEMAS.replication, status: 204,
  },
  removeReplication: { method: 'DELETE', path: ROUTES.replication, summary: 'Forgets a replication; what it brought stays.', access: 'repository-admin', status: 204 },
  runReplication: {
    method: 'POST', path: ROUTES.replicationRun, summary: 'Replicates now; lines of events. Goes on whoever watches.', access: 'repository-admin', status: 200,
    reply: MEDIA.progress, beginsWork: true,
  },
  metrics: { method: 'GET', path: ROUTES.metrics, summary: 'Figures of replications, as Prometheus reads them.', access: 'server-admin', status: 200, reply: 'text/plain; version=0.0.4' },

  listKeySlots: {
    method: 'GET', path: ROUTES.keySlots, summary: 'Ways to unlock the repository.', access: 'repository-admin', status: 200,
    reply: REPLY_SCHEMAS.keySlotList,
  },
  addKeySlot: {
    method: 'POST', path: ROUTES.keySlots, summary: 'Adds a passphrase or a recovery key.', access: 'repository-admin', json: REQUEST_SCHEMAS.addKeySlot,
    status: 201, reply: REPLY_SCHEMAS.keySlot,
  },
  removeKeySlot: { method: 'DELETE', path: ROUTES.keySlot, summary: 'Removes a key slot; never the last.', access: 'repository-admin', status: 204 },
  rotateKeyfile: {
    method: 'POST', path: ROUTES.keyRotate, summary: "Replaces the server's keyfile.", access: 'repository-admin', status: 200,
    reply: REPLY_SCHEMAS.keySlot,
  },
} as const satisfies Record<string, Endpoint>

export type EndpointName = keyof typeof ENDPOINTS
