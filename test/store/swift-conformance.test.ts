/** Runs the object store's contract on real Swift, logged in through TempAuth and through Keystone. */
import { test } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import { systemRandom } from '../../src/core/random.js'
import { openStore } from '../../src/store/open-store.js'
import { openSwiftStore } from '../../src/store/swift/swift-store.js'
import { describeObjectStore } from '../conformance/object-store.js'
import { sharedLab } from '../support/openstack-lab.js'

const lab = sharedLab()
if (lab === undefined) test('the contract on real Swift', { skip: 'no lab in this run' }, () => undefined)
else {
  const environment = { OS_CLIENT_CONFIG_FILE: lab.cloudsYaml }
  let containers = 0
  const fresh = (cloud: string, below = ''): string => `swift:conformance-${process.pid}-${containers++}${below}?cloud=${cloud}`
  for (const cloud of ['tempauth', 'demo', 'demo-appcred'])
    describeObjectStore({ name: `swift, ${cloud}`, hasAtomicCreate: false,
      open: async () => openSwiftStore({ url: fresh(cloud, '/some/where'), clock: systemClock, environment, create: true }) })
  describeObjectStore({ name: 'production stack on swift', hasAtomicCreate: false,
    open: async () => openStore(fresh('demo'), { clock: systemClock, random: systemRandom, environment, create: true }) })
}
