/** The composition root of every command: the process's streams, signals and exit code. */
import { CommanderError } from 'commander'
import { systemClock } from '../core/clock.js'
import { hasCode, isAbort } from '../core/errors.js'
import { systemRandom } from '../core/random.js'
import { exactArguments } from './argument-bytes.js'
import { tellError } from './error-hints.js'
import { EXIT, UsageError, type ExitCode } from './exit-codes.js'
import { printable } from './format.js'
import { buildProgram } from './program.js'
import { processEnvironment } from './settings.js'

export async function main(argv: readonly string[] = exactArguments(process.argv.slice(2))): Promise<void> {
  const abort = new AbortController()
  const interrupt = (): void => {
    if (abort.signal.aborted) process.exit(EXIT.interrupted) // asked twice: at once
    abort.abort(new DOMException('Interrupted.', 'AbortError'))
  }
  process.on('SIGINT', interrupt)
  process.on('SIGTERM', interrupt)
  // A closed pipe (`roost ls … | head`) is the reader's wish, not a failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? EXIT.done : EXIT.failed))
  process.stderr.on('error', () => undefined) // there is nowhere left to say it
  process.exitCode = await runCommandLine(argv, abort.signal)
  // Threads and kept connections must not hold the process back once the work is over.
  await drained(process.stdout)
  process.exit()
}

async function runCommandLine(argv: readonly string[], signal: AbortSignal): Promise<ExitCode> {
  let code: ExitCode = EXIT.done
  const program = buildProgram({
    stdout: process.stdout, stderr: process.stderr, environment: processEnvironment(), signal, clock: systemClock, random: systemRandom,
  }, (ended) => { code = ended })
  try {
    await program.parseAsync([...argv], { from: 'user' })
    return signal.aborted && code !== EXIT.done ? EXIT.interrupted : code
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage
    return report(error, signal, argv)
  }
}

/** Says what failed and what to do next. */
function report(error: unknown, signal: AbortSignal, argv: readonly string[]): ExitCode {
  const interrupted = signal.aborted || isAbort(error)
  const told = interrupted
    ? { code: 'INTERRUPTED', message: 'Interrupted. Running the same command again continues where this one stopped.' }
    : tellError(error)
  if (argv.includes('--json')) process.stdout.write(`${JSON.stringify({ type: 'error', ...told })}\n`)
  const label = told.code === 'INTERRUPTED' || told.code === 'USAGE' ? '' : ` [${told.code}]`
  process.stderr.write(`roost: ${printable(told.message)}${label}\n`)
  if ('hint' in told && told.hint !== undefined) process.stderr.write(`       ${told.hint}\n`)
  if (argv.includes('--verbose') && error instanceof Error && error.stack !== undefined) process.stderr.write(`${stackOf(error)}\n`)
  return interrupted ? EXIT.interrupted : error instanceof UsageError ? EXIT.usage : hasCode(error, 'NOT_YET_DURABLE') ? EXIT.notYetDurable : EXIT.failed
}
function stackOf(error: Error, depth = 0): string {
  const own = error.stack ?? error.message
  return error.cause instanceof Error && depth < 5 ? `${own}\nCaused by: ${stackOf(error.cause, depth + 1)}` : own
}
async function drained(stream: NodeJS.WriteStream): Promise<void> {
  if (stream.writableLength > 0) await new Promise<void>((resolve) => { stream.write('', () => resolve()) })
}
