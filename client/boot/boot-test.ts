/** Does the machine of a snapshot start? Started without a screen or network, watched until a criterion holds, and thrown away. */
import type { Clock } from '../../src/core/clock.js'
import type { Random } from '../../src/core/random.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { OpenSnapshot } from '../browse/open-snapshot.js'
import { openAgent } from '../machine/guest-agent.js'
import { bootMachine, type BootedMachine, type BootEvents, type BootOptions } from './boot-machine.js'
import { SerialLog } from './serial-log.js'

/** `serial`: a text, or a regular expression, in a line of the serial console. `running`: it still runs after that time. */
export type BootCriterion =
  | { readonly kind: 'agent' }
  | { readonly kind: 'serial'; readonly test: (line: string) => boolean }
  | { readonly kind: 'running'; readonly forMs: number }

export interface BootTestOptions extends Omit<BootOptions, 'serial' | 'isTerminal' | 'display'> { readonly criterion: BootCriterion; readonly timeoutMs: number }
/** `seconds`: from starting QEMU to the criterion, or to giving up. `reason`: of a failure. */
export interface BootTestReport { readonly result: 'ok' | 'failed'; readonly seconds: number; readonly reason?: string; readonly serial: readonly string[] }

const SHOWN_LINES = 30
const AGENT_SYNC_MS = 3_000
const AGENT_PAUSE_MS = 500

/** @throws {ClientError} QEMU_FAILED when QEMU itself cannot be started; what reading the snapshot throws; `signal.reason` */
export async function runBootTest(open: OpenSnapshot, options: BootTestOptions, events: BootEvents, deps: { readonly clock: Clock; readonly random: Random },
  signal: AbortSignal): Promise<BootTestReport> {
  const { clock } = deps
  let problem: string | undefined
  const { criterion, timeoutMs } = options
  const machine = await bootMachine(open, { ...options, serial: 'pipe', isTerminal: false, display: 'none' }, {
    ...events, problem: (disk, error) => { problem ??= `${disk}: ${error instanceof Error ? error.message : 'it could not be read'}`; events.problem?.(disk, error) },
  }, clock, signal)
  const startedMs = clock.monotonicMs()
  const over = new AbortController()
  try {
    const log = new SerialLog(machine.qemu.child.stdout!, criterion.kind === 'serial' ? criterion.test : undefined)
    const waiting = AbortSignal.any([signal, over.signal])
    const met = untilMet(machine, criterion, log, deps, waiting).then(() => undefined)
    const late = clock.sleep(timeoutMs, waiting).then(() => `nothing came of it within ${Math.round(timeoutMs / 1000)} s`)
    const ended = machine.qemu.ended.then((end) => machine.qemu.describe(end))
    for (const promise of [met, late]) promise.catch(() => undefined) // those that lose end with `over`
    const failure = await Promise.race([met, late, ended])
    signal.throwIfAborted()
    return {
      result: failure === undefined ? 'ok' : 'failed', seconds: Math.round(clock.monotonicMs() - startedMs) / 1000, serial: log.lines(SHOWN_LINES),
      ...(failure === undefined ? {} : { reason: problem === undefined ? failure : `${failure}; a disk could not be read: ${problem}` }),
    }
  } finally {
    over.abort(new DOMException('The test is over.', 'AbortError'))
    await machine.close(true)
  }
}

async function untilMet(machine: BootedMachine, criterion: BootCriterion, log: SerialLog, { clock, random }: { readonly clock: Clock; readonly random: Random }, signal: AbortSignal): Promise<void> {
  switch (criterion.kind) {
    case 'serial': await log.matched; return
    case 'running': await clock.sleep(criterion.forMs, signal); return
    case 'agent':
      for (;;) {
        try {
          // Its answer to guest-sync is the ping: somebody in there runs.
          (await openAgent({ kind: 'socket', path: machine.agentSocket }, clock, random, AGENT_SYNC_MS, signal)).close()
          return
        } catch (error) {
          if (!(error instanceof ClientError)) throw error
        }
        await clock.sleep(AGENT_PAUSE_MS, signal)
      }
  }
}
