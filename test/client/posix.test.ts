import assert from 'node:assert/strict'
import { closeSync, ftruncateSync, fstatSync, lstatSync, mkdtempSync, openSync, readSync, rmSync, statSync, symlinkSync,
  writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import * as posix from '../../client/native/posix.js'
import { isErrno } from '../../src/core/errors.js'

const KiB = 1024
const isRoot = process.getuid?.() === 0

function directory(t: TestContext): Buffer {
  const path = mkdtempSync(join(tmpdir(), 'roost-posix-'))
  t.after(() => rmSync(path, { recursive: true, force: true }))
  return Buffer.from(path)
}
const within = (parent: Buffer, name: string | Buffer): Buffer =>
  Buffer.concat([parent, Buffer.from('/'), Buffer.from(name as string)])
function fileNamed(t: TestContext, name: string | Buffer): Buffer {
  const path = within(directory(t), name)
  writeFileSync(path, 'content')
  return path
}
function opened(t: TestContext, path: Buffer, flags: string): number {
  const fd = openSync(path, flags)
  t.after(() => closeSync(fd))
  return fd
}

test('extended attributes with any bytes in name and value come back, sorted by name', (t) => {
  const path = fileNamed(t, Buffer.from([0x66, 0xff, 0xfe, 0x0a]))
  const wanted = [
    { name: Buffer.from('user.a'), value: Buffer.from([0, 1, 255]) },
    { name: Buffer.from('user.b\xff', 'latin1'), value: Buffer.alloc(0) },
    { name: Buffer.from('user.c'), value: Buffer.alloc(2000, 7) },
  ]
  for (const xattr of [...wanted].reverse()) posix.lsetxattr(path, xattr.name, xattr.value)
  assert.deepEqual(posix.lgetxattrs(path).filter((x) => x.name.toString().startsWith('user.')), wanted)
  const fd = opened(t, path, 'r+')
  posix.fsetxattr(fd, Buffer.from('user.a'), Buffer.from('new'))
  posix.lremovexattr(path, wanted[1]!.name)
  posix.lremovexattr(path, wanted[2]!.name)
  assert.deepEqual(posix.fgetxattrs(fd).filter((x) => x.name.toString().startsWith('user.')),
    [{ name: Buffer.from('user.a'), value: Buffer.from('new') }])
})

test('a list of attribute names longer than the first guess is read whole', (t) => {
  const path = fileNamed(t, 'many')
  const names = Array.from({ length: 12 }, (_, i) => `user.${String(i).padStart(2, '0')}${'n'.repeat(120)}`)
  for (const name of names) posix.lsetxattr(path, Buffer.from(name), Buffer.from(name))
  assert.deepEqual(posix.lgetxattrs(path).map((x) => x.name.toString()).filter((n) => n.startsWith('user.')), names)
})

test('a file without attributes, and a pseudo file system without them, have none', (t) => {
  assert.deepEqual(posix.lgetxattrs(fileNamed(t, 'plain')).filter((x) => x.name.toString().startsWith('user.')), [])
  assert.deepEqual(posix.lgetxattrs(Buffer.from('/proc/self/status')), [])
})

test('a failed call throws an errno exception that names the call and the path', (t) => {
  const path = within(directory(t), 'absent')
  for (const act of [() => posix.lgetxattrs(path), () => posix.utimensNs(path, 'omit', 1n),
    () => posix.lsetxattr(path, Buffer.from('user.x'), Buffer.alloc(1))])
    assert.throws(act, (error) => isErrno(error, 'ENOENT') && error.path === path.toString() && error.syscall !== undefined)
})

test('a path with a NUL inside is refused, not shortened', (t) => {
  const path = fileNamed(t, 'whole')
  assert.throws(() => posix.utimensNs(Buffer.concat([path, Buffer.from('\0rest')]), 'omit', 1n), (e) => isErrno(e, 'EINVAL'))
})

test('times are set exactly, before 1970 too, on a symlink itself, and one alone', (t) => {
  const path = fileNamed(t, 'timed')
  const stat = (): ReturnType<typeof lstatBig> => lstatBig(path)
  for (const mtimeNs of [1_234_567_890_123_456_789n, 0n, -1n, -1_500_000_001n, 1n]) {
    posix.utimensNs(path, 5n, mtimeNs)
    assert.equal(stat().mtimeNs, mtimeNs)
    assert.equal(stat().atimeNs, 5n)
  }
  posix.utimensNs(path, 'omit', 99n)
  assert.deepEqual([stat().atimeNs, stat().mtimeNs], [5n, 99n])
  const link = within(directory(t), 'link')
  symlinkSync(path, link)
  posix.utimensNs(link, 7n, 8n)
  assert.deepEqual([lstatBig(link).mtimeNs, stat().mtimeNs], [8n, 99n])
  posix.futimensNs(opened(t, path, 'r+'), -7n)
  assert.deepEqual([stat().atimeNs, stat().mtimeNs], [5n, -7n])
})
function lstatBig(path: Buffer): { mtimeNs: bigint; atimeNs: bigint } {
  return lstatSync(path, { bigint: true })
}

test('fifos are made, and devices where the user may', (t) => {
  const parent = directory(t)
  posix.mkfifo(within(parent, 'fifo'), 0o600)
  assert.ok(statSync(within(parent, 'fifo')).isFIFO())
  assert.throws(() => posix.mkfifo(within(parent, 'fifo'), 0o600), (e) => isErrno(e, 'EEXIST'))
  const make = (): void => posix.mknod(within(parent, 'device'), 0o020600, 259, 70_000)
  if (!isRoot) return assert.throws(make, (e) => isErrno(e, 'EPERM'))
  try { make() } catch (error) { if (isErrno(error, 'EPERM')) return t.skip('no CAP_MKNOD here'); throw error }
  const { rdev } = lstatSync(within(parent, 'device'), { bigint: true })
  assert.deepEqual([posix.deviceMajor(rdev), posix.deviceMinor(rdev)], [259, 70_000])
})

test('device numbers survive packing', () => {
  for (const [major, minor] of [[0, 0], [8, 1], [4095, 255], [4096, 256], [0xffff_ffff, 0xffff_ffff]] as const) {
    const device = posix.makeDevice(major, minor)
    assert.deepEqual([posix.deviceMajor(device), posix.deviceMinor(device)], [major, minor])
  }
  assert.equal(posix.makeDevice(8, 17), 0x811n)
})

test('holes are found, and punched ones read as zeroes', (t) => {
  const path = fileNamed(t, 'sparse')
  const fd = opened(t, path, 'w+')
  ftruncateSync(fd, 1024 * KiB)
  writeSync(fd, Buffer.alloc(64 * KiB, 1), 0, 64 * KiB, 256 * KiB)
  writeSync(fd, Buffer.alloc(64 * KiB, 2), 0, 64 * KiB, 512 * KiB)
  const data = posix.seekData(fd, 0)
  if (data === 0) return t.skip('the temporary directory cannot tell holes')
  assert.equal(data, 256 * KiB)
  assert.equal(posix.seekHole(fd, 256 * KiB), 320 * KiB)
  assert.equal(posix.seekHole(fd, 0), 0)
  assert.equal(posix.seekData(fd, 576 * KiB), undefined)
  assert.equal(posix.seekHole(fd, 1024 * KiB), undefined)
  if (!posix.punchHole(fd, 256 * KiB, 64 * KiB)) return t.skip('the temporary directory cannot punch holes')
  const bytes = Buffer.alloc(64 * KiB, 9)
  readSync(fd, bytes, 0, bytes.length, 256 * KiB)
  assert.ok(bytes.every((byte) => byte === 0))
  assert.equal(posix.seekData(fd, 0), 512 * KiB)
  assert.equal(fstatSync(fd).size, 1024 * KiB)
})

test('accounts are named both ways, unknown ones are neither guessed nor fatal', () => {
  assert.equal(posix.userName(0), 'root')
  assert.equal(posix.groupName(0), 'root')
  assert.equal(posix.userNumber('root'), 0)
  assert.equal(posix.groupNumber('root'), 0)
  assert.equal(posix.userName(3_999_999_999), '')
  assert.equal(posix.groupNumber('no such group'), undefined)
  assert.equal(posix.userNumber(''), undefined)
})

test('the capacity of something that is not a block device is an error', (t) => {
  assert.throws(() => posix.blockDeviceBytes(opened(t, fileNamed(t, 'plain'), 'r')), (e) => isErrno(e, 'ENOTTY'))
})
