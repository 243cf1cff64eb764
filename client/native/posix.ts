/** The libc calls that Node lacks, typed and synchronous. Linux, 64-bit.
 *
 *  Paths are bytes: a file's name need not be UTF-8, so every path is a Buffer (without a NUL; one inside is refused,
 *  because the kernel would silently act on a shorter name). A failed call throws what node:fs would throw: an Error with
 *  code, errno, syscall and path. Nothing is loaded before the first call, so that importing this file is harmless elsewhere.
 *  Scratch buffers belong to the module: calls are synchronous and each thread has its own copy.
 */
import { getSystemErrorMap } from 'node:util'
import { koffi } from '../../src/core/ffi.js'
import type { Xattr } from '../tree/entry.js'

const SEEK_DATA = 3
const SEEK_HOLE = 4
const AT_FDCWD = -100
const AT_SYMLINK_NOFOLLOW = 0x100
const UTIME_OMIT = 0x3fff_fffe
const FALLOC_FL_KEEP_SIZE = 1
const FALLOC_FL_PUNCH_HOLE = 2
const FALLOC_FL_ZERO_RANGE = 16
const BLKGETSIZE64 = 0x8008_1272
const F_OFD_GETLK = 36
const F_WRLCK = 1
const F_UNLCK = 2
/** RAW_LOCK_PERM_BASE and the bit of BLK_PERM_WRITE. */
const QEMU_WRITE_LOCK_BYTE = 101n
const S_IFIFO = 0o010000
const XATTR_BYTES_MAX = 65_536 // the kernel's bound for a list of names and for one value
const XATTR_LIST_FIRST_BYTES = 1_024 // the kernel allocates what we offer: offering little is measurably faster
const PATH_SCRATCH_BYTES = 4_352
const NAMES_CACHED_MAX = 4_096

export type TimeNs = bigint | 'omit'

/** The extended attributes of a path, of a symlink itself; sorted by name. Costs one call when there are none.
 *  Shape: fresh buffers. A file system without attributes has none. */
export function lgetxattrs(path: Buffer): Xattr[] {
  const { llistxattr, lgetxattr } = libc()
  const target = cString(path, pathScratch)
  return collectXattrs(path, 'llistxattr', (into, bytes) => llistxattr(target, into, bytes),
    (name, into, bytes) => lgetxattr(target, name, into, bytes))
}
export function fgetxattrs(fd: number): Xattr[] {
  const { flistxattr, fgetxattr } = libc()
  return collectXattrs(undefined, 'flistxattr', (into, bytes) => flistxattr(fd, into, bytes),
    (name, into, bytes) => fgetxattr(fd, name, into, bytes))
}
export function lsetxattr(path: Buffer, name: Buffer, value: Buffer): void {
  const done = libc().lsetxattr(cString(path, pathScratch), cString(name, nameScratch), value, value.byteLength, 0)
  if (done !== 0) throw errnoException('lsetxattr', path)
}
export function fsetxattr(fd: number, name: Buffer, value: Buffer): void {
  if (libc().fsetxattr(fd, cString(name, nameScratch), value, value.byteLength, 0) !== 0) throw errnoException('fsetxattr')
}
export function lremovexattr(path: Buffer, name: Buffer): void {
  if (libc().lremovexattr(cString(path, pathScratch), cString(name, nameScratch)) !== 0)
    throw errnoException('lremovexattr', path)
}

/** Sets the times of a path, of a symlink itself, exact to the nanosecond; times before 1970 are negative. */
export function utimensNs(path: Buffer, atimeNs: TimeNs, mtimeNs: TimeNs): void {
  fillTimes(atimeNs, mtimeNs)
  if (libc().utimensat(AT_FDCWD, cString(path, pathScratch), times, AT_SYMLINK_NOFOLLOW) !== 0)
    throw errnoException('utimensat', path)
}
/** Sets the modification time of an open file; its access time stays. */
export function futimensNs(fd: number, mtimeNs: bigint): void {
  fillTimes('omit', mtimeNs)
  if (libc().futimens(fd, times) !== 0) throw errnoException('futimens')
}

/** Makes a node of the type in `mode` (with S_IFMT bits); the umask applies. */
export function mknod(path: Buffer, mode: number, major: number, minor: number): void {
  if (libc().mknod(cString(path, pathScratch), mode, makeDevice(major, minor)) !== 0) throw errnoException('mknod', path)
}
export function mkfifo(path: Buffer, mode: number): void {
  mknod(path, S_IFIFO | (mode & 0o7777), 0, 0)
}

/** A device number as Linux packs it, and its halves. */
export function makeDevice(major: number, minor: number): bigint {
  const high = BigInt(major)
  const low = BigInt(minor)
  return ((high & 0xffff_f000n) << 32n) | ((high & 0xfffn) << 8n) | ((low & 0xffff_ff00n) << 12n) | (low & 0xffn)
}
export function deviceMajor(device: bigint): number {
  return Number(((device >> 32n) & 0xffff_f000n) | ((device >> 8n) & 0xfffn))
}
export function deviceMinor(device: bigint): number {
  return Number(((device >> 12n) & 0xffff_ff00n) | (device & 0xffn))
}

/** Where data next begins at or after `offset`; undefined when only a hole follows. A file system or device that cannot
 *  tell holes is all data. Moves the file position (positional reads do not mind). */
export function seekData(fd: number, offset: number): number | undefined {
  return seekExtent(fd, offset, SEEK_DATA)
}
/** Where a hole next begins at or after `offset` (the end counts as one); undefined when `offset` is at or past the end,
 *  or when holes cannot be told: then data reaches to the end. */
export function seekHole(fd: number, offset: number): number | undefined {
  return seekExtent(fd, offset, SEEK_HOLE)
}

/** The capacity of an open block device. */
export function blockDeviceBytes(fd: number): number {
  const bytes = Buffer.alloc(8)
  if (libc().ioctl(fd, BLKGETSIZE64, 'void *', bytes) !== 0) throw errnoException('ioctl')
  return Number(bytes.readBigUInt64LE(0))
}

/** True while a QEMU that may write has the image open: it holds this lock of the open file on one byte (QEMU's block/file-posix.c). */
export function isWrittenByQemu(fd: number): boolean {
  const lock = Buffer.alloc(32)
  lock.writeInt16LE(F_WRLCK, 0)
  lock.writeBigInt64LE(QEMU_WRITE_LOCK_BYTE, 8)
  lock.writeBigInt64LE(1n, 16)
  // A file system without such locks: nobody holds one.
  return libc().fcntl(fd, F_OFD_GETLK, 'void *', lock) === 0 && lock.readInt16LE(0) !== F_UNLCK
}

/** Makes a range of a file or block device read as zeroes and gives its space back; the file's length stays.
 *  False when the file system or device cannot: then zeroes must be written. */
export function punchHole(fd: number, offset: number, bytes: number): boolean {
  return allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes)
}
/** Makes a range read as zeroes, by whatever way is fastest below, keeping its space. False when it cannot. */
export function zeroRange(fd: number, offset: number, bytes: number): boolean {
  return allocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, bytes)
}

/** Names and numbers of accounts, as the host's name service knows them; '' or undefined when it does not.
 *  Why libc and not /etc/passwd: accounts may live in a directory service. */
export const userName = (uid: number): string => cachedName(userNames, uid, () => accountName('getpwuid_r', uid))
export const groupName = (gid: number): string => cachedName(groupNames, gid, () => accountName('getgrgid_r', gid))
export const userNumber = (name: string): number | undefined =>
  cachedName(userNumbers, name, () => accountNumber('getpwnam_r', name))
export const groupNumber = (name: string): number | undefined =>
  cachedName(groupNumbers, name, () => accountNumber('getgrnam_r', name))

// ── Below: how ──

type Pointer = Buffer | null
interface Libc {
  llistxattr(path: Pointer, list: Pointer, bytes: number): number
  flistxattr(fd: number, list: Pointer, bytes: number): number
  lgetxattr(path: Pointer, name: Pointer, value: Pointer, bytes: number): number
  fgetxattr(fd: number, name: Pointer, value: Pointer, bytes: number): number
  lsetxattr(path: Pointer, name: Pointer, value: Pointer, bytes: number, flags: number): number
  fsetxattr(fd: number, name: Pointer, value: Pointer, bytes: number, flags: number): number
  lremovexattr(path: Pointer, name: Pointer): number
  utimensat(dirfd: number, path: Pointer, times: Pointer, flags: number): number
  futimens(fd: number, times: Pointer): number
  mknod(path: Pointer, mode: number, device: bigint): number
  lseek(fd: number, offset: number, whence: number): number
  ioctl(fd: number, request: number, ...argument: readonly unknown[]): number
  fcntl(fd: number, command: number, ...argument: readonly unknown[]): number
  fallocate(fd: number, mode: number, offset: number, bytes: number): number
  getpwuid_r(id: number, account: Pointer, text: Pointer, textBytes: number, result: Pointer): number
  getgrgid_r(id: number, account: Pointer, text: Pointer, textBytes: number, result: Pointer): number
  getpwnam_r(name: Pointer, account: Pointer, text: Pointer, textBytes: number, result: Pointer): number
  getgrnam_r(name: Pointer, account: Pointer, text: Pointer, textBytes: number, result: Pointer): number
}

const pathScratch = Buffer.alloc(PATH_SCRATCH_BYTES)
const nameScratch = Buffer.alloc(512)
const valueScratch = Buffer.alloc(XATTR_BYTES_MAX)
const listScratch = Buffer.alloc(XATTR_BYTES_MAX)
const times = Buffer.alloc(32)
const userNames = new Map<number, string>()
const groupNames = new Map<number, string>()
const userNumbers = new Map<string, number | undefined>()
const groupNumbers = new Map<string, number | undefined>()

let loaded: Libc | undefined
function libc(): Libc {
  return loaded ??= loadLibc()
}

function loadLibc(): Libc {
  if (process.platform !== 'linux' || !['x64', 'arm64'].includes(process.arch))
    throw new Error(`File metadata needs 64-bit Linux; this is ${process.platform} on ${process.arch}.`)
  const library = koffi.load(null)
  const p = 'void *'
  const xattr = ['size_t', 'int']
  const account = [p, p, 'size_t', p]
  const declare = <Name extends keyof Libc>(name: Name, result: string, parameters: string[]): Libc[Name] =>
    library.func(name, result, parameters) as unknown as Libc[Name]
  return {
    llistxattr: declare('llistxattr', 'long', [p, p, 'size_t']),
    flistxattr: declare('flistxattr', 'long', ['int', p, 'size_t']),
    lgetxattr: declare('lgetxattr', 'long', [p, p, p, 'size_t']),
    fgetxattr: declare('fgetxattr', 'long', ['int', p, p, 'size_t']),
    lsetxattr: declare('lsetxattr', 'int', [p, p, p, ...xattr]),
    fsetxattr: declare('fsetxattr', 'int', ['int', p, p, ...xattr]),
    lremovexattr: declare('lremovexattr', 'int', [p, p]),
    utimensat: declare('utimensat', 'int', ['int', p, p, 'int']),
    futimens: declare('futimens', 'int', ['int', p]),
    mknod: declareMknod(library),
    lseek: declare('lseek', 'int64_t', ['int', 'int64_t', 'int']),
    ioctl: declare('ioctl', 'int', ['int', 'unsigned long', '...']),
    fcntl: declare('fcntl', 'int', ['int', 'int', '...']),
    fallocate: declare('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']),
    getpwuid_r: declare('getpwuid_r', 'int', ['uint32_t', ...account]),
    getgrgid_r: declare('getgrgid_r', 'int', ['uint32_t', ...account]),
    getpwnam_r: declare('getpwnam_r', 'int', [p, ...account]),
    getgrnam_r: declare('getgrnam_r', 'int', [p, ...account]),
  }
}

/** glibc before 2.33 has mknod only behind a versioned entry that takes the device by reference. */
function declareMknod(library: ReturnType<typeof koffi.load>): Libc['mknod'] {
  try {
    return library.func('mknod', 'int', ['void *', 'uint32_t', 'uint64_t']) as unknown as Libc['mknod']
  } catch {
    const xmknod = library.func('__xmknod', 'int', ['int', 'void *', 'uint32_t', 'void *'])
    const version = process.arch === 'x64' ? 1 : 0
    return (path, mode, device) => {
      const reference = Buffer.alloc(8)
      reference.writeBigUInt64LE(device)
      return xmknod(version, path, mode, reference) as number
    }
  }
}

/** `bytes` with a NUL behind, in `scratch` when it fits. @throws EINVAL when a NUL is inside. */
function cString(bytes: Buffer, scratch: Buffer): Buffer {
  if (bytes.includes(0)) throw errnoException('path', bytes, koffi.os.errno['EINVAL'])
  const into = bytes.byteLength < scratch.byteLength ? scratch : Buffer.alloc(bytes.byteLength + 1)
  bytes.copy(into)
  into[bytes.byteLength] = 0
  return into
}

function collectXattrs(
  path: Buffer | undefined, syscall: string, list: (into: Buffer, bytes: number) => number,
  get: (name: Buffer, into: Buffer, bytes: number) => number,
): Xattr[] {
  let listed = list(listScratch, XATTR_LIST_FIRST_BYTES)
  if (listed === 0) return []
  if (listed < 0 && errnoIs('ERANGE')) listed = list(listScratch, XATTR_BYTES_MAX)
  if (listed < 0) {
    if (errnoIs('ENOTSUP')) return []
    throw errnoException(syscall, path)
  }
  const xattrs: Xattr[] = []
  for (let at = 0; at < listed;) {
    const end = listScratch.indexOf(0, at)
    const bytes = get(listScratch.subarray(at, end + 1), valueScratch, XATTR_BYTES_MAX)
    if (bytes >= 0)
      xattrs.push({ name: Buffer.from(listScratch.subarray(at, end)), value: Buffer.from(valueScratch.subarray(0, bytes)) })
    else if (!errnoIs('ENODATA')) throw errnoException(syscall, path) // ENODATA: removed since it was listed
    at = end + 1
  }
  return xattrs.sort((a, b) => Buffer.compare(a.name, b.name))
}

function fillTimes(atimeNs: TimeNs, mtimeNs: TimeNs): void {
  fillTime(0, atimeNs)
  fillTime(16, mtimeNs)
}
function fillTime(at: number, timeNs: TimeNs): void {
  if (timeNs === 'omit') {
    times.writeBigInt64LE(0n, at)
    times.writeBigInt64LE(BigInt(UTIME_OMIT), at + 8)
    return
  }
  const withinSecond = ((timeNs % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n // tv_nsec is never negative
  times.writeBigInt64LE((timeNs - withinSecond) / 1_000_000_000n, at)
  times.writeBigInt64LE(withinSecond, at + 8)
}

function seekExtent(fd: number, offset: number, whence: number): number | undefined {
  const found = libc().lseek(fd, offset, whence)
  if (found >= 0) return found
  if (errnoIs('ENXIO')) return undefined
  if (errnoIs('EINVAL') || errnoIs('ENOTSUP')) return whence === SEEK_DATA ? offset : undefined
  throw errnoException('lseek')
}

function allocate(fd: number, mode: number, offset: number, bytes: number): boolean {
  if (libc().fallocate(fd, mode, offset, bytes) === 0) return true
  // EINVAL: a block device wants whole sectors; ENODEV: older kernels for devices. Writing zeroes always works.
  if (errnoIs('ENOTSUP') || errnoIs('EINVAL') || errnoIs('ENODEV') || errnoIs('ENOSYS')) return false
  throw errnoException('fallocate')
}

function cachedName<Key, Value>(cache: Map<Key, Value>, key: Key, look: () => Value): Value {
  const known = cache.get(key)
  if (known !== undefined || cache.has(key)) return known as Value
  if (cache.size >= NAMES_CACHED_MAX) cache.clear()
  const value = look()
  cache.set(key, value)
  return value
}

// struct passwd and struct group both begin: char *name, char *password, uid or gid (u32). 64 bytes hold either.
function accountName(call: 'getpwuid_r' | 'getgrgid_r', id: number): string {
  const account = lookUpAccount((...out) => libc()[call](id, ...out))
  return account === undefined ? '' : koffi.decode(account, 0, 'str') as string
}
function accountNumber(call: 'getpwnam_r' | 'getgrnam_r', name: string): number | undefined {
  if (name === '' || name.includes('\0')) return undefined
  const nameBytes = Buffer.from(`${name}\0`)
  return lookUpAccount((...out) => libc()[call](nameBytes, ...out))?.readUInt32LE(16)
}
/** The account's strings lie in valueScratch until the next call. A name service that fails is one that does not know:
 *  a backup stores the number anyway. */
function lookUpAccount(call: (account: Buffer, text: Buffer, textBytes: number, result: Buffer) => number): Buffer | undefined {
  const account = Buffer.alloc(64)
  const result = Buffer.alloc(8)
  const code = call(account, valueScratch, valueScratch.byteLength, result)
  return code === 0 && result.readBigUInt64LE(0) !== 0n ? account : undefined
}

function errnoIs(code: string): boolean {
  return koffi.errno() === koffi.os.errno[code]
}
function errnoException(syscall: string, path?: Buffer, errno = koffi.errno()): NodeJS.ErrnoException {
  const [code, text] = getSystemErrorMap().get(-errno) ??
    [Object.keys(koffi.os.errno).find((name) => koffi.os.errno[name] === errno) ?? `E${errno}`, 'system call failed']
  const where = path === undefined ? '' : ` '${path.toString()}'`
  const error: NodeJS.ErrnoException = new Error(`${code}: ${text}, ${syscall}${where}`)
  return Object.assign(error, { code, errno: -errno, syscall, ...(path === undefined ? {} : { path: path.toString() }) })
}
