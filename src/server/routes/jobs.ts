/** Runs of maintenance, and the jobs of the configuration that start them. */
import type { JobsReply } from '../../core/messages.js'
import { repositoryOf } from '../gate.js'
import { parameter, serve, type Routes } from '../route-context.js'
import { streamEvents } from './maintenance.js'

export const jobRoutes: Routes = (app, { jobs, scheduler, clock }) => {
  serve(app, 'listJobs', async (request): Promise<JobsReply> => {
    const { name } = repositoryOf(request)
    return { jobs: await scheduler.jobsOf(name), runs: await jobs.runsOf(name) }
  })
  serve(app, 'getJob', async (request) => jobs.find(repositoryOf(request).name, parameter(request, 'job')))
  serve(app, 'runJob', async (request) => scheduler.runNow(repositoryOf(request), parameter(request, 'job')).info())
  serve(app, 'cancelJob', async (request) => jobs.cancel(repositoryOf(request).name, parameter(request, 'job')))
  serve(app, 'watchJob', async (request) => {
    const { name } = repositoryOf(request), { signal } = request.passage
    return streamEvents(request, await jobs.watch(name, parameter(request, 'job'), signal), clock)
  })
}
