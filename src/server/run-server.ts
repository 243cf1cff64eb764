/** A server from its configuration: lock, tokens, repositories, listener; and the way down again.
 *
 *  Down: not ready and refusing new work, scheduled runs told to end → requests in flight end, or their deadline cuts them → connections closed →
 *  runs ended → repositories closed → lock released. A kill at any point is safe: every acknowledgement was durable before it was given.
 */
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { systemClock, type Clock } from '../core/clock.js'
import { RoostError, describeCause } from '../core/errors.js'
import { TOKEN_SCOPES } from '../core/messages.js'
import { systemRandom, type Random } from '../core/random.js'
import type { RepositoryHost } from '../repo/repository-host-contract.js'
import type { RepositoryEvent } from '../repo/repository-parts.js'
import { Admission } from './admission.js'
import { buildApp } from './app.js'
import { writePrivateFile } from './atomic-json-file.js'
import { ALL_REPOSITORIES } from './authorize.js'
import { checkServerConfig, type ServerConfig } from './config.js'
import { lockDataDirectory, type DataLock } from './data-lock.js'
import { bootTest, revokeOldBootTokens, type BootTester } from './jobs/boot-test-job.js'
import { readJobFile, type JobDefinition } from './jobs/job-file.js'
import { JobRegistry } from './jobs/job-registry.js'
import { Scheduler } from './jobs/scheduler.js'
import { createLogger, type Logger, type LoggerOptions } from './logger.js'
import { ReplicationStore } from './replications/replication-store.js'
import { Replicator } from './replications/replicator.js'
import { RequestLifetimes } from './request-lifetimes.js'
import { TokenStore } from './token-store.js'

const TOKENS_FILE = 'tokens.json'
const ADMIN_TOKEN_FILE = 'admin-token'
const JOBS_DIRECTORY = 'jobs'
const REPLICATION_DIRECTORY = 'replication'
const REPLICATIONS_FILE = 'replications.json'
/** Requests that the deadline cut get this long to be told so. */
const PARTING_MS = 1_000
/** Runs of maintenance get this long to come to a wait; then their repositories close all the same, which ends them. */
const RUNS_END_MS = 10_000

export interface OpenHostOptions {
  readonly dataDirectory: string
  readonly workers: number
  readonly spoolBytes: number
  readonly spoolReserveBytes: number
  readonly commitWaitMs: number
  report(repository: string, event: RepositoryEvent): void
}
export interface RunServerDeps {
  /** Called once the data directory is locked. */
  openHost(options: OpenHostOptions): Promise<RepositoryHost>
  readonly clock?: Clock
  readonly random?: Random
  /** What tests whether machines start; absent: jobs of that kind fail. */
  readonly bootTester?: BootTester
  readonly logDestination?: NonNullable<LoggerOptions['destination']>
  /** Aborting it drains the server. Without one, SIGTERM and SIGINT do, and a second of them ends the drain at once. */
  readonly shutdown?: AbortSignal
}
export interface RunningServer {
  /** As clients write it: `http://127.0.0.1:8470`. */
  readonly url: string
  /** On the first start of a data directory only: to be shown once. Also in `path`, readable by the owner alone. */
  readonly adminToken?: { readonly token: string; readonly path: string }
  /** Drains and closes. Idempotent: every call awaits the same end. */
  drain(): Promise<void>
  /** Ends a drain's waiting at once. */
  hurry(): void
  /** Resolves when everything is closed; rejects when closing a repository failed. */
  readonly closed: Promise<void>
}

/** @throws {ServerConfigError}; {DataLockedError} while another server has the data directory; errno exceptions of listening */
export async function runServer(config: ServerConfig, deps: RunServerDeps): Promise<RunningServer> {
  checkServerConfig(config)
  const tls = config.tls === undefined ? undefined : { cert: await readFile(config.tls.certFile), key: await readFile(config.tls.keyFile) }
  const jobs = config.jobsFile === undefined ? [] : await readJobFile(config.jobsFile, (deps.clock ?? systemClock).now())
  await mkdir(join(config.dataDirectory, JOBS_DIRECTORY), { recursive: true, mode: 0o700 })
  const log = createLogger({ level: config.logLevel, ...(deps.logDestination === undefined ? {} : { destination: deps.logDestination }) })
  const opened: Opened = { lock: await lockDataDirectory(config.dataDirectory) }
  try {
    return await start(config, deps, { log, opened, jobs, ...(tls === undefined ? {} : { tls }) })
  } catch (error) {
    await closeAll(opened)
    throw error
  }
}

/** What must be closed again, in the order of opening. */
interface Opened { readonly lock: DataLock; host?: RepositoryHost; jobs?: JobRegistry; app?: FastifyInstance }
async function closeAll(opened: Opened): Promise<void> {
  try {
    await opened.app?.close()
  } finally {
    try {
      await opened.jobs?.stop(RUNS_END_MS)
      await opened.host?.close()
      await opened.jobs?.close()
    } finally {
      await opened.lock.release()
    }
  }
}

interface StartContext { readonly log: Logger; readonly opened: Opened; readonly jobs: readonly JobDefinition[]; readonly tls?: { readonly cert: Buffer; readonly key: Buffer } }

async function start(config: ServerConfig, deps: RunServerDeps, context: StartContext): Promise<RunningServer> {
  const { log, opened } = context
  const clock = deps.clock ?? systemClock, random = deps.random ?? systemRandom
  const tokens = await TokenStore.open({ path: join(config.dataDirectory, TOKENS_FILE), clock, random })
  const adminToken = tokens.isNew ? await createAdminToken(tokens, config.dataDirectory) : undefined
  const host = opened.host = await deps.openHost({
    dataDirectory: config.dataDirectory, workers: config.workers, spoolBytes: config.spoolBytes, spoolReserveBytes: config.spoolReserveBytes,
    commitWaitMs: config.commitWaitMs,
    report: (repository, event) => { logRepositoryEvent(log, repository, event) },
  })
  const replicator = await Replicator.open({ directory: join(config.dataDirectory, REPLICATION_DIRECTORY), clock, random,
    store: await ReplicationStore.open(join(config.dataDirectory, REPLICATION_DIRECTORY, REPLICATIONS_FILE)) })
  await replicator.removeLeftovers()
  await revokeOldBootTokens(tokens)
  const scheme = context.tls === undefined ? 'http' : 'https'
  const jobs = opened.jobs = new JobRegistry({ directory: join(config.dataDirectory, JOBS_DIRECTORY), clock, random, log,
    services: {
      replicate: (repository, options, signal) => replicator.run(repository, options, signal),
      bootTest: (repository, options, signal) => bootTest(repository, options, signal, { tokens, clock, url: () => urlOf(app, scheme), tester: deps.bootTester }),
    } })
  const scheduler = new Scheduler({ definitions: context.jobs, host, registry: jobs, clock, random, log })
  const lifetimes = new RequestLifetimes()
  let draining = false
  const app: FastifyInstance = opened.app = buildApp({
    host, tokens, clock, random, log, lifetimes, jobs, scheduler, replicator, isDraining: () => draining,
    admission: new Admission(clock, { bytesMax: config.admissionBytes }),
    ...(context.tls === undefined ? {} : { tls: context.tls }),
  })
  await app.listen({ host: config.host, port: config.port, listenTextResolver: () => 'listening' })
  const url = urlOf(app, scheme)
  log.info({ url }, 'ready')
  warnOfUnknown(log, context.jobs, host)
  const scheduling = new AbortController()
  void scheduler.run(scheduling.signal)

  const hurried = new AbortController()
  let ending: Promise<void> | undefined
  const end = async (): Promise<void> => {
    draining = true
    log.info({ inFlight: lifetimes.count, deadlineMs: config.drainMs }, 'draining')
    scheduling.abort()
    jobs.beginClose()
    await finishRequests({ lifetimes, clock, drainMs: config.drainMs, hurried: hurried.signal })
    const closing = app.close()
    app.server.closeAllConnections()
    await closing
    await closeAll({ lock: opened.lock, host, jobs })
    log.info('stopped')
  }
  let finish: (end: Promise<void>) => void = () => undefined
  const closed = new Promise<void>((resolve) => { finish = resolve })
  closed.catch(() => undefined) // drain() and whoever awaits `closed` see the failure
  const drain = (): Promise<void> => {
    if (ending === undefined) {
      ending = end()
      finish(ending)
    }
    return ending
  }
  const server: RunningServer = { url, drain, hurry: () => { hurried.abort() }, closed, ...(adminToken === undefined ? {} : { adminToken }) }
  drainWhenTold(server, deps.shutdown)
  return server
}

/** It may be made later; more often it is a typing error, which nothing else would show. */
function warnOfUnknown(log: Logger, jobs: readonly JobDefinition[], host: RepositoryHost): void {
  const known = host.list().map(({ name }) => name)
  for (const { name, repository } of jobs) if (repository !== undefined && !known.includes(repository)) log.warn({ name, repository }, 'a job is for a repository that is not open here')
}

function urlOf(app: FastifyInstance, scheme: string): string {
  const bound = app.server.address()
  if (bound === null || typeof bound === 'string') throw new Error('the server has no address')
  return `${scheme}://${bound.family === 'IPv6' ? `[${bound.address}]` : bound.address}:${bound.port}`
}

async function createAdminToken(tokens: TokenStore, dataDirectory: string): Promise<{ token: string; path: string }> {
  const path = join(dataDirectory, ADMIN_TOKEN_FILE)
  const grants = [{ repository: ALL_REPOSITORIES, scopes: TOKEN_SCOPES }]
  const { token } = await tokens.create({ label: 'first administrator', grants }, (made) => writePrivateFile(path, `${made}\n`))
  return { token, path }
}

interface Finishing { readonly lifetimes: RequestLifetimes; readonly clock: Clock; readonly drainMs: number; readonly hurried: AbortSignal }

/** Resolves when no request is in flight: they ended, or were told to and given a moment for it. */
async function finishRequests({ lifetimes, clock, drainMs, hurried }: Finishing): Promise<void> {
  if (await endsWithin(lifetimes, clock, drainMs, hurried)) return
  lifetimes.abortAll(new RoostError('SERVER_DRAINING', 'The server is shutting down.'))
  await endsWithin(lifetimes, clock, PARTING_MS, hurried)
}
async function endsWithin(lifetimes: RequestLifetimes, clock: Clock, ms: number, hurried: AbortSignal): Promise<boolean> {
  const waiting = new AbortController()
  const giveUp = (): void => { waiting.abort() }
  if (hurried.aborted) giveUp()
  hurried.addEventListener('abort', giveUp, { once: true })
  try {
    return await Promise.race([
      lifetimes.idle().then(() => true),
      clock.sleep(ms, waiting.signal).then(() => false, () => false), // rejected = hurried, or the race is over
    ])
  } finally {
    hurried.removeEventListener('abort', giveUp)
    waiting.abort()
  }
}

function drainWhenTold(server: RunningServer, shutdown: AbortSignal | undefined): void {
  const begin = (): void => { server.drain().catch(() => undefined) } // `closed` carries the failure
  if (shutdown !== undefined) {
    if (shutdown.aborted) begin()
    else shutdown.addEventListener('abort', begin, { once: true })
    return
  }
  let told = false
  const onSignal = (): void => {
    if (told) server.hurry()
    told = true
    begin()
  }
  process.on('SIGTERM', onSignal).on('SIGINT', onSignal)
  const forget = (): void => { process.off('SIGTERM', onSignal).off('SIGINT', onSignal) }
  server.closed.then(forget, forget)
}

function logRepositoryEvent(log: Logger, repository: string, event: RepositoryEvent): void {
  if (event.type === 'recovered') log.info({ repository, ...event }, 'repository recovered')
  else if (event.type === 'target') logTarget(log, repository, event)
  else if (event.type === 'deletion-refused') log.warn({ repository, type: event.type, pack: event.pack, cause: describeCause(event.error) }, 'a target keeps a pack that nothing needs')
  else if (event.type === 'conflict') log.error({ repository, type: event.type, cause: describeCause(event.error), ...event.error.details }, 'a snapshot differs from one of the same push')
  else log.error({ repository, type: event.type, cause: describeCause(event.error), ...('pack' in event ? { pack: event.pack } : {}) }, 'repository damaged')
}
function logTarget(log: Logger, repository: string, { target, health, error }: RepositoryEvent & { type: 'target' }): void {
  if (error === undefined) log.info({ repository, target, health }, 'target answers again')
  else log.warn({ repository, target, health, cause: describeCause(error) }, 'target fails')
}
