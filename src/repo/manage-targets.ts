/** Use cases over a repository's targets: what an administrator does with them while clients push and restore. */
import { RoostError } from '../core/errors.js'
import type { AddTargetRequest, ChangeRepositoryRequest, ChangeTargetRequest, MaintenanceEvent, TargetInfo } from '../core/messages.js'
import type { PackRow } from '../index/chunk-index.js'
import { holderCount } from '../index/pack-places.js'
import type { ObjectStore } from '../store/object-store.js'
import { HEADER_KEY, PACK_PREFIX, SNAPSHOT_PREFIX } from './layout.js'
import { readRepositoryHeader } from './repository-header.js'
import type { RepositoryParts } from './repository-parts.js'
import { setRetentionLock } from './retention/manage-retention.js'
import { CatchUpRun, watchRun } from './targets/catch-up.js'
import { freeSlot, isWritePolicy, requireMeetable, TARGET_NAME, type TargetConfig, type TargetList } from './targets/target-list.js'
import type { Target } from './targets/target.js'
import { infoOf, maskOf } from './targets/target-set.js'

const ROWS_PER_PAGE = 1_000

/** Order: the place is proven to be free or ours, the list is written down, then the catch-up lays header, keys, snapshots and packs there.
 *  @throws {RoostError} TARGET_EXISTS; REQUEST_MALFORMED; what the new target throws */
export async function addTarget(parts: RepositoryParts, request: AddTargetRequest, openNew: (config: TargetConfig) => Promise<ObjectStore>,
  signal: AbortSignal): Promise<TargetInfo> {
  const { list } = parts.targets
  if (!TARGET_NAME.test(request.name))
    throw new RoostError('REQUEST_MALFORMED', 'A target\'s name has 1–64 characters of a–z, 0–9, ".", "_" and "-", and starts with a letter or digit.')
  if (list.targets.some(({ name, url }) => name === request.name || url === request.url))
    throw new RoostError('TARGET_EXISTS', 'This repository has a target of this name or address already.')
  const config: TargetConfig = { slot: freeSlot(list), name: request.name, url: request.url, mode: 'active', uploadBytesPerSecondMax: request.uploadBytesPerSecondMax ?? 0 }
  const store = await openNew(config)
  try {
    await requireFreeOrOurs(parts, store, config, signal)
  } finally {
    await store.close()
  }
  await parts.index.clearHolders(2 ** config.slot) // nothing is left of an earlier target of this slot
  await apply(parts, { ...list, targets: [...list.targets, config] })
  const target = parts.targets.named(config.name)
  parts.catchUp.start(target)
  return await infoNow(parts, target)
}
async function requireFreeOrOurs(parts: RepositoryParts, store: ObjectStore, { url }: TargetConfig, signal: AbortSignal): Promise<void> {
  if (await store.head(HEADER_KEY, { signal }) !== undefined) {
    const { header } = await readRepositoryHeader(store)
    if (header.repositoryId === parts.repositoryId) return
    throw new RoostError('STORE_REFUSED', `${url} holds another repository; choose an empty place.`)
  }
  for (const prefix of [PACK_PREFIX, SNAPSHOT_PREFIX])
    for await (const { key } of store.list(prefix, { signal }))
      throw new RoostError('STORE_REFUSED', `${url} holds packs or snapshots without a repository header; empty it, or choose another place.`, { found: key })
}

/** @throws {RoostError} TARGET_UNKNOWN; TARGET_NEEDED; REQUEST_MALFORMED */
export async function changeTarget(parts: RepositoryParts, name: string, request: ChangeTargetRequest): Promise<TargetInfo> {
  const { list } = parts.targets
  const { config } = parts.targets.named(name)
  const { mode = config.mode, uploadBytesPerSecondMax = config.uploadBytesPerSecondMax, position } = request
  const changed: TargetConfig = { ...config, mode, uploadBytesPerSecondMax }
  const others = list.targets.filter((one) => one.slot !== config.slot)
  const at = position ?? list.targets.findIndex((one) => one.slot === config.slot)
  const next = { ...list, targets: [...others.slice(0, at), changed, ...others.slice(at)] }
  requireMeetable(next)
  await apply(parts, next)
  const target = parts.targets.named(name)
  if (target.isActive) parts.catchUp.start(target)
  return await infoNow(parts, target)
}

/** The objects on it stay where they are. @throws {RoostError} TARGET_UNKNOWN; TARGET_NEEDED */
export async function removeTarget(parts: RepositoryParts, name: string): Promise<void> {
  const { list } = parts.targets
  const target = parts.targets.named(name)
  const next = { ...list, targets: list.targets.filter((one) => one.slot !== target.config.slot) }
  requireMeetable(next)
  const needed = await packsNeeding(parts, target)
  if (needed > 0) throw new RoostError('TARGET_NEEDED',
    `${needed} packs would be on too few targets without ${name}; run \`roost target drain ${name}\` first.`, { packs: needed })
  await apply(parts, next)
  await parts.index.clearHolders(target.bit)
}
/** Packs that too few other active targets hold. */
async function packsNeeding(parts: RepositoryParts, target: Target): Promise<number> {
  const others = parts.targets.active.filter((one) => one !== target)
  const need = Math.min(parts.targets.holdersNeeded, others.length)
  let packs = 0
  for await (const row of everyPack(parts)) if ((row.heldBy & target.bit) !== 0 && holderCount(row.heldBy, maskOf(others)) < need) packs++
  return packs
}
async function* everyPack({ index }: RepositoryParts): AsyncGenerator<PackRow, void, undefined> {
  for (let after = 0; ;) {
    const rows = await index.listPacks(after, ROWS_PER_PAGE)
    if (rows.length === 0) return
    after = rows.at(-1)!.packNumber
    yield* rows
  }
}

export async function* backfillTarget(parts: RepositoryParts, name: string, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const target = parts.targets.named(name)
  if (!target.isActive) throw new RoostError('TARGET_NEEDED', `The target ${name} is ${target.config.mode}; enable it first.`)
  yield* watchRun(parts.catchUp.start(target), 'backfill', signal)
}

/** Afterwards the target can be removed: everything is on enough others. */
export async function* drainTarget(parts: RepositoryParts, name: string, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  const { list } = parts.targets
  const target = parts.targets.named(name)
  const next = { ...list, targets: list.targets.map((one) => one.slot === target.config.slot ? { ...one, mode: 'draining' as const } : one) }
  requireMeetable(next)
  await apply(parts, next)
  for (const other of parts.targets.active) await parts.catchUp.start(other).finished
  const run = new CatchUpRun()
  run.finished = parts.catchUp.drain(target, run).finally(() => { run.changed() })
  run.finished.catch(() => undefined) // watchRun throws it
  yield* watchRun(run, 'drain', signal)
}

/** @throws {RoostError} TARGET_NEEDED; REQUEST_MALFORMED; RETENTION_LOCKED when the lock would be shorter */
export async function changeRepository(parts: RepositoryParts, request: ChangeRepositoryRequest): Promise<void> {
  const { list } = parts.targets
  if (request.writePolicy !== undefined && !isWritePolicy(request.writePolicy))
    throw new RoostError('REQUEST_MALFORMED', 'A write policy is "all" or how many targets must hold a pack, at least 1.')
  const next = { ...list, ...(request.writePolicy === undefined ? {} : { writePolicy: request.writePolicy }),
    ...(request.durability === undefined ? {} : { durability: request.durability }) }
  requireMeetable(next)
  if (request.retentionLockMs !== undefined) await setRetentionLock(parts, request.retentionLockMs)
  if (request.writePolicy !== undefined || request.durability !== undefined) await apply(parts, next)
}

async function apply(parts: RepositoryParts, list: TargetList): Promise<void> {
  await parts.saveTargets(list)
  await parts.targets.adopt(list)
  await parts.uploads.reconsider()
  parts.spooledSnapshots.wake()
  parts.doomed.wake()
}
async function infoNow({ index }: RepositoryParts, target: Target): Promise<TargetInfo> {
  const { packs, storedBytes } = await index.totals()
  return infoOf(target, packs, storedBytes)
}
