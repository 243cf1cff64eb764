/** The HTTP application over fake repositories, for injection or behind a real loopback socket. */
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import type { FastifyInstance } from 'fastify'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { systemRandom } from '../../src/core/random.js'
import type { TokenGrant } from '../../src/core/messages.js'
import { Admission, type AdmissionOptions } from '../../src/server/admission.js'
import { buildApp } from '../../src/server/app.js'
import { createLogger } from '../../src/server/logger.js'
import type { JobDefinition } from '../../src/server/jobs/job-file.js'
import { JobRegistry } from '../../src/server/jobs/job-registry.js'
import { Scheduler } from '../../src/server/jobs/scheduler.js'
import type { JobServices } from '../../src/server/jobs/job-kinds.js'
import { ReplicationStore } from '../../src/server/replications/replication-store.js'
import { Replicator } from '../../src/server/replications/replicator.js'
import { RequestLifetimes } from '../../src/server/request-lifetimes.js'
import { TokenStore } from '../../src/server/token-store.js'
import { FakeHost } from './fake-repository.js'

/** For registries of tests that neither replicate nor start machines. */
const nothing: JobServices['replicate'] = async function* () { yield { type: 'done', problems: 0, counts: {} } }
export const NO_SERVICES: JobServices = { replicate: nothing, bootTest: nothing }

export async function temporaryDirectory(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'roost-test-'))
  // Retried: a file that is being written when the test ends may appear in between.
  t.after(() => rm(path, { recursive: true, force: true, maxRetries: 5 }))
  return path
}

export interface ServerUnderTest {
  readonly app: FastifyInstance
  readonly host: FakeHost
  readonly tokens: TokenStore
  readonly admission: Admission
  readonly lifetimes: RequestLifetimes
  readonly jobs: JobRegistry
  readonly scheduler: Scheduler
  readonly logLines: string[]
  readonly drain: { active: boolean }
  /** A token with these grants, as an Authorization header's value and an id. */
  token(...grants: readonly TokenGrant[]): Promise<{ readonly bearer: string; readonly tokenId: string }>
}
export interface ServerOptions { readonly clock?: Clock; readonly admission?: Partial<AdmissionOptions>; readonly definitions?: readonly JobDefinition[] }

export async function serverUnderTest(t: TestContext, options: ServerOptions = {}): Promise<ServerUnderTest> {
  const clock = options.clock ?? systemClock
  const directory = await temporaryDirectory(t)
  const tokens = await TokenStore.open({ path: join(directory, 'tokens.json'), clock, random: systemRandom })
  const host = new FakeHost('alpha', 'beta')
  const admission = new Admission(clock, { bytesMax: 72 * 1024 * 1024, ...options.admission })
  const lifetimes = new RequestLifetimes(), drain = { active: false }, logLines: string[] = []
  const log = createLogger({ level: 'trace', destination: { write: (line) => { logLines.push(line) } } })
  const replicator = await Replicator.open({ directory: join(directory, 'replication'), clock, random: systemRandom,
    store: await ReplicationStore.open(join(directory, 'replication', 'replications.json')) })
  const jobs = new JobRegistry({ directory, clock, random: systemRandom, log, services: { ...NO_SERVICES, replicate: (repository, options, signal) => replicator.run(repository, options, signal) } })
  const scheduler = new Scheduler({ definitions: options.definitions ?? [], host, registry: jobs, clock, random: systemRandom, log })
  const app = buildApp({ host, tokens, clock, random: systemRandom, log, admission, lifetimes, jobs, scheduler, replicator, isDraining: () => drain.active })
  t.after(async () => {
    const closing = app.close()
    app.server.closeAllConnections()
    await closing
    await jobs.close()
  })
  return {
    app, host, tokens, admission, lifetimes, jobs, scheduler, logLines, drain,
    token: async (...grants) => {
      const made = await tokens.create({ label: 'test', grants })
      return { bearer: `Bearer ${made.token}`, tokenId: made.tokenId }
    },
  }
}

export async function listen(app: FastifyInstance): Promise<number> {
  await app.listen({ host: '127.0.0.1', port: 0 })
  return (app.server.address() as AddressInfo).port
}

/** A bare connection: writes exactly what it is told; collects what comes back. */
export class RawConnection {
  readonly #socket: Socket
  readonly #ended: Promise<void>
  #received = ''
  /** The connection was reset instead of closed. */
  error: Error | undefined
  constructor(port: number) {
    this.#socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    this.#ended = new Promise((resolve) => {
      this.#socket.on('data', (part: Buffer) => { this.#received += part.toString('latin1') })
      this.#socket.on('error', (error) => { this.error = error })
      this.#socket.on('end', () => { this.#socket.end(); resolve() })
      this.#socket.on('close', () => { resolve() })
    })
  }
  get received(): string { return this.#received }
  /** Resolves when the kernel has it all; with the error when the connection did not take it. */
  write(bytes: string | Uint8Array): Promise<Error | undefined> {
    return new Promise((resolve) => { this.#socket.write(bytes, (error) => { resolve(error ?? undefined) }) })
  }
  /** Says that nothing more comes, and still listens. */
  finish(): void { this.#socket.end() }
  destroy(): void { this.#socket.destroy() }
  /** All that the server said, once it closed. */
  async reply(): Promise<{ readonly status: number; readonly body: string; readonly head: string }> {
    await this.#ended
    const [head = '', ...body] = this.#received.split('\r\n\r\n')
    return { status: Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? 0), head: head.toLowerCase(), body: body.join('\r\n\r\n') }
  }
}
