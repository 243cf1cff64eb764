/** Jobs over fake repositories and a clock that tests move. A run waits until the test ends it. */
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import type { Random } from '../../src/core/random.js'
import { systemRandom } from '../../src/core/random.js'
import { createLogger } from '../../src/server/logger.js'
import { parseJobFile } from '../../src/server/jobs/job-file.js'
import { JobRegistry } from '../../src/server/jobs/job-registry.js'
import { Scheduler } from '../../src/server/jobs/scheduler.js'
import { FakeHost, FakeRepository } from './fake-repository.js'
import { JumpingClock } from './jumping-clock.js'
import { temporaryDirectory, NO_SERVICES } from './server-under-test.js'

export interface JobScene {
  readonly clock: JumpingClock
  readonly host: FakeHost
  readonly registry: JobRegistry
  readonly scheduler: Scheduler
  readonly directory: string
  readonly logLines: string[]
  /** Times at which runs of checks began, in minutes after the scene's start by the wall clock. */
  readonly starts: number[]
  /** Lets the scheduler's loop run for so long. */
  pass(ms: number): Promise<void>
  /** The same data directory and clock in a new process; the old one is gone without a word. */
  restart(): Promise<JobScene>
  close(): Promise<void>
}
export const MINUTE = 60_000, HOUR = 60 * MINUTE, DAY = 24 * HOUR
/** A midnight, UTC. */
export const SCENE_START = Date.parse('2026-11-25T00:00:00Z')

export interface SceneOptions { readonly jobs: string; readonly fraction?: number; readonly repositories?: readonly string[] }
export async function jobScene(t: TestContext, options: SceneOptions, kept?: { clock: JumpingClock; host: FakeHost; directory: string }): Promise<JobScene> {
  const clock = kept?.clock ?? new JumpingClock(SCENE_START), directory = kept?.directory ?? await temporaryDirectory(t)
  const host = kept?.host ?? new FakeHost(...options.repositories ?? ['alpha'])
  const random: Random = { bytes: systemRandom.bytes, fraction: () => options.fraction ?? 0 }
  const logLines: string[] = [], starts: number[] = []
  const log = createLogger({ level: 'trace', destination: { write: (line) => { logLines.push(line) } } })
  const registry = new JobRegistry({ directory, clock, random, log, services: NO_SERVICES })
  const definitions = parseJobFile(options.jobs, 'jobs.yaml', clock.now())
  for (const repository of host.repositories.values()) noteStarts(repository, clock, starts)
  const scheduler = new Scheduler({ definitions, host, registry, clock, random, log })
  const stop = new AbortController()
  for (const name of host.repositories.keys()) await registry.logOf(name).loaded
  const running = scheduler.run(stop.signal)
  const close = async (): Promise<void> => {
    stop.abort()
    await running
    await registry.close()
  }
  t.after(close)
  return {
    clock, host, registry, scheduler, directory: join(directory), logLines, starts, close,
    pass: async (ms) => {
      // The loop may be on its way to its next sleep.
      for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => { setImmediate(resolve) })
      await clock.advance(ms)
      for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => { setImmediate(resolve) })
    },
    restart: async () => {
      stop.abort()
      await running
      await Promise.all([...host.repositories.keys()].map((name) => registry.logOf(name).settled()))
      return await jobScene(t, options, { clock, host, directory })
    },
  }
}
function noteStarts(repository: FakeRepository, clock: JumpingClock, starts: number[]): void {
  const events = repository.events
  repository.events = (signal) => {
    starts.push((clock.now() - SCENE_START) / MINUTE)
    return events(signal)
  }
}
