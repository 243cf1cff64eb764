/** How fast the LMDB index takes packs in and answers: `node dist/bench/index-bench.js [--chunks 1000000] [--json]`.
 *
 *  Ids are keyed by a counter through SHA-256, so the key order is random as with real chunks while no list of ids is
 *  held: memory stays flat however many chunks are asked for.
 */
import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { systemClock } from '../src/core/clock.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, parsePackId, parseSessionId, type PackNumber } from '../src/core/ids.js'
import type { ChunkIndex, PackEntries } from '../src/index/chunk-index.js'
import { openLmdbIndex } from '../src/index/lmdb-index.js'

const PACK_ENTRIES = 1000
const BATCH_IDS = 10_000
const ROUNDS = 20
const SESSION = parseSessionId('ab'.repeat(16))

const { values: flags } = parseArgs({ options: {
  chunks: { type: 'string', default: '1000000' }, json: { type: 'boolean', default: false }, directory: { type: 'string' },
} })

/** 48 bytes for chunk number n: the SHA-256 of n, and half of it again as the proof. */
function writeIdProof(target: Buffer, at: number, n: number): void {
  const id = createHash('sha256').update(String(n)).digest()
  id.copy(target, at)
  id.copy(target, at + CHUNK_ID_BYTES, 0, ID_PROOF_BYTES - CHUNK_ID_BYTES)
}
function packedIdProofs(count: number, numberOf: (i: number) => number): Buffer {
  const packed = Buffer.allocUnsafe(count * ID_PROOF_BYTES)
  for (let i = 0; i < count; i++) writeIdProof(packed, i * ID_PROOF_BYTES, numberOf(i))
  return packed
}
function idsOf(idProofs: Buffer): Buffer {
  const ids = Buffer.allocUnsafe((idProofs.length / ID_PROOF_BYTES) * CHUNK_ID_BYTES)
  for (let i = 0; i * ID_PROOF_BYTES < idProofs.length; i++)
    idProofs.copy(ids, i * CHUNK_ID_BYTES, i * ID_PROOF_BYTES, i * ID_PROOF_BYTES + CHUNK_ID_BYTES)
  return ids
}
function entriesFrom(first: number): PackEntries {
  const column = (value: number): Uint32Array => new Uint32Array(PACK_ENTRIES).fill(value)
  return { count: PACK_ENTRIES, idProofs: packedIdProofs(PACK_ENTRIES, (i) => first + i), rawBytes: column(65_536),
    blockOffsets: column(4096), blockStoredBytes: column(400_000), offsetsInBlock: column(131_072) }
}

/** Milliseconds of index work only; making the ids is not timed. */
class Stopwatch {
  totalMs = 0
  readonly eachMs: number[] = []
  async time<T>(work: () => Promise<T>): Promise<T> {
    const from = systemClock.monotonicMs()
    const result = await work()
    const tookMs = systemClock.monotonicMs() - from
    this.totalMs += tookMs
    this.eachMs.push(tookMs)
    return result
  }
  get medianMs(): number { return [...this.eachMs].sort((a, b) => a - b)[this.eachMs.length >>> 1] ?? 0 }
}

async function insert(index: ChunkIndex, chunks: number): Promise<Stopwatch> {
  const watch = new Stopwatch()
  const packs = Math.ceil(chunks / PACK_ENTRIES)
  const first = await index.reservePackNumbers(packs)
  for (let p = 0; p < packs; p++) {
    const entries = entriesFrom(p * PACK_ENTRIES)
    const packId = parsePackId(createHash('sha256').update(`pack ${p}`).digest('hex'))
    await watch.time(() => index.addPack({ packNumber: (first + p) as PackNumber, packId, kind: CHUNK_KINDS.data,
      state: 'spooled', storedBytes: 40_000_000, rawBytes: 65_536_000, entryCount: PACK_ENTRIES, heldBy: 0 }, entries, []))
  }
  return watch
}
async function timeBatches(makeBatch: (round: number) => Buffer, run: (batch: Buffer) => Promise<unknown>): Promise<Stopwatch> {
  const watch = new Stopwatch()
  for (let round = 0; round < ROUNDS; round++) {
    const batch = makeBatch(round)
    await watch.time(() => run(batch))
  }
  return watch
}
function bytesOnDisk(directory: string): number {
  return readdirSync(directory).filter((name) => name === 'data.mdb')
    .reduce((total, name) => total + statSync(path.join(directory, name)).blocks * 512, 0)
}
/** Deterministic scatter over [0, chunks). */
const scattered = (round: number, i: number, chunks: number): number => (round * 7_919_993 + i * 104_729) % chunks

async function main(): Promise<void> {
  const chunks = Math.max(Number(flags.chunks), BATCH_IDS)
  const directory = mkdtempSync(path.join(flags.directory ?? tmpdir(), 'roost-index-bench-'))
  try {
    const index = await openLmdbIndex({ directory, identity: { repositoryId: 'ab'.repeat(16), formatVersion: 1 } })
    const inserts = await insert(index, chunks)
    const present = (round: number): Buffer => packedIdProofs(BATCH_IDS, (i) => scattered(round, i, chunks))
    const absent = (round: number): Buffer => packedIdProofs(BATCH_IDS, (i) => chunks + 1_000_000 + round * BATCH_IDS + i)
    const consecutive = (round: number): Buffer => packedIdProofs(BATCH_IDS, (i) => (round * BATCH_IDS + i) % chunks)
    const locate = await timeBatches((round) => idsOf(present(round)), (ids) => index.locate(ids))
    await index.openSession({ sessionId: SESSION, kind: 'push', source: 'bench', mode: 'files', snapshot: null,
      tokenId: 'bench', openedAtMs: 0, lastUsedAtMs: 0 })
    const pinAbsent = await timeBatches(absent, (ids) => index.pinPresent(SESSION, ids))
    const pinConsecutive = await timeBatches(consecutive, (ids) => index.pinPresent(SESSION, ids))
    const pinScattered = await timeBatches(present, (ids) => index.pinPresent(SESSION, ids))
    const pinAgain = await timeBatches(present, (ids) => index.pinPresent(SESSION, ids))
    const rssMiB = process.memoryUsage().rss / 2 ** 20
    await index.close()
    const results = {
      chunks, insertsPerSecond: Math.round((inserts.eachMs.length * PACK_ENTRIES * 1000) / inserts.totalMs),
      addPackMsMedian: round2(inserts.medianMs),
      addPackMsLast100: round2(inserts.eachMs.slice(-100).reduce((a, b) => a + b, 0) / 100),
      locatesPerSecond: Math.round((ROUNDS * BATCH_IDS * 1000) / locate.totalMs), locate10kMs: round2(locate.medianMs),
      pinAbsent10kMs: round2(pinAbsent.medianMs), pinConsecutive10kMs: round2(pinConsecutive.medianMs),
      pinScattered10kMs: round2(pinScattered.medianMs), pinAgain10kMs: round2(pinAgain.medianMs),
      diskBytesPerChunk: round2(bytesOnDisk(directory) / chunks), rssMiB: Math.round(rssMiB),
      node: process.version,
    }
    process.stdout.write(flags.json ? `${JSON.stringify(results)}\n`
      : Object.entries(results).map(([name, value]) => `${name.padEnd(22)} ${value}\n`).join(''))
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}
const round2 = (value: number): number => Math.round(value * 100) / 100

await main()
