/** Liveness, readiness, and the description of the API. */
import { RoostError } from '../../core/errors.js'
import { describeApi } from '../openapi.js'
import { serve, type Routes } from '../route-context.js'

export const healthRoutes: Routes = (app, deps) => {
  const description = describeApi()
  serve(app, 'health', async () => ({ status: 'alive' }))
  serve(app, 'ready', async () => {
    if (deps.isDraining()) throw new RoostError('SERVER_DRAINING', 'The server is shutting down.')
    deps.host.list() // throws when the repositories are closed
    return { status: 'ready' }
  })
  serve(app, 'openapi', async () => description)
}
