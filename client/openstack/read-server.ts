/** Reads what Nova, Glance and Neutron know of a server, for its description in the snapshot. Only Nova's record itself is needed: what else
 *  cannot be read is a warning in the description.
 */
import type { Cloud, CloudService, Json } from '../../src/openstack/cloud.js'
import { CloudError } from '../../src/openstack/cloud-error.js'
import type { NovaDescription } from '../machine/machine-description.js'
import { record, records, text, textMap, texts, whole } from './json-parts.js'
import { METADATA_KEY, parseMark } from './run-mark.js'

/** Of servers' records: secrets, and links that lead nowhere later. */
const LEFT_OUT = ['adminPass', 'links', 'OS-EXT-SRV-ATTR:user_data']
const USER_DATA = 'OS-EXT-SRV-ATTR:user_data'
type Port = NovaDescription['ports'][number]

/** @throws {CloudError} CLOUD_UNKNOWN where there is no such server; what logging in and Nova throw; `signal.reason` */
export async function readServer(cloud: Cloud, serverId: string, signal: AbortSignal): Promise<NovaDescription> {
  const version = await cloud.microversion(signal)
  const server = record((await cloud.get('compute', `/servers/${encodeURIComponent(serverId)}`, signal))['server'])
  const reader = new ServerReader(cloud, signal)
  const id = text(server['id']) ?? serverId
  const image = await reader.image(server)
  const flavor = await reader.flavor(record(server['flavor']))
  const ports = await reader.ports(id, server)
  const volumes = await reader.volumes(id, server)
  const tags = version[1] >= 26 ? texts(server['tags']) : reader.note('tags were not read: this Nova does not know them (before microversion 2.26)', [])
  if (!Object.hasOwn(server, USER_DATA)) reader.note('user data was not read: Nova shows it to administrators only', undefined)
  const { [METADATA_KEY]: _mark, ...metadata } = textMap(server['metadata'])
  const projectId = text(server['tenant_id']), keyName = text(server['key_name']), userData = text(server[USER_DATA])
  const availabilityZone = text(server['OS-EXT-AZ:availability_zone'])
  return {
    serverId: id, ...(projectId && { projectId }), server: recordOf(server),
    flavor, ...(image && { image }), ...(keyName && { keyName }),
    securityGroups: [...new Set(records(server['security_groups']).flatMap(({ name }) => text(name) ?? []))],
    metadata, tags, ports, volumes, ...(availabilityZone && { availabilityZone }),
    configDrive: ['True', 'true', true].includes(server['config_drive'] as string | boolean), ...(userData && { userData }), warnings: reader.warnings,
  }
}

/** As Nova gave it, but for what is left out and for the lock of this very run. */
function recordOf(server: Json): Json {
  const kept = Object.fromEntries(Object.entries(server).filter(([name]) => !LEFT_OUT.includes(name)))
  const { [METADATA_KEY]: _mark, ...metadata } = record(server['metadata'])
  return { ...kept, metadata, ...(parseMark(server['locked_reason']) === undefined ? {} : { locked: false, locked_reason: null }) }
}
class ServerReader {
  readonly warnings: string[] = []
  constructor(readonly cloud: Cloud, readonly signal: AbortSignal) {}

  note<T>(warning: string, value: T): T {
    this.warnings.push(warning)
    return value
  }
  async image(server: Json): Promise<NovaDescription['image']> {
    const id = text(record(server['image'])['id'])
    if (id === undefined) return undefined // booted from a volume
    const image = await this.#read('image', `/images/${encodeURIComponent(id)}`, `the image ${id}`)
    const name = text(image?.['name'])
    return { id, ...(name && { name }), properties: image ?? {} }
  }
  /** Since 2.47 the record has it whole; before, it names one, which may be gone. */
  async flavor(embedded: Json): Promise<NovaDescription['flavor']> {
    const id = text(embedded['id'])
    const isEmbedded = whole(embedded['vcpus']) !== undefined
    const named = isEmbedded || id === undefined ? undefined : record((await this.#read('compute', `/flavors/${encodeURIComponent(id)}`, `the flavor ${id}`))?.['flavor'])
    const extra = isEmbedded || id === undefined ? embedded['extra_specs']
      : (await this.#read('compute', `/flavors/${encodeURIComponent(id)}/os-extra_specs`, `extra specs of the flavor ${id}`))?.['extra_specs']
    const flavor = named ?? embedded
    const name = text(flavor['original_name']) ?? text(flavor['name'])
    const ephemeralGiB = whole(flavor['ephemeral']) ?? whole(flavor['OS-FLV-EXT-DATA:ephemeral']), swapMiB = whole(flavor['swap'])
    const extraSpecs = textMap(extra)
    return { ...(name && { name }), vcpus: whole(flavor['vcpus']) ?? 0, ramMiB: whole(flavor['ram']) ?? 0, diskGiB: whole(flavor['disk']) ?? 0,
      ...(ephemeralGiB && { ephemeralGiB }), ...(swapMiB && { swapMiB }), ...(Object.keys(extraSpecs).length > 0 && { extraSpecs }) }
  }
  /** From Neutron, else from Nova's view of it, else from the addresses in the record. */
  async ports(serverId: string, server: Json): Promise<Port[]> {
    const query = `/ports?device_id=${encodeURIComponent(serverId)}`
    const fromNeutron = await this.#has('network') ? await this.#read('network', query, 'ports') : undefined
    if (fromNeutron !== undefined) {
      // In the order in which they were made, which is that of the machine's cards where Nova made them; Neutron promises none.
      const made = records(fromNeutron['ports']).sort((a, b) => (text(a['created_at']) ?? '') < (text(b['created_at']) ?? '') ? -1 : 1)
      const ports = made.flatMap((port) => toPort(port, 'network_id', 'mac_address'))
      if (ports.length > 0 || Object.keys(record(server['addresses'])).length === 0) return await this.#nameNetworks(ports, true)
    }
    const attached = await this.#read('compute', `/servers/${encodeURIComponent(serverId)}/os-interface`, 'interfaces')
    const ports = records(attached?.['interfaceAttachments']).flatMap((one) => toPort(one, 'net_id', 'mac_addr'))
    if (ports.length > 0) return await this.#nameNetworks(ports, fromNeutron !== undefined)
    return addressesOf(server)
  }
  async #nameNetworks(ports: readonly Port[], asks: boolean): Promise<Port[]> {
    const names = new Map<string, string | undefined>()
    for (const { networkId } of ports) {
      if (!asks || networkId === undefined || names.has(networkId)) continue
      names.set(networkId, text(record((await this.#read('network', `/networks/${encodeURIComponent(networkId)}`, `the network ${networkId}`))?.['network'])['name']))
    }
    return ports.map((port) => {
      const networkName = port.networkId === undefined ? undefined : names.get(port.networkId)
      return { ...port, ...(networkName && { networkName }) }
    })
  }
  async volumes(serverId: string, server: Json): Promise<NovaDescription['volumes']> {
    const inRecord = records(server['os-extended-volumes:volumes_attached'])
    if (inRecord.length === 0) return []
    const attached = records((await this.#read('compute', `/servers/${encodeURIComponent(serverId)}/os-volume_attachments`, 'places of the volumes'))?.['volumeAttachments'])
    return inRecord.flatMap((volume) => {
      const id = text(volume['id'])
      if (id === undefined) return []
      const device = text(attached.find((one) => one['volumeId'] === id)?.['device'])
      const deleted = volume['delete_on_termination']
      return [{ id, ...(device && { device }), ...(typeof deleted === 'boolean' && { deleteOnTermination: deleted }) }]
    })
  }
  async #has(service: CloudService): Promise<boolean> {
    if (await this.cloud.has(service, this.signal)) return true
    return this.note('this cloud\'s catalog has no network service: ports are as Nova shows them', false)
  }
  async #read(service: CloudService, path: string, what: string): Promise<Json | undefined> {
    try {
      return await this.cloud.get(service, path, this.signal)
    } catch (error) {
      if (!(error instanceof CloudError)) throw error
      return this.note(`${what} could not be read: ${error.message}`, undefined)
    }
  }
}

function toPort(port: Json, network: string, mac: string): Port[] {
  const networkId = text(port[network])
  const address = text(port[mac])
  if (networkId === undefined || address === undefined) return []
  const fixedIps = records(port['fixed_ips']).flatMap((ip) => {
    const subnetId = text(ip['subnet_id']), at = text(ip['ip_address'])
    return at === undefined ? [] : [{ address: at, ...(subnetId && { subnetId }) }]
  })
  return [{ networkId, mac: address, fixedIps }]
}
/** `addresses` of a record: by network name, one entry an address; those of one card share its MAC. */
function addressesOf(server: Json): Port[] {
  return Object.entries(record(server['addresses'])).flatMap(([networkName, addresses]) => {
    const byMac = new Map<string, { address: string }[]>()
    for (const one of records(addresses)) {
      const address = text(one['addr']), mac = text(one['OS-EXT-IPS-MAC:mac_addr']) ?? ''
      if (address === undefined || one['OS-EXT-IPS:type'] === 'floating') continue
      byMac.set(mac, [...byMac.get(mac) ?? [], { address }])
    }
    return [...byMac].map(([mac, fixedIps]) => ({ networkName, mac, fixedIps }))
  })
}
