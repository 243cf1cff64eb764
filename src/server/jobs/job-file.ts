/** The jobs that an operator wrote down: YAML (or JSON), read once at start. Strict, like everything that is configured: a typing error must not be silent.
 *
 *  jobs:
 *    - name: nightly-check
 *      kind: check
 *      repository: main         # absent: every repository of the server
 *      cron: "30 3 * * *"
 *      timeZone: Europe/Berlin  # absent: the server's
 *      jitterSeconds: 600       # absent: JITTER_SECONDS_DEFAULT
 *      options: { readDataPercent: 10 }
 */
import { readFile } from 'node:fs/promises'
import { JOB_KINDS, type JobKind, type JobOptions } from '../../core/messages.js'
import { parseYaml } from '../../core/yaml.js'
import { ServerConfigError } from '../config.js'
import { CronError, localTimeZone, parseCron, type CronSchedule } from './cron-schedule.js'
import { JOB_KIND_TRAITS } from './job-kinds.js'

export interface JobDefinition {
  readonly name: string
  readonly kind: JobKind
  /** Absent: every repository. */
  readonly repository?: string
  readonly schedule: CronSchedule
  readonly jitterSeconds: number
  readonly options: JobOptions
}

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/
/** A run's id is 16 hex digits: a name must not look like one. */
const LIKE_AN_ID = /^[0-9a-f]{16}$/
const KEYS = ['name', 'kind', 'repository', 'cron', 'timeZone', 'jitterSeconds', 'options'] as const
export const JITTER_SECONDS_DEFAULT = 300
const JITTER_SECONDS_MAX = 86_400
const DEFINITIONS_MAX = 256

/** @throws {ServerConfigError} naming the place */
export async function readJobFile(path: string, nowMs: number): Promise<JobDefinition[]> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw new ServerConfigError(`The jobs file ${path} cannot be read${error instanceof Error ? `: ${error.message}` : ''}`, { cause: error })
  }
  return parseJobFile(text, path, nowMs)
}

export function parseJobFile(text: string, path: string, nowMs: number): JobDefinition[] {
  let parsed: unknown
  try {
    parsed = parseYaml(text)
  } catch (error) {
    throw new ServerConfigError(`${path} is not YAML: ${error instanceof Error ? error.message : 'it cannot be read'}`, { cause: error })
  }
  const refuse = (problem: string): never => { throw new ServerConfigError(`${path}: ${problem}`) }
  if (parsed === null || parsed === undefined) return []
  if (!isRecord(parsed)) return refuse('it must hold `jobs:` and a list.')
  for (const key of Object.keys(parsed)) if (key !== 'jobs') refuse(`"${key}" is not a setting; there is: jobs.`)
  const list = parsed['jobs'] ?? []
  if (!Array.isArray(list)) return refuse('"jobs" must be a list.')
  if (list.length > DEFINITIONS_MAX) refuse(`more than ${DEFINITIONS_MAX} jobs.`)
  const definitions = list.map((entry: unknown, index) => parseDefinition(entry, nowMs, (problem) => refuse(`job ${index + 1}${nameIn(entry)}: ${problem}`)))
  const names = definitions.map(({ name }) => name)
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined) refuse(`two jobs are named "${twice}".`)
  return definitions
}

function parseDefinition(entry: unknown, nowMs: number, refuse: (problem: string) => never): JobDefinition {
  if (!isRecord(entry)) return refuse('it must have a name, a kind and a cron expression.')
  for (const key of Object.keys(entry)) if (!(KEYS as readonly string[]).includes(key)) refuse(`"${key}" is not a setting; there are: ${KEYS.join(', ')}.`)
  const { name, kind, repository, cron, timeZone = localTimeZone(), jitterSeconds = JITTER_SECONDS_DEFAULT, options = {} } = entry
  if (typeof name !== 'string' || !NAME.test(name) || LIKE_AN_ID.test(name))
    return refuse('a name has 1–64 characters of a–z, 0–9, ".", "_" and "-", starts with a letter or digit, and is not 16 hex digits.')
  const kinds = JOB_KINDS.filter((one) => JOB_KIND_TRAITS[one].schedulable)
  if (!isOneOf(kinds, kind)) return refuse(`"kind" must be one of ${kinds.join(', ')}.`)
  if (repository !== undefined && (typeof repository !== 'string' || !NAME.test(repository))) return refuse('"repository" must be the name of a repository; leave it out for all.')
  if (typeof cron !== 'string') return refuse('"cron" must be a cron expression in quotes, such as "30 3 * * *".')
  if (typeof timeZone !== 'string') return refuse('"timeZone" must be UTC or a name such as Europe/Berlin.')
  if (typeof jitterSeconds !== 'number' || !(jitterSeconds >= 0 && jitterSeconds <= JITTER_SECONDS_MAX)) return refuse(`"jitterSeconds" must be a number from 0 to ${JITTER_SECONDS_MAX}.`)
  if (!isRecord(options)) return refuse('"options" must be a list of settings with values.')
  const rules = JOB_KIND_TRAITS[kind].options
  for (const [key, value] of Object.entries(options)) {
    const rule = Object.hasOwn(rules, key) ? rules[key] : undefined
    if (rule === undefined) return refuse(`"${key}" is no option of ${kind}${Object.keys(rules).length === 0 ? '; it has none' : `; there are: ${Object.keys(rules).join(', ')}`}.`)
    const expected = rule(value)
    if (expected !== undefined) refuse(`"${key}" must be ${expected}.`)
  }
  const wrong = JOB_KIND_TRAITS[kind].refuses?.(options)
  if (wrong !== undefined) refuse(wrong)
  try {
    return { name, kind, schedule: parseCron(cron, timeZone, nowMs), jitterSeconds, options, ...(repository === undefined ? {} : { repository }) }
  } catch (error) {
    if (error instanceof CronError) return refuse(error.message)
    throw error
  }
}
const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value)
const isOneOf = <T extends string>(choices: readonly T[], value: unknown): value is T => (choices as readonly unknown[]).includes(value)
const nameIn = (entry: unknown): string => isRecord(entry) && typeof entry['name'] === 'string' ? ` (${entry['name'].slice(0, 64)})` : ''
