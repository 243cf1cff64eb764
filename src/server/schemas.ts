/** JSON schemas of every request and reply: validation and the OpenAPI description read the same ones.
 *
 *  Requests are strict: unknown properties are refused, every string and list has a bound. Lengths count characters here;
 *  `x-bytesMax` (a keyword of ours) also bounds the UTF-8 bytes where the format stores bytes,
 *  `x-depthMax` the nesting of free-form JSON.
 */
import { ERROR_CATALOGUE } from '../core/errors.js'
import { KiB, LIMITS } from '../core/limits.js'
import { REPLICATION_DIRECTIONS } from '../core/peer-messages.js'
import { JOB_KINDS, JOB_STATES, RETENTION_COUNTS, RETENTION_WITHIN, TARGET_MODES, TOKEN_SCOPES } from '../core/messages.js'

export type JsonSchema = Readonly<Record<string, unknown>>

/** Our keywords, as the validator takes them. */
export const SCHEMA_KEYWORDS = [
  {
    keyword: 'x-bytesMax', type: 'string', schemaType: 'number', error: { message: 'is too long' },
    validate: (bytesMax: number, value: string): boolean => Buffer.byteLength(value) <= bytesMax,
  },
  {
    keyword: 'x-depthMax', type: 'object', schemaType: 'number', error: { message: 'is nested too deeply' },
    validate: (depthMax: number, value: object): boolean => isNestedWithin(value, depthMax),
  },
] as const

/** A level at a time: the nesting that it refuses must not be what overflows it. */
function isNestedWithin(value: object, depthMax: number): boolean {
  let level: object[] = [value]
  for (let depth = 0; level.length > 0; depth++) {
    if (depth === depthMax) return false
    level = level.flatMap((one) => Object.values(one).filter((child): child is object => typeof child === 'object' && child !== null))
  }
  return true
}

/** Labels shown to people: no control characters. */
const TEXT = '^[^\\u0000-\\u001f\\u007f]+$'
const REPOSITORY_NAME = '[a-z0-9][a-z0-9._-]{0,63}'

/** Largest counts of JSON lists that have no place in LIMITS. */
export const LIST_LIMITS = Object.freeze({
  /** A backup names its paths for people; more than this is a list of files, which belongs in the tree. */
  pathsMax: 4_096,
  pathCharactersMax: 4_096,
  grantsMax: 64,
  snapshotsPageMax: 1_000,
  descriptionPropertiesMax: 256,
  /** Lists of tags in a retention policy. */
  policyTagListsMax: 64,
  /** Snapshots that a peer names as bases. */
  basesMax: 16,
  /** Free-form JSON is encoded again by recursive code. */
  descriptionDepthMax: 64,
})

const text = (bytesMax: number): JsonSchema =>
  ({ type: 'string', minLength: 1, maxLength: bytesMax, pattern: TEXT, 'x-bytesMax': bytesMax })
/** A host or an account may have no name. */
const textOrEmpty = (bytesMax: number): JsonSchema => ({ anyOf: [{ const: '' }, text(bytesMax)] })
const hex = (digits: number): JsonSchema => ({ type: 'string', pattern: `^[0-9a-f]{${digits}}$` })
const count: JsonSchema = { type: 'number', minimum: 0, maximum: Number.MAX_SAFE_INTEGER }
const whole: JsonSchema = { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER }
const choice = (...values: readonly string[]): JsonSchema => ({ type: 'string', enum: values })

const secret = { type: 'string', minLength: 1, maxLength: 4 * KiB } as const
const url = { type: 'string', minLength: 1, maxLength: 2 * KiB } as const

const targetName: JsonSchema = { type: 'string', pattern: '^[a-z0-9][a-z0-9._-]{0,63}$' }
const writePolicy: JsonSchema = { anyOf: [{ const: 'all' }, { type: 'integer', minimum: 1, maximum: 30 }] }
const durability: JsonSchema = choice('remote', 'spool')
const repositoryName: JsonSchema = { type: 'string', pattern: `^${REPOSITORY_NAME}$` }
const repositoryOrAll: JsonSchema = { type: 'string', pattern: `^(\\*|${REPOSITORY_NAME})$` }
const sourceName = text(LIMITS.nameBytesMax)

function object(properties: Record<string, unknown>, optional: readonly string[] = []): JsonSchema {
  const required = Object.keys(properties).filter((name) => !optional.includes(name))
  return { type: 'object', additionalProperties: false, required, properties }
}
const list = (items: JsonSchema, maxItems: number): JsonSchema => ({ type: 'array', maxItems, items })

const chunkerSizes = {
  minBytes: { type: 'integer', minimum: 1 * KiB, maximum: LIMITS.chunkBytesMax },
  averageBytes: { type: 'integer', minimum: 1 * KiB, maximum: LIMITS.chunkBytesMax },
  maxBytes: { type: 'integer', minimum: 1 * KiB, maximum: LIMITS.chunkBytesMax },
  imageChunkBytes: { type: 'integer', minimum: 4 * KiB, maximum: LIMITS.chunkBytesMax },
}
const statistics = object({
  files: whole, directories: whole, others: whole, sourceBytes: whole, bytesRead: whole, chunksTotal: whole, chunksSent: whole,
  bytesSent: whole, bytesOnWire: whole, errors: whole, durationMs: count, cpuMs: count, frozenMs: count,
}, ['frozenMs'])
const grant = object({
  repository: repositoryOrAll,
  scopes: { type: 'array', minItems: 1, maxItems: TOKEN_SCOPES.length, uniqueItems: true, items: choice(...TOKEN_SCOPES) },
  source: sourceName,
}, ['source'])

const retentionPolicy = object({
  ...Object.fromEntries(RETENTION_COUNTS.map((name) => [name, { type: 'integer', minimum: -1, maximum: 1_000_000 }])),
  ...Object.fromEntries(RETENTION_WITHIN.map((name) => [name, { type: 'string', pattern: '^(?=[0-9])([0-9]{1,3}y)?([0-9]{1,4}m)?([0-9]{1,6}d)?([0-9]{1,7}h)?$' }])),
  tags: list({ type: 'array', minItems: 1, maxItems: LIMITS.tagsMax, items: text(LIMITS.nameBytesMax) }, LIST_LIMITS.policyTagListsMax),
  keepOldest: { type: 'boolean' },
  timeZone: { type: 'string', pattern: '^[A-Za-z0-9_+/-]{1,64}$' },
}, [...RETENTION_COUNTS, ...RETENTION_WITHIN, 'tags', 'keepOldest', 'timeZone'])
const policyOrNone: JsonSchema = { anyOf: [{ type: 'null' }, retentionPolicy] }
const lockMs: JsonSchema = { type: 'integer', minimum: 0, maximum: LIMITS.retentionLockMsMax }

const origin = { repositoryId: hex(32), verifyKey: hex(64) }
const replicaRequest = object({ offer: hex(32), statement: { type: 'string', maxLength: 256 * KiB }, signature: { type: 'string', maxLength: 128 }, verifyKey: hex(64) })
const selection = object({ sources: list(text(LIMITS.nameBytesMax), 256), tags: list(text(LIMITS.nameBytesMax), LIMITS.tagsMax),
  maxAgeMs: { type: 'integer', minimum: 1, maximum: LIMITS.retentionLockMsMax },
  newest: { type: 'integer', minimum: 1, maximum: 1_000_000 } }, ['sources', 'tags', 'maxAgeMs', 'newest'])
const replicationSettings = { direction: choice(...REPLICATION_DIRECTIONS), peer: url, verifyKey: hex(64), selection, mirror: { type: 'boolean' }, bytesPerSecondMax: whole,
  allowPlainHttp: { type: 'boolean' } }

/** Bodies that clients send. */
export const REQUEST_SCHEMAS = {
  openSession: {
    type: 'object', required: ['kind'],
    oneOf: [
      object({
        kind: { const: 'push' }, source: sourceName, mode: choice('files', 'image', 'stdin'),
        parent: { anyOf: [{ type: 'null' }, { const: 'latest' }, hex(64)] },
      }),
      object({ kind: { const: 'read' }, snapshot: hex(64) }),
    ],
  },
  commit: object({
    root: hex(64), host: textOrEmpty(LIMITS.nameBytesMax), user: textOrEmpty(LIMITS.nameBytesMax),
    paths: list({ type: 'string', maxLength: LIST_LIMITS.pathCharactersMax }, LIST_LIMITS.pathsMax),
    tags: list(text(LIMITS.nameBytesMax), LIMITS.tagsMax),
    startedAtMs: count, statistics,
    description: { type: 'object', maxProperties: LIST_LIMITS.descriptionPropertiesMax, 'x-depthMax': LIST_LIMITS.descriptionDepthMax },
  }, ['description']),
  createRepository: object({
    name: repositoryName, target: url, durability,
    chunker: object(chunkerSizes, Object.keys(chunkerSizes)), replica: replicaRequest,
  }, ['target', 'durability', 'chunker', 'replica']),
  changeRepository: object({ writePolicy, durability, retentionLockMs: lockMs }, ['writePolicy', 'durability', 'retentionLockMs']),
  setPolicy: object({ source: sourceName, policy: policyOrNone }, ['source']),
  lockSnapshot: object({ forMs: { ...lockMs, minimum: 1 }, untilMs: whole }, ['forMs', 'untilMs']),
  forget: object({ policy: retentionPolicy, source: sourceName, tag: text(LIMITS.nameBytesMax), dryRun: { type: 'boolean' }, keepNone: { type: 'boolean' } },
    ['policy', 'source', 'tag', 'dryRun', 'keepNone']),
  addTarget: object({ name: targetName, url, uploadBytesPerSecondMax: whole }, ['uploadBytesPerSecondMax']),
  changeTarget: object({ mode: choice('active', 'disabled'), uploadBytesPerSecondMax: whole, position: whole }, ['mode', 'uploadBytesPerSecondMax', 'position']),
  attachRepository: object({
    name: repositoryName, target: url, passphrase: secret, recoverySecretKey: secret,
  }, ['passphrase', 'recoverySecretKey']),
  createToken: object({
    label: text(LIMITS.nameBytesMax),
    grants: { type: 'array', minItems: 1, maxItems: LIST_LIMITS.grantsMax, items: grant },
    expiresAtMs: whole,
  }, ['expiresAtMs']),
  addKeySlot: {
    type: 'object', required: ['kind'],
    oneOf: [
      object({ kind: { const: 'passphrase' }, label: text(LIMITS.nameBytesMax), passphrase: secret }),
      object({ kind: { const: 'recovery' }, label: text(LIMITS.nameBytesMax), publicKey: { type: 'string', minLength: 1, maxLength: 256 } }),
    ],
  },
  family: object({ publicKey: hex(64) }),
  peerSession: {
    type: 'object', required: ['kind'],
    oneOf: [
      object({ kind: { const: 'send' }, snapshot: hex(64), challenge: hex(64) }),
      object({ kind: { const: 'receive' }, source: sourceName, bases: list(hex(64), LIST_LIMITS.basesMax), signer: object(origin), challenge: hex(64) }, ['signer']),
    ],
  },
  receive: object({ id: hex(64), record: { type: 'string', maxLength: LIMITS.snapshotBytesMax * 2 }, signature: { type: 'string', maxLength: 128 }, signer: hex(64) }, ['signer']),
  origin: object(origin),
  replication: object({ ...replicationSettings, token: secret, ca: { type: 'string', maxLength: 256 * KiB } }, ['token', 'ca']),
  gc: object({
    dryRun: { type: 'boolean' }, repackBelow: { type: 'number', minimum: 0, maximum: 1 }, bytesPerSecondMax: { type: 'integer', minimum: 1, maximum: Number.MAX_SAFE_INTEGER },
    acceptDamage: { type: 'boolean' },
  }, ['dryRun', 'repackBelow', 'bytesPerSecondMax', 'acceptDamage']),
  check: object({
    readDataPercent: { type: 'number', minimum: 0, maximum: 100 }, heal: { type: 'boolean' }, mark: { type: 'boolean' },
    bytesPerSecondMax: { type: 'integer', minimum: 1, maximum: Number.MAX_SAFE_INTEGER }, maxDurationMs: { type: 'integer', minimum: 1, maximum: Number.MAX_SAFE_INTEGER },
  }, ['heal', 'mark', 'bytesPerSecondMax', 'maxDurationMs']),
} as const satisfies Record<string, JsonSchema>

/** Query strings: text on the wire, so numbers are patterns. */
export const QUERY_SCHEMAS = {
  snapshots: object({
    after: { type: 'string', minLength: 1, maxLength: 256 },
    limit: { type: 'string', pattern: '^[1-9][0-9]{0,3}$' },
    source: sourceName, tag: text(LIMITS.nameBytesMax),
  }, ['after', 'limit', 'source', 'tag']),
  outlines: object({ after: { type: 'string', minLength: 1, maxLength: 256 } }, ['after']),
  replications: object({ refresh: choice('1') }, ['refresh']),
} as const satisfies Record<string, JsonSchema>

const PARAMETER_SCHEMAS: Readonly<Record<string, JsonSchema>> = {
  repository: repositoryName, session: hex(32), snapshot: hex(64), token: hex(16),
  target: targetName, job: { type: 'string', pattern: `^${REPOSITORY_NAME}$` },
  replication: targetName,
  slot: { type: 'string', pattern: '^[A-Za-z0-9._-]{1,128}$' },
}
/** The schema of a path's parameters, or undefined when it has none. */
export function parametersOf(path: string): { readonly type: 'object'; readonly properties: Record<string, JsonSchema> } | undefined {
  const names = [...path.matchAll(/:([a-z]+)/g)].map((match) => match[1]!)
  if (names.length === 0) return undefined
  return { type: 'object', properties: Object.fromEntries(names.map((name) => [name, PARAMETER_SCHEMAS[name]!])) }
}

const signedSnapshot = object({ id: hex(64), record: { type: 'string', contentEncoding: 'base64' }, signature: { type: 'string' }, inSpool: { const: true },
  protected: { const: true }, lockedUntilMs: count, signer: hex(64) }, ['inSpool', 'protected', 'lockedUntilMs', 'signer'])
const chunker = object({ gearSeed: hex(64), ...chunkerSizes })
const repositoryInfo = object({
  name: repositoryName, repositoryId: hex(32), mode: { const: 'server' }, createdAtMs: count,
  targets: { type: 'array', items: { type: 'string' } }, writePolicy, durability, verifyKey: hex(64), chunker, retentionLockMs: count, state: choice('ready', 'rebuild-needed'),
})
const targetInfo = object({
  name: targetName, url: { type: 'string' }, mode: choice(...TARGET_MODES), uploadBytesPerSecondMax: count,
  health: choice('unknown', 'healthy', 'unreachable', 'refused'), failingSinceMs: count, failure: { type: 'string' }, remark: { type: 'string' },
  packs: count, storedBytes: count, lagPacks: count, lagBytes: count, damagedPacks: count,
}, ['failingSinceMs', 'failure', 'remark'])
const tokenFields = {
  tokenId: hex(16), label: { type: 'string' }, grants: { type: 'array', items: grant }, createdAtMs: count, expiresAtMs: count,
}
const keySlot = object({ slotId: { type: 'string' }, kind: choice('keyfile', 'passphrase', 'recovery'), label: { type: 'string' }, createdAtMs: count })
const jobRun = object({
  id: hex(16), kind: choice(...JOB_KINDS), job: { type: 'string' }, trigger: choice('schedule', 'hand'), options: { type: 'object' }, state: choice(...JOB_STATES),
  startedAtMs: count, endedAtMs: count, progress: object({ phase: { type: 'string' }, done: count, total: count }), problems: whole, healed: whole,
  counts: { type: 'object', additionalProperties: count }, error: object({ code: choice(...Object.keys(ERROR_CATALOGUE)), message: { type: 'string' } }),
}, ['job', 'endedAtMs', 'progress', 'error'])
const job = object({
  name: { type: 'string' }, kind: choice(...JOB_KINDS), cron: { type: 'string' }, timeZone: { type: 'string' }, jitterSeconds: count, options: { type: 'object' },
  nextRunAtMs: { type: ['number', 'null'] }, waitingFor: hex(16), lastRun: jobRun,
}, ['waitingFor', 'lastRun'])
const wireLimits = object(Object.fromEntries([
  'chunkBytesMax', 'nodeBytesMax', 'bodyBytesMax', 'bodyFramesMax', 'missingIdsMax', 'readIdsMax', 'sessionBodiesInFlightMax',
].map((name) => [name, whole])))

/** JSON that the server answers. Described, not enforced: types of src/core/messages.ts do that. */
export const REPLY_SCHEMAS = {
  openSession: object({
    sessionId: hex(32), repositoryId: hex(32), dedupKey: hex(64), verifyKey: hex(64), chunker, limits: wireLimits,
    wireCodecs: { type: 'array', items: choice('raw', 'zstd') }, idleMs: whole, snapshot: signedSnapshot,
  }, ['snapshot']),
  commit: object({ snapshot: signedSnapshot, alreadyCommitted: { type: 'boolean' } }),
  signedSnapshot,
  snapshotPage: object({ snapshots: { type: 'array', items: signedSnapshot }, next: { type: ['string', 'null'] } }),
  repositoryInfo,
  repositoryList: { type: 'array', items: repositoryInfo },
  stats: object(Object.fromEntries([
    'snapshots', 'packs', 'chunks', 'dataChunks', 'nodeChunks', 'rawBytes', 'storedBytes', 'spoolPacks', 'spoolBytes', 'sessionsOpen',
  ].map((name) => [name, whole]))),
  tokenList: { type: 'array', items: object(tokenFields, ['expiresAtMs']) },
  createToken: object({ ...tokenFields, token: { type: 'string' } }, ['expiresAtMs']),
  target: targetInfo,
  targets: object({ targets: { type: 'array', items: targetInfo }, writePolicy, durability }),
  jobRun,
  jobs: object({ jobs: { type: 'array', items: job }, runs: { type: 'array', items: jobRun } }),
  retention: object({ lockMs: count, policy: policyOrNone, sources: { type: 'array', items: object({ source: { type: 'string' }, policy: retentionPolicy }) },
    protected: { type: 'array', items: hex(64) }, locks: { type: 'array', items: object({ snapshot: hex(64), untilMs: count }) } }),
  family: object({ statement: { type: 'string', contentEncoding: 'base64' }, signature: { type: 'string' } }),
  outlines: object({ snapshots: { type: 'array', items: object({ id: hex(64), source: { type: 'string' }, receivedAtMs: count, tags: { type: 'array', items: { type: 'string' } },
    parent: { type: ['string', 'null'] }, bytes: count, signer: hex(64) }, ['signer']) }, next: { type: ['string', 'null'] } }),
  peerSession: object({ ...origin, sessionId: hex(32), familyId: hex(32), proof: { type: 'string' }, limits: wireLimits, base: signedSnapshot, snapshot: signedSnapshot }, ['base', 'snapshot']),
  receive: object({ snapshot: signedSnapshot, alreadyThere: { type: 'boolean' } }),
  replicaOffer: object({ offer: hex(32), publicKey: hex(64), expiresInMs: whole }),
  origins: { type: 'array', items: object({ ...origin, addedAtMs: count }) },
  replications: { type: 'array', items: object({ ...replicationSettings, name: targetName, job: hex(16), brought: whole, progress: { type: 'object' }, lag: { type: 'object' },
    lastSuccessAtMs: count, lastFailure: { type: 'object' } }, ['job', 'progress', 'lag', 'lastSuccessAtMs', 'lastFailure']) },
  keySlot,
  keySlotList: { type: 'array', items: keySlot },
  status: object({ status: { type: 'string' } }),
  openapi: { type: 'object' },
  error: object({
    code: choice(...Object.keys(ERROR_CATALOGUE)), message: { type: 'string' },
    retry: choice('never', 'same', 'later', 'restart-session'), requestId: { type: 'string' }, details: { type: 'object' },
  }),
} as const satisfies Record<string, JsonSchema>
