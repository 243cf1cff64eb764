/** The server's ports at the gates of the scheduler: every call of one process waits there, and none of a dead process ever returns. */
import { Readable } from 'node:stream'
import type { Clock } from '../../src/core/clock.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import type { PackNumber, RepositoryId } from '../../src/core/ids.js'
import type { Random } from '../../src/core/random.js'
import { openBlock, packSecret, regroupBlock, type BlockPart } from '../../src/repo/pack-format.js'
import { asBuffer } from '../../src/core/bytes.js'
import { parseGroups, unfoldGroups } from '../../src/core/chunk-groups.js'
import { zstdEncoder } from '../../src/core/zstd.js'
import { Sealer, type SealSecrets, type StoreJob, type StoreResult } from '../../src/repo/seal-job.js'
import type { SealListener, SealPool } from '../../src/repo/seal-pool.js'
import type { FileEffects } from '../../src/store/file-effects.js'
import { SimulatedCrash } from '../support/cut-effects.js'
import type { Life, Scheduler } from './scheduler.js'

/** Wall time jumps; the other never runs backwards. */
export class SimulatedTime {
  /** ms since 1970 at the beginning. */
  wallOffsetMs = 1_800_000_000_000
  constructor(readonly scheduler: Scheduler) {}
  clockOf(life: Life | undefined): Clock {
    return { now: () => Math.max(0, Math.round(this.scheduler.monotonicMs + this.wallOffsetMs)), monotonicMs: () => this.scheduler.monotonicMs,
      sleep: (ms, signal) => this.scheduler.sleep(life, ms, signal) }
  }
}

/** Names of temporary files have digits of the system's chance in them: no part of a history. */
const nameOf = (path: string): string => path.slice(path.lastIndexOf('/') + 1).replace(/\.[0-9a-f]{12}\.tmp$/, '.tmp').replace(/([0-9a-f]{8})[0-9a-f]{56}/, '$1')

export function gatedEffects(effects: FileEffects, scheduler: Scheduler, life: Life, atSyncStep: (name: string) => void): FileEffects {
  return new Proxy(effects, {
    get: (target, name: keyof FileEffects) => {
      const work = target[name] as (...args: unknown[]) => unknown
      if (name.endsWith('Sync')) return (...args: unknown[]) => {
        if (life.isDead) throw new SimulatedCrash('the process is dead')
        atSyncStep(name)
        return work(...args)
      }
      return (...args: unknown[]) => scheduler.call(life, 'file', `${name} ${typeof args[0] === 'string' ? nameOf(args[0]) : ''}`, () => work(...args), { isWrite: true })
    },
  })
}

export const READS_OF_INDEX: ReadonlySet<string> = new Set(['getPack', 'findPack', 'listPacks', 'locate', 'scanChunks', 'totals', 'getSession', 'listSessions', 'inspectRefs', 'getSnapshot',
  'listSnapshots', 'findSnapshotOfSession', 'isComplete', 'touchSession', 'flush', 'listPins', 'listDoomed', 'isDoomed', 'damageState', 'listDamaged', 'wholeAt',
  'inspectEntries', 'listUnverified', 'listVerified'])
export interface GatedIndexOptions {
  readonly scheduler: Scheduler
  readonly life: Life
  readonly openedClean: boolean
  /** Its calls are LMDB's own. */
  readonly isReal: boolean
  /** How often a read goes through at once. */
  readonly readsAtOnce: number
  close(clean: boolean): Promise<void>
  /** Sees every result. */
  judge(name: string, result: Promise<unknown>): Promise<unknown>
}
/** `current`: the index as it is now, whoever opened it. */
export function gatedIndex(current: () => ChunkIndex | undefined, options: GatedIndexOptions): ChunkIndex {
  const { scheduler, life, isReal, openedClean } = options
  return new Proxy({} as ChunkIndex, {
    get: (_target, name: string) => {
      if (name === 'openedClean') return openedClean
      if (name === 'close') return (clean = true) => scheduler.call(life, 'index', 'close', () => options.close(clean), { isReal })
      if (name === 'then') return undefined
      return (...args: unknown[]) => {
        const work = (): Promise<unknown> => {
          const inner = current() as unknown as Record<string, (...rest: unknown[]) => Promise<unknown>> | undefined
          // A process of before, while nobody has the index open.
          return inner === undefined ? Promise.reject(new SimulatedCrash('nobody has the index open')) : options.judge(name, inner[name]!(...args))
        }
        const isRead = READS_OF_INDEX.has(name)
        if (isRead && !life.isDead && scheduler.random.chance(options.readsAtOnce)) return work()
        return scheduler.call(life, 'index', name, work, { isWrite: !isRead, isReal })
      }
    },
  })
}

/** Sealing without threads, on one or more sealers that each have packs open, the least busy first. */
export class SimulatedSealPool implements SealPool {
  #sealers: Sealer[] = []
  #next = 0
  constructor(readonly scheduler: Scheduler, readonly life: Life, readonly effects: FileEffects, readonly random: Random, readonly threads: number) {}
  open(secrets: SealSecrets, listener: SealListener): void {
    this.#sealers = Array.from({ length: this.threads }, () => new Sealer(secrets, (pack) => { listener.onSealed(pack) },
      (number: PackNumber, error) => { listener.onLost(number, error as Error) }, this.effects, this.random))
  }
  store(_repository: RepositoryId, job: StoreJob, accept: (result: StoreResult) => void): Promise<{ result: StoreResult; buffer: SharedArrayBuffer }> {
    return this.scheduler.call(this.life, 'pool', 'store', () => {
      const result = this.#sealers[this.#next++ % this.#sealers.length]!.store(job)
      accept(result)
      return { result, buffer: job.buffer }
    })
  }
  flush(_repository: RepositoryId): Promise<void> {
    return this.scheduler.call(this.life, 'pool', 'flush', async () => { await Promise.all(this.#sealers.map((sealer) => sealer.flush())) })
  }
  decode(packKey: Buffer, header: Buffer, offset: number, sealed: Buffer): Promise<Buffer> {
    return this.scheduler.call(this.life, 'pool', 'decode', () => openBlock(packSecret(packKey, header), offset, sealed))
  }
  regroup(packKey: Buffer, header: Buffer, offset: number, sealed: Buffer, parts: readonly BlockPart[], zstdLevel: number): Promise<Buffer> {
    return this.scheduler.call(this.life, 'pool', 'regroup', () => regroupBlock(packSecret(packKey, header), offset, sealed, parts, zstdEncoder(zstdLevel)))
  }
  unfold(body: Uint8Array): Promise<{ buffer: SharedArrayBuffer; bytes: number }> {
    return this.scheduler.call(this.life, 'pool', 'unfold', () => unfoldGroups(parseGroups(asBuffer(body))))
  }
  forget(): void { /* nothing is kept */ }
  async close(): Promise<void> { /* no threads */ }
}

/** What breaks after its first part. */
export function tornStream(bytes: Buffer, fail: () => Error): Readable {
  return Readable.from((function* () {
    yield bytes.subarray(0, bytes.byteLength >> 1)
    throw fail()
  })(), { objectMode: false })
}
