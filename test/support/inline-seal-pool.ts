/** The sealing of production without threads, so that crash tests own every effect and its order. */
import type { Random } from '../../src/core/random.js'
import type { PackNumber, RepositoryId } from '../../src/core/ids.js'
import { asBuffer } from '../../src/core/bytes.js'
import { parseGroups, unfoldGroups } from '../../src/core/chunk-groups.js'
import { zstdEncoder } from '../../src/core/zstd.js'
import { openBlock, packSecret, regroupBlock, type BlockPart } from '../../src/repo/pack-format.js'
import { Sealer, type SealSecrets, type StoreJob, type StoreResult } from '../../src/repo/seal-job.js'
import type { SealListener, SealPool } from '../../src/repo/seal-pool.js'
import type { FileEffects } from '../../src/store/file-effects.js'

export class InlineSealPool implements SealPool {
  readonly #sealers = new Map<RepositoryId, Sealer>()
  constructor(readonly effects: FileEffects, readonly random: Random) {}
  open(secrets: SealSecrets, listener: SealListener): void {
    this.#sealers.set(secrets.repositoryId, new Sealer(secrets, (pack) => { listener.onSealed(pack) },
      (number: PackNumber, error) => { listener.onLost(number, error as Error) }, this.effects, this.random))
  }
  async store(repository: RepositoryId, job: StoreJob, accept: (result: StoreResult) => void): Promise<{ result: StoreResult; buffer: SharedArrayBuffer }> {
    await Promise.resolve()
    const result = this.#sealers.get(repository)!.store(job)
    accept(result)
    return { result, buffer: job.buffer }
  }
  async flush(repository: RepositoryId): Promise<void> { await this.#sealers.get(repository)!.flush() }
  async decode(packKey: Buffer, header: Buffer, offset: number, sealed: Buffer): Promise<Buffer> {
    await Promise.resolve()
    return openBlock(packSecret(packKey, header), offset, sealed)
  }
  async regroup(packKey: Buffer, header: Buffer, offset: number, sealed: Buffer, parts: readonly BlockPart[], zstdLevel: number): Promise<Buffer> {
    await Promise.resolve()
    return regroupBlock(packSecret(packKey, header), offset, sealed, parts, zstdEncoder(zstdLevel))
  }
  async unfold(body: Uint8Array): Promise<{ buffer: SharedArrayBuffer; bytes: number }> {
    await Promise.resolve()
    return unfoldGroups(parseGroups(asBuffer(body)))
  }
  forget(repository: RepositoryId): void { this.#sealers.delete(repository) }
  async close(): Promise<void> { await Promise.resolve() }
}
