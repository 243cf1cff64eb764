/** Makes a backup visible in Nova: the server is locked with a reason, or, where it may not be, marked in its metadata; and undone.
 *
 *  A lock keeps the server's own project from changing it under the backup; administrators are not held. Whose lock it is says the reason only,
 *  so it is read before anything is undone: what somebody else placed stays. Nova answers a second lock by the same project with success and
 *  changes nothing, so the reason is read back: of two runs that begin at once, one finds the other's.
 */
import type { Cloud, Json } from '../../src/openstack/cloud.js'
import { CloudError, hasCloudCode } from '../../src/openstack/cloud-error.js'
import { record, text, textMap } from './json-parts.js'
import { formatMark, judgeMark, METADATA_KEY, parseMark, type RunMark } from './run-mark.js'

export type MarkWish = 'lock' | 'metadata' | 'none'
/** What was placed; `none`, with a warning, where nothing could be. */
export interface PlacedMark { readonly kind: MarkWish; readonly warnings: readonly string[] }

const LOCK_REASON_SINCE = 73

export interface MarkOptions {
  readonly wish: MarkWish
  /** A mark that nobody here can judge is taken for one of a dead run. */
  readonly takesOver: boolean
  /** From now on the mark may be there, whatever comes of the call. */
  onPlacing(): void
}

/** Placing one removes those of dead runs, also where the wish is `none`.
 *  @throws {CloudError} SERVER_MARKED while another run goes on; what Nova throws for the server itself */
export async function placeMark(cloud: Cloud, serverId: string, mark: RunMark, { wish, takesOver, onPlacing }: MarkOptions, signal: AbortSignal): Promise<PlacedMark> {
  const warnings: string[] = []
  const server = await readMarked(cloud, serverId, signal)
  await clearDeadMarks(cloud, server, mark, takesOver, warnings, signal)
  const own = formatMark(mark)
  if (wish === 'none') return { kind: 'none', warnings }
  if (wish === 'lock') {
    const why = await tryLock(cloud, server, own, onPlacing, signal)
    if (why === undefined) return { kind: 'lock', warnings }
    warnings.push(`The server is not locked for the backup: ${why}`)
  }
  onPlacing()
  try {
    await cloud.ask('compute', { method: 'POST', path: `/servers/${server.id}/metadata`, json: { metadata: { [METADATA_KEY]: own } }, isRepeatable: true, signal })
  } catch (error) {
    if (!isRefusal(error)) throw error
    warnings.push(`The server is not marked for the backup, so it is not to be seen in Nova: ${error.message}`)
    return { kind: 'none', warnings }
  }
  const other = parseMark((await readMarked(cloud, serverId, signal)).metadataMark)
  if (other !== undefined && other.run !== mark.run) throw marked(other, 'alive')
  return { kind: 'metadata', warnings }
}
/** Takes back what a run placed, whether Nova ever acknowledged it or not. @throws {CloudError} when Nova does not do it */
export async function removeMark(cloud: Cloud, serverId: string, own: string, signal: AbortSignal): Promise<void> {
  let server: MarkedServer
  try {
    server = await readMarked(cloud, serverId, signal)
  } catch (error) {
    if (hasCloudCode(error, 'CLOUD_UNKNOWN')) return // deleted meanwhile, with its mark
    throw error
  }
  if (server.lockReason === own) await unlock(cloud, server.id, signal)
  if (server.metadataMark === own) await deleteMetadata(cloud, server.id, signal)
}

interface MarkedServer { readonly id: string; isLocked: boolean; lockReason: string | undefined; readonly metadataMark: string | undefined; readonly knowsReasons: boolean }
async function readMarked(cloud: Cloud, serverId: string, signal: AbortSignal): Promise<MarkedServer> {
  const [, minor] = await cloud.microversion(signal)
  const server: Json = record((await cloud.get('compute', `/servers/${encodeURIComponent(serverId)}`, signal))['server'])
  return { id: encodeURIComponent(text(server['id']) ?? serverId), isLocked: server['locked'] === true, lockReason: text(server['locked_reason']),
    metadataMark: textMap(server['metadata'])[METADATA_KEY], knowsReasons: minor >= LOCK_REASON_SINCE }
}
/** Removes what dead runs left behind; `server` is changed to what it is then. */
async function clearDeadMarks(cloud: Cloud, server: MarkedServer, me: RunMark, takesOver: boolean, warnings: string[], signal: AbortSignal): Promise<void> {
  for (const [where, found] of [['lock', server.lockReason], ['metadata', server.metadataMark]] as const) {
    const mark = parseMark(found)
    if (mark === undefined) continue
    const verdict = judgeMark(mark, me.process)
    if (verdict === 'alive' || (verdict === 'unknown' && !takesOver)) throw marked(mark, verdict)
    const which = `The ${where === 'lock' ? 'lock' : 'mark in the metadata'} of a backup that did not end (on ${mark.host}, begun ${mark.since})`
    try {
      if (where === 'lock') {
        await unlock(cloud, server.id, signal)
        server.isLocked = false
        server.lockReason = undefined
      } else await deleteMetadata(cloud, server.id, signal)
      warnings.push(`${which} was removed.`)
    } catch (error) {
      if (!isRefusal(error)) throw error
      warnings.push(`${which} could not be removed: ${error.message}`)
    }
  }
}
/** Undefined when the lock is ours; else why not. */
async function tryLock(cloud: Cloud, server: MarkedServer, reason: string, onPlacing: () => void, signal: AbortSignal): Promise<string | undefined> {
  if (!server.knowsReasons) return 'this Nova takes no reason with a lock (before microversion 2.73).'
  if (server.isLocked) return `somebody else's lock is on it${server.lockReason === undefined ? '' : ` ("${server.lockReason}")`}, which stays.`
  onPlacing()
  try {
    await cloud.ask('compute', { method: 'POST', path: `/servers/${server.id}/action`, json: { lock: { locked_reason: reason } }, isRepeatable: true, signal })
  } catch (error) {
    if (!isRefusal(error)) throw error
    return error.message
  }
  const { lockReason } = await readMarked(cloud, server.id, signal)
  if (lockReason === reason) return undefined
  const other = parseMark(lockReason)
  if (other !== undefined) throw marked(other, 'alive')
  return 'somebody else locked it in the same moment.'
}
async function unlock(cloud: Cloud, id: string, signal: AbortSignal): Promise<void> {
  await cloud.ask('compute', { method: 'POST', path: `/servers/${id}/action`, json: { unlock: null }, isRepeatable: true, signal })
}
async function deleteMetadata(cloud: Cloud, id: string, signal: AbortSignal): Promise<void> {
  try {
    await cloud.ask('compute', { method: 'DELETE', path: `/servers/${id}/metadata/${METADATA_KEY}`, signal })
  } catch (error) {
    if (!hasCloudCode(error, 'CLOUD_UNKNOWN')) throw error
  }
}

function marked({ host, since, run, process }: RunMark, verdict: 'alive' | 'unknown'): CloudError {
  const what = `A backup of this server, begun ${since} on ${host} (run ${run}, process ${process.pid}),`
  return new CloudError('SERVER_MARKED', verdict === 'alive' ? `${what} is under way.`
    : `${what} has not ended as far as Nova knows, and whether it still runs cannot be seen from here. If it does not, say --nova-take-over.`)
}
const isRefusal = (error: unknown): error is CloudError => hasCloudCode(error, 'CLOUD_REFUSED') || hasCloudCode(error, 'CLOUD_CONFLICT')
