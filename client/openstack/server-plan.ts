/** What a recorded server becomes in a cloud: every name that the record has is looked up there, before anything is created.
 *
 *  The record of the old server, its image and its ports need not exist any more. What does not resolve is gathered, so that one run tells all.
 */
import type { Cloud, Json } from '../../src/openstack/cloud.js'
import { CloudError, hasCloudCode } from '../../src/openstack/cloud-error.js'
import type { NovaDescription } from '../machine/machine-description.js'
import { minDiskGiB } from './image-properties.js'
import { record, records, text, whole } from './json-parts.js'
import { resolveNetworks, type PlannedNetwork } from './network-plan.js'
import { METADATA_KEY } from './run-mark.js'
import type { ServerMap } from './server-map.js'

export interface ServerPlan {
  readonly name: string
  readonly flavor: { readonly id: string; readonly name: string } | undefined
  readonly networks: readonly PlannedNetwork[]
  readonly keyName: string | undefined
  readonly securityGroups: readonly string[]
  readonly availabilityZone: string | undefined
  readonly metadata: Readonly<Record<string, string>>
  readonly tags: readonly string[]
  readonly configDrive: boolean
  readonly userData: string | undefined
  readonly description: string | undefined
  readonly hostname: string | undefined
  /** What will be other than it was. */
  readonly notes: readonly string[]
  /** What cannot be: nothing is created while there is any. */
  readonly problems: readonly string[]
}
export interface PlanOptions {
  readonly map: ServerMap
  readonly serverName?: string
  /** Of the disk that it boots from. */
  readonly bootBytes: number
}
/** Collects what there is to say. */
export class PlanFindings {
  readonly notes: string[] = []
  readonly problems: string[] = []
}

const FLAVORS_PAGE = 500
const FLAVORS_MAX = 10_000
const SUGGESTIONS_MAX = 5

/** @throws {CloudError} what Nova and Neutron throw when they cannot be asked; `signal.reason` */
export async function planServer(cloud: Cloud, nova: NovaDescription, options: PlanOptions, signal: AbortSignal): Promise<ServerPlan> {
  const findings = new PlanFindings()
  const [, minor] = await cloud.microversion(signal)
  const { map } = options
  const flavor = await resolveFlavor(cloud, nova, options, findings, signal)
  const network = await resolveNetworks(cloud, nova, map, findings, signal)
  const keyName = await resolveKey(cloud, nova.keyName, map, findings, signal)
  const availabilityZone = await resolveZone(cloud, nova.availabilityZone, map, findings, signal)
  if (network.networks.length === 0 && minor < 37) findings.problems.push('This Nova makes no servers without networks (before microversion 2.37): map a network.')
  if (nova.tags.length > 0 && minor < 52) findings.notes.push('Tags are left out: this Nova takes none for a new server (before microversion 2.52).')
  for (const { id, device } of nova.volumes) findings.notes.push(
    `The volume ${id}${device === undefined ? '' : ` (${device})`} was attached: it is not made anew. Where it still exists, \`openstack server add volume\` attaches it.`)
  if (nova.userData === undefined) findings.notes.push('The record has no user data; where the machine needs some at its first start, it is in the disk already.')
  const { [METADATA_KEY]: _mark, ...metadata } = nova.metadata
  const hostname = text(nova.server['OS-EXT-SRV-ATTR:hostname'])
  return {
    name: options.serverName ?? text(nova.server['name']) ?? nova.serverId, flavor, ...network, keyName, availabilityZone, metadata,
    tags: minor < 52 ? [] : nova.tags, configDrive: nova.configDrive === true, userData: nova.userData, description: minor < 19 ? undefined : text(nova.server['description']),
    hostname: minor < 90 || options.serverName !== undefined ? undefined : hostname, notes: findings.notes, problems: findings.problems,
  }
}

async function resolveFlavor(cloud: Cloud, nova: NovaDescription, { map, bootBytes }: PlanOptions, findings: PlanFindings,
  signal: AbortSignal): Promise<ServerPlan['flavor']> {
  const recorded = nova.flavor
  const wanted = recorded.name === undefined ? undefined : map.flavors.get(recorded.name) ?? recorded.name
  const all = await listFlavors(cloud, signal)
  const needsGiB = minDiskGiB(bootBytes)
  const found = wanted === undefined ? undefined : all.find(({ name }) => name === wanted) ?? all.find(({ id }) => id === wanted)
  if (found === undefined) {
    const fitting = all.filter((one) => one.vcpus >= recorded.vcpus && one.ramMiB >= recorded.ramMiB && (one.diskGiB === 0 || one.diskGiB >= needsGiB))
      .sort((a, b) => a.ramMiB - b.ramMiB || a.vcpus - b.vcpus || a.diskGiB - b.diskGiB).slice(0, SUGGESTIONS_MAX)
    findings.problems.push(`This cloud has no flavor "${wanted ?? '?'}" (${recorded.vcpus} processors, ${recorded.ramMiB} MiB, disk ${recorded.diskGiB} GiB): map it under "flavors"; ` +
      (fitting.length === 0 ? 'none of those that there are is large enough.' : `large enough are ${fitting.map(({ name }) => name).join(', ')}.`))
    return undefined
  }
  if (found.diskGiB !== 0 && found.diskGiB < needsGiB)
    findings.problems.push(`The flavor "${found.name}" has a disk of ${found.diskGiB} GiB, and the image needs ${needsGiB} GiB: map another one under "flavors".`)
  if (found.vcpus !== recorded.vcpus || found.ramMiB !== recorded.ramMiB || found.diskGiB !== recorded.diskGiB) findings.notes.push(
    `The flavor "${found.name}" has ${found.vcpus} processors, ${found.ramMiB} MiB and a disk of ${found.diskGiB} GiB; ` +
    `recorded are ${recorded.vcpus}, ${recorded.ramMiB} MiB and ${recorded.diskGiB} GiB.`)
  return { id: found.id, name: found.name }
}
interface Flavor { readonly id: string; readonly name: string; readonly vcpus: number; readonly ramMiB: number; readonly diskGiB: number }
async function listFlavors(cloud: Cloud, signal: AbortSignal): Promise<Flavor[]> {
  const all: Flavor[] = []
  for (let marker = ''; all.length < FLAVORS_MAX;) {
    const page = records((await cloud.get('compute', `/flavors/detail?limit=${FLAVORS_PAGE}${marker}`, signal))['flavors']).flatMap(toFlavor)
    all.push(...page)
    if (page.length < FLAVORS_PAGE) break
    marker = `&marker=${encodeURIComponent(page.at(-1)!.id)}`
  }
  return all
}
function toFlavor(flavor: Json): Flavor[] {
  const id = text(flavor['id']), name = text(flavor['name'])
  return id === undefined || name === undefined ? [] : [{ id, name, vcpus: whole(flavor['vcpus']) ?? 0, ramMiB: whole(flavor['ram']) ?? 0, diskGiB: whole(flavor['disk']) ?? 0 }]
}

async function resolveKey(cloud: Cloud, recorded: string | undefined, map: ServerMap, findings: PlanFindings, signal: AbortSignal): Promise<string | undefined> {
  if (recorded === undefined) return undefined
  const wanted = map.keys.has(recorded) ? map.keys.get(recorded)! : recorded
  if (wanted === null) return undefined
  try {
    await cloud.get('compute', `/os-keypairs/${encodeURIComponent(wanted)}`, signal)
    return wanted
  } catch (error) {
    if (!hasCloudCode(error, 'CLOUD_UNKNOWN')) throw error
    findings.problems.push(`This user has no key pair "${wanted}": make it there, or map it under "keys" to another, or to null for none.`)
    return undefined
  }
}
async function resolveZone(cloud: Cloud, recorded: string | undefined, map: ServerMap, findings: PlanFindings, signal: AbortSignal): Promise<string | undefined> {
  if (recorded === undefined) return undefined
  const wanted = map.availabilityZones.has(recorded) ? map.availabilityZones.get(recorded)! : recorded
  if (wanted === null) return undefined
  const zones = records((await cloud.get('compute', '/os-availability-zone', signal))['availabilityZoneInfo'])
    .filter((zone) => record(zone['zoneState'])['available'] === true).flatMap(({ zoneName }) => text(zoneName) ?? [])
  if (zones.includes(wanted)) return wanted
  findings.problems.push(`This cloud has no availability zone "${wanted}": map it under "availabilityZones" to one of ${zones.join(', ') || '(none)'}, or to null for any.`)
  return undefined
}

/** The body of POST /servers. */
export function serverBody(plan: ServerPlan, imageId: string): Json {
  if (plan.problems.length > 0 || plan.flavor === undefined) throw new CloudError('PLAN_UNRESOLVED', plan.problems.join('\n'))
  const { keyName, availabilityZone, userData, description, hostname } = plan
  return { server: {
    name: plan.name, imageRef: imageId, flavorRef: plan.flavor.id, metadata: plan.metadata,
    networks: plan.networks.length === 0 ? 'none' : plan.networks.map(({ networkId, fixedIp }) => ({ uuid: networkId, ...(fixedIp === undefined ? {} : { fixed_ip: fixedIp }) })),
    ...(keyName === undefined ? {} : { key_name: keyName }), ...(availabilityZone === undefined ? {} : { availability_zone: availabilityZone }),
    ...(plan.securityGroups.length === 0 ? {} : { security_groups: plan.securityGroups.map((name) => ({ name })) }),
    ...(plan.tags.length === 0 ? {} : { tags: plan.tags }), ...(plan.configDrive ? { config_drive: true } : {}),
    ...(userData === undefined ? {} : { user_data: userData }), ...(description === undefined ? {} : { description }), ...(hostname === undefined ? {} : { hostname }),
  } }
}
/** The same of a record alone, with the names and ids that it has: to be looked through and sent by hand. */
export function recordedServerBody(nova: NovaDescription): Json {
  const networks = nova.ports.map(({ networkId, networkName, fixedIps }) => ({ uuid: networkId ?? networkName, ...(fixedIps[0] === undefined ? {} : { fixed_ip: fixedIps[0].address }) }))
  return { server: {
    name: text(nova.server['name']) ?? nova.serverId, flavorRef: nova.flavor.name, ...(nova.image === undefined ? {} : { imageRef: nova.image.id }),
    networks: networks.length === 0 ? 'none' : networks, metadata: nova.metadata, ...(nova.tags.length === 0 ? {} : { tags: nova.tags }),
    ...(nova.keyName === undefined ? {} : { key_name: nova.keyName }), ...(nova.availabilityZone === undefined ? {} : { availability_zone: nova.availabilityZone }),
    ...(nova.securityGroups.length === 0 ? {} : { security_groups: nova.securityGroups.map((name) => ({ name })) }),
    ...(nova.configDrive === true ? { config_drive: true } : {}), ...(nova.userData === undefined ? {} : { user_data: nova.userData }),
  } }
}
