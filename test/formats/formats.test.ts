/** Bug class: bytes on targets that a later version cannot read, or documents that describe other bytes. Method: one frozen example of every
 *  format; today's code must read it, write it again byte for byte, and the page that explains it must show it.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { describe, test } from 'node:test'
import { digest, hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, parsePackId, parseSnapshotId } from '../../src/core/ids.js'
import { decodeNode, NODE_TYPES } from '../../src/core/node-format.js'
import { checkChunkValue, packNumberOfValue, entryNumberOfValue, rawBytesOfValue } from '../../src/index/entry-codec.js'
import { decodePackRow, decodePins, pinKey, u32Key } from '../../src/index/row-codec.js'
import { openBlock } from '../../src/repo/pack-format.js'
import { readPackSelf } from '../../src/repo/read-trailer.js'
import { readRepositoryHeader, verifyRepositoryHeader, writeRepositoryHeader } from '../../src/repo/repository-header.js'
import { keySlotKey, HEADER_KEY } from '../../src/repo/layout.js'
import { decodeSettings, encodeSettings } from '../../src/repo/retention/settings-format.js'
import { unlockMasterKey } from '../../src/repo/key-slots.js'
import { decodeSnapshotObject, encodeSnapshotObject, parseRecord } from '../../src/repo/snapshot-format.js'
import { systemRandom } from '../../src/core/random.js'
import { decodeOrigin, encodeOrigin } from '../../src/repo/replica/origins.js'
import { deriveRepositoryKeys, familyIdOf, unwrapFamilyKeys } from '../../src/repo/repository-keys.js'
import { bytesBody } from '../../src/store/bytes-body.js'
import { createMemoryStore } from '../../src/store/memory-store.js'
import { CHUNKS, formatExamples, KEYS, MASTER_KEY, ORIGIN_KEYS, ORIGIN_RECORD, RECORD, REPOSITORY_ID } from '../support/format-examples.js'

/** The project's root, from wherever this file was built to. */
const ROOT = ((): URL => {
  let at = new URL('./', import.meta.url)
  while (!existsSync(new URL('package.json', at))) at = new URL('../', at)
  return at
})()
const fixture = async (name: string): Promise<Buffer> => Buffer.from((await readFile(new URL(`test/formats/fixtures/${name}.hex`, ROOT), 'utf8')).replace(/\s/g, ''), 'hex')
const page = async (name: string): Promise<string> => await readFile(new URL(`docs/formats/${name}.md`, ROOT), 'utf8')

describe('what was frozen', () => {
  for (const [name, bytes] of formatExamples()) {
    test(`${name} is written today as it was`, async () => { assert.equal(bytes.toString('hex'), (await fixture(name)).toString('hex')) })
    test(`${name} is what its page shows`, async () => {
      const shown = [...(await page(name.replace(/^index-.*/, 'index-v1'))).matchAll(/```hex\n([\s\S]*?)```/g)].map(([, hex]) => hex!.replace(/\s/g, ''))
      assert.ok(shown.includes(bytes.toString('hex')), `docs/formats shows ${name}`)
    })
  }

  test('a node gives its references and its body', async () => {
    const node = decodeNode(await fixture('node-v1'))
    assert.equal(node.type, NODE_TYPES.directory)
    assert.deepEqual([node.refs.count, node.refs.kind(1), node.refs.id(0).toString('hex'), node.body.toString()], [2, CHUNK_KINDS.node, 'aa'.repeat(32), 'body'])
  })

  test('a pack gives its chunks, by its trailer', async () => {
    const bytes = await fixture('pack-v1')
    const { secret, trailer } = await readPackSelf(bytes.byteLength, (range) => Promise.resolve(Buffer.from(bytes.subarray(range.offset, range.offset + range.bytes))),
      KEYS.packKey, REPOSITORY_ID)
    const { entries } = trailer
    const block = openBlock(secret, 64, Buffer.from(bytes.subarray(64, 64 + entries.blockStoredBytes[0]!)))
    assert.deepEqual(Array.from({ length: entries.count }, (_, i) => block.subarray(entries.offsetsInBlock[i], entries.offsetsInBlock[i]! + entries.rawBytes[i]!)), CHUNKS)
    assert.deepEqual(entries.idProofs, Buffer.concat(CHUNKS.map((chunk) => hashChunk(KEYS.dedupKey, chunk, CHUNK_KINDS.data))))
  })

  test('a snapshot gives its record, signed', async () => {
    const id = parseSnapshotId('be4d7500273fe3d0e65216efc214affb59e74e922805536c79b62339cdface25')
    assert.deepEqual(parseRecord(decodeSnapshotObject(await fixture('snapshot-v1'), id, REPOSITORY_ID, KEYS)), RECORD)
  })

  test('a replicated snapshot gives its record, signed by whom it says', async () => {
    const id = parseSnapshotId('d287a8b02e11be26311871165b73108760e4362da2a0cab7205497f665cde666')
    const signed = decodeSnapshotObject(await fixture('snapshot-v2'), id, REPOSITORY_ID, KEYS)
    assert.deepEqual(parseRecord(signed), ORIGIN_RECORD)
    assert.deepEqual([signed.signer, signed.arrivedAtMs], [ORIGIN_KEYS.signing.publicKey.toString('hex'), 1_700_000_500_000])
    const asOwn = encodeSnapshotObject({ snapshotId: signed.snapshotId, record: signed.record, signature: signed.signature }, REPOSITORY_ID, KEYS, systemRandom)
    assert.throws(() => decodeSnapshotObject(asOwn, id, REPOSITORY_ID, KEYS), { code: 'SNAPSHOT_CORRUPT' })
  })

  test('a replica opens: its header is authentic, and the keys of its family and its origins are what they were', async () => {
    const blocks = [...(await page('repository-v2')).matchAll(/```json\n([\s\S]*?)```/g)].map(([, json]) => json!)
    const store = createMemoryStore()
    await store.put(HEADER_KEY, bytesBody(Buffer.from(blocks[0]!)))
    const { header, mac } = await readRepositoryHeader(store)
    verifyRepositoryHeader(header, mac, MASTER_KEY)
    const family = unwrapFamilyKeys(header.family!, MASTER_KEY)!
    assert.deepEqual([family.dedupKey, family.gearSeed], [ORIGIN_KEYS.dedupKey, ORIGIN_KEYS.gearSeed])
    assert.equal(unwrapFamilyKeys(header.family!, Buffer.alloc(32, 0x77)), undefined)
    const keys = deriveRepositoryKeys(MASTER_KEY, family)
    assert.deepEqual([keys.dedupKey, keys.packKey], [ORIGIN_KEYS.dedupKey, KEYS.packKey])
    assert.equal(familyIdOf(keys), familyIdOf(ORIGIN_KEYS))
    const again = createMemoryStore()
    await writeRepositoryHeader(again, header, MASTER_KEY)
    assert.equal((await again.getRange(HEADER_KEY, { offset: 0, bytes: blocks[0]!.length }))?.toString(), blocks[0])
    const origin = decodeOrigin(Buffer.from(blocks[1]!), REPOSITORY_ID, keys.originsKey)
    assert.equal(origin?.verifyKey, ORIGIN_KEYS.signing.publicKey.toString('hex'))
    assert.equal(encodeOrigin(origin!, REPOSITORY_ID, keys.originsKey).toString(), blocks[1])
    assert.equal(decodeOrigin(Buffer.from(blocks[1]!.replace('17000', '17001')), REPOSITORY_ID, keys.originsKey), undefined)
  })

  test('index rows give what they hold', async () => {
    const value = await fixture('index-chunk-v1')
    checkChunkValue(value, hashChunk(KEYS.dedupKey, CHUNKS[1]!, CHUNK_KINDS.data), 0)
    assert.deepEqual([packNumberOfValue(value), entryNumberOfValue(value), rawBytesOfValue(value)], [7, 1, 5])
    const row = decodePackRow(u32Key(7), await fixture('index-pack-v1'))
    assert.deepEqual([row.packId, row.state, row.entryCount], [parsePackId(digest(await fixture('pack-v1')).toString('hex')), 'stored', 2])
    const pins = decodePins(pinKey(Buffer.alloc(16, 0xcc), 7), await fixture('index-pins-v1'))
    assert.deepEqual([pins.pinned[0], pins.inherited[0]], [3, 2])
  })

  test('a repository opens with the secret of a frozen slot, and its header is authentic', async () => {
    const text = await page('repository-v1')
    const blocks = [...text.matchAll(/```json\n([\s\S]*?)```/g)].map(([, json]) => json!)
    const store = createMemoryStore()
    await store.put(HEADER_KEY, bytesBody(Buffer.from(blocks[0]!)))
    await store.put(keySlotKey((JSON.parse(blocks[1]!) as { slotId: string }).slotId), bytesBody(Buffer.from(blocks[1]!)))
    const master = await unlockMasterKey(store, { keyfile: Buffer.alloc(32, 0x42) })
    assert.deepEqual(master, MASTER_KEY)
    const { header, mac } = await readRepositoryHeader(store)
    verifyRepositoryHeader(header, mac, master)
    const seal = { retentionKey: KEYS.retentionKey, repositoryId: header.repositoryId }
    const settings = decodeSettings(Buffer.from(blocks[2]!), seal)
    assert.deepEqual([settings?.version, settings?.policy?.daily, settings?.locks.length], [3, 7, 1])
    assert.equal(encodeSettings(settings!, seal).toString(), blocks[2])
    assert.equal(decodeSettings(Buffer.from(blocks[2]!.replace('"lockMs":2592000000', '"lockMs":0')), seal), undefined)
    const again = createMemoryStore()
    await writeRepositoryHeader(again, header, master)
    assert.equal((await again.getRange(HEADER_KEY, { offset: 0, bytes: blocks[0]!.length }))?.toString(), blocks[0])
  })
})
