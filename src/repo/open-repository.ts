/** Creates, attaches and opens repositories: local folder, target, keys, index and threads become one Repository.
 *
 *  Local folder (0700): repository.json (where the target is), keyfile (0600), index/, spool/. Everything in it can be made anew
 *  from the target with any key slot (attach, then rebuild).
 */
import { mkdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../core/clock.js'
import { hasCode, isErrno, RoostError } from '../core/errors.js'
import { parseRepositoryId, type RepositoryId } from '../core/ids.js'
import type { AttachRepositoryRequest, CreateRepositoryRequest } from '../core/messages.js'
import type { Random } from '../core/random.js'
import type { ChunkIndex } from '../index/chunk-index.js'
import { openLmdbIndex } from '../index/lmdb-index.js'
import type { FileEffects } from '../store/file-effects.js'
import type { ObjectStore } from '../store/object-store.js'
import { replaceFile } from '../store/replace-file.js'
import { openStore } from '../store/open-store.js'
import { addKeyfileSlot, KEYFILE_BYTES, readKeyfile, unlockMasterKey, writeKeyfile, type KeySecret } from './key-slots.js'
import { HEADER_KEY, KEY_SLOT_PREFIX, PACK_PREFIX, SNAPSHOT_PREFIX } from './layout.js'
import { LocalRepository } from './local-repository.js'
import { PackIntake } from './pack-intake.js'
import { PackReader } from './pack-reader.js'
import { PackUploads } from './pack-uploads.js'
import { recoverRepository } from './recover.js'
import { CHUNKER_DEFAULTS, isChunker, readRepositoryHeader, targetTaken, verifyRepositoryHeader, writeRepositoryHeader, type RepositoryHeader } from './repository-header.js'
import { createMasterKey, deriveRepositoryKeys } from './repository-keys.js'
import type { RepositoryEvent, RepositoryParts } from './repository-parts.js'
import type { SealPool } from './seal-pool.js'

export interface OpenRepositoryDeps {
  readonly pool: SealPool
  readonly clock: Clock
  readonly random: Random
  readonly effects: FileEffects
  readonly spoolBytesMax: number
  readonly commitWaitMs: number
  readonly zstdLevel: number
  report(repository: string, event: RepositoryEvent): void
  /** Tests put another target here. */
  openTarget?(url: string, create: boolean): Promise<ObjectStore>
  openIndex?(directory: string, repositoryId: RepositoryId): Promise<ChunkIndex>
}

interface LocalConfig { readonly format: 1; readonly name: string; readonly repositoryId: RepositoryId; readonly target: string }
const CONFIG_NAME = 'repository.json'
const KEYFILE_NAME = 'keyfile'
const INDEX_FORMAT = 1

/** Lays a new repository on its target and its local folder. Order: keyfile, key slot, header (from here it exists), local description.
 *  Dying in between and asking again finishes the job; nothing that could be somebody's repository is ever overwritten.
 *  @throws {RoostError} REPOSITORY_EXISTS; REQUEST_MALFORMED; what the target throws */
export async function createRepository(directory: string, request: CreateRepositoryRequest, deps: OpenRepositoryDeps): Promise<void> {
  const chunker = { ...CHUNKER_DEFAULTS, ...request.chunker }
  if (!isChunker(chunker))
    throw new RoostError('REQUEST_MALFORMED', 'These chunker parameters do not work together: sizes are powers of two, 4 KiB to 4 MiB, minimum < average < maximum.')
  // A folder with a description is a repository's, whatever its target looks like now: its keyfile may be the only one.
  if (await stat(join(directory, CONFIG_NAME)).catch(() => undefined) !== undefined)
    throw new RoostError('REPOSITORY_EXISTS', `There is a repository in ${directory} already; its target may be unreachable or damaged.`)
  const target = request.target ?? `file:${join(directory, 'store')}`
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const store = await openTarget(target, true, deps)
  try {
    const repositoryId = await unfinishedCreate(store, directory) ?? await layRepository(store, directory, chunker, deps)
    // Without its description this folder is nobody's: an index in it is a leftover of a create that died.
    await rm(join(directory, 'index'), { recursive: true, force: true })
    const index = await openIndexOf(directory, repositoryId, deps)
    await index.setComplete(true)
    await index.close()
    await writeConfig(directory, { format: 1, name: request.name, repositoryId, target }, deps)
  } finally {
    await store.close()
  }
}
async function layRepository(store: ObjectStore, directory: string, chunker: RepositoryHeader['chunker'], deps: OpenRepositoryDeps): Promise<RepositoryId> {
  await refuseOrphans(store)
  for await (const { key } of store.list(KEY_SLOT_PREFIX)) await store.delete(key)
  const masterKey = createMasterKey(deps.random)
  const keyfile = deps.random.bytes(KEYFILE_BYTES)
  await writeKeyfile(join(directory, KEYFILE_NAME), keyfile, deps.effects)
  await addKeyfileSlot(store, masterKey, keyfile, { label: 'server keyfile', clock: deps.clock, random: deps.random })
  const repositoryId = parseRepositoryId(deps.random.bytes(16).toString('hex'))
  await writeRepositoryHeader(store, { format: 1, repositoryId, mode: 'server', createdAtMs: deps.clock.now(), chunker }, masterKey)
  return repositoryId
}
/** Packs or snapshots without a header are a damaged repository, not a free place: their key slots must survive. */
async function refuseOrphans(store: ObjectStore): Promise<void> {
  for (const prefix of [PACK_PREFIX, SNAPSHOT_PREFIX])
    for await (const { key } of store.list(prefix))
      throw new RoostError('REPOSITORY_CORRUPT', `The target ${store.description} holds packs or snapshots but no repository header; restore ${HEADER_KEY} or choose another target.`, { key })
}
/** The id of an empty repository that a create laid and did not live to describe: its keyfile is here. */
async function unfinishedCreate(store: ObjectStore, directory: string): Promise<RepositoryId | undefined> {
  if (await store.head(HEADER_KEY) === undefined) return undefined
  const { header, mac } = await readRepositoryHeader(store)
  try {
    verifyRepositoryHeader(header, mac, await unlockMasterKey(store, { keyfile: await readKeyfile(join(directory, KEYFILE_NAME)) }))
  } catch (error) {
    if (hasCode(error, 'KEY_UNLOCK_FAILED')) throw targetTaken(store)
    throw error
  }
  for (const prefix of [PACK_PREFIX, SNAPSHOT_PREFIX]) for await (const object of store.list(prefix)) { void object; throw targetTaken(store) }
  return header.repositoryId
}

/** Makes a local folder for a repository that is on its target already: after the loss of a server, or on a second one. The index is
 *  incomplete until `rebuild`. @throws {RoostError} REPOSITORY_UNKNOWN; KEY_UNLOCK_FAILED; REPOSITORY_CORRUPT */
export async function attachRepository(directory: string, request: AttachRepositoryRequest, secret: KeySecret, deps: OpenRepositoryDeps): Promise<void> {
  const store = await openTarget(request.target, false, deps)
  try {
    const { header, mac } = await readRepositoryHeader(store)
    const masterKey = await unlockMasterKey(store, secret)
    verifyRepositoryHeader(header, mac, masterKey)
    await mkdir(directory, { recursive: true, mode: 0o700 })
    const keyfile = deps.random.bytes(KEYFILE_BYTES)
    await writeKeyfile(join(directory, KEYFILE_NAME), keyfile, deps.effects)
    await addKeyfileSlot(store, masterKey, keyfile, { label: 'server keyfile', clock: deps.clock, random: deps.random })
    await writeConfig(directory, { format: 1, name: request.name, repositoryId: header.repositoryId, target: request.target }, deps)
  } finally {
    await store.close()
  }
}

/** Opens a repository whose local folder exists, and recovers what the last process left. */
export async function openRepository(directory: string, deps: OpenRepositoryDeps): Promise<LocalRepository> {
  const config = await readConfig(directory)
  const store = await openTarget(config.target, false, deps)
  let index: ChunkIndex | undefined
  try {
    const { header, mac } = await readRepositoryHeader(store)
    if (header.repositoryId !== config.repositoryId)
      throw new RoostError('REPOSITORY_CORRUPT', 'The target holds another repository than the one that this folder was made for.', { target: store.description })
    const masterKey = await unlockMasterKey(store, { keyfile: await readKeyfile(join(directory, KEYFILE_NAME)) })
    verifyRepositoryHeader(header, mac, masterKey)
    index = await openIndexOf(directory, header.repositoryId, deps)
    const parts = await assembleParts({ directory, config, header, masterKey, store, index }, deps)
    await recoverRepository(parts)
    return new LocalRepository(parts, masterKey, join(directory, KEYFILE_NAME))
  } catch (error) {
    await index?.close()
    await store.close()
    throw error
  }
}

async function assembleParts(open: { directory: string; config: LocalConfig; header: RepositoryHeader; masterKey: Buffer; store: ObjectStore; index: ChunkIndex },
  deps: OpenRepositoryDeps): Promise<RepositoryParts> {
  const { directory, config, header, store, index } = open
  const { pool, clock, random, effects } = deps
  const { repositoryId } = header
  const keys = deriveRepositoryKeys(open.masterKey)
  const spoolDirectory = join(directory, 'spool')
  await mkdir(spoolDirectory, { recursive: true, mode: 0o700 })
  const report = (event: RepositoryEvent): void => { deps.report(config.name, event) }
  const uploads = new PackUploads({ store, index, effects, clock })
  const intake = new PackIntake({ repositoryId, index, pool, uploads, spoolDirectory, spoolBytesMax: deps.spoolBytesMax,
    onLost: (error) => { report({ type: 'pack-lost', error }) } })
  pool.open({ repositoryId, dedupKey: keys.dedupKey, packKey: keys.packKey, spoolDirectory, zstdLevel: deps.zstdLevel },
    { onSealed: (pack) => { intake.onSealed(pack) }, onLost: (number, error) => { intake.onLost(number, error) } })
  const reader = new PackReader({ index, store, uploads, pool, packKey: keys.packKey, dedupKey: keys.dedupKey,
    report: (error, pack) => { report({ type: 'damage', error, pack: pack.packId }) } })
  return { name: config.name, repositoryId, createdAtMs: header.createdAtMs, chunker: { ...header.chunker, gearSeed: keys.gearSeed.toString('hex') },
    keys, directory, spoolDirectory, index, store, pool, uploads, intake, reader, clock, random, effects, commitWaitMs: deps.commitWaitMs, report }
}

function openTarget(url: string, create: boolean, deps: OpenRepositoryDeps): Promise<ObjectStore> {
  return deps.openTarget?.(url, create) ?? openStore(url, { clock: deps.clock, random: deps.random, effects: deps.effects, create })
}
function openIndexOf(directory: string, repositoryId: RepositoryId, deps: OpenRepositoryDeps): Promise<ChunkIndex> {
  const at = join(directory, 'index')
  return deps.openIndex?.(at, repositoryId) ?? openLmdbIndex({ directory: at, identity: { repositoryId, formatVersion: INDEX_FORMAT } })
}

async function writeConfig(directory: string, config: LocalConfig, deps: OpenRepositoryDeps): Promise<void> {
  await replaceFile(join(directory, CONFIG_NAME), Buffer.from(`${JSON.stringify(config, null, 2)}\n`), deps.effects)
}
async function readConfig(directory: string): Promise<LocalConfig> {
  const path = join(directory, CONFIG_NAME)
  try {
    const value = JSON.parse(await readFile(path, 'utf8')) as LocalConfig
    if (value.format === 1 && typeof value.name === 'string' && typeof value.target === 'string') return { ...value, repositoryId: parseRepositoryId(value.repositoryId) }
  } catch (error) {
    if (isErrno(error, 'ENOENT')) throw new RoostError('REPOSITORY_UNKNOWN', `There is no repository in ${directory}.`, {}, { cause: error })
    if (isErrno(error) && error.syscall !== undefined) throw error // what the system cannot read now is not damaged
    throw new RoostError('REPOSITORY_CORRUPT', `${path} cannot be read; make the folder anew with \`roost repo attach\`.`, {}, { cause: error })
  }
  throw new RoostError('REPOSITORY_CORRUPT', `${path} is malformed; make the folder anew with \`roost repo attach\`.`)
}

/** Sets a damaged index aside so that the next open starts an empty one for `rebuild`. The repository must be closed. */
export async function setIndexAside(directory: string): Promise<void> {
  const aside = join(directory, 'index.damaged')
  await rm(aside, { recursive: true, force: true })
  await rename(join(directory, 'index'), aside).catch((error: unknown) => {
    if (!isErrno(error, 'ENOENT')) throw error // nothing to set aside is fine
  })
}
