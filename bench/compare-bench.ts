/** Roost beside restic and borg on the same data in one run (docs/benchmarks.md): first backup, again unchanged, restore; a tree and an image.
 *  An image is read again as a whole by all three: a disk in use has no time stamp to trust.
 *
 *  Run: npm run bench -- [--data DIR] [--image FILE] [--only tree|image] [--rounds N] [--json]
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { hasTool, RoostWorld, roostCommand } from '../test/support/run-roost.js'
import { cpuSecondsOf, measure, peakBytesOf, resetPeak, type Cost } from './measure-process.js'

const STEPS = ['first', 'unchanged', 'restore'] as const
type Step = (typeof STEPS)[number]
type Workload = 'tree' | 'image'
interface Figures extends Cost { readonly serverCpuSeconds: number; readonly serverPeakBytes: number; readonly storedBytes: number }
interface Tool { readonly name: string; start(): Promise<void>; step(step: Step, workload: Workload, path: string): Promise<Cost>; storedBytes(): number; server?(): number | undefined; close(): Promise<void> }

const { values } = parseArgs({ options: { data: { type: 'string' }, image: { type: 'string' }, only: { type: 'string' }, rounds: { type: 'string', default: '1' }, json: { type: 'boolean', default: false } } })
const scratch = mkdtempSync(join(tmpdir(), 'roost-bench-'))
const tellLine = (text: string): void => { if (!values.json) console.log(text) }

const bytesUnder = (path: string): number => existsSync(path) ? Number(execFileSync('du', ['-sb', path], { encoding: 'utf8' }).split('\t')[0]) : 0
let restores = 0
/** Deleted only at the end: ext4 searches long for inodes right after many were freed, which would be counted against the next tool. */
function freshOut(): string {
  const out = join(scratch, `restored-${++restores}`)
  mkdirSync(out)
  return out
}

function roost(): Tool {
  const world = new RoostWorld('bench')
  const environment = (): NodeJS.ProcessEnv => ({ ...process.env, ROOST_REPOSITORY: `${world.url}/bench`, ROOST_TOKEN_FILE: world.adminTokenFile, HOME: world.directory, XDG_CONFIG_HOME: world.directory })
  return {
    name: 'roost',
    start: async () => { await world.startServer(['--log-level', 'error']); await world.createRepository() },
    step: async (step, workload, path) => {
      const source = workload === 'tree' ? [path] : ['--image', path]
      const args = step === 'restore' ? ['restore', 'latest', ...(workload === 'tree' ? ['--target', freshOut()] : ['--to-file', join(freshOut(), 'image')])] : ['backup', ...source, '--source', workload]
      return await measure(roostCommand(args), { env: environment(), accepted: step === 'restore' ? [0] : [0, 3] })
    },
    storedBytes: () => bytesUnder(join(world.dataDirectory, 'repositories', 'bench', 'store')),
    server: () => world.serverPid,
    close: () => world.close(),
  }
}
function restic(): Tool {
  const repository = join(scratch, 'restic')
  const env = { ...process.env, RESTIC_PASSWORD: 'bench', RESTIC_REPOSITORY: repository, RESTIC_CACHE_DIR: join(scratch, 'restic-cache') }
  return {
    name: 'restic',
    start: async () => { await measure(['restic', 'init', '-q'], { env }) },
    step: (step, workload, path) => measure(step === 'restore' ? ['restic', 'restore', 'latest', '-q', '--target', freshOut()] : ['restic', 'backup', '-q', ...(workload === 'image' ? ['--force'] : []), path], { env, accepted: step === 'restore' ? [0] : [0, 3] }),
    storedBytes: () => bytesUnder(repository),
    close: async () => { rmSync(repository, { recursive: true, force: true }); rmSync(join(scratch, 'restic-cache'), { recursive: true, force: true }); await Promise.resolve() },
  }
}
function borg(): Tool {
  const repository = join(scratch, 'borg')
  const env = { ...process.env, BORG_PASSPHRASE: 'bench', BORG_BASE_DIR: join(scratch, 'borg-base'), BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes' }
  let count = 0
  return {
    name: 'borg',
    start: async () => { mkdirSync(env.BORG_BASE_DIR, { recursive: true }); await measure(['borg', 'init', '-e', 'repokey-blake2', repository], { env }) },
    step: (step, workload, path) => step === 'restore' ? measure(['borg', 'extract', '--sparse', `${repository}::a${count}`], { env, cwd: freshOut() })
      : measure(['borg', 'create', ...(workload === 'image' ? ['--files-cache=disabled'] : []), `${repository}::a${++count}`, path], { env, accepted: [0, 1] }),
    storedBytes: () => bytesUnder(repository),
    close: async () => { rmSync(repository, { recursive: true, force: true }); rmSync(env.BORG_BASE_DIR, { recursive: true, force: true }); await Promise.resolve() },
  }
}

async function runOnce(tool: Tool, workload: Workload, path: string, take: (step: Step, figures: Figures) => void): Promise<void> {
  await tool.start()
  try {
    for (const step of STEPS) {
      execFileSync('sync')
      const pid = tool.server?.()
      if (pid !== undefined) resetPeak(pid)
      const cpuBefore = pid === undefined ? 0 : cpuSecondsOf(pid)
      const cost = await tool.step(step, workload, path)
      take(step, { ...cost, serverCpuSeconds: pid === undefined ? 0 : cpuSecondsOf(pid) - cpuBefore, serverPeakBytes: pid === undefined ? 0 : peakBytesOf(pid), storedBytes: tool.storedBytes() })
    }
  } finally { await tool.close() }
}

const median = (numbers: readonly number[]): number => [...numbers].sort((a, b) => a - b)[(numbers.length - 1) >> 1]!
const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0)

async function compare(workload: Workload, path: string): Promise<void> {
  tellLine(`\n${workload}: ${path}`)
  const makers = [roost, ...(hasTool('restic') ? [restic] : []), ...(hasTool('borg') ? [borg] : [])]
  for (const [name, has] of [['restic', hasTool('restic')], ['borg', hasTool('borg')]] as const) if (!has) tellLine(`${name} is not installed: left out`)
  const all = new Map<string, Figures[]>()
  execFileSync('sh', ['-c', 'tar -cf - -C "$1" "$2" | cat > /dev/null', 'sh', resolve(path, '..'), path.split('/').at(-1)!]) // into the page cache, for everyone
  for (let round = 0; round < Number(values.rounds); round++)
    for (const make of round % 2 === 0 ? makers : [...makers].reverse()) {
      const tool = make()
      await runOnce(tool, workload, path, (step, figures) => {
        const key = `${tool.name} ${step}`
        all.set(key, [...(all.get(key) ?? []), figures])
        if (values.json) console.log(JSON.stringify({ workload, tool: tool.name, step, round, ...figures }))
      })
    }
  tellLine('step       tool     wall s  ×restic  client cpu s  server cpu s  client MiB  server MiB  stored MiB  ×restic')
  for (const step of STEPS) for (const name of ['roost', 'restic', 'borg']) {
    const figures = all.get(`${name} ${step}`), peer = all.get(`restic ${step}`)
    if (figures === undefined) continue
    const pick = (field: keyof Figures): number => median(figures.map((each) => each[field]))
    const ratio = (field: keyof Figures): string => peer === undefined ? '-' : (pick(field) / median(peer.map((each) => each[field]))).toFixed(2)
    tellLine([step.padEnd(10), name.padEnd(7), pick('wallSeconds').toFixed(2).padStart(7), ratio('wallSeconds').padStart(8), pick('cpuSeconds').toFixed(2).padStart(13), pick('serverCpuSeconds').toFixed(2).padStart(13),
      mib(pick('peakBytes')).padStart(11), mib(pick('serverPeakBytes')).padStart(11), mib(pick('storedBytes')).padStart(11), ratio('storedBytes').padStart(8)].join(' '))
  }
}

/** A tree of this machine's own system files: real names, sizes and contents. */
function generatedTree(): string {
  const tree = join(scratch, 'tree')
  mkdirSync(tree)
  for (const part of ['/usr/share', '/usr/include', '/usr/lib/python3', '/usr/lib/node_modules', '/usr/bin'])
    if (existsSync(part)) execFileSync('cp', ['-a', '--parents', part, tree], { stdio: ['ignore', 'ignore', 'ignore'] })
  return tree
}
/** 4 GiB of ext4 that holds `tree`. */
function generatedImage(tree: string): string {
  const image = join(scratch, 'image.raw')
  execFileSync('mke2fs', ['-q', '-t', 'ext4', '-d', tree, image, '4G'], { stdio: ['ignore', 'ignore', 'inherit'] })
  return image
}

process.once('SIGINT', () => { rmSync(scratch, { recursive: true, force: true }); process.exit(130) })
try {
  const tree = values.data === undefined ? generatedTree() : resolve(values.data)
  if (!statSync(tree).isDirectory() || readdirSync(tree).length === 0) throw new Error(`${tree} is no tree to save`)
  if (values.only !== 'image') await compare('tree', tree)
  if (values.only !== 'tree') await compare('image', values.image === undefined ? generatedImage(tree) : resolve(values.image))
} finally { rmSync(scratch, { recursive: true, force: true }) }
