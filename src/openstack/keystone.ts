/** Login at Keystone v3: a token, how long it lives, and the catalog of services. */
import { createHttp, HttpFailure, parseRetryAfter, readText, type Http, type HttpAnswer, type HttpOptions } from '../http/http.js'
import type { Catalog } from './catalog.js'
import type { CloudConfig } from './cloud-config.js'
import { CloudError } from './cloud-error.js'

export interface KeystoneLogin {
  readonly token: string
  /** How long the token is good for, from now; undefined when nobody says. */
  readonly livesMs: number | undefined
  readonly catalog: Catalog
  readonly projectId: string | undefined
}
export type Deadlines = Pick<HttpOptions, 'connectMs' | 'answerMs' | 'idleMs'>

const ANSWER_BYTES_MAX = 4 * 1024 * 1024

/** `forWhat`: what there is no token for when this fails, such as "Swift".
 *  @throws {CloudError} CLOUD_UNAVAILABLE while the identity service is away; CLOUD_REFUSED when it says no; `signal.reason` */
export async function logInToKeystone(cloud: CloudConfig, forWhat: string, deadlines: Deadlines, signal?: AbortSignal): Promise<KeystoneLogin> {
  return await withIdentity(cloud, forWhat, deadlines, (http) => askForToken(http, cloud, forWhat, signal))
}
/** One exchange with an identity service, of version 3 or 1. */
export async function withIdentity<T>(cloud: CloudConfig, forWhat: string, deadlines: Deadlines, exchange: (http: Http) => Promise<T>): Promise<T> {
  const http = createHttp({ ...deadlines, verify: cloud.verify, ...(cloud.ca === undefined ? {} : { ca: cloud.ca }) })
  try {
    return await exchange(http)
  } catch (error) {
    if (error instanceof HttpFailure) throw new CloudError('CLOUD_UNAVAILABLE',
      `The identity service at ${cloud.authUrl} ${error.what}, so there is no token for ${forWhat}; see that it runs and can be reached from here.`, {}, { cause: error })
    throw error
  } finally {
    await http.close()
  }
}

interface TokenReply { token?: { expires_at?: string; issued_at?: string; catalog?: unknown; project?: { id?: unknown } } }
async function askForToken(http: Http, cloud: CloudConfig, forWhat: string, signal: AbortSignal | undefined): Promise<KeystoneLogin> {
  if (cloud.authType === 'v1') throw new CloudError('CLOUD_NOT_CONFIGURED', `${cloud.origin} logs in with version 1, which knows Swift only: ${forWhat} needs Keystone v3.`)
  const answer = await http.request(`${v3Url(cloud.authUrl)}/auth/tokens`, { method: 'POST', headers: { 'content-type': 'application/json', accept: 'application/json' },
    body: JSON.stringify({ auth: { identity: identityOf(cloud), ...scopeOf(cloud) } }), ...(signal && { signal }) })
  const text = await readText(answer, ANSWER_BYTES_MAX, signal)
  if (answer.status === 200) throw notIdentity(cloud)
  if (answer.status !== 201) throw loginRefused(cloud, forWhat, answer, isKeystoneError(text))
  const token = answer.headers['x-subject-token']
  let reply: TokenReply
  try { reply = JSON.parse(text) as TokenReply } catch { throw notIdentity(cloud) }
  if (token === undefined || typeof reply?.token !== 'object' || reply.token === null) throw notIdentity(cloud)
  const { expires_at: expiresAt, issued_at: issuedAt, catalog, project } = reply.token
  // A span of the identity service's own clock: this machine's may be wrong.
  const livesMs = expiresAt === undefined || issuedAt === undefined ? undefined : Date.parse(expiresAt) - Date.parse(issuedAt)
  return { token, livesMs: livesMs !== undefined && livesMs > 0 ? livesMs : undefined, catalog: Array.isArray(catalog) ? catalog as Catalog : [],
    projectId: typeof project?.id === 'string' ? project.id : undefined }
}
/** `http://host:5000` and `…/v2.0` mean `…/v3` too: that is what clients make of them. */
function v3Url(authUrl: string): string {
  const url = trimmed(authUrl)
  return url.endsWith('/v3') ? url : `${url.replace(/\/v2\.0$/, '')}/v3`
}

type Json = Record<string, unknown>
function identityOf({ authType, auth }: CloudConfig): Json {
  const domain = byIdOrName(auth['user_domain_id'] ?? auth['default_domain_id'] ?? auth['default_domain'], auth['user_domain_name'] ?? auth['default_domain_name'])
  const user = auth['user_id'] !== undefined ? { id: auth['user_id'] } : { name: auth['username'], domain: domain ?? { id: 'default' } }
  if (authType === 'token') return { methods: ['token'], token: { id: auth['token'] } }
  if (authType === 'password') return { methods: ['password'], password: { user: { ...user, password: auth['password'] } } }
  const secret = auth['application_credential_secret']
  const id = auth['application_credential_id']
  return { methods: ['application_credential'], application_credential: id !== undefined ? { id, secret } : { name: auth['application_credential_name'], user, secret } }
}
function scopeOf({ authType, auth }: CloudConfig): { scope?: Json } {
  if (authType === 'applicationCredential') return {} // it carries its own
  if (auth['trust_id'] !== undefined) return { scope: { 'OS-TRUST:trust': { id: auth['trust_id'] } } }
  if (auth['project_id'] !== undefined) return { scope: { project: { id: auth['project_id'] } } }
  if (auth['project_name'] !== undefined) {
    const domain = byIdOrName(auth['project_domain_id'] ?? auth['default_domain_id'] ?? auth['default_domain'], auth['project_domain_name'] ?? auth['default_domain_name'])
    return { scope: { project: { name: auth['project_name'], domain: domain ?? byIdOrName(auth['user_domain_id'], auth['user_domain_name']) ?? { id: 'default' } } } }
  }
  const domain = byIdOrName(auth['domain_id'], auth['domain_name'])
  if (domain !== undefined) return { scope: { domain } }
  return auth['system_scope'] === undefined ? {} : { scope: { system: { all: true } } }
}
const byIdOrName = (id: string | undefined, name: string | undefined): Json | undefined => id !== undefined ? { id } : name !== undefined ? { name } : undefined

/** Keystone answers 404 for an application credential that was deleted; a wrong address does so too, in other words. */
function isKeystoneError(text: string): boolean {
  try { return typeof (JSON.parse(text) as { error?: { code?: unknown } }).error?.code === 'number' } catch { return false }
}
export function loginRefused(cloud: CloudConfig, forWhat: string, answer: HttpAnswer, isKeystones = false): CloudError {
  const { status, headers } = answer
  const retryAfterMs = parseRetryAfter(headers['retry-after'], headers['date'])
  const advice = cloud.authType === 'applicationCredential' ? 'check the application credential, which may be deleted or expired' : 'check user, password, domain and project'
  if (status === 401 || status === 403 || (status === 404 && isKeystones)) return new CloudError('CLOUD_REFUSED',
    `The identity service at ${cloud.authUrl} refuses the credentials of ${cloud.origin} (${status}): ${advice}.`, { status })
  if (status === 429 || status >= 500) return new CloudError('CLOUD_UNAVAILABLE',
    `The identity service at ${cloud.authUrl} answers ${status}, so there is no token for ${forWhat}; look at its log.`, { status, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) })
  return new CloudError('CLOUD_REFUSED', `${cloud.authUrl} answers ${status} to a login: it is not the auth_url of ${cloud.authType === 'v1' ? 'a version 1 service' : 'Keystone v3'}.`, { status })
}
export const notIdentity = (cloud: CloudConfig): CloudError =>
  new CloudError('CLOUD_REFUSED', `${cloud.authUrl} answers, but not as an identity service does: is a web proxy or another site in between?`)
const trimmed = (url: string): string => url.replace(/\/+$/, '')
