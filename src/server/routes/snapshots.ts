/** Snapshots: list, show, delete. */
import { parseSnapshotId } from '../../core/ids.js'
import { principalOf, repositoryOf } from '../gate.js'
import { parameter, serve, type Routes } from '../route-context.js'
import { LIST_LIMITS } from '../schemas.js'
import { getPermittedSnapshot, listedSource } from '../source-rules.js'

interface SnapshotsQuery { readonly after?: string; readonly limit?: string; readonly source?: string; readonly tag?: string }
const PAGE_DEFAULT = 100

export const snapshotRoutes: Routes = (app) => {
  serve(app, 'listSnapshots', async (request) => {
    const repository = repositoryOf(request)
    const { limit, source, ...rest } = request.query as SnapshotsQuery
    const only = listedSource(principalOf(request), repository, source)
    return repository.listSnapshots({
      ...rest, limit: Math.min(Number(limit ?? PAGE_DEFAULT), LIST_LIMITS.snapshotsPageMax), ...(only === undefined ? {} : { source: only }),
    })
  })
  serve(app, 'getSnapshot', async (request) => {
    const snapshotId = parseSnapshotId(parameter(request, 'snapshot'))
    const { snapshot } = await getPermittedSnapshot(principalOf(request), repositoryOf(request), ['read', 'push'], snapshotId)
    return snapshot
  })
  serve(app, 'deleteSnapshot', async (request) => {
    const repository = repositoryOf(request), snapshotId = parseSnapshotId(parameter(request, 'snapshot'))
    await getPermittedSnapshot(principalOf(request), repository, ['delete'], snapshotId)
    await repository.deleteSnapshot(snapshotId)
  })
}
