/** Roost as a user runs it: a real server process on a free port with a directory of its own, and real commands against it. */
import { execFile, spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'

/** The command line of the build that this file is part of. */
const MAIN = fileURLToPath(new URL('./roost-main.js', import.meta.url))
export const SLOW = process.env['ROOST_TEST_SLOW'] === '1'

export interface CommandResult { readonly code: number | null; readonly signal: string | null; readonly stdout: string; readonly stderr: string }
export interface RunOptions {
  readonly environment?: Readonly<Record<string, string>>
  readonly stdin?: Buffer
  /** Prefix such as `setpriv … --`. */
  readonly through?: readonly string[]
  readonly cwd?: string
}
export const roostCommand = (args: readonly string[]): string[] => [process.execPath, ...nodeFlags(), MAIN, ...args]
/** As bin/roost starts node. */
function nodeFlags(): string[] {
  const [, flags = ''] = /^#!\/usr\/bin\/env -S node(.*)\n/.exec(readFileSync(join(projectRoot(), 'bin', 'roost'), 'utf8')) ?? []
  return flags.split(' ').filter((flag) => flag !== '')
}

export class RoostWorld {
  /** Of every command and of the server. */
  readonly environment: Record<string, string> = {}
  readonly directory: string
  readonly dataDirectory: string
  #server: ChildProcess | undefined
  #port = 0
  #log = ''
  constructor(readonly name = 'main') {
    this.directory = mkdtempSync(join(tmpdir(), 'roost-e2e-'))
    this.dataDirectory = join(this.directory, 'data')
    mkdirSync(join(this.directory, 'home'))
  }
  get url(): string { return `http://127.0.0.1:${this.#port}` }
  get log(): string { return this.#log }
  get serverPid(): number | undefined { return this.#server?.pid }
  get adminTokenFile(): string { return join(this.dataDirectory, 'admin-token') }
  path(...parts: readonly string[]): string { return join(this.directory, ...parts) }

  /** Resolves once the server answers on /readyz. */
  async startServer(extra: readonly string[] = []): Promise<void> {
    if (this.#port === 0) this.#port = await freePort()
    const [command, ...args] = roostCommand(['server', '--data', this.dataDirectory, '--listen', `127.0.0.1:${this.#port}`, ...extra])
    const server = spawn(command!, args, { stdio: ['ignore', 'pipe', 'pipe'], env: this.#environment({}) })
    this.#server = server
    for (const stream of [server.stdout!, server.stderr!]) stream.on('data', (bytes: Buffer) => { this.#log = (this.#log + bytes.toString()).slice(-200_000) })
    const ended = new Promise<never>((_resolve, reject) => server.once('exit', (code, signal) =>
      reject(new Error(`the server ended (${code ?? signal}) before it was ready:\n${this.#log}`))))
    ended.catch(() => undefined) // after readiness its end is expected
    await Promise.race([untilReady(`${this.url}/readyz`), ended])
  }
  /** SIGKILL: nothing is flushed, nothing is told. */
  async killServer(): Promise<void> { await this.#endServer('SIGKILL') }
  /** SIGTERM: drains. Returns the exit code. */
  async stopServer(): Promise<number | null> { return await this.#endServer('SIGTERM') }
  async #endServer(signal: NodeJS.Signals): Promise<number | null> {
    const server = this.#server
    this.#server = undefined
    if (server === undefined || server.exitCode !== null || server.signalCode !== null) return server?.exitCode ?? null
    const ended = new Promise<number | null>((resolve) => server.once('exit', (code) => resolve(code)))
    server.kill(signal)
    return await ended
  }

  async createRepository(): Promise<void> { await this.ok(['repo', 'create', this.name]) }
  /** Runs a command to its end, whatever it comes to. */
  run(args: readonly string[], options: RunOptions = {}): Promise<CommandResult> {
    const [command, ...rest] = [...(options.through ?? []), ...roostCommand(args)]
    return new Promise((resolve) => {
      const child = execFile(command!, rest, {
        env: this.#environment(options.environment ?? {}), maxBuffer: 256 * 1024 * 1024, encoding: 'buffer', cwd: options.cwd ?? this.directory,
      }, (_error, stdout, stderr) => resolve({ code: child.exitCode, signal: child.signalCode, stdout: stdout.toString('latin1'), stderr: stderr.toString() }))
      child.stdin!.on('error', () => undefined) // a command that ends early does not read it all
      child.stdin!.end(options.stdin)
    })
  }
  /** Runs a command that must end with 0. */
  async ok(args: readonly string[], options: RunOptions = {}): Promise<CommandResult> {
    const result = await this.run(args, options)
    if (result.code !== 0)
      throw new Error(`roost ${args.join(' ')} ended with ${result.code ?? result.signal}:\n${result.stdout.slice(-2000)}\n${result.stderr}\nserver log:\n${this.#log.slice(-3000)}`)
    return result
  }
  /** The JSON lines of a command that must end with 0. */
  async json(args: readonly string[], options: RunOptions = {}): Promise<Record<string, unknown>[]> {
    return jsonLines((await this.ok([...args, '--json'], options)).stdout)
  }
  /** Starts a command and leaves it to the caller (to be killed). */
  start(args: readonly string[], stdio: 'ignore' | 'pipe' = 'ignore'): ChildProcess {
    const [command, ...rest] = roostCommand(args)
    return spawn(command!, rest, { stdio, env: this.#environment({}), cwd: this.directory })
  }
  async close(): Promise<void> {
    await this.killServer()
    rmSync(this.directory, { recursive: true, force: true })
  }

  #environment(extra: Readonly<Record<string, string>>): NodeJS.ProcessEnv {
    const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('ROOST_') && !name.startsWith('NODE_TEST')))
    const own: Record<string, string> = { ROOST_REPOSITORY: `${this.url}/${this.name}`, ROOST_TOKEN_FILE: this.adminTokenFile, HOME: this.path('home'),
      XDG_CONFIG_HOME: this.path('home', '.config') }
    const merged = { ...inherited, ...own, ...this.environment, ...extra }
    return Object.fromEntries(Object.entries(merged).filter(([, value]) => value !== ''))
  }
}

/** A running server with one repository; everything is gone when the test ends. */
export async function openWorld(t: TestContext, options: { readonly server?: readonly string[] } = {}): Promise<RoostWorld> {
  const world = new RoostWorld()
  t.after(() => world.close())
  await world.startServer(options.server)
  await world.createRepository()
  return world
}

export function jsonLines(text: string): Record<string, unknown>[] {
  return Buffer.from(text, 'latin1').toString('utf8').split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Record<string, unknown>)
}
export function readToken(path: string): string { return readFileSync(path, 'utf8').trim() }
export function hasTool(name: string): boolean { return spawnSync('sh', ['-c', `command -v ${name}`]).status === 0 }
export const isRoot = process.getuid?.() === 0
/** Runs a tool that must succeed. */
export function tool(command: string, args: readonly string[], input?: string): string {
  const result = spawnSync(command, [...args], { encoding: 'utf8', maxBuffer: 64 * 1024 * 1024, ...(input === undefined ? {} : { input }) })
  if (result.status !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${result.status}: ${result.stderr}`)
  return result.stdout
}
/** Where package.json is, from wherever this file was built to. */
export function projectRoot(): string {
  let at = dirname(MAIN)
  while (!existsSync(join(at, 'package.json'))) at = dirname(at)
  return at
}

async function freePort(): Promise<number> {
  const probe = createServer()
  await new Promise<void>((resolve) => probe.listen(0, '127.0.0.1', resolve))
  const { port } = probe.address() as { port: number }
  await new Promise<void>((resolve) => probe.close(() => resolve()))
  return port
}
async function untilReady(url: string): Promise<void> {
  for (let attempt = 0; attempt < 600; attempt++) {
    const ready = await fetch(url).then((reply) => reply.ok, () => false)
    if (ready) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  throw new Error(`${url} does not answer.`)
}
