/** One login: a token and where the objects are. Keystone v3, and version 1 (TempAuth, swauth). */
import { RoostError } from '../../core/errors.js'
import { createHttp, HttpFailure, readText, type Http, type HttpAnswer } from '../http.js'
import type { CloudConfig } from './cloud-config.js'
import { parseRetryAfter } from './swift-answers.js'

export interface Login {
  readonly token: string
  /** Without a final slash: https://swift.example/v1/AUTH_abc */
  readonly storageUrl: string
  /** How long the token is good for, from now; undefined when nobody says. */
  readonly livesMs: number | undefined
}
export interface LoginWishes { readonly region?: string; readonly interface?: string; readonly deadlines: { connectMs?: number; answerMs?: number; idleMs?: number } }

const ANSWER_BYTES_MAX = 4 * 1024 * 1024

/** @throws {RoostError} STORE_UNAVAILABLE while the identity service is away; STORE_REFUSED when it says no; `signal.reason` */
export async function logIn(cloud: CloudConfig, wishes: LoginWishes, signal?: AbortSignal): Promise<Login> {
  const http = createHttp({ ...wishes.deadlines, verify: cloud.verify, ...(cloud.ca === undefined ? {} : { ca: cloud.ca }) })
  try {
    return cloud.authType === 'v1' ? await logInV1(http, cloud, signal) : await logInV3(http, cloud, wishes, signal)
  } catch (error) {
    if (error instanceof HttpFailure) throw new RoostError('STORE_UNAVAILABLE',
      `The identity service at ${cloud.authUrl} ${error.what}, so there is no token for Swift; see that it runs and can be reached from here.`, {}, { cause: error })
    throw error
  } finally {
    await http.close()
  }
}

async function logInV1(http: Http, cloud: CloudConfig, signal: AbortSignal | undefined): Promise<Login> {
  const { username, password } = cloud.auth
  const answer = await http.request(cloud.authUrl, { method: 'GET', headers: { 'x-auth-user': username!, 'x-auth-key': password! }, ...(signal && { signal }) })
  await readText(answer, ANSWER_BYTES_MAX, signal)
  if (answer.status !== 200 && answer.status !== 204) throw loginRefused(cloud, answer)
  const token = answer.headers['x-auth-token'], storageUrl = answer.headers['x-storage-url']
  if (token === undefined || storageUrl === undefined) throw notIdentity(cloud)
  const seconds = Number(answer.headers['x-auth-token-expires'])
  return { token, storageUrl: trimmed(cloud.endpointOverride ?? storageUrl), livesMs: seconds > 0 ? seconds * 1000 : undefined }
}

interface TokenReply {
  token?: { expires_at?: string; issued_at?: string; catalog?: { type?: string; endpoints?: { interface?: string; region?: string; region_id?: string; url?: string }[] }[] }
}
async function logInV3(http: Http, cloud: CloudConfig, wishes: LoginWishes, signal: AbortSignal | undefined): Promise<Login> {
  const answer = await http.request(`${v3Url(cloud.authUrl)}/auth/tokens`, { method: 'POST', headers: { 'content-type': 'application/json', accept: 'application/json' },
    body: JSON.stringify({ auth: { identity: identityOf(cloud), ...scopeOf(cloud) } }), ...(signal && { signal }) })
  const text = await readText(answer, ANSWER_BYTES_MAX, signal)
  if (answer.status === 200) throw notIdentity(cloud)
  if (answer.status !== 201) throw loginRefused(cloud, answer, isKeystoneError(text))
  const token = answer.headers['x-subject-token']
  let reply: TokenReply
  try { reply = JSON.parse(text) as TokenReply } catch { throw notIdentity(cloud) }
  if (token === undefined || reply.token === undefined) throw notIdentity(cloud)
  const { expires_at: expiresAt, issued_at: issuedAt } = reply.token
  // A span of the identity service's own clock: this machine's may be wrong.
  const livesMs = expiresAt === undefined || issuedAt === undefined ? undefined : Date.parse(expiresAt) - Date.parse(issuedAt)
  return { token, storageUrl: trimmed(cloud.endpointOverride ?? endpointOf(reply, cloud, wishes)), livesMs: livesMs !== undefined && livesMs > 0 ? livesMs : undefined }
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

function endpointOf(reply: TokenReply, cloud: CloudConfig, wishes: LoginWishes): string {
  const region = wishes.region ?? cloud.region
  const wanted = (wishes.interface ?? cloud.interface ?? 'public').replace(/URL$/, '')
  const endpoints = (reply.token?.catalog ?? []).filter(({ type }) => type === 'object-store').flatMap((service) => service.endpoints ?? [])
  const found = endpoints.find((one) => one.interface === wanted && (region === undefined || one.region_id === region || one.region === region))
  if (found?.url !== undefined) return found.url
  if (endpoints.length === 0) throw new RoostError('STORE_REFUSED',
    `The catalog of ${cloud.authUrl} has no object-store for ${cloud.origin}: name a project that has one, or set object_store_endpoint_override.`)
  const there = [...new Set(endpoints.map((one) => `${one.region_id ?? one.region ?? '?'}/${one.interface ?? '?'}`))].join(', ')
  throw new RoostError('STORE_REFUSED', `The catalog of ${cloud.authUrl} has no object-store in region ${region ?? '(any)'} with interface ${wanted}; there are ${there}.`)
}

/** Keystone answers 404 for an application credential that was deleted; a wrong address does so too, in other words. */
function isKeystoneError(text: string): boolean {
  try { return typeof (JSON.parse(text) as { error?: { code?: unknown } }).error?.code === 'number' } catch { return false }
}
function loginRefused(cloud: CloudConfig, answer: HttpAnswer, isKeystones = false): RoostError {
  const { status, headers } = answer
  const retryAfterMs = parseRetryAfter(headers['retry-after'], headers['date'])
  const advice = cloud.authType === 'applicationCredential' ? 'check the application credential, which may be deleted or expired' : 'check user, password, domain and project'
  if (status === 401 || status === 403 || (status === 404 && isKeystones)) return new RoostError('STORE_REFUSED',
    `The identity service at ${cloud.authUrl} refuses the credentials of ${cloud.origin} (${status}): ${advice}.`, { status })
  if (status === 429 || status >= 500) return new RoostError('STORE_UNAVAILABLE',
    `The identity service at ${cloud.authUrl} answers ${status}, so there is no token for Swift; look at its log.`, { status, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) })
  return new RoostError('STORE_REFUSED', `${cloud.authUrl} answers ${status} to a login: it is not the auth_url of ${cloud.authType === 'v1' ? 'a version 1 service' : 'Keystone v3'}.`, { status })
}
const notIdentity = (cloud: CloudConfig): RoostError =>
  new RoostError('STORE_REFUSED', `${cloud.authUrl} answers, but not as an identity service does: is a web proxy or another site in between?`)
const trimmed = (url: string): string => url.replace(/\/+$/, '')
