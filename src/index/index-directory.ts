/** The directory of an embedded index: private to its user, and open in one place at a time.
 *
 *  LMDB itself would let two processes in, and the second would take the first one's sessions for leftovers of a crash
 *  and drop them. So the directory names its owner (process id and the tick at which that process started, so that a
 *  reused id is not mistaken for the owner); a dead owner's claim is taken over.
 */
import { chmodSync, closeSync, mkdirSync, openSync, readFileSync, realpathSync, rmSync, writeSync } from 'node:fs'
import path from 'node:path'
import { RoostError, isErrno } from '../core/errors.js'

const OWNER_FILE = 'owner.json'
const PRIVATE_FILES = ['data.mdb', 'lock.mdb'] as const

interface Owner { readonly pid: number; readonly startTick: string; readonly directory: string }

/** Directories open in this process. */
const openHere = new Set<string>()

/** Makes the directory (0700) and LMDB's files (0600; LMDB takes an empty file for a new one) and claims them.
 *  @returns the release, to be called once LMDB has let go. @throws {RoostError} REPOSITORY_BUSY */
export function claimIndexDirectory(directory: string): () => void {
  mkdirSync(directory, { recursive: true, mode: 0o700 })
  chmodSync(directory, 0o700)
  const real = realpathSync(directory)
  if (openHere.has(real)) throw busy(process.pid)
  takeOwnership(real)
  openHere.add(real)
  for (const name of PRIVATE_FILES) {
    const file = path.join(real, name)
    closeSync(openSync(file, 'a', 0o600))
    chmodSync(file, 0o600)
  }
  return () => {
    openHere.delete(real)
    rmSync(path.join(real, OWNER_FILE), { force: true })
  }
}

function takeOwnership(real: string): void {
  const file = path.join(real, OWNER_FILE)
  const mine: Owner = { pid: process.pid, startTick: startTickOf(process.pid) ?? '', directory: real }
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      const fd = openSync(file, 'wx', 0o600)
      try { writeSync(fd, JSON.stringify(mine)) } finally { closeSync(fd) }
      return
    } catch (error) {
      if (!isErrno(error, 'EEXIST')) throw error
    }
    const owner = readOwner(file)
    // Not open in this process (checked above), so a claim of our own id is a predecessor's that had the same one.
    const alive = owner !== undefined && owner.directory === real && owner.pid !== process.pid &&
      startTickOf(owner.pid) === owner.startTick
    if (alive) throw busy(owner.pid)
    rmSync(file, { force: true })
  }
  throw busy(0)
}

function readOwner(file: string): Owner | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as Owner
  } catch (error) {
    // A claim torn by a crash, or released this moment, names nobody.
    if (error instanceof SyntaxError || isErrno(error, 'ENOENT')) return undefined
    throw error
  }
}

/** Field 22 of /proc/<pid>/stat; undefined when there is no such process. */
function startTickOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ESRCH')) return undefined
    throw error
  }
}

function busy(pid: number): RoostError {
  return new RoostError('REPOSITORY_BUSY', 'The index is open in another process, or twice in this one.', { pid })
}
