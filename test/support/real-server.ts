/** The whole server in this process: HTTP on loopback over real repositories in a temporary directory. Only its clock may be a test's. */
import { request as httpRequest } from 'node:http'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { FRAME_HEADER_BYTES, writeFrameHeader, type WireCodec } from '../../src/core/frames.js'
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, parseSessionId, type ChunkId, type ChunkKind, type SessionId } from '../../src/core/ids.js'
import { LIMITS } from '../../src/core/limits.js'
import type { CommitRequest, OpenSessionReply, SignedSnapshot, TokenGrant, WireError } from '../../src/core/messages.js'
import { decodeNode, encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import { systemRandom } from '../../src/core/random.js'
import { MEDIA, ROUTES, routePath } from '../../src/protocol/routes.js'
import { openRepositoryHost } from '../../src/repo/repository-host.js'
import type { RepositoryEvent } from '../../src/repo/repository-parts.js'
import type { RepositoryHost } from '../../src/repo/repository-host-contract.js'
import { Admission, type AdmissionOptions } from '../../src/server/admission.js'
import { buildApp } from '../../src/server/app.js'
import { createLogger } from '../../src/server/logger.js'
import { JobRegistry } from '../../src/server/jobs/job-registry.js'
import { Scheduler } from '../../src/server/jobs/scheduler.js'
import { ReplicationStore } from '../../src/server/replications/replication-store.js'
import { Replicator } from '../../src/server/replications/replicator.js'
import { RequestLifetimes } from '../../src/server/request-lifetimes.js'
import { TokenStore } from '../../src/server/token-store.js'
import { HttpRepositoryClient } from '../../client/http-repository-client.js'
import { verifiedChunks } from '../../client/read-chunks.js'
import { Transport } from '../../src/protocol/transport.js'
import { NO_SERVICES, RawConnection, listen, temporaryDirectory } from './server-under-test.js'

export interface Asked { readonly status: number; readonly code: string | undefined; readonly body: Buffer }
export interface Ask { readonly method?: string; readonly bearer?: string; readonly type?: string; readonly body?: Buffer; readonly headers?: Record<string, string> }

export interface RealServer {
  readonly directory: string
  readonly port: number
  readonly host: RepositoryHost
  readonly tokens: TokenStore
  readonly admission: Admission
  readonly lifetimes: RequestLifetimes
  readonly logLines: readonly string[]
  readonly events: readonly RepositoryEvent[]
  token(...grants: readonly TokenGrant[]): Promise<{ readonly token: string; readonly tokenId: string }>
  /** The real client, which repeats nothing. */
  client(token: string, repository?: string): HttpRepositoryClient
  /** One request exactly as given: no normalising of paths. `code`: of a typed error. */
  ask(path: string, ask?: Ask): Promise<Asked>
  connect(): RawConnection
}
export interface RealServerOptions { readonly clock?: Clock; readonly admission?: Partial<AdmissionOptions> }

/** With the repositories `alpha` and `beta`. */
export async function realServer(t: TestContext, options: RealServerOptions = {}): Promise<RealServer> {
  const clock = options.clock ?? systemClock
  const directory = await temporaryDirectory(t)
  const logLines: string[] = [], events: RepositoryEvent[] = []
  const tokens = await TokenStore.open({ path: join(directory, 'tokens.json'), clock, random: systemRandom })
  const host = await openRepositoryHost({ dataDirectory: directory, workers: 1, report: (_name, event) => { events.push(event) } })
  for (const name of ['alpha', 'beta']) await host.create({ name })
  const admission = new Admission(clock, { bytesMax: LIMITS.admissionBytesDefault, ...options.admission })
  const lifetimes = new RequestLifetimes()
  const log = createLogger({ level: 'debug', destination: { write: (line) => { logLines.push(line) } } })
  const replicator = await Replicator.open({ directory: join(directory, 'replication'), clock, random: systemRandom,
    store: await ReplicationStore.open(join(directory, 'replication', 'replications.json')) })
  const jobs = new JobRegistry({ directory, clock, random: systemRandom, log, services: { ...NO_SERVICES, replicate: (repository, jobOptions, signal) => replicator.run(repository, jobOptions, signal) } })
  const scheduler = new Scheduler({ definitions: [], host, registry: jobs, clock, random: systemRandom, log })
  const app = buildApp({ host, tokens, clock, random: systemRandom, log, admission, lifetimes, jobs, scheduler, replicator, isDraining: () => false })
  const port = await listen(app)
  const clients: HttpRepositoryClient[] = []
  t.after(async () => {
    await Promise.all(clients.map((client) => client.close()))
    const closing = app.close()
    app.server.closeAllConnections()
    await closing
    await jobs.close()
    await host.close()
  })
  return {
    directory, port, host, tokens, admission, lifetimes, logLines, events,
    token: (...grants) => tokens.create({ label: 'test', grants }),
    client: (token, repository = 'alpha') => {
      const transport = new Transport({ baseUrl: `http://127.0.0.1:${port}`, token, retryForMs: 0, clock: systemClock, random: systemRandom })
      const client = new HttpRepositoryClient(transport, repository)
      clients.push(client)
      return client
    },
    ask: (path, ask = {}) => askOnce(port, path, ask),
    connect: () => {
      const connection = new RawConnection(port)
      t.after(() => { connection.destroy() })
      return connection
    },
  }
}

function askOnce(port: number, path: string, { method = 'POST', bearer, type, body, headers = {} }: Ask): Promise<Asked> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ port, host: '127.0.0.1', method, path, agent: false, headers: {
      ...(bearer === undefined ? {} : { authorization: `Bearer ${bearer}` }), ...(type === undefined ? {} : { 'content-type': type }),
      ...(body === undefined ? {} : { 'content-length': body.byteLength }), ...headers } }, (response) => {
      const parts: Buffer[] = []
      response.on('data', (part: Buffer) => { parts.push(part) }).on('error', reject)
      response.on('end', () => {
        const whole = Buffer.concat(parts), status = response.statusCode ?? 0
        resolve({ status, code: status >= 400 ? (JSON.parse(whole.toString('utf8')) as WireError).code : undefined, body: whole })
      })
    })
    request.on('error', reject)
    request.end(body)
  })
}

/** Frames as a forger may write them: each part of the header can lie. */
export interface FrameLies { readonly id?: Uint8Array; readonly rawBytes?: number; readonly wireBytes?: number; readonly codec?: WireCodec; readonly payload?: Uint8Array }
export function frameOf(dedupKey: Buffer, bytes: Uint8Array, kind: ChunkKind = CHUNK_KINDS.data, lies: FrameLies = {}): Buffer {
  const payload = lies.payload ?? bytes
  const frame = Buffer.alloc(FRAME_HEADER_BYTES + payload.byteLength)
  const id = lies.id ?? hashChunk(dedupKey, bytes, kind).subarray(0, CHUNK_ID_BYTES)
  writeFrameHeader(frame, 0, { rawBytes: lies.rawBytes ?? bytes.byteLength, wireBytes: lies.wireBytes ?? payload.byteLength, kind, codec: lies.codec ?? 0 }, id)
  frame.set(payload, FRAME_HEADER_BYTES)
  return frame
}

const STATISTICS = { files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, chunksTotal: 0, chunksSent: 0, bytesSent: 0, bytesOnWire: 0,
  errors: 0, durationMs: 0, cpuMs: 0 }
export const commitOf = (root: Uint8Array): CommitRequest => ({ root: Buffer.from(root).toString('hex', 0, CHUNK_ID_BYTES), host: 'h', user: 'u', paths: [], tags: [],
  startedAtMs: 1, statistics: STATISTICS })

/** One push session over the real protocol that sends whatever it is given, node or nonsense. */
export class PushSession {
  readonly session: SessionId
  readonly dedupKey: Buffer
  #frames: Buffer[] = []
  #bytes = 0
  #waiting = 0
  private constructor(readonly client: HttpRepositoryClient, readonly reply: OpenSessionReply) {
    this.session = parseSessionId(reply.sessionId)
    this.dedupKey = Buffer.from(reply.dedupKey, 'hex')
  }
  static async open(client: HttpRepositoryClient, source = 's', parent: string | null = null): Promise<PushSession> {
    return new PushSession(client, await client.openSession({ kind: 'push', source, mode: 'files', parent }))
  }
  idProof(bytes: Uint8Array, kind: ChunkKind): Buffer { return hashChunk(this.dedupKey, bytes, kind) }
  /** Gathers; flush() sends. */
  put(bytes: Uint8Array, kind: ChunkKind): ChunkId {
    const frame = frameOf(this.dedupKey, bytes, kind)
    this.#frames.push(frame)
    this.#bytes += frame.byteLength
    this.#waiting++
    return this.idProof(bytes, kind).subarray(0, CHUNK_ID_BYTES) as ChunkId
  }
  get isFull(): boolean { return this.#bytes > 4 * LIMITS.chunkBytesMax / 2 || this.#waiting >= LIMITS.bodyFramesMax - 1 }
  async flush(): Promise<void> {
    if (this.#waiting === 0) return
    const frames = this.#frames
    this.#frames = []
    this.#bytes = this.#waiting = 0
    const verdicts = await this.client.putChunks(this.session, frames, frames.length)
    for (const verdict of verdicts) if (verdict > 1) throw new Error(`a well-formed frame got verdict ${verdict}`)
  }
  async commit(root: Uint8Array): Promise<SignedSnapshot> {
    await this.flush()
    return (await this.client.commit(this.session, commitOf(root))).snapshot
  }
  /** A body of any bytes, past the client's own checks. */
  putRaw(server: RealServer, bearer: string, body: Buffer, repository = 'alpha'): Promise<Asked> {
    return server.ask(routePath(ROUTES.sessionChunks, { repository, session: this.session }), { bearer, type: MEDIA.frames, body })
  }
}

/** A whole backup and restore by another client, at this moment. */
export async function assertServesOthers(server: RealServer, text = `an honest backup ${systemRandom.bytes(4).toString('hex')}`): Promise<string> {
  const { token, tokenId } = await server.token({ repository: 'alpha', scopes: ['push', 'read'] })
  const client = server.client(token)
  const push = await PushSession.open(client, 'honest')
  const id = push.put(Buffer.from(text), CHUNK_KINDS.data)
  const snapshot = await push.commit(push.put(encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.data, id }], Buffer.alloc(0)), CHUNK_KINDS.node))
  const { dedupKey, session } = await readSession(client, snapshot.id)
  const read = async (wanted: Buffer, kind: ChunkKind): Promise<Buffer> => {
    for await (const { bytes } of verifiedChunks({ client, sessionId: session, dedupKey }, wanted, kind)) if (bytes !== undefined) return bytes
    throw new Error('an honest client got nothing back')
  }
  const { refs } = decodeNode(await read(rootOf(snapshot), CHUNK_KINDS.node))
  const back = await read(refs.id(0), CHUNK_KINDS.data)
  if (back.toString() !== text) throw new Error('an honest client got other bytes back')
  await client.closeSession(session)
  await server.tokens.revoke(tokenId)
  return snapshot.id
}
export const rootOf = (snapshot: SignedSnapshot): Buffer =>
  Buffer.from((JSON.parse(Buffer.from(snapshot.record, 'base64').toString()) as { root: string }).root, 'hex')
export async function readSession(client: HttpRepositoryClient, snapshot: string): Promise<{ session: SessionId; dedupKey: Buffer }> {
  const reply = await client.openSession({ kind: 'read', snapshot })
  return { session: parseSessionId(reply.sessionId), dedupKey: Buffer.from(reply.dedupKey, 'hex') }
}
/** Status by place of request. */
export async function readStatuses(client: HttpRepositoryClient, session: SessionId, ids: readonly Uint8Array[]): Promise<string[]> {
  const statuses: string[] = []
  for await (const { index, status } of client.readChunks(session, Buffer.concat(ids))) statuses[index] = status
  return statuses
}
