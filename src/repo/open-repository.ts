/** Creates, attaches and opens repositories: local folder, target, keys, index and threads become one Repository.
 *
 *  Local folder (0700): repository.json (where the target is), keyfile (0600), index/, spool/. Everything in it can be made anew
 *  from the target with any key slot (attach, then rebuild).
 */
import { mkdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../core/clock.js'
import { hasCode, isErrno, RoostError } from '../core/errors.js'
import { KeyedMutex } from '../core/concurrency.js'
import { parseRepositoryId, type RepositoryId, type SnapshotId } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'
import type { AttachRepositoryRequest, CreateRepositoryRequest } from '../core/messages.js'
import type { Random } from '../core/random.js'
import type { ChunkIndex, PackRow } from '../index/chunk-index.js'
import { openLmdbIndex } from '../index/lmdb-index.js'
import type { FileEffects } from '../store/file-effects.js'
import type { ObjectStore } from '../store/object-store.js'
import { replaceFile } from '../store/replace-file.js'
import { openStore } from '../store/open-store.js'
import { addKeyfileSlot, KEYFILE_BYTES, openSlot, readKeyfile, unlockMasterKey, writeKeyfile, type KeySecret } from './key-slots.js'
import { openKnown, rememberHeader } from './known-header.js'
import { HEADER_KEY, KEY_SLOT_PREFIX, ORIGIN_PREFIX, PACK_PREFIX, SNAPSHOT_PREFIX } from './layout.js'
import { Checkpoints, type CheckpointsOptions } from './checkpoints/checkpoints.js'
import { Lineage } from './lineage.js'
import { LocalRepository, type Collector } from './local-repository.js'
import { PackMender } from './care/pack-mender.js'
import { SnapshotJudge } from './care/snapshot-judge.js'
import { DoomedPacks } from './doomed-packs.js'
import { PackClaims } from './pack-claims.js'
import { PackIntake } from './pack-intake.js'
import { PackReader } from './pack-reader.js'
import { PackUploads } from './pack-uploads.js'
import { recoverRepository } from './recover.js'
import { CHUNKER_DEFAULTS, isChunker, readRepositoryHeader, targetTaken, verifyRepositoryHeader, writeRepositoryHeader, type RepositoryHeader } from './repository-header.js'
import { createMasterKey, deriveRepositoryKeys, unwrapFamilyKeys, wrapFamilyKeys, type RepositoryKeys } from './repository-keys.js'
import { Origins, writeOrigin } from './replica/origins.js'
import type { AcceptedFamily } from './replica/family.js'
import type { RepositoryEvent, RepositoryParts } from './repository-parts.js'
import { LOCAL_SETTINGS, Retention } from './retention/retention.js'
import type { SealPool } from './seal-pool.js'
import { encodeSnapshotObject } from './snapshot-format.js'
import { SpooledSnapshots } from './spooled-snapshots.js'
import { CatchUp } from './targets/catch-up.js'
import { MirroredStore } from './targets/mirrored-store.js'
import { parseTargetList, singleTarget, type TargetList } from './targets/target-list.js'
import type { Target } from './targets/target.js'
import { TargetSet } from './targets/target-set.js'

export interface OpenRepositoryDeps {
  readonly pool: SealPool
  readonly clock: Clock
  readonly random: Random
  readonly effects: FileEffects
  readonly spoolBytesMax: number
  /** Free bytes kept on the spool's file system. */
  readonly spoolReserveBytes?: number
  /** Where targets look for credentials by name (OS_*, AWS_*). */
  readonly environment?: Readonly<Record<string, string | undefined>>
  readonly commitWaitMs: number
  readonly zstdLevel: number
  readonly checkpoints?: CheckpointsOptions
  report(repository: string, event: RepositoryEvent): void
  /** Collection stands on the repository, so it is given from above. */
  readonly collector?: Collector
  /** Tests put another target here. */
  openTarget?(url: string, create: boolean, slot: number): Promise<ObjectStore>
  openIndex?(directory: string, repositoryId: RepositoryId): Promise<ChunkIndex>
}

interface LocalConfig extends TargetList { readonly format: 2; readonly name: string; readonly repositoryId: RepositoryId }
const CONFIG_NAME = 'repository.json'
const KEYFILE_NAME = 'keyfile'
const INDEX_FORMAT = 1

/** Lays a new repository on its target and its local folder. Order: keyfile, key slot, header (from here it exists), local description.
 *  Dying in between and asking again finishes the job; nothing that could be somebody's repository is ever overwritten.
 *  @throws {RoostError} REPOSITORY_EXISTS; REQUEST_MALFORMED; what the target throws */
export async function createRepository(directory: string, request: CreateRepositoryRequest, deps: OpenRepositoryDeps, family?: AcceptedFamily): Promise<void> {
  const chunker = family?.chunker ?? { ...CHUNKER_DEFAULTS, ...request.chunker }
  if (!isChunker(chunker))
    throw new RoostError('REQUEST_MALFORMED', 'These chunker parameters do not work together: sizes are powers of two, 4 KiB to 4 MiB, minimum < average < maximum.')
  // A folder with a description is a repository's, whatever its target looks like now: its keyfile may be the only one.
  if (await stat(join(directory, CONFIG_NAME)).catch(() => undefined) !== undefined)
    throw new RoostError('REPOSITORY_EXISTS', `There is a repository in ${directory} already; its target may be unreachable or damaged.`)
  const target = request.target ?? `file:${join(directory, 'store')}`
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const store = await openTarget(directory, target, true, 0, deps)
  try {
    const repositoryId = await unfinishedCreate(store, directory, family !== undefined) ?? await layRepository(store, directory, chunker, deps, family)
    // Without its description this folder is nobody's: an index in it is a leftover of a create that died.
    await rm(join(directory, 'index'), { recursive: true, force: true })
    const index = await openIndexOf(directory, repositoryId, deps)
    await index.setComplete(true)
    await index.close()
    await writeConfig(directory, { format: 2, name: request.name, repositoryId, ...singleTarget(target, request.durability) }, deps)
  } finally {
    await store.close()
  }
}
async function layRepository(store: ObjectStore, directory: string, chunker: RepositoryHeader['chunker'], deps: OpenRepositoryDeps,
  family: AcceptedFamily | undefined): Promise<RepositoryId> {
  await refuseOrphans(store)
  for (const prefix of [KEY_SLOT_PREFIX, ORIGIN_PREFIX]) for await (const { key } of store.list(prefix)) await store.delete(key)
  const masterKey = createMasterKey(deps.random)
  const keyfile = deps.random.bytes(KEYFILE_BYTES)
  await writeKeyfile(join(directory, KEYFILE_NAME), keyfile, deps.effects)
  await addKeyfileSlot(store, masterKey, keyfile, { label: 'server keyfile', clock: deps.clock, random: deps.random })
  const repositoryId = parseRepositoryId(deps.random.bytes(16).toString('hex'))
  const fields = { repositoryId, mode: 'server', createdAtMs: deps.clock.now(), chunker } as const
  for (const origin of family?.origins ?? [])
    await writeOrigin(store, { ...origin, addedAtMs: fields.createdAtMs }, repositoryId, deriveRepositoryKeys(masterKey).originsKey)
  await writeRepositoryHeader(store, family === undefined ? { format: 1, ...fields } : { format: 2, ...fields, family: wrapFamilyKeys(family.keys, masterKey) }, masterKey)
  return repositoryId
}
/** Packs or snapshots without a header are a damaged repository, not a free place: their key slots must survive. */
async function refuseOrphans(store: ObjectStore): Promise<void> {
  for (const prefix of [PACK_PREFIX, SNAPSHOT_PREFIX])
    for await (const { key } of store.list(prefix))
      throw new RoostError('REPOSITORY_CORRUPT', `The target ${store.description} holds packs or snapshots but no repository header; restore ${HEADER_KEY} or choose another target.`, { key })
}
/** The id of an empty repository that a create laid and did not live to describe: its keyfile is here. */
async function unfinishedCreate(store: ObjectStore, directory: string, isReplica: boolean): Promise<RepositoryId | undefined> {
  if (await store.head(HEADER_KEY) === undefined) return undefined
  if (isReplica) throw targetTaken(store) // of which family it was made, its header says to nobody
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
  const store = await openTarget(directory, request.target, false, 0, deps)
  try {
    const { header, mac } = await readRepositoryHeader(store)
    const masterKey = await unlockMasterKey(store, secret)
    verifyRepositoryHeader(header, mac, masterKey)
    await mkdir(directory, { recursive: true, mode: 0o700 })
    const keyfile = deps.random.bytes(KEYFILE_BYTES)
    await writeKeyfile(join(directory, KEYFILE_NAME), keyfile, deps.effects)
    await addKeyfileSlot(store, masterKey, keyfile, { label: 'server keyfile', clock: deps.clock, random: deps.random })
    // An index of before knows other packs, or another repository's: `rebuild` starts from nothing.
    await setIndexAside(directory)
    await rm(join(directory, LOCAL_SETTINGS), { force: true }) // the target has the newest
    await writeConfig(directory, { format: 2, name: request.name, repositoryId: header.repositoryId, ...singleTarget(request.target) }, deps)
  } finally {
    await store.close()
  }
}

/** Opens a repository whose local folder exists, and recovers what the last process left. Its targets may all be down: what needs them waits
 *  until they answer. */
export async function openRepository(directory: string, deps: OpenRepositoryDeps): Promise<LocalRepository> {
  const config = await readConfig(directory)
  const targets = new TargetSet(config, { clock: deps.clock, open: ({ url, slot }) => openTarget(directory, url, false, slot, deps) })
  const store = new MirroredStore(targets)
  let index: ChunkIndex | undefined, parts: RepositoryParts | undefined
  let isRecovered = false
  try {
    const unlocked = await unlock(directory, config, store, deps)
    const { lineageKey: key } = keysOf(unlocked)
    const lineage = new Lineage({ directory, repositoryId: config.repositoryId, key, targets, store, effects: deps.effects, random: deps.random })
    index = await openPresentIndex(directory, config, lineage, deps)
    parts = await assembleParts({ directory, config, unlocked, targets, store, index, lineage }, deps)
    await recoverRepository(parts)
    if (await index.isComplete()) await lineage.advanceIfPossible(index)
    isRecovered = true
    return new LocalRepository(parts, unlocked.masterKey, join(directory, KEYFILE_NAME), ({ url, slot }) => openTarget(directory, url, true, slot, deps), deps.collector)
  } catch (error) {
    await parts?.mender.close()
    await parts?.judge.close()
    await parts?.checkpoints.close()
    await parts?.uploads.close()
    await parts?.spooledSnapshots.close()
    await parts?.catchUp.close()
    await parts?.doomed.close()
    // What was not reconciled must be at the next start.
    await index?.close(isRecovered)
    await store.close()
    throw error
  }
}

/** An old copy is set aside: nothing of it is mixed in, and `rebuild` makes the index anew. @throws {RoostError} INDEX_CORRUPT when another old one is there then */
async function openPresentIndex(directory: string, config: LocalConfig, lineage: Lineage, deps: OpenRepositoryDeps): Promise<ChunkIndex> {
  const old = await openIndexOf(directory, config.repositoryId, deps)
  if (await lineage.fits(old)) return old
  await old.close()
  const error = new RoostError('INDEX_CORRUPT', 'This index is older than the repository: a copy of before was put back, or another server has worked on the repository since. ' +
    'It was set aside as "index.damaged"; run `roost rebuild`.', { repository: config.name })
  await setIndexAside(directory)
  const fresh = await openIndexOf(directory, config.repositoryId, deps)
  if (await fresh.isComplete()) {
    await fresh.close()
    throw error
  }
  deps.report(config.name, { type: 'damage', error, pack: '' })
  return fresh
}

interface Unlocked { readonly header: RepositoryHeader; readonly headerBytes: Buffer; readonly masterKey: Buffer }
/** From the targets, or, while none can be asked, from this server's own copies. */
async function unlock(directory: string, config: LocalConfig, store: ObjectStore, deps: OpenRepositoryDeps): Promise<Unlocked> {
  const from = async (place: ObjectStore): Promise<Unlocked & { slotId: string }> => {
    const { header, mac } = await readRepositoryHeader(place)
    if (header.repositoryId !== config.repositoryId)
      throw new RoostError('REPOSITORY_CORRUPT', 'The target holds another repository than the one that this folder was made for.', { target: place.description })
    const { masterKey, slotId } = await openSlot(place, { keyfile: await readKeyfile(join(directory, KEYFILE_NAME)) })
    verifyRepositoryHeader(header, mac, masterKey)
    const facts = await place.head(HEADER_KEY)
    const headerBytes = await place.getRange(HEADER_KEY, { offset: 0, bytes: facts?.bytes ?? 0 })
    return { header, masterKey, slotId, headerBytes: headerBytes! }
  }
  try {
    const unlocked = await from(store)
    await rememberHeader(directory, store, unlocked.slotId, deps.effects)
    return unlocked
  } catch (error) {
    const known = isAnswer(error) ? undefined : await openKnown(directory)
    if (known === undefined) throw error
    return await from(known)
  }
}
/** False for an error that says nothing of what the targets hold. */
const isAnswer = (error: unknown): boolean => !hasCode(error, 'STORE_UNAVAILABLE') && !hasCode(error, 'STORE_REFUSED')

/** @throws {RoostError} REPOSITORY_CORRUPT */
function keysOf({ header, masterKey }: Pick<Unlocked, 'header' | 'masterKey'>): RepositoryKeys {
  if (header.family === undefined) return deriveRepositoryKeys(masterKey)
  const family = unwrapFamilyKeys(header.family, masterKey)
  if (family === undefined) throw new RoostError('REPOSITORY_CORRUPT', 'The keys of this replica\'s family do not open with its master key.')
  return deriveRepositoryKeys(masterKey, family)
}

interface Opened { directory: string; config: LocalConfig; unlocked: Unlocked; targets: TargetSet; store: ObjectStore; index: ChunkIndex; lineage: Lineage }
async function assembleParts(opened: Opened, deps: OpenRepositoryDeps): Promise<RepositoryParts> {
  const { directory, config, targets, store, index } = opened
  const { pool, clock, random, effects, spoolBytesMax } = deps
  const { header, headerBytes } = opened.unlocked
  const { repositoryId } = header
  const keys = keysOf(opened.unlocked)
  const spoolDirectory = join(directory, 'spool')
  await mkdir(spoolDirectory, { recursive: true, mode: 0o700 })
  await targets.countHoldings(index)
  const report = (event: RepositoryEvent): void => { deps.report(config.name, event) }
  const onDamage = (error: RoostError, pack: PackRow): void => { report({ type: 'damage', error, pack: pack.packId }) }
  const retention = await Retention.open({ directory, retentionKey: keys.retentionKey, repositoryId, targets, store, clock, effects })
  const retainUntilMs = (): number | undefined => retention.retainUntilMs()
  const uploads = new PackUploads({ targets, effects, clock, spoolBytesMax, onDamage, retainUntilMs })
  const snapshotLocks = new KeyedMutex<SnapshotId>()
  const spooledSnapshots = new SpooledSnapshots({ spoolDirectory, effects, clock, uploads, store, locks: snapshotLocks, retainUntilMs })
  const claims = new PackClaims()
  const doomed = new DoomedPacks({ index, targets, report: (error, pack) => { report({ type: 'deletion-refused', error, pack }) } })
  const catchUp = new CatchUp({ targets, store, index, repositoryId, headerBytes, retention, lineage: opened.lineage, snapshotLocks, report: onDamage,
    isUploading: (row) => uploads.isWaiting(row.packNumber),
    copying: { targets, claims, index, retainUntilMs, spoolFile: (row) => uploads.spoolFile(row.packNumber), onDamage: (error, row) => { onDamage(error, row) } },
    snapshotObject: async (id) => {
      const row = spooledSnapshots.has(id) ? undefined : await index.getSnapshot(id)
      return row === undefined ? undefined : encodeSnapshotObject(row, repositoryId, keys, random)
    } })
  targets.watch({
    targetFailed: ({ name, health, anyFailure }) => { report({ type: 'target', target: name, health, ...(anyFailure && { error: anyFailure.error }) }) },
    targetAnswers: ({ name, health }) => {
      report({ type: 'target', target: name, health })
      spooledSnapshots.wake()
      doomed.wake()
    },
  })
  const intake = new PackIntake({ repositoryId, index, pool, uploads, spoolDirectory, spoolBytesMax, spoolReserveBytes: deps.spoolReserveBytes ?? LIMITS.spoolReserveBytes,
    onLost: (error) => { report({ type: 'pack-lost', error }) } })
  pool.open({ repositoryId, dedupKey: keys.dedupKey, packKey: keys.packKey, spoolDirectory, zstdLevel: deps.zstdLevel },
    { onSealed: (pack) => { intake.onSealed(pack) }, onLost: (number, error) => { intake.onLost(number, error) } })
  /** Who reads tells it of damage, and it reads. */
  const care: { mender: PackMender | undefined } = { mender: undefined }
  const reader = new PackReader({ index, targets, uploads, pool, packKey: keys.packKey, dedupKey: keys.dedupKey,
    report: (error, row) => { onDamage(error, row); care.mender?.request(row.packNumber) },
    onStumble: (row, damagedOn, error) => { void mendCopies({ targets, catchUp, onDamage }, row, damagedOn, error) } })
  const parts: Omit<RepositoryParts, 'mender' | 'checkpoints'> = { name: config.name, repositoryId, createdAtMs: header.createdAtMs,
    chunker: { ...header.chunker, gearSeed: keys.gearSeed.toString('hex') },
    origins: new Origins({ store, repositoryId, key: keys.originsKey, clock }),
    keys, directory, spoolDirectory, index, targets, store, headerBytes, catchUp, claims, judge: new SnapshotJudge({ index, reader }), lineage: opened.lineage,
    doomed, spooledSnapshots, snapshotLocks, retention, pending: { recovery: undefined }, pool, uploads, intake, reader, clock, random, effects,
    commitWaitMs: deps.commitWaitMs, report, saveTargets: (list) => writeConfig(directory, { ...config, ...list }, deps) }
  const mender = care.mender = new PackMender(parts)
  return { ...parts, mender, checkpoints: new Checkpoints(parts, deps.checkpoints) }
}

/** A read found copies that are missing or damaged, and a whole one: the index forgets the bad ones, which makes the catch-up write them anew. */
async function mendCopies({ targets, catchUp, onDamage }: { targets: TargetSet; catchUp: CatchUp; onDamage(error: RoostError, row: PackRow): void },
  row: PackRow, damagedOn: readonly Target[], error: RoostError): Promise<void> {
  for (const target of damagedOn) {
    if ((((await targets.place(row.packNumber, {}))?.heldBy ?? 0) & target.bit) === 0) continue
    await targets.place(row.packNumber, { remove: target.bit })
    target.damagedPacks++
    onDamage(error, row)
    catchUp.start(target)
  }
}

function openTarget(directory: string, url: string, create: boolean, slot: number, deps: OpenRepositoryDeps): Promise<ObjectStore> {
  const { clock, random, effects, environment } = deps
  return deps.openTarget?.(url, create, slot) ??
    openStore(url, { clock, random, effects, create, ...(environment && { environment }), memory: noteFile(join(directory, `target-${slot}.json`), url, effects) })
}
/** What an adapter wants to remember of one address: a small file beside the description. */
function noteFile(path: string, url: string, effects: FileEffects): { read(): Promise<string | undefined>; write(text: string): Promise<void> } {
  return {
    read: async () => {
      try {
        const note = JSON.parse(await readFile(path, 'utf8')) as { url?: unknown; text?: unknown }
        return note.url === url && typeof note.text === 'string' ? note.text : undefined
      } catch { return undefined } // a note that is not there, or cannot be read, is none
    },
    // Before the folder is made, or on a full disk, there is no note: the next login makes it.
    write: (text) => replaceFile(path, Buffer.from(`${JSON.stringify({ url, text })}\n`), effects).catch((error: unknown) => { if (!isErrno(error)) throw error }),
  }
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
    const value = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>
    const { name, target, format } = value
    // Format 1 knew one target.
    const list = format === 1 && typeof target === 'string' ? singleTarget(target) : format === 2 ? parseTargetList(value) : undefined
    if (typeof name === 'string' && typeof value['repositoryId'] === 'string' && list !== undefined)
      return { format: 2, name, repositoryId: parseRepositoryId(value['repositoryId']), ...list }
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
