/** The threads that compress, seal and open blocks, shared by all repositories of a server. */
import { Worker } from 'node:worker_threads'
import { assert } from '../core/assert.js'
import { asBuffer } from '../core/bytes.js'
import { RoostError } from '../core/errors.js'
import type { PackId, PackNumber, RepositoryId } from '../core/ids.js'
import type { PackEntries } from '../index/chunk-index.js'
import type { BlockPart } from './pack-format.js'
import type { SealedPack } from './pack-writer.js'
import type { SealSecrets, StoreJob, StoreResult } from './seal-job.js'
import type { FromSealWorker, ToSealWorker, WireFailure } from './seal-worker.js'

/** What a repository hears from the sealers. Sealed packs are durable in the spool. */
export interface SealListener {
  onSealed(pack: SealedPack): void
  onLost(number: PackNumber, error: Error): void
}
/** The port that the push path uses: threads in production, inline in crash tests. */
export interface SealPool {
  open(secrets: SealSecrets, listener: SealListener): void
  /** Resolves when the chunks are written to the spool (not yet durable). The buffer's ownership passes and comes back.
   *  `accept` runs before any `onSealed` of a pack that got some of these chunks. */
  store(repository: RepositoryId, job: StoreJob, accept: (result: StoreResult) => void): Promise<{ result: StoreResult; buffer: SharedArrayBuffer }>
  /** Resolves when every pack opened before the call was announced sealed or lost. */
  flush(repository: RepositoryId): Promise<void>
  /** Opens one sealed block. `sealed` is consumed. @throws {RoostError} PACK_CORRUPT */
  decode(packKey: Buffer, header: Buffer, offset: number, sealed: Buffer): Promise<Buffer>
  /** Those chunks of a sealed block, compressed together (regroupBlock). `sealed` is consumed. @throws {RoostError} PACK_CORRUPT */
  regroup(packKey: Buffer, header: Buffer, offset: number, sealed: Buffer, parts: readonly BlockPart[], zstdLevel: number): Promise<Buffer>
  /** The frames that a body of groups unfolds to. @throws {RoostError} FRAME_MALFORMED; LIMIT_EXCEEDED */
  unfold(body: Uint8Array): Promise<{ buffer: SharedArrayBuffer; bytes: number }>
  /** Forgets a repository; flush first. */
  forget(repository: RepositoryId): void
  close(): Promise<void>
}

interface PendingCall { resolve(message: FromSealWorker): void; reject(error: Error): void; readonly accept: ((result: StoreResult) => void) | undefined }
interface Thread { readonly worker: Worker; readonly calls: Map<number, PendingCall>; busy: number }

/** V8 lets a heap grow in proportion to these before it collects; a sealer's chunks are outside of the heap. */
const HEAP = { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 512 }

export class ThreadSealPool implements SealPool {
  readonly #threads: Thread[] = []
  readonly #listeners = new Map<RepositoryId, { secrets: SealSecrets; listener: SealListener }>()
  #nextCall = 1
  #closing = false

  constructor(readonly threadCount: number) {
    for (let i = 0; i < threadCount; i++) this.#threads.push(this.#start())
  }
  #start(): Thread {
    const worker = new Worker(new URL('./seal-worker.js', import.meta.url), { name: 'roost-seal', resourceLimits: HEAP })
    const thread: Thread = { worker, calls: new Map(), busy: 0 }
    worker.on('message', (message: FromSealWorker) => { this.#receive(thread, message) })
    // A sealer dies only of our own bug or of exhausted memory; its open packs are gone, so the process must not go on.
    worker.on('error', (error) => { queueMicrotask(() => { throw error }) })
    worker.on('exit', (code) => {
      const error = new Error(`a seal worker exited with code ${code}`)
      for (const call of thread.calls.values()) call.reject(error)
      if (!this.#closing) queueMicrotask(() => { throw error })
    })
    return thread
  }
  #receive(thread: Thread, message: FromSealWorker): void {
    if (message.type === 'sealed') {
      const { entries } = message
      const whole: PackEntries = { ...entries, idProofs: asBuffer(entries.idProofs) }
      this.#listeners.get(message.repository)?.listener.onSealed({ ...message, packId: message.packId as PackId, entries: whole })
    } else if (message.type === 'lost') {
      this.#listeners.get(message.repository)?.listener.onLost(message.number, toError(message.failure))
    } else {
      const call = thread.calls.get(message.call)
      assert(call !== undefined, 'every reply belongs to a call')
      thread.calls.delete(message.call)
      if (message.type === 'failed') call.reject(toError(message.failure))
      else {
        if (message.type === 'stored') call.accept?.(message.result)
        call.resolve(message)
      }
    }
  }
  async #call<T extends FromSealWorker['type']>(thread: Thread, message: ToSealWorker & { call: number }, transfer: ArrayBuffer[],
    accept?: (result: StoreResult) => void):
    Promise<Extract<FromSealWorker, { type: T }>> {
    thread.busy++
    try {
      return await new Promise((resolve, reject) => {
        thread.calls.set(message.call, { resolve: resolve as PendingCall['resolve'], reject, accept })
        thread.worker.postMessage(message, transfer)
      })
    } finally {
      thread.busy--
    }
  }
  /** The least busy thread, the first of equals: a lone small push fills one pack, not one per thread. */
  #idlest(): Thread {
    return this.#threads.reduce((best, thread) => (thread.busy < best.busy ? thread : best))
  }

  open(secrets: SealSecrets, listener: SealListener): void {
    this.#listeners.set(secrets.repositoryId, { secrets, listener })
    for (const { worker } of this.#threads)
      worker.postMessage({ type: 'open', repository: secrets.repositoryId, secrets } satisfies ToSealWorker)
  }
  async store(repository: RepositoryId, job: StoreJob, accept: (result: StoreResult) => void): Promise<{ result: StoreResult; buffer: SharedArrayBuffer }> {
    const message = { type: 'store', call: this.#nextCall++, repository, job } as const
    const reply = await this.#call<'stored'>(this.#idlest(), message, [], accept)
    return { result: reply.result, buffer: job.buffer }
  }
  async flush(repository: RepositoryId): Promise<void> {
    await Promise.all(this.#threads.map((thread) => this.#call<'flushed'>(thread, { type: 'flush', call: this.#nextCall++, repository }, [])))
  }
  async decode(packKey: Buffer, header: Buffer, offset: number, sealed: Buffer): Promise<Buffer> {
    const buffer = ownBuffer(sealed)
    const reply = await this.#call<'decoded'>(this.#idlest(), { type: 'decode', call: this.#nextCall++, block: { packKey, header, offset, sealed: buffer } }, [buffer])
    return Buffer.from(reply.block, reply.offset, reply.bytes)
  }
  async regroup(packKey: Buffer, header: Buffer, offset: number, sealed: Buffer, parts: readonly BlockPart[], zstdLevel: number): Promise<Buffer> {
    const buffer = ownBuffer(sealed)
    const reply = await this.#call<'decoded'>(this.#idlest(),
      { type: 'regroup', call: this.#nextCall++, block: { packKey, header, offset, sealed: buffer }, parts, zstdLevel }, [buffer])
    return Buffer.from(reply.block, reply.offset, reply.bytes)
  }
  async unfold(body: Uint8Array): Promise<{ buffer: SharedArrayBuffer; bytes: number }> {
    const { buffer, bytes } = await this.#call<'unfolded'>(this.#idlest(), { type: 'unfold', call: this.#nextCall++, body }, [])
    return { buffer, bytes }
  }
  forget(repository: RepositoryId): void {
    this.#listeners.delete(repository)
    for (const { worker } of this.#threads) worker.postMessage({ type: 'close', repository } satisfies ToSealWorker)
  }
  async close(): Promise<void> {
    this.#closing = true
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()))
  }
}

/** Of a buffer that shares its memory with nothing, its memory; else a copy. */
function ownBuffer(bytes: Buffer): ArrayBuffer {
  return bytes.byteLength === bytes.buffer.byteLength ? bytes.buffer as ArrayBuffer : new Uint8Array(bytes).buffer
}
function toError(failure: WireFailure): Error {
  if (failure.code !== undefined) return new RoostError(failure.code, failure.message, failure.details)
  if (failure.errno === undefined) return new Error(failure.message)
  const cause = Object.assign(new Error(failure.message), { code: failure.errno })
  if (failure.errno === 'ENOSPC' || failure.errno === 'EDQUOT')
    return new RoostError('SPOOL_FULL', 'The server has no space left to accept data. Free space on its spool, then go on.', {}, { cause })
  return new RoostError('STORE_UNAVAILABLE', 'The server cannot write to its spool.', {}, { cause })
}
