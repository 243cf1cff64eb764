/** HTTP to services of others (storage, OpenStack), by undici: kept-alive connections, deadlines on every wait, failures named. The only importer of undici. */
import { Readable } from 'node:stream'
import { Agent, request as undiciRequest } from 'undici'
import { isErrno } from '../core/errors.js'

export interface HttpOptions {
  /** PEM of further authorities. */
  readonly ca?: string
  /** False accepts any certificate (`verify: false` of a clouds.yaml). */
  readonly verify?: boolean
  /** Default 5 s. */
  readonly connectMs?: number
  /** Until the head of an answer has come, counted from the end of the request. Default 30 s. */
  readonly answerMs?: number
  /** Between two parts of a body. Default 30 s. */
  readonly idleMs?: number
}
export interface HttpRequest {
  readonly method: 'GET' | 'HEAD' | 'PUT' | 'POST' | 'PATCH' | 'DELETE'
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Readable | Buffer | string
  readonly signal?: AbortSignal
  /** Of this request, instead of the general one. */
  readonly answerMs?: number
}
export interface HttpAnswer {
  readonly status: number
  /** Lower case. */
  readonly headers: Readonly<Record<string, string | undefined>>
  readonly body: Readable
}
/** No answer came, or it broke off. `what` completes the sentence "The service …". */
export class HttpFailure extends Error {
  override readonly name = 'HttpFailure'
  constructor(readonly what: string, cause: unknown) { super(what, { cause }) }
}

export interface Http {
  /** @throws {HttpFailure}; `signal.reason`; what a body stream was destroyed with. */
  request(url: string, request: HttpRequest): Promise<HttpAnswer>
  close(): Promise<void>
}

export function createHttp({ ca, verify = true, connectMs = 5_000, answerMs = 30_000, idleMs = 30_000 }: HttpOptions = {}): Http {
  const agent = new Agent({ connect: { timeout: connectMs, ...(ca === undefined ? {} : { ca }), rejectUnauthorized: verify },
    headersTimeout: answerMs, bodyTimeout: idleMs, keepAliveTimeout: 4_000, connections: 64, pipelining: 1, maxResponseSize: -1 })
  return {
    request: async (url, { method, headers = {}, body, signal, answerMs: ownAnswerMs }) => {
      signal?.throwIfAborted()
      try {
        const answer = await undiciRequest(url, { dispatcher: agent, method, headers, body: body ?? null, signal: signal ?? null, maxRedirections: 0,
          ...(ownAnswerMs === undefined ? {} : { headersTimeout: ownAnswerMs }) })
        return { status: answer.statusCode, headers: flat(answer.headers), body: answer.body }
      } catch (error) {
        signal?.throwIfAborted()
        throw new HttpFailure(describe(error), error)
      }
    },
    close: () => agent.destroy(),
  }
}

/** The whole body of an answer, at most `bytesMax` of it; a longer one is cut. @throws {HttpFailure}; `signal.reason` */
export async function readText(answer: HttpAnswer, bytesMax: number, signal?: AbortSignal): Promise<string> {
  const parts: Buffer[] = []
  let bytes = 0
  try {
    for await (const part of answer.body) {
      parts.push(part as Buffer)
      bytes += (part as Buffer).byteLength
      if (bytes >= bytesMax) break
    }
  } catch (error) {
    signal?.throwIfAborted()
    throw new HttpFailure(describe(error), error)
  }
  return Buffer.concat(parts).toString('utf8', 0, bytesMax)
}
/** Lets the connection be used again. */
export function discard(answer: HttpAnswer): void {
  answer.body.on('error', () => undefined) // nobody wants it
  answer.body.resume()
}

/** Ends an answer that nobody wants and that may be long; its connection is closed. */
export function drop(answer: HttpAnswer): void {
  answer.body.on('error', () => undefined) // the breaking off itself
  answer.body.destroy()
}

/** What a transport failure means, for people. */
export function describe(error: unknown): string {
  const code = codeOf(error) ?? codeOf((error as Error | undefined)?.cause)
  switch (code) {
    case 'ECONNREFUSED': return 'refuses connections'
    case 'ENOTFOUND': case 'EAI_AGAIN': return 'has a name that cannot be resolved'
    case 'UND_ERR_CONNECT_TIMEOUT': case 'ETIMEDOUT': case 'EHOSTUNREACH': case 'ENETUNREACH': return 'cannot be reached'
    case 'UND_ERR_HEADERS_TIMEOUT': return 'took the request and did not answer in time'
    case 'UND_ERR_BODY_TIMEOUT': return 'stopped in the middle of its answer'
    case 'UND_ERR_SOCKET': case 'ECONNRESET': case 'EPIPE': return 'broke the connection'
    case 'DEPTH_ZERO_SELF_SIGNED_CERT': case 'SELF_SIGNED_CERT_IN_CHAIN': case 'UNABLE_TO_VERIFY_LEAF_SIGNATURE': case 'CERT_HAS_EXPIRED':
    case 'ERR_TLS_CERT_ALTNAME_INVALID': return 'shows a certificate that is not trusted'
    default: return 'does not answer in HTTP'
  }
}
const codeOf = (error: unknown): string | undefined => isErrno(error) ? error.code : undefined
function flat(headers: Readonly<Record<string, string | string[] | undefined>>): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), Array.isArray(value) ? value.join(', ') : value]))
}

/** Seconds, or a date, which is held against the answer's own: this machine's clock may differ. */
export function parseRetryAfter(text: string | undefined, date?: string): number | undefined {
  if (text === undefined) return undefined
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.parse(date ?? '')
  return ms >= 0 ? ms : undefined
}
