/** A recorded server comes back as a new one: its disks as images in Glance, the server by its record and a mapping. Nothing is made before
 *  everything that the record names is found.
 */
import type { Clock } from '../../src/core/clock.js'
import type { Cloud } from '../../src/openstack/cloud.js'
import { CloudError, hasCloudCode } from '../../src/openstack/cloud-error.js'
import { openSnapshot, type SnapshotChoice } from '../browse/open-snapshot.js'
import type { ReadingClient } from '../repository-client.js'
import { chooseDisk, readMachine, type SnapshotDisk, type SnapshotMachine } from '../machine/snapshot-disks.js'
import { createServer } from './create-server.js'
import { uploadDisk } from './disk-upload.js'
import type { UploadDeps, UploadedImage } from './glance-upload.js'
import { imageProperties, minDiskGiB } from './image-properties.js'
import { text } from './json-parts.js'
import { planServer, type ServerPlan } from './server-plan.js'
import type { ServerMap } from './server-map.js'

export interface RestoreServerOptions extends SnapshotChoice {
  readonly map: ServerMap
  readonly serverName?: string
  /** Of a disk that is in Glance already: nothing is uploaded. */
  readonly imageId?: string
  readonly imageFormat: 'raw' | 'qcow2'
  readonly imageProperties: Readonly<Record<string, string>>
  /** The disk to boot from, by number or name; the first one else. */
  readonly bootDisk?: string
  readonly isDryRun: boolean
  readonly waitMs: number
  readonly clock: Clock
}
export interface RestoreServerEvents extends Omit<UploadDeps, 'clock'> {
  onPlan(plan: ServerPlan, disks: readonly PlannedDisk[]): void
  onUpload(disk: PlannedDisk, bytes: number): void
  onImage(image: UploadedImage): void
  onCreated(serverId: string): void
  onStatus(status: string): void
}
export interface PlannedDisk { readonly name: string; readonly bytes: number; readonly imageName: string; readonly isBoot: boolean }
/** What was made; on failure, what of it remains. */
export interface RestoredServer { readonly snapshotId: string; readonly serverId: string | undefined; readonly images: readonly UploadedImage[] }

/** Returns without a server for a dry run. @throws {CloudError} PLAN_UNRESOLVED when anything does not resolve, after onPlan told what; what making
 *  images and servers throws: what was made until then was told by events and stays; `signal.reason` */
export async function restoreServer(client: ReadingClient, cloud: Cloud, options: RestoreServerOptions, events: RestoreServerEvents, signal: AbortSignal): Promise<RestoredServer> {
  const { clock } = options
  const open = await openSnapshot(client, options, { signal })
  try {
    const machine = await readMachine(open, signal)
    const nova = machine.description?.nova
    if (nova === undefined) throw machine.problem ?? new CloudError('PLAN_UNRESOLVED',
      'The snapshot has no record of a Nova server: it was made without --nova-server, or Nova was away. `roost restore --to-glance` brings its disks back as images.')
    const disks = orderDisks(machine, options.bootDisk)
    const plan = await planServer(cloud, nova, { map: options.map, bootBytes: disks[0]!.entry.content!.bytes,
      ...(options.serverName === undefined ? {} : { serverName: options.serverName }) }, signal)
    const planned = disks.map(({ name, entry }, i) => ({ name, bytes: entry.content!.bytes, isBoot: i === 0, imageName: i === 0 ? plan.name : `${plan.name}-${name}` }))
    const whole = { ...plan, problems: [...plan.problems, ...await imageProblems(cloud, options.imageId, disks[0]!, signal)] }
    events.onPlan(whole, planned)
    if (whole.problems.length > 0) throw unresolved(whole.problems.length)
    if (options.isDryRun) return { snapshotId: open.snapshotId, serverId: undefined, images: [] }

    const properties = imageProperties(machine.description, options.imageProperties)
    const images: UploadedImage[] = []
    const upload = async (i: number): Promise<UploadedImage> => {
      const image = await uploadDisk(cloud, open, disks[i]!, { name: planned[i]!.imageName, format: options.imageFormat, properties },
        { ...events, clock, started: (bytes) => { events.onUpload(planned[i]!, bytes) } }, signal)
      images.push(image)
      events.onImage(image)
      return image
    }
    const imageId = options.imageId ?? (await upload(0)).id
    for (let i = 1; i < disks.length; i++) await upload(i)
    const serverId = await createServer(cloud, whole, imageId, { clock, waitMs: options.waitMs, onCreated: events.onCreated, onStatus: events.onStatus }, signal)
    return { snapshotId: open.snapshotId, serverId, images }
  } finally {
    await open.close()
  }
}
const unresolved = (count: number): CloudError =>
  new CloudError('PLAN_UNRESOLVED', `${count === 1 ? 'One thing' : `${count} things`} of the record cannot be had in this cloud (see above); nothing was made.`)
/** The one to boot from first. */
function orderDisks(machine: SnapshotMachine, bootDisk: string | undefined): SnapshotDisk[] {
  const [first, ...rest] = [...machine.disks].sort((a, b) => bootOrder(a) - bootOrder(b))
  if (first === undefined) throw new CloudError('PLAN_UNRESOLVED', 'The snapshot holds no disk image at its top.')
  if (bootDisk === undefined) return [first, ...rest]
  const boot = chooseDisk(machine, bootDisk)
  return [boot, ...[first, ...rest].filter((disk) => disk !== boot)]
}
/** Without an index, in the machine's order: sorting is stable. */
const bootOrder = ({ description }: SnapshotDisk): number => description?.bootIndex ?? Number.MAX_SAFE_INTEGER

async function imageProblems(cloud: Cloud, imageId: string | undefined, boot: SnapshotDisk, signal: AbortSignal): Promise<string[]> {
  if (!await cloud.has('image', signal)) return ['This cloud\'s catalog has no image service.']
  if (imageId === undefined) return []
  try {
    const image = await cloud.get('image', `/images/${encodeURIComponent(imageId)}`, signal)
    if (text(image['status']) !== 'active') return [`The image ${imageId} is not active but ${text(image['status']) ?? '?'}.`]
    const virtual = image['virtual_size']
    return typeof virtual === 'number' && minDiskGiB(virtual) > minDiskGiB(boot.entry.content!.bytes) ? [`The image ${imageId} is larger than the disk of the snapshot: is it another one's?`] : []
  } catch (error) {
    if (hasCloudCode(error, 'CLOUD_UNKNOWN')) return [`There is no image ${imageId} that this user may see.`]
    throw error
  }
}
