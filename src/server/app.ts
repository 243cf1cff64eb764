/** Composes the HTTP application: gate, routes, errors, bounds. Never listens. Only src/server imports fastify. */
import { createServer, type Server, type ServerOptions } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { LogController, fastify, type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import type { Clock } from '../core/clock.js'
import { Semaphore } from '../core/concurrency.js'
import { RoostError, isErrno } from '../core/errors.js'
import { KiB, LIMITS } from '../core/limits.js'
import type { Random } from '../core/random.js'
import { MEDIA } from '../protocol/routes.js'
import type { RepositoryHost } from '../repo/repository-host-contract.js'
import type { Admission } from './admission.js'
import { FailureBrake } from './authenticate.js'
import { BodyBuffers } from './body-buffers.js'
import { BodyIntake } from './body-intake.js'
import { createErrorHandler, toErrorReply } from './error-handler.js'
import { createGate } from './gate.js'
import type { JobRegistry } from './jobs/job-registry.js'
import type { Replicator } from './replications/replicator.js'
import type { Scheduler } from './jobs/scheduler.js'
import type { Logger } from './logger.js'
import { READERS_MAX } from './readers.js'
import type { RequestLifetimes } from './request-lifetimes.js'
import type { RouteDeps } from './route-context.js'
import { healthRoutes } from './routes/health.js'
import { jobRoutes } from './routes/jobs.js'
import { keyRoutes } from './routes/keys.js'
import { maintenanceRoutes } from './routes/maintenance.js'
import { retentionRoutes } from './routes/retention.js'
import { targetRoutes } from './routes/targets.js'
import { peerRoutes } from './routes/peer.js'
import { replicationRoutes } from './routes/replications.js'
import { repositoryRoutes } from './routes/repositories.js'
import { sessionRoutes } from './routes/sessions.js'
import { snapshotRoutes } from './routes/snapshots.js'
import { tokenRoutes } from './routes/tokens.js'
import { SCHEMA_KEYWORDS } from './schemas.js'
import type { TokenStore } from './token-store.js'

export interface AppDeps {
  readonly host: RepositoryHost
  readonly tokens: TokenStore
  readonly clock: Clock
  readonly random: Random
  readonly log: Logger
  readonly admission: Admission
  readonly lifetimes: RequestLifetimes
  readonly isDraining: () => boolean
  readonly jobs: JobRegistry
  readonly scheduler: Scheduler
  readonly replicator: Replicator
  /** PEM. Plain HTTP without. */
  readonly tls?: { readonly cert: Buffer; readonly key: Buffer }
}

/** Bounds of connections; bodies are timed by raw-body.ts, with requestTimeout as the last resort behind it. */
const CONNECTION_BOUNDS = Object.freeze({
  connectionsMax: 2_048, headerBytesMax: 16 * KiB, headersTimeoutMs: 20_000, requestTimeoutMs: 3_600_000,
  keepAliveMs: 75_000, checkEveryMs: 5_000,
})

export function buildApp(deps: AppDeps): FastifyInstance {
  const { clock, random, log } = deps
  const app = fastify({
    loggerInstance: log,
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'requestId' }),
    genReqId: () => random.bytes(8).toString('hex'),
    requestIdHeader: false,
    bodyLimit: LIMITS.jsonBytesMax,
    exposeHeadRoutes: false,
    trustProxy: false,
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    serverFactory: (handler) => createBoundedServer(deps, handler),
    clientErrorHandler: answerBrokenRequest,
    frameworkErrors: (error, request, reply) => { void createErrorHandler(clock)(error, request, reply) },
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, useDefaults: false, allErrors: false, keywords: [...SCHEMA_KEYWORDS] } },
  }) as unknown as FastifyInstance // the log's concrete type is of no interest to callers

  const intake = new BodyIntake({ clock, admission: deps.admission, buffers: new BodyBuffers() })
  const routeDeps: RouteDeps = {
    host: deps.host, tokens: deps.tokens, clock, intake, readers: new Semaphore(READERS_MAX), isDraining: deps.isDraining,
    jobs: deps.jobs, scheduler: deps.scheduler, replicator: deps.replicator,
  }
  app.decorateRequest('passage')
  app.addHook('onRequest', createGate({ ...deps, brake: new FailureBrake(clock) }))
  app.addHook('onResponse', logRequest)
  app.setErrorHandler(createErrorHandler(clock))
  app.setNotFoundHandler(() => { throw new RoostError('ROUTE_UNKNOWN', 'There is no such route.') })
  addBodyParsers(app, intake)
  app.register(async (scope) => {
    for (const routes of [healthRoutes, repositoryRoutes, tokenRoutes, sessionRoutes, snapshotRoutes, maintenanceRoutes, retentionRoutes, targetRoutes, jobRoutes, keyRoutes,
      peerRoutes, replicationRoutes])
      routes(scope, routeDeps)
  })
  return app
}

/** Octets pass through unread: their routes take them. JSON is read under the same bounds, then parsed. */
function addBodyParsers(app: FastifyInstance, intake: BodyIntake): void {
  const parseJson = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser([MEDIA.frames, MEDIA.idProofs, MEDIA.ids, MEDIA.groups], (_request, _payload, done) => { done(null) })
  app.addContentTypeParser('application/json', async (request: FastifyRequest) => {
    const { bodyBytes: bytes, signal } = request.passage
    if (bytes === 0) return undefined
    return intake.withinBuffer({ source: request.raw, bytes, signal }, (body) => new Promise<unknown>((resolve, reject) => {
      void parseJson(request, body.toString('utf8'), (error, value) => { if (error === null) resolve(value); else reject(error) })
    }))
  })
}

function createBoundedServer(deps: AppDeps, handler: (...args: never[]) => void): Server {
  const options: ServerOptions = {
    maxHeaderSize: CONNECTION_BOUNDS.headerBytesMax,
    headersTimeout: CONNECTION_BOUNDS.headersTimeoutMs,
    requestTimeout: CONNECTION_BOUNDS.requestTimeoutMs,
    keepAliveTimeout: CONNECTION_BOUNDS.keepAliveMs,
    connectionsCheckingInterval: CONNECTION_BOUNDS.checkEveryMs,
    insecureHTTPParser: false,
    noDelay: true,
  }
  const listener = handler as Parameters<typeof createServer>[1]
  const server = deps.tls === undefined
    ? createServer(options, listener)
    : createTlsServer({ ...options, ...deps.tls, minVersion: 'TLSv1.2' }, listener)
  server.maxConnections = CONNECTION_BOUNDS.connectionsMax
  return server
}

/** One line a request. The data path's successes are for debugging only: there are hundreds a second. */
async function logRequest(request: FastifyRequest, reply: FastifyReply): Promise<void> {
  const { endpoint, principal, bodyBytes } = request.passage
  const hot = endpoint?.octets !== undefined || endpoint?.access === 'public'
  const facts = {
    method: request.method, path: request.url.split('?')[0], status: reply.statusCode, elapsedMs: Math.round(reply.elapsedTime),
    address: request.ip, tokenId: principal?.tokenId, bodyBytes,
  }
  request.log[hot && reply.statusCode < 500 ? 'debug' : 'info'](facts, 'request')
}

/** Requests that the HTTP parser refuses never reach the application; they get the same kind of answer. */
function answerBrokenRequest(this: FastifyInstance, error: Error & { code?: string }, socket: import('node:net').Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) return
  const problem = error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? new RoostError('REQUEST_TIMEOUT', 'The request arrived too slowly.')
    : error.code === 'HPE_INVALID_EOF_STATE' ? new RoostError('BODY_TRUNCATED', 'The request ended early.')
      : new RoostError('REQUEST_MALFORMED', 'The request is not valid HTTP.')
  const { status, body } = toErrorReply(problem, 'none')
  this.log.debug({ code: body.code, parser: isErrno(error) ? error.code : undefined }, 'broken request')
  const text = JSON.stringify(body)
  const head = [
    `HTTP/1.1 ${status} Refused`, 'content-type: application/json; charset=utf-8', `content-length: ${Buffer.byteLength(text)}`,
    'connection: close',
  ].join('\r\n')
  if (socket.writable) socket.end(`${head}\r\n\r\n${text}`, () => { socket.destroy() })
  else socket.destroy()
}
