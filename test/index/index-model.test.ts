/** Any sequence of calls gives the same answers from LMDB as from the reference; reopening in between changes nothing. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { CHUNK_KINDS, packNumber, type ChunkKind } from '../../src/core/ids.js'
import { RoostError } from '../../src/core/errors.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import { openLmdbIndex } from '../../src/index/lmdb-index.js'
import { openMemoryIndex } from '../../src/index/memory-index.js'
import { bitmap, emptySnapshot, entriesOf, idOf, idProofsOf, idsOf, packIdOf, packRow, refsOf, sessionIdOf, sessionRow,
  snapshotIdOf } from '../support/index-fixtures.js'

type Step = (index: ChunkIndex) => Promise<unknown>

const small = fc.integer({ min: 1, max: 4 })
const chunks = fc.array(fc.integer({ min: 0, max: 30 }), { minLength: 1, maxLength: 12 })
const bits = fc.array(fc.integer({ min: 0, max: 20 }), { minLength: 1, maxLength: 6 })
const kind = fc.constantFrom(CHUNK_KINDS.data, CHUNK_KINDS.node)
const step = (name: string, run: Step): { name: string; run: Step } => ({ name, run })

const steps = fc.oneof(
  fc.tuple(fc.integer({ min: 1, max: 8 }), chunks, kind, fc.option(fc.tuple(small, bits)))
    .map(([n, numbers, packKind, pin]) => step(`add pack ${n} [${numbers}] kind ${packKind} pin ${pin}`, (index) => addPack(index, n, numbers, packKind, pin))),
  small.map((n) => step(`open ${n}`, async (index) => {
    if (await index.getSession(sessionIdOf(n)) === undefined) await index.openSession(sessionRow(n))
  })),
  small.map((n) => step(`close ${n}`, (index) => index.closeSession(sessionIdOf(n)))),
  fc.tuple(small, fc.nat(99)).map(([n, at]) => step(`touch ${n}`, (index) => index.touchSession(sessionIdOf(n), at))),
  fc.tuple(small, chunks).map(([n, numbers]) => step(`pin ${n} [${numbers}]`, (index) => index.pinPresent(sessionIdOf(n), idProofsOf(numbers)))),
  fc.tuple(small, fc.integer({ min: 1, max: 9 }), bits).map(([n, pack, set]) =>
    step(`pin entries ${n} pack ${pack} [${set}]`, (index) => index.pinEntries(sessionIdOf(n), packNumber(pack), bitmap(...set)))),
  fc.tuple(small, chunks).map(([n, numbers]) => step(`inherit ${n} [${numbers}]`, (index) => index.inheritRefs(sessionIdOf(n), idsOf(numbers)))),
  fc.tuple(small, chunks, kind).map(([n, numbers, refKind]) =>
    step(`inspect ${n} [${numbers}]`, (index) => index.inspectRefs(sessionIdOf(n), refsOf(numbers, refKind)))),
  fc.tuple(small, fc.option(small)).map(([n, session]) => step(`commit ${n} by ${session}`, (index) =>
    index.commitSnapshot(emptySnapshot(n), session === null ? null : sessionIdOf(session)))),
  small.map((n) => step(`delete ${n}`, (index) => index.deleteSnapshot(snapshotIdOf(n), idOf(n)))),
  fc.integer({ min: 1, max: 8 }).map((n) => step(`store pack ${n}`, async (index) => {
    const pack = await index.findPack(packIdOf(n))
    if (pack !== undefined) await index.placePack(pack.packNumber, { add: 0b110, stored: true })
  })),
)

const care = fc.oneof(
  fc.tuple(fc.integer({ min: 0, max: 9 }), chunks).map(([n, numbers]) => step(`lose [${numbers}] of ${n}`, (index) => index.markDamaged(n, idsOf(numbers)))),
  fc.integer({ min: 1, max: 8 }).map((n) => step(`forget pack ${n}`, async (index) => {
    const pack = await index.findPack(packIdOf(n))
    if (pack !== undefined) await index.forgetPacks([pack.packNumber])
  })),
  fc.nat(4).map((generation) => step(`forget damage of ${generation}`, (index) => index.forgetDamage(generation))),
  fc.tuple(small, fc.nat(5)).map(([n, generation]) => step(`whole ${n} at ${generation}`, (index) => index.noteWhole(snapshotIdOf(n), generation))),
  fc.tuple(fc.integer({ min: 1, max: 9 }), fc.nat(99)).map(([n, at]) => step(`verified ${n}`, (index) => index.noteVerified(packNumber(n), at))),
)

/** A repeated pack id stands for the same bytes, so its entries follow from its number alone. */
async function addPack(index: ChunkIndex, n: number, numbers: readonly number[], packKind: ChunkKind,
  pin: [number, number[]] | null): Promise<unknown> {
  const known = await index.findPack(packIdOf(n))
  const pins = pin === null ? [] : [{ sessionId: sessionIdOf(pin[0]), bitmap: bitmap(...pin[1]) }]
  if (known !== undefined) {
    const rows = await index.listPacks(known.packNumber - 1, 1)
    return index.addPack(rows[0]!, entriesOf(Array.from({ length: known.entryCount }, (_, i) => i)), pins)
  }
  const number = await index.reservePackNumbers(1)
  return index.addPack(packRow(number, n, numbers.length, packKind), entriesOf(numbers), pins)
}

async function outcome(run: Step, index: ChunkIndex): Promise<unknown> {
  try { return { value: await run(index) } } catch (error) {
    if (error instanceof RoostError) return { code: error.code }
    throw error
  }
}
async function everything(index: ChunkIndex): Promise<unknown> {
  const numbers = Array.from({ length: 32 }, (_, i) => i)
  const sessions = await index.listSessions()
  return {
    totals: await index.totals(), packs: await index.listPacks(0, 100), scan: await index.scanChunks(undefined, 100),
    half: await index.scanChunks(idOf(15), 5), located: await index.locate(idsOf(numbers)), sessions,
    refs: await Promise.all(sessions.flatMap(({ sessionId }) => Object.values(CHUNK_KINDS)
      .map((refKind) => index.inspectRefs(sessionId, refsOf(numbers, refKind))))),
    snapshots: await index.listSnapshots({ limit: 10 }), damage: await index.damageState(), lost: await index.listDamaged(undefined, 100),
    whole: await Promise.all([1, 2, 3, 4].map((n) => index.wholeAt(snapshotIdOf(n)))), verified: await index.listVerified(0, 100),
    unverified: await index.listUnverified(0, 100),
    made: await Promise.all([1, 2, 3, 4].map((n) => index.findSnapshotOfSession(sessionIdOf(n)))),
  }
}

test('LMDB and the reference agree over any sequence of calls', async () => {
  const base = mkdtempSync(path.join(tmpdir(), 'roost-model-'))
  let runs = 0
  try {
    await fc.assert(fc.asyncProperty(fc.array(fc.oneof({ arbitrary: steps, weight: 3 }, care), { minLength: 5, maxLength: 40 }), fc.nat(40), async (sequence, reopenAt) => {
      const options = { directory: path.join(base, String(runs++)), identity: { repositoryId: 'ab'.repeat(16), formatVersion: 1 } }
      const model = openMemoryIndex()
      let index = await openLmdbIndex(options)
      try {
        for (const [at, { name, run }] of sequence.entries()) {
          if (at === reopenAt) {
            await index.close()
            index = await openLmdbIndex(options)
          }
          assert.deepEqual(await outcome(run, index), await outcome(run, model), name)
        }
        assert.deepEqual(await everything(index), await everything(model))
      } finally {
        await index.close()
      }
    }), { numRuns: 25 })
  } finally {
    rmSync(base, { recursive: true, force: true })
  }
})
