/** Follows a run of maintenance: progress while it runs, each problem on a line, and what it came to. */
import { RoostError } from '../core/errors.js'
import type { JobKind, MaintenanceEvent } from '../core/messages.js'
import type { CommandContext } from './context.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { formatBytes, formatCount, formatTime, printable } from './format.js'

type Done = Extract<MaintenanceEvent, { type: 'done' }>
/** What one kind tells in words of its own. */
export interface KindReport {
  fate?(event: Extract<MaintenanceEvent, { type: 'fate' }>): void
  note?(event: MaintenanceEvent): void
  /** Instead of all counts in a row. */
  summary?(done: Done): string
}

/** @throws {RoostError} what made it fail; BODY_TRUNCATED when it ended without saying how. */
export async function followMaintenance(context: CommandContext, events: AsyncIterable<MaintenanceEvent>, what: JobKind, report?: KindReport): Promise<ExitCode> {
  const { output } = context
  let phase = ''
  let done: Done | undefined
  for await (const event of events) {
    output.record({ ...event })
    report?.note?.(event)
    switch (event.type) {
      case 'progress':
        if (event.phase !== phase) { output.endProgress(); output.detail(`${what}: ${event.phase}`) }
        phase = event.phase
        output.progress({ done: event.done, total: event.total > 0 && event.phase !== 'bytes' ? event.total : undefined, unit: event.phase === 'bytes' ? 'bytes' : 'items', at: event.phase })
        break
      case 'problem': {
        const where = [event.snapshot === undefined ? '' : `snapshot ${event.snapshot}`, event.source === undefined ? '' : `of ${printable(event.source)}`,
          event.receivedAtMs === undefined ? '' : formatTime(event.receivedAtMs), event.pack === undefined ? '' : `pack ${event.pack}`,
          event.chunk === undefined ? '' : `chunk ${event.chunk}`,
          event.target === undefined ? '' : `target ${event.target}`].filter((part) => part !== '').join(', ')
        output.warn(`problem [${event.code}]: ${printable(event.message)}${where === '' ? '' : ` (${where})`}`)
        break
      }
      case 'healed':
        output.line(`${what === 'check' ? 'healed' : 'copied'} ${printable(event.object)} on ${event.target} from ${event.from}`)
        break
      case 'mended':
        output.warn(`pack ${event.pack} is whole nowhere: ${[event.lost === 0 ? '' : `${formatCount(event.lost)} chunks are lost (the next backups that have them bring them back)`,
          event.moved === 0 ? '' : `${formatCount(event.moved)} that are readable moved to new packs`].filter((part) => part !== '').join(', ')}`)
        break
      case 'replicated': output.line(`replicated ${event.snapshot} of ${printable(event.source)} (${formatTime(event.receivedAtMs)})`); break
      case 'lacking': break
      case 'fate': report?.fate?.(event); break
      case 'verdict': break // its command shows it
      case 'deleted': output.detail(`deleted ${event.snapshot}`); break
      case 'done': done = event; break
      case 'failed': throw new RoostError(event.error.code, event.error.message, event.error.details)
    }
  }
  output.endProgress()
  if (done === undefined) throw new RoostError('BODY_TRUNCATED', `The ${what} ended without saying how.`)
  output.line(`${what}: ${describeProblems(done)}${report?.summary === undefined ? inParentheses(describeCounts(done)) : `; ${report.summary(done)}`}`)
  return done.problems === 0 ? EXIT.done : EXIT.doneWithProblems
}
const describeProblems = ({ problems }: Done): string => problems === 0 ? 'no problems' : `${formatCount(problems)} problem${problems === 1 ? '' : 's'}`
const describeCounts = ({ counts }: Done): string => Object.entries(counts).map(([name, count]) =>
  /bytes/i.test(name) ? `${formatBytes(count)} ${wordsOf(name).replace(/^bytes | bytes$/, '')}` : `${formatCount(count)} ${wordsOf(name)}`).join(', ')
const inParentheses = (text: string): string => text === '' ? '' : ` (${text})`
/** `bytesRead` → `bytes read`. */
const wordsOf = (name: string): string => name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)
