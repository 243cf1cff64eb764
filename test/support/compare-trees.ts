/** Compares two trees by what a backup must keep; independent of the client's own code. Names are bytes.
 *
 *  Compared: names, types, modes, owners, sizes, contents, mtimes in ns (also of directories and symlinks), symlink targets, device
 *  numbers, and which names share one inode. Extended attributes and ACLs are rsync's to compare (-XA).
 */
import { closeSync, lstatSync, openSync, readdirSync, readlinkSync, readSync, type BigIntStats } from 'node:fs'

export interface TreeComparison {
  readonly differences: readonly string[]
  readonly files: number
  readonly directories: number
  readonly others: number
  readonly bytes: number
}
export interface CompareOptions {
  /** An ordinary user cannot restore foreign owners. */
  readonly owners?: boolean
  readonly differencesMax?: number
}

const SLASH = Buffer.from('/')
const READ_BYTES = 1024 * 1024

export function compareTrees(left: string | Buffer, right: string | Buffer, options: CompareOptions = {}): TreeComparison {
  const max = options.differencesMax ?? 50
  const differences: string[] = []
  const counts = { files: 0, directories: 0, others: 0, bytes: 0 }
  const links = { left: new Map<string, string>(), right: new Map<string, string>() }
  const buffers = [Buffer.alloc(READ_BYTES), Buffer.alloc(READ_BYTES)] as const
  const differ = (path: Buffer, what: string): void => { if (differences.length < max) differences.push(`${JSON.stringify(path.toString('latin1'))}: ${what}`) }

  const visit = (relative: Buffer): void => {
    if (differences.length >= max) return
    const [a, b] = [join(left, relative), join(right, relative)]
    const [x, y] = [statOf(a), statOf(b)]
    if (x === undefined || y === undefined) { differ(relative, x === undefined ? 'only on the right' : 'only on the left'); return }
    if (typeOf(x) !== typeOf(y)) { differ(relative, `${typeOf(x)} became ${typeOf(y)}`); return }
    if (x.mode !== y.mode) differ(relative, `mode ${x.mode.toString(8)} became ${y.mode.toString(8)}`)
    if (x.mtimeNs !== y.mtimeNs) differ(relative, `mtime ${x.mtimeNs} became ${y.mtimeNs}`)
    if (options.owners !== false && (x.uid !== y.uid || x.gid !== y.gid)) differ(relative, `owner ${x.uid}:${x.gid} became ${y.uid}:${y.gid}`)
    if (!x.isDirectory() && sharedName(links.left, x, relative) !== sharedName(links.right, y, relative)) differ(relative, 'hard links differ')
    if (x.isDirectory()) {
      counts.directories++
      for (const name of bothNames(a, b)) visit(relative.length === 0 ? name : Buffer.concat([relative, SLASH, name]))
    } else if (x.isFile()) {
      counts.files++
      counts.bytes += Number(x.size)
      if (x.size !== y.size) differ(relative, `size ${x.size} became ${y.size}`)
      else if (!sameContent(a, b, buffers)) differ(relative, 'content differs')
    } else {
      counts.others++
      if (x.isSymbolicLink() && !readlinkSync(a, 'buffer').equals(readlinkSync(b, 'buffer'))) differ(relative, 'link target differs')
      if ((x.isCharacterDevice() || x.isBlockDevice()) && x.rdev !== y.rdev) differ(relative, `device ${x.rdev} became ${y.rdev}`)
    }
  }
  visit(Buffer.alloc(0))
  return { differences, ...counts }
}

/** The first name under which this inode was seen; equal on both sides when hard links were kept. */
function sharedName(seen: Map<string, string>, stat: BigIntStats, relative: Buffer): string {
  if (stat.nlink < 2n) return ''
  const key = `${stat.dev}:${stat.ino}`
  const first = seen.get(key)
  if (first === undefined) seen.set(key, relative.toString('latin1'))
  return first ?? relative.toString('latin1')
}
function join(root: string | Buffer, relative: Buffer): Buffer {
  return relative.length === 0 ? Buffer.from(root) : Buffer.concat([Buffer.from(root), SLASH, relative])
}
function statOf(path: Buffer): BigIntStats | undefined { return lstatSync(path, { bigint: true, throwIfNoEntry: false }) }
function typeOf(stat: BigIntStats): string {
  return stat.isDirectory() ? 'directory' : stat.isFile() ? 'file' : stat.isSymbolicLink() ? 'symlink' : stat.isFIFO() ? 'fifo'
    : stat.isSocket() ? 'socket' : stat.isBlockDevice() ? 'block device' : 'character device'
}
function bothNames(a: Buffer, b: Buffer): Buffer[] {
  const names = new Map<string, Buffer>()
  for (const directory of [a, b]) for (const name of readdirSync(directory, { encoding: 'buffer' })) names.set(name.toString('latin1'), name)
  return [...names.values()].sort(Buffer.compare)
}
function sameContent(a: Buffer, b: Buffer, [x, y]: readonly [Buffer, Buffer]): boolean {
  const [left, right] = [openSync(a, 'r'), openSync(b, 'r')]
  try {
    for (;;) {
      const [n, m] = [readSync(left, x), readSync(right, y)]
      if (n !== m || x.compare(y, 0, m, 0, n) !== 0) return false
      if (n === 0) return true
    }
  } finally {
    closeSync(left)
    closeSync(right)
  }
}
