/** Writes one file's or image's bytes over a block device (or an existing file), in place: chunks in any order, and zeroes
 *  where the content has holes, since what was there before must not show through. */
import { closeSync, constants, fstatSync, fsyncSync, openSync, writeSync } from 'node:fs'
import { RoostError } from '../../src/core/errors.js'
import { MiB } from '../../src/core/limits.js'
import { blockDeviceBytes, zeroRange } from '../native/posix.js'
import { chunkError, type ChunkProblem } from '../read-chunks.js'
import type { Content } from '../tree/entry.js'
import type { NodeSource } from '../upload/chunk-sink.js'
import type { ChunkConsumer, ChunkWindows } from './chunk-windows.js'
import { contentExtents } from './content-extents.js'
import type { RestoreCounters, RestoreEvents } from './restore-report.js'

const ZEROES = Buffer.alloc(1 * MiB)
/** Zeroing is done in steps, so that it can be stopped between them. */
const ZERO_STEP_BYTES = 1024 * MiB

class DeviceTask implements ChunkConsumer {
  constructor(readonly fd: number, readonly bytes: number, readonly counters: RestoreCounters, readonly events: RestoreEvents,
    readonly stopsOnDamage: boolean) {}
  takeChunk(bytes: Buffer, offset: number): void {
    if (bytes.byteLength > this.bytes - offset) throw new RoostError('TREE_MALFORMED', 'A chunk reaches past the end of its content.')
    for (let done = 0; done < bytes.byteLength;) done += writeSync(this.fd, bytes, done, bytes.byteLength - done, offset + done)
    this.counters.bytes += bytes.byteLength
    this.counters.bytesDone += bytes.byteLength
    this.events.progress?.(this.counters)
  }
  /** The lost stretch is left as zeroes and told; a device cannot be left out as a file can. */
  takeProblem(problem: ChunkProblem, id: Uint8Array, offset: number, bytes: number): void {
    const error = chunkError(problem, id)
    if (this.stopsOnDamage) throw error
    this.counters.problems++
    this.events.problem?.({ path: Buffer.from(`bytes ${offset} to ${offset + bytes}`), reason: 'damaged', message: error.message, cause: error })
    this.zero(offset, bytes)
  }
  zero(offset: number, bytes: number): void {
    if (zeroRange(this.fd, offset, bytes)) return
    for (let done = 0; done < bytes;)
      done += writeSync(this.fd, ZEROES, 0, Math.min(ZEROES.byteLength, bytes - done), offset + done)
  }
}

/** @throws {RoostError} LIMIT_EXCEEDED when the device is too small; errno exceptions (EBUSY: it is in use) */
export async function restoreToDevice(path: Buffer, content: Content, nodes: NodeSource, windows: ChunkWindows,
  counters: RestoreCounters, events: RestoreEvents, options: { readonly stopsOnDamage: boolean; readonly signal: AbortSignal }): Promise<void> {
  // O_EXCL on a block device: refused while it is mounted or otherwise claimed.
  const fd = openSync(path, constants.O_RDWR | constants.O_EXCL)
  try {
    const stat = fstatSync(fd)
    const capacity = stat.isBlockDevice() ? blockDeviceBytes(fd) : stat.isFile() ? stat.size : 0
    if (capacity < content.bytes)
      throw new RoostError('LIMIT_EXCEEDED', `The destination holds ${capacity} bytes; ${content.bytes} are to be restored.`, { limit: capacity })
    const task = new DeviceTask(fd, content.bytes, counters, events, options.stopsOnDamage)
    try {
      for await (const { offset, bytes, id } of contentExtents(nodes, content)) {
        options.signal.throwIfAborted()
        if (id !== undefined) { await windows.want(id, bytes, task, offset); continue }
        for (let done = 0; done < bytes; done += ZERO_STEP_BYTES) {
          options.signal.throwIfAborted()
          task.zero(offset + done, Math.min(ZERO_STEP_BYTES, bytes - done))
        }
        counters.bytesDone += bytes
      }
      await windows.finish()
    } finally { await windows.settle() } // nothing writes to the descriptor once it is closed
    fsyncSync(fd)
    counters.files++
  } finally { closeSync(fd) }
}
