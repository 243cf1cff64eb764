/** Repositories of this server: list, show, create, attach. */
import { RoostError } from '../../core/errors.js'
import type { AttachRepositoryRequest, CreateRepositoryRequest, RepositoryInfo } from '../../core/messages.js'
import type { Repository } from '../../repo/repository.js'
import { hasAnyScope, isAdministrator } from '../authorize.js'
import { principalOf, repositoryOf } from '../gate.js'
import { parameter, serve, type Routes } from '../route-context.js'
import type { Principal } from '../token-store.js'

export const repositoryRoutes: Routes = (app, { host }) => {
  serve(app, 'listRepositories', async (request) => {
    const principal = principalOf(request)
    return host.list().filter(({ name }) => hasAnyScope(principal, name)).map((repository) => describeTo(principal, repository))
  })
  serve(app, 'getRepository', async (request) => describeTo(principalOf(request), repositoryOf(request)))
  serve(app, 'createRepository', async (request) => {
    const repository = await host.create(request.body as CreateRepositoryRequest)
    return repository.info()
  })
  serve(app, 'attachRepository', async (request) => {
    const wanted = request.body as AttachRepositoryRequest
    if (wanted.name !== parameter(request, 'repository'))
      throw new RoostError('REQUEST_MALFORMED', 'The name in the path and in the body must be the same.')
    const repository = await host.attach(wanted)
    return repository.info()
  })
}

/** Where a repository's bytes are is for its administrators. */
function describeTo(principal: Principal, repository: Repository): RepositoryInfo {
  const info = repository.info()
  return isAdministrator(principal, repository.name) ? info : { ...info, targets: [] }
}
