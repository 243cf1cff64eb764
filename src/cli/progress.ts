/** One line that tells how far a long task is: amount, rate, time left. The arithmetic is pure; Output draws it. */
import { formatBytes, formatCount, formatDuration } from './format.js'

export interface ProgressState {
  /** Bytes or items done so far, and expected in all when that is known. */
  readonly done: number
  readonly total: number | undefined
  readonly unit: 'bytes' | 'items'
  /** What is worked on now: a path, a phase. */
  readonly at: string
  /** More facts, ready to print (`3 errors`). */
  readonly extra?: string
}

/** Rate over the recent past: an average over the whole run reacts too slowly, an instant one jumps. */
export class RateMeter {
  readonly #samples: { atMs: number; done: number }[] = []
  constructor(readonly windowMs = 8_000) {}
  /** Records where the work is and returns units a second, or undefined while too little is known. */
  update(done: number, nowMs: number): number | undefined {
    this.#samples.push({ atMs: nowMs, done })
    while (this.#samples.length > 2 && nowMs - this.#samples[0]!.atMs > this.windowMs) this.#samples.shift()
    const first = this.#samples[0]!
    const elapsedMs = nowMs - first.atMs
    return elapsedMs < 250 ? undefined : Math.max(0, (done - first.done) / elapsedMs * 1000)
  }
}

export function formatProgress(state: ProgressState, rate: number | undefined, columns: number): string {
  const amount = state.unit === 'bytes' ? formatBytes : formatCount
  const parts = [state.total === undefined ? amount(state.done) : `${amount(state.done)} of ${amount(state.total)}`]
  if (state.total !== undefined && state.total > 0) parts.unshift(`${Math.floor(Math.min(1, state.done / state.total) * 100)}%`)
  if (rate !== undefined) {
    parts.push(`${state.unit === 'bytes' ? formatBytes(Math.round(rate)) : formatCount(Math.round(rate))}/s`)
    if (state.total !== undefined && rate > 0 && state.done < state.total)
      parts.push(`${formatDuration((state.total - state.done) / rate * 1000)} left`)
  }
  if (state.extra !== undefined && state.extra !== '') parts.push(state.extra)
  const line = parts.join(' · ')
  const room = columns - line.length - 4
  return room < 8 || state.at === '' ? line.slice(0, columns - 1) : `${line} · ${shorten(state.at, room)}`
}

/** Keeps the end: the last part of a path tells the most. */
function shorten(text: string, room: number): string {
  return text.length <= room ? text : `…${text.slice(text.length - room + 1)}`
}
