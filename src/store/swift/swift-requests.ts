/** Requests to one Swift account with the session's token: one renewal when it is rejected, and reads signed by a TempURL key when no token can
 *  be had.
 */
import { createHmac } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { Clock } from '../../core/clock.js'
import { hasCode, RoostError } from '../../core/errors.js'
import { createHttp, discard, HttpFailure, type Http, type HttpAnswer, type HttpOptions, type HttpRequest } from '../../http/http.js'
import type { CloudConfig, Environment } from '../../openstack/cloud-config.js'
import { TokenSession } from '../../openstack/token-session.js'
import { logIn, readSwiftCloud, type Login } from './login.js'
import type { SwiftPlace } from './swift-url.js'

export interface SwiftMemory {
  read(): Promise<string | undefined>
  write(text: string): Promise<void>
}
export interface SwiftRequestsOptions {
  readonly place: SwiftPlace
  readonly clock: Clock
  readonly environment: Environment
  /** Keeps the account's address over restarts, so that TempURL reads need no identity service. Holds no secret. */
  readonly memory?: SwiftMemory
  readonly deadlines?: Pick<HttpOptions, 'connectMs' | 'answerMs' | 'idleMs'>
}
export interface SwiftRequest extends Omit<HttpRequest, 'body'> {
  /** Below the account: "/container/key". */
  readonly path: string
  readonly query?: string
  /** Made anew for the second attempt. */
  readonly body?: () => HttpRequest['body']
  /** May go on without a token, signed. */
  readonly isRead?: boolean
}
const SIGNED_FOR_SECONDS = 300
/** How long signed reads go without asking the identity service again. */
const AWAY_MS = 10_000

export class SwiftRequests {
  readonly #options: SwiftRequestsOptions
  readonly #session: TokenSession<Login>
  #http: Http | undefined
  #httpFor = ''
  #storageUrl: string | undefined
  readonly #closed = new AbortController()
  /** Why there was no token a moment ago: signed reads do not wait for a dead identity service each. */
  #away: { readonly reason: unknown; readonly untilMs: number } | undefined

  constructor(options: SwiftRequestsOptions) {
    this.#options = options
    this.#session = new TokenSession(options.clock, () => this.#logIn())
  }
  async #logIn(): Promise<Login> {
    const { place, environment, memory, deadlines = {} } = this.#options
    const cloud = await readSwiftCloud(place.cloud, environment, place.auth)
    const login = await logIn(cloud, { ...(place.region && { region: place.region }), ...(place.interface && { interface: place.interface }), deadlines })
    this.#trust(cloud)
    if (this.#storageUrl !== login.storageUrl) {
      this.#storageUrl = login.storageUrl
      await memory?.write(JSON.stringify({ storageUrl: login.storageUrl })).catch(() => undefined) // a help for bad days only; today all works
    }
    return login
  }

  /** Connections by what the cloud says of certificates. */
  #trust(cloud: CloudConfig): Http {
    const trust = JSON.stringify([cloud.ca, cloud.verify])
    if (this.#http !== undefined && trust === this.#httpFor) return this.#http
    const before = this.#http
    this.#http = createHttp({ ...this.#options.deadlines, verify: cloud.verify, ...(cloud.ca === undefined ? {} : { ca: cloud.ca }) })
    this.#httpFor = trust
    if (before !== undefined) void this.#options.clock.sleep(60_000, this.#closed.signal).catch(() => undefined).then(() => before.close()) // calls under way end first
    return this.#http
  }

  /** The last known address of the account, for messages. */
  get isKnown(): boolean { return this.#storageUrl !== undefined }
  get where(): string { return this.#storageUrl ?? 'Swift' }

  /** Answers of any status but 401. @throws {RoostError} STORE_UNAVAILABLE; STORE_REFUSED; `signal.reason`; what a body fails with */
  async send(request: SwiftRequest): Promise<HttpAnswer> {
    if (request.isRead === true && this.#options.place.tempUrlKeyFile !== undefined && this.#away !== undefined
      && this.#options.clock.monotonicMs() < this.#away.untilMs) return await this.#sendSigned(request, this.#away.reason)
    let login: Login
    try { login = await this.#session.current(request.signal) } catch (error) {
      return await this.#sendSigned(request, error)
    }
    const answer = await this.#sendOnce(login, request)
    if (answer.status !== 401) return answer
    discard(answer)
    try { login = await this.#replace(login, request.signal) } catch (error) {
      return await this.#sendSigned(request, error)
    }
    return await this.#sendOnce(login, request)
  }
  /** After a connection that broke in mid-upload: was the token the reason? Then the next attempt has another. */
  async checkToken(signal?: AbortSignal): Promise<void> {
    const login = await this.#session.current(signal)
    const answer = await this.#sendOnce(login, { method: 'HEAD', path: '', ...(signal && { signal }) })
    discard(answer)
    if (answer.status === 401) await this.#replace(login, signal)
  }
  async #replace(rejected: Login, signal: AbortSignal | undefined): Promise<Login> {
    return await this.#session.replace(rejected, signal).catch((error: unknown) => {
      if (hasCode(error, 'STORE_UNAVAILABLE')) throw new RoostError('STORE_UNAVAILABLE', `Swift asks for a new token (401). ${error.message}`, error.details, { cause: error })
      throw error
    })
  }
  #sendOnce(login: Login, request: SwiftRequest): Promise<HttpAnswer> {
    return this.#exchange(`${login.storageUrl}${request.path}${request.query ?? ''}`, { ...request.headers, 'x-auth-token': login.token }, request)
  }
  async #exchange(url: string, headers: Record<string, string>, { method, signal, body }: SwiftRequest): Promise<HttpAnswer> {
    const content = body?.()
    try {
      return await this.#http!.request(url, { method, headers, ...(content === undefined ? {} : { body: content }), ...(signal && { signal }) })
    } catch (error) {
      if (!(error instanceof HttpFailure)) throw error
      throw new RoostError('STORE_UNAVAILABLE', `Swift at ${new URL(url).origin} ${error.what}; see that its proxy runs and can be reached from here.`, {}, { cause: error })
    }
  }

  /** A read without a token, when a key allows it; else the reason why there is no token. */
  async #sendSigned(request: SwiftRequest, reason: unknown): Promise<HttpAnswer> {
    const { place, clock, environment } = this.#options
    if (request.isRead !== true || place.tempUrlKeyFile === undefined || !hasCode(reason, 'STORE_UNAVAILABLE')) throw reason
    request.signal?.throwIfAborted()
    const storageUrl = await this.#knownStorageUrl()
    if (storageUrl === undefined) throw reason
    if (reason !== this.#away?.reason) this.#away = { reason, untilMs: clock.monotonicMs() + AWAY_MS }
    const key = (await readFile(place.tempUrlKeyFile, 'utf8').catch((error: unknown) => {
      throw new RoostError('STORE_REFUSED', `The TempURL key file ${place.tempUrlKeyFile} cannot be read.`, {}, { cause: error })
    })).trim()
    if (this.#http === undefined) this.#trust(await readSwiftCloud(place.cloud, environment, place.auth))
    const path = `${new URL(storageUrl).pathname}${request.path}`
    const expires = Math.ceil(clock.now() / 1000) + SIGNED_FOR_SECONDS
    const signature = createHmac('sha256', key).update(`${request.method}\n${expires}\n${decodeURIComponent(path)}`).digest('hex')
    const answer = await this.#exchange(`${storageUrl}${request.path}?temp_url_sig=${signature}&temp_url_expires=${expires}`, { ...request.headers }, request)
    if (answer.status !== 401) return answer
    discard(answer)
    throw new RoostError('STORE_UNAVAILABLE',
      `${(reason as RoostError).message} The TempURL key was tried and rejected: it is not the container's or account's key, or the clocks of this machine and Swift differ.`, {}, { cause: reason })
  }
  async #knownStorageUrl(): Promise<string | undefined> {
    if (this.#storageUrl !== undefined) return this.#storageUrl
    const text = await this.#options.memory?.read()
    if (text === undefined) return undefined
    try {
      const { storageUrl } = JSON.parse(text) as { storageUrl?: unknown }
      if (typeof storageUrl === 'string') this.#storageUrl = storageUrl
    } catch { /* A note that cannot be read is none. */ }
    return this.#storageUrl
  }
  /** A public address of the same service, without a token. */
  sendTo(url: string): Promise<HttpAnswer> { return this.#exchange(url, {}, { method: 'GET', path: '' }) }
  async close(): Promise<void> {
    this.#closed.abort()
    await this.#http?.close()
  }
}
