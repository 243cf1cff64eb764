// npm run lab: real Swift and Keystone on loopback to play with; Ctrl-C ends them and deletes what they hold.
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { labInstalled, startLab, stopLab } from '../test/lab/start-lab.mjs'

if (!labInstalled()) {
  console.error('Swift and Keystone are not installed: run test/lab/install.sh as root on Debian.')
  process.exit(1)
}
const lab = await startLab({ directory: mkdtempSync(join(tmpdir(), 'roost-lab-')), services: ['swift', 'keystone'] })
console.log(`Swift and Keystone run; their logs are in ${lab.directory}/log.

  export OS_CLIENT_CONFIG_FILE=${lab.cloudsYaml}
  roost target add swift 'swift:backups?cloud=demo'          Keystone
  roost target add swift 'swift:backups?cloud=tempauth'      TempAuth

Ctrl-C ends them and deletes what they hold.`)
const timer = setInterval(() => undefined, 3_600_000)
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => {
  clearInterval(timer)
  stopLab(lab)
})
