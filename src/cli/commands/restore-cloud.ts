/** roost restore --to-glance, --to-nova: a disk becomes an image, a recorded server a new one. */
import type { Command } from 'commander'
import { readFileSync } from 'node:fs'
import { openSnapshot, type SnapshotChoice } from '../../../client/browse/open-snapshot.js'
import type { UploadedImage } from '../../../client/openstack/glance-upload.js'
import type { PlannedDisk, RestoredServer } from '../../../client/openstack/restore-server.js'
import type { ServerMap } from '../../../client/openstack/server-map.js'
import type { ServerPlan } from '../../../client/openstack/server-plan.js'
import type { RepositoryClient } from '../../../client/repository-client.js'
import { isErrno } from '../../core/errors.js'
import { parseYaml } from '../../core/yaml.js'
import { argumentBytes } from '../argument-bytes.js'
import { collect, spanOption } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { formatBytes, printable } from '../format.js'
import { withCloud } from '../open-cloud.js'

export interface CloudFlags {
  readonly toGlance?: string; readonly toNova?: boolean; readonly imageProperty?: readonly string[]; readonly map?: string; readonly serverName?: string
  readonly imageId?: string; readonly dryRun?: boolean; readonly wait?: number; readonly osCloud?: string
}
interface OtherFlags { readonly disk?: string; readonly format: string; readonly target?: string; readonly toFile?: string; readonly toDevice?: string; readonly include?: readonly string[] }

const WAIT_MS_DEFAULT = 10 * 60_000
const MAP_BYTES_MAX = 1024 * 1024

export function addCloudOptions(command: Command): Command {
  return command
    .option('--to-glance <name>', 'one disk as an image in OpenStack\'s Glance (OS_* variables or clouds.yaml say where)')
    .option('--image-property <name=value>', 'of the image, over what was recorded; name= leaves it out; may be repeated', collect)
    .option('--to-nova', 'the machine as a new server in OpenStack, from the record that --nova-server saved')
    .option('--map <file>', 'with --to-nova: what flavors, networks, addresses, keys … are called there (JSON or YAML)')
    .option('--server-name <name>', 'with --to-nova: of the new server (default: as recorded)')
    .option('--image-id <id>', 'with --to-nova: boot from this image of Glance, do not upload the disk')
    .option('--dry-run', 'with --to-nova: show what would be made, and what is missing')
    .option('--wait <time>', 'with --to-nova: how long the server may take to run (default 10min)', spanOption)
    .option('--os-cloud <name>', 'which cloud of clouds.yaml (OS_CLOUD)')
}

/** Whether the flags name a cloud as the destination. @throws {UsageError} for flags that do not fit */
export function isForCloud(flags: CloudFlags & OtherFlags, path: string | undefined): boolean {
  const isNova = flags.toNova === true, isGlance = flags.toGlance !== undefined
  if (isNova && isGlance) throw new UsageError('Choose one: --to-glance NAME or --to-nova.')
  if (!isNova) requireNone('belongs to --to-nova',
    { '--map': flags.map, '--server-name': flags.serverName, '--image-id': flags.imageId, '--dry-run': flags.dryRun, '--wait': flags.wait })
  if (!isNova && !isGlance) {
    requireNone('belongs to --to-glance and --to-nova', { '--os-cloud': flags.osCloud, '--image-property': flags.imageProperty })
    return false
  }
  requireNone('and a cloud are two destinations: choose one', { '--target': flags.target, '--to-file': flags.toFile, '--to-device': flags.toDevice, '--include': flags.include })
  if (path !== undefined && flags.disk !== undefined) throw new UsageError('Name the disk once: after the colon, or with --disk.')
  if (isNova && path !== undefined) throw new UsageError('--to-nova brings the whole machine back: leave the path out; --disk says which disk it boots from.')
  if (isGlance && (flags.toGlance === '' || flags.toGlance!.length > 255)) throw new UsageError('The name of an image has 1 to 255 characters.')
  return true
}
function requireNone(why: string, flags: Readonly<Record<string, unknown>>): void {
  const odd = Object.entries(flags).find(([, value]) => value !== undefined)
  if (odd !== undefined) throw new UsageError(`${odd[0]} ${why}.`)
}
export async function restoreToCloud(context: CommandContext, client: RepositoryClient, choice: SnapshotChoice, path: string | undefined, flags: CloudFlags & OtherFlags): Promise<void> {
  const properties = parseProperties(flags.imageProperty ?? [])
  const format = flags.format === 'qcow2' ? 'qcow2' as const : 'raw' as const
  if (flags.toNova === true) await toNova(context, client, choice, { flags, format, properties, map: await readMap(flags.map) })
  else await toGlance(context, client, choice, path, { name: flags.toGlance!, format, wishes: properties, disk: flags.disk, osCloud: flags.osCloud })
}
function parseProperties(texts: readonly string[]): Record<string, string> {
  return Object.fromEntries(texts.map((text) => {
    const match = /^([A-Za-z][\w:.-]{0,254})=(.*)$/s.exec(text)
    if (match === null) throw new UsageError(`--image-property takes NAME=VALUE, not "${text}".`)
    return [match[1]!, match[2]!]
  }))
}
async function readMap(file: string | undefined): Promise<ServerMap> {
  const { EMPTY_MAP, parseServerMap } = await import('../../../client/openstack/server-map.js')
  if (file === undefined) return EMPTY_MAP
  let text: string
  try {
    text = readFileSync(argumentBytes(file), 'utf8')
  } catch (error) {
    if (!isErrno(error)) throw error
    throw new UsageError(`The mapping file ${file} cannot be read: ${error.message}`, { cause: error })
  }
  if (text.length > MAP_BYTES_MAX) throw new UsageError(`The mapping file ${file} is too long.`)
  let value: unknown
  try {
    value = parseYaml(text)
  } catch (error) {
    throw new UsageError(`The mapping file ${file} is neither JSON nor YAML: ${(error as Error).message}`, { cause: error })
  }
  return parseServerMap(value)
}

interface GlanceWish {
  readonly name: string; readonly format: 'raw' | 'qcow2'; readonly wishes: Readonly<Record<string, string>>; readonly disk: string | undefined; readonly osCloud: string | undefined
}
async function toGlance(context: CommandContext, client: RepositoryClient, choice: SnapshotChoice, path: string | undefined, { name, format, wishes, disk, osCloud }: GlanceWish): Promise<void> {
  // Here, not above: no other command needs them.
  const [{ uploadDisk }, { imageProperties }, { chooseDisk, readMachine }, { requireContentEntry }] = await Promise.all([import('../../../client/openstack/disk-upload.js'),
    import('../../../client/openstack/image-properties.js'), import('../../../client/machine/snapshot-disks.js'), import('../../../client/restore/run-restore.js')])
  const { signal } = context
  const open = await openSnapshot(client, choice, { signal })
  try {
    const machine = await readMachine(open, signal)
    if (machine.problem !== undefined) warn(context, machine.problem.message)
    if (path === undefined && disk === undefined && machine.disks.length > 1)
      throw new UsageError(`The machine has ${machine.disks.length} disks; name one with --disk: ${machine.disks.map((one, i) => `${i + 1} (${printable(one.name)})`).join(', ')}.`)
    const chosen = disk !== undefined ? chooseDisk(machine, disk) : path === undefined && machine.disks.length === 1 ? machine.disks[0]!
      : { entry: await requireContentEntry(open, path === undefined ? undefined : argumentBytes(path)) }
    const properties = imageProperties(machine.description, wishes)
    await withCloud(context, osCloud, async (cloud) => {
      const image = await uploadDisk(cloud, open, chosen, { name, format, properties }, uploadDeps(context), signal)
      tellImage(context, image, { snapshotId: open.snapshotId, format, properties })
    })
  } finally { await open.close() }
}
function uploadDeps(context: CommandContext): { clock: CommandContext['clock']; started(bytes: number): void; progress(bytes: number): void; warn(message: string): void } {
  let total: number | undefined
  return {
    clock: context.clock, started: (bytes) => { total = bytes },
    progress: (done) => context.output.progress({ done, total, unit: 'bytes', at: 'to Glance' }), warn: (message) => { warn(context, message) },
  }
}
function tellImage({ output }: CommandContext, image: UploadedImage, more: Readonly<Record<string, unknown>> = {}): void {
  output.endProgress()
  output.record({ type: 'image', ...image, ...more })
  output.line(image.id)
  output.note(`image ${printable(image.name)}: ${formatBytes(image.bytes)}${image.isVerified ? ', the same in Glance by its SHA-512' : ''}`)
}
function warn({ output }: CommandContext, message: string): void {
  output.record({ type: 'warning', message })
  output.warn(`warning: ${printable(message)}`)
}

interface NovaWish { readonly flags: CloudFlags & OtherFlags; readonly format: 'raw' | 'qcow2'; readonly properties: Readonly<Record<string, string>>; readonly map: ServerMap }
async function toNova(context: CommandContext, client: RepositoryClient, choice: SnapshotChoice, { flags, format, properties, map }: NovaWish): Promise<void> {
  const { restoreServer } = await import('../../../client/openstack/restore-server.js') // here, not above: no other command needs it
  const { output } = context
  const remains: string[] = []
  let disks: readonly PlannedDisk[] = []
  const deps = uploadDeps(context)
  try {
    const made = await withCloud(context, flags.osCloud, (cloud) => restoreServer(client, cloud, {
      ...choice, map, imageFormat: format, imageProperties: properties, isDryRun: flags.dryRun === true, waitMs: flags.wait ?? WAIT_MS_DEFAULT, clock: context.clock,
      ...(flags.serverName === undefined ? {} : { serverName: flags.serverName }), ...(flags.imageId === undefined ? {} : { imageId: flags.imageId }),
      ...(flags.disk === undefined ? {} : { bootDisk: flags.disk }),
    }, {
      progress: deps.progress, warn: deps.warn,
      onPlan: (plan, planned) => {
        disks = planned
        tellPlan(context, plan, planned, flags.imageId)
      },
      onUpload: (disk, bytes) => {
        deps.started(bytes)
        output.note(`${printable(disk.name)} goes to Glance as "${printable(disk.imageName)}"`)
      },
      onImage: (image) => {
        output.endProgress()
        output.record({ type: 'image', ...image })
        remains.push(`the image ${image.id} ("${printable(image.name)}")`)
      },
      onCreated: (serverId) => {
        output.record({ type: 'server-made', serverId })
        remains.push(`the server ${serverId}`)
      },
      onStatus: (status) => { output.note(`the server is ${printable(status)}`) },
    }, context.signal))
    if (made.serverId !== undefined) tellServer(context, made, disks)
  } catch (error) {
    output.endProgress()
    if (remains.length > 0) {
      output.record({ type: 'remains', what: remains })
      output.warn(`What was made remains: ${remains.join(', ')}. --image-id boots from an image that is there already.`)
    }
    throw error
  }
}
function tellPlan({ output }: CommandContext, plan: ServerPlan, disks: readonly PlannedDisk[], imageId: string | undefined): void {
  const { userData, ...shown } = plan
  output.record({ type: 'plan', ...shown, hasUserData: userData !== undefined, disks, ...(imageId === undefined ? {} : { imageId }) })
  const networks = plan.networks.map(({ name, fixedIp }) => `${name}${fixedIp === undefined ? '' : ` (${fixedIp})`}`).join(', ')
  const lines = [
    `server ${plan.name}: flavor ${plan.flavor?.name ?? '?'}, networks ${networks === '' ? 'none' : networks}`,
    ...(plan.keyName === undefined ? [] : [`key pair ${plan.keyName}`]), ...(plan.availabilityZone === undefined ? [] : [`availability zone ${plan.availabilityZone}`]),
    ...(plan.securityGroups.length === 0 ? [] : [`security groups ${plan.securityGroups.join(', ')}`]),
    ...disks.map((disk) => disk.isBoot && imageId !== undefined ? `boots from the image ${imageId}`
      : `${disk.isBoot ? 'boots from' : 'further disk'} ${disk.name} (${formatBytes(disk.bytes)}), as the image "${disk.imageName}"`),
  ]
  for (const line of lines) output.note(printable(line))
  for (const note of plan.notes) output.note(`note: ${printable(note)}`)
  for (const problem of plan.problems) output.warn(`missing: ${printable(problem)}`)
}
function tellServer({ output }: CommandContext, { snapshotId, serverId, images }: RestoredServer, disks: readonly PlannedDisk[]): void {
  output.record({ type: 'server', serverId, snapshotId, images: images.map(({ id }) => id) })
  output.line(serverId!)
  for (const disk of disks) {
    const image = images.find(({ name }) => name === disk.imageName)
    if (disk.isBoot || image === undefined) continue
    output.note(`${printable(disk.name)} is the image ${image.id}. To attach it:\n` +
      `  openstack volume create --image ${image.id} --size ${Math.ceil(disk.bytes / 1024 ** 3)} ${printable(disk.imageName)}\n` +
      `  openstack server add volume ${serverId} ${printable(disk.imageName)}`)
  }
}
