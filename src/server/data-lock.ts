/** One server a data directory. The lock is a file that names the process which holds it.
 *
 *  A lock left by a killed server is recognised by the process's start time (field 22 of /proc/<pid>/stat) and the
 *  machine's boot id: a pid alone is reused. Creation is link(2) of a complete file, so a reader never sees half a lock.
 *  Consider two servers that both find the same stale lock: each renames it to a name of its own, which succeeds for one
 *  only per file found; the winner's fresh lock could only be renamed by a loser that had read the stale content before,
 *  so the loser looks at what it renamed and puts a live lock back.
 */
import { link, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { isErrno } from '../core/errors.js'
import { systemRandom } from '../core/random.js'

const LOCK_NAME = 'server.lock'
const ATTEMPTS_MAX = 1_000

export interface LockHolder { readonly pid: number; readonly startTicks: string; readonly bootId: string }

/** Another live server has the data directory. */
export class DataLockedError extends Error {
  override readonly name = 'DataLockedError'
  constructor(readonly path: string, readonly holderPid: number) {
    super(`The data directory is in use by process ${holderPid} (${path}).`)
  }
}

export interface DataLock {
  readonly path: string
  /** Idempotent. */
  release(): Promise<void>
}

/** @throws {DataLockedError} while another process that still runs holds it. */
export async function lockDataDirectory(dataDirectory: string): Promise<DataLock> {
  const path = join(dataDirectory, LOCK_NAME)
  const own = await describeProcess(process.pid)
  if (own === undefined) throw new Error('This process has no entry in /proc.')
  const content = JSON.stringify(own)
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    if (await tryCreate(path, content)) return heldLock(path, content)
    const holder = await readHolder(path)
    if (holder === 'absent') continue
    if (holder !== 'unreadable' && await isAlive(holder)) throw new DataLockedError(path, holder.pid)
    await removeStale(path, content)
    await setImmediate()
  }
  throw new Error(`${path} could not be taken: others keep taking it.`)
}

async function tryCreate(path: string, content: string): Promise<boolean> {
  const draft = `${path}.${process.pid}.${systemRandom.bytes(6).toString('hex')}`
  await writeFile(draft, content, { flag: 'wx', mode: 0o600 })
  try {
    await link(draft, path)
    return true
  } catch (error) {
    if (isErrno(error, 'EEXIST')) return false
    throw error
  } finally {
    await rm(draft, { force: true })
  }
}

/** One at a time: whoever holds the breaker may remove a dead holder's lock, so what it has just seen dead is still there when it goes. */
async function removeStale(path: string, content: string): Promise<void> {
  const breaker = `${path}.breaking`
  if (!await tryCreate(breaker, content)) {
    const other = await readHolder(breaker)
    if (other !== 'absent' && (other === 'unreadable' || !await isAlive(other))) await rm(breaker, { force: true }) // it died here
    return
  }
  try {
    const holder = await readHolder(path)
    if (holder !== 'absent' && (holder === 'unreadable' || !await isAlive(holder))) await rm(path, { force: true })
  } finally {
    await rm(breaker, { force: true })
  }
}

async function readHolder(path: string): Promise<LockHolder | 'absent' | 'unreadable'> {
  let content: string
  try {
    content = await readFile(path, 'utf8')
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return 'absent'
    throw error
  }
  return parseHolder(content)
}

/** A lock is written whole or not at all, so what does not parse was not written by a server. */
function parseHolder(content: string): LockHolder | 'unreadable' {
  const parts = /^\{"pid":(\d{1,10}),"startTicks":"(\d+)","bootId":"([0-9a-f-]*)"\}$/.exec(content)
  if (parts === null) return 'unreadable'
  return { pid: Number(parts[1]), startTicks: parts[2]!, bootId: parts[3]! }
}

async function isAlive(holder: LockHolder): Promise<boolean> {
  const now = await describeProcess(holder.pid)
  return now !== undefined && now.startTicks === holder.startTicks && now.bootId === holder.bootId
}

/** Undefined when no such process runs (a zombie runs no longer). */
export async function describeProcess(pid: number): Promise<LockHolder | undefined> {
  let stat: string
  try {
    stat = await readFile(`/proc/${pid}/stat`, 'utf8')
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH')) return undefined
    throw error
  }
  // The command's name may hold spaces and parentheses: fields are counted from its closing one.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const state = fields[0], startTicks = fields[19]
  if (state === 'Z' || state === 'X' || startTicks === undefined) return undefined
  const bootId = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
  return { pid, startTicks, bootId }
}

function heldLock(path: string, content: string): DataLock {
  let held = true
  return {
    path,
    release: async () => {
      if (!held) return
      held = false
      // Only our own lock: an operator may have removed it by hand and started another server.
      const found = await readFile(path, 'utf8').catch((error: unknown) => {
        if (isErrno(error, 'ENOENT')) return undefined
        throw error
      })
      if (found === content) await rm(path, { force: true })
    },
  }
}
