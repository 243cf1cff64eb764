/** Uploading packs to Swift on loopback against curl with the same objects and as many at once, in turns. Prints the ratio, and requests per GiB
 *  as Swift's proxy counted them.
 *
 *  node dist/bench/target-bench.js [--objects N] [--mib N] [--rounds N]
 */
import { spawnSync } from 'node:child_process'
import { createReadStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { forEachBounded } from '../src/core/concurrency.js'
import { systemClock } from '../src/core/clock.js'
import { systemRandom } from '../src/core/random.js'
import { openStore } from '../src/store/open-store.js'
import { labInstalled, startLab } from '../test/support/openstack-lab.js'

const MiB = 1024 * 1024
const AT_ONCE = 4
const { values } = parseArgs({ options: { objects: { type: 'string', default: '12' }, mib: { type: 'string', default: '64' }, rounds: { type: 'string', default: '5' } } })
const objects = Number(values.objects), bytes = Number(values.mib) * MiB, rounds = Number(values.rounds)

if (!labInstalled) {
  console.log('target-bench: SKIPPED, Swift is not installed (test/lab/install.sh)')
  process.exit(0)
}
const afterwards: (() => void)[] = []
const directory = mkdtempSync(join(tmpdir(), 'roost-target-bench-'))
try {
  const lab = await startLab({ after: (work: unknown) => { afterwards.push(work as () => void) } } as Parameters<typeof startLab>[0], { services: ['swift'] })
  const file = join(directory, 'pack')
  writeFileSync(file, systemRandom.bytes(bytes))
  const login = await fetch(lab.swiftAuthUrl, { headers: { 'x-auth-user': 'test:tester', 'x-auth-key': 'testing' } })
  const token = login.headers.get('x-auth-token')!, storageUrl = login.headers.get('x-storage-url')!
  await fetch(`${storageUrl}/bench`, { method: 'PUT', headers: { 'x-auth-token': token } })
  const store = await openStore('swift:bench?cloud=tempauth', { clock: systemClock, random: systemRandom, environment: { OS_CLIENT_CONFIG_FILE: lab.cloudsYaml } })
  const requestsSoFar = (): number => readFileSync(join(lab.directory, 'log', 'swift-proxy.log'), 'utf8').split('\n').filter((line) => / (PUT|HEAD|GET|POST|DELETE) \/v1\//.test(line)).length

  const byRoost = async (round: number): Promise<number> => {
    const startMs = systemClock.monotonicMs()
    await forEachBounded(Array.from({ length: objects }, (_, at) => at), AT_ONCE, (at) =>
      store.put(`packs/r${round}-${at}`, { bytes, open: () => createReadStream(file, { highWaterMark: MiB }) }))
    return objects * bytes / MiB / ((systemClock.monotonicMs() - startMs) / 1000)
  }
  const byCurl = (round: number): number => {
    const startMs = systemClock.monotonicMs()
    const uploads = Array.from({ length: objects }, (_, at) => ['-T', file, `${storageUrl}/bench/packs/c${round}-${at}`, '-o', '/dev/null']).flat()
    const { status } = spawnSync('curl', ['-sS', '-Z', '--parallel-max', `${AT_ONCE}`, '-H', `X-Auth-Token: ${token}`, ...uploads])
    if (status !== 0) throw new Error(`curl ended with ${status}`)
    return objects * bytes / MiB / ((systemClock.monotonicMs() - startMs) / 1000)
  }

  await byRoost(-1) // warms both sides' files and connections
  byCurl(-1)
  const ratios: number[] = []
  let requests = 0
  for (let round = 0; round < rounds; round++) {
    const before = requestsSoFar()
    const roost = await byRoost(round)
    requests += requestsSoFar() - before
    const curl = byCurl(round)
    ratios.push(roost / curl)
    console.log(`round ${round + 1}: roost ${roost.toFixed(0)} MiB/s, curl ${curl.toFixed(0)} MiB/s, ratio ${(roost / curl).toFixed(2)}`)
  }
  ratios.sort((a, b) => a - b)
  console.log(`upload to swift: median ${ratios[Math.floor(ratios.length / 2)]!.toFixed(2)} of curl (goal 0.80); ` +
    `${(requests / (rounds * objects * bytes / 1024 / MiB)).toFixed(1)} requests a GiB`)
  await store.close()
} finally {
  for (const work of afterwards) work()
  rmSync(directory, { recursive: true, force: true })
}
