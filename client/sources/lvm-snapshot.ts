/** A snapshot of an LVM volume for the time of a backup: made by us, removed by us, also by the next run when this one was killed.
 *
 *  Ours are known by their tags: roost.snapshot, the host, and the process that made it (its id and when it started, so that another process that
 *  later has the same id is not taken for it). Only those whose process on this host is gone are removed. Nothing else is ever removed.
 */
import { readFileSync } from 'node:fs'
import { describeCause, isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { runProgram } from '../native/program.js'

export interface LvmSnapshotOptions {
  /** Of a logical volume: /dev/VG/LV or what leads there. */
  readonly path: string
  /** Room for what the machine writes meanwhile; thin volumes need none. Default: a tenth of the volume, at least 256 MiB. */
  readonly bytes?: number
  readonly host: string
  readonly signal: AbortSignal
  /** Worth a line to the user. */
  note(text: string): void
}
export interface LvmSnapshot { readonly path: string; close(): Promise<void> }

const TAG = 'roost.snapshot'
const ROOM_SHARE = 0.1
const ROOM_BYTES_MIN = 256 * 1024 * 1024
const MiB = 1024 * 1024

interface Volume { readonly group: string; readonly name: string; readonly path: string; readonly pool: string; readonly bytes: number; readonly tags: readonly string[] }

/** @throws {ClientError} SOURCE_REFUSED when it is no logical volume; PROGRAM_MISSING; PROGRAM_FAILED; `signal.reason` */
export async function takeLvmSnapshot(options: LvmSnapshotOptions): Promise<LvmSnapshot> {
  const { path, host, signal } = options
  const origin = await findVolume(path, signal)
  await removeLeftovers(origin.group, options)
  const owner = ownerTag(process.pid)
  const name = `roost-${origin.name}-${process.pid}`.slice(0, 120)
  const room = origin.pool === '' ? ['--size', `${Math.ceil((options.bytes ?? Math.max(ROOM_BYTES_MIN, origin.bytes * ROOM_SHARE)) / MiB)}m`] : ['--setactivationskip', 'n']
  const created: Volume = { group: origin.group, name, path: '', pool: '', bytes: 0, tags: [] }
  try {
    await runProgram('lvcreate', ['--snapshot', '--name', name, '--permission', 'r', '--addtag', TAG, '--addtag', hostTag(host), '--addtag', owner, ...room,
      `${origin.group}/${origin.name}`], { signal, fromPackage: 'lvm2' })
    const { path: device } = await findVolume(`${origin.group}/${name}`, signal)
    return { path: device, close: () => removeVolume(created) }
  } catch (error) {
    // A command that was cut off may have made it all the same. When it did not, there is nothing to remove.
    await removeVolume(created).catch(() => undefined)
    throw error
  }
}

async function listVolumes(selection: readonly string[], signal?: AbortSignal): Promise<Volume[]> {
  const { stdout } = await runProgram('lvs', ['--reportformat', 'json', '--units', 'b', '--nosuffix', '--options', 'vg_name,lv_name,lv_path,pool_lv,lv_size,lv_tags', ...selection],
    { fromPackage: 'lvm2', ...(signal === undefined ? {} : { signal }) })
  const reply = JSON.parse(stdout) as { report?: readonly { lv?: readonly Record<string, string>[] }[] }
  return (reply.report ?? []).flatMap(({ lv = [] }) => lv).map((row) => ({
    group: row['vg_name'] ?? '', name: row['lv_name'] ?? '', path: row['lv_path'] ?? '', pool: row['pool_lv'] ?? '', bytes: Number(row['lv_size'] ?? 0),
    tags: (row['lv_tags'] ?? '').split(',').filter((tag) => tag !== ''),
  }))
}
async function findVolume(path: string, signal: AbortSignal): Promise<Volume> {
  let cause: unknown
  try {
    const [volume] = await listVolumes([path], signal)
    if (volume !== undefined && volume.name !== '') return volume
  } catch (error) {
    if (!(error instanceof ClientError) || error.code !== 'PROGRAM_FAILED') throw error
    cause = error
  }
  throw new ClientError('SOURCE_REFUSED', `${path} is no logical volume of LVM: no snapshot of it can be taken${cause === undefined ? '' : ` (${describeCause(cause)})`}.`)
}
async function removeVolume({ group, name }: Volume): Promise<void> {
  await runProgram('lvremove', ['--yes', `${group}/${name}`], { fromPackage: 'lvm2' }) // not stopped by Ctrl-C: it has to go
}

/** Those of runs that were killed. One that cannot be removed is told of, and is no reason not to back up. */
async function removeLeftovers(group: string, { host, signal, note }: LvmSnapshotOptions): Promise<void> {
  for (const volume of await listVolumes([group, '--select', `lv_tags={"${TAG}" && "${hostTag(host)}"}`], signal)) {
    const owner = volume.tags.find((tag) => tag.startsWith(OWNER_PREFIX))
    // What the selection chose is looked at again: this removes volumes.
    if (!volume.tags.includes(TAG) || !volume.tags.includes(hostTag(host)) || owner === undefined || isRunning(owner)) continue
    try {
      await removeVolume(volume)
      note(`removed the snapshot ${volume.group}/${volume.name}, which a backup that was cut off had left`)
    } catch (error) {
      note(`the snapshot ${volume.group}/${volume.name}, which a backup that was cut off had left, cannot be removed: ${describeCause(error)}`)
    }
  }
}

const OWNER_PREFIX = 'roost.run.'
/** Tags are made of few characters. */
const hostTag = (host: string): string => `roost.host.${host.replace(/[^A-Za-z0-9_.-]/g, '-')}`
const ownerTag = (pid: number): string => `${OWNER_PREFIX}${pid}.${startOf(pid) ?? ''}`
function isRunning(tag: string): boolean {
  const [, pid, start] = /^roost\.run\.(\d+)\.(.+)$/.exec(tag) ?? []
  return pid !== undefined && startOf(Number(pid)) === start
}
/** Which start of which process it is: of the machine, and ticks since. Undefined: there is no such process. */
function startOf(pid: number): string | undefined {
  try {
    const ticks = readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ')[19]
    return `${readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()}.${ticks}`
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH')) return undefined
    throw error
  }
}
