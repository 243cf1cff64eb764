/** A small HTTP server over a repository in memory: the client's transport and wire code against real sockets.
 *
 *  `interfere` scripts what happens to the next requests before the repository sees them: refusals, cut connections, odd replies.
 */
import http from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import type { TestContext } from 'node:test'
import { ERROR_CATALOGUE, RoostError, type ErrorCode } from '../../src/core/errors.js'
import { encodeReadFrameHeader, READ_END, READ_STATUS, WIRE_CODECS } from '../../src/core/frames.js'
import { CHUNK_KINDS, parseSessionId, parseSnapshotId } from '../../src/core/ids.js'
import type { CommitRequest, OpenSessionRequest, WireError } from '../../src/core/messages.js'
import { zstdEncoder } from '../../src/core/zstd.js'
import { MemoryRepository } from './memory-repository.js'

/** True: the request is dealt with. */
export type Interference = (request: http.IncomingMessage, response: http.ServerResponse) => boolean | void

export class FakeRepositoryServer {
  readonly requests: { method: string; path: string; headers: http.IncomingHttpHeaders; bodyBytes: number }[] = []
  readonly #server: http.Server
  readonly #sockets = new Set<Socket>()
  readonly #interferences: Interference[] = []
  connections = 0
  readFramesAsZstd = false
  /** Cuts the next read reply after so many bytes. */
  cutReadAfterBytes: number | undefined
  private constructor(readonly repository: MemoryRepository) {
    this.#server = http.createServer((request, response) => { void this.#serve(request, response) })
    this.#server.on('connection', (socket) => {
      this.connections++
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
    })
  }
  static async start(t: TestContext, repository = new MemoryRepository()): Promise<FakeRepositoryServer> {
    const fake = new FakeRepositoryServer(repository)
    await fake.listen(0)
    t.after(() => fake.stop())
    return fake
  }
  async listen(port: number): Promise<void> {
    await new Promise<void>((resolve) => { this.#server.listen(port, '127.0.0.1', resolve) })
  }
  /** Drops all connections and stops listening, as a killed process does. */
  async stop(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve))
    for (const socket of this.#sockets) socket.destroy()
    await closed
  }
  get port(): number { return (this.#server.address() as AddressInfo).port }
  get baseUrl(): string { return `http://127.0.0.1:${this.port}` }
  interfere(...interferences: Interference[]): void { this.#interferences.push(...interferences) }
  get interferencesPending(): number { return this.#interferences.length }

  async #serve(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const seen = { method: request.method ?? '', path: request.url ?? '', headers: request.headers, bodyBytes: 0 }
    this.requests.push(seen)
    const interference = this.#interferences.shift()
    if (interference?.(request, response) === true) return
    try {
      const parts: Buffer[] = []
      for await (const part of request as AsyncIterable<Buffer>) parts.push(part)
      const body = Buffer.concat(parts)
      seen.bodyBytes = body.byteLength
      await this.#dispatch(request.method ?? '', new URL(request.url ?? '', 'http://fake'), body, response)
    } catch (error) {
      if (error instanceof RoostError) refuse(response, error.code, error.message)
      else response.destroy(error as Error)
    }
  }
  async #dispatch(method: string, url: URL, body: Buffer, response: http.ServerResponse): Promise<void> {
    const { repository } = this
    const json = (): unknown => JSON.parse(body.toString())
    const [, session = '', action = ''] = /^\/v1\/repositories\/[^/]+\/sessions\/([^/]+)(?:\/(\w+))?$/.exec(url.pathname) ?? []
    const tail = /^\/v1\/repositories\/[^/]+(.*)$/.exec(url.pathname)?.[1] ?? url.pathname
    if (session !== '' && method === 'DELETE') return void response.writeHead(204).end(await repository.closeSession(parseSessionId(session)))
    switch (session === '' ? `${method} ${tail.replace(/\/[0-9a-f]{64}$/, '/:id')}` : `session ${action}`) {
      case 'session missing': return void response.end(await repository.findMissing(parseSessionId(session), body))
      case 'session chunks': return void response.end(Buffer.from(await repository.putChunks(parseSessionId(session), [body], framesIn(body))))
      case 'session read': return await this.#read(session, body, response)
      case 'session commit': return reply(response, await repository.commit(parseSessionId(session), json() as CommitRequest))
      case 'POST /sessions': return reply(response, await repository.openSession(json() as OpenSessionRequest), 201)
      case 'GET /snapshots': return reply(response, await repository.listSnapshots(Object.fromEntries(url.searchParams)))
      case 'GET /snapshots/:id': return reply(response, await repository.getSnapshot(parseSnapshotId(tail.slice(11))))
      case 'GET ': return reply(response, await repository.info())
      case 'POST /check': return void response.end('{"type":"progress","phase":"packs","done":1,"total":1}\n{"type":"done","problems":0,"counts":{}}\n')
      default: refuse(response, 'ROUTE_UNKNOWN', 'no such route')
    }
  }
  async #read(session: string, ids: Buffer, response: http.ServerResponse): Promise<void> {
    const frames: Buffer[] = []
    for await (const { index, status, bytes } of this.repository.readChunks(parseSessionId(session), ids)) {
      const isZstd = this.readFramesAsZstd && bytes !== undefined
      const wire = isZstd ? Buffer.from(zstdEncoder(1).encode(bytes)) : bytes ?? Buffer.alloc(0)
      frames.push(encodeReadFrameHeader({
        index, rawBytes: bytes?.byteLength ?? 0, wireBytes: wire.byteLength, kind: CHUNK_KINDS.data,
        status: status === 'ok' ? READ_STATUS.ok : status === 'missing' ? READ_STATUS.missing : READ_STATUS.notReadable,
        codec: isZstd ? WIRE_CODECS.zstd : WIRE_CODECS.raw,
      }), wire)
    }
    frames.push(encodeReadFrameHeader({ index: READ_END, rawBytes: 0, wireBytes: 0, kind: 0, status: 0, codec: 0 }))
    const all = Buffer.concat(frames)
    if (this.cutReadAfterBytes === undefined) return void response.end(all)
    response.write(all.subarray(0, this.cutReadAfterBytes), () => response.destroy())
    this.cutReadAfterBytes = undefined
  }
}

function framesIn(body: Buffer): number {
  let count = 0
  for (let at = 0; at < body.byteLength; at += 44 + body.readUInt32LE(at + 4)) count++
  return count
}
function reply(response: http.ServerResponse, value: unknown, status = 200): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
}
export function refuse(response: http.ServerResponse, code: ErrorCode, message: string, headers: http.OutgoingHttpHeaders = {}): void {
  const body: WireError = { code, message, retry: ERROR_CATALOGUE[code].retry, requestId: 'request-1', details: { limit: 7 } }
  response.writeHead(ERROR_CATALOGUE[code].http, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body))
}
/** An Interference that reads the body and refuses. */
export const refusing = (code: ErrorCode, headers: http.OutgoingHttpHeaders = {}): Interference => (request, response) => {
  request.resume()
  request.once('end', () => { refuse(response, code, `refused: ${code}`, headers) })
  return true
}
/** An Interference that answers before the body was read. */
export const refusingEarly = (code: ErrorCode): Interference => (_request, response) => {
  refuse(response, code, `refused: ${code}`, { connection: 'close' })
  return true
}
/** An Interference that breaks the connection. */
export const resetting: Interference = (request) => {
  request.socket.resetAndDestroy()
  return true
}
