/** Networks, addresses and security groups of a recorded server, looked up in a cloud. */
import { BlockList, isIP } from 'node:net'
import type { Cloud, Json } from '../../src/openstack/cloud.js'
import { CloudError, hasCloudCode } from '../../src/openstack/cloud-error.js'
import type { NovaDescription } from '../machine/machine-description.js'
import { record, records, text } from './json-parts.js'
import type { ServerMap } from './server-map.js'
import type { PlanFindings } from './server-plan.js'

export interface PlannedNetwork { readonly networkId: string; readonly name: string; readonly fixedIp?: string }
export interface NetworkPlan { readonly networks: readonly PlannedNetwork[]; readonly securityGroups: readonly string[] }
type Port = NovaDescription['ports'][number]

/** One entry a port, in the record's order: that is the order of the machine's cards. @throws what Neutron throws when it cannot be asked */
export async function resolveNetworks(cloud: Cloud, nova: NovaDescription, map: ServerMap, findings: PlanFindings, signal: AbortSignal): Promise<NetworkPlan> {
  const ports = nova.ports.filter((port) => wantedNetwork(port, map) !== null)
  if (ports.length === 0) {
    if (nova.ports.length === 0) findings.notes.push('The record has no networks: the server gets none.')
    return { networks: [], securityGroups: [] }
  }
  if (!await cloud.has('network', signal)) {
    findings.problems.push('This cloud\'s catalog has no network service, and the server had networks: map each of them to null under "networks".')
    return { networks: [], securityGroups: [] }
  }
  const neutron = new NetworkLookup(cloud, map, findings, signal)
  const networks: PlannedNetwork[] = []
  for (const port of ports) {
    const network = await neutron.network(wantedNetwork(port, map)!)
    if (network === undefined) continue
    const fixedIp = await neutron.fixedIp(port, network)
    networks.push({ ...network, ...(fixedIp === undefined ? {} : { fixedIp }) })
  }
  if (networks.length > 0) findings.notes.push('The cards get new MAC addresses; a guest that ties names of cards to the old ones must be told.')
  return { networks, securityGroups: await neutron.securityGroups(nova.securityGroups) }
}
function wantedNetwork({ networkId, networkName }: Port, map: ServerMap): string | null {
  for (const known of [networkName, networkId]) if (known !== undefined && map.networks.has(known)) return map.networks.get(known)!
  return networkId ?? networkName ?? null
}

class NetworkLookup {
  readonly #networks = new Map<string, { readonly networkId: string; readonly name: string } | undefined>()
  constructor(readonly cloud: Cloud, readonly map: ServerMap, readonly findings: PlanFindings, readonly signal: AbortSignal) {}

  async network(wanted: string): Promise<{ readonly networkId: string; readonly name: string } | undefined> {
    if (this.#networks.has(wanted)) return this.#networks.get(wanted)
    const named = records((await this.#get(`/networks?name=${encodeURIComponent(wanted)}`))['networks'])
    const found = named.length > 0 ? named : records([await this.#networkById(wanted)])
    const [first] = found.flatMap((network) => {
      const networkId = text(network['id'])
      return networkId === undefined ? [] : [{ networkId, name: text(network['name']) ?? networkId }]
    })
    if (found.length > 1) this.findings.problems.push(`This cloud has ${found.length} networks called "${wanted}": map it under "networks" to an id.`)
    else if (first === undefined) this.findings.problems.push(`This cloud has no network "${wanted}": map it under "networks" to one that it has, or to null for no card there.`)
    this.#networks.set(wanted, first)
    return first
  }
  async #networkById(id: string): Promise<Json | undefined> {
    try {
      return record((await this.#get(`/networks/${encodeURIComponent(id)}`))['network'])
    } catch (error) {
      if (hasCloudCode(error, 'CLOUD_UNKNOWN')) return undefined
      throw error
    }
  }
  /** Nova takes one address a card. */
  async fixedIp(port: Port, network: { readonly networkId: string; readonly name: string }): Promise<string | undefined> {
    const wanted = port.fixedIps.map(({ address }) => this.map.fixedIps.has(address) ? this.map.fixedIps.get(address)! : address).filter((address) => address !== null)
    const chosen = wanted.find((address) => isIP(address) === 4) ?? wanted[0]
    if (chosen === undefined) return undefined
    if (wanted.length > 1) this.findings.notes.push(`Of the addresses ${wanted.join(', ')} in "${network.name}", ${chosen} is asked for; the others are Neutron's choice.`)
    const problem = isIP(chosen) === 0 ? 'is no IP address' : await this.#whyNot(chosen, network.networkId)
    if (problem === undefined) return chosen
    this.findings.problems.push(`The address ${chosen} ${problem} in the network "${network.name}": map it under "fixedIps" to another one, or to null for any.`)
    return undefined
  }
  async #whyNot(address: string, networkId: string): Promise<string | undefined> {
    const cidrs = records((await this.#get(`/subnets?network_id=${encodeURIComponent(networkId)}`))['subnets']).flatMap(({ cidr }) => text(cidr) ?? [])
    if (!cidrs.some((cidr) => contains(cidr, address))) return `fits no subnet (${cidrs.join(', ') || 'none'})`
    const taken = records((await this.#get(`/ports?network_id=${encodeURIComponent(networkId)}&fixed_ips=${encodeURIComponent(`ip_address=${address}`)}`))['ports'])
    return taken.length > 0 ? `is taken by the port ${text(taken[0]!['id']) ?? '?'}` : undefined
  }
  async securityGroups(recorded: readonly string[]): Promise<string[]> {
    const groups: string[] = []
    for (const name of recorded) {
      const wanted = this.map.securityGroups.has(name) ? this.map.securityGroups.get(name)! : name
      if (wanted === null || groups.includes(wanted)) continue
      const found = records((await this.#get(`/security-groups?name=${encodeURIComponent(wanted)}`))['security_groups'])
      if (found.length > 0) groups.push(wanted)
      else this.findings.problems.push(`This project has no security group "${wanted}": make it there, or map it under "securityGroups" to another, or to null.`)
    }
    return groups
  }
  async #get(path: string): Promise<Json> { return await this.cloud.get('network', path, this.signal) }
}
function contains(cidr: string, address: string): boolean {
  const [base = '', bits = ''] = cidr.split('/')
  const family = isIP(base)
  if (family === 0 || family !== isIP(address)) return false
  const list = new BlockList()
  try {
    list.addSubnet(base, Number(bits), family === 4 ? 'ipv4' : 'ipv6')
  } catch (error) {
    throw new CloudError('CLOUD_REFUSED', `Neutron names a subnet "${cidr}" that is none.`, {}, { cause: error })
  }
  return list.check(address, family === 4 ? 'ipv4' : 'ipv6')
}
