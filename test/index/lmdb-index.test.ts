/** The embedded index: the contract, and what only files can suffer. A crash is a copy of the open index's files: what
 *  another process would find had this one died at that moment. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { hasCode } from '../../src/core/errors.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import { openLmdbIndex } from '../../src/index/lmdb-index.js'
import { chunkIndexConformance } from '../conformance/chunk-index.js'
import { addPack, entriesOf, idOf, idsOf, sessionRow } from '../support/index-fixtures.js'

const IDENTITY = { repositoryId: 'ab'.repeat(16), formatVersion: 1 }
const corrupt = (error: unknown): boolean => hasCode(error, 'INDEX_CORRUPT')

interface Place { directory: string; index: ChunkIndex }
const placeOfTest = new WeakMap<TestContext, Place>()

function scratch(t: TestContext): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'roost-index-'))
  t.after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}
async function openAt(t: TestContext, directory: string): Promise<ChunkIndex> {
  const index = await openLmdbIndex({ directory, identity: IDENTITY })
  t.after(() => index.close())
  placeOfTest.set(t, { directory, index })
  return index
}

chunkIndexConformance('LMDB', {
  open: async (t) => openAt(t, path.join(scratch(t), 'index')),
  reopen: async (t, how) => {
    const { directory, index } = placeOfTest.get(t)!
    if (how === 'clean') {
      await index.close()
      return openAt(t, directory)
    }
    const copy = path.join(scratch(t), 'index')
    cpSync(directory, copy, { recursive: true })
    return openAt(t, copy)
  },
})

test('only the owner can read the index', async (t) => {
  const directory = path.join(scratch(t), 'index')
  await openAt(t, directory)
  assert.equal(statSync(directory).mode & 0o777, 0o700)
  for (const name of ['data.mdb', 'lock.mdb', 'owner.json'])
    assert.equal(statSync(path.join(directory, name)).mode & 0o777, 0o600, name)
})

test('an index of another repository or format is refused, says what to do, and is left as it was', async (t) => {
  const directory = path.join(scratch(t), 'index')
  await (await openAt(t, directory)).close()
  for (const identity of [{ ...IDENTITY, repositoryId: 'cd'.repeat(16) }, { ...IDENTITY, formatVersion: 2 }])
    await assert.rejects(openLmdbIndex({ directory, identity }), (error) => corrupt(error) && /roost rebuild/.test((error as Error).message))
  assert.equal((await openAt(t, directory)).openedClean, true)
})

test('an index that is open cannot be opened a second time', async (t) => {
  const directory = path.join(scratch(t), 'index')
  const index = await openAt(t, directory)
  await index.openSession(sessionRow(1))
  await assert.rejects(openLmdbIndex({ directory, identity: IDENTITY }), (error) => hasCode(error, 'REPOSITORY_BUSY'))
  assert.equal((await index.listSessions()).length, 1)
})

for (const [what, bytes] of [['noise', Buffer.alloc(65_536, 'not an index ')], ['zeros', Buffer.alloc(65_536)],
  ['one short page', Buffer.alloc(100, 1)]] as const) {
  test(`a data file of ${what} is refused as corrupt`, async (t) => {
    const directory = path.join(scratch(t), 'index')
    await (await openAt(t, directory)).close()
    writeFileSync(path.join(directory, 'data.mdb'), bytes)
    await assert.rejects(openLmdbIndex({ directory, identity: IDENTITY }), corrupt)
  })
}

test('a data file that was cut short is corrupt at the first read of what is gone, never wrong and never a crash', async (t) => {
  const directory = path.join(scratch(t), 'index')
  const index = await openAt(t, directory)
  for (let n = 0; n < 4; n++) await addPack(index, n, entriesOf(Array.from({ length: 500 }, (_, i) => n * 500 + i)))
  await index.close()
  const file = path.join(directory, 'data.mdb')
  truncateSync(file, Math.floor(statSync(file).size / 8192) * 4096)
  await assert.rejects(async () => {
    const cut = await openAt(t, directory)
    await cut.locate(idsOf(Array.from({ length: 2000 }, (_, i) => i)))
  }, corrupt)
})

test('a flipped byte of a chunk entry is corrupt when it is read', async (t) => {
  const directory = path.join(scratch(t), 'index')
  const index = await openAt(t, directory)
  await addPack(index, 1, entriesOf([1]))
  await index.close()
  const file = path.join(directory, 'data.mdb')
  const bytes = readFileSync(file)
  let flipped = 0
  for (let at = bytes.indexOf(idOf(1)); at >= 0; at = bytes.indexOf(idOf(1), at + 1), flipped++) bytes[at + 32 + 20]! ^= 1
  assert.ok(flipped > 0, 'the entry lies in the file')
  writeFileSync(file, bytes)
  const damaged = await openAt(t, directory)
  await assert.rejects(damaged.locate(idsOf([1])), corrupt)
  await assert.rejects(damaged.scanChunks(undefined, 10), corrupt)
})

/** Bug class: an acknowledged reservation or pack that a killed process loses. The child prints after each await. */
test('what a killed process had acknowledged is there, its sessions are not, and its claim is taken over', async (t) => {
  const directory = path.join(scratch(t), 'index')
  const child = spawn(process.execPath, [fileURLToPath(new URL('../support/index-writer.js', import.meta.url)), directory],
    { stdio: ['ignore', 'pipe', 'inherit'] })
  let printed = ''
  for await (const data of child.stdout) {
    printed += String(data)
    if (printed.includes('acknowledged 3\n')) child.kill('SIGKILL')
  }
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  assert.equal(child.signalCode, 'SIGKILL')
  const index = await openAt(t, directory)
  assert.equal(index.openedClean, false)
  assert.deepEqual(await index.listSessions(), [])
  const { packNumbers } = await index.locate(idsOf([1, 2, 3]))
  assert.ok(packNumbers.every((number) => number > 0))
  assert.ok(await index.reservePackNumbers(1) > Math.max(...packNumbers))
})
