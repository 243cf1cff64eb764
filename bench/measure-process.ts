/** What a command costs: wall time, CPU time of it and its children, and the largest resident memory of any of its processes. */
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'

export interface Cost { readonly wallSeconds: number; readonly cpuSeconds: number; readonly peakBytes: number }
/** VmHWM only grows, so the last look before the end misses little. */
const LOOK_EVERY_MS = 20
const TICKS_PER_SECOND = 100 // USER_HZ of every Linux

/** @throws {Error} with the tail of its output when the command does not end with 0 or one of `accepted`. */
export async function measure(command: readonly string[], options: { env?: NodeJS.ProcessEnv; cwd?: string; accepted?: readonly number[]; stdinFile?: string } = {}): Promise<Cost> {
  // bash's `time` counts what its children cost, which Node does not tell.
  const child = spawn('bash', ['-c', 'TIMEFORMAT="cost %R %U %S"; time "$@" > >(tail -c 4000 >&2) 2>&1', 'bash', ...command],
    { stdio: ['ignore', 'ignore', 'pipe'], env: options.env ?? process.env, ...(options.cwd === undefined ? {} : { cwd: options.cwd }) })
  let text = ''
  child.stderr.on('data', (bytes: Buffer) => { text = (text + bytes.toString('latin1')).slice(-16_000) })
  const peaks = new Map<number, number>()
  const look = (): void => { for (const pid of descendants(child.pid!)) peaks.set(pid, Math.max(peaks.get(pid) ?? 0, peakBytesOf(pid))) }
  const timer = setInterval(look, LOOK_EVERY_MS)
  const code = await new Promise<number | null>((resolve) => { child.once('close', resolve) })
  clearInterval(timer)
  const cost = /cost ([\d.]+) ([\d.]+) ([\d.]+)/.exec(text)
  if (cost === null || !(options.accepted ?? [0]).includes(code ?? -1)) throw new Error(`${command.slice(0, 3).join(' ')} … ended with ${code}:\n${text.slice(-2000)}`)
  return { wallSeconds: Number(cost[1]), cpuSeconds: Number(cost[2]) + Number(cost[3]), peakBytes: Math.max(0, ...peaks.values()) }
}

/** CPU seconds of a running process, its threads included. */
export function cpuSecondsOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ')
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND
}
export function peakBytesOf(pid: number): number {
  try {
    return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0) * 1024
  } catch { return 0 } // it ended
}
/** VmHWM starts again from what is resident now. */
export function resetPeak(pid: number): void { writeFileSync(`/proc/${pid}/clear_refs`, '5') }

function descendants(pid: number): number[] {
  const found: number[] = []
  try {
    for (const task of readdirSync(`/proc/${pid}/task`))
      for (const child of readFileSync(`/proc/${pid}/task/${task}/children`, 'latin1').trim().split(' ').filter((text) => text !== '').map(Number))
        found.push(child, ...descendants(child))
  } catch { /* it ended */ }
  return found
}
