/** A regular file or a block device as a BlockSource: holes are found by SEEK_DATA and SEEK_HOLE, bytes by pread, straight into the sink's memory. */
import { closeSync, constants, fstatSync, openSync, readSync, type BigIntStats } from 'node:fs'
import { RoostError } from '../../src/core/errors.js'
import { blockDeviceBytes, fgetxattrs, groupName, seekData, seekHole, userName } from '../native/posix.js'
import type { BlockReads, BlockSource, SourceExtent, SourceFacts } from './block-source.js'

/** `path`: a symlink is followed.
 *  @throws {RoostError} REQUEST_MALFORMED when it is neither file nor block device; errno exceptions */
export function openFileSource(path: Buffer): BlockSource {
  const fd = openSync(path, constants.O_RDONLY)
  try {
    return new FileSource(fd)
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

class FileSource implements BlockSource {
  readonly bytes: number
  readonly isDevice: boolean
  readonly facts: SourceFacts
  readonly reads: BlockReads
  readonly #before: BigIntStats
  #isCutShort = false

  constructor(readonly fd: number) {
    const stat = this.#before = fstatSync(fd, { bigint: true })
    this.isDevice = stat.isBlockDevice()
    this.bytes = lengthOf(fd, stat)
    const uid = Number(stat.uid)
    const gid = Number(stat.gid)
    this.facts = {
      mode: Number(stat.mode) & 0o7777, uid, gid, user: userName(uid), group: groupName(gid),
      mtimeNs: stat.mtimeNs, ctimeNs: stat.ctimeNs, inode: stat.ino, device: stat.dev, xattrs: stat.isFile() ? fgetxattrs(fd) : [],
    }
    this.reads = { kind: 'direct', read: (into, position) => this.#read(into, position) }
  }

  async *extents(): AsyncGenerator<SourceExtent> {
    for (let at = 0; at < this.bytes;) {
      const found = seekData(this.fd, at)
      const data = found === undefined || found >= this.bytes ? this.bytes : found
      if (data > at) yield { offset: at, bytes: data - at, state: 'zero' }
      if (data === this.bytes) return
      const hole = Math.min(this.bytes, seekHole(this.fd, data) ?? this.bytes)
      // A file that is cut in between answers with a hole where it has just said data: then the rest is read, and found missing.
      const end = hole > data ? hole : this.bytes
      yield { offset: data, bytes: end - data, state: 'data' }
      at = end
    }
  }
  changes(): string | undefined {
    const after = fstatSync(this.fd, { bigint: true })
    // Whether a device's bytes changed, nothing tells.
    const hasChanged = this.isDevice ? blockDeviceBytes(this.fd) !== this.bytes
      : after.size !== this.#before.size || after.mtimeNs !== this.#before.mtimeNs
    return this.#isCutShort || hasChanged ? 'The image was changed while it was read: its parts are of different moments.' : undefined
  }
  close(): void { closeSync(this.fd) }

  #read(into: Buffer, position: number): number {
    let read = 0
    while (read < into.byteLength) {
      const more = readSync(this.fd, into, read, into.byteLength - read, position + read)
      if (more === 0) {
        this.#isCutShort = true
        return read
      }
      read += more
    }
    return read
  }
}

function lengthOf(fd: number, stat: BigIntStats): number {
  if (stat.isBlockDevice()) return blockDeviceBytes(fd)
  if (stat.isFile()) return Number(stat.size)
  throw new RoostError('REQUEST_MALFORMED', 'An image is a regular file or a block device.')
}
