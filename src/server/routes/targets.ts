/** The targets of a repository, and its settings that concern them. */
import type { AddTargetRequest, ChangeRepositoryRequest, ChangeTargetRequest } from '../../core/messages.js'
import { repositoryOf } from '../gate.js'
import { parameter, serve, type Routes } from '../route-context.js'
import { streamJob } from './maintenance.js'

export const targetRoutes: Routes = (app, deps) => {
  serve(app, 'changeRepository', async (request) => repositoryOf(request).change(request.body as ChangeRepositoryRequest))
  serve(app, 'listTargets', async (request) => repositoryOf(request).listTargets())
  serve(app, 'addTarget', async (request) => repositoryOf(request).addTarget(request.body as AddTargetRequest))
  serve(app, 'changeTarget', async (request) => repositoryOf(request).changeTarget(parameter(request, 'target'), request.body as ChangeTargetRequest))
  serve(app, 'removeTarget', async (request) => repositoryOf(request).removeTarget(parameter(request, 'target')))
  serve(app, 'backfillTarget', async (request) => streamJob(request, deps, 'backfill', { target: parameter(request, 'target') }))
  serve(app, 'drainTarget', async (request) => streamJob(request, deps, 'drain', { target: parameter(request, 'target') }))
}
