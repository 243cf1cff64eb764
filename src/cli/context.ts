/** What every command is given: where to write, what the user set, when to stop. One process, one context. */
import { HttpRepositoryClient, HttpServerClient } from '../../client/http-repository-client.js'
import { rateLimiter } from '../core/rate-limit.js'
import type { AdministeredRepository, ServerClient } from '../../client/repository-client.js'
import { parseRepositoryUrl, Transport } from '../protocol/transport.js'
import type { Clock } from '../core/clock.js'
import type { Random } from '../core/random.js'
import type { ExitCode } from './exit-codes.js'
import { formatDuration } from './format.js'
import { Output, type OutputStream } from './output.js'
import { readSecretFile, Settings, type Environment, type GlobalFlags } from './settings.js'

/** The process as the command line sees it; tests bring their own. */
export interface Runtime {
  readonly stdout: OutputStream
  readonly stderr: OutputStream
  readonly environment: Environment
  readonly signal: AbortSignal
  readonly clock: Clock
  readonly random: Random
}

export interface ConnectionOptions {
  readonly uploadBytesPerSecond?: number
  /** Hours of work are not to be lost to a server that restarts; a listing is asked for again by hand. */
  readonly isLong?: boolean
}
const LONG_PATIENCE_MS = 5 * 60_000
const SHORT_PATIENCE_MS = 3_000

export class CommandContext {
  readonly output: Output
  readonly settings: Settings
  readonly #opened: { close(): Promise<void> }[] = []
  constructor(readonly runtime: Runtime, readonly flags: GlobalFlags) {
    this.output = new Output({
      json: flags.json === true, quiet: flags.quiet === true, verbose: flags.verbose === true,
      stdout: runtime.stdout, stderr: runtime.stderr, clock: runtime.clock,
    })
    this.settings = new Settings(flags, runtime.environment)
  }
  get signal(): AbortSignal { return this.runtime.signal }
  get clock(): Clock { return this.runtime.clock }
  get random(): Random { return this.runtime.random }

  /** The repository that the user named; closed when the command ends. */
  repository(options: ConnectionOptions = {}): { client: AdministeredRepository; name: string; server: URL } {
    const { server, name } = this.settings.repository()
    const client = new HttpRepositoryClient(this.#transport(server, options), name)
    this.#opened.push(client)
    return { client, name, server }
  }
  server(): ServerClient {
    const client = new HttpServerClient(this.#transport(this.settings.server(), {}))
    this.#opened.push(client)
    return client
  }
  /** Another server's repository, with a token of its own. */
  other(url: string, tokenFile: string, caFile: string | undefined): AdministeredRepository {
    const { baseUrl, repository } = parseRepositoryUrl(url)
    const transport = new Transport({ baseUrl, token: readSecretFile(tokenFile, 'token file').trim(), clock: this.clock, random: this.random,
      allowPlainHttp: this.settings.allowsPlainHttp(), retryForMs: this.settings.patienceMs() ?? SHORT_PATIENCE_MS, ...(caFile === undefined ? {} : { caFile }) })
    const client = new HttpRepositoryClient(transport, repository)
    this.#opened.push(client)
    return client
  }
  async close(): Promise<void> {
    this.output.clearProgress()
    for (const client of this.#opened.splice(0)) await client.close()
  }

  #transport(server: URL, { uploadBytesPerSecond, isLong }: ConnectionOptions): Transport {
    const { token, warning } = this.settings.token()
    if (warning !== undefined) this.output.warn(`warning: ${warning}`)
    const caFile = this.settings.caFile()
    return new Transport({
      baseUrl: server.href.replace(/\/$/, ''), token, clock: this.clock, random: this.random,
      allowPlainHttp: this.settings.allowsPlainHttp(), retryForMs: this.settings.patienceMs() ?? (isLong === true ? LONG_PATIENCE_MS : SHORT_PATIENCE_MS),
      ...(caFile === undefined ? {} : { caFile }),
      ...(uploadBytesPerSecond === undefined ? {} : { uploadLimit: rateLimiter(uploadBytesPerSecond, this.clock) }),
      onWaiting: ({ error, delayMs }) => this.output.note(`waiting: ${error.message} Trying again in ${formatDuration(delayMs)}.`),
    })
  }
}

/** One command's work. Returning nothing means that all was done. */
export type CommandWork<Flags> = (context: CommandContext, flags: Flags, args: readonly string[]) => Promise<ExitCode | void>
