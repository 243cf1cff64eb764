/** Which chunk size for disk images: an ext4 image of a directory and its next-day version (files edited, added, deleted),
 *  cut at each size; stored bytes are those of 1 MiB blocks of new chunks under zstd, plus the tree's nodes.
 *  Run: node dist/bench/image-chunk-size.js DIRECTORY [MEGABYTES]   Needs mkfs.ext4 and debugfs, not root; removes its images.
 */
import { execFileSync } from 'node:child_process'
import {
  appendFileSync, closeSync, constants, copyFileSync, mkdtempSync, openSync, readdirSync, readSync, rmSync, statSync, truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { seekData, seekHole } from '../client/native/posix.js'
import { hashChunk } from '../src/core/hash.js'
import { CHUNK_KINDS, chunkKey, type ChunkKey } from '../src/core/ids.js'
import { zstdEncoder } from '../src/core/zstd.js'

const KiB = 1024
const MiB = 1024 * KiB
const SIZES = [64 * KiB, 128 * KiB, 256 * KiB, 512 * KiB, 1 * MiB, 4 * MiB]
const KEY = Buffer.alloc(32, 1)
/** Bytes of tree a chunk: one reference, and its share of a leaf. */
const NODE_BYTES_PER_CHUNK = 33.2
/** Every so many files, one is deleted, the next rewritten with an appendix, the next copied to a new name. */
const EDIT_EVERY_FILES = 200

function makeImages(source: string, megabytes: number, directory: string): { day1: string; day2: string } {
  const day1 = join(directory, 'day1.img')
  const day2 = join(directory, 'day2.img')
  writeFileSync(day1, '')
  truncateSync(day1, megabytes * MiB)
  execFileSync('mkfs.ext4', ['-q', '-F', '-d', source, day1], { stdio: 'ignore' })
  copyFileSync(day1, day2, constants.COPYFILE_FICLONE)
  const files = [...filesBelow(source)]
  const commands: string[] = []
  files.forEach((path, i) => {
    const name = relative(source, path)
    const turn = i % EDIT_EVERY_FILES
    if (/["\s]/.test(name) || turn > 2) return // debugfs has no quoting for those
    if (turn <= 1) commands.push(`rm "${name}"`)
    if (turn >= 1) commands.push(`write "${editedCopy(path, join(directory, `edit${i}`))}" "${name}${turn === 2 ? '.new' : ''}"`)
  })
  const script = join(directory, 'commands')
  writeFileSync(script, commands.join('\n'))
  execFileSync('debugfs', ['-w', '-f', script, day2], { stdio: 'ignore' })
  console.log(`${files.length} files; ${commands.length} edits`)
  return { day1, day2 }
}
function* filesBelow(directory: string): Generator<string> {
  for (const item of readdirSync(directory, { withFileTypes: true })) {
    if (item.isDirectory()) yield* filesBelow(join(directory, item.name))
    else if (item.isFile()) yield join(directory, item.name)
  }
}
function editedCopy(path: string, to: string): string {
  copyFileSync(path, to)
  appendFileSync(to, 'a line more, as of the next day\n')
  return to
}

interface Measured { chunks: number; newChunks: number; newBytes: number; stored1: number; stored2: number; packSeconds: number }

/** Stores what `known` lacks, adding to it. */
function store(path: string, chunkBytes: number, known: Set<ChunkKey>): Measured {
  const encoders = [zstdEncoder(1), zstdEncoder(2)] as const
  const result: Measured = { chunks: 0, newChunks: 0, newBytes: 0, stored1: 0, stored2: 0, packSeconds: 0 }
  const block = Buffer.alloc(8 * MiB)
  let inBlock = 0
  const flush = (): void => {
    if (inBlock === 0) return
    const start = performance.now()
    result.stored1 += encoders[0].encode(block.subarray(0, inBlock)).byteLength
    result.packSeconds += (performance.now() - start) / 1000
    result.stored2 += encoders[1].encode(block.subarray(0, inBlock)).byteLength
    inBlock = 0
  }
  const zeroes = Buffer.alloc(chunkBytes)
  const chunk = Buffer.alloc(chunkBytes)
  const fd = openSync(path, 'r')
  const imageBytes = statSync(path).size
  for (let slot = 0; slot * chunkBytes < imageBytes; slot++) {
    const data = seekData(fd, slot * chunkBytes)
    if (data === undefined) break
    slot = Math.floor(data / chunkBytes)
    const end = Math.ceil((seekHole(fd, data) ?? imageBytes) / chunkBytes)
    for (; slot < end; slot++) {
      const bytes = chunk.subarray(0, readSync(fd, chunk, 0, chunkBytes, slot * chunkBytes))
      if (bytes.equals(zeroes)) continue
      result.chunks++
      const key = chunkKey(hashChunk(KEY, bytes, CHUNK_KINDS.data))
      if (known.has(key)) continue
      known.add(key)
      result.newChunks++
      result.newBytes += bytes.byteLength
      if (inBlock + bytes.byteLength > Math.max(MiB, chunkBytes)) flush()
      bytes.copy(block, inBlock)
      inBlock += bytes.byteLength
    }
    slot--
  }
  flush()
  closeSync(fd)
  return result
}

const [source, megabytes] = [process.argv[2], Number(process.argv[3] ?? 3072)]
if (source === undefined) throw new Error('usage: image-chunk-size DIRECTORY [MEGABYTES]')
const directory = mkdtempSync(join(tmpdir(), 'roost-bench-'))
try {
  const { day1, day2 } = makeImages(source, megabytes, directory)
  const mb = (bytes: number): string => (bytes / 1e6).toFixed(1).padStart(8)
  console.log('chunk  | day 1: chunks   unique     raw MB   zstd-1   zstd-2 | day 2: chunks new   raw MB   zstd-1   nodes | zstd-1 s')
  for (const chunkBytes of SIZES) {
    const known = new Set<ChunkKey>()
    const first = store(day1, chunkBytes, known)
    const second = store(day2, chunkBytes, known)
    const cells = [String(first.chunks).padStart(13), String(first.newChunks).padStart(8)]
    console.log(`${String(chunkBytes / KiB).padStart(4)} K | ${cells.join(' ')}   ` +
      `${mb(first.newBytes)} ${mb(first.stored1)} ${mb(first.stored2)} | ${String(second.newChunks).padStart(17)} ${mb(second.newBytes)} ` +
      `${mb(second.stored1)} ${mb(first.chunks * NODE_BYTES_PER_CHUNK)} | ${first.packSeconds.toFixed(2).padStart(6)}`)
  }
} finally {
  rmSync(directory, { recursive: true, force: true })
}
