/** The keys of a repository's folder with a `file:` target, as only its server should ever have them. */
import { join } from 'node:path'
import { systemClock } from '../../src/core/clock.js'
import { systemRandom } from '../../src/core/random.js'
import { readKeyfile, unlockMasterKey } from '../../src/repo/key-slots.js'
import { readRepositoryHeader } from '../../src/repo/repository-header.js'
import { deriveRepositoryKeys, unwrapFamilyKeys } from '../../src/repo/repository-keys.js'
import { nodeFileEffects } from '../../src/store/file-effects.js'
import { openFileStore } from '../../src/store/file-store.js'

const families = new Map<Buffer, { dedupKey: Buffer; gearSeed: Buffer }>()
export async function masterKeysOf(folder: string): Promise<Buffer> {
  const store = await openFileStore({ directory: join(folder, 'store'), effects: nodeFileEffects, create: false, clock: systemClock, random: systemRandom })
  try {
    const master = await unlockMasterKey(store, { keyfile: await readKeyfile(join(folder, 'keyfile')) })
    const { header } = await readRepositoryHeader(store)
    const family = header.family === undefined ? undefined : unwrapFamilyKeys(header.family, master)
    if (family !== undefined) families.set(master, family)
    return master
  } finally {
    await store.close()
  }
}
/** By name. */
export function derivedSecrets(masterKey: Buffer): Record<string, Buffer> {
  const { signing, ...keys } = deriveRepositoryKeys(masterKey, families.get(masterKey))
  return { ...keys, signingSecret: signing.secretKey.subarray(0, 32) }
}
