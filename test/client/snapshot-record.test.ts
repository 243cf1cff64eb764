/** Bug class: a snapshot believed though nobody signed it, or signed for something else. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { openSignedSnapshot, SNAPSHOT_CONTEXT, snapshotIdOf } from '../../client/snapshot-record.js'
import { hasCode } from '../../src/core/errors.js'
import { CHUNK_KINDS } from '../../src/core/ids.js'
import type { SignedSnapshot } from '../../src/core/messages.js'
import { signDetached } from '../../src/core/nacl.js'
import { MemoryRepository, recordOf } from '../support/memory-repository.js'

const repository = new MemoryRepository()
const signed = repository.addSnapshot(repository.put(Buffer.from('root'), CHUNK_KINDS.node), { tags: ['a'] })
const verifyKey = repository.signingKeys.publicKey.toString('hex')
const refused = (one: SignedSnapshot, key = verifyKey): void => {
  assert.throws(() => openSignedSnapshot(one, key), (error) => hasCode(error, 'SNAPSHOT_CORRUPT'))
}
function sign(record: Buffer, context: Buffer = SNAPSHOT_CONTEXT): SignedSnapshot {
  const signature = signDetached(Buffer.concat([context, record]), repository.signingKeys.secretKey)
  return { id: snapshotIdOf(record, signature), record: record.toString('base64'), signature: signature.toString('base64') }
}

test('a rightly signed record opens', () => {
  assert.deepEqual(openSignedSnapshot(signed, verifyKey), recordOf(signed))
})
test('a changed record, signature, id or key is refused', () => {
  const flip = (text: string): string => {
    const bytes = Buffer.from(text, 'base64')
    bytes[bytes.byteLength >> 1]! ^= 1
    return bytes.toString('base64')
  }
  refused({ ...signed, record: flip(signed.record) })
  refused({ ...signed, signature: flip(signed.signature) })
  refused({ ...signed, id: signed.id.replace(/^./, (digit) => (digit === '0' ? '1' : '0')) })
  refused(signed, new MemoryRepository().signingKeys.publicKey.toString('hex'))
  refused(signed, '')
  refused({} as SignedSnapshot)
})
test('a signature over the same bytes for another purpose is refused', () => {
  refused(sign(Buffer.from(JSON.stringify(recordOf(signed))), Buffer.from('roost token v1\0')))
})
test('a signed record of the wrong shape is refused', () => {
  const good = recordOf(signed) as unknown as Record<string, unknown>
  const wrong: Record<string, unknown>[] = [
    { format: 2 }, { root: '../etc' }, { root: 'A'.repeat(64) }, { parent: 7 }, { paths: 'x' }, { tags: [1] }, { mode: 'tape' },
    { statistics: { files: -1 } }, { startedAtMs: null }, { description: [] }, { host: undefined },
  ]
  for (const change of wrong) refused(sign(Buffer.from(JSON.stringify({ ...good, ...change }))))
  for (const text of ['', '[]', 'null', '{']) refused(sign(Buffer.from(text)))
})
