/** Moves the disks of a machine that runs from a snapshot into files here, while it runs: mirrored with every write going to both, then changed over.
 *
 *  All disks are brought level before the first is changed over. Mirroring asks what is hole and reads only data, where streaming the backing
 *  file into the overlay would read the whole disk. What fails before the change leaves the machine as it was, and no file.
 */
import { closeSync, existsSync, ftruncateSync, mkdirSync, openSync, statSync, unlinkSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { Clock } from '../../src/core/clock.js'
import { isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { QemuRefusal, type Monitor } from '../machine/monitor.js'
import { qcow2Names } from '../restore/restore-machine.js'
import type { BootedDisk } from './boot-machine.js'
import { makeEmptyQcow2 } from './scratch.js'

export interface HomeFile { readonly disk: BootedDisk; readonly path: string; readonly format: 'raw' | 'qcow2' }
export interface MoveEvents { progress?(done: number, total: number): void }

const POLL_MS = 200
const SECTOR_BYTES = 512

/** One disk goes to `path` itself, several (or one, where it is a directory) into it. Nothing there is replaced. @throws {ClientError} DESTINATION_REFUSED */
export function planHome(disks: readonly BootedDisk[], path: string, format: 'raw' | 'qcow2'): HomeFile[] {
  const isDirectory = path.endsWith('/') || existsSync(path) && statSync(path).isDirectory()
  if (disks.length > 1 && !isDirectory && existsSync(path)) throw new ClientError('DESTINATION_REFUSED', `${path} is no directory, and the machine has ${disks.length} disks.`)
  const names = format === 'qcow2' ? qcow2Names(disks) : disks.map(({ name }) => name)
  const files = disks.map((disk, i) => ({ disk, format, path: resolve(disks.length > 1 || isDirectory ? join(path, names[i]!.replaceAll('/', '-')) : path) }))
  for (const file of files) if (existsSync(file.path)) throw new ClientError('DESTINATION_REFUSED', `${file.path} is there already, and nothing is replaced.`)
  return files
}

/** When it resolves the machine is on the files alone. @throws {ClientError} QEMU_FAILED; errno exceptions of the files; `signal.reason` */
export async function moveHome(monitor: Monitor, files: readonly HomeFile[], events: MoveEvents, clock: Clock, signal: AbortSignal): Promise<void> {
  const made: string[] = []
  const started: HomeFile[] = []
  let isChanging = false
  try {
    for (const file of files) {
      makeTarget(file)
      made.push(file.path)
      await monitor.execute('blockdev-add', { driver: file.format, 'node-name': homeNode(file), discard: 'unmap', file: { driver: 'file', filename: file.path, discard: 'unmap' } }, { signal })
      await monitor.execute('blockdev-mirror', { 'job-id': jobOf(file), device: file.disk.node, target: homeNode(file), sync: 'full', 'copy-mode': 'write-blocking',
        'auto-dismiss': false }, { signal })
      started.push(file)
    }
    await untilJobs(monitor, started, 'ready', events, clock, signal)
    isChanging = true
    for (const file of started) await monitor.execute('job-complete', { id: jobOf(file) })
    await untilJobs(monitor, started, 'concluded', {}, clock, AbortSignal.timeout(600_000))
    for (const file of started) await monitor.execute('job-dismiss', { id: jobOf(file) })
    for (const { disk } of started) for (const node of [disk.node, ...disk.behind]) await monitor.execute('blockdev-del', { 'node-name': node })
  } catch (error) {
    if (!isChanging) await undo(monitor, started, files, made, clock)
    throw error instanceof QemuRefusal ? new ClientError('QEMU_FAILED', `The disks cannot be moved: ${error.message}.`, { cause: error }) : error
  }
}

const homeNode = ({ disk }: HomeFile): string => `${disk.device}-home`
const jobOf = ({ disk }: HomeFile): string => `${disk.device}-move`

function makeTarget({ path, format, disk }: HomeFile): void {
  mkdirSync(join(path, '..'), { recursive: true })
  if (format === 'qcow2') { makeEmptyQcow2(path, disk.bytes); return }
  const fd = openSync(path, 'wx', 0o600)
  try { ftruncateSync(fd, Math.ceil(disk.bytes / SECTOR_BYTES) * SECTOR_BYTES) } finally { closeSync(fd) }
}
interface Job { readonly id: string; readonly status: string; readonly 'current-progress': number; readonly 'total-progress': number; readonly error?: string }

async function untilJobs(monitor: Monitor, files: readonly HomeFile[], status: 'ready' | 'concluded', events: MoveEvents, clock: Clock, signal: AbortSignal): Promise<void> {
  for (;;) {
    const jobs = (await monitor.execute('query-jobs', undefined, { signal })) as readonly Job[]
    const ours = files.map((file) => jobs.find(({ id }) => id === jobOf(file)))
    const failed = ours.find((job) => job === undefined || job.error !== undefined || job.status === 'aborting' || status === 'ready' && job.status === 'concluded')
    if (failed !== undefined) throw new ClientError('QEMU_FAILED', `A disk could not be moved: ${failed.error ?? 'QEMU gave it up'}.`)
    events.progress?.(sum(ours, 'current-progress'), sum(ours, 'total-progress'))
    if (ours.every((job) => job?.status === status)) return
    await clock.sleep(POLL_MS, signal)
  }
}
const sum = (jobs: readonly (Job | undefined)[], what: 'current-progress' | 'total-progress'): number => jobs.reduce((total, job) => total + (job?.[what] ?? 0), 0)

/** QEMU may be gone, or refuse: the files go all the same, unless it has them in use. */
async function undo(monitor: Monitor, started: readonly HomeFile[], files: readonly HomeFile[], made: readonly string[], clock: Clock): Promise<void> {
  const attempt = async (command: string, parameters: Readonly<Record<string, unknown>>): Promise<void> => { await monitor.execute(command, parameters).catch(() => undefined) }
  for (const file of started) await attempt('job-cancel', { id: jobOf(file) })
  await untilJobs(monitor, started, 'concluded', {}, clock, AbortSignal.timeout(10_000)).catch(() => undefined)
  for (const file of started) await attempt('job-dismiss', { id: jobOf(file) })
  for (const file of files) await attempt('blockdev-del', { 'node-name': homeNode(file) })
  for (const path of made) {
    try {
      unlinkSync(path)
    } catch (error) {
      if (!isErrno(error, 'ENOENT')) throw error
    }
  }
}
