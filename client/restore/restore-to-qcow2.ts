/** One image or file of a snapshot becomes a qcow2 file: written directly, sparse, under a temporary name until it is whole. */
import { closeSync, constants, existsSync, fsyncSync, mkdirSync, openSync, renameSync, unlinkSync } from 'node:fs'
import { RoostError } from '../../src/core/errors.js'
import { Qcow2File } from '../qcow2/qcow2-file.js'
import { chunkError, type ChunkProblem } from '../read-chunks.js'
import type { Content } from '../tree/entry.js'
import type { NodeSource } from '../upload/chunk-sink.js'
import type { ChunkConsumer, ChunkWindows } from './chunk-windows.js'
import { contentExtents } from './content-extents.js'
import type { RestoreCounters, RestoreEvents } from './restore-report.js'

export interface Qcow2Options {
  readonly replaces: boolean
  readonly onDamage: 'skip' | 'keep' | 'stop'
  /** Marks the temporary name. */
  readonly runMark: string
  readonly signal: AbortSignal
}
/** A disk holds what its machine keeps secret. */
const PRIVATE_MODE = 0o600

class Qcow2Task implements ChunkConsumer {
  damage: RoostError | undefined
  constructor(readonly file: Qcow2File, readonly counters: RestoreCounters, readonly events: RestoreEvents, readonly keepsDamaged: boolean) {}
  takeChunk(bytes: Buffer, offset: number): void {
    this.file.write(bytes, offset)
    this.counters.bytes += bytes.byteLength
    this.counters.bytesDone += bytes.byteLength
    this.events.progress?.(this.counters)
  }
  /** What is lost stays zeroes, where a damaged image is better than none. */
  takeProblem(problem: ChunkProblem, id: Uint8Array): void {
    this.damage ??= chunkError(problem, id)
    if (!this.keepsDamaged) throw this.damage
  }
}
/** Checks each chunk against the length that was planned: one too long would write into its neighbour's clusters. */
class PlannedChunk implements ChunkConsumer {
  constructor(readonly task: Qcow2Task, readonly bytes: number) {}
  takeChunk(bytes: Buffer, offset: number): void {
    if (bytes.byteLength !== this.bytes) throw new RoostError('TREE_MALFORMED', 'A chunk is not as long as its file says.')
    this.task.takeChunk(bytes, offset)
  }
  takeProblem(problem: ChunkProblem, id: Uint8Array): void { this.task.takeProblem(problem, id) }
}

/** Damage leaves no file unless it is to be kept; it is told by `events` and counted.
 *  @throws {RoostError} LIMIT_EXCEEDED for an image beyond 2 PiB; damage under `stop`; errno exceptions */
export async function restoreToQcow2(path: Buffer, content: Content, nodes: NodeSource, windows: ChunkWindows, counters: RestoreCounters,
  events: RestoreEvents, options: Qcow2Options): Promise<void> {
  if (!options.replaces && existsSync(path)) { counters.skipped++; return }
  const { directory, temporary } = temporaryBeside(path, options.runMark)
  mkdirSync(directory, { recursive: true })
  const fd = openSync(temporary, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, PRIVATE_MODE)
  let isWhole = false
  try {
    const file = new Qcow2File(fd, content.bytes)
    const task = new Qcow2Task(file, counters, events, options.onDamage === 'keep')
    try {
      await fill(file, task, content, nodes, windows, options.signal)
    } catch (error) {
      if (error !== task.damage || options.onDamage !== 'skip') throw error
    } finally { await windows.settle() } // nothing writes to the descriptor once it is closed
    if (task.damage !== undefined) {
      counters.problems++
      events.problem?.({ path, reason: 'damaged', message: task.damage.message, cause: task.damage })
      if (options.onDamage !== 'keep') return
    }
    file.finish()
    renameSync(temporary, path)
    isWhole = true
    syncDirectory(directory)
    counters.files++
  } finally {
    closeSync(fd)
    if (!isWhole) unlinkSync(temporary)
  }
}
async function fill(file: Qcow2File, task: Qcow2Task, content: Content, nodes: NodeSource, windows: ChunkWindows, signal: AbortSignal): Promise<void> {
  let reached = 0
  let planned: PlannedChunk | undefined
  for await (const { offset, bytes, id } of contentExtents(nodes, content)) {
    signal.throwIfAborted()
    reached = offset + bytes
    if (reached > content.bytes) break
    if (id === undefined) { task.counters.bytesDone += bytes; continue }
    if (planned?.bytes !== bytes) planned = new PlannedChunk(task, bytes) // those of an image are of one length
    await windows.want(id, bytes, planned, file.place(offset, bytes))
  }
  if (reached !== content.bytes) throw new RoostError('TREE_MALFORMED', 'The content is not as long as its directory says.')
  await windows.finish()
}

function temporaryBeside(path: Buffer, runMark: string): { directory: Buffer; temporary: Buffer } {
  const slash = path.lastIndexOf(0x2f)
  if (slash === path.byteLength - 1) throw Object.assign(new Error('EISDIR: the destination names a directory'), { code: 'EISDIR' })
  const directory = slash < 0 ? Buffer.from('.') : slash === 0 ? Buffer.from('/') : path.subarray(0, slash)
  return { directory, temporary: Buffer.concat([directory, Buffer.from(`/.roost-${runMark}.qcow2`)]) }
}
function syncDirectory(directory: Buffer): void {
  const fd = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY)
  try { fsyncSync(fd) } finally { closeSync(fd) }
}
