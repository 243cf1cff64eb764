/** One login for Swift: a token and where the objects are. Keystone v3, and version 1 (TempAuth, swauth). */
import { RoostError } from '../../core/errors.js'
import { readText, type Http } from '../../http/http.js'
import { endpointOf, type EndpointWish } from '../../openstack/catalog.js'
import { readCloudConfig, type CloudConfig, type Environment } from '../../openstack/cloud-config.js'
import { CloudError } from '../../openstack/cloud-error.js'
import { logInToKeystone, loginRefused, notIdentity, withIdentity, type Deadlines } from '../../openstack/keystone.js'

export interface Login {
  readonly token: string
  /** Without a final slash: https://swift.example/v1/AUTH_abc */
  readonly storageUrl: string
  /** How long the token is good for, from now; undefined when nobody says. */
  readonly livesMs: number | undefined
}
export interface LoginWishes extends EndpointWish { readonly deadlines: Deadlines }

const ANSWER_BYTES_MAX = 4 * 1024 * 1024
const SWIFT = ['object-store']

/** @throws {RoostError} STORE_UNAVAILABLE while the identity service is away; STORE_REFUSED when it says no; `signal.reason` */
export async function logIn(cloud: CloudConfig, wishes: LoginWishes, signal?: AbortSignal): Promise<Login> {
  return await asStore(async () => {
    if (cloud.authType === 'v1') return await withIdentity(cloud, 'Swift', wishes.deadlines, (http) => logInV1(http, cloud, signal))
    const { token, livesMs, catalog } = await logInToKeystone(cloud, 'Swift', wishes.deadlines, signal)
    return { token, livesMs, storageUrl: endpointOf(catalog, cloud, SWIFT, wishes) }
  })
}
/** As readCloudConfig. @throws {RoostError} STORE_REFUSED */
export async function readSwiftCloud(cloud: string | undefined, environment: Environment, auth?: string): Promise<CloudConfig> {
  return await asStore(() => readCloudConfig(cloud, environment, auth))
}

async function logInV1(http: Http, cloud: CloudConfig, signal: AbortSignal | undefined): Promise<Login> {
  const { username, password } = cloud.auth
  const answer = await http.request(cloud.authUrl, { method: 'GET', headers: { 'x-auth-user': username!, 'x-auth-key': password! }, ...(signal && { signal }) })
  await readText(answer, ANSWER_BYTES_MAX, signal)
  if (answer.status !== 200 && answer.status !== 204) throw loginRefused(cloud, 'Swift', answer)
  const token = answer.headers['x-auth-token'], storageUrl = answer.headers['x-storage-url']
  if (token === undefined || storageUrl === undefined) throw notIdentity(cloud)
  const seconds = Number(answer.headers['x-auth-token-expires'])
  return { token, storageUrl: (cloud.endpointOverrides['object_store'] ?? storageUrl).replace(/\/+$/, ''), livesMs: seconds > 0 ? seconds * 1000 : undefined }
}

/** A target's failures have the codes of targets. */
async function asStore<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof CloudError)) throw error
    const { status, retryAfterMs } = error.facts
    throw new RoostError(error.code === 'CLOUD_UNAVAILABLE' ? 'STORE_UNAVAILABLE' : 'STORE_REFUSED', error.message,
      { ...(status === undefined ? {} : { status }), ...(retryAfterMs === undefined ? {} : { retryAfterMs }) }, { cause: error })
  }
}
