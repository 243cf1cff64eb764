/** Retention: policies, runs of them, protected and locked snapshots. */
import type { FastifyRequest } from 'fastify'
import { ERROR_CATALOGUE } from '../../core/errors.js'
import type { ForgetRequest, LockSnapshotRequest, MaintenanceEvent, SetPolicyRequest } from '../../core/messages.js'
import { parseSnapshotId, type SnapshotId } from '../../core/ids.js'
import { forbidden, isAdministrator, requireSource, sourcesWithin } from '../authorize.js'
import { principalOf, repositoryOf } from '../gate.js'
import { parameter, serve, type Routes } from '../route-context.js'
import { getPermittedSnapshot } from '../source-rules.js'
import { streamEvents } from './maintenance.js'

const FORGETTING = ['delete', 'admin'] as const

export const retentionRoutes: Routes = (app, deps) => {
  serve(app, 'getRetention', async (request) => repositoryOf(request).retention())
  serve(app, 'setPolicy', async (request) => repositoryOf(request).setPolicy(request.body as SetPolicyRequest))
  serve(app, 'forget', async (request) => {
    const wanted = request.body as ForgetRequest
    requireReach(request, wanted.source)
    const repository = repositoryOf(request), { signal } = request.passage
    const isTold = isAdministrator(principalOf(request), repository.name)
    const events = deps.jobs.start({ repository, kind: 'forget', options: { ...wanted }, trigger: 'hand' }, signal).watch(signal)
    return streamEvents(request, isTold ? events : withoutOperators(events), deps.clock, isTold)
  })
  serve(app, 'protectSnapshot', async (request) => {
    await getPermittedSnapshot(principalOf(request), repositoryOf(request), FORGETTING, snapshotOf(request))
    await repositoryOf(request).protectSnapshot(snapshotOf(request), true)
  })
  serve(app, 'unprotectSnapshot', async (request) => { await repositoryOf(request).protectSnapshot(snapshotOf(request), false) })
  serve(app, 'lockSnapshot', async (request) => { await repositoryOf(request).lockSnapshot(snapshotOf(request), request.body as LockSnapshotRequest) })
}

/** What targets say is for administrators. */
async function* withoutOperators(events: AsyncIterable<MaintenanceEvent>): AsyncIterable<MaintenanceEvent> {
  for await (const event of events)
    yield event.type === 'problem' && ERROR_CATALOGUE[event.code].audience === 'operator' ? { ...event, message: 'The repository cannot do this now; its administrator sees why.' } : event
}
const snapshotOf = (request: FastifyRequest): SnapshotId => parseSnapshotId(parameter(request, 'snapshot'))

/** A token that is limited to sources must name one of them. */
function requireReach(request: FastifyRequest, source: string | undefined): void {
  const principal = principalOf(request), { name } = repositoryOf(request)
  if (source !== undefined) requireSource(principal, name, FORGETTING, source)
  else if (sourcesWithin(principal, name, FORGETTING) !== 'all') throw forbidden(FORGETTING)
}
