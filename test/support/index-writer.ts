/** A process that writes an index until it is killed: adds pack n with chunk n and prints `acknowledged n`. */
import { openLmdbIndex } from '../../src/index/lmdb-index.js'
import { addPack, entriesOf, idProofsOf, sessionIdOf, sessionRow } from './index-fixtures.js'

const index = await openLmdbIndex({ directory: process.argv[2]!, identity: { repositoryId: 'ab'.repeat(16), formatVersion: 1 } })
await index.openSession(sessionRow(1))
for (let n = 1; n < 10_000; n++) {
  await addPack(index, n, entriesOf([n]))
  await index.pinPresent(sessionIdOf(1), idProofsOf([n]))
  process.stdout.write(`acknowledged ${n}\n`)
}
