/** A backup's dealings with Nova from its beginning to its end: the server is marked, its record read, and the mark taken back.
 *
 *  Nova serves the backup, not the other way round: while it or Keystone is away, the backup goes on without, and says so.
 */
import { dateOf, type Clock } from '../../src/core/clock.js'
import type { Random } from '../../src/core/random.js'
import type { Cloud } from '../../src/openstack/cloud.js'
import { CloudError, hasCloudCode } from '../../src/openstack/cloud-error.js'
import type { NovaDescription } from '../machine/machine-description.js'
import { readServer } from './read-server.js'
import { formatMark, newMark } from './run-mark.js'
import { placeMark, removeMark, type MarkWish } from './server-mark.js'

export interface NovaRunOptions {
  readonly serverId: string
  readonly mark: MarkWish
  /** A mark whose run cannot be judged from here counts as dead. */
  readonly takesOver: boolean
  /** Without Nova's record and the mark there is to be no backup. */
  readonly isRequired: boolean
  /** How long the cloud may take for all of it. Default 60 s. */
  readonly patienceMs?: number
  readonly clock: Clock
  readonly random: Random
  warn(message: string): void
}
export interface NovaRun {
  /** Undefined when it could not be read. */
  readonly description: NovaDescription | undefined
  /** What is to be seen in Nova while the backup runs. */
  readonly mark: MarkWish
  /** Takes the mark back; warns where it cannot. Never rejects, is bounded in time, and works after Ctrl-C. */
  end(): Promise<void>
}

/** A backup waits. */
const PATIENCE_MS = 60_000
const END_MS_MAX = 20_000
const END_ATTEMPTS = 3
const END_PAUSE_MS = 1_000

/** @throws {CloudError} SERVER_MARKED: another run backs this server up; anything else only when Nova is required. `signal.reason` */
export async function beginNova(cloud: Cloud, options: NovaRunOptions, signal: AbortSignal): Promise<NovaRun> {
  const { serverId, clock, warn } = options
  const mark = newMark(options.random, dateOf(clock.now()).toISOString().replace(/\.\d+Z$/, 'Z'))
  const own = formatMark(mark)
  const patienceMs = options.patienceMs ?? PATIENCE_MS
  const patience = AbortSignal.timeout(patienceMs)
  const bounded = AbortSignal.any([signal, patience])
  let placed: MarkWish = 'none', mayBePlaced = false
  const end = async (): Promise<void> => {
    if (mayBePlaced) await endQuietly(cloud, serverId, own, options)
    mayBePlaced = false
  }
  /** What stops no backup is returned, for a warning. */
  const tolerable = (error: unknown): CloudError => {
    const late = patience.aborted && !signal.aborted && !(error instanceof CloudError)
    const cause = late ? new CloudError('CLOUD_UNAVAILABLE', `The cloud did not answer within ${patienceMs / 1000} s.`) : error
    if (cause instanceof CloudError && cause.code !== 'SERVER_MARKED' && !options.isRequired) return cause
    throw cause
  }
  try {
    let unmarked: CloudError | undefined
    try {
      const result = await placeMark(cloud, serverId, mark, { wish: options.mark, takesOver: options.takesOver, onPlacing: () => { mayBePlaced = true } }, bounded)
      placed = result.kind
      mayBePlaced = placed !== 'none'
      for (const warning of result.warnings) warn(warning)
      if (options.isRequired && options.mark !== 'none' && placed === 'none')
        throw new CloudError('CLOUD_REFUSED', 'The server could not be marked in Nova, and --require-nova says that it must be.')
    } catch (error) { unmarked = tolerable(error) }
    try {
      const description = await readServer(cloud, serverId, bounded)
      if (unmarked !== undefined) warn(`The server is not marked for the backup, so it is not to be seen in Nova: ${unmarked.message}`)
      return { description, mark: placed, end }
    } catch (error) {
      warn(`The server's record is not in this snapshot: ${tolerable(error).message}`)
      return { description: undefined, mark: placed, end }
    }
  } catch (error) {
    await end()
    throw error
  }
}

async function endQuietly(cloud: Cloud, serverId: string, own: string, { clock, warn }: NovaRunOptions): Promise<void> {
  const signal = AbortSignal.timeout(END_MS_MAX)
  for (let attempt = 1; ; attempt++) {
    try {
      await removeMark(cloud, serverId, own, signal)
      return
    } catch (error) {
      if (attempt < END_ATTEMPTS && !signal.aborted && hasCloudCode(error, 'CLOUD_UNAVAILABLE')) {
        await clock.sleep(END_PAUSE_MS, signal).catch(() => undefined)
        continue
      }
      const why = error instanceof CloudError ? error.message : 'Nova did not answer in time.'
      warn(`The backup's mark may still be on the server: the next backup with --nova-server ${serverId} removes it, or \`openstack server unlock\`. ${why}`)
      return
    }
  }
}
