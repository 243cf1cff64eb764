/** A worker thread that seals and opens blocks: the shell around Sealer (seal-job.ts) and openBlock (pack-format.ts). */
import { parentPort } from 'node:worker_threads'
import { assert } from '../core/assert.js'
import { parseGroups, unfoldGroups } from '../core/chunk-groups.js'
import { RoostError, type ErrorCode, type ErrorDetails } from '../core/errors.js'
import type { ChunkKind, PackNumber, RepositoryId } from '../core/ids.js'
import { zstdEncoder, type ZstdEncoder } from '../core/zstd.js'
import type { PackEntries } from '../index/chunk-index.js'
import { openBlock, packSecret, regroupBlock, type BlockPart } from './pack-format.js'
import { Sealer, type SealSecrets, type StoreJob, type StoreResult } from './seal-job.js'

export type ToSealWorker =
  | { readonly type: 'open'; readonly repository: RepositoryId; readonly secrets: SealSecrets }
  | { readonly type: 'store'; readonly call: number; readonly repository: RepositoryId; readonly job: StoreJob }
  | { readonly type: 'flush'; readonly call: number; readonly repository: RepositoryId }
  | { readonly type: 'decode'; readonly call: number; readonly block: SealedBlock }
  | { readonly type: 'regroup'; readonly call: number; readonly block: SealedBlock; readonly parts: readonly BlockPart[]; readonly zstdLevel: number }
  | { readonly type: 'unfold'; readonly call: number; readonly body: Uint8Array }
  | { readonly type: 'close'; readonly repository: RepositoryId }
/** `sealed` is handed over. */
export interface SealedBlock { readonly packKey: Uint8Array; readonly header: Uint8Array; readonly offset: number; readonly sealed: ArrayBuffer }

export interface WireFailure { readonly code: ErrorCode | undefined; readonly message: string; readonly details: ErrorDetails; readonly errno: string | undefined }
export interface SealedMessage {
  readonly type: 'sealed'; readonly repository: RepositoryId; readonly number: PackNumber; readonly packId: string; readonly kind: ChunkKind
  readonly file: string; readonly storedBytes: number; readonly rawBytes: number; readonly entries: PackEntries
}
export type FromSealWorker =
  | { readonly type: 'stored'; readonly call: number; readonly result: StoreResult }
  | { readonly type: 'flushed'; readonly call: number }
  | { readonly type: 'decoded'; readonly call: number; readonly block: ArrayBuffer; readonly offset: number; readonly bytes: number }
  | { readonly type: 'unfolded'; readonly call: number; readonly buffer: SharedArrayBuffer; readonly bytes: number }
  | { readonly type: 'failed'; readonly call: number; readonly failure: WireFailure }
  | SealedMessage
  | { readonly type: 'lost'; readonly repository: RepositoryId; readonly number: PackNumber; readonly failure: WireFailure }

const asBytes = (value: Uint8Array): Buffer => Buffer.from(value.buffer, value.byteOffset, value.byteLength)

function describeFailure(error: unknown): WireFailure {
  if (error instanceof RoostError) return { code: error.code, message: error.message, details: error.details, errno: undefined }
  const message = error instanceof Error ? error.message : 'unknown failure'
  return { code: undefined, message, details: {}, errno: (error as NodeJS.ErrnoException).code }
}

if (parentPort !== null) serve(parentPort)

function serve(port: NonNullable<typeof parentPort>): void {
  const sealers = new Map<RepositoryId, Sealer>()
  const send = (message: FromSealWorker, transfer: ArrayBuffer[] = []): void => { port.postMessage(message, transfer) }
  const sealerOf = (repository: RepositoryId): Sealer => {
    const sealer = sealers.get(repository)
    assert(sealer !== undefined, 'a repository is opened before it is used')
    return sealer
  }
  const encoders = new Map<number, ZstdEncoder>()
  const encoderOf = (level: number): ZstdEncoder => {
    const encoder = encoders.get(level) ?? zstdEncoder(level)
    encoders.set(level, encoder)
    return encoder
  }
  const sendBlock = (call: number, block: Buffer): void => {
    const own = block.byteLength === block.buffer.byteLength ? block : Buffer.from(new Uint8Array(block).buffer)
    send({ type: 'decoded', call, block: own.buffer as ArrayBuffer, offset: own.byteOffset, bytes: own.byteLength }, [own.buffer as ArrayBuffer])
  }
  const handle = async (message: ToSealWorker): Promise<void> => {
    switch (message.type) {
      case 'open': {
        const { secrets, repository } = message
        sealers.set(repository, new Sealer({ ...secrets, dedupKey: asBytes(secrets.dedupKey), packKey: asBytes(secrets.packKey) },
          (pack) => { send({ type: 'sealed', repository, ...pack }) },
          (number, error) => { send({ type: 'lost', repository, number, failure: describeFailure(error) }) }))
        return
      }
      case 'store': {
        const result = sealerOf(message.repository).store(message.job)
        send({ type: 'stored', call: message.call, result })
        return
      }
      case 'flush':
        await sealerOf(message.repository).flush()
        send({ type: 'flushed', call: message.call })
        return
      case 'decode': {
        const { packKey, header, offset, sealed } = message.block
        sendBlock(message.call, openBlock(packSecret(asBytes(packKey), asBytes(header)), offset, Buffer.from(sealed)))
        return
      }
      case 'regroup': {
        const { packKey, header, offset, sealed } = message.block
        const group = regroupBlock(packSecret(asBytes(packKey), asBytes(header)), offset, Buffer.from(sealed), message.parts, encoderOf(message.zstdLevel))
        sendBlock(message.call, group)
        return
      }
      case 'unfold': {
        const { buffer, bytes } = unfoldGroups(parseGroups(asBytes(message.body)))
        send({ type: 'unfolded', call: message.call, buffer, bytes })
        return
      }
      case 'close':
        sealers.delete(message.repository)
    }
  }
  port.on('message', (message: ToSealWorker) => {
    handle(message).catch((error: unknown) => {
      if ('call' in message)
        send({ type: 'failed', call: message.call, failure: describeFailure(error) })
      else throw error
    })
  })
}
