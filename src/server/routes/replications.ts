/** The replications that this server runs, and their figures for monitoring. */
import type { SetReplicationRequest } from '../../core/peer-messages.js'
import { repositoryOf } from '../gate.js'
import { metricsText } from '../replications/metrics.js'
import { parameter, serve, type Routes } from '../route-context.js'
import { streamJob } from './maintenance.js'

export const replicationRoutes: Routes = (app, deps) => {
  const { replicator, jobs, clock } = deps
  serve(app, 'listReplications', async (request) => {
    const repository = repositoryOf(request)
    const jobOf = (name: string): string | undefined => jobs.running.find(({ facts }) =>
      facts.repository === repository.name && facts.kind === 'replicate' && (facts.options['replication'] ?? name) === name)?.facts.id
    return replicator.infos(repository, jobOf, (request.query as { refresh?: string }).refresh === '1', request.passage.signal)
  })
  serve(app, 'setReplication', async (request) => {
    await replicator.set(repositoryOf(request), parameter(request, 'replication'), request.body as SetReplicationRequest, request.passage.signal)
  })
  serve(app, 'removeReplication', async (request) => { await replicator.remove(repositoryOf(request).name, parameter(request, 'replication')) })
  serve(app, 'runReplication', async (request) => {
    const name = parameter(request, 'replication')
    replicator.requireKnown(repositoryOf(request).name, name)
    return streamJob(request, deps, 'replicate', { replication: name })
  })
  serve(app, 'metrics', async () => metricsText(replicator.figures(), clock.now()))
}
