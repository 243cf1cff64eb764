/** Looks after the moment while it is being read: a fleece at its limit ends the run before it costs others, and so does a QEMU that is gone. */
import type { Clock } from '../../src/core/clock.js'
import { isAbort } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { Fleece } from './fleece.js'
import type { Monitor } from './monitor.js'
import { QmpSocket } from './qmp-socket.js'
import { statusOf } from './open-monitor.js'

export interface MomentGuard {
  /** The run's own, and aborted when the moment is lost. */
  readonly signal: AbortSignal
  /** What is wrong with the fleece just now. */
  problem(): string | undefined
  end(): void
}
const LOOK_MS = 500
/** A monitor's connection may break while QEMU goes on. */
const RECONNECT_MS = 5_000

export function guardMoment({ fleece, monitor, clock }: { fleece: Fleece; monitor: Monitor; clock: Clock }, signal: AbortSignal): MomentGuard {
  const ending = new AbortController()
  const lost = new AbortController()
  const lose = (error: ClientError): void => { if (!ending.signal.aborted) lost.abort(error) }
  const watch = async (): Promise<void> => {
    for (;;) {
      await clock.sleep(LOOK_MS, ending.signal)
      const problem = fleece.problem()
      if (problem !== undefined) lose(new ClientError('FLEECE_FAILED', `${problem} The machine is not affected.`))
    }
  }
  watch().catch((error: unknown) => { if (!isAbort(error)) lose(new ClientError('FLEECE_FAILED', 'The fleece cannot be looked at.', { cause: error })) })
  if (monitor instanceof QmpSocket) monitor.onLost = () => { void reconnect() }
  async function reconnect(): Promise<void> {
    const end = clock.monotonicMs() + RECONNECT_MS
    for (;;) {
      if (ending.signal.aborted) return
      try {
        await statusOf(monitor)
        return
      } catch (error) {
        if (clock.monotonicMs() >= end) { lose(new ClientError('POINT_IN_TIME_LOST', 'QEMU is gone, and with it the moment that was being read.', { cause: error })); return }
        await clock.sleep(LOOK_MS)
      }
    }
  }
  return {
    signal: AbortSignal.any([signal, lost.signal]),
    problem: () => fleece.problem(),
    end: () => {
      if (monitor instanceof QmpSocket) monitor.onLost = undefined
      ending.abort(new DOMException('The moment is over.', 'AbortError'))
    },
  }
}
