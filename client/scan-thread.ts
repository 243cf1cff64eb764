/** The scanning side of a push: runs a source against an arena sink and talks to the main thread over a port.
 *
 *  The same code runs in a worker thread (scanner-worker.ts) and, for tests, in the main thread.
 *  Sources work synchronously between awaits; messages are heard when they wait for an arena, for nodes, or turn the loop.
 */
import type { MessagePort } from 'node:worker_threads'
import { systemClock } from '../src/core/clock.js'
import { CHUNK_ID_BYTES, formatChunkId, parseChunkId, type ChunkId } from '../src/core/ids.js'
import { rateLimiter } from '../src/core/rate-limit.js'
import { flattenError, restoreError } from '../src/protocol/client-errors.js'
import { sharedCounters, type FromScanner, type ScanJob, type ToScanner } from './scan-protocol.js'
import { scanSource } from './scan-source.js'
import { Arena, type ArenaUse } from './upload/arena.js'
import { ArenaChunkSink, type ArenaSupply } from './upload/arena-chunk-sink.js'
import type { NodeSource, ScanContext, SourceProblem } from './upload/chunk-sink.js'

/** Every so many names, the main thread hears one, for its progress line. */
const AT_EVERY = 64

export async function runScan(job: ScanJob, port: MessagePort): Promise<void> {
  const link = new MainLink(port, job.arenasMax)
  const sink = new ArenaChunkSink(Buffer.from(job.dedupKey, 'hex'), link)
  let names = 0
  const context: ScanContext = {
    sink,
    parent: job.parent === undefined ? undefined
      : { root: parseChunkId(job.parent.root), nodes: link, startedAtMs: job.parent.startedAtMs },
    counters: sharedCounters(job.counters),
    report: (problem: SourceProblem) => { link.post({ type: 'problem', problem }) },
    note: (text) => { link.post({ type: 'note', text }) },
    at: (path) => { if (names++ % AT_EVERY === 0) link.post({ type: 'at', path }) },
    signal: link.signal,
    ...(job.limitReadBytesPerSecond === undefined ? {} : { limitRead: rateLimiter(job.limitReadBytesPerSecond, systemClock) }),
  }
  try {
    const { root, description } = await scanSource(job.source, context, job.chunker)
    sink.finish()
    link.post({ type: 'done', root: formatChunkId(root), description, chunks: sink.chunks })
  } catch (error) {
    link.post({ type: 'failed', error: flattenError(error) })
  }
}

interface Waiter<T> { resolve(value: T): void; reject(error: unknown): void }

/** The main thread as the source sees it: a supply of arenas, and nodes of the parent. */
class MainLink implements ArenaSupply, NodeSource {
  readonly #port: MessagePort
  readonly #free: Record<ArenaUse, Arena[]> = { data: [], nodes: [] }
  readonly #allocatable: Record<ArenaUse, number>
  readonly #waiting: Record<ArenaUse, Waiter<Arena>[]> = { data: [], nodes: [] }
  readonly #reads = new Map<number, Waiter<Buffer[]>>()
  /** Reads asked for in this turn: they travel together. */
  #gathered: { ids: ChunkId[]; waiter: Waiter<Buffer[]> }[] = []
  #lastRequest = 0
  readonly #abort = new AbortController()
  constructor(port: MessagePort, arenasMax: Readonly<Record<ArenaUse, number>>) {
    this.#port = port
    this.#allocatable = { ...arenasMax }
    port.on('message', (message: ToScanner) => { this.#hear(message) })
  }
  get signal(): AbortSignal { return this.#abort.signal }
  post(message: FromScanner, transfer: readonly ArrayBuffer[] = []): void { this.#port.postMessage(message, transfer) }

  tryTake(use: ArenaUse): Arena | undefined {
    const arena = this.#free[use].pop()
    if (arena !== undefined || this.#allocatable[use] === 0) return arena
    this.#allocatable[use]--
    return Arena.allocate(use)
  }
  async take(use: ArenaUse): Promise<Arena> {
    this.signal.throwIfAborted()
    const arena = this.tryTake(use)
    return arena ?? await new Promise<Arena>((resolve, reject) => this.#waiting[use].push({ resolve, reject }))
  }
  send(arena: Arena): void {
    this.post({ type: 'arena', use: arena.use, buffer: arena.buffer, count: arena.count })
  }

  async readNodes(ids: readonly ChunkId[]): Promise<Buffer[]> {
    this.signal.throwIfAborted()
    if (ids.length === 0) return []
    return await new Promise((resolve, reject) => {
      this.#gathered.push({ ids: [...ids], waiter: { resolve, reject } })
      if (this.#gathered.length === 1) queueMicrotask(() => { this.#sendReads() })
    })
  }
  #sendReads(): void {
    const gathered = this.#gathered
    this.#gathered = []
    const all = gathered.flatMap(({ ids }) => ids)
    const ids = new ArrayBuffer(all.length * CHUNK_ID_BYTES)
    const packed = Buffer.from(ids)
    all.forEach((id, i) => { packed.set(id, i * CHUNK_ID_BYTES) })
    const request = ++this.#lastRequest
    this.#reads.set(request, {
      resolve: (bodies) => {
        let at = 0
        for (const { ids: part, waiter } of gathered) waiter.resolve(bodies.slice(at, at += part.length))
      },
      reject: (error) => { for (const { waiter } of gathered) waiter.reject(error) },
    })
    this.post({ type: 'read', request, ids }, [ids])
  }

  #hear(message: ToScanner): void {
    switch (message.type) {
      case 'arena': {
        const arena = new Arena(message.use, message.buffer)
        const waiter = this.#waiting[message.use].shift()
        if (waiter !== undefined) waiter.resolve(arena)
        else this.#free[message.use].push(arena)
        break
      }
      case 'nodes': {
        let at = 0
        this.#settle(message.request)?.resolve(message.lengths.map((length) => Buffer.from(message.bytes, (at += length) - length, length)))
        break
      }
      case 'read-failed': this.#settle(message.request)?.reject(restoreError(message.error)); break
      case 'abort': this.#end(restoreError(message.error)); break
    }
  }
  #settle(request: number): Waiter<Buffer[]> | undefined {
    const waiter = this.#reads.get(request)
    this.#reads.delete(request)
    return waiter
  }
  #end(error: Error): void {
    this.#abort.abort(error)
    for (const waiter of [...this.#waiting.data, ...this.#waiting.nodes, ...this.#reads.values()]) waiter.reject(error)
    for (const { waiter } of this.#gathered) waiter.reject(error)
    this.#waiting.data = []
    this.#waiting.nodes = []
    this.#reads.clear()
    this.#gathered = []
  }
}
