/** The watchdog's own process (see watchdog.ts). Everything that it does can be done twice, by the next backup for instance. */
import { createInterface } from 'node:readline'
import { systemClock } from '../../src/core/clock.js'
import { systemRandom } from '../../src/core/random.js'
import { hasClientCode } from '../../src/protocol/client-errors.js'
import { removeFleeceDirectory } from './fleece.js'
import { tryLock, type MachineLock } from './machine-lock.js'
import { openMonitor } from './open-monitor.js'
import { QemuRefusal } from './monitor.js'
import { tearDown } from './tear-down.js'
import type { WatchdogTask, WatchdogWord } from './watchdog.js'

const RESCUE_MS_MAX = 10 * 60_000
const PAUSE_MS = 300
/** A monitor that takes no connections for so long belongs to a QEMU that is gone. */
const GONE_MS = 10_000

// A service manager that stops us with the rest of the service means the backup, not the rescue.
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => undefined)
process.stdout.on('error', () => undefined)

const parent = process.ppid
let task: WatchdogTask | undefined
let isDone = false
let mayBeCommitted = false
let standing: NodeJS.Timeout | undefined

createInterface({ input: process.stdin }).on('line', (line) => {
  const word = JSON.parse(line) as WatchdogWord
  switch (word.type) {
    case 'task':
      task = word.task
      process.stdout.write('watching\n')
      break
    case 'standing':
      clearTimeout(standing)
      if (word.forMs !== undefined) standing = setTimeout(endParent, word.forMs)
      break
    case 'committing': mayBeCommitted = true; break
    case 'done': isDone = true; break
  }
}).on('close', () => {
  clearTimeout(standing)
  if (isDone || task === undefined) process.exit(0)
  void rescue(task).then((text) => {
    if (text !== undefined) tell(text)
    process.exit(0)
  }, (error: Error) => { tell(`the rescue failed: ${error.message}; the next backup of the machine tries again`); process.exit(1) })
})

/** It is stopped (Ctrl-Z) or hangs, and the guest waits: the end of its pipe is our cue. */
function endParent(): void {
  if (process.ppid !== parent) return
  tell('the machine stands for too long; the backup is ended')
  process.kill(parent, 'SIGKILL')
}
function tell(text: string): void { process.stderr.write(`roost: watchdog: ${text}\n`) }

/** What was done, in words; undefined: there was nothing to do. */
async function rescue(task: WatchdogTask): Promise<string | undefined> {
  const end = systemClock.monotonicMs() + RESCUE_MS_MAX
  let unreachableSinceMs: number | undefined
  for (;;) {
    const locks = await takeLocks(task.locks)
    if (locks !== undefined) {
      try {
        return await cleanUp(task)
      } catch (error) {
        const now = systemClock.monotonicMs()
        unreachableSinceMs = hasClientCode(error, 'MACHINE_UNREACHABLE') ? unreachableSinceMs ?? now : undefined
        if (unreachableSinceMs !== undefined && now - unreachableSinceMs > GONE_MS) {
          removeFleeceDirectory(task.directory, task.bitmaps.length)
          return undefined // killed, and QEMU is gone as well: nothing is left to clean up
        }
        if (now > end) throw error
      } finally {
        for (const lock of locks) lock.release()
      }
    } else if (systemClock.monotonicMs() > end) throw new Error('another backup of the machine runs')
    await systemClock.sleep(PAUSE_MS)
  }
}
async function cleanUp(task: WatchdogTask): Promise<string> {
  const monitor = await openMonitor(task.monitor, systemClock)
  try {
    const report = await tearDown({ monitor, agent: task.agent, clock: systemClock, random: systemRandom }, task.run, { ownsServer: false })
    if (report.problems.length > 0) throw new Error(report.problems.join('; '))
    if (!mayBeCommitted) for (const { node, name } of task.bitmaps) await monitor.execute('block-dirty-bitmap-remove', { node, name }).catch((error: unknown) => {
      if (!(error instanceof QemuRefusal)) throw error // it never came to be
    })
    removeFleeceDirectory(task.directory, task.bitmaps.length)
    return `the backup was killed; ${report.resumed ? 'the machine was resumed, ' : ''}${report.thawedCount > 0 ? `${report.thawedCount} file systems were thawed, ` : ''}QEMU is as it was before`
  } finally {
    monitor.close()
  }
}
/** All or none. */
async function takeLocks(names: readonly string[]): Promise<MachineLock[] | undefined> {
  const taken: MachineLock[] = []
  for (const name of names) {
    const lock = await tryLock(name)
    if (lock === undefined) {
      for (const held of taken) held.release()
      return undefined
    }
    taken.push(lock)
  }
  return taken
}
