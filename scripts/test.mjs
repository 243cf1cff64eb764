// npm test: installs if needed, builds, and runs every emitted test file with node's test runner.
//
//   npm test                      everything that is quick
//   npm run test:slow             also the long loops (ROOST_TEST_SLOW=1)
//   npm test -- client/upload     only files whose path contains one of the words
//
// A file whose source is gone (a stale dist/) is not run: the list is made from the sources.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { cloudInstalled, labInstalled, startLab, stopLab } from '../test/lab/start-lab.mjs'
import { build, filesUnder, installIfNeeded, ROOT } from './prepare.mjs'

// A test that hangs is a failure that names itself, not a run without end. It counts for whole files, too.
const TEST_MS_MAX = 1_500_000

const slow = process.argv.includes('--slow')
const words = process.argv.slice(2).filter((argument) => !argument.startsWith('--'))

installIfNeeded()
build()

const files = filesUnder(join(ROOT, 'test'), (path) => path.endsWith('.test.ts'))
  .map((path) => relative(ROOT, path))
  .filter((path) => words.length === 0 || words.some((word) => path.includes(word)))
  .map((path) => join('dist', path.replace(/\.ts$/, '.js')))
if (files.length === 0) {
  console.error('No test file matches.')
  process.exit(2)
}
const absent = files.filter((file) => !existsSync(join(ROOT, file)))
if (absent.length > 0) {
  console.error(`Not built: ${absent.join(', ')}`)
  process.exit(1)
}

for (const [group, tool] of [
  ['comparison of restored trees by rsync', 'rsync'], ['POSIX ACLs', 'setfacl'], ['extended attributes', 'setfattr'],
  ['ext4 images', 'mke2fs'], ['retention held against a living restic', 'restic'], ['backups as an ordinary user', 'setpriv'],
  ['partition tables', 'sfdisk'], ['exports read by qemu-img', 'qemu-img'], ['exports read by libnbd', 'nbdinfo'],
]) {
  if (spawnSync('sh', ['-c', `command -v ${tool}`]).status !== 0)
    console.log(`SKIPPED GROUP: ${group} — ${tool} is not installed`)
}
if (!slow) console.log('SKIPPED GROUP: long loops — run `npm run test:slow` for them')

const uses = (words) => files.some((file) => readFileSync(join(ROOT, file.replace(/^dist\//, '').replace(/\.js$/, '.ts')), 'utf8').includes(words))
if (uses('withoutCloud') && process.env.CI === 'true' && !cloudInstalled()) spawnSync('bash', [join(ROOT, 'test/lab/install.sh'), 'cloud'], { stdio: 'inherit' })
const lab = await sharedLab()
// Interrupted, the runner ends first: it has the same signal.
process.on('SIGINT', () => undefined)
let result
try {
  result = spawnSync(process.execPath, ['--enable-source-maps', '--test', '--test-concurrency=2', `--test-timeout=${TEST_MS_MAX}`, '--test-reporter=spec', ...files], {
    cwd: ROOT, stdio: 'inherit',
    env: { ...process.env, ...(slow ? { ROOST_TEST_SLOW: '1' } : {}), ...(lab === undefined ? {} : { ROOST_LAB: join(lab.directory, 'lab.json') }) },
  })
} finally {
  if (lab !== undefined) stopLab(lab)
}
process.exit(result.status ?? 1)

/** One Swift and Keystone for all tests that leave them whole; started only when such a test is to run. */
async function sharedLab() {
  if (!uses('openstack-lab')) return undefined
  if (!labInstalled() && process.env.CI === 'true') spawnSync('bash', [join(ROOT, 'test/lab/install.sh')], { stdio: 'inherit' })
  if (!labInstalled()) {
    console.log('SKIPPED GROUP: targets on real Swift, S3 and Keystone — install them with test/lab/install.sh')
    return undefined
  }
  if (!uses('sharedLab')) return undefined
  const lab = await startLab({ directory: mkdtempSync(join(tmpdir(), 'roost-lab-')), services: ['swift', 'keystone'] })
  writeFileSync(join(lab.directory, 'lab.json'), JSON.stringify(lab), { mode: 0o600 })
  return lab
}
