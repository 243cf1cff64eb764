/** When a cron expression comes due. The only importer of croner, of which only the calendar is used: its timers are not ours to test.
 *
 *  Five fields as in crontab(5), or @hourly, @daily, @weekly, @monthly, @yearly; wall time of one time zone. A time that the clock skips in spring comes due
 *  when the clock has skipped it, one that it shows twice in autumn comes due once; what repeats by the hour or minute follows real time.
 */
import { Cron } from 'croner'
import { dateOf } from '../../core/clock.js'

export interface CronSchedule {
  readonly cron: string
  readonly timeZone: string
  /** The first time it comes due after `ms`, in ms since 1970; undefined: never again. */
  next(ms: number): number | undefined
}

/** An expression or a time zone that means nothing; the message says which part. */
export class CronError extends Error { override readonly name = 'CronError' }

/** The time zone of this machine (TZ), as cron takes it. */
export const localTimeZone = (): string => Intl.DateTimeFormat().resolvedOptions().timeZone

const FIELDS = /^\s*(?:\S+\s+){4}\S+\s*$/
const NICKNAME = /^@(?:hourly|daily|midnight|weekly|monthly|yearly|annually)$/

/** @throws {CronError} */
export function parseCron(cron: string, timeZone: string, nowMs: number): CronSchedule {
  if (!FIELDS.test(cron) && !NICKNAME.test(cron))
    throw new CronError(`"${cron}" is no cron expression: write minute, hour, day of the month, month and day of the week, such as "30 3 * * *", or @daily.`)
  try {
    // The library reports a wrong zone only when it computes.
    new Intl.DateTimeFormat('en', { timeZone })
  } catch (error) {
    throw new CronError(`"${timeZone}" is no time zone: write UTC, or a name such as Europe/Berlin.`, { cause: error })
  }
  let expression: Cron
  try {
    expression = new Cron(cron, { paused: true, mode: '5-part', timezone: timeZone })
  } catch (error) {
    throw new CronError(`"${cron}" is no cron expression: ${error instanceof Error ? error.message.replace(/^CronPattern: /, '') : 'it cannot be read'}`, { cause: error })
  }
  const next = (ms: number): number | undefined => expression.nextRun(dateOf(ms))?.getTime()
  if (next(nowMs) === undefined) throw new CronError(`"${cron}" never comes due: no year has such a day.`)
  return { cron, timeZone, next }
}
