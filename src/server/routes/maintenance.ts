/** Statistics, collection, check and rebuild. */
import type { FastifyRequest } from 'fastify'
import type { Clock } from '../../core/clock.js'
import { describeCause } from '../../core/errors.js'
import type { JobKind, JobOptions, MaintenanceEvent } from '../../core/messages.js'
import { toErrorReply } from '../error-handler.js'
import { repositoryOf } from '../gate.js'
import { encodeEventLines, openReplyStream } from '../reply-stream.js'
import { serve, type RouteDeps, type Routes } from '../route-context.js'

export const maintenanceRoutes: Routes = (app, deps) => {
  serve(app, 'stats', async (request) => repositoryOf(request).stats())
  serve(app, 'gc', async (request) => streamJob(request, deps, 'gc', request.body as JobOptions))
  serve(app, 'check', async (request) => streamJob(request, deps, 'check', request.body as JobOptions))
  serve(app, 'rebuild', async (request) => streamJob(request, deps, 'rebuild', {}))
}

/** Starts a run and answers with its events. */
export function streamJob(request: FastifyRequest, { jobs, clock }: RouteDeps, kind: JobKind, options: JobOptions): Promise<NodeJS.ReadableStream> {
  const { signal } = request.passage
  const run = jobs.start({ repository: repositoryOf(request), kind, options, trigger: 'hand' }, signal)
  return streamEvents(request, run.watch(signal), clock)
}
/** @param toOperator an administrator asks: what targets say is said on */
export function streamEvents(request: FastifyRequest, events: AsyncIterable<MaintenanceEvent>, clock: Clock, toOperator = true): Promise<NodeJS.ReadableStream> {
  return openReplyStream(encodeEventLines(events, (error) => {
    request.log.error({ cause: describeCause(error), err: error }, 'maintenance failed')
    return toErrorReply(error, request.id, toOperator).body
  }), clock)
}
