/** Start-up: brings spool, index and target together after any end of the last process (docs/durability.md, crash table).
 *
 *  Idempotent: dying in the middle and starting again gives the same result. Deletes only what was never promised (.tmp files) and
 *  spool files whose pack the index says is on its target.
 */
import { createReadStream } from 'node:fs'
import { open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { RoostError } from '../core/errors.js'
import { streamingDigest } from '../core/hash.js'
import { parsePackId, type PackId } from '../core/ids.js'
import type { PackRow } from '../index/chunk-index.js'
import { bytesBody } from '../store/bytes-body.js'
import { packKey, SNAPSHOT_PREFIX, snapshotIdOfKey, snapshotKey } from './layout.js'
import type { RepositoryParts } from './repository-parts.js'
import { readPackSelf } from './read-trailer.js'
import { readSnapshotObject } from './read-snapshot.js'
import { encodeSnapshotObject, toSnapshotRow } from './snapshot-format.js'

export async function recoverRepository(parts: RepositoryParts): Promise<void> {
  const counts = { unfinishedPacks: 0, uploadsResumed: 0, packsAdded: 0, damagedSpoolFiles: 0, packsFoundOnTarget: 0, packsNowhere: 0,
    snapshotsAdopted: 0, snapshotsRewritten: 0 }
  await recoverSpool(parts, counts)
  await recoverSpooledRows(parts, counts)
  if (!parts.index.openedClean && await parts.index.isComplete()) await reconcileSnapshots(parts, counts)
  if (Object.values(counts).some((count) => count > 0)) parts.report({ type: 'recovered', counts })
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
    }
  }
  await effects.fsyncDirectory(spoolDirectory)
}

async function recoverSealed(parts: RepositoryParts, packId: PackId, file: string, counts: Counts): Promise<void> {
  const { index, effects, uploads } = parts
  const known = await index.findPack(packId)
  if (known?.state === 'stored') {
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

/** Rows that say `spooled` though the spool has no such file: the upload landed and its note did not, or the spool was lost. */
async function recoverSpooledRows(parts: RepositoryParts, counts: Counts): Promise<void> {
  const { index, store, uploads } = parts
  if ((await index.totals()).spooledPacks === 0) return
  for (let after = 0; ;) {
    const rows = await index.listPacks(after, 1000)
    if (rows.length === 0) return
    for (const row of rows) {
      after = row.packNumber
      if (row.state !== 'spooled' || uploads.spoolFile(row.packNumber) !== undefined) continue
      const facts = await store.head(packKey(row.packId))
      if (facts?.bytes === row.storedBytes) {
        await index.placePack(row.packNumber, { add: 1, stored: true })
        counts.packsFoundOnTarget++
      } else {
        counts.packsNowhere++
        parts.report({ type: 'damage', pack: row.packId,
          error: new RoostError('CHUNK_MISSING', 'A pack is neither in the spool nor on its target; run `roost check`.', { pack: row.packId }) })
      }
    }
  }
}

/** A crash between W5 and W6 leaves a whole snapshot on the target that the index does not know: it was verified before it was written, so it
 *  is taken in. A row whose object is gone (a delete cut short, or loss) gets its object back: nobody loses a snapshot to a crash. */
async function reconcileSnapshots(parts: RepositoryParts, counts: Counts): Promise<void> {
  const { index, store, keys, random, repositoryId } = parts
  for await (const { key } of store.list(SNAPSHOT_PREFIX)) {
    const id = snapshotIdOfKey(key)
    if (id === undefined || await index.getSnapshot(id) !== undefined) continue
    const signed = await readSnapshotObject(parts, id)
    if (signed instanceof RoostError) { parts.report({ type: 'damage', pack: '', error: signed }); continue }
    await index.commitSnapshot(toSnapshotRow(signed), null)
    counts.snapshotsAdopted++
  }
  for (let before: number | undefined; ;) {
    const rows = await index.listSnapshots({ limit: 500, ...(before === undefined ? {} : { before }) })
    if (rows.length === 0) return
    for (const row of rows) {
      before = row.sequence
      if (await store.head(snapshotKey(row.snapshotId)) !== undefined) continue
      await store.put(snapshotKey(row.snapshotId), bytesBody(encodeSnapshotObject(row, repositoryId, keys, random)))
      counts.snapshotsRewritten++
    }
  }
}
