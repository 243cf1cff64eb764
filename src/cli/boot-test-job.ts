/** Runs `roost boot-test` for the server's schedule: a process of its own, as any client, with a token that reads one repository.
 *
 *  So the server holds neither a guest's disks nor QEMU: what goes wrong in there is a process that ends.
 */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { Clock } from '../core/clock.js'
import { RoostError } from '../core/errors.js'
import type { JobOptions, MaintenanceEvent } from '../core/messages.js'
import type { BootTestRequest } from '../server/jobs/boot-test-job.js'
import { withoutSecrets } from '../../client/hooks/run-hook.js'
import type { Environment } from './settings.js'

/** To end QEMU and close its session. */
const GRACE_MS = 20_000
const LINE_CHARACTERS_MAX = 256 * 1024
const ERRORS_CHARACTERS_MAX = 4_096

/** Option of the job → of the command. */
const FLAGS: Readonly<Record<string, (value: unknown) => string[]>> = {
  source: (value) => ['--source', value as string], waitAgent: (value) => value === true ? ['--wait-agent'] : [],
  waitSerial: (value) => ['--wait-serial', value as string], waitSeconds: (value) => ['--wait-time', `${value as number}`],
  timeoutSeconds: (value) => ['--timeout', `${value as number}`], memoryBytes: (value) => ['--memory', `${value as number}`], cpus: (value) => ['--cpus', `${value as number}`],
  accel: (value) => ['--accel', value as string], firmware: (value) => ['--firmware', value as string], scratch: (value) => ['--scratch', value as string],
}
export function bootTestArguments(options: JobOptions): string[] {
  // As --name=value: a value that begins with a dash is a value.
  return ['boot-test', 'latest', ...Object.entries(options).flatMap(([name, value]) => {
    const [flag, text] = FLAGS[name]?.(value) ?? []
    return flag === undefined ? [] : text === undefined ? [flag] : [`${flag}=${text}`]
  }), '--json']
}

export async function* runBootTestProcess({ repositoryUrl, token, options }: BootTestRequest, environment: Environment, clock: Clock,
  signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  signal.throwIfAborted()
  yield { type: 'progress', phase: 'starting the machine', done: 0, total: 1 }
  // The token goes in the environment, where only this user sees it.
  const child = spawn(process.execPath, [...process.execArgv, process.argv[1]!, ...bootTestArguments(options)], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...withoutSecrets(environment), ROOST_REPOSITORY: repositoryUrl, ROOST_TOKEN: token },
  })
  let errors = ''
  child.stderr.on('data', (bytes: Buffer) => { errors = (errors + bytes.toString('utf8')).slice(-ERRORS_CHARACTERS_MAX) })
  let report: Record<string, unknown> | undefined
  createInterface({ input: child.stdout }).on('line', (line) => { report = parseRecord(line) ?? report })
  const ended = new Promise<void>((resolve) => { child.once('close', () => { resolve() }).once('error', (error) => { errors += error.message; resolve() }) })
  const over = new AbortController()
  const onAbort = (): void => {
    child.kill('SIGTERM')
    void clock.sleep(GRACE_MS, over.signal).then(() => { child.kill('SIGKILL') }, () => undefined)
  }
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    await ended
  } finally {
    signal.removeEventListener('abort', onAbort)
    over.abort()
  }
  signal.throwIfAborted()
  yield* eventsOf(report, errors.trim(), options)
}
function parseRecord(line: string): Record<string, unknown> | undefined {
  if (line.length > LINE_CHARACTERS_MAX) return undefined
  try {
    const value = JSON.parse(line) as Record<string, unknown> | null
    return value !== null && (value['type'] === 'boot-test' || value['type'] === 'error') ? value : undefined
  } catch {
    return undefined // not of ours: QEMU may write too
  }
}
function* eventsOf(report: Record<string, unknown> | undefined, errors: string, options: JobOptions): Generator<MaintenanceEvent, void, undefined> {
  const text = (value: unknown): string => typeof value === 'string' ? value.slice(0, 2_000) : ''
  // Wrong options, no QEMU, no such source: not the snapshot's fault.
  if (report?.['type'] !== 'boot-test')
    throw new RoostError('BOOT_FAILED', `The test could not be made: ${text(report?.['message']) || errors.split('\n').at(-1) || 'the process ended without a word'}`)
  const seconds = typeof report['seconds'] === 'number' ? Math.round(report['seconds']) : 0
  const isUp = report['result'] === 'ok'
  if (!isUp) {
    const serial = Array.isArray(report['serial']) ? (report['serial'] as unknown[]).map(text).filter((line) => line !== '').slice(-5) : []
    yield { type: 'problem', code: 'BOOT_FAILED', snapshot: text(report['snapshotId']), ...(typeof options['source'] === 'string' ? { source: options['source'] } : {}),
      message: `The machine did not come up: ${text(report['reason'])}${serial.length === 0 ? '' : `. Its console said at last: ${serial.join(' / ')}`}` }
  }
  yield { type: 'done', problems: isUp ? 0 : 1, counts: { machines: 1, seconds } }
}
