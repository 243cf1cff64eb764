// Starts a lab (test/lab/lab.sh) on free ports and describes it: for tests, for scripts/test.mjs and for people (npm run lab).
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const SCRIPT = fileURLToPath(new URL('../../test/lab/lab.sh', import.meta.url).href.replace('/dist/', '/').replace(/\/\.build\/[^/]+\//, '/'))

/** Whether Debian's packages are there (test/lab/install.sh). */
export const labInstalled = () => ['swift-proxy-server', 'swift-object-server', 'memcached', 'keystone-manage', 'uwsgi', 'curl']
  .every((command) => spawnSync('sh', ['-c', `PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v ${command}`]).status === 0)

async function freePorts(count) {
  const servers = await Promise.all(Array.from({ length: count }, () => new Promise((resolve, reject) => {
    const server = createServer().once('error', reject).listen(0, '127.0.0.1', () => resolve(server))
  })))
  const ports = servers.map((server) => server.address().port)
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))))
  return ports
}

/** Whether Glance and Nova are there, too (test/lab/install.sh cloud). */
export const cloudInstalled = () => labInstalled() && ['glance-api', 'nova-api', 'nova-conductor', 'nova-scheduler', 'placement-api', 'epmd']
  .every((command) => spawnSync('sh', ['-c', `PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v ${command}`]).status === 0) && existsSync('/usr/lib/rabbitmq/bin/rabbitmq-server')

/** Runs a command of lab.sh on a lab that `startLab` described. Throws with the script's last words. */
export function controlLab({ directory, environment }, ...words) {
  const { status, stderr } = spawnSync('bash', [SCRIPT, ...words], { env: { ...process.env, ...environment, LAB_DIR: directory }, encoding: 'utf8', timeout: 480_000 })
  if (status !== 0) throw new Error(`lab.sh ${words.join(' ')} ended with ${status}: ${stderr.trim().split('\n').slice(-6).join(' | ')}`)
}

/** @param options.services of `swift`, `keystone`, `glance` (needs keystone) and `nova` (needs glance) */
export async function startLab({ directory, services, tokenSeconds = 3600, devices = 1, replicas = 1, objectServers = 1 }) {
  const [proxy, kproxy, object, container, account, memcache, keystone, object2, object3, glance, nova, placement, neutron, amqp, amqpDist, epmd] = await freePorts(16)
  const environment = { PORT_PROXY: `${proxy}`, PORT_KPROXY: `${kproxy}`, PORT_OBJECT: `${object}`, PORT_CONTAINER: `${container}`, PORT_ACCOUNT: `${account}`,
    PORT_MEMCACHE: `${memcache}`, PORT_KEYSTONE: `${keystone}`, KEYSTONE_TOKEN_TTL: `${tokenSeconds}`, SWIFT_DEVICES: `${devices}`, SWIFT_REPLICAS: `${replicas}`,
    OBJECT_SERVERS: `${objectServers}`, PORT_OBJECT2: `${object2}`, PORT_OBJECT3: `${object3}`,
    PORT_GLANCE: `${glance}`, PORT_NOVA: `${nova}`, PORT_PLACEMENT: `${placement}`, PORT_NEUTRON: `${neutron}`, PORT_AMQP: `${amqp}`, PORT_AMQP_DIST: `${amqpDist}`, PORT_EPMD: `${epmd}`,
    // A token that has run out must not live on in the proxy's cache.
    TOKEN_CACHE_TIME: `${Math.min(300, Math.max(5, Math.floor(tokenSeconds / 6)))}` }
  mkdirSync(directory, { recursive: true })
  const lab = { directory, environment }
  try {
    controlLab(lab, 'up', ...services)
    const cloudsYaml = join(directory, 'clouds.yaml')
    const seed = services.includes('keystone') ? JSON.parse(readFileSync(join(directory, 'keystone', 'seed.json'), 'utf8')) : undefined
    writeFileSync(cloudsYaml, cloudsOf(`http://127.0.0.1:${proxy}/auth/v1.0`, `http://127.0.0.1:${keystone}/v3`, seed), { mode: 0o600 })
    return { ...lab, cloudsYaml, swiftAuthUrl: `http://127.0.0.1:${proxy}/auth/v1.0`,
      s3: { endpoint: `http://127.0.0.1:${proxy}`, accessKeyId: 'test:tester', secretAccessKey: 'testing',
        ...(seed && { keystoneEndpoint: `http://127.0.0.1:${kproxy}`, keystoneAccessKeyId: seed.ec2.access, keystoneSecretAccessKey: seed.ec2.secret }) },
      ...(seed && { glanceUrl: `http://127.0.0.1:${glance}`, novaUrl: `http://127.0.0.1:${nova}/v2.1`, keystoneUrl: `http://127.0.0.1:${keystone}/v3`, projectId: seed.projects.demo }) }
  } catch (error) {
    stopLab(lab)
    throw error
  }
}
export function stopLab(lab) {
  try { controlLab(lab, 'down', '--wipe') } finally { rmSync(lab.directory, { recursive: true, force: true }) }
}

function cloudsOf(v1, v3, seed) {
  const user = (name, password, more = '') => `    auth: { auth_url: '${v3}', username: ${name}, password: ${password}, project_name: demo, user_domain_name: Default, project_domain_name: Default }
    region_name: RegionOne
${more}`
  return `clouds:
  tempauth:
    auth_type: v1password
    auth: { auth_url: '${v1}', username: 'test:tester', password: testing }
  tempauth-wrong-password:
    auth_type: v1password
    auth: { auth_url: '${v1}', username: 'test:tester', password: wrong }
${seed === undefined ? '' : `  demo:
${user('demo', 'demopw')}  admin:
${user('admin', 'adminpw').replace('project_name: demo', 'project_name: admin')}  reader:
${user('reader', 'readerpw')}  wrong-password:
${user('demo', 'not-this-one')}  wrong-region:
${user('demo', 'demopw').replace('RegionOne', 'Nowhere')}  demo-appcred:
    auth_type: v3applicationcredential
    auth: { auth_url: '${v3}', application_credential_id: ${seed.app_credential.id}, application_credential_secret: '${seed.app_credential.secret}' }
`}`
}
