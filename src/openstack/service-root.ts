/** Catalogs name services with and without their version and project; requests need one form. Pure. */
import type { CloudService, Json } from './cloud.js'

/** The newest of Nova's microversions whose answers this program was written for. */
const COMPUTE_VERSION_MAX = [2, 90] as const

/** Nova: `…/v2.1` (some catalogs add the project), Glance: `…/v2`, Neutron: `…/v2.0`. */
export function serviceRoot(service: CloudService, endpoint: string): string {
  switch (service) {
    case 'compute': return /\/v2(?:\.\d+)?(?:\/[^/]+)?$/.test(endpoint) ? endpoint : `${endpoint}/v2.1`
    case 'image': return `${endpoint.replace(/\/v\d+(?:\.\d+)?$/, '')}/v2`
    case 'network': return `${endpoint.replace(/\/v2(?:\.\d+)?$/, '')}/v2.0`
  }
}
/** Where a compute service describes its version: without the project. */
export const versionRoot = (root: string): string => root.replace(/(\/v2(?:\.\d+)?)\/[^/]+$/, '$1')
/** From Nova's description of its version: the newest that both know; 2.1, which all have, when it describes none. */
export function chooseMicroversion(answer: Json | undefined): string {
  const described = answer?.['version'] as { version?: unknown; min_version?: unknown } | undefined
  const newest = parse(described?.version), oldest = parse(described?.min_version)
  if (newest === undefined || oldest === undefined || isBefore(COMPUTE_VERSION_MAX, oldest)) return '2.1'
  return (isBefore(newest, COMPUTE_VERSION_MAX) ? newest : COMPUTE_VERSION_MAX).join('.')
}
type Version = readonly [number, number]
const isBefore = (a: Version, b: Version): boolean => a[0] < b[0] || (a[0] === b[0] && a[1] < b[1])
function parse(text: unknown): Version | undefined {
  const match = typeof text === 'string' ? /^(\d{1,3})\.(\d{1,4})$/.exec(text) : null
  return match === null ? undefined : [Number(match[1]), Number(match[2])]
}
