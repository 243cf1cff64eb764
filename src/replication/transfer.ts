/** Moves chunks from one side to the other: requests in flight bounded by what they bring, each chunk verified by the side that keeps it.
 *
 *  Latency does not rule: several requests are under way, each for some megabytes. A chunk that arrives damaged is asked for again; it is never kept.
 *  Memory: a body for each request and each body in flight. */
import { bytesOfGroup, GROUP_CODECS, openGroup, rawBytesOf, type ChunkGroup } from '../core/chunk-groups.js'
import { Semaphore } from '../core/concurrency.js'
import { hasCode, RoostError } from '../core/errors.js'
import { FRAME_HEADER_BYTES, FRAME_VERDICTS } from '../core/frames.js'
import { CHUNK_ID_BYTES, chunkKey, chunkKeyToId, formatChunkId, type ChunkKey } from '../core/ids.js'
import { KiB, LIMITS, MiB } from '../core/limits.js'
import type { RateLimiter } from '../core/rate-limit.js'
import type { SessionId } from '../core/ids.js'
import type { ReplicationSide } from './side.js'

/** Requests of one run under way at once, over all snapshots. */
export const REQUESTS_IN_FLIGHT_MAX = 8
/** Bodies on their way to the sink at once, over all snapshots: as many as a session takes. */
export const BODIES_IN_FLIGHT_MAX = LIMITS.sessionBodiesInFlightMax
/** What one request asks for: with all of them under way, far more than a network holds. */
const REQUEST_RAW_BYTES = 6 * MiB
const REQUEST_IDS_MIN = 4
/** Groups are put on together up to this: a block of the sink's packs or two. More would be lost with a server that dies. */
const BODY_RAW_BYTES = 4 * MiB
/** Before anything is known of a repository's chunks. */
const CHUNK_BYTES_GUESS = 512 * KiB
/** Ids that wait for their request; who brings more waits. */
const WAITING_IDS_MAX = 32_768
/** Times that one chunk is asked for before its damage counts as lasting. */
const TRIES_MAX = 6

export interface TransferCounts { chunks: number; wireBytes: number; rawBytes: number; damaged: number }
export interface TransferDeps {
  readonly source: ReplicationSide
  readonly sink: ReplicationSide
  /** Opened anew when it was lost. */
  readonly sending: { readonly sessionId: SessionId; reopen(lost: SessionId): Promise<void> }
  readonly receiving: SessionId
  /** Of requests, and of bodies. */
  readonly slots: { readonly requests: Semaphore; readonly bodies: Semaphore }
  readonly limiter: RateLimiter | undefined
  readonly counts: TransferCounts
  readonly pace: Pace
  onProgress(): void
}
/** How large chunks turned out to be. */
export class Pace {
  #chunks = 0
  #bytes = 0
  note(chunks: number, bytes: number): void { this.#chunks += chunks; this.#bytes += bytes }
  get idsPerRequest(): number {
    const average = this.#chunks < 8 ? CHUNK_BYTES_GUESS : Math.max(1, this.#bytes / this.#chunks)
    return Math.min(LIMITS.readIdsMax, Math.max(REQUEST_IDS_MIN, Math.floor(REQUEST_RAW_BYTES / average)))
  }
}

export class Transfer {
  readonly #deps: TransferDeps
  readonly #signal: AbortSignal
  readonly #failing = new AbortController()
  readonly #running = new Set<Promise<void>>()
  #waiting: ChunkKey[] = []
  #failure: unknown
  /** Nothing is added any more: a small rest need not wait for company. */
  #isLast = false
  #wake: (() => void)[] = []

  constructor(deps: TransferDeps, signal: AbortSignal) {
    this.#deps = deps
    this.#signal = AbortSignal.any([signal, this.#failing.signal])
  }

  /** Resolves when there is room for more. @throws what an earlier request failed with */
  async add(keys: readonly ChunkKey[]): Promise<void> {
    for (const key of keys) this.#waiting.push(key)
    this.#begin()
    while (this.#waiting.length > WAITING_IDS_MAX && this.#failure === undefined) await new Promise<void>((resolve) => { this.#wake.push(resolve) })
    this.#throwIfFailed()
  }
  /** Resolves when everything that was added is on the other side. */
  async drain(): Promise<void> {
    this.#isLast = true
    this.#begin()
    while (this.#running.size > 0) await Promise.all(this.#running)
    this.#throwIfFailed()
  }
  /** Ends what is under way; resolves when nothing is. */
  async stop(): Promise<void> {
    this.#waiting = []
    this.#failing.abort(new DOMException('the transfer is over', 'AbortError'))
    await Promise.allSettled(this.#running)
  }
  #throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure
  }
  /** As many requests as there are ids for; a small rest waits for its company. */
  #begin(): void {
    const size = this.#deps.pace.idsPerRequest
    while (this.#failure === undefined && this.#running.size < REQUESTS_IN_FLIGHT_MAX && this.#waiting.length > 0 && (this.#isLast || this.#waiting.length >= size)) {
      const keys = this.#waiting.splice(0, size)
      const running: Promise<void> = this.#request(keys).catch((error: unknown) => {
        this.#failure ??= error
        this.#failing.abort(error)
      }).finally(() => {
        this.#running.delete(running)
        for (const wake of this.#wake.splice(0)) wake()
        this.#begin()
      })
      this.#running.add(running)
    }
  }
  async #request(keys: readonly ChunkKey[]): Promise<void> {
    await this.#deps.slots.requests.acquire(1, this.#signal)
    try {
      await moveChunks(this.#deps, keys, this.#signal)
    } finally {
      this.#deps.slots.requests.release()
    }
  }
}

/** All of these chunks, or a failure. @param onKept is told the verified bytes of what arrived together: for nodes only, since it costs the opening
 *  @throws {RoostError} CHUNK_MISSING when the source lacks one; CHUNK_CORRUPT for one that never arrives whole */
export async function moveChunks(deps: TransferDeps, keys: readonly ChunkKey[], signal: AbortSignal, onKept?: (chunks: readonly Buffer[]) => Promise<void>): Promise<void> {
  let due = new Set(keys)
  for (let attempt = 1; due.size > 0; attempt++) {
    const before = due.size
    due = await moveOnce(deps, due, signal, onKept)
    if (due.size < before) attempt = 1
    if (due.size > 0 && attempt >= TRIES_MAX) throw new RoostError('CHUNK_CORRUPT', 'A chunk arrives damaged again and again: the network, a proxy, or the memory of either server.',
      { chunk: formatChunkId(chunkKeyToId([...due][0]!)) })
  }
}
/** @returns what is still due: cut off, or damaged on the way. */
async function moveOnce(deps: TransferDeps, due: Set<ChunkKey>, signal: AbortSignal, onKept?: (chunks: readonly Buffer[]) => Promise<void>): Promise<Set<ChunkKey>> {
  const { source, sending, limiter, counts, pace, slots } = deps
  const left = new Set(due)
  const { sessionId } = sending
  let body: ChunkGroup[] = [], bodyBytes = 0, bodyFrames = 0
  /** Bodies are put on while the next ones arrive, as long as there is room for them on the way. */
  const putting: Promise<void>[] = []
  let failure: { readonly error: unknown } | undefined
  const put = async (): Promise<void> => {
    if (body.length === 0) return
    const groups = body
    body = []
    bodyBytes = bodyFrames = 0
    await slots.bodies.acquire(1, signal)
    putting.push(putGroups(deps, groups, signal, onKept).then((kept) => {
      for (const key of kept) left.delete(key)
      deps.onProgress()
    }).catch((error: unknown) => { failure ??= { error } }).finally(() => { slots.bodies.release() }))
  }
  try {
    for await (const group of source.fetch(sessionId, Buffer.concat([...due].map(chunkKeyToId)), signal)) {
      if (failure !== undefined) break
      if (group.codec === GROUP_CODECS.absent) throw new RoostError('CHUNK_MISSING', 'The source lacks a chunk that its snapshot needs; run `roost check` there.',
        { chunk: formatChunkId(group.ids.subarray(0, CHUNK_ID_BYTES)) })
      counts.wireBytes += bytesOfGroup(group)
      await limiter?.take(bytesOfGroup(group), signal)
      const rawBytes = rawBytesOf(group) + group.rawBytes.length * FRAME_HEADER_BYTES
      pace.note(group.rawBytes.length, rawBytes)
      if (bodyBytes + rawBytes > BODY_RAW_BYTES || bodyFrames + group.rawBytes.length > LIMITS.bodyFramesMax) await put()
      body.push(group)
      bodyBytes += rawBytes
      bodyFrames += group.rawBytes.length
    }
  } catch (error) {
    signal.throwIfAborted()
    if (hasCode(error, 'SESSION_LOST')) await sending.reopen(sessionId)
    else if (!isDamage(error)) throw error
  } finally {
    // What had come before it broke off counts.
    if (!signal.aborted) await put()
    await Promise.all(putting)
  }
  if (failure !== undefined) throw failure.error
  return left
}
/** What a network that changes bytes, or cuts them off, makes of a reply: worth asking again. */
export const isDamage = (error: unknown): boolean => ['BODY_TRUNCATED', 'FRAME_MALFORMED'].some((code) => error instanceof RoostError && error.code === code)

/** @returns the chunks that the sink keeps now. */
async function putGroups({ sink, receiving, counts }: TransferDeps, groups: readonly ChunkGroup[], signal: AbortSignal, onKept?: (chunks: readonly Buffer[]) => Promise<void>): Promise<ChunkKey[]> {
  const verdicts = await sink.put(receiving, groups, signal)
  const kept: ChunkKey[] = []
  const chunks: Buffer[] = []
  let at = 0
  for (const group of groups) {
    const raw = onKept === undefined ? undefined : openGroup(group)
    let offset = 0
    for (let i = 0; i < group.rawBytes.length; i++, at++) {
      const verdict = verdicts[at], rawBytes = group.rawBytes[i]!
      const key = chunkKey(group.ids, i * CHUNK_ID_BYTES)
      if (verdict === FRAME_VERDICTS.stored || verdict === FRAME_VERDICTS.duplicate) {
        kept.push(key)
        counts.chunks++
        counts.rawBytes += rawBytes
        if (raw !== undefined) chunks.push(raw.subarray(offset, offset + rawBytes))
      } else if (verdict !== FRAME_VERDICTS.retry) counts.damaged++
      offset += rawBytes
    }
  }
  await onKept?.(chunks)
  return kept
}
