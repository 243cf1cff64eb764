/** A new repository on two targets, made once and copied for each run: the same keys and names in every process. */
import { join } from 'node:path'
import { systemClock } from '../../src/core/clock.js'
import type { RepositoryId } from '../../src/core/ids.js'
import type { ChunkIndex, IndexLineage } from '../../src/index/chunk-index.js'
import { openMemoryIndex } from '../../src/index/memory-index.js'
import { createRepository, openRepository, type OpenRepositoryDeps } from '../../src/repo/open-repository.js'
import { createMemoryStore, type MemoryStore } from '../../src/store/memory-store.js'
import { InlineSealPool } from '../support/inline-seal-pool.js'
import { Content } from './content.js'
import { MemoryFiles, memoryFileEffects, mount, ROOT } from './memory-files.js'
import { useNativeSignatures } from './native-signatures.js'
import { SeededRandom } from './seeded-random.js'

export const DIRECTORY = join(ROOT, 'repository')
export const TARGETS = ['main', 'other'] as const
export type TargetName = (typeof TARGETS)[number]

export interface Template {
  readonly files: MemoryFiles
  readonly objects: Readonly<Record<TargetName, ReadonlyMap<string, Buffer>>>
  readonly repositoryId: RepositoryId
  readonly packKey: Buffer
  readonly content: Content
  /** Of the index that made it: those of the runs are its successors. */
  readonly lineage: IndexLineage
}
let made: Promise<Template> | undefined
export const template = (): Promise<Template> => made ??= makeTemplate()

async function makeTemplate(): Promise<Template> {
  useNativeSignatures()
  const files = new MemoryFiles()
  files.makeFolder(DIRECTORY)
  mount(files)
  const effects = memoryFileEffects(files), random = new SeededRandom(20_260_101)
  const stores: Record<TargetName, MemoryStore> = { main: createMemoryStore(), other: createMemoryStore() }
  // It only ever moves forward, so that two processes write the same times.
  const clock = { now: () => 1_700_000_000_000, monotonicMs: () => 0, sleep: systemClock.sleep }
  const pool = new InlineSealPool(effects, random)
  let packKey: Buffer = Buffer.alloc(0)
  const open = pool.open.bind(pool)
  pool.open = (secrets, listener) => { packKey = secrets.packKey; open(secrets, listener) }
  let index: ChunkIndex = openMemoryIndex()
  let repositoryId = '' as RepositoryId
  const deps: OpenRepositoryDeps = { pool, clock, random, effects, spoolBytesMax: 2 ** 30, commitWaitMs: 1_000, zstdLevel: 1, report: () => undefined,
    openTarget: async (url) => stores[url.slice('memory:'.length) as TargetName],
    openIndex: async (_directory, id) => { repositoryId = id; return index } }
  await createRepository(DIRECTORY, { name: 'simulated', target: 'memory:main' }, deps)
  index = openMemoryIndex()
  await index.setComplete(true)
  const repository = await openRepository(DIRECTORY, deps)
  await repository.addTarget({ name: 'other', url: 'memory:other' })
  for await (const event of repository.backfillTarget('other', new AbortController().signal)) void event
  const { dedupKey } = await repository.openSession({ kind: 'push', source: 's', mode: 'files', parent: null }, { tokenId: 't' })
  const lineage = (await index.lineage())!
  await repository.close()
  return { lineage, files, objects: { main: stores.main.objects, other: stores.other.objects }, repositoryId, packKey, content: new Content(Buffer.from(dedupKey, 'hex')) }
}
