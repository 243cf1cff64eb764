/** HTTP to one server: keep-alive connections, bodies as lists of buffers, typed errors, patience.
 *
 *  A request that fails in a way that may pass is repeated until `retryForMs` have gone by since it first failed, so that a
 *  push outlives a restart of the server:
 *   - the connection could not be made, or broke (only for requests whose repetition is harmless);
 *   - a typed error with advice `same` (exponential back-off with jitter) or `later` (Retry-After);
 *   - a 5xx that no server of ours wrote (a proxy between).
 *  `never` and `restart-session` are thrown at once. There is no deadline on the whole of a request, only on connecting and on
 *  silence: bodies may be large and slow. Waiting is reported through `onWaiting`.
 */
import { readFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import type { Clock } from '../core/clock.js'
import type { Random } from '../core/random.js'
import { hasCode, isErrno, RoostError } from '../core/errors.js'
import { MiB } from '../core/limits.js'
import { ClientError, decodeWireError } from './client-errors.js'
import type { RateLimiter } from '../core/rate-limit.js'

export interface WaitingNotice { readonly error: Error; readonly attempt: number; readonly delayMs: number; readonly waitedMs: number }
export interface TransportOptions {
  /** `http(s)://host:port[/prefix]` */
  readonly baseUrl: string
  readonly token?: string
  /** PEM of the authorities to trust instead of the system's. */
  readonly caFile?: string
  /** The same, as text. */
  readonly ca?: string
  /** Allows a token to travel over plain HTTP to another machine. */
  readonly allowPlainHttp?: boolean
  /** How long a failing request is repeated; 0 = never. Default 5 min. */
  readonly retryForMs?: number
  readonly connectMs?: number
  /** Longest silence of an open request. */
  readonly idleMs?: number
  readonly connectionsMax?: number
  readonly uploadLimit?: RateLimiter
  readonly clock: Clock
  readonly random: Random
  readonly onWaiting?: (notice: WaitingNotice) => void
}

export interface TransportRequest {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  /** Starts with '/', query included. */
  readonly path: string
  readonly parts?: readonly Uint8Array[]
  readonly contentType?: string
  readonly accept?: string
  /** False: doing it twice is not the same as once; it is then repeated only if it never reached the server. */
  readonly repeatable?: boolean
  readonly idleMs?: number
  readonly signal?: AbortSignal
  /** The body was handed over to the network whole; once for each attempt. */
  readonly onSent?: () => void
}

const RETRY_FOR_MS = 5 * 60_000
/** A full spool empties as fast as the server's targets take it, and a long wait beats a backup begun again. */
const SPOOL_WAIT_MS = 60 * 60_000
const CONNECT_MS = 15_000
const IDLE_MS = 5 * 60_000
const BACKOFF_FIRST_MS = 250
const BACKOFF_MAX_MS = 15_000
const JSON_REPLY_BYTES_MAX = 64 * MiB
const ERROR_BODY_BYTES_MAX = 64 * 1024
const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/

export class Transport {
  readonly #options: TransportOptions
  readonly #base: URL
  readonly #pathPrefix: string
  readonly #ca: Buffer | string | undefined
  readonly #agent: http.Agent
  readonly #headers: Record<string, string> = { 'user-agent': 'roost-client' }
  /** @throws {ClientError} URL_MALFORMED; PLAIN_HTTP_REFUSED */
  constructor(options: TransportOptions) {
    this.#options = options
    this.#base = parseBaseUrl(options.baseUrl)
    this.#pathPrefix = this.#base.pathname.replace(/\/+$/, '')
    this.#ca = options.caFile === undefined ? options.ca : readFileSync(options.caFile)
    const secure = this.#base.protocol === 'https:'
    if (options.token !== undefined) {
      if (!secure && !LOOPBACK.test(this.#base.hostname) && options.allowPlainHttp !== true)
        throw new ClientError('PLAIN_HTTP_REFUSED', `The token would travel unencrypted to ${this.#base.hostname}: use https, or allow it explicitly.`)
      this.#headers['authorization'] = `Bearer ${options.token}`
    }
    const pool = { keepAlive: true, maxSockets: options.connectionsMax ?? 16, scheduling: 'lifo' as const }
    this.#agent = secure ? new https.Agent(pool) : new http.Agent(pool)
  }

  async json<T>(request: TransportRequest, body?: unknown): Promise<T> {
    const encoded: Partial<TransportRequest> = body === undefined ? {}
      : { parts: [Buffer.from(JSON.stringify(body))], contentType: 'application/json' }
    const reply = await this.bytes({ accept: 'application/json', ...request, ...encoded }, JSON_REPLY_BYTES_MAX)
    if (reply.byteLength === 0) return undefined as T
    try {
      return JSON.parse(reply.toString('utf8')) as T
    } catch (error) {
      throw new ClientError('REPLY_MALFORMED', `The reply to ${request.method} ${request.path} is not JSON.`, { cause: error })
    }
  }
  /** The whole reply, which the caller knows to be small. */
  async bytes(request: TransportRequest, replyBytesMax: number): Promise<Buffer> {
    return await this.#withRetries(request, async () => await readWhole(await this.#send(request), replyBytesMax))
  }
  /** The reply as a stream. Repetition ends where the reply begins; destroying the stream ends the request. */
  async stream(request: TransportRequest): Promise<http.IncomingMessage> {
    return await this.#withRetries(request, () => this.#send(request))
  }
  close(): void { this.#agent.destroy() }

  async #withRetries<T>(request: TransportRequest, work: () => Promise<T>): Promise<T> {
    const { clock, random, onWaiting } = this.#options
    const retryForMs = this.#options.retryForMs ?? RETRY_FOR_MS
    let firstFailureMs: number | undefined
    for (let attempt = 1; ; attempt++) {
      request.signal?.throwIfAborted()
      try {
        return await work()
      } catch (error) {
        request.signal?.throwIfAborted()
        if (!(error instanceof Error) || !mayRepeat(error, request.repeatable !== false)) throw error
        firstFailureMs ??= clock.monotonicMs()
        const waitedMs = clock.monotonicMs() - firstFailureMs
        const backoffMs = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (attempt - 1)) * (0.75 + random.fraction() / 2)
        const delayMs = Math.max(backoffMs, retryAfterMs(error) * (1 + random.fraction() / 4))
        if (waitedMs + delayMs > (hasCode(error, 'SPOOL_FULL') ? Math.max(retryForMs, SPOOL_WAIT_MS) : retryForMs)) throw error
        onWaiting?.({ error, attempt, delayMs, waitedMs })
        await clock.sleep(delayMs, request.signal)
      }
    }
  }

  /** One attempt: resolves with the head of a 2xx reply; anything else is thrown, decoded. */
  async #send(request: TransportRequest): Promise<http.IncomingMessage> {
    const { signal } = request
    const parts = request.parts ?? []
    const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0)
    const headers: Record<string, string | number> = { ...this.#headers }
    if (request.accept !== undefined) headers['accept'] = request.accept
    if (request.contentType !== undefined) headers['content-type'] = request.contentType
    if (request.parts !== undefined) headers['content-length'] = bytes
    // A kept connection may have been closed by the server meanwhile; what must not be done twice goes on a fresh one.
    const agent = request.repeatable === false ? false : this.#agent
    const outgoing = (this.#base.protocol === 'https:' ? https : http).request({
      protocol: this.#base.protocol, hostname: this.#base.hostname.replace(/^\[|\]$/g, ''), port: this.#base.port,
      path: this.#pathPrefix + request.path, method: request.method, headers, agent,
      timeout: this.#options.connectMs ?? CONNECT_MS,
      ...(this.#ca === undefined ? {} : { ca: this.#ca }),
      ...(signal === undefined ? {} : { signal }),
    })
    const reply = new Promise<http.IncomingMessage>((resolve, reject) => {
      outgoing.once('response', resolve)
      // Stays registered: an error after the reply began shows on the reply as well, and must not crash the process here.
      outgoing.on('error', reject)
    })
    if (request.onSent !== undefined) outgoing.once('finish', request.onSent)
    watchSilence(outgoing, request.idleMs ?? this.#options.idleMs ?? IDLE_MS)
    try {
      // Whichever comes first: a refusal may arrive while the body is still being written.
      const written = this.#write(outgoing, parts, signal)
      const first = await Promise.race([reply, written.then(() => undefined)])
      const incoming = first ?? await reply
      written.catch(() => undefined) // the reply is here already; how writing ends matters no more
      if (incoming.statusCode !== undefined && incoming.statusCode >= 200 && incoming.statusCode < 300) return incoming
      throw await readRefusal(incoming, outgoing)
    } catch (error) {
      reply.catch(() => undefined) // the same failure as the one being thrown
      outgoing.destroy()
      signal?.throwIfAborted()
      throw connectionFailure(error, this.#base)
    }
  }
  async #write(outgoing: http.ClientRequest, parts: readonly Uint8Array[], signal: AbortSignal | undefined): Promise<void> {
    const limiter = this.#options.uploadLimit
    let sinceYield = 0
    outgoing.cork()
    for (const part of parts) {
      const step = limiter === undefined ? part.byteLength : limiter.pieceBytes
      for (let at = 0; at < part.byteLength; at += step) {
        const piece = step >= part.byteLength ? part : part.subarray(at, at + step)
        if (limiter !== undefined) {
          outgoing.uncork()
          await limiter.take(piece.byteLength, signal)
          outgoing.cork()
        }
        if (outgoing.destroyed) return
        outgoing.write(piece)
        sinceYield += piece.byteLength
        if (sinceYield < WRITE_BATCH_BYTES) continue
        sinceYield = 0
        outgoing.uncork()
        if (outgoing.writableNeedDrain) await drained(outgoing)
        outgoing.cork()
      }
    }
    outgoing.end()
    outgoing.uncork()
  }
}
/** Written as one vector; then the kernel's pace decides. */
const WRITE_BATCH_BYTES = 1 * MiB

/** `http(s)://host:port/NAME`, a path before NAME allowed. @throws {ClientError} URL_MALFORMED */
export function parseRepositoryUrl(text: string): { readonly baseUrl: string; readonly repository: string } {
  const url = URL.canParse(text) ? new URL(text) : undefined
  const segments = url?.pathname.replace(/\/+$/, '').split('/') ?? []
  const name = segments.pop() ?? ''
  if (url === undefined || !/^https?:$/.test(url.protocol) || name === '' || url.search !== '' || url.hash !== '')
    throw new ClientError('URL_MALFORMED', 'A repository is named as http(s)://host:port/NAME.')
  return { baseUrl: url.origin + segments.join('/'), repository: decodeURIComponent(name) }
}
/** @throws {ClientError} URL_MALFORMED */
function parseBaseUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url === undefined || (url.protocol !== 'http:' && url.protocol !== 'https:') || url.search !== '' || url.hash !== '' || url.username !== '')
    throw new ClientError('URL_MALFORMED', 'A server is named as http(s)://host:port, without user, query or fragment.')
  return url
}

function drained(outgoing: http.ClientRequest): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      outgoing.off('drain', done)
      outgoing.off('close', done)
      resolve()
    }
    outgoing.on('drain', done)
    outgoing.on('close', done)
  })
}

/** Until connected the socket's timeout is the connecting deadline (set with the request); from then on it is the silence
 *  deadline. A reader that does not take what has arrived is not silence. */
function watchSilence(outgoing: http.ClientRequest, idleMs: number): void {
  let incoming: http.IncomingMessage | undefined
  outgoing.once('response', (reply: http.IncomingMessage) => { incoming = reply })
  outgoing.once('socket', (socket) => {
    if (socket.connecting) socket.once('connect', () => socket.setTimeout(idleMs))
    else socket.setTimeout(idleMs)
  })
  outgoing.on('timeout', () => {
    if (incoming !== undefined && incoming.readableLength > 0) outgoing.socket?.setTimeout(idleMs)
    else outgoing.destroy(Object.assign(new Error('The server was silent for too long.'), { code: 'ETIMEDOUT' }))
  })
}

async function readWhole(incoming: http.IncomingMessage, bytesMax: number): Promise<Buffer> {
  const parts: Buffer[] = []
  let bytes = 0
  try {
    for await (const part of incoming as AsyncIterable<Buffer>) {
      bytes += part.byteLength
      if (bytes > bytesMax) throw new ClientError('REPLY_MALFORMED', `The reply is longer than ${bytesMax} bytes.`)
      parts.push(part)
    }
  } catch (error) {
    throw connectionFailure(error, undefined)
  }
  return parts.length === 1 ? parts[0]! : Buffer.concat(parts, bytes)
}

async function readRefusal(incoming: http.IncomingMessage, outgoing: http.ClientRequest): Promise<RoostError> {
  const { statusCode = 0, headers } = incoming
  let body: Buffer = Buffer.alloc(0)
  try {
    body = await readWhole(incoming, ERROR_BODY_BYTES_MAX)
  } catch {
    // The status alone decides then; decodeWireError says so.
  }
  outgoing.destroy()
  const header = headers['x-request-id'] ?? headers['request-id']
  const error = decodeWireError(statusCode, body, typeof header === 'string' ? header : undefined)
  const seconds = Number(headers['retry-after'])
  if (Number.isFinite(seconds) && seconds > 0) RETRY_AFTER_MS.set(error, Math.min(seconds, 3600) * 1000)
  return error
}
const RETRY_AFTER_MS = new WeakMap<Error, number>()
const retryAfterMs = (error: Error): number => RETRY_AFTER_MS.get(error) ?? 0

/** What the network did, as SERVER_UNREACHABLE with its cause; typed errors pass through. */
function connectionFailure(error: unknown, base: URL | undefined): unknown {
  if (error instanceof RoostError || error instanceof ClientError || !(error instanceof Error)) return error
  if (isErrno(error) && /^(ERR_TLS|CERT_|UNABLE_|DEPTH_ZERO|SELF_SIGNED|ERR_SSL|EPROTO)/.test(error.code ?? ''))
    return new ClientError('TLS_REFUSED', `The server's certificate or TLS is not acceptable: ${error.message}`, { cause: error })
  if (!isErrno(error)) return error
  const where = base === undefined ? 'the server' : base.host
  return new ClientError('SERVER_UNREACHABLE', `The connection to ${where} failed: ${error.message || error.code}`, { cause: error })
}

/** Codes of failures before a single byte of the request was accepted. */
const NEVER_ARRIVED = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH'])
function mayRepeat(error: Error, repeatable: boolean): boolean {
  if (error instanceof RoostError) {
    const { retry } = error.traits
    return retry === 'later' || (retry === 'same' && repeatable)
  }
  if (!(error instanceof ClientError) || error.code !== 'SERVER_UNREACHABLE') return false
  return repeatable || (isErrno(error.cause) && NEVER_ARRIVED.has(error.cause.code ?? ''))
}
