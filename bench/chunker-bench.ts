/** Cutting speed of the WebAssembly chunker against the plain TypeScript reference, and the lengths that come out.
 *  Run: node dist/bench/chunker-bench.js [directory]   With a directory: also unique bytes for several averages. */
import { lstatSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createHash, randomFillSync } from 'node:crypto'
import { openChunker } from '../client/chunker/chunker.js'
import type { Chunker, CutParameters } from '../client/chunker/cut-rule.js'
import { openReferenceChunker } from '../client/chunker/reference.js'

const KiB = 1024
const PARAMETERS: CutParameters =
  { gearSeed: '5a'.repeat(32), minBytes: 128 * KiB, averageBytes: 512 * KiB, maxBytes: 2048 * KiB }

function cutAll(chunker: Chunker, bytes: Buffer, each: (chunk: Buffer) => void): void {
  for (let at = 0; at < bytes.byteLength;) {
    const length = chunker.cut(bytes.subarray(at, at + PARAMETERS.maxBytes), bytes.byteLength - at <= PARAMETERS.maxBytes)
    each(bytes.subarray(at, at + length))
    at += length
  }
}

function measureSpeed(name: string, chunker: Chunker, bytes: Buffer): void {
  let bestSeconds = Infinity
  const lengths: number[] = []
  for (let round = 0; round < 4; round++) {
    lengths.length = 0
    const start = performance.now()
    cutAll(chunker, bytes, (chunk) => lengths.push(chunk.byteLength))
    bestSeconds = Math.min(bestSeconds, (performance.now() - start) / 1000)
  }
  const mean = bytes.byteLength / lengths.length
  const deviation = Math.sqrt(lengths.reduce((sum, length) => sum + (length - mean) ** 2, 0) / lengths.length)
  const atMaximum = lengths.filter((length) => length === PARAMETERS.maxBytes).length
  console.log(`${name.padEnd(12)} ${(bytes.byteLength / bestSeconds / 1e9).toFixed(2)} GB/s   chunks ${lengths.length}, mean ` +
    `${(mean / KiB).toFixed(0)} KiB ± ${(deviation / KiB).toFixed(0)}, at the maximum ${atMaximum}`)
}

function* filesBelow(directory: string): Generator<string> {
  for (const item of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, item.name)
    if (item.isDirectory()) yield* filesBelow(path)
    else if (item.isFile() && lstatSync(path).size < 1024 ** 3) yield path
  }
}

function measureDedup(directory: string): void {
  console.log('average     chunks  unique   total MB  unique MB  seconds')
  for (const averageKiB of [128, 256, 512, 1024]) {
    const average = averageKiB * KiB
    const chunker = openChunker({
      ...PARAMETERS, minBytes: average / 4, averageBytes: average, maxBytes: 4 * average,
    })
    const seen = new Set<string>()
    let chunks = 0, total = 0, unique = 0, seconds = 0
    for (const path of filesBelow(directory)) {
      const bytes = readFileSync(path)
      for (let at = 0; at < bytes.byteLength;) {
        const start = performance.now()
        const length = chunker.cut(bytes.subarray(at), true)
        seconds += (performance.now() - start) / 1000
        const id = createHash('sha256').update(bytes.subarray(at, at + length)).digest('base64')
        if (!seen.has(id)) { seen.add(id); unique += length }
        chunks++; total += length; at += length
      }
    }
    console.log(`${String(averageKiB).padStart(4)} KiB  ${String(chunks).padStart(8)}  ${String(seen.size).padStart(6)}  ` +
      `${(total / 1e6).toFixed(1).padStart(9)}  ${(unique / 1e6).toFixed(1).padStart(9)}  ${seconds.toFixed(2).padStart(7)}`)
  }
}

const random = randomFillSync(Buffer.alloc(256 * KiB * KiB))
measureSpeed('wasm', openChunker(PARAMETERS), random)
measureSpeed('reference', openReferenceChunker(PARAMETERS), random.subarray(0, 64 * KiB * KiB))
const directory = process.argv[2]
if (directory !== undefined) measureDedup(directory)
