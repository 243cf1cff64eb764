/** A cloud of scripted answers: one HTTP server that is Keystone, Nova, Glance and Neutron, for what real services do too seldom. */
import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { TestContext } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import { Cloud, type CloudService, type Json } from '../../src/openstack/cloud.js'
import { readCloudConfig } from '../../src/openstack/cloud-config.js'

export interface Asked { readonly method: string; readonly path: string; readonly headers: IncomingMessage['headers']; readonly json: Json | undefined; readonly bytes: Buffer }
export type Scripted = { readonly status: number; readonly json?: unknown; readonly text?: string; readonly headers?: Readonly<Record<string, string>> }
export type Answer = (asked: Asked, request: IncomingMessage, response: ServerResponse) => Scripted | undefined | Promise<Scripted | undefined>
const SERVICES: readonly CloudService[] = ['compute', 'image', 'network']
export const PASSWORD = 'a very secret password'

export class FakeCloud {
  readonly asked: Asked[] = []
  /** By "METHOD /service/path", the query left out; what is not here is 404. Undefined as an answer: the handler answered itself. */
  readonly answers = new Map<string, Answer>()
  services: readonly CloudService[] = SERVICES
  /** Behind the address in the catalog. */
  readonly suffixes: Record<CloudService, string> = { compute: '/v2.1', image: '', network: '' }
  logins = 0
  /** Tokens below this number are rejected. */
  goodFrom = 1
  constructor(readonly port: number) {}
  get authUrl(): string { return `http://127.0.0.1:${this.port}/v3` }

  on(what: string, answer: Scripted | Answer): this {
    this.answers.set(what, typeof answer === 'function' ? answer : () => answer)
    return this
  }
  json(what: string, json: unknown): this { return this.on(what, { status: 200, json }) }
  version(version: string): this { return this.json('GET /compute/', { version: { version, min_version: '2.1' } }) }
  count(what: string): number { return this.asked.filter(({ method, path }) => `${method} ${path.split('?')[0]!}` === what).length }

  async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = request.url!, method = request.method!
    if (path === '/v3/auth/tokens') return this.#logIn(request, response)
    const token = Number(/^token-(\d+)$/.exec(`${request.headers['x-auth-token'] as string}`)?.[1] ?? 0)
    const isStream = request.headers['content-type'] === 'application/octet-stream'
    const bytes = isStream ? Buffer.alloc(0) : await readAll(request)
    const asked: Asked = { method, path: path.replace(/^\/compute\/v2\.1(?:\/project-1)?/, '/compute').replace(/^\/image\/v2/, '/image').replace(/^\/network\/v2\.0/, '/network'),
      headers: request.headers, bytes, json: bytes.byteLength === 0 ? undefined : JSON.parse(bytes.toString()) as Json }
    this.asked.push(asked)
    const answer: Answer | undefined = token < this.goodFrom ? () => ({ status: 401, json: { error: { message: 'The token is no good.' } } })
      : this.answers.get(`${method} ${asked.path.split('?')[0]!}`)
    const scripted = answer === undefined ? { status: 404, json: { itemNotFound: { code: 404, message: `There is no ${asked.path}.` } } } : await answer(asked, request, response)
    if (scripted === undefined) return
    response.writeHead(scripted.status, { 'content-type': scripted.json === undefined ? 'text/html' : 'application/json', ...scripted.headers })
    response.end(scripted.json === undefined ? scripted.text ?? '' : JSON.stringify(scripted.json))
  }
  #logIn(request: IncomingMessage, response: ServerResponse): void {
    request.resume()
    const catalog = this.services.map((type) => ({ type, endpoints: [{ interface: 'public', region_id: 'R', url: `http://127.0.0.1:${this.port}/${type}${this.suffixes[type]}` }] }))
    response.writeHead(201, { 'x-subject-token': `token-${++this.logins}`, 'content-type': 'application/json' })
    response.end(JSON.stringify({ token: { issued_at: '2026-01-01T00:00:00Z', expires_at: '2026-01-01T01:00:00Z', project: { id: 'project-1' }, catalog } }))
  }
}

export async function fakeCloud(t: TestContext): Promise<{ fake: FakeCloud; cloud: Cloud }> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const fake = new FakeCloud((server.address() as AddressInfo).port).version('2.90')
  server.on('request', (request, response) => {
    request.on('error', () => undefined) // broken off: what a test wants
    void fake.handle(request, response).catch(() => { response.destroy() })
  })
  const environment = { OS_AUTH_URL: fake.authUrl, OS_USERNAME: 'ann', OS_PASSWORD: PASSWORD, OS_PROJECT_NAME: 'demo', HOME: '/nonexistent' }
  const cloud = new Cloud({ readConfig: () => readCloudConfig(undefined, environment), clock: systemClock })
  t.after(async () => {
    await cloud.close()
    server.closeAllConnections()
    await new Promise<void>((resolve) => server.close(() => resolve()))
  })
  return { fake, cloud }
}
async function readAll(stream: IncomingMessage): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const part of stream) parts.push(part as Buffer)
  return Buffer.concat(parts)
}

export interface KeptImage { image: Record<string, unknown>; bytes: Buffer }
/** Makes it a Glance that keeps images; `lies` changes what it says of one. */
export function withImages(fake: FakeCloud, lies: (image: Record<string, unknown>) => Record<string, unknown> = (image) => image): Map<string, KeptImage> {
  const images = new Map<string, KeptImage>()
  fake.on('POST /image/images', ({ json }) => {
    const id = `image-${images.size + 1}`
    const kept: KeptImage = { image: { ...json, id, status: 'queued' }, bytes: Buffer.alloc(0) }
    images.set(id, kept)
    fake.on(`PUT /image/images/${id}/file`, async (_asked, request) => {
      kept.bytes = await readAll(request)
      Object.assign(kept.image, { status: 'active', size: kept.bytes.byteLength, os_hash_algo: 'sha512', os_hash_value: createHash('sha512').update(kept.bytes).digest('hex') })
      return { status: 204 }
    })
    fake.on(`GET /image/images/${id}`, () => ({ status: 200, json: lies(kept.image) }))
    fake.on(`DELETE /image/images/${id}`, () => { images.delete(id); return { status: 204 } })
    return { status: 201, json: kept.image }
  })
  return images
}
export interface FakeServer extends Record<string, unknown> { id: string; name: string; metadata: Record<string, string>; locked: boolean; locked_reason: string | null }
/** Makes it a Nova with one server that can be locked and marked. */
export function withServer(fake: FakeCloud, more: Record<string, unknown> = {}): FakeServer {
  const server: FakeServer = { id: 'srv-1', name: 'web1', status: 'ACTIVE', tenant_id: 'project-1', metadata: {}, locked: false, locked_reason: null, tags: [], addresses: {},
    flavor: { original_name: 'm1.small', vcpus: 2, ram: 2048, disk: 20, ephemeral: 0, swap: 0, extra_specs: {} }, image: '', ...more }
  fake.on('GET /compute/servers/srv-1', () => ({ status: 200, json: { server } }))
  fake.on('POST /compute/servers/srv-1/action', ({ json }) => {
    const lock = json?.['lock'] as { locked_reason?: string } | undefined
    if (lock !== undefined && !server.locked) Object.assign(server, { locked: true, locked_reason: lock.locked_reason ?? null }) // a second lock changes nothing, and is a success
    if (json !== undefined && 'unlock' in json) Object.assign(server, { locked: false, locked_reason: null })
    return { status: 202 }
  })
  fake.on('POST /compute/servers/srv-1/metadata', ({ json }) => {
    if (server.locked) return { status: 409, json: { conflictingRequest: { code: 409, message: 'Instance srv-1 is locked' } } }
    Object.assign(server.metadata, json?.['metadata'])
    return { status: 200, json: { metadata: server.metadata } }
  })
  fake.on('DELETE /compute/servers/srv-1/metadata/roost_backup', () => { delete server.metadata['roost_backup']; return { status: 204 } })
  fake.json('GET /network/ports', { ports: [] })
  return server
}
