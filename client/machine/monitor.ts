/** How QEMU is spoken to: one command, one answer (docs/machines.md). Two ways lead there, a QMP socket and libvirt's virsh; neither is asked for
 *  events, because virsh has none: whatever takes its time is asked about until it is so.
 */
import type { Clock } from '../../src/core/clock.js'
import { ClientError } from '../../src/protocol/client-errors.js'

/** Where a machine's monitor is. Plain values: it is told to the watchdog. */
export type MonitorAddress =
  | { readonly kind: 'socket'; readonly path: string }
  | { readonly kind: 'libvirt'; readonly domain: string; readonly uri?: string }

export interface MonitorCall { readonly timeoutMs?: number; readonly signal?: AbortSignal }
export interface Monitor {
  /** What QEMU returns. @throws {QemuRefusal} when QEMU says no; {ClientError} MACHINE_UNREACHABLE when it says nothing; `signal.reason` */
  execute(command: string, parameters?: Readonly<Record<string, unknown>>, call?: MonitorCall): Promise<unknown>
  /** Idempotent. */
  close(): void
}

/** QEMU's answer to a command that it did not do. */
export class QemuRefusal extends Error {
  override readonly name = 'QemuRefusal'
  constructor(readonly command: string, readonly kind: string, readonly description: string) { super(`QEMU refused ${command}: ${description}`) }
}
export const COMMAND_MS_MAX = 20_000

/** The answer of either way as QMP writes it. @throws {QemuRefusal} */
export function openAnswer(command: string, answer: Readonly<Record<string, unknown>>): unknown {
  if (Object.hasOwn(answer, 'return')) return answer['return']
  const error = answer['error'] as Readonly<Record<string, unknown>> | undefined
  const text = (value: unknown): string => typeof value === 'string' ? value : ''
  throw new QemuRefusal(command, text(error?.['class']), text(error?.['desc']).slice(0, 1_000) || 'it gave no reason')
}

/** For people: a refusal becomes an error with a code. Anything else passes. */
export function tellRefusal(error: unknown, what: string): unknown {
  return error instanceof QemuRefusal ? new ClientError('QEMU_REFUSED', `${what}: ${error.message}`, { cause: error }) : error
}

/** Asks until `holds` or the time is over; returns whether it holds. */
export async function until(clock: Clock, ms: number, holds: () => Promise<boolean>, signal?: AbortSignal): Promise<boolean> {
  const end = clock.monotonicMs() + ms
  for (let pauseMs = 5; ; pauseMs = Math.min(200, pauseMs * 2)) {
    if (await holds()) return true
    if (clock.monotonicMs() >= end) return false
    await clock.sleep(pauseMs, signal)
  }
}
