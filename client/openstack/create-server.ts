/** Makes a server by a resolved plan and waits until it runs. */
import type { Clock } from '../../src/core/clock.js'
import type { Cloud } from '../../src/openstack/cloud.js'
import { CloudError, hasCloudCode } from '../../src/openstack/cloud-error.js'
import { record, text } from './json-parts.js'
import { serverBody, type ServerPlan } from './server-plan.js'

export interface CreateDeps {
  readonly clock: Clock
  readonly waitMs: number
  /** Nova took the request: from here on there is a server. */
  onCreated(serverId: string): void
  onStatus?(status: string): void
}
const LOOK_MS = 2_000

/** @throws {CloudError} what Nova refuses; SERVER_FAILED, with Nova's own fault, when it does not come to run in time; `signal.reason` */
export async function createServer(cloud: Cloud, plan: ServerPlan, imageId: string, deps: CreateDeps, signal: AbortSignal): Promise<string> {
  const made = record((await cloud.ask('compute', { method: 'POST', path: '/servers', json: serverBody(plan, imageId), signal }))?.['server'])
  const id = text(made['id'])
  if (id === undefined) throw new CloudError('CLOUD_REFUSED', 'Nova took the new server and did not say which it is.')
  deps.onCreated(id)
  const untilMs = deps.clock.monotonicMs() + deps.waitMs
  for (let status = ''; ;) {
    const server = await lookAt(cloud, id, signal)
    const now = text(server['status']) ?? '?'
    if (now !== status) deps.onStatus?.(now)
    status = now
    if (status === 'ACTIVE') return id
    if (status === 'ERROR') throw new CloudError('SERVER_FAILED', `Nova made the server and could not start it: ${text(record(server['fault'])['message']) ?? 'it gives no reason'}`)
    if (deps.clock.monotonicMs() >= untilMs)
      throw new CloudError('SERVER_FAILED', `The server has the status ${status} after ${Math.round(deps.waitMs / 1000)} s; Nova may still be at work on it.`)
    await deps.clock.sleep(LOOK_MS, signal)
  }
}
async function lookAt(cloud: Cloud, id: string, signal: AbortSignal): Promise<Readonly<Record<string, unknown>>> {
  try {
    return record((await cloud.get('compute', `/servers/${encodeURIComponent(id)}`, signal))['server'])
  } catch (error) {
    if (hasCloudCode(error, 'CLOUD_UNKNOWN')) throw new CloudError('SERVER_FAILED', 'The new server was deleted while it started.', {}, { cause: error })
    throw error
  }
}
