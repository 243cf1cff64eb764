/** Reads one regular file into chunks. */
import { closeSync, constants, fstatSync, openSync, readSync, type BigIntStats } from 'node:fs'
import { isErrno } from '../../src/core/errors.js'
import { CHUNK_KINDS } from '../../src/core/ids.js'
import { KiB, MiB } from '../../src/core/limits.js'
import type { ChunkerParameters } from '../../src/core/messages.js'
import { openChunker } from '../chunker/chunker.js'
import { seekData, seekHole } from '../native/posix.js'
import { ListContentWriter } from '../tree/content-writer.js'
import type { Content, Xattr } from '../tree/entry.js'
import type { ChunkSink, ScanContext } from '../upload/chunk-sink.js'

/** One read call: what is read is cut and hashed while the processor's cache still has it. */
const READ_BYTES = 512 * KiB
/** Below this, asking where the holes are costs more than storing zeroes. */
const SPARSE_FROM_BYTES = 16 * KiB
const ATTEMPTS_MAX = 3
/** Between turns of the event loop: an abort is heard at least this often. */
const TURN_BYTES = 32 * MiB
const OPEN_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

export interface FileRead {
  readonly content: Content
  readonly xattrs: readonly Xattr[]
  /** Of before the reading: when the file changed meanwhile, the next backup sees that it did. */
  readonly stat: BigIntStats
  /** It changed during every attempt: the content is what the last one saw. */
  readonly isTorn: boolean
}

export class FileReader {
  readonly #sink: ChunkSink
  readonly #chunker: ReturnType<typeof openChunker>
  #sinceTurn = 0
  constructor(readonly context: ScanContext, readonly parameters: ChunkerParameters) {
    this.#sink = context.sink
    this.#chunker = openChunker(parameters)
  }

  /** `path` is used before the first await only; xattrs are read by `readXattrs` from the open file. undefined: it is no
   *  regular file any more. Throws errno errors. */
  async read(path: Buffer, mayUseNoAtime: boolean, readXattrs: (fd: number) => readonly Xattr[]): Promise<FileRead | undefined> {
    const fd = openFile(path, mayUseNoAtime)
    try {
      let before = fstatSync(fd, { bigint: true })
      if (!before.isFile()) return undefined
      for (let attempt = 1; ; attempt++) {
        const content = await this.#readContent(fd, before)
        const xattrs = readXattrs(fd)
        const after = fstatSync(fd, { bigint: true })
        const isSame = after.size === before.size && after.mtimeNs === before.mtimeNs && after.ctimeNs === before.ctimeNs
        if (isSame || attempt === ATTEMPTS_MAX) return { content, xattrs, stat: before, isTorn: !isSame }
        before = after
      }
    } finally { closeSync(fd) }
  }

  async #readContent(fd: number, stat: BigIntStats): Promise<Content> {
    const bytes = Number(stat.size)
    const writer = new ListContentWriter(this.#sink)
    if (bytes >= SPARSE_FROM_BYTES && stat.blocks * 512n < stat.size) await this.#readSparse(fd, bytes, writer)
    else if (bytes > 0) await this.#readRange(fd, 0, bytes, writer)
    return await writer.finish()
  }
  async #readSparse(fd: number, bytes: number, writer: ListContentWriter): Promise<void> {
    for (let at = 0; at < bytes;) {
      const data = Math.min(seekData(fd, at) ?? bytes, bytes)
      await writer.add(undefined, data - at)
      if (data === bytes) return
      const end = Math.min(seekHole(fd, data) ?? bytes, bytes)
      if (end <= data || await this.#readRange(fd, data, end, writer) < end - data) return // shrunk: the caller sees it
      at = end
    }
  }
  /** Bytes from `start` to `end`, as far as there are. What is appended meanwhile is not read: the caller sees that it was. */
  async #readRange(fd: number, start: number, end: number, writer: ListContentWriter): Promise<number> {
    const { maxBytes } = this.parameters
    const { limitRead, signal } = this.context
    let at = start
    let last = end
    let held = 0
    while (held > 0 || at < last) {
      const needed = Math.min(maxBytes, held + last - at)
      const given = this.#sink.space(needed, held)
      const space = given instanceof Promise ? await given : given
      while (held < needed) {
        if (limitRead !== undefined) await limitRead.take(Math.min(READ_BYTES, space.byteLength - held, last - at), signal)
        const read = readSync(fd, space, held, Math.min(READ_BYTES, space.byteLength - held, last - at), at)
        if (read === 0) { last = at; break }
        held += read
        at += read
        this.context.counters.bytesRead += read
        this.#sinceTurn += read
      }
      if (held === 0) break
      const bytes = this.#chunker.cut(space.subarray(0, held), at === last)
      if (bytes === 0) continue
      const added = writer.add(this.#sink.take(bytes, CHUNK_KINDS.data), bytes)
      if (added !== undefined) await added
      held -= bytes
      if (this.#sinceTurn >= TURN_BYTES) await this.#turn()
    }
    return at - start
  }
  /** Lets messages in: an abort, above all. */
  async #turn(): Promise<void> {
    this.#sinceTurn = 0
    await new Promise((resolve) => setImmediate(resolve))
    this.context.signal.throwIfAborted()
  }
}

/** O_NOATIME is for the owner and for root; O_NONBLOCK keeps a fifo that took the file's place from holding us up. */
function openFile(path: Buffer, mayUseNoAtime: boolean): number {
  if (!mayUseNoAtime) return openSync(path, OPEN_FLAGS)
  try {
    return openSync(path, OPEN_FLAGS | constants.O_NOATIME)
  } catch (error) {
    if (!isErrno(error, 'EPERM')) throw error
    return openSync(path, OPEN_FLAGS)
  }
}
