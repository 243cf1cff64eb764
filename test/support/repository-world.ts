/** A real repository (file target, real spool, real formats) whose every file effect and index transaction can be cut, and
 *  which can be opened again after.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { FRAME_HEADER_BYTES, READ_FRAME_HEADER_BYTES, decodeReadFrameHeader, writeFrameHeader } from '../../src/core/frames.js'
import { hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, parseSessionId, type ChunkKind, type SessionId } from '../../src/core/ids.js'
import type { CommitRequest, CreateRepositoryRequest, OpenSessionReply, SnapshotStatistics } from '../../src/core/messages.js'
import { encodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import type { Random } from '../../src/core/random.js'
import { collectGarbage } from '../../src/gc/collect.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { createRepository, openRepository, type OpenRepositoryDeps } from '../../src/repo/open-repository.js'
import type { AcceptedFamily } from '../../src/repo/replica/family.js'
import type { RepositoryEvent } from '../../src/repo/repository-parts.js'
import type { FileEffects } from '../../src/store/file-effects.js'
import type { ObjectStore } from '../../src/store/object-store.js'
import { cutEffects, SimulatedCrash } from './cut-effects.js'
import { cutIndex } from './cut-index.js'
import { InlineSealPool } from './inline-seal-pool.js'
import { seeded } from './odd-tree.js'

/** A dead process must not wake up: no pause ever ends here, so no test waits for one. */
const frozenClock: Clock = { ...systemClock, sleep: () => new Promise(() => undefined) }

/** Names of packs, and with them the folders an upload must make, are the same in every world: so are the steps. */
function seededRandom(seed: number): Random {
  const next = seeded(seed)
  return { bytes: (count) => Buffer.from(Array.from({ length: count }, () => Math.floor(next() * 256))), fraction: next }
}

/** What a dead process left waiting never acts on the next one's files. */
function ofOneLife(effects: FileEffects, life: number, current: () => number): FileEffects {
  return new Proxy(effects, {
    get: (target, name: keyof FileEffects) => {
      if (life === current()) return target[name]
      const dead = new SimulatedCrash('the process is dead')
      return name.endsWith('Sync') ? () => { throw dead } : () => Promise.reject(dead)
    },
  })
}

const STATISTICS: SnapshotStatistics = { files: 1, directories: 1, others: 0, sourceBytes: 1, bytesRead: 1, chunksTotal: 3, chunksSent: 3, bytesSent: 1,
  bytesOnWire: 1, errors: 0, durationMs: 1, cpuMs: 1 }
export const never = new AbortController().signal

export interface Chunk { readonly bytes: Buffer; readonly kind: ChunkKind }
/** Two data chunks under one root: the smallest tree that has every kind of part. */
export interface Tree { readonly data: readonly Buffer[]; readonly root: Buffer }

export interface World {
  readonly directory: string
  readonly effects: ReturnType<typeof cutEffects>
  readonly index: ReturnType<typeof cutIndex>
  readonly events: RepositoryEvent[]
  /** Of the repository that was opened last. */
  currentIndex(): ChunkIndex
  isDead(): boolean
  create(request?: Partial<CreateRepositoryRequest>, family?: AcceptedFamily): Promise<void>
  open(clean: boolean): Promise<LocalRepository>
}
export interface WorldOptions {
  /** Default: no pause ever ends. */
  readonly clock?: Clock
  readonly commitWaitMs?: number
  readonly spoolBytesMax?: number
  readonly checkpoints?: OpenRepositoryDeps['checkpoints']
  /** LMDB, in the folder, instead of one in memory that cannot be cut. */
  readonly isIndexOnDisk?: boolean
  /** Reads that stumble change nothing: for tests that damage one thing after the other. */
  readonly isUnmended?: boolean
  /** Between the repository and its index, as it is opened. */
  readonly wrapIndex?: (index: ChunkIndex) => ChunkIndex
  /** Worlds of one seed make repositories of one id. */
  readonly seed?: number
}
export async function buildWorld(t: { after(work: () => Promise<void>): void }, wrapTarget?: (store: ObjectStore, url: string) => ObjectStore,
  options: WorldOptions = {}): Promise<World> {
  const { clock = frozenClock, commitWaitMs = 3_600_000, spoolBytesMax = 2 ** 30, seed = 2026 } = options
  const directory = await mkdtemp(join(tmpdir(), 'roost-world-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const effects = cutEffects()
  const index = cutIndex(effects)
  const events: RepositoryEvent[] = []
  const random = seededRandom(seed)
  const { openFileStore } = await import('../../src/store/file-store.js')
  let lives = 0
  let current: ChunkIndex | undefined
  const depsFor = (clean: boolean): OpenRepositoryDeps => depsOf(clean, ofOneLife(effects, ++lives, () => lives))
  const depsOf = (clean: boolean, effects: FileEffects): OpenRepositoryDeps => ({
    pool: new InlineSealPool(effects, random), clock, random, effects, spoolBytesMax, commitWaitMs, zstdLevel: 1,
    report: (_name, event) => { events.push(event) }, collector: collectGarbage,
    openTarget: async (url, create) => {
      const store = await openFileStore({ directory: url.slice('file:'.length), effects, create, clock, random })
      return wrapTarget?.(store, url) ?? store
    },
    ...(options.checkpoints === undefined ? {} : { checkpoints: options.checkpoints }),
    ...(options.isIndexOnDisk === true ? {} : { openIndex: async () => {
      current = await index.open(clean)
      return options.wrapIndex?.(current) ?? (options.isUnmended === true ? unmended(current) : current)
    } }),
  })
  return { directory, effects, index, events, currentIndex: () => current!, isDead: () => effects.isDead || index.isDead(),
    create: (request, family) => createRepository(directory, { name: 'world', ...request }, depsFor(true), family),
    open: async (clean) => {
      const repository = await openRepository(directory, depsFor(clean))
      await repository.loadState()
      return repository
    } }
}

/** Marks nothing as damaged and moves nothing. */
function unmended(index: ChunkIndex): ChunkIndex {
  const instead: Partial<ChunkIndex> = { markDamaged: () => Promise.resolve(0), evacuatePack: () => Promise.resolve('collecting') }
  return new Proxy(index, { get: (target, name: keyof ChunkIndex) => instead[name] ?? target[name] })
}

export function frameBody(dedupKey: Buffer, chunks: readonly Chunk[]): { buffer: SharedArrayBuffer; bytes: number } {
  const bytes = chunks.reduce((sum, chunk) => sum + FRAME_HEADER_BYTES + chunk.bytes.byteLength, 0)
  const body = Buffer.from(new SharedArrayBuffer(bytes))
  let at = 0
  for (const { bytes: raw, kind } of chunks) {
    writeFrameHeader(body, at, { rawBytes: raw.byteLength, wireBytes: raw.byteLength, kind, codec: 0 }, hashChunk(dedupKey, raw, kind).subarray(0, 32))
    body.set(raw, at + FRAME_HEADER_BYTES)
    at += FRAME_HEADER_BYTES + raw.byteLength
  }
  return { buffer: body.buffer as SharedArrayBuffer, bytes }
}
export const dedupKeyOf = (reply: OpenSessionReply): Buffer => Buffer.from(reply.dedupKey, 'hex')

export function buildTree(dedupKey: Buffer, data: readonly Buffer[]): Tree {
  const refs = data.map((bytes) => ({ kind: CHUNK_KINDS.data, id: hashChunk(dedupKey, bytes, CHUNK_KINDS.data).subarray(0, 32) }))
  return { data, root: encodeNode(NODE_TYPES.directory, refs, Buffer.from('body')) }
}
export const chunksOf = (tree: Tree): Chunk[] =>
  [...tree.data.map((bytes) => ({ bytes, kind: CHUNK_KINDS.data })), { bytes: tree.root, kind: CHUNK_KINDS.node }]
export const commitRequest = (dedupKey: Buffer, tree: Tree): CommitRequest => ({ root: hashChunk(dedupKey, tree.root, CHUNK_KINDS.node).toString('hex', 0, 32), host: 'h', user: 'u',
  paths: ['/x'], tags: [], startedAtMs: 1, statistics: STATISTICS })

export async function openPush(repository: LocalRepository, source = 's'): Promise<{ session: SessionId; key: Buffer; reply: OpenSessionReply }> {
  const reply = await repository.openSession({ kind: 'push', source, mode: 'files', parent: 'latest' }, { tokenId: 't' })
  return { session: parseSessionId(reply.sessionId), key: dedupKeyOf(reply), reply }
}
/** One whole push; the id of its snapshot. */
export async function pushTree(repository: LocalRepository, data: readonly Buffer[]): Promise<string> {
  const { session, key } = await openPush(repository)
  const tree = buildTree(key, data)
  await repository.putChunks(session, frameBody(key, chunksOf(tree)), never)
  return (await repository.commit(session, commitRequest(key, tree), never)).snapshot.id
}
/** Status and bytes by place of request. */
export async function readIds(repository: LocalRepository, session: SessionId, ids: Buffer): Promise<{ status: number; bytes: Buffer }[]> {
  const found: { status: number; bytes: Buffer }[] = []
  for await (const part of repository.readChunks(session, ids, never))
    for (let at = 0; at < part.byteLength;) {
      const head = decodeReadFrameHeader(part.subarray(at, at + READ_FRAME_HEADER_BYTES))
      const bytes = part.subarray(at + READ_FRAME_HEADER_BYTES, at + READ_FRAME_HEADER_BYTES + head.wireBytes)
      if (head.index !== 0xffff_ffff) found[head.index] = { status: head.status, bytes: Buffer.from(bytes) }
      at += READ_FRAME_HEADER_BYTES + head.wireBytes
    }
  return found
}
/** Restores a snapshot that pushTree made: its data chunks in order. */
export async function restoreTree(repository: LocalRepository, snapshot: string): Promise<Buffer[]> {
  const reply = await repository.openSession({ kind: 'read', snapshot }, { tokenId: 't' })
  const session = parseSessionId(reply.sessionId)
  const record = JSON.parse(Buffer.from(reply.snapshot!.record, 'base64').toString('utf8')) as { root: string }
  const [root] = await readIds(repository, session, Buffer.from(record.root, 'hex'))
  const { decodeNode } = await import('../../src/core/node-format.js')
  const chunks = await readIds(repository, session, decodeNode(root!.bytes).refs.ids())
  await repository.closeSession(session)
  return chunks.map((chunk) => chunk.bytes)
}
