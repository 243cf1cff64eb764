/** Where a cloud's services are: the catalog that comes with a token. */
import type { CloudConfig } from './cloud-config.js'
import { CloudError } from './cloud-error.js'

export type Catalog = readonly { readonly type?: string; readonly endpoints?: readonly Endpoint[] }[]
interface Endpoint { readonly interface?: string; readonly region?: string; readonly region_id?: string; readonly url?: string }
export interface EndpointWish { readonly region?: string; readonly interface?: string }

/** The address of a service, without a final slash. `types`: its name in the catalog and older ones, the preferred first. An address that the
 *  configuration gives wins. @throws {CloudError} CLOUD_UNKNOWN where the cloud has no such service; CLOUD_REFUSED where it has it elsewhere only */
export function endpointOf(catalog: Catalog, cloud: CloudConfig, types: readonly string[], wish: EndpointWish = {}): string {
  const override = cloud.endpointOverrides[types[0]!.replaceAll('-', '_')]
  if (override !== undefined) return trimmed(override)
  const region = wish.region ?? cloud.region
  const wanted = (wish.interface ?? cloud.interface ?? 'public').replace(/URL$/, '')
  const there: string[] = []
  for (const type of types) for (const service of catalog) {
    if (service?.type !== type) continue
    for (const one of service.endpoints ?? []) {
      if (one.interface === wanted && (region === undefined || one.region_id === region || one.region === region) && one.url !== undefined) return trimmed(one.url)
      there.push(`${one.region_id ?? one.region ?? '?'}/${one.interface ?? '?'}`)
    }
  }
  const option = `${types[0]!.replaceAll('-', '_')}_endpoint_override`
  if (there.length === 0) throw new CloudError('CLOUD_UNKNOWN',
    `The catalog of ${cloud.authUrl} has no ${types[0]!} for ${cloud.origin}: name a project that has one, or set ${option}.`)
  throw new CloudError('CLOUD_REFUSED',
    `The catalog of ${cloud.authUrl} has no ${types[0]!} in region ${region ?? '(any)'} with interface ${wanted}; there are ${[...new Set(there)].join(', ')}.`)
}
const trimmed = (url: string): string => url.replace(/\/+$/, '')
