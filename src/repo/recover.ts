/** Start-up: brings spool, index and target together after any end of the last process (docs/durability.md, crash table).
 *
 *  Idempotent: dying in the middle and starting again gives the same result. Deletes only what was never promised (.tmp files) and
 *  spool files whose pack the index says is on its target.
 */
import { createReadStream } from 'node:fs'
import { open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { hasCode, RoostError } from '../core/errors.js'
import { streamingDigest } from '../core/hash.js'
import { parsePackId, type PackId, type SnapshotId } from '../core/ids.js'
import type { PackRow } from '../index/chunk-index.js'
import { lackingOf } from './care/snapshot-judge.js'
import { bytesBody } from '../store/bytes-body.js'
import { everySnapshot } from './every-snapshot.js'
import { packKey, SNAPSHOT_PREFIX, snapshotIdOfKey, snapshotKey } from './layout.js'
import type { RepositoryParts } from './repository-parts.js'
import { readPackSelf } from './read-trailer.js'
import { adoptSnapshot } from './adopt-snapshot.js'
import { decodeSnapshotObject, encodeSnapshotObject, parseRecord, toSnapshotRow } from './snapshot-format.js'
import { SpooledSnapshots } from './spooled-snapshots.js'
import type { Target } from './targets/target.js'
import { maskOf } from './targets/target-set.js'

export async function recoverRepository(parts: RepositoryParts): Promise<void> {
  const counts = { unfinishedPacks: 0, uploadsResumed: 0, packsAdded: 0, damagedSpoolFiles: 0, packsFoundOnTarget: 0, packsNowhere: 0,
    snapshotsAdopted: 0, snapshotsRewritten: 0 }
  await recoverSpool(parts, counts)
  await recoverSpooledSnapshots(parts, counts)
  const mustReconcile = !parts.index.openedClean && await parts.index.isComplete()
  const doubtful = await doubtfulRows(parts)
  try {
    await recoverDoubtful(parts, doubtful, counts)
    if (mustReconcile) await reconcileSnapshots(parts, counts)
  } catch (error) {
    if (isAnswer(error)) throw error
    finishLater(parts, doubtful, mustReconcile)
  }
  if (Object.values(counts).some((count) => count > 0)) parts.report({ type: 'recovered', counts })
  parts.spooledSnapshots.wake()
  parts.doomed.wake()
  wakeCatchUp(parts)
}
function wakeCatchUp({ targets, catchUp }: RepositoryParts): void {
  for (const target of targets.all) if (targets.all.length > 1 || target.isBehind) catchUp.wakeIfBehind(target)
}
/** False for an error that says nothing of what the targets hold. */
const isAnswer = (error: unknown): boolean => !hasCode(error, 'STORE_UNAVAILABLE') && !hasCode(error, 'STORE_REFUSED')

/** What needs the targets waits until one answers. Until then the rows in doubt hold up every commit (they are announced), and the index is
 *  not closed as clean. */
function finishLater(parts: RepositoryParts, doubtful: PackRow[], mustReconcile: boolean): void {
  parts.pending.recovery = async () => {
    const counts = { unfinishedPacks: 0, uploadsResumed: 0, packsAdded: 0, damagedSpoolFiles: 0, packsFoundOnTarget: 0, packsNowhere: 0,
      snapshotsAdopted: 0, snapshotsRewritten: 0 }
    await recoverDoubtful(parts, doubtful, counts)
    if (mustReconcile) await reconcileSnapshots(parts, counts)
    parts.pending.recovery = undefined
    wakeCatchUp(parts)
    if (Object.values(counts).some((count) => count > 0)) parts.report({ type: 'recovered', counts })
  }
  let isRunning = false
  parts.targets.watch({ targetFailed: () => undefined, targetAnswers: () => {
    if (isRunning || parts.pending.recovery === undefined) return
    isRunning = true
    // Its failure is the target's, which is probed and answers again.
    void parts.pending.recovery().catch(() => undefined).finally(() => { isRunning = false })
  } })
}
type Counts = { -readonly [K in 'unfinishedPacks' | 'uploadsResumed' | 'packsAdded' | 'damagedSpoolFiles' | 'packsFoundOnTarget' | 'packsNowhere' | 'snapshotsAdopted' | 'snapshotsRewritten']: number }

async function recoverSpool(parts: RepositoryParts, counts: Counts): Promise<void> {
  const { spoolDirectory, effects } = parts
  for (const name of await readdir(spoolDirectory)) {
    const file = join(spoolDirectory, name)
    const sealed = /^([0-9a-f]{64})\.pack$/.exec(name)
    if (sealed !== null) await recoverSealed(parts, parsePackId(sealed[1]!), file, counts)
    else if (/^open-\d+\.tmp$/.test(name)) {
      await effects.unlink(file) // never finished, so never in the index, so never promised
      counts.unfinishedPacks++
    } else if (/\.snapshot\.[0-9a-f]+\.tmp$/.test(name)) await effects.unlink(file)
  }
  await effects.fsyncDirectory(spoolDirectory)
}

async function recoverSealed(parts: RepositoryParts, packId: PackId, file: string, counts: Counts): Promise<void> {
  const { index, effects, uploads } = parts
  const known = await index.findPack(packId)
  if (known?.state === 'stored' || await index.isDoomed(packId)) {
    await effects.unlink(file)
    return
  }
  if (await digestFile(file) !== packId) {
    // Not what was sealed: a rotten disk. Kept aside for a person; the index row, if any, will be reported by check.
    await effects.rename(file, `${file}.damaged`)
    counts.damagedSpoolFiles++
    return
  }
  const row = known ?? await addSpooledPack(parts, packId, file)
  if (known === undefined) counts.packsAdded++
  uploads.enqueue({ row, file })
  counts.uploadsResumed++
}
async function addSpooledPack(parts: RepositoryParts, packId: PackId, file: string): Promise<PackRow> {
  const { index, keys, repositoryId } = parts
  const storedBytes = (await stat(file)).size
  const handle = await open(file, 'r')
  try {
    const self = await readPackSelf(storedBytes, async ({ offset, bytes }) => {
      const buffer = Buffer.allocUnsafe(bytes)
      await handle.read(buffer, 0, bytes, offset)
      return buffer
    }, keys.packKey, repositoryId)
    const row: PackRow = { packNumber: await index.reservePackNumbers(1), packId, kind: self.header.kind, state: 'spooled', storedBytes,
      rawBytes: self.rawBytes, entryCount: self.trailer.entries.count, heldBy: 0 }
    return { ...row, packNumber: await index.addPack(row, self.trailer.entries, []) }
  } finally {
    await handle.close()
  }
}
async function digestFile(file: string): Promise<string> {
  const digest = streamingDigest()
  for await (const chunk of createReadStream(file, { highWaterMark: 1024 * 1024 })) digest.update(chunk as Buffer)
  return digest.hex()
}

/** Snapshots that were committed into the spool. One without its row died between the two: it was verified before it was written. */
async function recoverSpooledSnapshots(parts: RepositoryParts, counts: Counts): Promise<void> {
  const { index, spooledSnapshots, keys, repositoryId } = parts
  for (const name of await readdir(parts.spoolDirectory)) {
    const id = SpooledSnapshots.idOfFile(name)
    if (id === undefined) continue
    if (await index.getSnapshot(id) === undefined) {
      try {
        await index.commitSnapshot(toSnapshotRow(decodeSnapshotObject(await spooledSnapshots.object(id), id, repositoryId, keys)), null)
        counts.snapshotsAdopted++
      } catch (error) {
        if (!(error instanceof RoostError)) throw error
        parts.report({ type: 'damage', pack: '', error })
        continue
      }
    }
    spooledSnapshots.found(id)
  }
}

/** Rows that say `spooled` though the spool has no such file: the upload landed and its note did not, or the spool was lost. Looked for before
 *  anything is served: later, a pack on its way into the spool's queue looks like one of them. */
async function doubtfulRows({ index, uploads }: RepositoryParts): Promise<PackRow[]> {
  const doubtful: PackRow[] = []
  if ((await index.totals()).spooledPacks === 0) return doubtful
  for (let after = 0; ;) {
    const rows = await index.listPacks(after, 1000)
    if (rows.length === 0) break
    after = rows.at(-1)!.packNumber
    for (const row of rows) if (row.state === 'spooled' && uploads.spoolFile(row.packNumber) === undefined) doubtful.push(row)
  }
  for (const row of doubtful) uploads.announce(row)
  return doubtful
}
/** A pack that is nowhere is forgotten, so that clients send its chunks again. What is settled leaves `doubtful`. */
async function recoverDoubtful(parts: RepositoryParts, doubtful: PackRow[], counts: Counts): Promise<void> {
  const { index, targets, uploads } = parts
  for (let row = doubtful[0]; row !== undefined; row = doubtful[0]) {
    const holders: Target[] = []
    for (const target of targets.readable) {
      const facts = await target.use((store) => store.head(packKey(row.packId)))
      if (facts?.bytes === row.storedBytes) holders.push(target)
    }
    if (holders.length > 0) {
      // Fewer than the write policy asks for: `stored` all the same, there is no spool file to wait with; the catch-up copies it.
      await targets.place(row.packNumber, { add: maskOf(holders) })
      await index.placePack(row.packNumber, { stored: true })
      counts.packsFoundOnTarget++
    } else {
      counts.packsNowhere++
      parts.report({ type: 'damage', pack: row.packId,
        error: new RoostError('CHUNK_MISSING', 'A pack is neither in the spool nor on any target; clients will send its chunks again.', { pack: row.packId }) })
      await index.forgetPacks([row.packNumber])
      targets.noteForgotten(row)
    }
    uploads.withdraw(row.packNumber)
    doubtful.shift()
  }
}

/** A snapshot is written after its packs are in the index. When the index does not know them, it is not the one that was there then: an older copy
 *  of it was put back, and only a rebuild makes it whole. */
async function requirePresent(parts: RepositoryParts, id: SnapshotId): Promise<void> {
  const { index } = parts
  const row = await index.getSnapshot(id)
  if (row === undefined || (await index.damageState()).chunks > 0 || !await index.isComplete()) return
  const { count } = await lackingOf(parts, parseRecord(row).root, new AbortController().signal)
  if (count === 0) return
  await index.setComplete(false)
  parts.report({ type: 'damage', pack: '', error: new RoostError('INDEX_CORRUPT',
    'The index does not know packs that a snapshot on the target needs: it is older than the repository. Run `roost rebuild`.', { snapshot: id }) })
}

/** A crash between W5 and W6 leaves a whole snapshot on the target that the index does not know: it was verified before it was written, so it
 *  is taken in. A row whose object is gone (a delete cut short, or loss) gets its object back: nobody loses a snapshot to a crash. */
async function reconcileSnapshots(parts: RepositoryParts, counts: Counts): Promise<void> {
  const { index, store, keys, random, repositoryId } = parts
  for await (const { key } of store.list(SNAPSHOT_PREFIX)) {
    const id = snapshotIdOfKey(key)
    if (id === undefined || await index.getSnapshot(id) !== undefined) continue
    const adopted = await adoptSnapshot(parts, id)
    if (adopted instanceof RoostError) parts.report({ type: 'damage', pack: '', error: adopted })
    else if (adopted) {
      await requirePresent(parts, id)
      counts.snapshotsAdopted++
    }
  }
  for await (const row of everySnapshot(index)) {
    const id = row.snapshotId
    const retainUntilMs = parts.retention.retainUntilMs()
    await parts.snapshotLocks.run(id, async () => {
      if (parts.spooledSnapshots.has(id) || await index.getSnapshot(id) === undefined || await store.head(snapshotKey(id)) !== undefined) return
      await store.put(snapshotKey(id), bytesBody(encodeSnapshotObject(row, repositoryId, keys, random)), { ...(retainUntilMs && { retainUntilMs }) })
      counts.snapshotsRewritten++
    })
  }
}
