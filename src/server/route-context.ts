/** What routes are given, and how one is registered: always from the table of endpoints. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Clock } from '../core/clock.js'
import type { Semaphore } from '../core/concurrency.js'
import type { RepositoryHost } from '../repo/repository-host-contract.js'
import type { BodyIntake } from './body-intake.js'
import { ENDPOINTS, type Endpoint, type EndpointName } from './endpoints.js'
import type { JobRegistry } from './jobs/job-registry.js'
import type { Replicator } from './replications/replicator.js'
import type { Scheduler } from './jobs/scheduler.js'
import type { TokenStore } from './token-store.js'

export interface RouteDeps {
  readonly host: RepositoryHost
  readonly tokens: TokenStore
  readonly clock: Clock
  readonly intake: BodyIntake
  /** Places of streamed replies, over all sessions. */
  readonly readers: Semaphore
  readonly isDraining: () => boolean
  readonly jobs: JobRegistry
  readonly scheduler: Scheduler
  readonly replicator: Replicator
}
export type Routes = (app: FastifyInstance, deps: RouteDeps) => void

/** Registers one endpoint: its schema, its rule of access, its status and media type. */
export function serve(app: FastifyInstance, name: EndpointName,
  handler: (request: FastifyRequest, reply: FastifyReply) => Promise<unknown>): void {
  const endpoint: Endpoint = ENDPOINTS[name]
  app.route({
    method: endpoint.method,
    url: endpoint.path,
    config: { endpoint },
    schema: {
      ...(endpoint.json === undefined ? {} : { body: endpoint.json }),
      ...(endpoint.query === undefined ? {} : { querystring: endpoint.query }),
    },
    handler: async (request, reply) => {
      const answer = await handler(request, reply)
      reply.code(endpoint.status)
      if (endpoint.status === 204) return reply.send()
      return reply.type(typeof endpoint.reply === 'string' ? endpoint.reply : 'application/json; charset=utf-8').send(answer)
    },
  })
}

export const parameter = (request: FastifyRequest, name: string): string => (request.params as Record<string, string>)[name]!
