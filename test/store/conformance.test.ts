/** Runs the object store's contract on every adapter, every decorator and the production stack. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import { systemRandom } from '../../src/core/random.js'
import { boundedStore } from '../../src/store/bounded-store.js'
import { openFileStore } from '../../src/store/file-store.js'
import { createMemoryStore } from '../../src/store/memory-store.js'
import { createStoreCounters, observedStore } from '../../src/store/observed-store.js'
import { openStore } from '../../src/store/open-store.js'
import { retryingStore } from '../../src/store/retrying-store.js'
import { describeObjectStore } from '../conformance/object-store.js'
import { cutEffects } from '../support/cut-effects.js'
import { faultyStore } from '../support/faulty-store.js'

async function temporary(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'roost-store-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  return directory
}
const deps = { clock: systemClock, random: systemRandom }

describeObjectStore({ name: 'memory', open: async () => createMemoryStore() })
describeObjectStore({ name: 'file', open: async (t) => openFileStore({ directory: await temporary(t) }) })
describeObjectStore({
  name: 'file over countable effects',
  open: async (t) => openFileStore({ directory: await temporary(t), effects: cutEffects() }),
})
describeObjectStore({ name: 'retrying', open: async () => retryingStore(createMemoryStore(), deps) })
describeObjectStore({ name: 'bounded', open: async () => boundedStore(createMemoryStore(), { callsInFlightMax: 1 }) })
describeObjectStore({ name: 'observed', open: async () => observedStore(createMemoryStore(), createStoreCounters()) })
describeObjectStore({ name: 'faulty without a script', open: async () => faultyStore(createMemoryStore()) })
describeObjectStore({
  name: 'production stack',
  open: async (t) => openStore(`file:${await temporary(t)}`, { ...deps, callsInFlightMax: 2 }),
})
