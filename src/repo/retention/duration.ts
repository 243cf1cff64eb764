/** Calendar durations as retention rules and locks are written: `1y5m7d2h`. Pure. */
import { RoostError } from '../../core/errors.js'

export interface CalendarDuration { readonly years: number; readonly months: number; readonly days: number; readonly hours: number }

const PATTERN = /^(?:(\d{1,3})y)?(?:(\d{1,4})m)?(?:(\d{1,6})d)?(?:(\d{1,7})h)?$/

/** @throws {RoostError} REQUEST_MALFORMED */
export function parseDuration(text: string): CalendarDuration {
  const match = text === '' ? null : PATTERN.exec(text)
  if (match === null)
    throw new RoostError('REQUEST_MALFORMED', `"${text.slice(0, 40)}" is not a duration: write years, months, days and hours in this order, such as 1y6m, 30d or 12h.`)
  const [years = 0, months = 0, days = 0, hours = 0] = match.slice(1).map((part: string | undefined) => Number(part ?? 0))
  return { years, months, days, hours }
}
export const isZero = ({ years, months, days, hours }: CalendarDuration): boolean => years + months + days + hours === 0
