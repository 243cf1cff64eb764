/** Numbers, times and tables as people read them, and sizes as people write them. Pure. */
import { UsageError } from './exit-codes.js'

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const

/** `1536` → `1.50 KiB`: three significant digits, binary units. */
export function formatBytes(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 1023.5 && unit < UNITS.length - 1) { value /= 1024; unit++ }
  if (unit === 0) return `${bytes} B`
  return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ${UNITS[unit]!}`
}

/** `3.2 s`, `4:05`, `2:03:04`. */
export function formatDuration(ms: number): string {
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`
  const seconds = Math.round(ms / 1000)
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60]
  const two = (n: number): string => String(n).padStart(2, '0')
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`
}

/** Local time, second precision: `2025-01-31 08:15:00`. */
export function formatTime(ms: number): string {
  const at = new Date(ms)
  const two = (n: number): string => String(n).padStart(2, '0')
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ` +
    `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`
}

export const formatCount = (count: number): string => String(count).replace(/\B(?=(\d{3})+$)/g, ' ')

/** `64K`, `1.5MiB`, `2G`, `4096` → bytes; every unit is binary. @throws {UsageError} */
export function parseBytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?$/i.exec(text.trim())
  if (match === null) throw new UsageError(`"${text}" is not a size: write a number with K, M, G or T, such as 512K or 4MiB.`)
  const bytes = Math.round(Number(match[1]) * 1024 ** ' KMGTP'.indexOf(match[2]!.toUpperCase() || ' '))
  if (!Number.isSafeInteger(bytes)) throw new UsageError(`"${text}" is too large.`)
  return bytes
}

const SPANS: Readonly<Record<string, number>> = { h: 3_600_000, d: 86_400_000, w: 7 * 86_400_000, y: 365 * 86_400_000 }
/** `12h`, `30d`, `8w`, `7y` (of 365 days) → milliseconds. @throws {UsageError} */
export function parseSpan(text: string): number {
  const match = /^(\d{1,7})([hdwy])$/.exec(text)
  if (match === null) throw new UsageError(`"${text}" is not a duration: write hours, days, weeks or years, such as 12h, 30d, 8w or 7y.`)
  return Number(match[1]) * SPANS[match[2]!]!
}
/** `30 days`, `12 hours`. */
export const formatDays = (ms: number): string => ms % 86_400_000 === 0 ? `${ms / 86_400_000} days` : `${Math.round(ms / 3_600_000)} hours`
/** `2027-01-31` (midnight UTC) or with a time and zone → milliseconds since 1970. @throws {UsageError} */
export function parseInstant(text: string): number {
  const ms = /^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?(Z|[+-]\d{2}:\d{2}))?$/.test(text) ? Date.parse(text) : Number.NaN
  if (Number.isNaN(ms)) throw new UsageError(`"${text}" is not a date: write 2027-01-31, or 2027-01-31T12:00Z.`)
  return ms
}

/** Removes what could move the cursor or forge lines: names come from other machines. */
export function printable(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069\\]/g, (character) =>
    character === '\\' ? '\\\\' : `\\x${character.codePointAt(0)!.toString(16).padStart(2, '0')}`)
}

/** Columns aligned by the widest cell; `right` names those aligned to the right. */
export function formatTable(header: readonly string[], rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const all = [header, ...rows]
  const widths = header.map((_title, column) => Math.max(...all.map((row) => (row[column] ?? '').length)))
  return all.map((row) => row.map((cell, column) =>
    right.includes(column) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)).join('  ').trimEnd()).join('\n')
}
