/** The pack codec: what is sealed comes back, and nothing that was changed, moved or swapped ever does. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { RoostError } from '../../src/core/errors.js'
import { digest, hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, packNumber, parseRepositoryId } from '../../src/core/ids.js'
import { zstdEncoder } from '../../src/core/zstd.js'
import { nodeFileEffects } from '../../src/store/file-effects.js'
import { decodePackHeader, openBlock, packSecret, sealBlock } from '../../src/repo/pack-format.js'
import { PackWriter, type SealedPack } from '../../src/repo/pack-writer.js'
import { readPackSelf } from '../../src/repo/read-trailer.js'

const REPOSITORY = parseRepositoryId('00112233445566778899aabbccddeeff')
const DEDUP_KEY = Buffer.alloc(32, 1)
const PACK_KEY = Buffer.alloc(32, 2)
const counting = (bytes: number, seed: number): Buffer => Buffer.from(Array.from({ length: bytes }, (_, i) => (i * seed + (i >> 3)) & 0xff))
const CHUNKS = [counting(5000, 3), counting(1, 7), Buffer.alloc(70_000, 'text that compresses '), counting(33, 11)]

async function writePack(t: TestContext): Promise<{ pack: SealedPack; bytes: Buffer }> {
  const directory = await mkdtemp(join(tmpdir(), 'roost-pack-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const writer = new PackWriter({ directory, number: packNumber(1), kind: CHUNK_KINDS.data, repositoryId: REPOSITORY, packKey: PACK_KEY,
    effects: nodeFileEffects, random: { bytes: (count) => Buffer.alloc(count, 9), fraction: () => 0 }, encoder: zstdEncoder(1) })
  const ids = CHUNKS.map((chunk) => hashChunk(DEDUP_KEY, chunk, CHUNK_KINDS.data))
  assert.equal(writer.appendBlock(CHUNKS.slice(0, 2), ids.slice(0, 2)), 0)
  assert.equal(writer.appendBlock(CHUNKS.slice(2), ids.slice(2)), 2)
  const pack = await writer.finish()
  return { pack, bytes: await readFile(pack.file) }
}
const selfOf = (bytes: Buffer): ReturnType<typeof readPackSelf> =>
  readPackSelf(bytes.byteLength, (range) => Promise.resolve(Buffer.from(bytes.subarray(range.offset, range.offset + range.bytes))), PACK_KEY, REPOSITORY)

/** Every chunk that a reader gets out of these bytes, or the refusal. */
async function readAll(bytes: Buffer): Promise<Buffer[]> {
  const { secret, trailer: { entries } } = await selfOf(bytes)
  return Array.from({ length: entries.count }, (_, i) => {
    const offset = entries.blockOffsets[i]!
    const block = openBlock(secret, offset, Buffer.from(bytes.subarray(offset, offset + entries.blockStoredBytes[i]!)))
    return block.subarray(entries.offsetsInBlock[i], entries.offsetsInBlock[i]! + entries.rawBytes[i]!)
  })
}

test('a pack gives back exactly the chunks it was given', async (t) => {
  const { pack, bytes } = await writePack(t)
  assert.equal(pack.storedBytes, bytes.byteLength)
  assert.deepEqual(await readAll(bytes), CHUNKS)
  const { trailer } = await selfOf(bytes)
  assert.deepEqual(trailer.entries.idProofs, Buffer.concat(CHUNKS.map((chunk) => hashChunk(DEDUP_KEY, chunk, CHUNK_KINDS.data))))
})

test('a byte flipped anywhere in a pack is refused, never returned as data', async (t) => {
  const { bytes } = await writePack(t)
  for (let at = 0; at < bytes.byteLength; at++) {
    const damaged = Buffer.from(bytes)
    damaged[at]! ^= 1 << (at & 7)
    await assert.rejects(readAll(damaged), (error) => error instanceof RoostError && error.code === 'PACK_CORRUPT', `flip at ${at}`)
  }
})

test('a pack cut at any length is refused', async (t) => {
  const { bytes } = await writePack(t)
  for (let length = 0; length < bytes.byteLength; length += 7)
    await assert.rejects(readAll(bytes.subarray(0, length)), (error) => error instanceof RoostError && error.code === 'PACK_CORRUPT', `cut at ${length}`)
})

test('a block moved to another offset, or under another header, does not open', async (t) => {
  const { bytes } = await writePack(t)
  const header = bytes.subarray(0, 64)
  const secret = packSecret(PACK_KEY, header)
  const sealed = Buffer.concat(sealBlock(secret, 64, [Buffer.from('content')], zstdEncoder(1)))
  assert.equal(openBlock(secret, 64, sealed).toString(), 'content')
  assert.throws(() => openBlock(secret, 65, sealed), { code: 'PACK_CORRUPT' })
  const other = Buffer.from(header)
  other[40]! ^= 1
  assert.throws(() => openBlock(packSecret(PACK_KEY, other), 64, sealed), { code: 'PACK_CORRUPT' })
  assert.throws(() => openBlock(packSecret(Buffer.alloc(32, 3), header), 64, sealed), { code: 'PACK_CORRUPT' })
})

test('a pack of another repository is named as such', async (t) => {
  const { bytes } = await writePack(t)
  const read = (range: { offset: number; bytes: number }): Promise<Buffer> => Promise.resolve(bytes.subarray(range.offset, range.offset + range.bytes))
  await assert.rejects(readPackSelf(bytes.byteLength, read, PACK_KEY, parseRepositoryId('ff'.repeat(16))), /another repository/)
  assert.equal(decodePackHeader(bytes.subarray(0, 64)).kind, CHUNK_KINDS.data)
})

test('a pack written by the first release is read forever', async () => {
  // test/formats/fixtures/pack-v1.pack was written by writePack above; compression may change its bytes, never its meaning.
  const frozen = await readFile(join(process.cwd(), 'test', 'formats', 'fixtures', 'pack-v1.pack'))
  assert.equal(digest(frozen).toString('hex'), 'eba2e45b3ae263df16194e7879fad108fd80bb67b6ad6b899531b15b11adc0f6')
  assert.deepEqual(await readAll(frozen), CHUNKS)
})
