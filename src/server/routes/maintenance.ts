/** Statistics, check and rebuild. */
import type { FastifyRequest } from 'fastify'
import type { MaintenanceEvent } from '../../core/messages.js'
import type { CheckOptions } from '../../repo/repository.js'
import { describeCause } from '../../core/errors.js'
import { toErrorReply } from '../error-handler.js'
import { repositoryOf } from '../gate.js'
import { encodeEventLines, openReplyStream } from '../reply-stream.js'
import { serve, type Routes } from '../route-context.js'

export const maintenanceRoutes: Routes = (app, { clock }) => {
  serve(app, 'stats', async (request) => repositoryOf(request).stats())
  serve(app, 'check', async (request) =>
    openReplyStream(eventLines(request, repositoryOf(request).check(request.body as CheckOptions, request.passage.signal)), clock))
  serve(app, 'rebuild', async (request) =>
    openReplyStream(eventLines(request, repositoryOf(request).rebuild(request.passage.signal)), clock))
}

export function eventLines(request: FastifyRequest, events: AsyncIterable<MaintenanceEvent>): AsyncIterable<Buffer> {
  return encodeEventLines(events, (error) => {
    request.log.error({ cause: describeCause(error), err: error }, 'maintenance failed')
    return toErrorReply(error, request.id, true).body // an administrator asked
  })
}
