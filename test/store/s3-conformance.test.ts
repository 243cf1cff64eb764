/** Runs the object store's contract on Swift's S3, with keys of TempAuth and of Keystone. */
import { test } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import { systemRandom } from '../../src/core/random.js'
import { openStore } from '../../src/store/open-store.js'
import { openS3Store } from '../../src/store/s3/s3-store.js'
import { describeObjectStore } from '../conformance/object-store.js'
import { sharedLab } from '../support/openstack-lab.js'

const lab = sharedLab()
if (lab === undefined) test('the contract on Swift\'s S3', { skip: 'no lab in this run' }, () => undefined)
else {
  const { s3 } = lab
  let buckets = 0
  const fresh = (endpoint: string, below = ''): string => `s3:conformance-${process.pid}-${buckets++}${below}?endpoint=${endpoint}`
  const tempAuth = { AWS_ACCESS_KEY_ID: s3.accessKeyId, AWS_SECRET_ACCESS_KEY: s3.secretAccessKey }
  describeObjectStore({ name: 's3 on swift, tempauth', hasAtomicCreate: false,
    open: async () => openS3Store({ url: fresh(s3.endpoint, '/some/where'), clock: systemClock, environment: tempAuth, create: true }) })
  if (s3.keystoneEndpoint !== undefined) {
    const endpoint = s3.keystoneEndpoint
    const environment = { AWS_ACCESS_KEY_ID: s3.keystoneAccessKeyId, AWS_SECRET_ACCESS_KEY: s3.keystoneSecretAccessKey }
    describeObjectStore({ name: 's3 on swift, keystone', hasAtomicCreate: false,
      open: async () => openS3Store({ url: fresh(endpoint), clock: systemClock, environment, create: true }) })
    describeObjectStore({ name: 'production stack on s3', hasAtomicCreate: false,
      open: async () => openStore(fresh(endpoint, '/p'), { clock: systemClock, random: systemRandom, environment, create: true }) })
  }
}
