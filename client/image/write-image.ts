/** Writes an image to a regular file, sparse, or onto a block device. */
import { fstatSync, fsync, ftruncate, write } from 'node:fs'
import { promisify } from 'node:util'
import { assert } from '../../src/core/assert.js'
import { RoostError } from '../../src/core/errors.js'
import { KiB, MiB } from '../../src/core/limits.js'
import { blockDeviceBytes, punchHole, zeroRange } from '../native/posix.js'

/** A stretch of the image; `bytes` undefined: zeroes. The buffer may be reused once the next stretch is asked for. */
export interface ImagePiece { readonly offset: number; readonly length: number; readonly bytes: Buffer | undefined }

export interface WriteImageOptions {
  /** Open for writing; stays open. */
  readonly fd: number
  readonly imageBytes: number
  /** Each byte of the image exactly once, in any order. */
  readonly pieces: AsyncIterable<ImagePiece>
  readonly signal?: AbortSignal
}

const writeAt = promisify(write)
const flush = promisify(fsync)
const truncate = promisify(ftruncate)
const PAGE_BYTES = 4 * KiB
/** A shorter run of zeroes within data is written: a hole would save less than its extent costs. */
const HOLE_BYTES_MIN = 32 * KiB
const ZEROES = Buffer.alloc(1 * MiB)

/** Resolves when the image is on stable storage. A file's former content is gone and its length is the image's; a device keeps
 *  what it has past the image. If it rejects, the target holds an unusable part.
 *  @throws {RoostError} LIMIT_EXCEEDED when the device is smaller than the image (nothing is written then);
 *  REQUEST_MALFORMED when the target is neither file nor block device; errno exceptions */
export async function writeImage(options: WriteImageOptions): Promise<void> {
  const { fd, imageBytes, pieces, signal } = options
  const stat = fstatSync(fd)
  if (!stat.isFile() && !stat.isBlockDevice())
    throw new RoostError('REQUEST_MALFORMED', 'An image is written to a regular file or a block device.')
  const target = stat.isFile() ? await prepareFile(fd, imageBytes) : prepareDevice(fd, imageBytes)
  let coveredBytes = 0
  for await (const { offset, length, bytes } of pieces) {
    signal?.throwIfAborted()
    assert(offset >= 0 && length > 0 && offset + length <= imageBytes, 'a piece is within the image')
    assert(bytes === undefined || bytes.byteLength === length, 'a piece has its bytes')
    if (bytes === undefined) await target.writeZeroes(offset, length)
    else await target.writeData(offset, bytes)
    coveredBytes += length
  }
  assert(coveredBytes === imageBytes, 'the pieces are the whole image')
  await flush(fd)
}

interface Target {
  writeData(offset: number, bytes: Buffer): Promise<void>
  writeZeroes(offset: number, bytes: number): Promise<void>
}

/** All hole to begin with: zeroes, also those inside chunks, need no writing. */
async function prepareFile(fd: number, imageBytes: number): Promise<Target> {
  await truncate(fd, 0)
  await truncate(fd, imageBytes)
  return {
    writeZeroes: async () => undefined,
    writeData: async (offset, bytes) => {
      for (const { from, to } of dataRuns(bytes)) await writeFully(fd, bytes.subarray(from, to), offset + from)
    },
  }
}
function prepareDevice(fd: number, imageBytes: number): Target {
  const deviceBytes = blockDeviceBytes(fd)
  if (deviceBytes < imageBytes)
    throw new RoostError('LIMIT_EXCEEDED', 'The device is smaller than the image.', { deviceBytes, imageBytes })
  return {
    writeData: async (offset, bytes) => { await writeFully(fd, bytes, offset) },
    writeZeroes: async (offset, bytes) => {
      if (punchHole(fd, offset, bytes) || zeroRange(fd, offset, bytes)) return
      for (let at = 0; at < bytes; at += ZEROES.byteLength)
        await writeFully(fd, ZEROES.subarray(0, Math.min(ZEROES.byteLength, bytes - at)), offset + at)
    },
  }
}

async function writeFully(fd: number, bytes: Buffer, position: number): Promise<void> {
  for (let at = 0; at < bytes.byteLength;)
    at += (await writeAt(fd, bytes, at, bytes.byteLength - at, position + at)).bytesWritten
}

/** The stretches of `bytes` to write: pages of zeroes in runs of HOLE_BYTES_MIN and more are left out. */
function* dataRuns(bytes: Buffer): Generator<{ from: number; to: number }> {
  let from: number | undefined
  let to = 0
  for (let at = 0; at < bytes.byteLength; at += PAGE_BYTES) {
    const end = Math.min(bytes.byteLength, at + PAGE_BYTES)
    if (bytes.compare(ZEROES, 0, end - at, at, end) === 0) continue
    if (from !== undefined && at - to >= HOLE_BYTES_MIN) {
      yield { from, to }
      from = at
    }
    from ??= at
    to = end
  }
  if (from !== undefined) yield { from, to }
}
