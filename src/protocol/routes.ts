/** Paths, header names and media types of the HTTP API (docs/protocol.md is normative). */

export const PROTOCOL_VERSION = 1
export const DEFAULT_PORT = 8470

export const MEDIA = {
  frames: 'application/vnd.roost.frames',
  idProofs: 'application/vnd.roost.id-proofs',
  ids: 'application/vnd.roost.ids',
  bitmap: 'application/vnd.roost.bitmap',
  verdicts: 'application/vnd.roost.verdicts',
  readFrames: 'application/vnd.roost.read-frames',
  groups: 'application/vnd.roost.chunk-groups',
  progress: 'application/x-ndjson',
} as const

/** Patterns as fastify takes them; `routePath` fills them in. */
export const ROUTES = {
  health: '/healthz',
  ready: '/readyz',
  openapi: '/openapi.json',
  repositories: '/v1/repositories',
  repository: '/v1/repositories/:repository',
  tokens: '/v1/tokens',
  token: '/v1/tokens/:token',
  sessions: '/v1/repositories/:repository/sessions',
  session: '/v1/repositories/:repository/sessions/:session',
  sessionMissing: '/v1/repositories/:repository/sessions/:session/missing',
  sessionChunks: '/v1/repositories/:repository/sessions/:session/chunks',
  sessionRead: '/v1/repositories/:repository/sessions/:session/read',
  sessionCommit: '/v1/repositories/:repository/sessions/:session/commit',
  snapshots: '/v1/repositories/:repository/snapshots',
  snapshot: '/v1/repositories/:repository/snapshots/:snapshot',
  snapshotProtection: '/v1/repositories/:repository/snapshots/:snapshot/protection',
  snapshotLock: '/v1/repositories/:repository/snapshots/:snapshot/lock',
  retention: '/v1/repositories/:repository/retention',
  retentionPolicy: '/v1/repositories/:repository/retention/policy',
  forget: '/v1/repositories/:repository/forget',
  stats: '/v1/repositories/:repository/stats',
  gc: '/v1/repositories/:repository/gc',
  check: '/v1/repositories/:repository/check',
  rebuild: '/v1/repositories/:repository/rebuild',
  targets: '/v1/repositories/:repository/targets',
  target: '/v1/repositories/:repository/targets/:target',
  targetBackfill: '/v1/repositories/:repository/targets/:target/backfill',
  targetDrain: '/v1/repositories/:repository/targets/:target/drain',
  jobs: '/v1/repositories/:repository/jobs',
  job: '/v1/repositories/:repository/jobs/:job',
  jobRun: '/v1/repositories/:repository/jobs/:job/run',
  jobCancel: '/v1/repositories/:repository/jobs/:job/cancel',
  jobEvents: '/v1/repositories/:repository/jobs/:job/events',
  peerFamily: '/v1/repositories/:repository/peer/family',
  peerSnapshots: '/v1/repositories/:repository/peer/snapshots',
  peerSessions: '/v1/repositories/:repository/peer/sessions',
  peerFetch: '/v1/repositories/:repository/peer/sessions/:session/fetch',
  peerHold: '/v1/repositories/:repository/peer/sessions/:session/hold',
  peerInherit: '/v1/repositories/:repository/peer/sessions/:session/inherit',
  peerGroups: '/v1/repositories/:repository/peer/sessions/:session/groups',
  peerReceive: '/v1/repositories/:repository/peer/sessions/:session/receive',
  replicaOffers: '/v1/replica-offers',
  origins: '/v1/repositories/:repository/origins',
  replications: '/v1/repositories/:repository/replications',
  replication: '/v1/repositories/:repository/replications/:replication',
  replicationRun: '/v1/repositories/:repository/replications/:replication/run',
  metrics: '/metrics',
  keySlots: '/v1/repositories/:repository/keys',
  keySlot: '/v1/repositories/:repository/keys/:slot',
  keyRotate: '/v1/repositories/:repository/keys/rotate',
} as const

export function routePath(pattern: string, params: Readonly<Record<string, string>> = {}): string {
  return pattern.replace(/:([a-z]+)/g, (_whole, name: string) => {
    const value = params[name]
    if (value === undefined) throw new TypeError(`route ${pattern} needs ${name}`)
    return encodeURIComponent(value)
  })
}
