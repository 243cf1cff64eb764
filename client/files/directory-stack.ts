/** The directories from '/' to where a walk is, held open, so that the walk never names a path twice.
 *
 *  Entries are reached as /proc/self/fd/<directory>/<name>: no path gets longer than PATH_MAX, and a directory that is
 *  moved or replaced by a link meanwhile cannot lead the walk elsewhere. Descriptors are O_PATH: they need no read permission.
 *  At most `openMax` are open; the shallowest are closed first and opened again from below ('..') on the way back.
 */
import { closeSync, constants, fstatSync, openSync, opendirSync, readdirSync, type BigIntStats } from 'node:fs'
import { assert } from '../../src/core/assert.js'
import { KiB, MiB } from '../../src/core/limits.js'

const O_PATH = 0o10000000
const OPEN_FLAGS = O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW
const OPEN_MAX = 128
/** A directory file beyond this is read in batches: libuv otherwise holds all of it twice. */
const BATCHED_FROM_BYTES = 1 * MiB
const BATCH_ENTRIES = 1_024

interface Level { fd: number | undefined; readonly device: bigint; readonly inode: bigint }

export class DirectoryStack implements Disposable {
  readonly #levels: Level[] = []
  readonly #scratch = Buffer.alloc(1 * KiB)
  #prefixBytes = 0
  /** Levels below this index are closed. */
  #openFrom = 0

  constructor(readonly openMax = OPEN_MAX) {}
  get depth(): number { return this.#levels.length }

  /** Opens '/' first, then an entry of the innermost directory. Throws an errno error: ENOTDIR or ELOOP when it is no
   *  directory (any more). */
  enter(name: string): BigIntStats {
    const fd = openSync(this.#levels.length === 0 ? Buffer.from('/') : this.path(name), OPEN_FLAGS)
    const stat = fstatSync(fd, { bigint: true })
    this.#levels.push({ fd, device: stat.dev, inode: stat.ino })
    this.#setPrefix(fd)
    if (this.#levels.length - this.#openFrom > this.openMax) {
      const shallowest = this.#levels[this.#openFrom++]!
      closeSync(shallowest.fd!)
      shallowest.fd = undefined
    }
    return stat
  }
  /** Back to the directory around. When that was closed and is not found above any more (moved while below), its further
   *  entries are not found either. */
  leave(): void {
    const left = this.#levels.pop()
    assert(left?.fd !== undefined, 'the innermost directory is open')
    const around = this.#levels.at(-1)
    if (around !== undefined && around.fd === undefined) {
      this.#openFrom--
      around.fd = reopenAbove(left.fd, around)
    }
    if (left.fd >= 0) closeSync(left.fd)
    if (around !== undefined) this.#setPrefix(around.fd!)
  }
  /** Where the system finds an entry of the innermost directory. A view of scratch memory: use it before the next call. */
  path(name: string): Buffer {
    const bytes = this.#scratch.write(name, this.#prefixBytes, 'latin1')
    return this.#scratch.subarray(0, this.#prefixBytes + bytes)
  }
  /** Names in the innermost directory, ascending by bytes, as latin1 strings: 48 bytes or so each, for large ones too. */
  names(directoryBytes: bigint): string[] {
    const path = this.#scratch.subarray(0, this.#prefixBytes - 1)
    if (directoryBytes < BATCHED_FROM_BYTES) return readdirSync(path, { encoding: 'latin1' }).sort()
    const names: string[] = []
    const directory = opendirSync(path.toString('latin1'), { encoding: 'latin1', bufferSize: BATCH_ENTRIES })
    try {
      for (let entry = directory.readSync(); entry !== null; entry = directory.readSync()) names.push(entry.name)
    } finally { directory.closeSync() }
    return names.sort()
  }
  [Symbol.dispose](): void {
    for (const { fd } of this.#levels.splice(0)) if (fd !== undefined && fd >= 0) closeSync(fd)
  }

  #setPrefix(fd: number): void { this.#prefixBytes = this.#scratch.write(`/proc/self/fd/${fd}/`, 'latin1') }
}

/** −1, a descriptor of nothing, when `below` is not in `wanted` any more. */
function reopenAbove(below: number, wanted: Level): number {
  if (below < 0) return -1
  let fd: number
  try { fd = openSync(`/proc/self/fd/${below}/..`, OPEN_FLAGS) } catch { return -1 } // removed while below: same as moved
  const stat = fstatSync(fd, { bigint: true })
  if (stat.ino === wanted.inode && stat.dev === wanted.device) return fd
  closeSync(fd)
  return -1
}
