/** The targets of a repository, and its settings that concern them. */
import type { AddTargetRequest, ChangeRepositoryRequest, ChangeTargetRequest } from '../../core/messages.js'
import { repositoryOf } from '../gate.js'
import { openReplyStream } from '../reply-stream.js'
import { parameter, serve, type Routes } from '../route-context.js'
import { eventLines } from './maintenance.js'

export const targetRoutes: Routes = (app, { clock }) => {
  serve(app, 'changeRepository', async (request) => repositoryOf(request).change(request.body as ChangeRepositoryRequest))
  serve(app, 'listTargets', async (request) => repositoryOf(request).listTargets())
  serve(app, 'addTarget', async (request) => repositoryOf(request).addTarget(request.body as AddTargetRequest))
  serve(app, 'changeTarget', async (request) => repositoryOf(request).changeTarget(parameter(request, 'target'), request.body as ChangeTargetRequest))
  serve(app, 'removeTarget', async (request) => repositoryOf(request).removeTarget(parameter(request, 'target')))
  serve(app, 'backfillTarget', async (request) =>
    openReplyStream(eventLines(request, repositoryOf(request).backfillTarget(parameter(request, 'target'), request.passage.signal)), clock))
  serve(app, 'drainTarget', async (request) =>
    openReplyStream(eventLines(request, repositoryOf(request).drainTarget(parameter(request, 'target'), request.passage.signal)), clock))
}
