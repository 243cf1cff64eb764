/** The server's work on a body, part by part, on one thread: hashing, compressing in blocks, sealing, and all of it as a pack is written; then opening.
 *  Run: node dist/bench/pack-bench.js [directory of real files]   Without one: this project's node_modules. */
import { lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { hashChunk } from '../src/core/hash.js'
import { CHUNK_KINDS, packNumber, parseRepositoryId } from '../src/core/ids.js'
import { LIMITS, MiB } from '../src/core/limits.js'
import { systemRandom } from '../src/core/random.js'
import { seal, SEAL_NONCE_BYTES } from '../src/core/seal.js'
import { zstdDecode, zstdEncoder } from '../src/core/zstd.js'
import { openBlock, packSecret } from '../src/repo/pack-format.js'
import { PackWriter } from '../src/repo/pack-writer.js'
import { nodeFileEffects } from '../src/store/file-effects.js'

const SAMPLE_BYTES = 192 * MiB
const CHUNK_BYTES = 128 * 1024
const KEY = Buffer.alloc(32, 7)

function sampleOf(directory: string): Buffer[] {
  const chunks: Buffer[] = []
  let total = 0
  const visit = (path: string): void => {
    for (const name of readdirSync(path)) {
      if (total >= SAMPLE_BYTES) return
      const file = join(path, name), facts = lstatSync(file)
      if (facts.isDirectory()) visit(file)
      else if (facts.isFile() && facts.size > 0) {
        const bytes = readFileSync(file)
        total += bytes.byteLength
        for (let at = 0; at < bytes.byteLength; at += CHUNK_BYTES) chunks.push(bytes.subarray(at, at + CHUNK_BYTES))
      }
    }
  }
  visit(directory)
  return chunks
}
function blocksOf(chunks: readonly Buffer[]): Buffer[][] {
  const blocks: Buffer[][] = []
  let block: Buffer[] = [], bytes = 0
  for (const chunk of chunks) {
    block.push(chunk)
    bytes += chunk.byteLength
    if (bytes < LIMITS.blockRawBytesTarget) continue
    blocks.push(block)
    block = []
    bytes = 0
  }
  if (block.length > 0) blocks.push(block)
  return blocks
}
/** Best of three, in MiB of plaintext a CPU second. */
async function measure(name: string, bytes: number, work: () => void | Promise<void>): Promise<void> {
  let best = Infinity
  for (let round = 0; round < 3; round++) {
    const before = process.cpuUsage()
    await work()
    const { user, system } = process.cpuUsage(before)
    best = Math.min(best, (user + system) / 1e6)
  }
  console.log(`${name.padEnd(36)} ${(bytes / MiB / best).toFixed(0).padStart(6)} MiB/s`)
}

const chunks = sampleOf(process.argv[2] ?? 'node_modules')
const blocks = blocksOf(chunks)
const joined = blocks.map((block) => Buffer.concat(block))
const bytes = joined.reduce((sum, block) => sum + block.byteLength, 0)
console.log(`${(bytes / MiB).toFixed(0)} MiB in ${chunks.length} chunks, ${blocks.length} blocks`)

await measure('chunk ids (keyed BLAKE3, 48 bytes)', bytes, () => { for (const chunk of chunks) hashChunk(KEY, chunk, CHUNK_KINDS.data) })
for (const level of [1, 2, 3]) {
  const encoder = zstdEncoder(level)
  const stored = joined.reduce((sum, block) => sum + encoder.encode(block).byteLength, 0)
  await measure(`zstd ${level} in blocks, ${(bytes / stored).toFixed(2)} : 1`, bytes, () => { for (const block of joined) encoder.encode(block) })
}
{
  const encoder = zstdEncoder(2)
  const stored = chunks.reduce((sum, chunk) => sum + encoder.encode(chunk).byteLength, 0)
  await measure(`zstd 2 chunk by chunk, ${(bytes / stored).toFixed(2)} : 1`, bytes, () => { for (const chunk of chunks) encoder.encode(chunk) })
  const compressed = joined.map((block) => Buffer.from(encoder.encode(block)))
  await measure('zstd decoding', bytes, () => { compressed.forEach((frame, i) => { zstdDecode(frame, joined[i]!.byteLength) }) })
}
await measure('AES-256-GCM', bytes, () => { for (const block of joined) seal(KEY, Buffer.alloc(SEAL_NONCE_BYTES), KEY, [block]) })

const directory = mkdtempSync(join(tmpdir(), 'roost-pack-bench-'))
try {
  const repositoryId = parseRepositoryId('00'.repeat(16))
  const ids = blocks.map((block) => block.map((chunk) => hashChunk(KEY, chunk, CHUNK_KINDS.data)))
  let file = '', sealedBlocks: { offset: number; bytes: number }[] = []
  await measure('pack written (group, zstd, seal, file)', bytes, async () => {
    for (let from = 0; from < blocks.length; from += 32) { // about dataPackBytesTarget of plaintext
      const writer = new PackWriter({ directory, number: packNumber(1), kind: CHUNK_KINDS.data, repositoryId, packKey: KEY, effects: nodeFileEffects,
        random: systemRandom, encoder: zstdEncoder(2) })
      blocks.slice(from, from + 32).forEach((block, i) => { writer.appendBlock(block, ids[from + i]!) })
      const pack = await writer.finish()
      if (from !== 0) continue
      file = pack.file
      const { blockOffsets, blockStoredBytes, count } = pack.entries
      sealedBlocks = [...new Map(Array.from({ length: count }, (_, i) => [blockOffsets[i]!, { offset: blockOffsets[i]!, bytes: blockStoredBytes[i]! }])).values()]
    }
  })
  const pack = readFileSync(file)
  const secret = packSecret(KEY, pack.subarray(0, 64))
  const rawBytes = sealedBlocks.reduce((sum, block) => sum + openBlock(secret, block.offset, pack.subarray(block.offset, block.offset + block.bytes)).byteLength, 0)
  await measure('pack opened (unseal, decode)', rawBytes, () => {
    for (const block of sealedBlocks) openBlock(secret, block.offset, pack.subarray(block.offset, block.offset + block.bytes))
  })
} finally { rmSync(directory, { recursive: true, force: true }) }
