/** roost server: the server in the foreground, until SIGTERM or Ctrl-C. */
import { resolve } from 'node:path'
import { LOG_LEVELS, SERVER_CONFIG_DEFAULTS, ServerConfigError, type LogLevel, type ServerConfig } from '../../server/config.js'
import { DataLockedError } from '../../server/data-lock.js'
import type { RunningServer } from '../../server/run-server.js'
import { choiceOption, countOption, does, sizeOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { processEnvironment } from '../settings.js'

interface ServerFlags {
  readonly data?: string; readonly listen?: string; readonly tlsCert?: string; readonly tlsKey?: string; readonly allowPlainHttp?: boolean
  readonly workers?: number; readonly spoolMax?: number; readonly spoolReserve?: number; readonly commitWaitSeconds?: number
  readonly admissionMax?: number; readonly logLevel?: string; readonly drainSeconds?: number; readonly jobs?: string
}

export function registerServer(registry: Registry): void {
  does<ServerFlags>(registry, withExamples(registry.program.command('server').description('run the server')
    .option('--data <dir>', 'the data directory; made if absent (ROOST_DATA)')
    .option('--listen <host:port>', 'where to listen (ROOST_LISTEN; default 127.0.0.1:8470)')
    .option('--tls-cert <file>', 'PEM certificate chain (ROOST_TLS_CERT)').option('--tls-key <file>', 'its PEM key (ROOST_TLS_KEY)')
    .option('--workers <count>', 'threads that verify, compress and seal', countOption)
    .option('--spool-max <size>', 'local bytes before pushes wait for the target', sizeOption)
    .option('--spool-reserve <size>', 'bytes to leave free on the spool\'s disk', sizeOption)
    .option('--commit-wait-seconds <seconds>', 'how long a commit waits for the targets before it answers "not yet"', countOption)
    .option('--admission-max <size>', 'bytes of request bodies held at once', sizeOption)
    .option('--drain-seconds <seconds>', 'how long a shutdown waits for requests', countOption)
    .option('--jobs <file>', 'YAML with the jobs that run by themselves: forget, gc, check, backfill, replicate, boot-test (ROOST_JOBS)')
    .addOption(choiceOption('--log-level <level>', 'how much to log (ROOST_LOG_LEVEL)', LOG_LEVELS)),
  ['roost server --data /srv/roost', 'roost server --data /srv/roost --jobs /etc/roost/jobs.yaml',
    'roost server --data /srv/roost --listen 0.0.0.0:8470 --tls-cert cert.pem --tls-key key.pem']),
  async (context, flags) => {
    const config = serverConfig(context, flags)
    const server = await startServer(context, config)
    if (server.adminToken !== undefined) context.output.warn(
      `The first administrator's token, shown this once (it is also in ${server.adminToken.path}):\n  ${server.adminToken.token}`)
    context.output.note(`Listening at ${server.url}. Ctrl-C drains and stops.`)
    await server.closed
  })
}

/** The server's parts are loaded here, not above: every other command would carry them too. */
async function startServer(context: CommandContext, config: ServerConfig): Promise<RunningServer> {
  const { openRepositoryHost } = await import('../../repo/repository-host.js')
  const { collectGarbage } = await import('../../gc/collect.js')
  const { runBootTestProcess } = await import('../boot-test-job.js')
  const { runServer } = await import('../../server/run-server.js')
  try {
    return await runServer(config, {
      openHost: (options) => openRepositoryHost({ ...options, environment: processEnvironment(), collector: collectGarbage }), clock: context.clock, random: context.random, shutdown: context.signal,
      bootTester: (request, signal) => runBootTestProcess(request, context.runtime.environment, context.clock, signal),
    })
  } catch (error) {
    if (error instanceof ServerConfigError || error instanceof DataLockedError) throw new UsageError(error.message, { cause: error })
    throw error
  }
}

function serverConfig(context: CommandContext, flags: ServerFlags): ServerConfig {
  const { settings } = context
  const data = flags.data ?? settings.environment('ROOST_DATA')
  if (data === undefined) throw new UsageError('Name the data directory: --data DIR (or ROOST_DATA).')
  const certFile = flags.tlsCert ?? settings.environment('ROOST_TLS_CERT')
  const keyFile = flags.tlsKey ?? settings.environment('ROOST_TLS_KEY')
  if ((certFile === undefined) !== (keyFile === undefined)) throw new UsageError('A certificate needs its key: give --tls-cert and --tls-key.')
  const jobsFile = flags.jobs ?? settings.environment('ROOST_JOBS')
  const logLevel = flags.logLevel ?? settings.environment('ROOST_LOG_LEVEL') ?? SERVER_CONFIG_DEFAULTS.logLevel
  if (!(LOG_LEVELS as readonly string[]).includes(logLevel)) throw new UsageError(`"${logLevel}" is not a log level: ${LOG_LEVELS.join(', ')}.`)
  return {
    ...SERVER_CONFIG_DEFAULTS, ...parseListen(flags.listen ?? settings.environment('ROOST_LISTEN')),
    dataDirectory: resolve(data), logLevel: logLevel as LogLevel, allowPlainHttp: settings.allowsPlainHttp(),
    ...(certFile === undefined || keyFile === undefined ? {} : { tls: { certFile, keyFile } }),
    ...(jobsFile === undefined ? {} : { jobsFile: resolve(jobsFile) }),
    ...(flags.workers === undefined ? {} : { workers: flags.workers }),
    ...(flags.spoolMax === undefined ? {} : { spoolBytes: flags.spoolMax }),
    ...(flags.spoolReserve === undefined ? {} : { spoolReserveBytes: flags.spoolReserve }),
    ...(flags.commitWaitSeconds === undefined ? {} : { commitWaitMs: flags.commitWaitSeconds * 1000 }),
    ...(flags.admissionMax === undefined ? {} : { admissionBytes: flags.admissionMax }),
    ...(flags.drainSeconds === undefined ? {} : { drainMs: flags.drainSeconds * 1000 }),
  }
}
/** `host:port`, `[::1]:port`, `:port`, `host` or `port`. */
export function parseListen(text: string | undefined): { readonly host?: string; readonly port?: number } {
  if (text === undefined) return {}
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*))(?::(\d{1,5}))?$/.exec(text)
  if (match === null) throw new UsageError(`"${text}" is not an address: write HOST:PORT, such as 0.0.0.0:8470 or [::1]:8470.`)
  const host = match[1] ?? match[2]!
  if (match[3] === undefined && /^\d{1,5}$/.test(host)) return { port: Number(host) }
  return { ...(host === '' ? {} : { host }), ...(match[3] === undefined ? {} : { port: Number(match[3]) }) }
}
