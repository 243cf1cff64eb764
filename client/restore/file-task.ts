/** One file on its way back: chunks come in any order, into a temporary name in the file's own directory; when all are there it
 *  gets its metadata and, by rename, its name. An interrupted restore so leaves no half file under a final name.
 */
import { closeSync, constants, ftruncateSync, openSync, renameSync, unlinkSync, writeSync } from 'node:fs'
import { RoostError } from '../../src/core/errors.js'
import type { Entry } from '../tree/entry.js'
import { chunkError, type ChunkProblem } from '../read-chunks.js'
import type { ChunkConsumer } from './chunk-windows.js'
import type { TargetDirectory } from './target-directory.js'

const CREATE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
const REOPEN = constants.O_WRONLY | constants.O_NOFOLLOW
const PRIVATE_MODE = 0o600

/** What a file needs of the restore that it belongs to. */
export interface FileHost {
  readonly files: OpenFiles
  /** A damaged file keeps what arrived, holes elsewhere. */
  readonly keepsDamaged: boolean
  temporaryName(): Buffer
  applyMetadata(fd: number, task: FileTask): void
  bytesWritten(bytes: number): void
  fileDone(task: FileTask): void
  /** Throws when the restore cannot go on. */
  fileFailed(task: FileTask, error: unknown): void
  /** Reports damage of a file that is kept nevertheless. */
  fileDamaged(task: FileTask, error: unknown): void
}

export class FileTask implements ChunkConsumer {
  #fd = -1
  #temporary: Buffer | undefined
  #chunksDue = 0
  #dataBytesPlanned = 0
  #dataBytesWritten = 0
  #state: 'planning' | 'planned' | 'done' | 'failed' = 'planning'
  #damage: RoostError | undefined

  constructor(readonly host: FileHost, readonly directory: TargetDirectory, readonly entry: Entry) { directory.hold() }
  get bytes(): number { return this.entry.content?.bytes ?? 0 }
  get hasFailed(): boolean { return this.#state === 'failed' }

  /** Call before the chunk is asked for. */
  expectChunk(bytes: number): void {
    this.#chunksDue++
    this.#dataBytesPlanned += bytes
  }
  /** Every chunk was asked for. */
  endPlan(): void {
    if (this.#state !== 'planning') return
    this.#state = 'planned'
    if (this.#chunksDue === 0) this.#finish()
  }
  takeChunk(bytes: Buffer, offset: number): void {
    this.#chunksDue--
    if (this.#state === 'done' || this.#state === 'failed') return
    try {
      if (bytes.byteLength > this.bytes - offset) throw this.#malformed()
      this.#write(bytes, offset)
      this.#dataBytesWritten += bytes.byteLength
    } catch (error) {
      this.fail(error)
      return
    }
    this.host.bytesWritten(bytes.byteLength)
    if (this.#chunksDue === 0 && this.#state === 'planned') this.#finish()
  }
  takeProblem(problem: ChunkProblem, id: Uint8Array, _offset: number, bytes: number): void {
    this.#chunksDue--
    if (this.#state === 'done' || this.#state === 'failed') return
    const error = chunkError(problem, id)
    if (!this.host.keepsDamaged) { this.fail(error); return }
    this.#damage ??= error
    this.#dataBytesPlanned -= bytes
    if (this.#chunksDue === 0 && this.#state === 'planned') this.#finish()
  }
  /** Ends the task without a file. */
  fail(error: unknown): void {
    if (this.#state === 'done' || this.#state === 'failed') return
    this.#state = 'failed'
    this.discard()
    try { this.host.fileFailed(this, error) } finally { this.directory.release() }
  }
  /** Removes what was written so far. */
  discard(): void {
    this.closeFile()
    if (this.#temporary === undefined) return
    const temporary = this.#temporary
    this.#temporary = undefined
    this.host.files.ended(this)
    // Already gone, or its directory is: either way it is not in the destination any more, and the first failure is the one to tell.
    try { unlinkSync(this.directory.pathOf(temporary)) } catch { /* as said */ }
  }
  /** Gives the descriptor back; the next chunk opens the file again. */
  closeFile(): void {
    if (this.#fd < 0) return
    this.host.files.closed(this)
    closeSync(this.#fd)
    this.#fd = -1
  }

  #write(bytes: Buffer, offset: number): void {
    const fd = this.#open(bytes.byteLength)
    for (let done = 0; done < bytes.byteLength;) done += writeSync(fd, bytes, done, bytes.byteLength - done, offset + done)
  }
  /** `bytesNext`: when that is the whole file, its length need not be set first. */
  #open(bytesNext: number): number {
    if (this.#fd >= 0) return this.#fd
    if (this.#temporary === undefined) {
      const name = this.host.temporaryName()
      this.#fd = openSync(this.directory.pathOf(name), CREATE, PRIVATE_MODE)
      this.#temporary = name
      this.host.files.begun(this)
      if (this.bytes > bytesNext) ftruncateSync(this.#fd, this.bytes) // holes are what is never written
    } else this.#fd = openSync(this.directory.pathOf(this.#temporary), REOPEN)
    if (this.#chunksDue > 0 || this.#state === 'planning') this.host.files.opened(this)
    return this.#fd
  }
  #finish(): void {
    try {
      if (this.#dataBytesWritten !== this.#dataBytesPlanned) throw this.#malformed()
      const fd = this.#open(0)
      this.host.applyMetadata(fd, this)
      this.closeFile()
      renameSync(this.directory.pathOf(this.#temporary!), this.directory.pathOf(this.entry.name))
      this.#temporary = undefined
      this.host.files.ended(this)
    } catch (error) {
      this.fail(error)
      return
    }
    this.#state = 'done'
    try {
      if (this.#damage !== undefined) this.host.fileDamaged(this, this.#damage)
      this.host.fileDone(this)
    } finally { this.directory.release() }
  }
  #malformed(): RoostError {
    return new RoostError('TREE_MALFORMED', 'The chunks of a file are not as long as its directory says.')
  }
}

/** Bounds the open files, and knows the temporary ones for cleaning up. */
export class OpenFiles {
  readonly #open = new Set<FileTask>()
  readonly #temporary = new Set<FileTask>()
  constructor(readonly openMax = 256) {}
  begun(task: FileTask): void { this.#temporary.add(task) }
  ended(task: FileTask): void { this.#temporary.delete(task) }
  opened(task: FileTask): void {
    this.#open.add(task)
    if (this.#open.size <= this.openMax) return
    for (const oldest of this.#open) { oldest.closeFile(); return }
  }
  closed(task: FileTask): void { this.#open.delete(task) }
  /** After a failure: nothing half-written stays. */
  discardAll(): void { for (const task of [...this.#temporary]) task.discard() }
}
