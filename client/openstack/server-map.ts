/** The mapping file of `roost restore --to-nova`: what recorded names are called in the cloud that the server comes back in. */
import { CloudError } from '../../src/openstack/cloud-error.js'

/** Recorded name (of networks also: id) → the name or id there; null: leave it out. Of flavors there is no leaving out. */
export interface ServerMap {
  readonly flavors: ReadonlyMap<string, string>
  readonly networks: ReadonlyMap<string, string | null>
  readonly fixedIps: ReadonlyMap<string, string | null>
  readonly keys: ReadonlyMap<string, string | null>
  readonly securityGroups: ReadonlyMap<string, string | null>
  readonly availabilityZones: ReadonlyMap<string, string | null>
}
const SECTIONS = ['flavors', 'networks', 'fixedIps', 'keys', 'securityGroups', 'availabilityZones'] as const
export const EMPTY_MAP: ServerMap = parseServerMap({})

/** `value`: of JSON or YAML. @throws {CloudError} PLAN_UNRESOLVED for anything unknown: a typing error must not be silent */
export function parseServerMap(value: unknown): ServerMap {
  const top = asObject(value ?? {}, 'The mapping file')
  const unknown = Object.keys(top).find((name) => !SECTIONS.some((section) => section === name))
  if (unknown !== undefined) throw malformed(`"${unknown}" is not a section of the mapping file; there are ${SECTIONS.join(', ')}.`)
  const sections = SECTIONS.map((section) => [section, new Map(Object.entries(asObject(top[section] ?? {}, `"${section}"`)).map(([from, to]) => {
    if (to === null && section !== 'flavors') return [from, null]
    // Unquoted, a name of digits is a number in YAML.
    if (typeof to === 'number' && Number.isSafeInteger(to)) return [from, `${to}`]
    if (typeof to !== 'string' || to === '') throw malformed(`"${section}" maps "${from}" to something that is no name${section === 'flavors' ? '' : ' and not null'}.`)
    return [from, to]
  }))] as const)
  return Object.fromEntries(sections) as unknown as ServerMap
}
function asObject(value: unknown, what: string): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw malformed(`${what} is not a table of names.`)
  return value as Readonly<Record<string, unknown>>
}
const malformed = (message: string): CloudError => new CloudError('PLAN_UNRESOLVED', message)
