/** Requests to the services of one cloud: the token and its renewal, where each service is, Nova's microversion, and what refusals mean.
 *
 *  Answers are read whole and bounded. What only reads is asked again while a service is overloaded or away; what
 *  changes something is sent once, unless it may be repeated.
 */
import type { Clock } from '../core/clock.js'
import { createHttp, HttpFailure, parseRetryAfter, readText, type Http, type HttpAnswer, type HttpRequest } from '../http/http.js'
import { endpointOf } from './catalog.js'
import type { CloudConfig } from './cloud-config.js'
import { CloudError } from './cloud-error.js'
import { logInToKeystone, type Deadlines, type KeystoneLogin } from './keystone.js'
import { chooseMicroversion, serviceRoot, versionRoot } from './service-root.js'
import { TokenSession } from './token-session.js'

export type CloudService = 'compute' | 'image' | 'network'
export interface CloudOptions {
  /** Read anew at every login. @throws {CloudError} CLOUD_NOT_CONFIGURED */
  readonly readConfig: () => Promise<CloudConfig>
  readonly clock: Clock
  readonly deadlines?: Deadlines
}
export interface CloudRequest extends Omit<HttpRequest, 'body'> {
  /** Below the service's version: "/servers/ID". */
  readonly path: string
  readonly json?: unknown
  /** It comes to the same when it is done twice: asked again while the service is overloaded. What reads or deletes is so by itself. */
  readonly isRepeatable?: boolean
  /** A stream can be sent once: no renewal of the token. */
  readonly body?: HttpRequest['body']
}
export type Json = Readonly<Record<string, unknown>>

const ANSWER_BYTES_MAX = 16 * 1024 * 1024
const ATTEMPTS = 3
const RETRY_MS = 500
const RETRY_MS_MAX = 10_000
const NAMES: Readonly<Record<CloudService, string>> = { compute: 'Nova', image: 'Glance', network: 'Neutron' }

interface CloudLogin extends KeystoneLogin { readonly config: CloudConfig }

export class Cloud {
  readonly #options: CloudOptions
  readonly #session: TokenSession<CloudLogin>
  #http: Http | undefined
  #microversion: string | undefined
  readonly #ending = new AbortController()
  constructor(options: CloudOptions) {
    this.#options = options
    this.#session = new TokenSession(options.clock, async () => {
      const config = await options.readConfig()
      const login = await logInToKeystone(config, 'OpenStack', options.deadlines ?? {}, this.#ending.signal)
      this.#http ??= createHttp({ ...options.deadlines, verify: config.verify, ...(config.ca === undefined ? {} : { ca: config.ca }) })
      return { ...login, config }
    })
  }
  /** Whether the catalog has it. @throws {CloudError} as logging in does */
  async has(service: CloudService, signal?: AbortSignal): Promise<boolean> {
    try {
      await this.#root(service, signal)
      return true
    } catch (error) {
      if (error instanceof CloudError && error.code === 'CLOUD_UNKNOWN') return false
      throw error
    }
  }
  async projectId(signal?: AbortSignal): Promise<string | undefined> { return (await this.#session.current(signal)).projectId }

  /** The answer's JSON; undefined for an empty one. @throws {CloudError}; `signal.reason` */
  async ask(service: CloudService, request: CloudRequest): Promise<Json | undefined> {
    const isRepeatable = request.isRepeatable ?? (request.method === 'GET' || request.method === 'DELETE')
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#askOnce(service, request)
      } catch (error) {
        if (!isRepeatable || attempt === ATTEMPTS || !(error instanceof CloudError) || error.code !== 'CLOUD_UNAVAILABLE') throw error
        await this.#options.clock.sleep(Math.min(RETRY_MS_MAX, error.facts.retryAfterMs ?? RETRY_MS * 3 ** (attempt - 1)), request.signal)
      }
    }
  }
  async get(service: CloudService, path: string, signal?: AbortSignal): Promise<Json> {
    return await this.ask(service, { method: 'GET', path, ...(signal && { signal }) }) ?? {}
  }
  /** Nova's version of its API that is spoken with it, such as [2, 90]: the newest that both know. @throws {CloudError}; `signal.reason` */
  async microversion(signal?: AbortSignal): Promise<readonly [number, number]> {
    if (this.#microversion === undefined) {
      const answer = await this.#send('compute', { method: 'GET', path: '/', headers: {}, ...(signal && { signal }) })
      const text = await this.#text('compute', answer, signal)
      this.#microversion = chooseMicroversion(answer.status === 200 ? parseJson(text) : undefined)
    }
    const [major, minor] = this.#microversion.split('.').map(Number)
    return [major!, minor!]
  }
  /** Logs nobody out: tokens run out by themselves, and other processes may share an application credential. */
  async close(): Promise<void> {
    this.#ending.abort(new CloudError('CLOUD_UNAVAILABLE', 'The connection to the cloud was closed.'))
    await this.#http?.close()
  }

  async #askOnce(service: CloudService, request: CloudRequest): Promise<Json | undefined> {
    const version = service === 'compute' ? (await this.microversion(request.signal)).join('.') : undefined
    const headers = { accept: 'application/json', ...(request.json !== undefined && { 'content-type': 'application/json' }),
      ...(version === undefined ? {} : { 'openstack-api-version': `compute ${version}`, 'x-openstack-nova-api-version': version }), ...request.headers }
    const answer = await this.#send(service, { ...request, headers })
    const text = await this.#text(service, answer, request.signal)
    if (answer.status < 200 || answer.status >= 300) throw refusal(NAMES[service], `${request.method} ${pathOf(request.path)}`, answer, text)
    if (text.trim() === '') return undefined
    const value = parseJson(text)
    if (value === undefined) throw new CloudError('CLOUD_REFUSED',
      `What answers as ${NAMES[service]} (${answer.status}, ${answer.headers['content-type'] ?? 'no type'}) does not speak JSON: is a web proxy in between?`, { status: answer.status })
    return value
  }
  async #send(service: CloudService, request: CloudRequest): Promise<HttpAnswer> {
    const login = await this.#session.current(request.signal)
    const answer = await this.#sendAs(login, service, request)
    if (answer.status !== 401 || typeof request.body === 'object') return answer
    answer.body.on('error', () => undefined).resume()
    return await this.#sendAs(await this.#session.replace(login, request.signal), service, request)
  }
  async #sendAs(login: CloudLogin, service: CloudService, { path, json, body, method, headers, signal, answerMs }: CloudRequest): Promise<HttpAnswer> {
    const root = serviceRoot(service, endpointOf(login.catalog, login.config, [service]))
    const content = json === undefined ? body : JSON.stringify(json)
    try {
      return await this.#http!.request(`${path === '/' ? versionRoot(root) : root}${path}`, { method, headers: { ...headers, 'x-auth-token': login.token },
        ...(content === undefined ? {} : { body: content }), ...(signal && { signal }), ...(answerMs === undefined ? {} : { answerMs }) })
    } catch (error) { throw unreachable(NAMES[service], root, error) }
  }
  async #text(service: CloudService, answer: HttpAnswer, signal: AbortSignal | undefined): Promise<string> {
    try {
      return await readText(answer, ANSWER_BYTES_MAX, signal)
    } catch (error) { throw unreachable(NAMES[service], 'its address', error) }
  }
  async #root(service: CloudService, signal: AbortSignal | undefined): Promise<string> {
    const { catalog, config } = await this.#session.current(signal)
    return endpointOf(catalog, config, [service])
  }
}

function unreachable(name: string, where: string, error: unknown): unknown {
  if (!(error instanceof HttpFailure)) return error
  return new CloudError('CLOUD_UNAVAILABLE', `${name} at ${where} ${error.what}; see that it runs and can be reached from here.`, {}, { cause: error })
}
/** Queries may hold names of other people's things. */
const pathOf = (path: string): string => path.split('?')[0]!

export function refusal(name: string, what: string, { status, headers }: Pick<HttpAnswer, 'status' | 'headers'>, text: string): CloudError {
  const requestId = headers['x-openstack-request-id'] ?? headers['x-compute-request-id']
  const words = messageOf(text)
  const told = `${name} answers ${status} to ${what}${words === '' ? '' : `: ${words}`}${requestId === undefined ? '' : ` (${requestId})`}`
  const fail = (code: CloudError['code'], advice: string): CloudError => new CloudError(code, `${told.replace(/\.$/, '')}${advice}.`, { status })
  if (status === 429 || status >= 500) {
    const retryAfterMs = parseRetryAfter(headers['retry-after'], headers['date'])
    return new CloudError('CLOUD_UNAVAILABLE', `${told.replace(/\.$/, '')}.`, { status, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) })
  }
  switch (status) {
    case 401: return fail('CLOUD_REFUSED', '; the token was made a moment ago, so this service may not reach Keystone')
    case 403: return fail('CLOUD_REFUSED', '; these credentials may not do it, or a quota is reached')
    case 404: return fail('CLOUD_UNKNOWN', '')
    case 409: return fail('CLOUD_CONFLICT', '')
    default: return fail('CLOUD_REFUSED', status >= 300 && status < 400 ? '; it redirects elsewhere: the catalog should have the final address' : '')
  }
}
const MESSAGE_CHARACTERS_MAX = 400
/** `{"badRequest": {"message": …}}`, `{"NeutronError": {"message": …}}`, `{"message": …}`, or a page of HTML. */
function messageOf(text: string): string {
  const value = parseJson(text)
  const nested = value === undefined ? undefined : [value, ...Object.values(value)].find((one): one is Json => isObject(one) && typeof one['message'] === 'string')
  const words = nested !== undefined ? nested['message'] as string : value !== undefined ? '' : text.replace(/<title>[^<]*<\/title>/gi, ' ').replace(/<[^>]*>/g, ' ')
  return words.replace(/\s+/g, ' ').trim().slice(0, MESSAGE_CHARACTERS_MAX)
}
function parseJson(text: string): Json | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) ? value : undefined
  } catch { return undefined } // what it means is for the caller to say
}
const isObject = (value: unknown): value is Json => typeof value === 'object' && value !== null && !Array.isArray(value)
