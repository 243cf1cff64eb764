/** Instants as a wall clock of some place shows them, daylight saving time included. Pure: the zone's rules come from Intl.
 *
 *  The arithmetic is that of Go's time package, which restic's policies are defined by: AddDate normalises overflowing fields, and a wall time
 *  that a change of the clocks skips or repeats is resolved by the offset that holds nearby.
 */
import { RoostError } from '../../core/errors.js'
import type { CalendarDuration } from './duration.js'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

/** What a wall clock shows, as if it were UTC: fields are read off it by plain arithmetic. */
interface Wall { readonly year: number; readonly month: number; readonly day: number; readonly hour: number; readonly asUtcMs: number }

export class Calendar {
  readonly #format: Intl.DateTimeFormat
  /** @throws {RoostError} REQUEST_MALFORMED for a zone that is not in the time zone database */
  constructor(readonly timeZone: string) {
    try {
      this.#format = new Intl.DateTimeFormat('en-US-u-ca-gregory-nu-latn', { timeZone, hourCycle: 'h23', year: 'numeric', month: 'numeric', day: 'numeric',
        hour: 'numeric', minute: 'numeric', second: 'numeric', era: 'short' })
    } catch (error) {
      throw new RoostError('REQUEST_MALFORMED', `"${timeZone.slice(0, 64)}" is not a time zone: write a name such as Europe/Berlin, or UTC.`, {}, { cause: error })
    }
  }

  wall(ms: number): Wall {
    const field: Record<string, string> = {}
    for (const { type, value } of this.#format.formatToParts(ms)) field[type] = value
    const year = field['era'] === 'BC' ? 1 - Number(field['year']) : Number(field['year'])
    const [month, day, hour] = [Number(field['month']), Number(field['day']), Number(field['hour'])]
    const asUtcMs = Date.UTC(year, month - 1, day, hour, Number(field['minute']), Number(field['second'])) + (((ms % 1000) + 1000) % 1000)
    return { year, month, day, hour, asUtcMs }
  }
  #offsetAt(ms: number): number { return this.wall(ms).asUtcMs - ms }

  hourOf(ms: number): number { const { year, month, day, hour } = this.wall(ms); return ((year * 100 + month) * 100 + day) * 100 + hour }
  dayOf(ms: number): number { const { year, month, day } = this.wall(ms); return (year * 100 + month) * 100 + day }
  monthOf(ms: number): number { const { year, month } = this.wall(ms); return year * 100 + month }
  yearOf(ms: number): number { return this.wall(ms).year }
  /** ISO 8601: weeks begin on Monday, and belong to the year of their Thursday. */
  weekOf(ms: number): number {
    const day = Math.floor(this.wall(ms).asUtcMs / DAY_MS)
    const thursday = day - ((day + 3) % 7 + 7) % 7 + 3 // day 0, 1 January 1970, was a Thursday
    const year = yearOfUtc(thursday * DAY_MS)
    const week = Math.floor((thursday - Date.UTC(year, 0, 1) / DAY_MS) / 7) + 1
    return year * 100 + week
  }

  /** The instant so much earlier: years, months and days by the calendar, hours by the stopwatch. */
  before(ms: number, { years, months, days, hours }: CalendarDuration): number {
    if (years + months + days === 0) return ms - hours * HOUR_MS
    const { year, month, day, asUtcMs } = this.wall(ms)
    const timeOfDayMs = ((asUtcMs % DAY_MS) + DAY_MS) % DAY_MS
    const wanted = Date.UTC(year - years, month - 1 - months, day - days) + timeOfDayMs
    const guess = this.#offsetAt(wanted)
    const offset = guess === 0 ? 0 : this.#offsetAt(wanted - guess)
    return wanted - offset - hours * HOUR_MS
  }
}

function yearOfUtc(ms: number): number {
  let year = 1970 + Math.floor(ms / (365.2425 * DAY_MS))
  while (Date.UTC(year, 0, 1) > ms) year--
  while (Date.UTC(year + 1, 0, 1) <= ms) year++
  return year
}
