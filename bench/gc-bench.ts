/** What a collection costs: `node dist/bench/gc-bench.js [--chunks 1000000] [--repack-mib 512] [--push-mib 1024] [--json]`.
 *
 *  Marking: a synthetic repository of that many chunks, whose data exists in the index only, below real nodes in real packs: marking reads nothing
 *  else. Repacking: real chunks in packs of which half is forgotten, beside a plain copy of the same packs in the same run. Pushing: four sessions
 *  alone, then beside collections without a pause that drop and repack what is forgotten meanwhile.
 */
import { createHash, randomFillSync } from 'node:crypto'
import { copyFileSync, fsyncSync, openSync, closeSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { systemClock } from '../src/core/clock.js'
import { FRAME_HEADER_BYTES, writeFrameHeader } from '../src/core/frames.js'
import { hashChunk } from '../src/core/hash.js'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, parsePackId, parseSessionId, parseSnapshotId, type ChunkKind, type PackNumber, type SessionId } from '../src/core/ids.js'
import { LIMITS, MiB } from '../src/core/limits.js'
import type { MaintenanceEvent } from '../src/core/messages.js'
import { encodeNode, NODE_TYPES } from '../src/core/node-format.js'
import { systemRandom } from '../src/core/random.js'
import { collectGarbage } from '../src/gc/collect.js'
import type { LocalRepository } from '../src/repo/local-repository.js'
import { createRepository, openRepository, type OpenRepositoryDeps } from '../src/repo/open-repository.js'
import type { RepositoryParts } from '../src/repo/repository-parts.js'
import { ThreadSealPool } from '../src/repo/seal-pool.js'
import { nodeFileEffects } from '../src/store/file-effects.js'
import { createStoreCounters, observedStore } from '../src/store/observed-store.js'
import { openStore } from '../src/store/open-store.js'

const PACK_ENTRIES = 500
const FAN_OUT = 512
const REPACK_CHUNK_BYTES = 128 * 1024
const never = new AbortController().signal
const STATISTICS = { files: 0, directories: 0, others: 0, sourceBytes: 0, bytesRead: 0, chunksTotal: 0, chunksSent: 0, bytesSent: 0, bytesOnWire: 0, errors: 0, durationMs: 0, cpuMs: 0 }

const { values: flags } = parseArgs({ options: {
  chunks: { type: 'string', default: '1000000' }, 'repack-mib': { type: 'string', default: '512' }, 'push-mib': { type: 'string', default: '1024' }, json: { type: 'boolean', default: false },
} })

class Scene {
  readonly directory = mkdtempSync(join(tmpdir(), 'roost-gc-bench-'))
  readonly counters = createStoreCounters()
  readonly pool = new ThreadSealPool(2)
  parts!: RepositoryParts
  repository!: LocalRepository
  key!: Buffer

  async open(): Promise<void> {
    const deps: OpenRepositoryDeps = { pool: this.pool, clock: systemClock, random: systemRandom, effects: nodeFileEffects, spoolBytesMax: LIMITS.spoolBytesDefault,
      commitWaitMs: 600_000, zstdLevel: 2, report: () => undefined,
      openTarget: async (url, create) => observedStore(await openStore(url, { clock: systemClock, random: systemRandom, effects: nodeFileEffects, create }), this.counters),
      collector: async function* (this: Scene, parts: RepositoryParts, ...rest: [Parameters<typeof collectGarbage>[1], AbortSignal]) {
        this.parts = parts
        yield* collectGarbage(parts, ...rest)
      }.bind(this) }
    await createRepository(this.directory, { name: 'bench' }, deps)
    this.repository = await openRepository(this.directory, deps)
    await this.repository.loadState()
    await this.collect({ dryRun: true }) // hands over the parts
  }
  async push(): Promise<SessionId> {
    const reply = await this.repository.openSession({ kind: 'push', source: 'bench', mode: 'files', parent: null }, { tokenId: 'bench' })
    this.key = Buffer.from(reply.dedupKey, 'hex')
    return parseSessionId(reply.sessionId)
  }
  async put(session: SessionId, chunks: readonly { readonly bytes: Buffer; readonly kind: ChunkKind }[]): Promise<void> {
    const total = chunks.reduce((sum, { bytes }) => sum + FRAME_HEADER_BYTES + bytes.byteLength, 0)
    const body = Buffer.from(new SharedArrayBuffer(total))
    let at = 0
    for (const { bytes, kind } of chunks) {
      writeFrameHeader(body, at, { rawBytes: bytes.byteLength, wireBytes: bytes.byteLength, kind, codec: 0 }, hashChunk(this.key, bytes, kind))
      body.set(bytes, at + FRAME_HEADER_BYTES)
      at += FRAME_HEADER_BYTES + bytes.byteLength
    }
    await this.repository.putChunks(session, { buffer: body.buffer as SharedArrayBuffer, bytes: total }, never)
  }
  async commit(session: SessionId, root: Buffer): Promise<string> {
    return (await this.repository.commit(session, { root: root.toString('hex', 0, CHUNK_ID_BYTES), host: 'h', user: 'u', paths: ['/'], tags: [], startedAtMs: 1, statistics: STATISTICS }, never)).snapshot.id
  }
  /** Nodes over these ids, level by level. @returns the root's id. */
  async putTree(session: SessionId, count: number, idOf: (n: number) => Buffer): Promise<Buffer> {
    let ids = idOf, kind: ChunkKind = CHUNK_KINDS.data
    for (let level = count; ;) {
      const parents = Math.ceil(level / FAN_OUT)
      const above = Buffer.alloc(parents * CHUNK_ID_BYTES)
      let body: { bytes: Buffer; kind: ChunkKind }[] = []
      for (let p = 0; p < parents; p++) {
        const refs = Array.from({ length: Math.min(FAN_OUT, level - p * FAN_OUT) }, (_, i) => ({ kind, id: ids(p * FAN_OUT + i) }))
        const node = encodeNode(NODE_TYPES.list, refs, Buffer.alloc(0))
        hashChunk(this.key, node, CHUNK_KINDS.node).copy(above, p * CHUNK_ID_BYTES, 0, CHUNK_ID_BYTES)
        body.push({ bytes: node, kind: CHUNK_KINDS.node })
        if (body.length * node.byteLength > 4 * MiB || p === parents - 1) {
          await this.put(session, body)
          body = []
        }
      }
      if (parents === 1) return above
      ids = (n) => above.subarray(n * CHUNK_ID_BYTES, (n + 1) * CHUNK_ID_BYTES)
      kind = CHUNK_KINDS.node
      level = parents
    }
  }
  async collect(options: Parameters<LocalRepository['collect']>[0]): Promise<Readonly<Record<string, number>>> {
    let last: MaintenanceEvent | undefined
    for await (const event of this.repository.collect(options, never)) last = event
    if (last?.type !== 'done') throw new Error('a collection ends with a report')
    return last.counts
  }
  async settled(): Promise<void> { while ((await this.repository.stats()).spoolPacks > 0) await systemClock.sleep(20) }
  async close(): Promise<void> {
    await this.repository.close()
    await this.pool.close()
    rmSync(this.directory, { recursive: true })
  }
}
const syntheticId = (n: number): Buffer => createHash('sha256').update(`chunk ${n}`).digest()

async function marking(chunks: number): Promise<Record<string, number>> {
  const scene = new Scene()
  await scene.open()
  const session = await scene.push()
  const { index } = scene.parts
  const column = (value: number): Uint32Array => new Uint32Array(PACK_ENTRIES).fill(value)
  const all = new Uint8Array(Math.ceil(PACK_ENTRIES / 8)).fill(0xff)
  for (let from = 0; from < chunks; from += PACK_ENTRIES) {
    const idProofs = Buffer.alloc(PACK_ENTRIES * ID_PROOF_BYTES)
    for (let i = 0; i < PACK_ENTRIES; i++) syntheticId(from + i).copy(idProofs, i * ID_PROOF_BYTES)
    const packId = parsePackId(createHash('sha256').update(`pack ${from}`).digest('hex'))
    await index.addPack({ packNumber: await index.reservePackNumbers(1), packId, kind: CHUNK_KINDS.data, state: 'stored', storedBytes: 60_000_000, rawBytes: PACK_ENTRIES * 131_072,
      entryCount: PACK_ENTRIES, heldBy: 1 }, { count: PACK_ENTRIES, idProofs, rawBytes: column(131_072), blockOffsets: column(4096), blockStoredBytes: column(400_000),
      offsetsInBlock: column(131_072) }, [{ sessionId: session, bitmap: all }])
  }
  await scene.commit(session, await scene.putTree(session, chunks, syntheticId))
  await scene.settled()
  globalThis.gc?.()
  const before = process.memoryUsage()
  const requestsBefore = requestsOf(scene)
  let peakBytes = 0, markedMs = 0
  const startedMs = systemClock.monotonicMs()
  for await (const event of scene.repository.collect({ dryRun: true }, never)) {
    const { heapTotal, external } = process.memoryUsage()
    peakBytes = Math.max(peakBytes, heapTotal + external - before.heapTotal - before.external)
    if (event.type === 'fate' && markedMs === 0) markedMs = systemClock.monotonicMs() - startedMs
    if (event.type === 'done') {
      const { counts } = event
      const result = { chunks, markSeconds: markedMs / 1000, chunksPerSecond: Math.round((counts['chunksReached'] ?? 0) / (markedMs / 1000)), planSeconds: (systemClock.monotonicMs() - startedMs - markedMs) / 1000,
        markBytes: counts['memoryBytes'] ?? 0, bitsPerChunk: (counts['memoryBytes'] ?? 0) * 8 / chunks, heapGrowthBytes: peakBytes, residentBytes: process.memoryUsage().rss,
        nodes: counts['nodesRead'] ?? 0, requests: requestsOf(scene) - requestsBefore }
      await scene.close()
      return result
    }
  }
  throw new Error('a collection ends with a report')
}

const requestsOf = ({ counters }: Scene): number => Object.values(counters.calls).reduce((sum, calls) => sum + calls, 0)

async function repacking(megabytes: number): Promise<Record<string, number>> {
  const scene = new Scene()
  await scene.open()
  const count = Math.ceil(megabytes * MiB / REPACK_CHUNK_BYTES)
  const session = await scene.push()
  const ids: Buffer[] = []
  for (let from = 0; from < count; from += 64) {
    const chunks = Array.from({ length: Math.min(64, count - from) }, () => {
      const bytes = Buffer.alloc(REPACK_CHUNK_BYTES)
      randomFillSync(bytes, 0, REPACK_CHUNK_BYTES / 2) // compresses to half
      return { bytes, kind: CHUNK_KINDS.data }
    })
    ids.push(...chunks.map(({ bytes, kind }) => hashChunk(scene.key, bytes, kind).subarray(0, CHUNK_ID_BYTES)))
    await scene.put(session, chunks)
  }
  const whole = await scene.commit(session, await scene.putTree(session, count, (n) => ids[n]!))
  // Every other chunk is needed still.
  const half = ids.filter((_, n) => n % 2 === 0)
  const holder = await scene.push()
  await scene.parts.index.inheritRefs(holder, Buffer.concat(half))
  await scene.commit(holder, await scene.putTree(holder, half.length, (n) => half[n]!))
  await scene.settled()
  await scene.repository.deleteSnapshot(parseSnapshotId(whole))
  const packs = join(scene.directory, 'store', 'packs')
  const files = readdirSync(packs, { recursive: true, encoding: 'utf8' }).map((name) => join(packs, name)).filter((path) => statSync(path).isFile())
  const copies = join(scene.directory, 'copies')
  mkdirSync(copies)
  const copyStartedMs = systemClock.monotonicMs()
  let copiedBytes = 0
  for (const [n, path] of files.entries()) {
    copyFileSync(path, join(copies, String(n)))
    const file = openSync(join(copies, String(n)), 'r')
    fsyncSync(file)
    closeSync(file)
    copiedBytes += statSync(path).size
  }
  const copySeconds = (systemClock.monotonicMs() - copyStartedMs) / 1000
  const requestsBefore = requestsOf(scene)
  const startedMs = systemClock.monotonicMs()
  const counts = await scene.collect({})
  const seconds = (systemClock.monotonicMs() - startedMs) / 1000
  const result = { storedBytes: copiedBytes, copySeconds, copyBytesPerSecond: Math.round(copiedBytes / copySeconds), collectSeconds: seconds, packsRepacked: counts['packsRepacked'] ?? 0,
    readBytesPerSecond: Math.round((counts['repackedBytes'] ?? 0) / seconds), ratioOfPlainCopy: (counts['repackedBytes'] ?? 0) / seconds / (copiedBytes / copySeconds),
    livePlainBytesPerSecond: Math.round((counts['copiedBytes'] ?? 0) / seconds), requests: requestsOf(scene) - requestsBefore, objectsDeleted: counts['objectsDeleted'] ?? 0 }
  await scene.close()
  return result
}

/** Bytes of chunks a second that four sessions push and commit together. */
async function pushRound(scene: Scene, megabytes: number): Promise<{ readonly bytesPerSecond: number; readonly snapshots: string[] }> {
  const perSession = Math.ceil(megabytes * MiB / REPACK_CHUNK_BYTES / 4)
  const startedMs = systemClock.monotonicMs()
  const snapshots = await Promise.all(Array.from({ length: 4 }, async () => {
    const session = await scene.push()
    const ids: Buffer[] = []
    for (let from = 0; from < perSession; from += 32) {
      const chunks = Array.from({ length: Math.min(32, perSession - from) }, () => {
        const bytes = Buffer.alloc(REPACK_CHUNK_BYTES)
        randomFillSync(bytes, 0, REPACK_CHUNK_BYTES / 2)
        return { bytes, kind: CHUNK_KINDS.data }
      })
      ids.push(...chunks.map(({ bytes, kind }) => hashChunk(scene.key, bytes, kind).subarray(0, CHUNK_ID_BYTES)))
      await scene.put(session, chunks)
    }
    return await scene.commit(session, await scene.putTree(session, ids.length, (n) => ids[n]!))
  }))
  return { bytesPerSecond: perSession * 4 * REPACK_CHUNK_BYTES / ((systemClock.monotonicMs() - startedMs) / 1000), snapshots }
}
async function pushing(megabytes: number): Promise<Record<string, number>> {
  const scene = new Scene()
  await scene.open()
  let old = (await pushRound(scene, megabytes)).snapshots // warm-up, and what is forgotten first
  const alone: number[] = [], beside: number[] = []
  let collections = 0, dropped = 0, repacked = 0
  for (let round = 0; round < 3; round++) {
    const quiet = await pushRound(scene, megabytes)
    alone.push(quiet.bytesPerSecond)
    for (const id of old) await scene.repository.deleteSnapshot(parseSnapshotId(id))
    let isOver = false
    const collecting = (async () => {
      while (!isOver) {
        const counts = await scene.collect({})
        collections++
        dropped += counts['packsDropped'] ?? 0
        repacked += counts['packsRepacked'] ?? 0
      }
    })()
    const busy = await pushRound(scene, megabytes)
    isOver = true
    beside.push(busy.bytesPerSecond)
    await collecting
    old = [...quiet.snapshots, ...busy.snapshots]
  }
  await scene.close()
  const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1]!
  return { aloneBytesPerSecond: Math.round(median(alone)), besideBytesPerSecond: Math.round(median(beside)), ratio: median(beside) / median(alone), collections, packsDropped: dropped, packsRepacked: repacked }
}

const results = { marking: await marking(Number(flags.chunks)), repacking: Number(flags['repack-mib']) > 0 ? await repacking(Number(flags['repack-mib'])) : undefined,
  pushing: Number(flags['push-mib']) > 0 ? await pushing(Number(flags['push-mib'])) : undefined }
if (flags.json) console.log(JSON.stringify(results))
else for (const [name, result] of Object.entries(results)) if (result !== undefined) {
  console.log(name)
  for (const [what, value] of Object.entries(result)) console.log(`  ${what.padEnd(26)} ${Number.isInteger(value) ? value.toLocaleString('en') : value.toFixed(3)}`)
}
