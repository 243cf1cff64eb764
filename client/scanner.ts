/** The main thread's end of a scan: starts it, hands its arenas on, reads nodes of the parent for it, stops it. */
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads'
import { RoostError } from '../src/core/errors.js'
import { hashChunk, idOf } from '../src/core/hash.js'
import { asChunkId, CHUNK_ID_BYTES, CHUNK_KINDS, parseChunkId, type SessionId } from '../src/core/ids.js'
import { ClientError, flattenError, restoreError } from '../src/protocol/client-errors.js'
import type { RepositoryClient } from './repository-client.js'
import { newSharedCounters, sharedCounters, type FromScanner, type ScanJob, type ToScanner } from './scan-protocol.js'
import { runScan } from './scan-thread.js'
import { Arena } from './upload/arena.js'
import type { ScanCounters, ScanResult, SourceProblem } from './upload/chunk-sink.js'

export interface ScannerDeps {
  /** Resolves when the arena may be filled anew. */
  onArena(arena: Arena): Promise<void>
  /** Bodies in order; `ids` are packed. */
  readNodes(ids: Buffer): Promise<Buffer[]>
  onProblem(problem: SourceProblem): void
  onNote(text: string): void
  onAt(path: string): void
}
export interface Scanner {
  /** Live: read it whenever progress is shown. */
  readonly counters: ScanCounters
  /** Resolves when the source is read to its end and every arena is done with. Any failure stops the scan. */
  readonly done: Promise<ScanResult & { readonly chunks: number }>
  /** Ends the scan now; `done` rejects with `reason` if it has not settled. */
  stop(reason: Error): Promise<void>
}

/** `thread`: in a worker (production); `inline`: in this thread (tests that want its coverage and its errors' stacks). */
export function startScanner(job: Omit<ScanJob, 'counters'>, deps: ScannerDeps, where: 'thread' | 'inline'): Scanner {
  const memory = newSharedCounters()
  const whole: ScanJob = { ...job, counters: memory }
  return new RunningScanner(sharedCounters(memory), deps, where === 'thread' ? inThread(whole) : inline(whole))
}

interface ScannerLink {
  readonly port: Pick<MessagePort, 'postMessage'>
  listen(onMessage: (message: FromScanner) => void, onFailure: (error: Error) => void): void
  end(): Promise<void>
}
/** V8 lets a heap grow in proportion to these before it collects: measured 25 MB less resident than its defaults, at no cost in
 *  time. The second is also a ceiling, for directories with a million names and more. */
const HEAP = { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 512 }
function inThread(job: ScanJob): ScannerLink {
  const worker = new Worker(new URL('./scanner-worker.js', import.meta.url), { workerData: job, name: 'scanner', resourceLimits: HEAP })
  return {
    port: worker,
    listen(onMessage, onFailure) {
      worker.on('message', onMessage)
      worker.on('error', onFailure)
      worker.on('exit', (code) => { onFailure(new ClientError('SCANNER_FAILED', `The scanning thread ended with code ${code}.`)) })
    },
    end: async () => { await worker.terminate() },
  }
}
function inline(job: ScanJob): ScannerLink {
  const { port1, port2 } = new MessageChannel()
  return {
    port: port1,
    listen(onMessage, onFailure) {
      port1.on('message', onMessage)
      runScan(job, port2).catch(onFailure)
    },
    end: () => {
      port1.close()
      port2.close()
      return Promise.resolve()
    },
  }
}

class RunningScanner implements Scanner {
  readonly done: Promise<ScanResult & { readonly chunks: number }>
  #resolve!: (result: ScanResult & { readonly chunks: number }) => void
  #reject!: (error: Error) => void
  #isOver = false
  #arenasOut = 0
  #result: (ScanResult & { readonly chunks: number }) | undefined
  constructor(readonly counters: ScanCounters, readonly deps: ScannerDeps, readonly link: ScannerLink) {
    this.done = new Promise((resolve, reject) => { this.#resolve = resolve; this.#reject = reject })
    this.done.catch(() => undefined) // the caller awaits it too; a stop before that must not count as unhandled
    link.listen((message) => { this.#hear(message) }, (error) => {
      // A scan that told its result ends its thread while its last arenas are still being sent.
      if (this.#result === undefined) void this.stop(error)
    })
  }
  async stop(reason: Error): Promise<void> {
    if (this.#isOver) return
    this.#isOver = true
    this.#reject(reason)
    this.#post({ type: 'abort', error: flattenError(reason) })
    await this.link.end()
  }
  #post(message: ToScanner, transfer: readonly ArrayBuffer[] = []): void { this.link.port.postMessage(message, transfer) }

  #hear(message: FromScanner): void {
    if (this.#isOver) return
    switch (message.type) {
      case 'arena': this.#guard(this.#take(new Arena(message.use, message.buffer, message.count))); break
      case 'read': this.#guard(this.#read(message.request, Buffer.from(message.ids))); break
      case 'problem': this.deps.onProblem(message.problem); break
      case 'note': this.deps.onNote(message.text); break
      case 'at': this.deps.onAt(message.path); break
      case 'failed': void this.stop(restoreError(message.error)); break
      case 'done':
        this.#result = { root: parseChunkId(message.root), chunks: message.chunks,
          ...(message.description === undefined ? {} : { description: message.description }) }
        this.#finishIfDone()
    }
  }
  #guard(work: Promise<void>): void {
    work.catch((error: unknown) => this.stop(error instanceof Error ? error : new Error('non-error value thrown')))
  }
  async #take(arena: Arena): Promise<void> {
    this.#arenasOut++
    await this.deps.onArena(arena)
    this.#arenasOut--
    if (this.#isOver) return
    this.#post({ type: 'arena', use: arena.use, buffer: arena.buffer })
    this.#finishIfDone()
  }
  async #read(request: number, ids: Buffer): Promise<void> {
    let bodies: Buffer[]
    try {
      bodies = await this.deps.readNodes(ids)
    } catch (error) {
      if (!this.#isOver) this.#post({ type: 'read-failed', request, error: flattenError(error) })
      return
    }
    if (this.#isOver) return
    const lengths = bodies.map((body) => body.byteLength)
    const bytes = new ArrayBuffer(lengths.reduce((sum, length) => sum + length, 0))
    bodies.reduce((at, body) => { Buffer.from(bytes).set(body, at); return at + body.byteLength }, 0)
    this.#post({ type: 'nodes', request, bytes, lengths }, [bytes])
  }
  #finishIfDone(): void {
    if (this.#result === undefined || this.#arenasOut > 0 || this.#isOver) return
    this.#isOver = true
    this.#resolve(this.#result)
    void this.link.end()
  }
}

/** Nodes of the session's snapshot, verified by their ids. @throws {RoostError} CHUNK_MISSING; CHUNK_CORRUPT; CHUNK_NOT_READABLE */
export async function readVerifiedNodes(client: Pick<RepositoryClient, 'readChunks'>, session: SessionId, ids: Buffer, dedupKey: Buffer,
  idsMax: number, signal: AbortSignal): Promise<Buffer[]> {
  const bodies: Buffer[] = []
  for (let from = 0; from < ids.byteLength; from += idsMax * CHUNK_ID_BYTES) {
    const batch = ids.subarray(from, from + idsMax * CHUNK_ID_BYTES)
    for await (const { index, status, bytes } of client.readChunks(session, batch, { signal })) {
      const id = asChunkId(batch.subarray(index * CHUNK_ID_BYTES, (index + 1) * CHUNK_ID_BYTES))
      if (status === 'not-readable') throw new RoostError('CHUNK_NOT_READABLE', 'A node of the parent is not readable in this session.')
      if (bytes === undefined) throw new RoostError('CHUNK_MISSING', 'A node of the parent is missing or damaged.', { chunk: id.toString('hex') })
      if (!idOf(hashChunk(dedupKey, bytes, CHUNK_KINDS.node)).equals(id))
        throw new RoostError('CHUNK_CORRUPT', 'A node of the parent is not what its id says.', { chunk: id.toString('hex') })
      bodies[from / CHUNK_ID_BYTES + index] = bytes
    }
  }
  return bodies
}
